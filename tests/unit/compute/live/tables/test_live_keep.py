"""Tables with ``keep=``: windows that are past their time leave them whole."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.backoff import wait_until
from onefold.compute.live.worker.part_worker import PartWorker
from onefold.state.fold.live import rows as live_rows

START = datetime(2026, 1, 1, tzinfo=UTC)
KEYS = list(range(24))
T = 120


def minutes(db: of.Database, **options: Any) -> Any:
    rows = db.read_stream("clicks", follow=True, event_time="at", max_ahead=None, idle=None)
    return (
        rows.window(of.window.tumbling("1m")).group_by("k").agg(n=agg.count()).into("t", keep="5m", **options)
    )


def minute(db: of.Database, number: int) -> None:
    at = [START + timedelta(minutes=number)] * len(KEYS)
    db.stream("clicks").append_many(pl.DataFrame({"at": at, "k": KEYS}), key=None)


def starts(shown: pl.DataFrame) -> list[int]:
    """The windows that are shown, by their minute. Each has all keys."""
    by_start = shown.group_by("window_start").agg(pl.col("k").sort()).sort("window_start")
    assert by_start["k"].to_list() == [KEYS] * by_start.height
    return [(at - START) // timedelta(minutes=1) for at in by_start["window_start"]]


def marks(db: of.Database) -> list[int | None]:
    """How far each bundle is, in minutes."""
    with db._shard.view() as view:
        found = [row.watermark_us for _, row in live_rows.bundles(view, live_rows.part_key("t", 1, "main"))]
    return [None if mark is None else round((mark / 1e6 - START.timestamp()) / 60) for mark in found]


@pytest.mark.parametrize("emit", ["final", "update"])
def test_windows_past_their_time_leave_the_table_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, emit: str
) -> None:
    stalled = threading.Event()
    work: Any = PartWorker._work

    def stalling(self: PartWorker, fold: Any, *args: Any) -> Any:
        return False if stalled.is_set() and fold.held.lanes & 1 else work(self, fold, *args)

    monkeypatch.setattr(PartWorker, "_work", stalling)
    with of.connect(tmp_path) as db:
        db.stream("clicks", partitions=1).create()
        run = minutes(db, emit=emit).start(latency=0, workers=2)
        assert wait_until(lambda: run.status().workers == 2, T, 0.02)
        for number in range(30):
            minute(db, number)
            run.catch_up(timeout=T)
            expected = list(range(max(0, number - 5), number))
            assert starts(run.result().to_polars(final=True)) == expected, number
            if emit == "update":
                assert starts(run.result().to_polars()) == [*expected, number]
        stalled.set()  # one worker
        for number in range(30, 50):
            minute(db, number)
            assert wait_until(lambda: sorted(marks(db)) == [29, number], T, 0.005)  # noqa: B023
            assert starts(run.result().to_polars(final=True)) == list(range(24, 29)), number
        stalled.clear()
        run.stop(drain=True, timeout=T)
        assert starts(run.result().to_polars()) == list(range(45, 50))


@pytest.mark.parametrize("keep", ["5m", None])
def test_late_records_are_compacted_and_kept_like_the_table(tmp_path: Path, keep: str | None) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks", partitions=1).create()
        rows = db.read_stream("clicks", follow=True, event_time="at", max_ahead=None, idle=None)
        counted = rows.window(of.window.tumbling("1m")).group_by("k").agg(n=agg.count())
        run = counted.into("t", keep=keep).start(latency=0)
        for number in range(1, 61):
            at = [START + timedelta(minutes=number), START - timedelta(days=1)]
            db.stream("clicks").append_many(pl.DataFrame({"at": at, "k": [number, number]}), key=None)
            run.catch_up(timeout=T)
        with db._shard.view() as view:
            runs = list(live_rows.runs(view, live_rows.part_key("t", 1, "main")))
        late = run.result().late()
        assert sum(one.row.kind == "late" for one in runs) <= 24
        assert late["_offset"].is_sorted() and late["_offset"].is_unique().all()
        assert late["_offset"][-1] == 119
        if keep is None:
            assert late.height == run.status().late == 59
        else:
            assert 5 <= late.height < 40
