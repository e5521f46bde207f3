"""Whole runs of a simulated world."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from kit.regions.region import Violation
from kit.regions.world import World
from onefold.available import effects, exchange, reading
from onefold.available.sync import joining, leaving, staging


@contextmanager
def small_steps(seed: int) -> Iterator[None]:
    """The bounds of what one record of a full sync does are so low that its few rows need many."""
    rng = random.Random(seed)
    rows = rng.choice((1, 2, 5))
    with (
        patch.object(staging, "SYNC_ROWS_MAX", rows),
        patch.object(exchange, "SYNC_ROWS_MAX", rows),
        patch.object(joining, "JOINED_ROWS_MAX", rng.choice((1, 2, 3, 8))),
        patch.object(leaving, "CLEARED_PER_OPERATION_MAX", rng.choice((1, 3, 50))),
        patch.object(leaving, "LATER_PER_OPERATION_MAX", rng.choice((1, 100))),
    ):
        yield


def run(seed: int, *, steps: int = 200, count: int = 0, **options: Any) -> World:
    """A whole run; raises Violation. ``count`` of regions; by default it follows from the seed."""
    with small_steps(seed):
        world = World(seed, count or 2 + seed % 2, **options)
        for _ in range(steps):
            world.step()
        world.heal()
        check_unseen(world)
        return world


def check_unseen(world: World) -> None:
    """What nobody took of evicted regions is listed, each write once, and changes nothing."""
    region = world.any()
    before, listed = region.shown(), region.me.conflicts
    for gone in world.gone.values():
        known = region.me.regions[gone.number]
        if not gone.log or not known.final:
            continue
        writes = [
            write
            for effect in exchange.unseen(gone.store, known.limit)
            for write in effect.writes
            if not isinstance(write, effects.CONTROL)
        ]
        for _ in range(2):
            for op in exchange.unseen_ops(gone.store, known.limit):
                world.append(region, op)
        listed += len(writes)
        found = [one.write for _, one in reading.conflicts(region.store, listed - len(writes) - 1)]
        if region.me.conflicts != listed or found != [effects.encode_write(write) for write in writes]:
            raise Violation(f"{region.me.conflicts} conflicts are listed, not {listed}")
    if region.shown() != before:
        raise Violation("what nobody took has changed rows")
