"""A node pays for jobs once there is one: before that it imports nothing that computes, and seldom asks other nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import config
from onefold.compute.blobs.sweeping import LIVE
from onefold.compute.live.client import LiveJob
from onefold.compute.live_runs import LiveRun
from onefold.database.sweeping import Sweeping
from onefold.env import SeededEnv
from onefold.folds import names_blobs
from onefold.node.job_workers import JobWorkers
from support.executor_bench import wait_until

PROGRAM = """
import sys, time
from pathlib import Path
import onefold as of
from onefold import config
from onefold.compute.blobs.store import BlobStore
from onefold.folds import folds
from onefold.node.job_workers import JobWorkers
from onefold.space.open_space import open_shards

config.NODE_BEAT_S = 0.01
config.GARBAGE_SWEEP_S = 0.05
kind, url, lines = sys.argv[1:]
beats = []

class Log:
    def __getattr__(self, name):
        return lambda *args, **fields: None

class Shards:
    def now(self):
        beats.append(None)
        return shards
    def close_others(self, used):
        pass
    def close(self):
        pass

def until(condition):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)

def heavy():
    live = {"onefold.compute.live.client", "onefold.compute.live.garbage"}
    return {"polars", "numpy", "onefold.state.core.client", *live} & sys.modules.keys()

shards = tuple(open_shards(url, folds))
blobs = BlobStore(shards[0].directory / "blobs")
node = JobWorkers(lambda: shards[0], blobs, Log(), node="n", slots=1, code="pickle", shards=Shards())
node.start()
until(lambda: node._workers is not None and len(beats) > 5)
until(lambda: node._keeper.looks)  # it has looked for blobs
assert not node.live_jobs() and not heavy(), heavy()
with of.connect(url) as db:
    if kind == "batch":
        run = db.read_text(lines).group_by("line").agg(n=of.agg.count()).into("t").start(workers=0)
        assert run.wait(timeout=60).result().to_polars()["n"].to_list() == [1]
        assert node._live_jobs is None
    else:
        db.stream("s").append({"k": 1})
        run = db.read_stream("s", follow=True).group_by("k").agg(n=of.agg.count()).into("t").start(workers=0)
        run.catch_up(timeout=60)
        until(node.live_jobs)
from onefold.compute.loading import load_everything
assert load_everything.cache_info().currsize, "before threads need it piece by piece"
node.close()
"""


@pytest.mark.parametrize("kind", ["batch", "live"])
def test_what_computes_is_imported_for_the_first_job(kind: str, tmp_path: Path) -> None:
    (tmp_path / "lines").write_text("a\n")
    args = [sys.executable, "-c", PROGRAM, kind, str(tmp_path / "s"), str(tmp_path / "lines")]
    done = subprocess.run(args, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Here:
    """A shard of this node, whose clock moves when it is told to."""

    reads_here = True

    def __init__(self, shard: Any, env: SeededEnv) -> None:
        self.shard, self.env = shard, env
        self.asked = 0
        """By the thread that looks for jobs."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shard, name)

    @contextmanager
    def view(self, *args: Any, **options: Any) -> Iterator[Any]:
        self.asked += threading.current_thread() is threading.main_thread()
        with self.shard.view(*args, **options) as view:
            yield view


class Elsewhere(Here):
    """A shard that another node hosts."""

    reads_here = False


class Shards:
    def __init__(self, *shards: Any) -> None:
        self.shards = shards

    def now(self) -> Any:
        return self.shards

    def close_others(self, used: Any) -> None:
        """They are the connection's."""

    def close(self) -> None:
        """The same."""


class Log:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def refused(node: JobWorkers) -> set[str]:
    """Live jobs that it knows of and does not work on, since it runs no code."""
    assert node._live_jobs is not None
    return set(node._live_jobs._refused)


def homed(db: of.Database, shard: int) -> str:
    return next(name for name in map(str, range(100)) if LiveJob(db._state, name).home == shard)


