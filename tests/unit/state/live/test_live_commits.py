"""A commit of a bundle: what it needs, what it changes, and that a refused one changes nothing."""

from __future__ import annotations

import pytest

from onefold import config
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import (
    ENDINGS_VERSION,
    LIVE_VERSION,
    WATERMARK_END_US,
    Claim,
    Counters,
    Drain,
    DropCursors,
    DropJob,
    Expire,
    Forwarded,
    LaneCommit,
    MoveCursor,
    Outgoing,
    StartJob,
    Stop,
    TrimHop,
)
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Commit, Prepare, Read
from onefold.state.fold.outcomes import Answer, Committed, Rejected, Voted
from onefold.state.fold.rows import map_table
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import Append
from support.live_rows import LiveRows, at, packed, run_of, spec


@pytest.fixture
def rows() -> LiveRows:
    found = LiveRows()
    found.claim("w")
    return found


def reason(outcome):
    assert isinstance(outcome, Rejected), outcome
    return outcome.reason


def test_position_state_output_and_watermark_are_one_operation(rows):
    put = Put("m", ((b"\x02k\x00", b"v"),))
    outcome = rows.commit(
        writes=(put,),
        positions=(at(0, 7, 500),),
        watermark_us=400,
        runs=(run_of(0, 1, 2, 3),),
        counted=Counters(rows=7, late=1),
    )
    assert isinstance(outcome, Committed) and outcome.results == ([1, 0, 0], None)
    after = rows.bundle()
    assert (after.seq, after.positions, after.watermark_us) == (1, (at(0, 7, 500), at(1, 0)), 400)
    assert after.counters == Counters(rows=7, late=1, commits=1)
    assert rows.runs() == [(outcome.offset, [0, 1, 2, 3])]
    assert rows.store.get(map_table("m"), b"\x02k\x00") is not None


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"job": "other"}, "no_job"),
        ({"generation": 2}, "no_job"),
        ({"part": "other"}, "no_bundle"),
        ({"bundle": 5, "lanes": packed(0)}, "no_bundle"),
        ({"owner": "z"}, "fenced"),
        ({"owner": ""}, "fenced"),
        ({"epoch": 2}, "fenced"),
        ({"seq": 1}, "out_of_order"),
        ({"seq": 3}, "out_of_order"),
        ({"lanes": packed(0, 1)}, "lanes"),
        ({"positions": (at(0, 6, 500),)}, "went_back"),
        ({"positions": (at(0, 8, 499),)}, "went_back"),
        ({"positions": (at(0, 8),)}, "went_back"),
        ({"positions": (at(9, 8, 500),)}, "went_back"),
        ({"positions": (at(1, 0),)}, "went_back"),
        ({"watermark_us": 399}, "went_back"),
        ({"watermark_us": WATERMARK_END_US}, "not_drained"),
        ({"runs": (run_of(4),)}, "bad_run"),
        ({"runs": (run_of(),)}, "bad_run"),
        ({"positions": (at(0, 8, 500), at(0, 9, 500))}, "malformed"),
        ({"outbox": (Outgoing(5000, b"x"),)}, "malformed"),
    ],
)
def test_each_condition_refuses_the_whole_operation(rows, changed, word):
    rows.commit(positions=(at(0, 7, 500), at(1, 0, None, True)), watermark_us=400)
    row, writes = rows.bundle(), rows.store.writes
    put = Put("m", ((b"\x02k\x00", b"v"),))
    assert reason(rows.commit_of(0, (put,), changed)) == word
    assert (rows.bundle(), rows.store.writes) == (row, writes)


def test_what_another_write_is_refused_for_refuses_the_commit(rows):
    assert reason(rows.commit(writes=(Append("gone", 0, 1, b"x"),))) == "no_stream"
    assert rows.bundle().seq == 0


def test_a_copy_of_a_commit_is_refused_however_late(rows):
    assert isinstance(rows.commit(seq=1, nonce=7, runs=(run_of(0),)), Committed)
    assert reason(rows.commit(seq=1, nonce=7, runs=(run_of(0),))) == "out_of_order"
    assert len(rows.runs()) == 1
    assert rows.bundle().nonce == 7


def test_a_worker_that_was_given_up_cannot_commit(rows):
    assert rows.do(Expire("j", 1, "w", 0, 0, True)).value is True
    assert reason(rows.commit(owner="w", epoch=1)) == "fenced"
    assert rows.claim("v") == [0]
    assert (rows.bundle().epoch, rows.bundle().deaths) == (2, 1)
    assert reason(rows.commit(owner="w", epoch=1)) == "fenced"
    assert isinstance(rows.commit(), Committed)
    assert rows.bundle().deaths == 0


