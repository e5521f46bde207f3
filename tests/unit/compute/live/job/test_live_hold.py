"""``read_stream(hold=)``: what a job has not read outlives the retention of its stream, what it has read does not."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.compute import live_starting
from onefold.compute.live import holds
from onefold.compute.live.bundles import Delta, Worker
from onefold.compute.live.client import LiveJob
from onefold.compute.live.holds import Holding
from onefold.compute.live.worker import local_workers
from onefold.compute.upkeep.keeper import Keeper
from onefold.doctor.state_blobs import check_garbage
from onefold.errors import JobFailed
from onefold.state.core.client import StateClient
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.live.ops import Cancel, HoldInput, Position
from onefold.state.fold.streams import rows as stream_rows


@pytest.fixture
def db(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[of.Database]:
    monkeypatch.setattr(config, "STREAM_MERGE_MS", 0)  # each append is a segment
    monkeypatch.setattr(config, "LIVE_HOLD_LOOK_S", 0.0)
    with of.connect(tmp_path) as found:
        found.stream("s", partitions=1, retention="10ms").create()
        yield found


def plan(db: of.Database, **options: Any) -> Any:
    return db.read_stream("s", follow=True, **options).group_by("k").agg(n=agg.count()).into("t")


def append(db: of.Database, count: int = 1) -> None:
    for _ in range(count):
        db.stream("s").append({"k": 1})


def let_pass(db: of.Database) -> None:
    """Until what was appended is past its retention, and retention has had its way."""
    head = head_of(db)
    wait_for(lambda: db._state.env.wall_ms() > oldest_end(db, head) + 11)
    append(db)


def oldest_end(db: of.Database, head: stream_rows.Head) -> int:
    with db._shard.view() as view:
        last = view.get(stream_rows.segment_table("s", 0), stream_rows.segment_key(head.last_base))
    return 0 if last is None else stream_rows.segment_head(last)[3]


def head_of(db: of.Database) -> stream_rows.Head:
    with db._shard.view() as view:
        return stream_rows.head_of(view, "s", 0)


def offset_of(db: of.Database) -> int:
    with db._shard.view() as view:
        return view.offset


def held(db: of.Database) -> list[tuple[str, int]]:
    found = []
    for shard in db._shards:
        with shard.view() as view:
            found += [(one.job, one.generation) for one in stream_rows.holders(view)]
    return found


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)


def count(db: of.Database) -> int:
    return int(db.table("t").to_polars()["n"].sum())


def test_a_job_that_stood_still_reads_what_was_appended_meanwhile(db: of.Database) -> None:
    run = plan(db).start()
    append(db, 3)
    run.catch_up(timeout=120)
    run.stop()
    append(db, 5)
    let_pass(db)
    assert head_of(db).first <= 3, "at most what it has read is gone"
    run.resume().catch_up(timeout=120)
    assert count(db) == 9
    let_pass(db)
    wait_for(lambda: (append(db), head_of(db).first >= 9)[1])  # what it has read goes
    run.cancel()
    assert not held(db)


def test_beyond_the_hold_the_job_fails_and_says_how_much_is_lost(db: of.Database) -> None:
    db.stream("s").set_retention(None)
    run = plan(db, hold="5ms").start()
    append(db, 3)
    run.catch_up(timeout=120)
    run.stop()
    db.stream("s").set_retention("10ms")
    append(db, 5)
    let_pass(db)
    let_pass(db)
    gone = head_of(db).first
    assert gone > 3
    run.resume()
    with pytest.raises(JobFailed, match=rf"not read .* gone: {gone - 3} of partition 0 of 's'.* replay"):
        run.catch_up(timeout=120)
    assert held(db), "until it is cancelled or dropped"
    db.drop("t")
    assert not held(db)


def test_reading_a_stream_that_is_held_appends_nothing(db: of.Database) -> None:
    run = plan(db).start()
    append(db, 3)
    run.catch_up(timeout=120)
    run.stop()
    append(db, 2)
    let_pass(db)
    assert len(db.stream("s")) >= 3
    before = offset_of(db)
    assert len(db.stream("s")) == len(db.stream("s").to_polars()) >= 3
    assert offset_of(db) == before


def test_what_is_replaced_or_done_holds_nothing(db: of.Database) -> None:
    run = plan(db).start()
    append(db, 3)
    run.catch_up(timeout=120)
    again = plan(db).replay()
    again.catch_up(timeout=120)
    wait_for(lambda: held(db) == [("t", 1), ("t", 2)])
    again.swap(force=True)
    assert held(db) == [("t", 2)]
    again.stop(drain=True)
    Keeper(lambda: db._state, lambda: db._engine.blobs).look()
    assert not held(db)


def test_nothing_is_held_without_a_hold_and_nothing_twice(db: of.Database) -> None:
    db.stream("s").set_retention(None)
    run = plan(db, hold=0).start()
    append(db, 3)
    run.catch_up(timeout=120)
    assert not held(db)
    run.stop()
    db.drop("t")
    run = plan(db).start()
    run.catch_up(timeout=120)
    wait_for(lambda: len(held(db)) == 1)
    run.stop()
    holding = Holding(run._job, 2, run._plan.parts)
    holding.look(now=True)
    assert holding.look(now=True) == 0
    plan(db, hold=0).start().stop()
    assert not held(db), "it was started again without"


# -- nobody works on live jobs any more


class Killed(BaseException):
    """The program is gone."""


def test_a_job_that_is_drained_holds_nothing_when_that_is_said(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_workers, "release_if_over", lambda *_: None)  # its worker is gone by then
    run = plan(db).start()
    append(db, 3)
    run.catch_up(timeout=120)
    assert held(db)
    assert run.stop(drain=True, timeout=120).state == "done"
    assert not held(db)


def test_what_a_worker_finds_over_it_lets_go(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)
    run = plan(db).start()
    append(db, 3)
    run.catch_up(timeout=120)
    run._job.drain(1, run._drained_to())  # by another program, which does not wait for it
    wait_for(lambda: not held(db))
    assert run.state == "done"


def test_the_next_program_lets_go_what_a_killed_one_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path) as db:
        append(db, 3)
        run = plan(db).start(workers=0)
        run._job.submit(Cancel("t", 1, ("main",)))  # killed on the line behind
        assert run.state == "cancelled" and held(db)
    with of.connect(tmp_path, read_only=True) as db:
        assert len(db.stream("s")) == 3 and held(db)
    with of.connect(tmp_path) as db:
        assert len(db.stream("s")) == 3, "no job is ever asked for"
        wait_for(lambda: not held(db))
    with of.connect(tmp_path) as db:
        db.drop("t")
        plan(db).start(workers=0)
        assert held(db)
    with of.connect(tmp_path) as db:
        assert len(db.stream("s")) == 3
        assert held(db) and db._live is None, "what is held for a job that may read costs a look"


def test_the_doctor_lets_go_what_is_left(db: of.Database) -> None:
    append(db, 3)
    plan(db).start(workers=0)._job.submit(Cancel("t", 1, ("main",)))
    assert check_garbage(db._state, db._engine.blobs, fix=False).status == "ok" and held(db)
    check_garbage(db._state, db._engine.blobs, fix=True)
    assert not held(db)


def test_dropping_again_lets_go_what_the_first_drop_left(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)
    append(db, 3)
    plan(db).start(workers=0).stop()
    with monkeypatch.context() as first:
        first.setattr(live_starting, "release_if_it_can", killed)
        with pytest.raises(Killed):
            db.drop("t")
    assert held(db)
    assert not db.drop("t"), "there is no such job any more"
    assert not held(db)


@pytest.mark.parametrize("elsewhere", [False, True], ids=["at home", "elsewhere"])
def test_a_hold_that_is_set_late_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, elsewhere: bool
) -> None:
    """A worker that stands still before it, until its job was dropped. In another shard nothing is known of the job."""
    monkeypatch.setattr(config, "LIVE_HOLD_LOOK_S", 0.0)
    monkeypatch.setattr(config, "LIVE_END_WAIT_S", 0.05)
    monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)
    monkeypatch.setattr(Holding, "look_if_it_can", lambda _: None)
    reached, go = threading.Event(), threading.Event()
    late: list[object] = []
    submit = StateClient.submit

    def slow(self: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
        if not isinstance(op, HoldInput) or not op.hold_ms:
            return submit(self, shard, op, *args, **options)
        reached.set()
        assert go.wait(120)
        late.append(submit(self, shard, op, *args, **options))
        return late[-1]

    monkeypatch.setattr(StateClient, "submit", slow)
    with of.connect(tmp_path, shards=2) as db:
        db.stream("s", partitions=1).append({"k": 1})
        (at,) = (shard for shard in range(2) if _has_stream(db, shard))
        name = next(n for n in map(str, range(99)) if (db._state.shard_of(encode_key(n)) != at) == elsewhere)
        run = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into(name).start()
        assert reached.wait(120)
        run.cancel()
        db.drop(name)
        go.set()
        wait_for(lambda: bool(late) and not held(db))


def _has_stream(db: of.Database, shard: int) -> bool:
    with db._state.view(shard) as view:
        return view.get(stream_rows.STREAMS, b"s") is not None


# -- what must not be let go


def test_a_job_that_this_replica_does_not_know_yet_keeps_what_is_held(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    append(db, 3)
    plan(db).start(workers=0)
    assert held(db)
    with of.connect(tmp_path / "behind") as behind:

        @contextmanager
        def local(_: LiveJob) -> Iterator[Any]:
            with behind._shard.view() as view:
                yield view

        monkeypatch.setattr(LiveJob, "local", local)
        assert holds.release(db._state) == 0
    assert held(db) == [("t", 1)]


@pytest.mark.parametrize("read", [(3, 1), (1, 3)])
def test_what_the_slower_of_two_bundles_has_not_read_is_held(db: of.Database, read: tuple[int, int]) -> None:
    db.stream("s").set_retention(None)
    append(db, 4)
    run = plan(db).start(workers=0, lanes=4)
    job, part = run._job, run._part.name
    worker = Worker(job, 1)
    (whole,) = worker.claim(part)
    for bundle, upto in zip(worker.split(part, whole), read, strict=True):
        bundle.commit(Delta((Position(0, 0, upto),)))
    db.stream("s").set_retention("1ms")
    wait_for(lambda: db._state.env.wall_ms() > oldest_end(db, head_of(db)) + 2)
    assert Holding(job, 1, run._plan.parts).look(now=True) == 1
    with db._shard.view() as view:
        (hold,) = stream_rows.holds_of(view, "s", 0)
    assert hold.next == min(read)
