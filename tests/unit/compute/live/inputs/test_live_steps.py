"""Steps and sinks of live jobs: functions of Python, other shards, updates that take back, records that cannot be processed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.live import rows as live_rows
from onefold.state.streams import frames

START = datetime(2026, 1, 1, tzinfo=UTC)


def second(number: float) -> datetime:
    return START + timedelta(seconds=number)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def source(db: of.Database, name: str = "clicks", **options: Any) -> Any:
    given = {"event_time": "at", "watermark_delay": "0s", "max_ahead": None, "idle": None}
    return db.read_stream(name, follow=True, **(given | options))


def stream(db: of.Database, rows: list[dict[str, Any]], name: str = "clicks", partitions: int = 1) -> Any:
    made = db.stream(name, partitions=partitions)
    made.create()
    for row in rows:
        made.append(row, key=row.get("page"))
    return made


EVENTS = [{"at": second(number), "page": "ab"[number % 2], "v": number} for number in range(20)]


def doubled(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"page": record["page"], "v": record["v"] * 2}] * (record["v"] % 3)


def dies_of_seven(record: dict[str, Any]) -> dict[str, Any]:
    if record["v"] == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"page": record["page"], "v": record["v"]}


def raises_of_seven(record: dict[str, Any]) -> dict[str, Any]:
    if record["v"] == 7:
        raise ValueError("seven")
    return {"page": record["page"], "v": record["v"]}


# -- functions of Python


@pytest.mark.parametrize("workers", [1, 2])
def test_a_function_before_the_key_runs_once_for_each_record(db: of.Database, workers: int) -> None:
    stream(db, EVENTS, partitions=3)
    windows = source(db).flat_map(doubled).window(of.window.tumbling("10s"))
    run = windows.group_by("page").agg(n=agg.count(), v=agg.sum("v")).into("t").start(workers=workers)
    run.stop(drain=True, timeout=60)
    expected: Counter[tuple[Any, ...]] = Counter()
    for row in EVENTS:
        for _ in range(row["v"] % 3):
            key = (START + (row["at"] - START) // timedelta(seconds=10) * timedelta(seconds=10), row["page"])
            expected[(*key, "n")] += 1
            expected[(*key, "v")] += row["v"] * 2
    found: Counter[tuple[Any, ...]] = Counter()
    for start, _, page, n, v in run.result().to_polars().rows():
        found[start, page, "n"] += n
        found[start, page, "v"] += v
    assert found == expected
    assert run.status().rows == sum(row["v"] % 3 for row in EVENTS)
    assert [one.name for one in db.collections() if one.kind == "stream"] == ["clicks"]


def test_late_rows_behind_a_hop_name_their_record(db: of.Database) -> None:
    clicks = stream(db, [])
    run = source(db).map(raises_of_seven).window(of.window.tumbling("10s"))
    run = run.group_by("page").agg(n=agg.count()).into("t").start()
    for number, at in enumerate((0, 100, 1, 101)):
        clicks.append({"at": second(at), "page": "a", "v": 100 + number})
        run.catch_up(timeout=60)
    assert run.result().late().select("page", "v", "_partition", "_offset").rows() == [("a", 102, 0, 2)]
    assert run.status().late == 1


def test_the_watermark_waits_until_the_hop_is_read(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part below reads a little at a time, while the part above is far ahead in event time."""
    monkeypatch.setattr(config, "LIVE_BATCH_ROWS_MAX", 10)
    stream(db, [{"at": second(number * 10), "page": "a", "v": number} for number in range(40)])
    rows = source(db).flat_map(lambda record: [record] * 5).window(of.window.tumbling("10s"))
    run = rows.group_by("page").agg(n=agg.count()).into("t").start(latency=0)
    run.stop(drain=True, timeout=60)
    assert run.status().late == 0
    assert run.result().to_polars()["n"].to_list() == [5] * 40


