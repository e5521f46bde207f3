"""The life of a job in the fold, and that no bytes make the fold raise."""

from __future__ import annotations

import random

import msgspec
import pytest

from onefold import config
from onefold.fold.api import Context
from onefold.state.fold import blobs as named_blobs
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import (
    LIVE_VERSION,
    WATERMARK_END_US,
    Cancel,
    Claim,
    Counters,
    Cover,
    Drain,
    DropJob,
    Forwarded,
    Give,
    LaneCommit,
    MoveCursor,
    Outgoing,
    Replay,
    RunId,
    StartJob,
    Stop,
    Swap,
    Sweep,
)
from onefold.state.fold.machine import MALFORMED, StateFold
from onefold.state.fold.ops import Commit, decode_op, state_op
from onefold.state.fold.outcomes import Answer, Committed
from onefold.state.fold.streams.ops import Append
from onefold.testing import check_fold
from onefold.testing.memory_store import MemoryStore
from support.live_rows import LiveRows, at, packed, run_of, spec

KEPT = (live_rows.JOBS, named_blobs.BLOBS)


def start(rows, *parts, plan="plan"):
    return rows.do(StartJob("j", plan, parts or (spec(),)))


def state(rows, generation=1):
    found = live_rows.generation_of(rows.store, "j", generation)
    return None if found is None else found.state


def garbage(rows):
    return named_blobs.garbage(rows.store)


def test_the_same_job_again_joins_or_continues():
    rows = LiveRows()
    assert start(rows) == Answer([1, "running"])
    rows.do(Stop("j", 1))
    assert start(rows, plan="other code") == Answer([1, "stopped"])
    assert live_rows.generation_of(rows.store, "j", 1).plan == "other code"
    assert garbage(rows) == ["plan"]
    rows.do(Stop("j", 1, "failed", "no such column"))
    assert (state(rows), live_rows.generation_of(rows.store, "j", 1).error) == ("failed", "no such column")
    assert start(rows, plan="plan") == Answer([1, "failed"])
    assert garbage(rows) == ["other code"]


@pytest.mark.parametrize(
    ("part", "difference"),
    [
        (spec(lanes=8), "'p': lanes was 4 by key, and is 8 by key"),
        (spec(partitions=3), "'p': partitions was input 0 with 2, and is input 0 with 3"),
        (spec(by_partition=True), "'p': lanes was 4 by key, and is 4 by partition"),
        (
            msgspec.structs.replace(spec(), signature=(("window", "tumbling 5m"), ("keys", "page"))),
            "'p': window was tumbling 1m, and is tumbling 5m",
        ),
        (
            msgspec.structs.replace(spec(), signature=(("keys", "page"),)),
            "'p': window was tumbling 1m, and is nothing",
        ),
        (spec("q"), "'p' is gone"),
    ],
)
def test_another_state_is_refused_with_the_difference_named(part, difference):
    rows = LiveRows()
    outcome = start(rows, part)
    assert (outcome.reason, outcome.detail) == ("changed", difference)
    added = start(rows, spec(), spec("q"))
    assert (added.reason, added.detail) == ("changed", "'q' is new")


def test_parts_are_known_by_their_names_in_any_order():
    rows = LiveRows(spec("p"), spec("q"))
    assert start(rows, spec("q"), spec("p")) == Answer([1, "running"])


@pytest.mark.parametrize(
    "parts",
    [
        (),
        (spec(), spec()),
        (spec(lanes=1025),),
        (spec(""),),
        (msgspec.structs.replace(spec(), starts=((0, 0, 0), (0, 0, 5))),),
        (msgspec.structs.replace(spec(), signature=(("keys", "a"), ("keys", "b"))),),
        (msgspec.structs.replace(spec(), signature=(("keys", "k" * config.LIVE_SIGNATURE_BYTES_MAX),)),),
        (spec(hop="q"),),
        (spec(hop="p"),),
    ],
)
def test_a_job_that_cannot_be_is_refused_whole(parts):
    rows = LiveRows()
    writes = rows.store.writes
    for op in (StartJob("new", "plan", parts), Replay("j", "plan", parts)):
        assert rows.do(op).reason == "malformed"
    assert rows.store.writes == writes


