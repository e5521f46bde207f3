"""Live jobs give what the batch run over the same events gives, whatever the commits, workers and takeovers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.backoff import wait_until
from support.at_rest import comes_to_rest

START = datetime(2026, 1, 1, tzinfo=UTC)
DELAY_S = 5
SCHEMA = {"at": pl.Datetime("us", "UTC"), "page": pl.String, "v": pl.Int64}


def events(random: Random, count: int) -> list[dict[str, Any]]:
    """In the order of arrival; none is more than the delay behind one before it."""
    now, rows = 0.0, []
    for _ in range(count):
        now += random.random() * 2
        rows.append(
            (
                now + random.random() * DELAY_S,
                {
                    "at": START + timedelta(seconds=round(now, 2)),
                    "page": random.choice("abcd"),
                    "v": random.randrange(100),
                },
            )
        )
    return [row for _, row in sorted(rows, key=lambda row: row[0])]


WINDOWS: dict[str, Any] = {
    "tumbling": of.window.tumbling("10s"),
    "sliding": of.window.sliding("30s", every="10s"),
    "session": of.window.session("1s"),
    "none": None,
}


def grouped(rows: Any, window: Any) -> Any:
    rows = rows if window is None else rows.window(window)
    return rows.group_by("page").agg(n=agg.count(), total=agg.sum("v"), most=agg.max("v"))


def expected(rows: list[dict[str, Any]], kind: str) -> Counter[tuple[Any, ...]]:
    """The table, by going through the events."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    if kind == "session":
        for page in {row["page"] for row in rows}:
            last = begun = None
            for row in sorted((row for row in rows if row["page"] == page), key=lambda row: row["at"]):
                if last is None or row["at"] - last > timedelta(seconds=1):
                    begun = row["at"]
                last = row["at"]
                groups.setdefault((begun, page), []).append(row["v"])
    for row in rows:
        second = (row["at"] - START) // timedelta(seconds=1)
        starts = {
            "tumbling": [second // 10 * 10],
            "sliding": [second // 10 * 10 - back for back in (0, 10, 20)],
        }
        for start in starts.get(kind, []):
            groups.setdefault((START + timedelta(seconds=start), row["page"]), []).append(row["v"])
        if kind == "none":
            groups.setdefault((row["page"],), []).append(row["v"])
    return Counter((*group, len(values), sum(values), max(values)) for group, values in groups.items())


def shown(table: pl.DataFrame) -> Counter[tuple[Any, ...]]:
    return Counter(table.drop("window_end", strict=False).rows())


def append(stream: Any, random: Random, rows: list[dict[str, Any]]) -> None:
    """In pieces, as single records and as frames, with keys and without."""
    while rows:
        size = random.randint(1, 30)
        piece, rows = rows[:size], rows[size:]
        if random.random() < 0.3:
            stream.append(piece[0])
            piece = piece[1:]
        if piece:
            stream.append_many(pl.DataFrame(piece, schema=SCHEMA), key=None)


def source(db: of.Database, **options: Any) -> Any:
    return db.read_stream(
        "clicks", follow=True, event_time="at", watermark_delay=DELAY_S, max_ahead=None, idle=None, **options
    )


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("seed", range(2))
def test_a_stream_gives_what_its_events_give(tmp_path: Path, kind: str, seed: int) -> None:
    random = Random(f"{seed} {kind}")
    rows = events(random, 300)
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks", partitions=1)
        stream.create()
        job = grouped(source(db), WINDOWS[kind]).into("t")
        run = job.start(workers=random.randint(1, 3), latency=0, lanes=random.choice((1, 4, 64)))
        half = len(rows) // 2
        append(stream, random, rows[:half])
        run.catch_up(timeout=120)
        run.stop()
        assert run.state == "stopped"
        append(stream, random, rows[half:])
        run = job.start(workers=1)
        run.stop(drain=True, timeout=120)
        assert run.state == "done"
        assert shown(run.result().to_polars()) == expected(rows, kind)
        assert run.status().rows == len(rows)
        assert run.status().late == 0


def test_another_connection_continues_and_reads(tmp_path: Path) -> None:
    random = Random(3)
    rows = events(random, 200)
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        append(stream, random, rows[:100])
        grouped(source(db), WINDOWS["tumbling"]).into("t").start().catch_up(timeout=120)
    with of.connect(tmp_path) as db:
        assert db.table("t").status.rows == 100
        append(db.stream("clicks"), random, rows[100:])
        run = grouped(source(db), WINDOWS["tumbling"]).into("t").start()
        run.catch_up(timeout=120)
        assert shown(db.table("t").to_polars(final=False)) == expected(rows, "tumbling")
        assert set(shown(db.table("t").to_polars())) <= set(expected(rows, "tumbling"))
        assert db.open_run("t").state == "running"


def test_late_events_are_in_the_late_table_with_all_columns(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.create()
        run = grouped(source(db).select("page", "v"), WINDOWS["tumbling"]).into("t").start()
        for second in (0, 100, 1, 101):
            stream.append({"at": START + timedelta(seconds=second), "page": "a", "v": second})
            run.catch_up(timeout=120)
        late = run.result().late()
        assert late.select("at", "page", "v", "_offset", "reason").rows() == [
            (START + timedelta(seconds=1), "a", 1, 2, "late")
        ]
        run.stop(drain=True, timeout=120)
        assert run.result().to_polars()["n"].sum() + late.height == 4


def test_running_counts_are_in_a_map_that_an_application_reads(tmp_path: Path) -> None:
    random = Random(4)
    rows = events(random, 150)
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.create()
        run = grouped(source(db), None).into_map("pages", key="page").start()
        append(stream, random, rows)
        run.catch_up(timeout=120)
        pages = db.map("pages")
        assert {(page, *value.values()) for page, value in pages.items()} == set(expected(rows, "none"))


def test_closed_windows_go_to_a_stream_once(tmp_path: Path) -> None:
    random = Random(5)
    rows = events(random, 150)
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.create()
        run = grouped(source(db), WINDOWS["tumbling"]).into_stream("out", key="page").start(latency=0)
        append(stream, random, rows)
        run.stop(drain=True, timeout=120)
        assert shown(
            db.stream("out").to_polars().select("window_start", "page", "n", "total", "most")
        ) == expected(rows, "tumbling")


def test_an_idle_job_appends_nothing(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks", partitions=3)
        stream.append({"at": START, "page": "a", "v": 1})
        job = grouped(
            db.read_stream("clicks", follow=True, event_time="at", idle="0.1s"), WINDOWS["tumbling"]
        ).into("t")
        run = job.start()
        run.catch_up(timeout=120)
        wait_for(lambda: all(idle for *_, idle in run.status().partitions))
        comes_to_rest(lambda: run.status().commits)


def wait_for(condition: Callable[[], bool]) -> None:
    assert wait_until(condition, 120, 0.02)


def test_a_changed_plan_is_refused_with_the_difference(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").create()
        grouped(source(db), WINDOWS["tumbling"]).into("t").start()
        with pytest.raises(of.Conflict, match="window"):
            grouped(source(db), WINDOWS["sliding"]).into("t").start()


@pytest.mark.parametrize("skip", [False, True])
def test_records_without_a_time_fail_the_job_or_are_set_aside(tmp_path: Path, skip: bool) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.append({"at": START, "page": "a", "v": 1})
        stream.append({"at": None, "page": "b", "v": 2})
        run = grouped(source(db), WINDOWS["tumbling"]).into("t").start(on_error="skip" if skip else "fail")
        if not skip:
            with pytest.raises(of.JobFailed, match=r"record 1 of partition 0.*no time"):
                run.catch_up(timeout=120)
            return
        run.stop(drain=True, timeout=120)
        assert run.result().to_polars()["n"].to_list() == [1]
        assert run.result().dead()["page"].to_list() == ["b"]
        assert run.status().dead == 1
