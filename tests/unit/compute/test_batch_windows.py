"""Windows of bounded data: what Python says of each event, for every unit, zone and cut of the input."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.plan.windows import WindowSpec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SPECS = [
    of.window.tumbling("1m", on="at"),
    of.window.tumbling("7s", offset="3s", on="at"),
    of.window.tumbling("1d", offset="1h", on="at"),
    of.window.sliding("1m", every="20s", on="at"),
    of.window.sliding("1m", every="25s", offset="1s", on="at"),
    of.window.sliding("10s", every="10s", on="at"),
]
TYPES = [
    pl.Datetime("us"),
    pl.Datetime("ms"),
    pl.Datetime("ns", "UTC"),
    pl.Datetime("us", "Europe/Zurich"),
]


def windows_of(time: datetime, spec: WindowSpec) -> list[datetime]:
    """The starts of the windows that the time is in, by going through all of them."""
    step = timedelta(microseconds=spec.every_us or spec.length_us)
    length, offset = timedelta(microseconds=spec.length_us), timedelta(microseconds=spec.offset_us)
    last = EPOCH + offset + (time - EPOCH - offset) // step * step
    found = []
    while last + length > time:
        found.append(last)
        last -= step
    return found


def events(seed: int, count: int = 300) -> list[tuple[datetime, str]]:
    random = Random(seed)
    around = random.choice((EPOCH, EPOCH - timedelta(days=3), datetime(2026, 3, 29, 0, 59, 30, tzinfo=UTC)))
    return [
        (around + timedelta(milliseconds=random.randrange(-150_000, 150_000)), random.choice("abc"))
        for _ in range(count)
    ]


def counted(
    db: of.Database, spec: WindowSpec, frame: pl.DataFrame, folder: Path, splits: int
) -> pl.DataFrame:
    for number, part in enumerate(frame.iter_slices(-(-frame.height // splits))):
        part.write_parquet(folder / f"{number}.parquet")
    job = db.read_parquet(str(folder / "*.parquet")).window(spec).group_by("k").agg(n=agg.count()).into("t")
    return job.run(progress=False, workers=1).result().to_polars()


@pytest.mark.moving(4)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_events_are_in_their_windows(
    onefold_db: of.Database, tmp_path: Path, spec: WindowSpec, dtype: Any
) -> None:
    rows = events(SPECS.index(spec))
    frame = pl.DataFrame({"at": [time for time, _ in rows], "k": [key for _, key in rows]})
    frame = frame.with_columns(
        pl.col("at").dt.convert_time_zone(dtype.time_zone).cast(dtype)
        if dtype.time_zone
        else pl.col("at").dt.replace_time_zone(None).cast(dtype)
    )
    found = counted(onefold_db, spec, frame, tmp_path, 3)
    assert found.columns == ["window_start", "window_end", "k", "n"]
    assert found.schema["window_start"] == found.schema["window_end"] == dtype
    length = timedelta(microseconds=spec.length_us)
    expected = Counter((start, start + length, key) for time, key in rows for start in windows_of(time, spec))
    aware = found.with_columns(
        pl.col("window_start", "window_end").dt.convert_time_zone("UTC")
        if dtype.time_zone
        else pl.col("window_start", "window_end").dt.replace_time_zone("UTC")
    )
    assert {row[:3]: row[3] for row in aware.rows()} == expected


@pytest.fixture
def days(onefold_db: of.Database, tmp_path: Path) -> of.Dataset:
    frame = pl.DataFrame(
        {"at": [EPOCH], "day": [EPOCH.date()], "ms": [EPOCH], "text": ["x"], "window_start": [1]}
    )
    frame.with_columns(pl.col("ms").cast(pl.Datetime("ms"))).write_parquet(tmp_path / "a.parquet")
    return onefold_db.read_parquet(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("spec", "columns", "says"),
    [
        (of.window.tumbling("1m"), ["at"], "name the column that is their time"),
        (of.window.tumbling("1m", on="when"), ["at"], "there is no column 'when'"),
        (of.window.tumbling("1m", on="day"), ["day"], "is Date.*Cast it"),
        (of.window.tumbling("1m", on="text"), ["text"], r"str\.to_datetime"),
        (of.window.tumbling(timedelta(microseconds=5), on="ms"), ["ms"], "counts milliseconds"),
        (of.window.tumbling("1m", on="at"), ["at", "window_start"], "already; rename it"),
    ],
)
def test_windows_that_rows_cannot_have_are_refused(
    days: of.Dataset, spec: WindowSpec, columns: list[str], says: str
) -> None:
    job = days.select(*columns).window(spec).group_by().agg(n=agg.count()).into("t")
    with pytest.raises(of.InvalidPlan, match=says):
        job.start(workers=0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: of.window.tumbling(0), "length of at least a microsecond"),
        (lambda: of.window.session("0s"), "gap of at least a microsecond"),
        (lambda: of.window.sliding("1h", every=0), "every= of at least a microsecond"),
        (lambda: of.window.sliding("1m", every="2m"), "would leave out"),
        (lambda: of.window.sliding("1h", every="1ms"), "3,600,000 slices"),
    ],
)
def test_windows_that_cannot_be_are_refused(make: Any, says: str) -> None:
    with pytest.raises(of.InvalidPlan, match=says):
        make()


@pytest.mark.parametrize(
    "given", [{"length": "soon"}, {"length": -1}, {"length": "1m", "on": 3}, {"length": True}]
)
def test_what_is_not_a_duration_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(of.InvalidArgument):
        of.window.tumbling(**given)


def test_the_window_is_a_key_already(days: of.Dataset) -> None:
    windowed = days.window(of.window.tumbling("1m", on="at"))
    with pytest.raises(of.InvalidPlan, match="is a key already"):
        windowed.group_by("window_end")
    with pytest.raises(of.InvalidArgument, match=r"of\.window\.tumbling"):
        days.window("1m")  # type: ignore[arg-type]
    assert "window tumbling(1m) of at" in windowed.group_by().agg(n=agg.count()).explain()
