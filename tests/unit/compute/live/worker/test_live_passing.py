"""What passes does not fail a job: shards that do not answer, commits of which nobody knows whether they happened."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.store import BlobsUnavailable
from onefold.compute.live.client import LiveJob, OtherPlan
from onefold.state.core.client import StateClient
from onefold.state.fold.live.ops import Claim, LaneCommit, Replay, StartJob, Stop
from onefold.state.fold.ops import Commit
from onefold.state.fold.streams.ops import MakeStream
from support.live_clicks import wait_for

START = datetime(2026, 1, 1, tzinfo=UTC)
ERRORS = {
    "unknown": of.AppendUnknown("the log gave no answer"),
    "not delivered": of.Timeout("the operation was not delivered here"),
    "waits for others": of.Timeout("appends before it took too long", definite=True),
    "forgotten": of.Expired("the client has been forgotten"),
    "no majority": of.Unavailable("no majority of the servers answers"),
}


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as db:
        db.stream("clicks", partitions=1).append_many([{"k": number % 3} for number in range(30)], key=None)
        yield db


def counting(db: of.Database) -> Any:
    return db.read_stream("clicks", follow=True).group_by("k").agg(n=agg.count()).into_map("m", key="k")


def breaks(
    monkeypatch: pytest.MonkeyPatch,
    error: of.OnefoldError,
    which: Callable[[Any], bool],
    *,
    happens: bool = False,
) -> list[Any]:
    """The first of these operations meets the error (``happens``: after it was done); what met it."""
    submit = StateClient.submit
    met: list[Any] = []

    def failing(self: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
        if met or not which(op):
            return submit(self, shard, op, *args, **options)
        met.append(op)
        if happens:
            submit(self, shard, op, *args, **options)
        raise error

    monkeypatch.setattr(StateClient, "submit", failing)
    return met


def is_commit(op: Any) -> bool:
    return isinstance(op, Commit) and any(isinstance(write, LaneCommit) for write in op.writes)


@pytest.mark.parametrize(
    ("error", "happens"),
    [(name, happens) for name in ERRORS for happens in {False, not ERRORS[name].definite}],
)
def test_a_commit_without_an_answer_is_counted_once(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, error: str, happens: bool
) -> None:
    met = breaks(monkeypatch, ERRORS[error], is_commit, happens=happens)
    run = counting(db).start(latency=0)
    run.catch_up(timeout=120)
    assert met and run.state == "running"
    assert dict(db.map("m").items()) == {key: {"n": 10} for key in range(3)}


def test_a_shard_that_does_not_answer_while_a_worker_begins(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It makes the stream that it writes to before it reads anything."""
    started: list[bool] = []
    met = breaks(monkeypatch, ERRORS["no majority"], lambda op: isinstance(op, MakeStream) and bool(started))
    job = db.read_stream("clicks", follow=True).into_stream("out")
    run = job.start(workers=0)
    started.append(True)
    run.resume(workers=1)
    run.catch_up(timeout=120)
    assert met and len(db.stream("out")) == 30


@contextmanager
def blobs_are_refused(folder: Path) -> Iterator[None]:
    """No blob can be stored or read while the block runs, as where the disk is full or its file system has become read-only."""
    place, aside = folder / "blobs", folder / "aside"
    place.mkdir(exist_ok=True)
    place.rename(aside)
    place.touch()  # a file where the folder was
    try:
        yield
    finally:
        place.unlink()
        aside.rename(place)


@pytest.mark.parametrize("sink", ["table", "stream"])
@pytest.mark.parametrize("begun", [False, True], ids=["begins", "works"])
def test_a_job_whose_blobs_the_machine_refuses_waits_for_it(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sink: str, begun: bool
) -> None:
    monkeypatch.setattr(config, "LIVE_INLINE_BYTES_MAX", 100)
    monkeypatch.setattr(config, "STREAM_INLINE_BYTES_MAX", 100)
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 100)
    rows = db.read_stream("clicks", follow=True)
    counted = rows.group_by("k").agg(n=agg.count())
    run = (counted.into("t") if sink == "table" else rows.into_stream("out")).start(workers=int(begun))
    if begun:
        run.catch_up(timeout=60)
    assert run.status().dead == 0
    run._jobs._plans.clear()  # a worker that begins reads it from its blob
    with blobs_are_refused(tmp_path):
        run._workers.work(run._found, 1)
        db.stream("clicks").append({"k": 0})
        wait_for(lambda: "Not a directory" in run._workers.trouble(run._found))
        assert begun <= ("Not a directory" in run.status().held_by)
        assert run.state == "running"
    run.catch_up(timeout=60)
    assert run.state == "running" and run.status().rows == 31
    if sink == "table":
        assert db.table("t").to_polars().rows() == [(0, 11), (1, 10), (2, 10)]
    else:
        assert len(db.stream("out")) == 31


def test_a_start_whose_plan_cannot_be_stored_says_so(db: of.Database, tmp_path: Path) -> None:
    job = counting(db)
    with (
        blobs_are_refused(tmp_path),
        pytest.raises(
            of.Unavailable, match=r"'map:m' was not started: Not a directory .* and start it again"
        ) as caught,
    ):
        job.start()
    assert caught.value.definite and db.runs() == []
    run = job.start()
    run.catch_up(timeout=60)
    assert run.status().rows == 30


