"""Schedules of overlapping operations with a known moment of effect: whatever is run in the order of the effects on
one unshared object is a correct history. Checkers are calibrated on them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from onefold.testing.history import Status


@dataclass(frozen=True, slots=True)
class Slot:
    """When one operation is invoked, takes effect (None: never) and ends. Times are abstract."""

    process: int
    invoked: float
    effect: float | None
    completed: float | None
    status: Status


def schedule(
    rng: random.Random, count: int, *, processes: int = 5, info: float = 0.05, fail: float = 0.05
) -> list[Slot]:
    """That many slots in the order of their effects; those that never have one are first.

    Half of the operations of unknown outcome take effect, some of them long after their client gave up; about one in
    three of them has no time of completion. Failed ones have no effect. No process overlaps itself.
    """
    return sorted(
        _slots(rng, count, processes, info, fail),
        key=lambda slot: -1.0 if slot.effect is None else slot.effect,
    )


def _slots(rng: random.Random, count: int, processes: int, info: float, fail: float) -> Iterator[Slot]:
    free = dict.fromkeys(range(processes), 0.0)
    for _ in range(count):
        process = min(free, key=lambda each: free[each])
        invoked = free[process] + rng.expovariate(1.0)
        completed = invoked + rng.expovariate(0.5)
        free[process] = completed + 1e-6
        drawn = rng.random()
        if drawn < info:
            effect = invoked + rng.expovariate(0.1) if rng.random() < 0.5 else None
            yield Slot(process, invoked, effect, completed if rng.random() < 2 / 3 else None, "info")
        elif drawn < info + fail:
            yield Slot(process, invoked, None, completed, "fail")
        else:
            yield Slot(process, invoked, rng.uniform(invoked, completed), completed, "ok")