@pytest.mark.parametrize(
    ("function", "keyed"), [(raises_of_seven, True), (raises_of_seven, False), (dies_of_seven, True)]
)
def test_a_record_that_breaks_its_function(db: of.Database, function: Any, keyed: bool) -> None:
    stream(db, EVENTS)
    rows = source(db).map(function)
    job = rows.group_by("page").agg(n=agg.count()).into("t") if keyed else rows.into("t")
    run = job.start()
    with pytest.raises(of.JobFailed, match=r"record 7 of partition 0 of 'clicks': .*(seven|SIGKILL)"):
        run.catch_up(timeout=60)
    run = job.start(on_error="skip")
    run.stop(drain=True, timeout=60)
    table = run.result().to_polars()
    assert (int(table["n"].sum()) if keyed else table.height) == 19
    assert run.status().dead == 1
    (letter,) = run.dead_letters().rows(named=True)
    assert letter["location"] == "record 7 of partition 0 of clicks"
    assert ("seven" if function is raises_of_seven else "SIGKILL") in letter["error"]
    assert ("raises_of_seven" in letter["traceback"]) == (function is raises_of_seven)


@pytest.mark.parametrize("first", [0, 100])
def test_a_job_that_fails_does_not_call_its_function_for_a_whole_batch_first(
    db: of.Database, tmp_path: Path, first: int
) -> None:
    called = tmp_path / "called"

    def breaks(record: dict[str, Any]) -> dict[str, Any]:
        with called.open("a") as file:
            file.write(f"{record['v']}\n")
        if record["v"] >= first:
            raise ValueError("breaks")
        return {"v": record["v"]}

    db.stream("many").append_many(pl.DataFrame({"v": range(3000)}))
    run = db.read_stream("many", follow=True).map(breaks).group_by("v").agg(n=agg.count()).into("t").start()
    with pytest.raises(of.JobFailed, match=f"record {first} of partition 0 of 'many'"):
        run.catch_up(timeout=60)
    assert first < len(called.read_text().splitlines()) <= 8 * (first + 8)


def test_batches_before_the_key_keep_their_event_time(db: of.Database) -> None:
    stream(db, EVENTS)

    def halves(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.filter(pl.col("v") % 2 == 0).select("at", "page")

    rows = source(db).map_batches(halves, batch_rows=5).window(of.window.tumbling("10s")).group_by("page")
    run = rows.agg(n=agg.count()).into("t").start()
    run.stop(drain=True, timeout=60)
    assert run.result().to_polars().select("window_start", "page", "n").rows() == [
        (second(0), "a", 5),
        (second(10), "a", 5),
    ]
    lost = source(db).map_batches(lambda frame: frame.select("page")).window(of.window.tumbling("10s"))
    run = lost.group_by("page").agg(n=agg.count()).into("lost").start(on_error="skip")
    with pytest.raises(of.JobFailed, match="must keep the event time of its rows: there is no column 'at'"):
        run.catch_up(timeout=60)


def test_explain_shows_parts_and_the_hop_between_them(db: of.Database) -> None:
    text = source(db).map(raises_of_seven).group_by("page").agg(n=agg.count()).into("t").explain()
    assert "part 'steps': reads 'clicks', 64 lanes by partition, into a hop to 'main'" in text
    assert "part 'main': reads the hop, 64 lanes by key" in text


def test_rows_without_a_key_are_in_the_lane_of_their_partition(db: of.Database) -> None:
    """Also when a step drops the column of the partition, and runs are compacted."""
    clicks = stream(db, [], partitions=5)
    run = source(db).select("v").into("t").start(workers=3, latency=0)
    for number in range(200):
        clicks.append({"at": second(number), "v": number}, key=number)
        if number % 5 == 0:
            run.catch_up(timeout=60)
    run.stop(drain=True, timeout=60)
    assert sorted(run.result().to_polars()["v"]) == list(range(200))


def test_workers_that_see_other_columns_first_agree(db: of.Database) -> None:
    clicks = stream(db, [], partitions=2)
    keys = [next(key for key in range(99) if partition_of(key, 2) == number) for number in (0, 1)]
    for _ in range(5):
        clicks.append({"at": second(0), "page": "a", "v": 1}, key=keys[0])
        clicks.append({"at": second(0), "page": "a", "v": 0.5}, key=keys[1])
    run = source(db).select("page", "v").into("t").start(workers=2, on_error="skip")
    run.stop(drain=True, timeout=60)
    assert run.status().rows + run.status().dead == 10
    assert run.result().to_polars().schema["v"] in (pl.Int64, pl.Float64)
    assert run.result().to_polars().height in (5, 10)


def partition_of(key: int, partitions: int) -> int:
    return frames.partition_of(encode_key(key), partitions)


def test_stop_does_not_wait_for_a_function(db: of.Database) -> None:
    stream(db, EVENTS)

    def slow(record: dict[str, Any]) -> dict[str, Any]:
        time.sleep(600)
        return record

    run = source(db).map(slow).into("t").start()
    limit = time.monotonic() + 120
    while run.status().workers < 1:
        assert time.monotonic() < limit
    run.stop()
    assert time.monotonic() < limit
    assert run.state == "stopped"


def test_the_streams_of_a_job_are_not_its_users(db: of.Database) -> None:
    stream(db, EVENTS)
    run = source(db).map(doubled_again).group_by("page").agg(n=agg.count()).into("t").start(workers=0)
    hop = live_rows.hop_stream(run.name, 1, "steps")
    opens: list[Callable[[], Any]] = [
        lambda: db.stream(hop),
        lambda: db.read_stream(hop),
        lambda: db.read_stream(hop, follow=True),
        lambda: db.run_transaction(lambda tx: tx.stream(hop).append({"page": "a"})),
    ]
    for opened in opens:
        with pytest.raises(of.InvalidArgument, match="belong to live jobs"):
            opened()
    assert [one.name for one in db.collections() if one.kind == "stream"] == ["clicks"]


# -- exactly once

WORKER = """
import sys
import onefold as of
with of.connect(sys.argv[1]) as db:
    db.open_run(sys.argv[2]).resume().wait()
"""


def doubled_again(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"page": record["page"], "v": record["v"]}] * 2


