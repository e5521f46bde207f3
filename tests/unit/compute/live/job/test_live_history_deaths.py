"""Processes that die, or stop for long, between two steps of a job with a history: a start, a cancel, a drop.

A patched function stands for the place. One that is killed there raises what nobody catches; one that is slow does there what
other processes do meanwhile, and then continues.
"""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import launching
from onefold.compute.blobs.store import BlobsUnavailable
from onefold.compute.bounded import histories
from onefold.compute.live.plan import LivePlan
from onefold.compute.live.worker import endings
from onefold.compute.live_starting import LiveHost
from onefold.compute.plan.nodes import Job
from support.live_clicks import wait_for

AT = datetime(2026, 1, 1, tzinfo=UTC)
SCHEMA = {"at": pl.Datetime("us", "UTC"), "k": pl.String, "v": pl.Int64}


class Killed(BaseException):
    """The process ends here."""


class Program:
    """A program with one job: two events before the seam, of files that change, and one behind it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = folder / "past.parquet"
        self.write(1)
        with self.connect() as db:
            db.stream("s").append_many(pl.DataFrame({"at": [AT], "k": ["b"], "v": [100]}, schema=SCHEMA))

    def connect(self) -> of.Database:
        return of.connect(self.folder / "space")

    def write(self, v: int, *, to: Path | None = None) -> None:
        rows = {"at": [AT - timedelta(seconds=n) for n in (1, 2)], "k": ["a"] * 2, "v": [v] * 2}
        pl.DataFrame(rows, schema=SCHEMA).write_parquet(to or self.files)

    def job(self, db: of.Database, **aggregates: Any) -> Any:
        live = db.read_stream("s", follow=True, event_time="at", idle=None, max_ahead=None)
        both = db.concat(db.read_parquet(str(self.files)), live, at=AT)
        return both.group_by("k").agg(**(aggregates or {"v": agg.sum("v")})).into("t")

    def whole(self, db: of.Database, **aggregates: Any) -> dict[str, int]:
        """What the job gives when it is started and drained."""
        run = self.job(db, **aggregates).start()
        run.stop(drain=True, timeout=60)
        return shown(db)


def shown(db: of.Database) -> dict[str, int]:
    return dict(db.table("t").to_polars().select("k", pl.last()).iter_rows())


def tables(db: of.Database) -> list[str]:
    return [table.name for table in db.tables()]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    return Program(tmp_path)


@contextlib.contextmanager
def at(owner: Any, name: str, what: Callable[[], object], *, calls: int = 1) -> Iterator[list[int]]:
    """Do this right before the first call of a function."""
    original, before = getattr(owner, name), list(range(calls))

    def patched(*given: Any, **options: Any) -> Any:
        if before:
            before.pop()
            what()
        return original(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, patched)
        yield before
    assert not before, "the place was not reached"


def die() -> None:
    raise Killed


def killed(call: Callable[[], object], owner: Any, name: str) -> None:
    with at(owner, name, die), pytest.raises(Killed):
        call()


def test_a_killed_drop_leaves_nothing_to_the_next_job(program: Program) -> None:
    with program.connect() as db:
        assert program.whole(db) == {"a": 2, "b": 100}
        killed(lambda: db.drop("t"), histories, "remove_left")
        program.write(2)
        killed(program.job(db).start, histories, "begin")
        assert program.whole(db) == {"a": 4, "b": 100}
        killed(lambda: db.drop("t"), histories, "remove_left")
        assert program.whole(db, high=agg.max("v")) == {"a": 2, "b": 100}
        assert tables(db) == ["t", "t/3@history"]


def test_what_a_killed_drop_left_goes_with_the_next_one(program: Program) -> None:
    with program.connect() as db:
        program.job(db).start().stop(drain=True, timeout=60)
        killed(lambda: db.drop("t"), histories, "remove_left")
        assert tables(db) == ["t/1@history"]
        assert db.drop("t") and not db.drop("t") and not tables(db)


@pytest.mark.parametrize("where", ["before its histories are looked for", "before one of them goes"])
def test_a_slow_drop_takes_nothing_of_the_next_job(program: Program, where: str) -> None:
    def others() -> None:
        program.write(2)
        assert program.whole(other) == {"a": 4, "b": 100}

    name = "remove_left" if where.startswith("before its") else "remove"
    with program.connect() as db, program.connect() as other:
        program.job(db).start().stop(drain=True, timeout=60)
        with at(histories, name, others):
            assert db.drop("t")
        assert shown(db) == {"a": 4, "b": 100}
        assert tables(db) == ["t", "t/2@history"]
        assert db.table("t@history").name == "t/2@history"


@pytest.mark.parametrize("where", ["begin", "is_over"])
def test_a_slow_start_adds_nothing_to_the_next_job(program: Program, where: str) -> None:
    """Before it begins the history, and between that and its look at the job."""

    def others() -> None:
        other.open_run("t").stop()
        assert other.drop("t")
        program.write(2)
        assert program.whole(other) == {"a": 4, "b": 100}

    def start() -> None:
        with at(histories, where, others), pytest.raises(of.InvalidArgument, match="was dropped"):
            program.job(db).start()

    with program.connect() as db, program.connect() as other:
        start()
        assert shown(db) == {"a": 4, "b": 100}
        assert tables(db) == ["t", "t/2@history"]
        assert len(db.runs()) == 2  # the job and its history


def test_a_slow_cancel_ends_nothing_of_the_next_job(program: Program) -> None:
    def others() -> None:
        assert other.drop("t")
        program.job(other).start(workers=0)

    with program.connect() as db, program.connect() as other:
        run = program.job(db).start(workers=0)
        with at(endings, "cancel_history", others):
            run.cancel()
        assert [one.state for one in db.runs(table="t@history")] == ["running"]
        assert program.whole(db) == {"a": 2, "b": 100}


@pytest.mark.parametrize("by", ["start", "resume"])
def test_a_history_that_was_left_to_others_is_worked_on_by_who_comes(program: Program, by: str) -> None:
    with program.connect() as db:
        run = program.job(db).start(workers=0)
        program.job(db).start() if by == "start" else run.resume()
        run.stop(drain=True, timeout=60)
        assert shown(db) == {"a": 2, "b": 100}


def test_cancel_and_drop_end_the_batch_job(program: Program) -> None:
    with program.connect() as db:
        run = program.job(db).start(workers=0)
        assert [one.state for one in db.runs(table="t@history")] == ["running"]
        run.cancel()
        assert [one.state for one in db.runs(table="t@history")] == ["cancelled"]
        db.drop("t")
        program.job(db).start(workers=0).stop()
        assert [one.state for one in db.runs(table="t@history")] == ["running"]
        assert db.drop("t")
        assert not tables(db) and not db.runs()


def test_of_two_starts_at_the_same_moment_one_begins_the_history(program: Program) -> None:
    def others() -> None:
        assert program.whole(other) == {"a": 2, "b": 100}

    with program.connect() as db, program.connect() as other:
        with at(launching, "start", others):
            program.job(db).start()
        assert len(db.runs(table="t@history")) == 1
        assert shown(db) == {"a": 2, "b": 100}


def test_whoever_resumes_a_job_begins_what_a_killed_start_did_not(program: Program) -> None:
    with program.connect() as db:
        killed(program.job(db).start, LiveHost, "_keep_log")
        assert not db.runs(table="t@history") and db._shard.log_keep.bytes is None  # type: ignore[attr-defined]
    with program.connect() as db:
        run = db.open_run("t").resume()
        assert db._shard.log_keep.bytes is not None  # type: ignore[attr-defined]
        run.stop(drain=True, timeout=60)
        assert shown(db) == {"a": 2, "b": 100}


def test_files_that_a_batch_job_does_not_read_begin_no_live_job(program: Program) -> None:
    program.files = program.folder / "space" / "past.parquet"
    program.write(1)
    with program.connect() as db:
        with pytest.raises(of.InvalidArgument, match="the space itself"):
            program.job(db).start()
        assert not db.runs() and not db.drop("t")


def test_a_history_that_cannot_begin_fails_the_job(program: Program) -> None:
    def refuse() -> None:
        raise of.InvalidPlan("no such column")

    with program.connect() as db:
        with at(launching, "start", refuse), pytest.raises(of.InvalidPlan) as raised:
            program.job(db).start()
        assert not raised.value.definite, "the job is there"
        run = db.open_run("t")
        assert run.state == "failed" and "its history could not begin: no such column" in run.error  # type: ignore[attr-defined]
        assert program.whole(db) == {"a": 2, "b": 100}


class SoftLimit(Exception):
    """What a signal handler raises."""


PASSING = (
    of.Unavailable("no space left"),
    BlobsUnavailable("the blob store does not answer"),
    of.AppendUnknown("the log gave no answer"),
    of.Timeout("appends before it took too long", definite=True),
    of.Conflict("other programs keep starting jobs"),
    OSError(errno.ENOSPC, "no space left"),
    MemoryError(),
)
OF_HANDLERS = (SoftLimit(), of.Timeout("time is up"), of.InvalidPlan("time is up"), KeyboardInterrupt())


@pytest.mark.parametrize("by_signal", [False, True])
@pytest.mark.parametrize("number", range(len(PASSING)))
@pytest.mark.parametrize("where", ["in front of it", "on its way"])
def test_a_start_that_meets_what_passes_fails_no_job(
    program: Program, number: int, where: str, by_signal: bool
) -> None:
    """Another process runs the job well meanwhile. What a signal handler raises says nothing of the job either."""
    error = OF_HANDLERS[number % len(OF_HANDLERS)] if by_signal else PASSING[number]

    def handler(*_: Any) -> None:
        raise error

    def others() -> None:
        if where == "in front of it":
            program.job(other).start()
        if by_signal:
            signal.raise_signal(signal.SIGUSR1)
        raise error

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with program.connect() as db, program.connect() as other:
            place = (histories, "begin") if where == "in front of it" else (launching, "start")
            with at(*place, others), pytest.raises(type(error)) as raised:
                program.job(db).start()
            if isinstance(error, of.OnefoldError) and not by_signal:
                assert not raised.value.definite, "the job has begun"  # type: ignore[attr-defined]
            run = other.open_run("t")
            assert run.state == "running"
            if where == "on its way":
                run.resume()
            run.stop(drain=True, timeout=120)  # type: ignore[attr-defined]
            assert shown(other) == {"a": 2, "b": 100}
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_job_whose_history_another_process_has_begun_is_not_failed(program: Program) -> None:
    """Its files are not there for this process, say."""

    def others() -> None:
        program.job(other).start()
        raise of.InvalidArgument("no file is there")

    with program.connect() as db, program.connect() as other:
        with at(launching, "start", others), pytest.raises(of.InvalidArgument):
            program.job(db).start()
        assert program.whole(other) == {"a": 2, "b": 100}


@pytest.mark.parametrize("by", ["start", "resume"])
def test_a_job_runs_again_only_once_its_history_does(program: Program, by: str) -> None:
    """Otherwise workers of others find the one that failed, and fail the job again."""
    with program.connect() as db:
        run = program.job(db).start(workers=0)
        db.runs(table="t@history")[0].cancel()  # as one that fails
        host = db._live_starter()  # type: ignore[attr-defined]
        host.workers.work(host.jobs.get("t"), 1)
        wait_for(lambda: run.state == "failed")
        states: list[str] = []
        place = (launching, "start") if by == "start" else (histories.Run, "resume")
        with at(*place, lambda: states.append(run.state)):
            program.job(db).start() if by == "start" else run.resume()
        assert states == ["failed"]
        run.stop(drain=True, timeout=60)
        assert shown(db) == {"a": 2, "b": 100}


def test_the_history_of_a_job_that_release_0_4_0_began_continues(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plan does not have the batch job, whose table is that of all generations."""
    jobs: list[Job] = []

    def without(plan: LivePlan, job: Job, **_: bool) -> LivePlan:
        jobs.append(job)
        return plan

    with program.connect() as db:
        with monkeypatch.context() as patch:
            patch.setattr(histories, "_with_job", without)
            program.job(db).start(workers=0)
        launching.start(db._engine, jobs[0], workers=1).wait(60)  # type: ignore[attr-defined]
        assert program.whole(db) == {"a": 2, "b": 100}
        assert tables(db) == ["t", "t@history"] and len(db.runs(table="t@history")) == 1
        with pytest.raises(of.Conflict, match="is the history of live job 't'"):
            db.drop("t@history")
        assert db.drop("t") and not tables(db)
        program.write(2)
        assert program.whole(db) == {"a": 4, "b": 100}
        assert tables(db) == ["t", "t/2@history"]