def test_a_replay_runs_beside_the_job_until_it_is_swapped():
    rows = LiveRows()
    rows.claim("a")
    rows.commit(positions=(at(0, 9, 1),))
    assert rows.do(Replay("j", "plan2", (spec(lanes=2),))) == Answer(2)
    assert rows.do(Replay("j", "plan3", (spec(),))).reason == "replaying"
    assert isinstance(rows.commit(), Committed)
    assert rows.claim("b", generation=2) == [0]
    ends = (("p", 0, 0, 9), ("p", 0, 1, 0))
    behind = rows.do(Swap("j", 2, ends))
    assert (behind.reason, "up to 0 of 9" in behind.detail) == ("lagging", True)
    rows.part = live_rows.part_key("j", 2, "p")
    rows.commit(generation=2, positions=(at(0, 9, 1),))
    assert rows.do(Swap("j", 2, ends)) == Answer(1)
    assert (state(rows, 1), state(rows, 2)) == ("stopped", "running")
    assert live_rows.job_of(rows.store, "j") == live_rows.JobRow(2, 2)
    assert isinstance(rows.commit(generation=2), Committed)
    rows.part = live_rows.part_key("j", 1, "p")
    assert rows.commit().reason == "not_running"
    assert rows.do(Swap("j", 2, ends)).reason == "no_replay"


@pytest.mark.parametrize(
    "ended", [Cancel("j", 2, ("p",)), Stop("j", 2), Stop("j", 2, "failed", "why"), Drain("j", 2, ())]
)
@pytest.mark.parametrize("force", [False, True])
def test_only_a_replay_that_runs_becomes_the_job(ended, force):
    rows = LiveRows()
    rows.do(Replay("j", "plan2", (spec(),)))
    rows.claim("b", generation=2)
    rows.do(ended)
    rows.part = live_rows.part_key("j", 2, "p")
    if isinstance(ended, Drain):
        rows.commit(generation=2, watermark_us=WATERMARK_END_US)
    found = rows.do(Swap("j", 2, (), force))
    assert (found.reason, state(rows, 2) in found.detail) == ("no_replay", True)
    assert (state(rows, 1), live_rows.job_of(rows.store, "j")) == ("running", live_rows.JobRow(1, 2, 2))


@pytest.mark.parametrize(
    "ends",
    [
        (("p" * 1000, 0, 0, 5),),
        (("p", 0, 2, 5),),
        (("p", 1, 0, 5),),
        (("p", 0, 0, 5), ("p", 0, 0, 6)),
        tuple(("z" * 1000, 0, number, 5) for number in range(1000)),
    ],
)
def test_a_drain_ends_where_partitions_end_that_are_read(ends):
    rows = LiveRows()
    writes = rows.store.writes
    assert rows.do(Drain("j", 1, ends)).reason == "malformed"
    assert (rows.store.writes, state(rows)) == (writes, "running")


def test_a_part_below_a_hop_is_drained_behind_the_one_above():
    rows = LiveRows(spec(hop="q", partitions=1), spec("q", partitions=1))
    rows.claim("a"), rows.claim("a", "q")
    rows.do(Drain("j", 1, (("p", 0, 0, 1),)))
    below = live_rows.part_key("j", 1, "q")

    def ends_below(*positions):
        row = live_rows.bundle_of(rows.store, below, 0)
        return rows.commit_of(
            0,
            (),
            {
                "part": "q",
                "seq": row.seq + 1,
                "epoch": row.epoch,
                "positions": positions,
                "watermark_us": WATERMARK_END_US,
            },
        )

    refused = ends_below()
    assert (refused.reason, "is not drained" in refused.detail) == ("not_drained", True)
    hop = live_rows.hop_stream("j", 1, "p")
    done = rows.commit(
        writes=(Append(hop, 0, 3, b"rows"),), positions=(at(0, 1),), watermark_us=WATERMARK_END_US
    )
    assert isinstance(done, Committed)
    refused = ends_below(at(0, 2))
    assert (refused.reason, "up to 3" in refused.detail) == ("not_drained", True)
    assert isinstance(ends_below(at(0, 3)), Committed)
    assert state(rows) == "done"


def test_lanes_are_kept_without_zeros_in_front():
    rows = LiveRows()
    rows.claim("a")
    run = msgspec.structs.replace(run_of(0, 1), lanes=b"\0" * 100_000 + packed(0, 1))
    assert isinstance(rows.commit(runs=(run,)), Committed)
    assert [found.row.lanes for found in live_rows.runs(rows.store, rows.part)] == [packed(0, 1)]


def test_a_lagging_replay_is_swapped_when_forced():
    rows = LiveRows()
    rows.do(Replay("j", "plan2", (spec(),)))
    assert rows.do(Swap("j", 2, (("p", 0, 0, 9),), True)) == Answer(1)


