"""What a commit and a restart of a live job take does not grow with the keys that are open."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.live.runs import open_state

T = "120s"
START = datetime(2026, 1, 1, tzinfo=UTC)


def each_once(first: int, count: int) -> pl.DataFrame:
    return pl.DataFrame({"k": range(first, first + count), "at": [START] * count})


def started(db: of.Database) -> Any:
    rows = db.read_stream("events", follow=True, event_time="at", idle=None)
    return rows.group_by("k").agg(n=agg.count()).into("t").start(latency="1ms")


def test_a_few_events_after_a_restart_merge_no_large_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = 20_000
    with of.connect(tmp_path) as db:
        for first in range(0, keys, 5000):
            db.stream("events").append_many(each_once(first, 5000))
            started(db).catch_up(T).stop()
    merged: list[int] = []
    merge = open_state.merged

    def counting(frames: Any, *given: Any, **options: Any) -> pl.DataFrame:
        merged.append(sum(frame.height for frame in frames))
        return merge(frames, *given, **options)

    for _ in range(5):  # each leaves a run of one event: more than eight runs in all
        with of.connect(tmp_path) as db, monkeypatch.context() as patch:
            db.stream("events").append_many(each_once(0, 1))
            patch.setattr(open_state, "merged", counting)
            started(db).catch_up(T).stop()
    with of.connect(tmp_path) as db:
        assert db.table("t").to_polars()["n"].sum() == keys + 5
    assert all(rows < 5000 for rows in merged), merged