@pytest.mark.parametrize("keyed", [False, True])
def test_killed_workers_lose_and_double_nothing(tmp_path: Path, keyed: bool) -> None:
    """Behind a function, over a hop, and into other shards."""
    random = Random(7)
    rows = [{"at": second(number / 10), "page": random.choice("abcd"), "v": number} for number in range(400)]
    with of.connect(tmp_path, shards=3) as db:
        clicks = db.stream("clicks", partitions=4)
        clicks.create()
        made = source(db).flat_map(doubled_again)
        if keyed:
            made = made.window(of.window.tumbling("5s")).group_by("page").agg(n=agg.count(), v=agg.sum("v"))
        run = made.into_stream("out", key="page", partitions=5).start(workers=0, latency=0)
        left = list(rows)
        for _ in range(2):
            worker = subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path), run.id])
            try:
                before, limit = run.status().commits, time.monotonic() + 60
                while run.status().commits < before + 6 and time.monotonic() < limit:
                    if run.status().lag == 0:
                        piece, left = left[:10], left[10:]
                        clicks.append_many(pl.DataFrame(piece), key="page")
                    time.sleep(0.01)
            finally:
                worker.kill()
                worker.wait()
            assert run.status().commits > before
        if left:
            clicks.append_many(pl.DataFrame(left), key="page")
        run.resume().stop(drain=True, timeout=120)
        found = db.stream("out").to_polars()
        if not keyed:
            assert Counter(found["v"]) == {row["v"]: 2 for row in rows}
            return
        expected: Counter[tuple[Any, ...]] = Counter()
        for row in rows:
            start = second(row["v"] // 50 * 5)
            expected[start, row["page"], "n"] += 2
            expected[start, row["page"], "v"] += 2 * row["v"]
        assert found.height == len(expected) / 2
        assert expected == {
            (start, page, name): value
            for start, page, n, v in found.select("window_start", "page", "n", "v").rows()
            for name, value in (("n", n), ("v", v))
        }