def test_what_is_dropped_leaves_nothing_but_garbage(monkeypatch):
    monkeypatch.setattr(config, "LIVE_DROPPED_RUNS_MAX", 2)
    rows = LiveRows()
    rows.claim("a")
    for number in range(5):
        rows.commit(runs=(run_of(0, blob=f"blob{number}"),), outbox=(Outgoing(1, b"x"),))
    assert rows.do(DropJob("j", 1)).reason == "running"
    rows.do(Replay("j", "plan2", (spec(),)))
    rows.do(Stop("j", 1))
    assert rows.do(DropJob("j", 1)).reason == "current"
    rows.do(Swap("j", 2, (), True))
    rows.do(Forwarded("j", 1, 1, 5))
    answers = [rows.do(DropJob("j", 1)).value for _ in range(3)]
    assert answers == [True, True, False]
    assert rows.do(DropJob("j", 1)).reason == "no_job"
    assert set(garbage(rows)) == {"plan", *(f"blob{number}" for number in range(5))}
    rows.do(Stop("j", 2))
    assert rows.do(DropJob("j", 2)).value is False
    assert live_rows.job_of(rows.store, "j") is None
    for table in vars(live_rows).values():
        if isinstance(table, str) and table.startswith("state/l/") and table not in KEPT:
            left = [key for key, _ in rows.store.scan(table)]
            assert not left or "garbage" in table
    assert set(rows.do(Sweep(tuple(garbage(rows)))).value) >= {"plan", "plan2", "blob0"}
    assert not garbage(rows) and not [*rows.store.scan(named_blobs.BLOBS)]


def test_a_job_after_a_dropped_one_has_another_generation():
    """Cursors in other shards have it, and late records of the dropped one."""
    rows = LiveRows()
    rows.claim("a")
    late = rows.bundle()
    rows.do(Stop("j", 1))
    rows.do(DropJob("j", 1))
    assert live_rows.job_of(rows.store, "j") is None and not list(live_rows.jobs(rows.store))
    assert start(rows) == Answer([2, "new"])
    rows.part = live_rows.part_key("j", 2, "p")
    assert rows.claim("a", generation=2) == [0]
    assert rows.commit_of(0, (), {"generation": 1, "seq": late.seq + 1}).reason == "no_job"


def test_names_that_would_make_keys_begin_alike_are_refused():
    rows = LiveRows()
    for name in ("", "j\0x", "n" * 201):
        assert rows.do(StartJob(name, "plan", (spec(),))).reason == "malformed"
        assert rows.do(StartJob("new", "plan", (spec(name),))).reason == "malformed"
        assert rows.claim(name).reason == "malformed"
        assert rows.claim("a", part=name).reason == "malformed"
        assert rows.commit_of(0, (), {"part": name}).reason == "malformed"


def test_a_dropped_job_cannot_be_started_half_gone(monkeypatch):
    monkeypatch.setattr(config, "LIVE_DROPPED_RUNS_MAX", 1)
    rows = LiveRows()
    rows.claim("a")
    rows.commit(runs=(run_of(0, blob="x"), run_of(1, blob="y")))
    rows.do(Stop("j", 1))
    assert rows.do(DropJob("j", 1)).value is True
    assert start(rows).reason == "over"


def test_ends_of_a_drain_stay_as_they_were_first_set():
    rows = LiveRows()
    rows.do(Drain("j", 1, (("p", 0, 0, 5),)))
    rows.do(Drain("j", 1, (("p", 0, 0, 50),)))
    assert live_rows.generation_of(rows.store, "j", 1).ends == (("p", 0, 0, 5),)
    assert start(rows) == Answer([1, "draining"]), "one more that helps to drain it"
    assert state(rows) == "draining"
    assert rows.do(Stop("j", 1)) == Answer("draining")


@pytest.mark.parametrize("ending", ["stopped", "failed"])
def test_a_drain_that_did_not_end_is_undone_while_no_bundle_is_drained(ending):
    rows = LiveRows()
    rows.claim("a")
    rows.do(Drain("j", 1, (("p", 0, 0, 5), ("p", 0, 1, 0))))
    rows.do(Stop("j", 1, ending))
    assert start(rows) == Answer([1, ending])
    assert (state(rows), live_rows.generation_of(rows.store, "j", 1).ends) == ("running", ())


@pytest.mark.parametrize("ending", ["stopped", "failed", "swapped"])
def test_a_job_with_a_drained_bundle_drains_on_to_the_same_ends(ending):
    rows = LiveRows()
    rows.claim("a"), rows.claim("b")
    rows.do(Give("j", 1, "p", 0, "a", rows.bundle().epoch, 0, packed(2, 3), "b"))
    ends = (("p", 0, 0, 5), ("p", 0, 1, 0))
    rows.do(Drain("j", 1, ends))
    assert isinstance(rows.commit(positions=(at(0, 5),), watermark_us=WATERMARK_END_US), Committed)
    if ending == "swapped":
        rows.do(Replay("j", "plan2", (spec(),)))
        rows.do(Swap("j", 2, (), True))
    else:
        rows.do(Stop("j", 1, ending))
    assert rows.do(StartJob("j", "mended", (spec(),), 1)).value[0] == 1
    found = live_rows.generation_of(rows.store, "j", 1)
    assert (found.state, found.plan, found.error, found.ends) == ("draining", "mended", "", ends)
    assert rows.commit(1, watermark_us=WATERMARK_END_US).reason == "not_drained", (
        "it has not read to the ends"
    )
    assert isinstance(rows.commit(1, positions=(at(0, 5),), watermark_us=WATERMARK_END_US), Committed)
    assert state(rows) == "done"


