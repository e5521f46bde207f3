"""Runs: their order, compaction, and what is garbage."""

from __future__ import annotations

import pytest

from onefold import config
from onefold.state.fold import blobs as named_blobs
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import Cover, Give, NewRun, Sweep
from onefold.state.fold.outcomes import Committed
from support.live_rows import LiveRows, packed, run_of

ALL = (0, 1, 2, 3)


@pytest.fixture
def rows() -> LiveRows:
    found = LiveRows()
    found.claim("a")
    return found


def ids(rows):
    return [run.id for run in live_rows.runs(rows.store, rows.part)]


def cover(run, *lanes):
    return Cover(run, packed(*lanes))


def garbage(rows):
    return named_blobs.garbage(rows.store)


def test_runs_are_in_the_order_of_their_commits(rows):
    for number in range(3):
        rows.commit(runs=(run_of(*ALL), run_of(number, kind="late")))
    offsets = [run.offset for run in ids(rows)]
    assert offsets == sorted(offsets) and len(set(ids(rows))) == 6
    assert live_rows.inline_of(rows.store, rows.part, ids(rows)[0]) == b"rows"


def test_a_compacted_run_stands_where_its_newest_was(rows):
    for number in range(4):
        rows.commit(runs=(run_of(*ALL, blob=f"b{number}"),))
    before = ids(rows)
    replaced = tuple(cover(run, *ALL) for run in before[:3])
    rows.commit(runs=(run_of(*ALL, blob="merged", replaces=replaced), run_of(*ALL, blob="new")))
    after = ids(rows)
    assert [(run.offset, run.index) for run in after[:2]] == [(one.offset, one.index) for one in before[2:]]
    assert len(after) == 3 and after[0] not in before and after[1] == before[3]
    assert garbage(rows) == ["b0", "b1", "b2"]


def test_a_run_keeps_the_lanes_of_other_bundles(rows):
    rows.commit(runs=(run_of(*ALL, blob="one"),))
    rows.commit(runs=(run_of(*ALL, blob="two"),))
    rows.do(Give("j", 1, "p", 0, "a", 1, 2, packed(2, 3), "a"))
    one, two = ids(rows)
    merged = run_of(2, 3, blob="merged", replaces=(cover(one, 2, 3), cover(two, 2, 3)))
    assert isinstance(rows.commit(1, runs=(merged,)), Committed)
    assert [lanes for _, lanes in rows.runs()] == [[0, 1], [0, 1], [2, 3]]
    assert garbage(rows) == []
    rows.commit(0, dropped=(cover(one, 0, 1), cover(two, 0, 1)))
    assert rows.runs()[0][1] == [2, 3] and garbage(rows) == ["one", "two"]


def test_a_merge_over_a_run_left_out_is_refused(rows):
    for _ in range(3):
        rows.commit(runs=(run_of(*ALL),))
    one, two, three = ids(rows)
    merged = run_of(*ALL, replaces=(cover(one, *ALL), cover(three, *ALL)))
    outcome = rows.commit(runs=(merged,))
    assert (outcome.reason, "leaves out" in outcome.detail) == ("bad_run", True)
    whole = run_of(*ALL, replaces=tuple(cover(run, *ALL) for run in (one, two, three)))
    assert isinstance(rows.commit(runs=(whole,)), Committed)


def test_runs_of_another_kind_or_other_lanes_may_stand_between(rows):
    rows.commit(runs=(run_of(0, 1), run_of(2, 3), run_of(0, 1, kind="late")))
    rows.commit(runs=(run_of(0, 1),))
    state = [run.id for run in live_rows.runs(rows.store, rows.part) if run.row.lanes == packed(0, 1)]
    state = [run for run in state if live_rows.run_of(rows.store, rows.part, run).kind == "state"]
    merged = run_of(0, 1, replaces=tuple(cover(run, 0, 1) for run in state))
    assert isinstance(rows.commit(runs=(merged,)), Committed)


@pytest.mark.parametrize(
    "change",
    [
        lambda first, second: {"replaces": (cover(second, *ALL), cover(first, *ALL))},
        lambda first, second: {"replaces": (cover(first, *ALL), cover(first, *ALL))},
        lambda first, second: {"replaces": (cover(first, 0), cover(second, *ALL))},
        lambda first, second: {"replaces": (cover(first, *ALL), cover(second, *ALL)), "kind": "result"},
        lambda first, second: {"lanes": packed(7)},
        lambda first, second: {"blob": "x", "inline": b"y"},
        lambda first, second: {"blob": "", "inline": b""},
        lambda first, second: {"inline": bytes(config.LIVE_INLINE_BYTES_MAX + 1)},
        lambda first, second: {"blob": "x" * 200, "inline": b""},
        lambda first, second: {"low_us": 5, "high_us": 4},
        lambda first, second: {"low_us": 5},
    ],
)
def test_a_run_that_cannot_be_refuses_the_commit(rows, change):
    for _ in range(2):
        rows.commit(runs=(run_of(*ALL),))
    before, writes = ids(rows), rows.store.writes
    fields = {"kind": "state", "lanes": packed(*ALL), "rows": 1, "size": 4, "inline": b"rows"}
    outcome = rows.commit(runs=(NewRun(**(fields | change(*before))),))
    assert outcome.reason == "bad_run"
    assert (ids(rows), rows.store.writes) == (before, writes)


def test_a_run_loses_each_lane_once(rows):
    rows.commit(runs=(run_of(*ALL),))
    (run,) = ids(rows)
    twice = (cover(run, 0, 1), cover(run, 1, 2))
    assert rows.commit(dropped=twice).reason == "bad_run"
    merged = run_of(*ALL, replaces=(cover(run, *ALL),))
    assert rows.commit(runs=(merged,), dropped=(cover(run, 0),)).reason == "bad_run"
    assert isinstance(rows.commit(dropped=(cover(run, 0), cover(run, 1))), Committed)
    assert rows.commit(dropped=(cover(run, 0),)).reason == "bad_run"


def test_a_blob_that_is_named_again_cannot_be_swept(rows):
    rows.commit(runs=(run_of(*ALL, blob="same"),))
    (run,) = ids(rows)
    rows.commit(dropped=(cover(run, *ALL),))
    assert garbage(rows) == ["same"]
    rows.commit(runs=(run_of(*ALL, blob="same"),))
    assert garbage(rows) == []
    assert rows.do(Sweep(("same", "never"))).value == []
    (run,) = ids(rows)
    rows.commit(runs=(run_of(*ALL, blob="same"),))
    rows.commit(dropped=(cover(run, *ALL),))
    assert garbage(rows) == []
    rows.commit(dropped=(cover(ids(rows)[0], *ALL),))
    assert rows.do(Sweep(("same",))).value == ["same"]
    assert (named_blobs.named_by(rows.store, "same"), named_blobs.garbage_since(rows.store, "same")) == (
        0,
        None,
    )


def test_so_many_runs_in_a_commit(rows, monkeypatch):
    monkeypatch.setattr(config, "LIVE_RUNS_PER_COMMIT_MAX", 2)
    assert rows.commit(runs=(run_of(0),) * 3).reason == "bad_run"


def test_no_later_run_has_the_identity_of_an_earlier_one(rows):
    """Readers keep what they have read by it."""
    seen = set()
    for _ in range(6):
        rows.commit(runs=(run_of(*ALL),))
        found = ids(rows)
        replaced = tuple(cover(run, *ALL) for run in found)
        rows.commit(runs=(run_of(*ALL, replaces=replaced),))
        new = set(ids(rows)) - seen
        assert len(new) == 1
        seen |= set(found) | new