def test_other_nodes_are_asked_often_only_while_a_job_of_their_shards_runs(tmp_path: Path) -> None:
    env = SeededEnv(7)
    with of.connect(tmp_path / "s", shards=2) as db:
        here, other = Here(db._state.shards[0], env), Elsewhere(db._state.shards[1], env)
        log: Any = Log()
        shards: Any = Shards(here, other)
        node = JobWorkers(
            lambda: None, db._engine.blobs, log, node="n", slots=1, code="reference", env=env, shards=shards
        )

        def beats(count: int) -> int:
            """How often other nodes are asked in that time."""
            before = other.asked
            for _ in range(count):
                node._follow_live()
                env.advance(config.NODE_BEAT_S)
            return other.asked - before

        def begin(shard: int) -> LiveRun:
            rows = db.read_stream("clicks", follow=True).map(lambda row: row).group_by("k")
            run = rows.agg(n=of.agg.count()).into(homed(db, shard)).start(workers=0)
            assert isinstance(run, LiveRun)
            return run

        every = int(config.UPKEEP_LOOK_S // config.NODE_BEAT_S) + 1
        assert beats(1) == 1, "it asks at once"
        assert beats(10 * every) == 10 and node._live_jobs is None, "there is no job"
        first = begin(0)
        assert beats(1) == 1 and refused(node) == {first.id}
        assert beats(10 * every) == 10, "a job whose rows are here"
        second = begin(1)
        assert beats(every) == 1 and refused(node) == {first.id, second.id}
        assert beats(10 * every) == 10 * every, "one whose rows are there"
        second.stop()
        assert beats(1) == 1 and refused(node) == {first.id}
        assert beats(10 * every) == 10, "it was stopped"
        assert {state for _, state, _ in node.live_jobs()} == {"running", "stopped"}
        node.close()


def node_of(db: of.Database) -> JobWorkers:
    """One that runs next to a program which removes nothing, as on a cluster."""
    log: Any = Log()
    shards: Any = Shards(*db._shards)
    return JobWorkers(lambda: None, db._engine.blobs, log, node="n", slots=1, code="reference", shards=shards)


def test_blobs_of_streams_are_removed_without_any_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 20_000)
    monkeypatch.setattr(config, "GARBAGE_SWEEP_S", 0.02)
    monkeypatch.setattr(config, "NODE_BEAT_S", 0.01)
    monkeypatch.setattr(config, "LIVE_GARBAGE_S", -60)
    monkeypatch.setattr(Sweeping, "is_for_programs", False)
    with of.connect(tmp_path / "s", shards=2) as db:
        blobs = db._engine.blobs
        never = blobs.put(b"1FF" + os.urandom(30_000))
        os.utime(blobs.path(never), (time.time() - 2 * config.ORPHAN_BLOB_AGE_S,) * 2)
        node = node_of(db)
        node.start()
        # Of an append that never happened: the state has no rows at all.
        wait_until(lambda: not set(blobs.names()), 120)
        wait_until(lambda: node._keeper.looks, 120)
        for name in ("a", "b", "c", "d"):  # in both shards
            stream = db.stream(name, retention="1ms")
            stream.append(os.urandom(30_000))
            while stream.positions()[0][0] == 0:
                stream.append(b"x")
        wait_until(lambda: not any(map(names_blobs, db._shards)), 120)
        assert not set(blobs.names()) and blobs.hidden(), "a copy of each is kept aside"
        monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
        wait_until(lambda: not blobs.hidden(), 120)
        node.close()
        assert node._live_jobs is None and not node._keeper.is_running


def test_copies_that_a_sweeper_left_which_died_are_settled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
    with of.connect(tmp_path / "s") as db:
        blobs = db._engine.blobs
        blobs.hide(blobs.put(b"1FF" + os.urandom(30_000)), LIVE)
        assert blobs.hidden()
        node = node_of(db)
        node._follow_live()
        node._keeper.look()
        assert not blobs.hidden() and not set(blobs.names())
        node.close()


def test_the_state_tells_whether_there_may_be_something_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "STREAM_BLOB_BYTES_MIN", 20_000)
    with of.connect(tmp_path / "s") as db:
        assert not names_blobs(db._shard)
        stream = db.stream("s", retention="1ms")
        stream.append(b"small")
        assert not names_blobs(db._shard)
        stream.append(os.urandom(30_000))
        assert names_blobs(db._shard), "it is named"
        while stream.positions()[0][0] < 2:
            stream.append(b"x")
        assert names_blobs(db._shard), "it is garbage"
    with of.connect(tmp_path / "t") as db:
        db.read_stream("s", follow=True).group_by("k").agg(n=of.agg.count()).into("t").start(workers=0)
        assert names_blobs(db._shard), "what streams keep for the job"


def test_a_node_that_does_not_reach_all_shards_removes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path / "s") as db:
        db._engine.blobs.put(b"1FF" + os.urandom(30_000))
        node = node_of(db)
        said: list[dict[str, Any]] = []
        monkeypatch.setattr(
            node._keeper, "_note", lambda event, fields: said.append({"event": event, **fields})
        )
        assert node._keeper.look() == node._keeper.look() == 0
        (once,) = said
        assert "does not reach all shards" in once["error"] and once["passes"]
        node._follow_live()
        assert node._keeper.look() == 0 and node._live_jobs is None
        node.close()
