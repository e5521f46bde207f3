"""Workers end in a bounded time, whatever they are at, and hold nothing any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import config
from onefold.compute.live_runs import LiveRun
from onefold.node.job_workers import JobWorkers
from onefold.state.core.client import StateClient
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import Leave, MoveCursor
from onefold.state.fold.ops import Commit


class Held:
    """A function of ``for_each`` that does not come back until ``let_go``."""

    def __init__(self, folder: Path) -> None:
        self.begun, self.free = folder / "begun", folder / "free"

    def __call__(self, frame: pl.DataFrame) -> None:
        self.begun.touch()
        limit = time.monotonic() + 60
        while not self.free.exists() and time.monotonic() < limit:
            time.sleep(0.01)
        self.begun.unlink(missing_ok=True)

    def let_go(self) -> None:
        self.free.touch()

    @property
    def holds(self) -> bool:
        return self.begun.exists()


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    made = Held(tmp_path)
    yield made
    made.let_go()


def begin(db: of.Database, held: Held, **options: Any) -> LiveRun:
    db.stream("clicks", partitions=1).append_many([{"k": number} for number in range(10)], key=None)
    run = db.read_stream("clicks", follow=True).for_each(held, name="j").start(**options)
    assert isinstance(run, LiveRun)
    if options.get("workers") != 0:
        wait_for(lambda: held.holds)
    return run


def workers_of(run: LiveRun) -> dict[str, Any]:
    with run._job.local() as view:
        return live_rows.workers(view, run.name, 1)


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_stop_does_not_wait_longer_than_it_may(tmp_path: Path, held: Held) -> None:
    with of.connect(tmp_path / "db") as db:
        run = begin(db, held)
        busy = [thread for thread in threading.enumerate() if thread.name == "onefold-live-j"]
        assert run.stop(timeout=0.05).state == "stopped"
        assert held.holds and not workers_of(run), "another one may claim at once"
        got: list[int] = []
        again = db.read_stream("clicks", follow=True).for_each(lambda frame: got.extend(frame["k"]), name="j")
        again.start().catch_up(timeout=120)
        assert got == [*range(10)]
        held.let_go()
        busy[0].join(120)
        assert run.status().rows == 10 and run.state == "running", (
            "its commit was refused, and nothing failed"
        )


def test_closing_does_not_wait_for_a_function_for_ever(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LIVE_END_WAIT_S", 0.05)
    with of.connect(tmp_path / "db") as db:
        begin(db, held)
    assert held.holds
    with of.connect(tmp_path / "db") as db:
        run = db.open_run("j")
        assert isinstance(run, LiveRun)
        assert (run.state, workers_of(run)) == ("running", {})
        held.let_go()
        run.resume().catch_up(timeout=120)
        assert run.status().rows == 10


class _Log:
    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class _Shards:
    def __init__(self, shards: Any) -> None:
        self._shards = shards

    def now(self) -> Any:
        return self._shards

    def close_others(self, used: Any) -> None:
        """They are the connection's."""

    close = close_others  # type: ignore[assignment]


def test_a_node_leaves_while_a_function_hangs(
    tmp_path: Path, held: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LIVE_END_WAIT_S", 0.05)
    monkeypatch.setattr(config, "LIVE_LEFT_WAIT_S", 60.0)
    monkeypatch.setattr(config, "NODE_BEAT_S", 0.02)
    with of.connect(tmp_path / "db") as db:
        run = begin(db, held, workers=0)
        shards: Any = _Shards(db._state.shards)
        log: Any = _Log()
        blobs = db._engine.blobs
        node = JobWorkers(lambda: None, blobs, log, node="n", slots=1, code="pickle", shards=shards)
        node.start()
        wait_for(lambda: held.holds)
        looking = node._live_jobs
        assert looking is not None
        run._job.stop(1)
        wait_for(lambda: "j/1" not in looking._joined)  # it waits for its worker, which hangs
        node.stop_claims()
        assert held.holds
        held.let_go()
        for thread in node._threads:
            node._ending.set()
            thread.join(120)


def test_a_worker_leaves_although_its_rows_cannot_be_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = StateClient.submit
    broken: set[str] = set()

    def failing(self: StateClient, shard: int, op: Any, *args: Any, **options: Any) -> Any:
        writes = op.writes if isinstance(op, Commit) else ()
        if "forward" in broken and any(isinstance(write, MoveCursor) for write in writes):
            raise of.Unavailable("the shard does not answer")
        if "leave" in broken and isinstance(op, Leave):
            broken.discard("leave")
            raise of.AppendUnknown("the log gave no answer")
        return submit(self, shard, op, *args, **options)

    monkeypatch.setattr(StateClient, "submit", failing)
    with of.connect(tmp_path, shards=2) as db:
        stream = db.stream("clicks", partitions=2)
        job = db.read_stream("clicks", follow=True).into_map("m", key="k")
        stream.append_many([{"k": number} for number in range(20)], key="k")
        run = job.start()
        assert isinstance(run, LiveRun)
        run.catch_up(timeout=120)
        broken |= {"forward", "leave"}
        stream.append_many([{"k": number} for number in range(20, 40)], key="k")
        wait_for(lambda: run.status().rows == 40)
        run.stop()
        assert not workers_of(run) and "leave" not in broken
        assert len(db.map("m")) < 40, "there is something left to send"
        broken.clear()
        job.start().catch_up(timeout=120)
        assert len(db.map("m")) == 40
