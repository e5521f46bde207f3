"""Streams that come later, generations that are continued, and jobs that are cancelled, in the fold."""

from onefold import config
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import (
    ENDINGS_VERSION,
    AddInputs,
    Cancel,
    DropJob,
    Forwarded,
    Outgoing,
    Replay,
    StartJob,
    Stop,
)
from onefold.state.fold.outcomes import Answer
from support.live_rows import LiveRows, at, run_of, spec

STARTS = ((0, 0, 5), (0, 1, 0))


def state(rows, generation=1):
    found = live_rows.generation_of(rows.store, "j", generation)
    return None if found is None else found.state


def test_partitions_that_come_later_are_in_every_bundle():
    rows = LiveRows(spec(partitions=0))
    rows.claim("a")
    rows.claim("b")
    assert rows.bundle().positions == ()
    assert rows.do(AddInputs("j", 1, "p", STARTS)) == Answer(True)
    for number in rows.bundles():
        assert rows.bundle(number).positions == (at(0, 5), at(1, 0))
    assert rows.do(AddInputs("j", 1, "p", STARTS)) == Answer(False), "once"
    assert rows.do(StartJob("j", "plan", (spec(),))).value[1] == "running", "the stream is there now"
    other = rows.do(StartJob("j", "plan", (spec(partitions=3),)))
    assert (other.reason, other.detail) == (
        "changed", "'p': partitions was input 0 with 2, and is input 0 with 3"
    )  # fmt: skip


def test_a_commit_that_knows_nothing_of_them_is_refused():
    rows = LiveRows(spec(partitions=0))
    rows.claim("a")
    epoch = rows.bundle().epoch
    rows.do(AddInputs("j", 1, "p", STARTS))
    assert rows.commit(watermark_us=100, epoch=epoch).reason == "fenced"
    assert rows.bundle().watermark_us is None


def test_parts_by_partition_get_each_partition_once():
    rows = LiveRows(spec(partitions=0, lanes=2, by_partition=True))
    rows.claim("a")
    rows.claim("b")
    rows.do(AddInputs("j", 1, "p", tuple((0, partition, 0) for partition in range(5))))
    read = [one.partition for number in rows.bundles() for one in rows.bundle(number).positions]
    assert sorted(read) == [0, 1, 2, 3, 4]


def test_inputs_that_cannot_be_are_refused(monkeypatch):
    rows = LiveRows(spec(partitions=0))
    assert rows.do(AddInputs("j", 1, "p", ((0, 0, 0), (0, 0, 1)))).reason == "malformed"
    monkeypatch.setattr(config, "LIVE_POSITIONS_MAX", 1)
    assert rows.do(AddInputs("j", 1, "p", STARTS)).reason == "malformed"
    assert rows.do(AddInputs("j", 2, "p", STARTS)).reason == "no_job"
    rows.do(Stop("j", 1))
    assert rows.do(AddInputs("j", 1, "p", STARTS[:1])).reason == "not_running"
    assert rows.bundle().positions == ()


def test_a_generation_is_continued_by_its_number():
    rows = LiveRows()
    rows.do(Replay("j", "plan 2", (spec(lanes=8),)))
    rows.do(Stop("j", 2))
    assert rows.do(StartJob("j", "plan 2", (spec(lanes=8),), 2)) == Answer([2, "stopped"])
    assert (state(rows, 1), state(rows, 2)) == ("running", "running")
    assert rows.do(StartJob("j", "plan 2", (spec(),), 2)).reason == "changed"
    assert rows.do(StartJob("j", "plan", (spec(),), 3)).reason == "over"


def test_what_is_cancelled_loses_its_state_and_keeps_its_results(monkeypatch):
    monkeypatch.setattr(config, "LIVE_DROPPED_RUNS_MAX", 2)
    rows = LiveRows()
    rows.claim("a")
    for _ in range(3):
        rows.commit(runs=(run_of(0), run_of(0, kind="result"), run_of(0, kind="late")))
    assert rows.do(Cancel("j", 1, ("p",))) == Answer(True), "some at a time"
    assert rows.commit().reason == "not_running"
    assert rows.do(Cancel("j", 1, ("p",))) == Answer(False)
    kinds = [run.row.kind for run in live_rows.runs(rows.store, rows.part)]
    assert sorted(kinds) == ["late"] * 3 + ["result"] * 3
    for op in (StartJob("j", "plan", (spec(),)), Stop("j", 1)):
        assert rows.do(op).reason == "over"
    assert state(rows) == "cancelled"


def test_state_that_is_the_table_is_kept():
    rows = LiveRows()
    rows.claim("a")
    rows.commit(runs=(run_of(0),))
    assert rows.do(Cancel("j", 1, ())) == Answer(False)
    assert len(rows.runs()) == 1


def test_a_generation_that_is_not_there_is_not_cancelled():
    rows = LiveRows()
    assert rows.do(Cancel("j", 2, ())).reason == "no_job"


def test_a_generation_is_dropped_once_its_outbox_is_empty():
    """Until then it is only not started again: what is committed is still to be done in other shards."""
    rows = LiveRows()
    rows.claim("a")
    rows.commit(runs=(run_of(0),), outbox=(Outgoing(1, b"writes"),))
    rows.do(Stop("j", 1))
    for _ in range(2):
        assert rows.do(DropJob("j", 1)) == Answer(True)
        assert state(rows) == "dropped" and rows.runs()
        assert rows.do(StartJob("j", "plan", (spec(),))).reason == "over"
    assert rows.do(Forwarded("j", 1, 1, 1)) == Answer(1)
    assert rows.do(DropJob("j", 1)) == Answer(False)
    assert state(rows) is None and not rows.runs()


def test_before_that_version_the_outbox_goes_with_the_job():
    rows = LiveRows(version=ENDINGS_VERSION - 1)
    rows.claim("a")
    rows.commit(outbox=(Outgoing(1, b"writes"),))
    rows.do(Stop("j", 1))
    assert rows.do(DropJob("j", 1)) == Answer(False)
    assert state(rows) is None and not list(rows.store.scan(live_rows.OUTBOX))


def test_a_failure_is_of_the_plan_that_failed():
    rows = LiveRows()
    rows.do(StartJob("j", "corrected", (spec(),)))
    assert rows.do(Stop("j", 1, "failed", "why", "plan")).reason == "other_plan"
    assert state(rows) == "running"
    assert rows.do(Stop("j", 1, "failed", "why", "corrected")) == Answer("running")
    assert state(rows) == "failed"
    rows.do(StartJob("j", "corrected again", (spec(),)))
    assert rows.do(Stop("j", 1)) == Answer("running"), "which plan it has does not matter to a user"
    assert state(rows) == "stopped"


def test_before_that_version_a_failure_is_of_any_plan():
    rows = LiveRows(version=ENDINGS_VERSION - 1)
    rows.do(StartJob("j", "corrected", (spec(),)))
    assert rows.do(Stop("j", 1, "failed", "why", "plan")) == Answer("running")
    assert state(rows) == "failed"