def test_what_cannot_be_read_now_is_said_by_all_who_read(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in ("LIVE_INLINE_BYTES_MAX", "STREAM_INLINE_BYTES_MAX", "STREAM_BLOB_BYTES_MIN"):
        monkeypatch.setattr(config, limit, 100)
    db.stream("large").append_many(pl.DataFrame({"k": range(100)}))
    run = db.read_stream("clicks", follow=True).group_by("k").agg(n=agg.count()).into("t").start()
    run.catch_up(timeout=60)
    with of.connect(tmp_path) as other, blobs_are_refused(tmp_path):
        reads: list[Callable[[], Any]] = [
            lambda: other.open_run("t").status(),
            lambda: other.open_run("t").resume(),
            lambda: other.table("t").to_polars(),
            lambda: db.table("t").estimate("n"),
            lambda: other.stream("large").to_polars(),
        ]
        run._workers.reader._kept.clear()
        for read in reads:
            with pytest.raises(of.Unavailable, match=r"Not a directory \(.*blobs") as caught:
                read()
            assert caught.value.definite
    assert other.url == db.url and db.table("t").to_polars().height == 3


@pytest.mark.parametrize("replays", [False, True])
def test_a_job_that_has_begun_needs_no_look_at_its_plan(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: bool
) -> None:
    """The record is there. The place of the blobs was lost before the look whether the plan is still there."""
    counted = db.read_stream("clicks", follow=True).group_by("k").agg(n=agg.count())
    if replays:
        counted.into("t").start().catch_up(timeout=60)
    submit = StateClient.submit
    refused = blobs_are_refused(tmp_path)

    def refusing(self: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
        done = submit(self, shard, op, *args, **options)
        if isinstance(op, StartJob | Replay):
            refused.__enter__()
        return done

    monkeypatch.setattr(StateClient, "submit", refusing)
    run = counted.into("t").replay() if replays else counted.into("t").start()
    refused.__exit__(None, None, None)
    run.catch_up(timeout=60)
    assert run.status().rows == 30


def test_a_function_that_meets_a_full_disk_fails_the_job(db: of.Database) -> None:
    """It may have written a part of what it was given: nobody but its writer can say whether to call it again."""

    def full(frame: pl.DataFrame) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/data/out")

    run = db.read_stream("clicks", follow=True).for_each(full, name="full").start()
    with pytest.raises(of.JobFailed, match="No space left on device"):
        run.catch_up(timeout=60)


def test_a_plan_that_cannot_be_had_yet_is_asked_for_again(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = counting(db).start(workers=0)
    jobs = run._jobs
    plan, asked = jobs.plan, []

    def failing(blob: str) -> Any:
        by_worker = threading.current_thread() is not threading.main_thread()
        asked.extend([blob] * by_worker)
        if by_worker and len(asked) == 1:
            raise BlobsUnavailable("the blob store does not answer")
        return plan(blob)

    monkeypatch.setattr(jobs, "plan", failing)
    run.resume(workers=1)
    run.catch_up(timeout=120)
    assert len(asked) >= 2


def test_a_failure_that_cannot_be_written_is_written_later(
    db: of.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = breaks(monkeypatch, ERRORS["no majority"], lambda op: isinstance(op, Stop))
    db.stream("clicks").append({"k": {"a": 1}})
    run = db.read_stream("clicks", follow=True).for_each(lambda frame: 1 / 0, name="broken").start()
    with pytest.raises(of.JobFailed, match="division by zero"):
        run.catch_up(timeout=120)
    assert met and run.state == "failed"


def test_what_only_a_claim_meets_passes_too(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    met = breaks(monkeypatch, ERRORS["unknown"], lambda op: isinstance(op, Claim), happens=True)
    run = counting(db).start()
    run.catch_up(timeout=120)
    assert met and run.status().rows == 30


@pytest.mark.parametrize("sink", ["map", "table"])
def test_a_late_failure_of_the_program_before_does_not_fail_the_corrected_one(
    db: of.Database, monkeypatch: pytest.MonkeyPatch, sink: str
) -> None:
    """The worker was stopped on the line before it fails the job; the program was corrected, and started again meanwhile."""
    about_to, may_go, stops = threading.Event(), threading.Event(), LiveJob.stop
    outcomes: list[Any] = []

    def late(self: LiveJob, generation: int, *given: Any) -> str:
        if not about_to.is_set():
            about_to.set()
            assert may_go.wait(120)
        try:
            outcomes.append(stops(self, generation, *given))
        except of.Conflict as error:
            outcomes.append(error)
            raise
        return str(outcomes[-1])

    def wrong(row: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("the program before")

    def job(function: Callable[[Any], Any]) -> Any:
        rows = db.read_stream("clicks", follow=True).map(function, schema={"k": pl.Int64})
        counted = rows.group_by("k").agg(n=agg.count())
        return counted.into_map("m", key="k") if sink == "map" else counted.into("t")

    with monkeypatch.context() as patched:
        patched.setattr(LiveJob, "stop", late)
        job(wrong).start(latency=0)
        assert about_to.wait(120)
        run = job(lambda row: {"k": row["k"]}).start(latency=0, workers=0)
        may_go.set()
        run.catch_up(timeout=120)  # by the same thread: it begins again with the plan that the job has
    assert [type(one) for one in outcomes] == [OtherPlan] and run.state == "running"
    assert run.status().rows == 30
