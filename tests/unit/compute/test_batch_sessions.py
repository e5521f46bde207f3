"""Sessions of bounded data: what Python says of each key's events, for every cut of the input."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.plan.windows import with_sessions

START = datetime(2026, 1, 1, tzinfo=UTC)
GAP = timedelta(seconds=5)
Row = tuple[datetime, Any, int]


def events(seed: int, count: int = 400) -> list[Row]:
    random = Random(seed)
    # Many keys share tasks, few have some to themselves.
    keys = (["a", "b", None], [*range(150), None], [0.0, -0.0, 1.5], [str(key) for key in range(90)])[seed]
    spread = random.choice((100_000, 2_000_000))
    return [
        (START + timedelta(milliseconds=100 * random.randrange(spread // 100)), random.choice(keys), number)
        for number in range(count)
    ]


def sessions(rows: list[Row]) -> list[tuple[datetime, datetime, Any, int, int]]:
    """By going through the events of each key in their order."""
    by_key: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[row[1]].append(row)
    found = []
    for key, mine in by_key.items():
        held: list[Row] = []
        for row in [*sorted(mine, key=lambda row: row[0]), None]:
            if held and (row is None or row[0] - held[-1][0] > GAP):
                found.append(
                    (held[0][0], held[-1][0] + GAP, key, len(held), sum(value for _, _, value in held))
                )
                held = []
            if row is not None:
                held.append(row)
    return sorted(found, key=lambda one: (one[0], str(one[2])))


@pytest.mark.parametrize("seed", range(4))
def test_sessions_are_those_of_the_events(onefold_db: of.Database, tmp_path: Path, seed: int) -> None:
    rows = events(seed)
    unit: Any = Random(seed).choice(("us", "ms", "ns"))
    frame = pl.DataFrame(
        {"at": [at for at, _, _ in rows], "k": [k for _, k, _ in rows], "v": range(len(rows))}
    )
    frame = frame.with_columns(pl.col("at").dt.cast_time_unit(unit))
    for number, part in enumerate(frame.iter_slices(150)):
        part.write_parquet(tmp_path / f"{number}.parquet")
    source = onefold_db.read_parquet(str(tmp_path / "*.parquet"))
    windowed = source.window(of.window.session("5s", on="at"))
    job = windowed.group_by("k").agg(n=agg.count(), total=agg.sum("v")).into("t")
    found = job.run(progress=False, workers=1).result().to_polars()
    assert found.columns == ["window_start", "window_end", "k", "n", "total"]
    assert found.schema["window_start"] == frame.schema["at"]
    assert sorted(found.rows(), key=lambda one: (one[0], str(one[2]))) == sessions(rows)
    assert job.run(progress=False, workers=1).progress().rows == 0  # all tasks are found again


def test_sessions_of_all_rows_and_of_a_stream(onefold_db: of.Database) -> None:
    rows = [{"at": START + timedelta(seconds=second), "v": second} for second in (0, 5, 11, 30, 35)]
    onefold_db.stream("s").append_many(rows[::-1])
    windowed = onefold_db.read_stream("s", event_time="at").window(of.window.session("5s"))
    job = windowed.group_by().agg(n=agg.count(), first=agg.first("v"), last=agg.last("v")).into("t")
    found = job.run(progress=False, workers=1).result().to_polars()
    assert found.drop("window_start", "window_end").rows() == [(2, 0, 5), (1, 11, 11), (2, 30, 35)]


def test_rows_without_a_time_are_in_no_session(onefold_db: of.Database, tmp_path: Path) -> None:
    frame = pl.DataFrame({"at": [START, None, START, None], "k": ["a", "a", "a", "b"]})
    frame.write_parquet(tmp_path / "x.parquet")
    windowed = onefold_db.read_parquet(tmp_path / "x.parquet").window(of.window.session("5s", on="at"))
    found = (
        windowed.group_by("k")
        .agg(n=agg.count())
        .into("t")
        .run(progress=False, workers=1)
        .result()
        .to_polars()
    )
    expected = {(None, None, "a", 1), (None, None, "b", 1), (START, START + GAP, "a", 2)}
    assert set(found.rows()) == expected


@pytest.mark.parametrize(("unit", "first"), [("ms", 1), ("us", 1), ("ns", 1700)])
def test_events_of_different_centuries_are_in_different_sessions(unit: Any, first: int) -> None:
    times = [START.replace(year=first), START, START + GAP, START + 2 * GAP + timedelta(milliseconds=1)]
    frame = pl.DataFrame({"at": times, "k": ["a"] * 4}).with_columns(pl.col("at").dt.cast_time_unit(unit))
    found = with_sessions(frame.reverse(), ("k",), "at", GAP // timedelta(microseconds=1))
    assert found["window_start"].to_list() == [times[0], times[1], times[1], times[3]]
    assert found["window_end"].to_list() == [times[0] + GAP, times[2] + GAP, times[2] + GAP, times[3] + GAP]


@pytest.mark.parametrize("seed", range(2))
def test_a_live_job_finds_the_same_sessions(onefold_db: of.Database, seed: int) -> None:
    rows = [
        {"at": at, "k": str(key), "v": value}
        for at, key, value in sorted(events(seed, 200), key=lambda one: one[0])
    ]
    onefold_db.stream("s").append_many(rows)

    def job(source: Any, into: str) -> Any:
        windowed = source.window(of.window.session("5s"))
        return windowed.group_by("k").agg(n=agg.count(), total=agg.sum("v")).into(into)

    live = job(onefold_db.read_stream("s", follow=True, event_time="at", max_ahead=None), "live")
    live.start().stop(drain=True, timeout=60)
    job(onefold_db.read_stream("s", event_time="at"), "batch").run(progress=False, workers=1)
    order = ("window_start", "k")
    found = onefold_db.table("batch").to_polars().sort(order)
    assert found.rows() == onefold_db.table("live").to_polars().sort(order).rows()
    first = found.row(0, named=True)
    assert onefold_db.table("batch").get((first["window_start"], first["k"])) == first
    assert onefold_db.table("batch").get((first["window_start"], first["window_end"], first["k"])) == first
