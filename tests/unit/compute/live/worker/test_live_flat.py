"""What a live job keeps does not grow with its commits: an hour of fifty a second, compressed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config

START = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = 200


def kept(db: of.Database) -> dict[str, int]:
    """Bytes of the log, and bytes and rows of the state without the stream itself."""
    shard: Any = db._shards[0]
    with shard.log.file.reading() as con:
        log = con.execute("SELECT coalesce(sum(length(data)), 0) FROM log").get
        sql = (
            "SELECT count(*), sum(length(k) + length(v)) FROM kv JOIN tables ON kv.t = tables.id "
            "WHERE name LIKE 'state/l/%'"
        )
        rows, size = next(iter(con.execute(sql)))
    return {"offset": shard.applied, "log": int(str(log)), "rows": int(rows), "bytes": int(size)}  # type: ignore[arg-type]


def test_log_and_state_are_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LIVE_BATCH_ROWS_MAX", 1)  # a commit for each record
    with of.connect(tmp_path, log_keep=64 * 1024) as db:
        rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
        windows = rows.window(of.window.tumbling("10s")).group_by("k").agg(n=agg.count())
        db.stream("s").create()
        run = windows.into("t", keep="60s").start(latency=0)
        seen = []
        for third in range(3):
            at = [START + timedelta(seconds=third * ROWS + number) for number in range(ROWS)]
            db.stream("s").append_many(pl.DataFrame({"at": at, "k": [n % 7 for n in range(ROWS)]}), key=None)
            run.catch_up(timeout=60)
            db._shards[0].log_keep.trim()  # type: ignore[attr-defined]
            seen.append(kept(db))
        assert run.status().commits >= 3 * ROWS
        run.stop()
    first, _, last = seen
    assert last["log"] <= 300_000 < last["offset"] * 1000  # it is cut at multiples of 64 records
    assert last["rows"] <= first["rows"] + 24 and last["bytes"] <= first["bytes"] + 12_000, seen
