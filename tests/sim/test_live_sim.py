"""Live jobs under everything that can go wrong, from seeds: every row counted once, every window emitted once.

Each seed is a run of ``kit.live``: workers that claim, commit, split, fuse, compact, stop, come back and die, over a log whose
answers get lost, with input that is late, silent or ahead of its time. The job is stopped, replayed, swapped and drained, and
stopped while it drains; one in three has a history, which comes in when it is done, and in one of five the input does not stay
unless it is held. Three of four seeds have a profile that makes frequent what one kind of mistake needs (``kit.live.stress``).
By default a fiftieth of the first thousand seeds is run, another one each day (``support.parts``), and one of the planted bugs is
looked for with several seeds. The nightly run::

    ONEFOLD_SIM_SEEDS=10000 pytest tests/sim/test_live_sim.py -n auto

``kit.live.model.run(seed)`` inside ``kit.live.bugs.planted(None)`` is a run again.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import cache
from itertools import islice

import pytest

from kit.live import model
from kit.live.bugs import BUGS, planted
from support import parts

PARTS = 50
TOTAL = int(os.environ.get("ONEFOLD_SIM_SEEDS", "1000" if parts.takes_all() else "20"))
FIRST = int(os.environ.get("ONEFOLD_SIM_FIRST", parts.part_of_day(PARTS) * TOTAL))
CHUNK = 5
MANY, LEAST = 100, 8 if parts.takes_all() else 2
CAUGHT_BY = {
    "no seq check": 1,
    "appends in an operation of their own": 3,
    "watermark recomputed after takeover": 0,
    "idle by the clock alone": 0,
    "idle by a stale view": 13,
    "fusion with unequal watermarks": 1,
    "equal blobs swept": 2,
    "positions that go back": 0,
    "attempts told apart by seq alone": 3,
    "far-future times move the watermark": 1,
    "a drain forgotten by the next start": 0,
    "a drain without its ends after the next start": 0,
    "input held from the bundle that is furthest": 4,
    "input held only while the job runs": 4,
    "input held when the job is over": 4,
    "input held from the start": 4,
    "input held without a bound": 4,
    "a history enters with each owner": 0,
    "nothing is held for a history": 4,
    "a history enters for all lanes": 4,
}
"""The first seed that catches each bug."""


@cache
def happened(seed: int) -> Counter[str]:
    with planted(None):
        try:
            return model.run(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {error}") from error


@pytest.mark.parametrize("first", range(FIRST, FIRST + TOTAL, CHUNK))
def test_every_row_is_counted_once_and_every_window_emitted_once(first):
    for seed in range(first, min(first + CHUNK, FIRST + TOTAL)):
        happened(seed)


def test_the_runs_have_in_them_what_they_are_to_survive():
    seen = Counter[str]()
    for seed in range(8):
        seen += happened(seed)
    for what in (
        "windows",
        "late",
        "idle",
        "commits",
        "owners",
        "splits",
        "fusions",
        "deaths",
        "stops",
        "swaps that waited",
        "drains that drain on",
        "drains undone",
        "histories",
        "rows before a seam",
        "commits while a history is awaited",
        "input removed",
        "input held",
    ):
        assert seen[what] >= 1, f"{what}: {seen}"


@pytest.mark.parametrize(("bug", "seed"), CAUGHT_BY.items())
def test_a_planted_bug_is_caught(bug, seed):
    happened(seed)  # it is the bug that is caught
    with planted(bug), pytest.raises(Exception) as found:
        model.run(seed)
    assert not isinstance(found.value, NotImplementedError)


def is_caught(bug: str, seed: int) -> bool:
    with planted(bug):
        try:
            model.run(seed)
        except NotImplementedError:
            raise
        except Exception:
            return True
    return False


@pytest.mark.moving(len(BUGS))
@pytest.mark.parametrize("bug", BUGS)
def test_many_seeds_catch_a_planted_bug(bug):
    caught = (seed for seed in range(MANY) if is_caught(bug, seed))
    assert len(list(islice(caught, LEAST))) == LEAST


def test_every_planted_bug_has_a_seed():
    assert CAUGHT_BY.keys() == BUGS.keys()
