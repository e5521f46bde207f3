"""What is committed reaches its sink, however the job ends; and nothing of a job that has ended reaches it after that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.backoff import wait_until
from onefold.compute.live.client import NotRunning
from onefold.compute.live.output.forwarder import Forwarder
from onefold.compute.live.worker.job_worker import JobWorker
from onefold.compute.upkeep.keeper import Keeper
from onefold.doctor.state_blobs import check_garbage
from onefold.state.core.client import StateClient
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import Cancel, DropJob, MoveCursor
from onefold.state.fold.ops import Commit
from onefold.state.fold.outcomes import Rejected

ROWS = [{"k": f"k{number % 10}", "v": 100} for number in range(20)]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path, shards=3) as opened:
        opened.stream("s", partitions=1).append_many(ROWS, key=None)
        yield opened


def into_map(db: of.Database, value: Any, **options: Any) -> Any:
    return db.read_stream("s", follow=True, **options).group_by("k").agg(n=value).into_map("m", key="k")


def outbox(db: of.Database) -> int:
    found = 0
    for shard in range(3):
        with db._state.view(shard) as view:
            found += sum(1 for _ in view.scan(live_rows.OUTBOX))
    return found


class Dies(BaseException):
    """The process ends here."""


def dead_worker(db: of.Database, monkeypatch: pytest.MonkeyPatch, job: Any) -> Any:
    """A job whose worker has died between its commit and the forwarding."""
    with monkeypatch.context() as patched:
        patched.setattr(JobWorker, "_forward", lambda self: False)
        patched.setattr(JobWorker, "_give_back", lambda self: self.worker.leave())
        run = job.start(latency=0)
        assert wait_until(lambda: run.status().rows == len(ROWS), 120, 0.01)
        db._live.workers.stop(run.name, 1)
    assert outbox(db) > 0
    return run


def values(db: of.Database) -> set[int]:
    assert len(db.map("m")) == 10
    return {row["n"] for row in db.map("m").values()}


@pytest.mark.parametrize("how", ["cancel", "stop", "drop"])
def test_what_is_committed_reaches_its_sink_when_the_job_ends(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    run = dead_worker(db, monkeypatch, into_map(db, agg.count()))
    if how == "cancel":
        run.cancel()
    elif how == "stop":
        run.stop()
    else:
        run._job.stop(1)
        assert db.drop("map:m")
        assert not run.exists
    assert values(db) == {2} and outbox(db) == 0


@pytest.mark.parametrize("how", ["new version", "write after drop", "write after cancel", "write after stop"])
def test_a_worker_that_comes_back_later_forwards_nothing(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It was stopped on the line before: it has read what waits, and sends it after the job has ended."""
    run = dead_worker(db, monkeypatch, into_map(db, agg.count()))
    late = Forwarder(run._job, 1)
    since, waiting = late._read()
    assert waiting
    if how == "write after cancel":
        run.cancel()
    else:
        run.stop()
    if "version" in how or "drop" in how:
        assert db.drop("map:m")
    if how == "new version":
        into_map(db, agg.sum("v")).start(latency=0).catch_up(timeout=120)
    else:
        for number in range(10):
            db.map("m")[f"k{number}"] = {"n": 200}
    dropped = "version" in how or "drop" in how
    for one in waiting:
        with pytest.raises(NotRunning) if dropped else nullcontext():
            late._do(one, since)
    assert values(db) == {200}


