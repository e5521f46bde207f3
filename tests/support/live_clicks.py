"""Clicks: events of ten-second windows, and a job that counts them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import onefold as of
from onefold import agg

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def event(second: float, page: str = "a", v: int = 1) -> dict[str, Any]:
    return {"at": at(second), "page": page, "v": v}


def source(db: of.Database, stream: str = "clicks", **options: Any) -> Any:
    return db.read_stream(
        stream, follow=True, **{"event_time": "at", "max_ahead": None, "idle": None, **options}
    )


def counts(db: of.Database, **options: Any) -> Any:
    """Ten-second windows: how many, and the sum of v."""
    rows = source(db, **options).window(of.window.tumbling("10s"))
    return rows.group_by("page").agg(n=agg.count(), total=agg.sum("v"))


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def same(record: dict[str, Any]) -> dict[str, Any]:
    return record
