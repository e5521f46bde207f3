"""Compaction keeps runs few and writes each row a bounded number of times."""

from __future__ import annotations

from itertools import chain
from random import Random

import pytest

from onefold.compute.live.runs.tiers import (
    RUNS_PER_TIER,
    TIER_BYTES_MIN,
    RunPlace,
    next_compaction,
    tier,
)

LANES = frozenset(range(8))


def settle(runs: list[RunPlace], order: list[list[int]]) -> tuple[int, int]:
    """Compacts until nothing is left to do; returns (compactions, bytes written). ``order`` tells what each run is made of."""
    count = written = 0
    while (found := next_compaction(runs, LANES)) is not None:
        places = [runs.index(run) for run in found.runs]
        assert places == list(range(places[0], places[0] + len(places))), "neighbours"
        assert found.complete == (places[0] == 0)
        size = sum(run.size_bytes for run in found.runs)
        newest = found.runs[-1]
        made = RunPlace(newest.offset, size, LANES)
        order[places[0] : places[-1] + 1] = [list(chain.from_iterable(order[place] for place in places))]
        runs[places[0] : places[-1] + 1] = [made]
        count, written = count + 1, written + size
    return count, written


def test_tiers_are_eight_times_as_large_each() -> None:
    assert [
        tier(size)
        for size in (0, TIER_BYTES_MIN, TIER_BYTES_MIN + 1, 8 * TIER_BYTES_MIN, 64 * TIER_BYTES_MIN)
    ] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("seed", range(5))
def test_an_hour_of_commits_leaves_few_runs(seed: int) -> None:
    random = Random(seed)
    runs: list[RunPlace] = []
    order: list[list[int]] = []
    delta = written = most = 0
    for offset in range(3000):
        size = random.choice((500, 2_000, 200_000 if random.random() < 0.02 else 700))
        delta += size
        runs.append(RunPlace(offset, size, LANES))
        order.append([offset])
        written += settle(runs, order)[1]
        most = max(most, len(runs))
    assert list(chain.from_iterable(order)) == list(range(3000)), "every run stays in its place"
    assert most <= 6 * RUNS_PER_TIER
    assert written <= 4 * delta


def test_runs_of_other_lanes_are_left_alone() -> None:
    others = frozenset({100})
    runs = [RunPlace(offset, 100, others) for offset in range(20)]
    assert next_compaction(runs, LANES) is None


def test_a_tier_that_is_not_full_is_left_alone() -> None:
    runs = [RunPlace(offset, 100, LANES) for offset in range(RUNS_PER_TIER - 1)]
    assert next_compaction(runs, LANES) is None
    runs.append(RunPlace(100, 100, LANES))
    found = next_compaction(runs, LANES)
    assert found is not None
    assert len(found.runs) == RUNS_PER_TIER
    assert found.complete