@pytest.mark.parametrize("which", [Cancel, DropJob])
def test_an_end_that_was_killed_on_its_way_is_finished(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, which: type
) -> None:
    """Behind the operation, before the outbox: the keeper does it, or the next to drop the job."""
    run = dead_worker(db, monkeypatch, into_map(db, agg.count()))
    submit = StateClient.submit

    def dying(self: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
        outcome = submit(self, shard, op, *args, **options)
        if isinstance(op, which):
            raise Dies
        return outcome

    if which is DropJob:
        run._job.stop(1)
        monkeypatch.setattr("onefold.compute.live_starting.forward_all", lambda *_: None)
    ends = run.cancel if which is Cancel else partial(db.drop, "map:m")
    with monkeypatch.context() as patched:
        patched.setattr(StateClient, "submit", dying)
        with pytest.raises(Dies):
            ends()
    assert outbox(db) > 0
    if which is Cancel:
        assert run.state == "cancelled"
        Keeper(lambda: db._state, lambda: db._engine.blobs).look()
    else:
        assert db.drop("map:m") and not run.exists
    assert values(db) == {2} and outbox(db) == 0


@pytest.mark.parametrize("how", ["cancel", "drop"])
@pytest.mark.parametrize("hold", ["0s", "1d"])
def test_the_next_program_finishes_an_end_that_was_killed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, hold: str
) -> None:
    """Killed before each of its records, and behind the last: the next program that opens the folder sees what is left."""
    submit = StateClient.submit
    left: list[int] = []

    def dying(self: StateClient, *args: Any, **options: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            if not left:
                raise Dies
            left.pop()
        return submit(self, *args, **options)

    for number in range(100):
        folder = tmp_path / str(number)
        with of.connect(folder, shards=3) as db:
            db.stream("s", partitions=1).append_many(ROWS, key=None)
            run = dead_worker(db, monkeypatch, into_map(db, agg.count(), hold=hold))
            if how == "drop":
                run._job.stop(1)
            left[:] = range(number)
            with monkeypatch.context() as patched:
                patched.setattr(StateClient, "submit", dying)
                patched.setattr(Keeper, "start", lambda *_, **__: None)  # as if it died at once
                try:
                    run.cancel() if how == "cancel" else db.drop("map:m")
                except Dies:
                    ended = False
                else:
                    ended = True
            over = not run.exists or run.state == "cancelled"  # also of one that is half dropped
        with of.connect(folder, shards=3) as db:
            if over:
                assert wait_until(lambda db=db: outbox(db) == 0, 60, 0.01), f"killed before record {number}"
                assert values(db) == {2}
        if ended:
            assert number > 3
            return
    pytest.fail("it never ends")


@pytest.mark.parametrize("how", ["cancel", "drop"])
def test_what_a_shard_refuses_is_given_up_and_said(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    run = dead_worker(db, monkeypatch, into_map(db, agg.count()))
    late = Forwarder(run._job, 1)
    since, waiting = late._read()
    refused = waiting[0].shard
    submit = StateClient.submit

    def refusing(self: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
        moves = isinstance(op, Commit) and isinstance(op.writes[0], MoveCursor)
        if moves and len(op.writes) > 1 and shard == refused:
            return Rejected("no_map", "m")
        return submit(self, shard, op, *args, **options)

    capsys.readouterr()
    with monkeypatch.context() as patched:
        patched.setattr(StateClient, "submit", refusing)
        if how == "cancel":
            run.cancel()
        else:
            run._job.stop(1)
            assert db.drop("map:m")
    said = capsys.readouterr().err
    assert said.count("these rows are given up") == 1 and f"shard {refused} refuses its rows" in said
    assert outbox(db) == 0
    there = len(db.map("m"))
    assert 0 < there < 10, "the others are there"
    for one in waiting:
        with pytest.raises(NotRunning) if how == "drop" else nullcontext():
            late._do(one, since)
    assert len(db.map("m")) == there


def test_a_worker_that_ends_sends_what_waits(
    tmp_path: Path, db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends it: here the program, which has asked for nothing."""
    monkeypatch.setattr(JobWorker, "_forward", lambda self: False)
    run = into_map(db, agg.count()).start(latency=0)
    assert wait_until(lambda: run.status().rows == len(ROWS), 120, 0.01)
    assert outbox(db) > 0
    db.close()
    with of.connect(tmp_path, shards=3) as again:
        assert outbox(again) == 0 and values(again) == {2}


def cursors(db: of.Database) -> int:
    found = 0
    for shard in range(3):
        with db._state.view(shard) as view:
            found += sum(1 for _ in view.scan(live_rows.CURSORS))
    return found


def test_no_life_of_a_job_leaves_more_rows_behind_than_the_one_before(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = []
    for life in range(5):
        run = into_map(db, agg.count()).start(latency=0)
        run.catch_up(timeout=120)
        run.stop()
        with monkeypatch.context() as patched:
            if life in (2, 3):  # it is killed after the last record of the job itself
                patched.setattr("onefold.compute.live_starting.drop_cursors", lambda *_: None)
            assert db.drop("map:m")
        if life in (2, 3):
            assert cursors(db) > left[-1]
            said = check_garbage(db._state, db._engine.blobs, fix=False).found
            assert "shards have cursors of live jobs that were dropped" in said
            if life == 2:
                Keeper(lambda: db._state, lambda: db._engine.blobs).look()
            else:
                check_garbage(db._state, db._engine.blobs, fix=True)
        left.append(cursors(db))
    assert 0 < left[0] <= 2 and left == left[:1] * 5
