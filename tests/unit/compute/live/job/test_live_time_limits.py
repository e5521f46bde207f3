"""A time limit is of the whole call: of every step of it, and of all of them together, whatever does not answer meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.client import JobClient
from onefold.compute.live.worker.job_worker import JobWorker
from onefold.compute.live.worker.local_workers import _Slot
from onefold.state.core.client import StateClient
from onefold.state.core.time_limits import deadline_of
from onefold.state.fold.live.ops import (
    Cancel,
    Drain,
    DropCursors,
    DropJob,
    Leave,
    MoveCursor,
    Replay,
    Stop,
    Swap,
)
from onefold.state.fold.ops import Commit

LIMIT_S = 0.3
WITHOUT_LIMIT_S = 120.0
"""What a step takes that has not the time of the call."""
MOST_S = 60.0
WRITES: tuple[Any, ...] = (Stop, Leave, Drain, Cancel, DropJob, DropCursors, Swap, Replay, MoveCursor)


def kind_of(op: Any) -> type:
    return type(op.writes[0]) if isinstance(op, Commit) else type(op)


class Silence:
    """What does not answer: these kinds of operations, and views if ``reads``. Workers are not held up."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.kinds: tuple[type, ...] = ()
        self.reads = False
        self.met = 0
        submit, view = StateClient.submit, StateClient.view

        def silent_submit(client: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
            if self.is_for_me() and self.kinds and kind_of(op) in self.kinds:
                self.wait(client, deadline_of(client) - client.env.boot_s())
            return submit(client, shard, op, *args, **options)

        def silent_view(client: StateClient, shard: int, level: Any = None, timeout: Any = None) -> Any:
            if self.reads and self.is_for_me():
                self.wait(client, client.read_time(timeout))
            return view(client, shard, level, timeout)

        patch.setattr(StateClient, "submit", silent_submit)
        patch.setattr(StateClient, "view", silent_view)

    def end(self) -> None:
        """Everything answers again, and the connection is closed quickly."""
        self.kinds, self.reads = (), False
        self.patch.setattr(config, "LIVE_END_WAIT_S", 0.01)

    @staticmethod
    def is_for_me() -> bool:
        return not threading.current_thread().name.startswith("onefold-live")

    def wait(self, client: StateClient, seconds: float) -> None:
        self.met += 1
        client.shards[0].pause(max(0.0, seconds))
        raise of.Unavailable("it does not answer")


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[Silence]:
    monkeypatch.setattr(config, "READ_TIMEOUT_S", WITHOUT_LIMIT_S)
    monkeypatch.setattr(config, "APPEND_RETRY_S", WITHOUT_LIMIT_S)
    made = Silence(monkeypatch)
    yield made
    made.end()


def begun(db: of.Database, monkeypatch: pytest.MonkeyPatch, *, forwards: bool = False) -> Any:
    """A job whose worker does not end when it is asked to. Its rows wait for other shards, unless it ``forwards`` them."""
    db.stream("s", partitions=1).append_many([{"k": n} for n in range(20)], key=None)
    if not forwards:
        monkeypatch.setattr(JobWorker, "_forward", lambda self: False)
    monkeypatch.setattr(JobWorker, "_give_back", lambda self: None)
    monkeypatch.setattr(_Slot, "has_ended", lambda _, deadline: time.sleep(deadline.within(MOST_S)) or False)
    counted = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count())
    run = counted.into_map("m", key="k").start(latency=0)
    limit = time.monotonic() + MOST_S
    while run.status().rows < 20:
        assert time.monotonic() < limit
        time.sleep(0.01)
    return run


def ended(call: Callable[[], object]) -> float:
    """How long it takes, however it ends."""
    began = time.monotonic()
    try:
        call()
    except of.OnefoldError:
        pass
    return time.monotonic() - began


WAITS: dict[str, Callable[[Any, float], object]] = {
    "wait": lambda run, limit: run.wait(timeout=limit),
    "catch_up": lambda run, limit: run.catch_up(timeout=limit),
    "caught_up": lambda run, limit: run.caught_up(({(0, 0): 20}, {}, {}), timeout=limit),
    "stop": lambda run, limit: run.stop(timeout=limit),
    "drain": lambda run, limit: run.stop(drain=True, timeout=limit),
    "resumed to be drained": lambda run, limit: run.stop(drain=True, timeout=limit),
}