def test_a_stopped_job_takes_no_commit_that_is_on_its_way(rows):
    rows.do(Stop("j", 1))
    assert reason(rows.commit()) == "not_running"
    rows.do(StartJob("j", "plan", (spec(),)))
    assert isinstance(rows.commit(), Committed)


def test_an_idle_flag_goes_with_a_row_only(rows):
    rows.commit(positions=(at(0, 3, 10, True),))
    assert reason(rows.commit(positions=(at(0, 3, 10, False),))) == "went_back"
    assert isinstance(rows.commit(positions=(at(0, 4, 10, False),)), Committed)


def test_a_drained_job_is_done_when_every_bundle_has_read_its_end(rows):
    assert reason(rows.commit(watermark_us=WATERMARK_END_US)) == "not_drained"
    rows.do(Drain("j", 1, (("p", 0, 0, 5), ("p", 0, 1, 0))))
    assert reason(rows.commit(watermark_us=WATERMARK_END_US, positions=(at(0, 4, 1),))) == "not_drained"
    assert isinstance(rows.commit(watermark_us=WATERMARK_END_US, positions=(at(0, 5, 1),)), Committed)
    assert live_rows.generation_of(rows.store, "j", 1).state == "done"
    assert reason(rows.commit()) == "not_running"


def test_an_operation_holds_one_commit_of_a_bundle(rows):
    one, other = (LaneCommit("j", 1, "p", 0, "w", 1, seq, packed(0, 1, 2, 3), 1) for seq in (1, 1))
    assert reason(rows.do(Commit((), (), (one, other)))) == "malformed"
    cursor = MoveCursor("j", 1, 0, 5, 0, 1)
    assert reason(rows.do(Commit((), (), (one, cursor)))) == "malformed"


def test_no_transaction_over_several_shards_holds_a_commit(rows):
    write = LaneCommit("j", 1, "p", 0, "w", 1, 1, packed(0, 1, 2, 3), 1)
    read = Read("m", b"\x02k\x00", 0, 0)
    assert reason(rows.do(Prepare("t1", 0, (0, 1), (read,), (), (write,)))) == "malformed"
    assert isinstance(rows.do(Prepare("t1", 0, (0, 1), (read,), (), ())), Voted)


def test_before_its_fold_version_everything_of_it_is_malformed():
    old = LiveRows(version=LIVE_VERSION - 1)
    put = Put("m", ((b"\x02k\x00", b"v"),))
    write = LaneCommit("j", 1, "p", 0, "w", 1, 1, packed(0), 1)
    for op in (StartJob("j", "plan", (spec(),)), Claim("j", 1, "p", "w", "m"), Commit((), (), (put, write))):
        assert old.do(op) == Rejected("malformed")
    assert old.store.writes == 0
    assert isinstance(old.do(Commit((), (), (put,))), Committed)


def test_the_outbox_is_numbered_and_done_once(rows):
    outcome = rows.commit(outbox=(Outgoing(1, b"aa"), Outgoing(2, b"b"), Outgoing(1, b"c")))
    assert outcome.results[0] == [1, 0, 3]
    generation = live_rows.generation_key("j", 1)
    assert [
        (shard, head.first, head.next) for shard, head in live_rows.outbox_heads(rows.store, generation)
    ] == [
        (1, 1, 3),
        (2, 1, 2),
    ]
    move = MoveCursor("j", 1, 0, 5, 0, 2)
    assert isinstance(rows.do(Commit((), (), (move,))), Committed)
    assert reason(rows.do(Commit((), (), (move,)))) == "forwarded"
    assert reason(rows.do(Commit((), (), (MoveCursor("j", 1, 0, 5, 5, 7),)))) == "forwarded", (
        "3 to 5 are not done"
    )
    assert reason(rows.do(Commit((), (), (MoveCursor("j", 1, 0, 5, 2, 2),)))) == "malformed"
    assert rows.do(Forwarded("j", 1, 1, 2)).value == 2
    assert rows.do(Forwarded("j", 1, 1, 2)).value == 0
    assert rows.do(Forwarded("j", 1, 2, 99)).value == 1
    assert not list(rows.store.scan(live_rows.OUTBOX))
    assert all(head.size == 0 for _, head in live_rows.outbox_heads(rows.store, generation))


