"""What an idle live job, and a program that waits for one, ask of a cluster: nothing that needs a record."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.compute import live_runs
from onefold.compute.live.job import waits
from onefold.compute.live.worker import job_worker
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import STRONG

START = datetime(2026, 1, 1, tzinfo=UTC)
ROUNDS = 8


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path, shards=3) as opened:
        yield opened


@pytest.fixture
def strong(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The threads that asked for a view at the strong level, which on a cluster is a record, each time that one did."""
    found: list[str] = []
    view = StateClient.view

    def counted(self: StateClient, shard_id: int, level: Any = None, timeout: float | None = None) -> Any:
        if (self.level if level is None else level) == STRONG:
            found.append(threading.current_thread().name)
        return view(self, shard_id, level, timeout)

    monkeypatch.setattr(StateClient, "view", counted)
    return found


def counts(db: of.Database) -> Any:
    clicks = db.stream("clicks", partitions=2)
    clicks.append_many(
        [{"at": START + timedelta(seconds=number), "page": "abc"[number % 3]} for number in range(60)]
    )
    rows = db.read_stream("clicks", follow=True, event_time="at", max_ahead=None, idle=None)
    return rows.group_by("page").agg(n=agg.count())


def test_an_idle_worker_asks_for_no_barrier(
    sharded: of.Database, strong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_worker, "WAIT_S", 0.01)
    run = counts(sharded).into_map("pages", key="page").start(latency=0)
    run.catch_up(timeout=120)
    rounds = threading.Semaphore(0)
    whole = job_worker.JobWorker._round

    def counted(self: job_worker.JobWorker) -> None:
        rounds.release()
        whole(self)

    monkeypatch.setattr(job_worker.JobWorker, "_round", counted)
    assert rounds.acquire(timeout=120)
    strong.clear()
    for _ in range(ROUNDS):
        assert rounds.acquire(timeout=120)
    assert not strong
    assert len(sharded.map("pages")) == 3


def test_a_program_that_waits_asks_for_no_barrier_each_time_it_looks(
    sharded: of.Database, strong: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "_LOOK_S", 0.002)
    run = counts(sharded).into_map("pages", key="page").start(workers=0)
    looks: list[int] = []
    monkeypatch.setattr(live_runs.LiveRun, "_moment", _counting(live_runs.LiveRun._moment, looks))
    strong.clear()
    with pytest.raises(_LookedOften):
        run.catch_up(timeout=120)
    assert len(strong) < ROUNDS


class _LookedOften(Exception):
    """Enough was seen."""


def _counting(whole: Any, looks: list[int]) -> Any:
    def counted(self: Any, **options: Any) -> Any:
        looks.append(1)
        if len(looks) > 2 * ROUNDS:
            raise _LookedOften
        return whole(self, **options)

    return counted