STEPS = [
    *((how, silent, aio) for how in WAITS for silent in ("nothing", "reads") for aio in (False, True)),
    *(("stop", silent, False) for silent in ("Stop", "Leave", "MoveCursor")),
    *(("drain", "Drain", aio) for aio in (False, True)),
    ("drain", "Leave", False),
]


@pytest.mark.parametrize(("how", "silent", "aio"), STEPS)
def test_a_wait_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence: Silence, how: str, silent: str, aio: bool
) -> None:
    with of.connect(tmp_path, shards=3) as db:
        run = begun(db, monkeypatch, forwards=(how, silent) == ("drain", "Leave"))
        if how == "resumed to be drained":
            run._job.stop(1)
        silence.reads = silent == "reads"
        silence.kinds = tuple(one for one in WRITES if one.__name__ == silent)
        call = WAITS[how]
        if not aio:
            took_s = ended(lambda: call(run, LIMIT_S))
        else:

            async def called() -> None:
                async with of.aio.connect(tmp_path) as same:
                    silence.reads, reads = False, silence.reads
                    other = await same.open_run("map:m")
                    silence.reads = reads
                    began = time.monotonic()
                    try:
                        await call(other, LIMIT_S)  # type: ignore[misc]
                    except of.OnefoldError:
                        pass
                    took.append(time.monotonic() - began)
                    silence.end()

            took: list[float] = []
            asyncio.run(called())
            took_s = took[0]
        silence.end()
        assert took_s < MOST_S
        assert (silence.met > 0) == (silent != "nothing")


CALLS = {
    "cancel": ("Cancel", "MoveCursor", "Leave"),
    "drop": ("DropJob", "MoveCursor", "DropCursors"),
    "swap": ("Swap", "reads"),
    "replay": ("Replay",),
}


@pytest.mark.parametrize(("how", "silent"), [(how, silent) for how, all in CALLS.items() for silent in all])
def test_a_call_of_many_steps_ends_within_the_time_of_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silence: Silence, how: str, silent: str
) -> None:
    with of.connect(tmp_path, shards=3, timeout=LIMIT_S) as db:
        run = begun(db, monkeypatch)
        job = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into("t")
        table = job.start(workers=0)
        again = job.replay(workers=0) if how == "swap" else None
        if how == "drop":
            run._job.stop(1)
        calls: dict[str, Callable[[], object]] = {
            "cancel": run.cancel,
            "drop": lambda: db.drop("map:m"),
            "swap": lambda: again.swap(force=True),  # type: ignore[union-attr]
            "replay": lambda: job.replay(workers=0),
        }
        silence.reads = silent == "reads"
        silence.kinds = tuple(one for one in WRITES if one.__name__ == silent)
        took_s = ended(calls[how])
        silence.end()
        assert took_s < MOST_S and silence.met > 0
        assert table.exists


def test_the_end_of_a_history_is_written_within_the_time_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is of the jobs fold, whose client has no time limit of its own."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    past = pl.DataFrame({"at": [at - timedelta(hours=1)], "k": ["a"]})
    past.write_parquet(tmp_path / "past.parquet")
    submit, left = JobClient.submit, []

    def noted(client: JobClient, *ops: Any, deadline: float | None = None) -> Any:
        left.append(None if deadline is None else deadline - client.env.boot_s())
        return submit(client, *ops, deadline=deadline)

    with of.connect(tmp_path / "space", timeout=MOST_S) as db:
        db.stream("s").append({"at": at, "k": "b"})
        live = db.read_stream("s", follow=True, event_time="at")
        both = db.concat(db.read_parquet(str(tmp_path / "past.parquet")), live, at=at)
        run = both.group_by("k").agg(n=agg.count()).into("t").start(workers=0)
        monkeypatch.setattr(JobClient, "submit", noted)
        run.cancel()
        assert [one.state for one in db.runs(table="t@history")] == ["cancelled"]
    assert len(left) == 1 and left[0] is not None and left[0] <= MOST_S + config.STEP_OVERTIME_S