def test_a_job_begun_again_is_not_done_in_other_shards(rows):
    """It numbers from 1 again, under the name and generation of the one that was dropped."""

    def moved(since, before, to):
        return rows.do(Commit((), (), (MoveCursor("j", 1, 0, since, before, to),)))

    assert isinstance(moved(5, 0, 7), Committed)
    assert isinstance(moved(9, 0, 1), Committed)
    assert reason(moved(5, 7, 8)) == "forwarded"
    assert reason(moved(5, 0, 8)) == "forwarded", "the first message of the one that was dropped, late"
    assert reason(moved(9, 0, 1)) == "forwarded"


def test_the_cursors_of_dropped_generations_go_and_are_not_moved_any_more(rows, monkeypatch):
    monkeypatch.setattr(config, "LIVE_DROPPED_RUNS_MAX", 2)

    def moved(job, generation, home=0, before=0):
        return rows.do(Commit((), (), (MoveCursor(job, generation, home, 5, before, before + 1),)))

    def there():
        return {(one.job, one.generation, one.home) for one in live_rows.cursors(rows.store)}

    for job, generation, home in (*(("j", number, 0) for number in range(1, 6)), ("j", 1, 2), ("jj", 1, 0)):
        assert isinstance(moved(job, generation, home), Committed)
    assert [rows.do(DropCursors("j", 0, 4)) for _ in range(3)] == [Answer(True), Answer(False), Answer(False)]
    assert there() == {("j", 4, 0), ("j", 5, 0), ("j", 1, 2), ("jj", 1, 0)}
    assert [reason(moved("j", number)) for number in (1, 2, 3)] == ["over"] * 3
    assert rows.do(DropCursors("j", 0, 2)) == Answer(False), "late, of an old view"
    assert reason(moved("j", 3)) == "over"
    assert isinstance(moved("j", 4, before=1), Committed)
    assert isinstance(moved("j", 1, 2, before=1), Committed) and isinstance(
        moved("jj", 1, before=1), Committed
    )
    old = LiveRows(version=ENDINGS_VERSION - 1)
    assert reason(old.do(DropCursors("j", 0, 4))) == "malformed"


def test_a_job_is_done_once_its_outbox_is_empty(rows):
    rows.do(Drain("j", 1, ()))
    rows.commit(watermark_us=WATERMARK_END_US, outbox=(Outgoing(1, b"a"), Outgoing(2, b"b")))
    for shard, state in ((1, "draining"), (2, "done")):
        assert live_rows.generation_of(rows.store, "j", 1).state == "draining"
        rows.do(Forwarded("j", 1, shard, 1))
        assert live_rows.generation_of(rows.store, "j", 1).state == state


def test_the_schema_is_changed_by_one_commit_at_a_time(rows):
    assert isinstance(rows.commit(schema=(0, b"a")), Committed)
    assert reason(rows.commit(schema=(0, b"b"))) == "schema"
    assert isinstance(rows.commit(schema=(1, b"b")), Committed)
    part = live_rows.part_of(rows.store, live_rows.part_key("j", 1, "p"))
    assert (part.schema_changes, part.schema) == (2, b"b")
    rows.do(Claim("j", 1, "p", "other", "m"))
    assert live_rows.part_of(rows.store, live_rows.part_key("j", 1, "p")).schema == b"b"


def test_a_hop_keeps_what_a_bundle_has_not_read(rows):
    parts = (spec(hop="q"), spec("q", partitions=1))
    rows.do(StartJob("k", "plan", parts))
    hop = live_rows.hop_stream("k", 1, "p")
    for number in range(5):
        rows.do(Commit((), (), (Append(hop, 0, 1, b"%d" % number + b"." * 20_000),)))
    rows.do(Claim("k", 1, "q", "w", "m"))
    lanes = packed(0, 1, 2, 3)
    write = LaneCommit("k", 1, "q", 0, "w", 1, 1, lanes, 1, positions=(at(0, 3),))
    assert isinstance(rows.do(Commit((), (), (write,))), Committed)
    for part in ("q", "there is none"):
        assert rows.do(TrimHop("k", 1, part)) == Answer(0), "it has no hop"
    rows.do(TrimHop("k", 1, "p"))
    head = stream_rows.head_of(rows.store, hop, 0)
    assert (head.first, head.next) == (3, 5)
    rows.do(Stop("k", 1))
    rows.do(DropJob("k", 1))
    assert stream_rows.head_of(rows.store, hop, 0).next == 0


def test_counters_stop_at_what_a_row_can_hold(rows):
    most = (1 << 53) - 1
    for _ in range(3):
        rows.commit(counted=Counters(rows=most))
    assert rows.bundle().counters == Counters(rows=most, commits=3)
