"""A worker whose open state is all that it may hold reads nothing, says so, and goes on when others take a part of it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.backoff import wait_until

START = datetime(2026, 1, 1, tzinfo=UTC)


def frame(first: int, count: int) -> pl.DataFrame:
    return pl.DataFrame({"at": [START] * count, "k": [*range(first, first + count)]})


@pytest.fixture
def job(tmp_path: Path) -> Any:
    with of.connect(tmp_path) as db:
        db.stream("s").append_many(frame(0, 2000), key=None)
        rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
        yield db, rows.group_by("k").agg(n=agg.count(), ttl=None).into("t")


def test_reading_pauses_and_continues_with_more_workers(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    db, plan = job
    run = plan.start(workers=1, latency=0)
    run.catch_up(timeout=120)
    monkeypatch.setattr(config, "LIVE_STATE_BYTES_MAX", 30_000)
    assert wait_until(lambda: "MB of open groups" in run.status().held_by, 120, 0.02)
    db.stream("s").append_many(frame(2000, 10), key=None)
    applied = db._shard.applied
    with pytest.raises(of.Timeout):
        run.catch_up(timeout=0.6)
    assert run.status().rows == 2000 and db._shard.applied == applied, "a paused job appends nothing"
    monkeypatch.setattr(config, "LIVE_STATE_BYTES_MAX", 45_000)  # half of it fits
    plan.start(workers=2)
    run.catch_up(timeout=120)
    assert "open groups" not in run.status().held_by
    assert db.table("t").to_polars()["n"].to_list() == [1] * 2010


def test_a_job_that_drains_reads_to_the_end(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    db, plan = job
    monkeypatch.setattr(config, "LIVE_STATE_BYTES_MAX", 1)
    run = plan.start(workers=1, latency=0)
    assert wait_until(lambda: "open groups" in run.status().held_by, 120, 0.02)
    db.stream("s").append_many(frame(2000, 10), key=None)
    run.stop(drain=True, timeout=120)
    assert db.table("t").to_polars().height == 2010
