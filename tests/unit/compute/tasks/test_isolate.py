"""Ranges are narrowed down to the records that workers die of, whatever the worker had marked."""

import random

import pytest

from onefold.compute.tasks.isolate import Suspects


@pytest.mark.parametrize("seed", range(50))
def test_the_records_that_kill_are_blamed_and_all_others_run_once_in_order(seed: int) -> None:
    rng = random.Random(seed)
    height, base = rng.randint(1, 40), rng.choice([0, 1_000])
    poison = {row for row in range(height) if rng.random() < 0.15}
    done: list[int] = []
    blamed: list[int] = []
    suspects = Suspects([(0, height)])
    while suspects.todo:
        lo, hi = suspects.todo.pop()
        killers = [row for row in range(lo, hi) if row in poison]
        if not killers:
            done += range(lo, hi)
            continue
        low, high = sorted(rng.choices(range(lo, hi + 1), k=2))
        right = (min(low, killers[0]), max(high, killers[0] + 1))
        marked = rng.choice([right, (lo, hi), (0, 0), (-base, -base), (low, high)])
        if suspects.narrow(lo, hi, lambda at=marked: (at[0] + base, at[1] + base), base=-base):
            blamed.append(lo)
    assert blamed == sorted(poison)
    assert done == [row for row in range(height) if row not in poison]
    assert suspects.died >= 2 * len(poison)


def test_a_worker_that_dies_of_a_record_once_blames_nothing() -> None:
    suspects = Suspects([])
    assert not suspects.narrow(3, 4, lambda: (0, 0))
    assert suspects.todo == [(3, 4)]
    suspects.todo.clear()
    assert suspects.narrow(3, 4, lambda: (0, 0))
    assert (suspects.todo, suspects.died) == ([], 2)