def test_a_drained_job_that_was_stopped_before_its_rows_were_sent_is_done_by_the_next_start():
    rows = LiveRows()
    rows.claim("a")
    rows.do(Drain("j", 1, ()))
    rows.commit(watermark_us=WATERMARK_END_US, outbox=(Outgoing(1, b"x"),))
    rows.do(Stop("j", 1))
    rows.do(Forwarded("j", 1, 1, 1))
    assert state(rows) == "stopped"
    assert start(rows) == Answer([1, "stopped"])
    assert state(rows) == "done"


def every_kind_of_operation(seed):
    """What a history of a job looks like, and what does not fit into it."""
    chance = random.Random(seed)
    ops = [StartJob("j", "plan", (spec(), spec("q", by_partition=True)))]
    for number in range(60):
        worker = chance.choice("ab")
        part = chance.choice("pq")
        bundle, seq = chance.randrange(3), 1 + number // 4
        lanes = packed(*range(4)) if chance.random() < 0.7 else packed(0, 1)
        commit = LaneCommit(
            "j",
            1,
            part,
            bundle,
            worker,
            chance.randint(1, 3),
            seq if chance.random() < 0.8 else 1 << 52,
            lanes,
            number,
            (at(chance.randrange(2), number, number * 1000, chance.random() < 0.3),),
            chance.choice((None, number * 900)),
            (run_of(0, 1), run_of(2, kind="late", blob=f"b{chance.randrange(4)}")),
            chance.choice(((), (Cover(RunId(5, 0, 5, 0), packed(0)),))),
            Counters(rows=(1 << 53) - 1),
            (Outgoing(chance.randrange(3), b"w"),),
        )
        ops.append(chance.choice((Claim("j", 1, part, worker, "m"), Commit((), (), (commit,)))))
        ops.append(chance.choice(_others(chance, worker, part)))
    return [state_op(op).body for op in ops]


def _others(chance, worker, part):
    from onefold.state.fold.live.ops import Beat, Expire, Forwarded, Fuse, Give, HoldInput, Leave

    huge = (1 << 53) - 1
    return [
        Beat("j", 1, worker),
        Give(
            "j", 1, part, chance.randrange(3), worker, 1, chance.randrange(3), packed(1), chance.choice("ab")
        ),
        Fuse("j", 1, part, worker, (0, 1, 0), (1, 1, 0)),
        Expire("j", 1, worker, chance.randrange(3), chance.randrange(3), True),
        Leave("j", 1, "x" * 11_000),
        Claim("j", huge, part * 11_000, worker, "m"),
        Stop("j", 1, "failed", "e" * 9000),
        StartJob("j", "plan", (spec(), spec("q", by_partition=True))),
        Replay("j", "plan2", (spec(),)),
        Swap("j", 2, (("p", 0, 0, huge),), chance.random() < 0.5),
        Drain("j", 2, (("p", 0, 0, huge),)),
        DropJob("j", chance.randint(1, 3)),
        Sweep(("b0", "b1" * 5000)),
        Forwarded("j", 1, 1, huge),
        HoldInput("j", 1, part, "s" * chance.choice((1, 11_000)), ((chance.randrange(3), huge),), huge),
        Commit((), (), (MoveCursor("j", huge, 0, huge, chance.randrange(3), huge),)),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_every_replica_comes_to_the_same_rows_and_no_bytes_make_the_fold_raise(seed):
    check_fold(StateFold(), every_kind_of_operation(seed), seed=seed, fold_version=LIVE_VERSION)


@pytest.mark.parametrize("version", range(1, LIVE_VERSION))
def test_before_its_fold_version_nothing_of_it_is_done(version):
    fold, store = StateFold(), MemoryStore()
    bodies = every_kind_of_operation(version)
    held = {type(write) for op in map(decode_op, bodies) for write in getattr(op, "writes", ())}
    assert held | {type(op) for op in map(decode_op, bodies)} >= {LaneCommit, MoveCursor, StartJob, Sweep}
    for offset, body in enumerate(bodies, 1):
        assert fold.apply(store, Context(offset, 0, offset, "c", None), body, version) == MALFORMED
    assert store.writes == 0
