"""One group of a live table: as the whole table has it, without the others being merged."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.live.runs.run_store import RunReader

START = datetime(2026, 1, 1, tzinfo=UTC)
T = 120
WINDOWS = {
    "none": None,
    "tumbling": of.window.tumbling("10s"),
    "sliding": of.window.sliding("20s", every="10s"),
    "session": of.window.session("3s"),
}
KEYS: dict[str, list[Any]] = {
    "text": ["a", "b", "", None],
    "number": [1, 2, -3, None],
    "float": [0.5, -0.0, float("nan"), None],
    "time": [START, START + timedelta(microseconds=1)],
}


def looked_up(table: Any, row: dict[str, Any], *named: str) -> Any:
    names = (*(("window_start",) if "window_start" in row else ()), *named)
    key = tuple(row[name] for name in names)
    return table.get(key if len(key) > 1 else key[0])


@pytest.mark.parametrize(
    ("kind", "emit"),
    [
        ("none", "update"),
        ("tumbling", "final"),
        ("tumbling", "update"),
        ("sliding", "update"),
        ("session", "update"),
    ],
)
def test_get_gives_the_row_of_the_table(tmp_path: Path, kind: str, emit: Any) -> None:
    random = Random(f"{kind} {emit}")
    with of.connect(tmp_path) as db:
        jobs = {}
        rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
        rows = rows if WINDOWS[kind] is None else rows.window(WINDOWS[kind])
        db.stream("s").create()
        for name in KEYS if emit == "final" else random.sample(sorted(KEYS), 2):
            counted = rows.group_by(name, "b").agg(n=agg.count(), v=agg.sum("v"))
            jobs[name] = counted.into(f"by {name}", emit=emit).start(latency=0)
        for step in range(3):
            frame = pl.DataFrame(
                {
                    "at": [START + timedelta(seconds=step * 15 + random.random() * 15) for _ in range(30)],
                    **{name: random.choices(values, k=30) for name, values in KEYS.items()},
                    "b": random.choices([True, False], k=30),
                    "v": random.choices(range(9), k=30),
                }
            )
            db.stream("s").append_many(frame.sort("at"), key=None)
            for name, run in jobs.items():
                run.catch_up(timeout=T)
                shown, table = run.result().to_polars(), db.table(f"by {name}")
                for row in random.sample(shown.to_dicts(), min(5, shown.height)):
                    found = looked_up(table, row, name, "b")
                    assert repr(found) == repr(row)  # NaN is not NaN
                    assert table._frames is None  # type: ignore[attr-defined]
                assert shown.height or emit == "final"


def test_what_is_not_there_or_cannot_be_a_key(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").append({"k": 1})
        run = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count(), ttl=None).into("t").start()
        run.catch_up(timeout=T)
        table = db.table("t")
        assert table.get(1) == {"k": 1, "n": 1}
        assert table.get(2) is None and table.get(None) is None
        with pytest.raises(of.InvalidArgument, match="cannot be a key"):
            table.get("one")


def test_get_reads_again_what_compaction_has_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").append({"k": 1})
        run = (
            db.read_stream("s", follow=True)
            .group_by("k")
            .agg(n=agg.count(), ttl=None)
            .into("t")
            .start(latency=0)
        )
        run.catch_up(timeout=T)
        table, whole, failed = db.table("t"), RunReader.frame, []
        reader = threading.current_thread()

        def swept(self: Any, *args: Any) -> Any:
            if not failed and threading.current_thread() is reader:  # not the worker, which loads its state
                failed.append(1)
                db.stream("s").append({"k": 1})
                run.catch_up(timeout=T)
                raise BlobMissing("0" * 64)
            return whole(self, *args)

        run.stop()
        run = run.resume()
        monkeypatch.setattr(RunReader, "frame", swept)
        assert table.get(1) == {"k": 1, "n": 2}


@pytest.mark.parametrize("aware", [True, False])
def test_a_time_with_a_zone_is_refused_where_the_table_has_none_and_the_other_way_round(
    tmp_path: Path, aware: bool
) -> None:
    start = START if aware else START.replace(tzinfo=None)
    with of.connect(tmp_path) as db:
        stream = db.stream("c", partitions=1)
        rows = db.read_stream("c", follow=True, event_time="at", watermark_delay="0s")
        run = rows.window(of.window.tumbling("10s")).group_by("page").agg(n=agg.count()).into("t").start()
        table = db.table("t")
        stream.append_many([{"at": start + timedelta(seconds=s), "page": "a"} for s in (0, 30)])
        run.catch_up(T)
        assert table.get((start, "a"))["n"] == 1
        other = START.replace(tzinfo=None) if aware else START.astimezone(timezone(timedelta(hours=2)))
        says = "'window_start' with a time zone" if aware else "'window_start' naive, in UTC"
        with pytest.raises(of.InvalidArgument, match=says) as raised:
            table.get((other, "a"))
        assert repr(start) in str(raised.value)
        (snapshot,) = table.watch(timeout=0)
        assert repr(snapshot) == f"<LiveTableSnapshot of 't': 2 events, watermark {snapshot.watermark}>"
