"""Event times at their limits and of several types: each event is in a window, late or dead, and none fails a job that skips."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.frames.columns import micros
from onefold.compute.frames.shown_values import shown_value
from onefold.compute.live.event_time import advanced
from onefold.compute.live.inputs.preparing import Schemas
from onefold.compute.live.inputs.times import Times
from onefold.compute.live.plan import StreamInput
from onefold.compute.plan import windows
from onefold.compute.plan.windows import WindowSpec
from onefold.state.fold.live.ops import TIME_MAX_US, Position

EPOCH = datetime(1970, 1, 1)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
T = 120
NANOS_US = 2**63 // 1000
SCALE = {"ms": 1000, "us": 1}
SPECS = [
    of.window.tumbling("1h"),
    of.window.tumbling("7d", offset="3d"),
    of.window.sliding("25s", every="10s", offset="3s"),
    of.window.sliding("1d", every="1h"),
    of.window.tumbling("200d"),
]


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        yield opened


def us(*parts: int) -> int:
    return (datetime(*parts) - EPOCH) // timedelta(microseconds=1)  # type: ignore[arg-type]


def windows_of(time_us: int, spec: WindowSpec) -> list[int]:
    """The starts of the windows that a time is in, one by one."""
    step = spec.every_us or spec.length_us
    last = time_us - (time_us - spec.offset_us) % step
    return sorted(range(last, time_us - spec.length_us, -step))


# -- the arithmetic


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_windows_are_found_in_every_year(spec: WindowSpec, unit: str) -> None:
    random = Random(f"{spec} {unit}")
    low, high = (us(1680, 1, 1), us(2260, 1, 1)) if unit == "ns" else (us(2, 1, 1), us(9998, 1, 1))
    times = [random.randint(low, high) // 1000 * 1000 for _ in range(100)] + [low, high, 0, -1000]
    finer = [random.randrange(1000) if unit == "ns" else 0 for _ in times]
    numbers = [
        time * 1000 + more if unit == "ns" else time // SCALE[unit]
        for time, more in zip(times, finer, strict=True)
    ]
    dtype = pl.Datetime(unit, "UTC")  # type: ignore[arg-type]
    frame = pl.Series("at", numbers, dtype=pl.Int64).cast(dtype).to_frame()
    expected = [windows_of(time, spec) for time in times]
    for known in (None, dtype):
        shown = frame.select(
            first=windows.starts("at", spec, known), all=windows.window_starts("at", WindowSpec(
                "sliding", spec.length_us, spec.every_us or spec.length_us, spec.offset_us), known),
        )  # fmt: skip
        assert shown["first"].dtype == dtype
        slices = [time - (time - spec.offset_us) % spec.slice_us for time in times]
        assert micros(shown["first"]).to_list() == slices
        assert unit != "ns" or (shown["first"].cast(pl.Int64) % 1000).sum() == 0
        assert [micros(found).to_list() for found in shown["all"]] == expected
    first, last = windows.reach_us(np.array(times), spec)
    assert first.tolist() == [found[0] for found in expected]
    assert last.tolist() == [found[-1] + spec.length_us for found in expected]


def test_numbers_at_the_limit_are_no_honest_times() -> None:
    times = np.array([-(2**63), 2**63 - 1, -TIME_MAX_US - 1, 5], dtype=np.int64)
    moved = advanced(Position(0, 0, 0), 4, times, times, None)
    assert (moved.position.max_us, moved.ahead) == (5, 3)


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_times_that_no_datetime_can_be_are_null_with_a_reason(unit: str) -> None:
    limits = (
        us(1, 1, 1) // SCALE.get(unit, 1),
        (us(9999, 12, 31, 23, 59, 59) + 999_999) // SCALE.get(unit, 1),
    )
    low, high = limits if unit != "ns" else (-(2**63) + 2000, 2**63 - 2000)
    given = [None, low, high, low - 1, high + 1, -(2**63), 2**63 - 1, 0]
    column = pl.Series("at", given, dtype=pl.Int64).cast(pl.Datetime(unit))  # type: ignore[arg-type]
    found, reasons = Times().fitted(column)
    wrong = [3, 4, 5, 6] if unit != "ns" else [5, 6]
    assert sorted(reasons) == wrong
    assert found.is_null().arg_true().to_list() == [0, *wrong]
    assert found.to_list()[-1] == EPOCH
    assert all(str(given[row]) in reasons[row] for row in wrong)
    assert all(isinstance(shown_value(column, row), datetime) for row in (1, 2, 7))


def test_windows_finer_than_a_column_have_finer_times() -> None:
    column = pl.Series("at", [1, 2], dtype=pl.Int64).cast(pl.Datetime("ms", "UTC"))
    assert Times(spec=of.window.tumbling(0.0015)).fitted(column)[0].dtype == pl.Datetime("us", "UTC")
    assert Times(spec=of.window.tumbling("2ms")).fitted(column)[0].dtype == column.dtype


# -- jobs

EDGES = {
    "year 1": us(1, 1, 1),
    "1600": us(1600, 1, 1, 0, 30),
    "2300": us(2300, 1, 1, 5, 30),
    "9999": us(9999, 12, 31, 23, 59),
    "year 10000": us(9999, 12, 31, 23, 59) + 60_000_000,
    "before year 1": us(1, 1, 1) - 1,
    "lowest": -(2**63),
    "highest": 2**63 - 1,
    "half": 2**62,
}


@pytest.mark.parametrize("kind", ["tumbling", "sliding", "session", "none"])
@pytest.mark.parametrize("hop", [False, True], ids=["direct", "over a hop"])
def test_each_event_is_in_a_window_late_or_dead(db: of.Database, kind: str, hop: bool) -> None:
    stream = db.stream("clicks", partitions=1)
    stream.create()
    types = {"at": pl.Datetime("us", "UTC"), "k": pl.Int64}
    rows: Any = db.read_stream("clicks", follow=True, event_time="at", idle=None)
    rows = rows.map(lambda row: {"at": row["at"], "k": row["k"]}, schema=types) if hop else rows
    spec = {
        "tumbling": of.window.tumbling("1h"),
        "sliding": of.window.sliding("2h", every="1h"),
        "session": of.window.session("1m"),
    }.get(kind)
    grouped = (rows if spec is None else rows.window(spec)).group_by("k").agg(n=agg.count())
    run = grouped.into("t").start(latency=0, on_error="skip")
    times = [*EDGES.values(), us(2026, 1, 1)]
    for some in (times[-1:], times[:-1]):
        at = pl.Series("at", some, dtype=pl.Int64).cast(types["at"])
        stream.append_many(pl.DataFrame({"at": at, "k": list(range(len(some)))}), key=None)
        run.catch_up(timeout=T)
    run.stop(drain=True, timeout=T)
    status, found = run.status(), run.result().to_polars()
    assert status.rows + status.late + status.dead == len(times)
    assert found["n"].sum() == status.rows * (2 if kind == "sliding" else 1)
    found.rows()  # as values of Python
    letters = run.dead_letters()
    assert letters.height == status.dead == {"none": 5, "sliding": 7}.get(kind, 6)
    assert set(run.result().dead()["reason"].str.contains("outside of what a datetime can be")) == {True}
    assert all(any(str(time) in text for text in letters["record"]) for time in times[4:-1]) or hop


@pytest.mark.parametrize("hop", [False, True], ids=["direct", "over a hop"])
def test_a_time_whose_window_cannot_be_makes_nobody_late(db: of.Database, hop: bool) -> None:
    stream = db.stream("clicks", partitions=1)
    rows: Any = db.read_stream("clicks", follow=True, event_time="at", max_ahead=None, idle=None)
    rows = rows.map(lambda row: {"k": row["k"]}) if hop else rows
    grouped = rows.window(of.window.tumbling("1h")).group_by("k").agg(n=agg.count())
    run = grouped.into("t").start(on_error="skip")
    for at in (NOW, datetime(9999, 12, 31, 23, 59, tzinfo=UTC), NOW + timedelta(minutes=1)):
        stream.append({"at": at, "k": 1})
        run.catch_up(timeout=60)
    status = run.status()
    assert (status.rows, status.late, status.dead) == (2, 0, 1)
    assert status.watermark == NOW + timedelta(minutes=1)


def test_a_time_that_cannot_be_fails_a_job_with_a_reason(db: of.Database) -> None:
    stream = db.stream("clicks")
    at = pl.Series("at", [2**62], dtype=pl.Int64).cast(pl.Datetime("us"))
    stream.append_many(pl.DataFrame({"at": at, "k": [1]}), key=None)
    rows = db.read_stream("clicks", follow=True, event_time="at").group_by("k").agg(n=agg.count())
    with pytest.raises(of.JobFailed, match=r"4611686018427387904 us since 1970.*another unit"):
        rows.into("t").start().catch_up(timeout=T)


def test_batch_windows_are_in_every_year(db: of.Database, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("files")
    for unit in ("ms", "us"):
        at = pl.Series("at", [us(1, 1, 1), us(2026, 1, 1), us(9999, 12, 31)], dtype=pl.Int64)
        frame = pl.DataFrame({"at": at.cast(pl.Datetime("us")).cast(pl.Datetime(unit)), "k": [1, 1, 1]})  # type: ignore[arg-type]
        frame.write_parquet(folder / f"{unit}.parquet")
        rows = db.read_parquet(str(folder / f"{unit}.parquet")).window(of.window.tumbling("1h", on="at"))
        rows.group_by("k").agg(n=agg.count()).into(unit).run(progress=False)
        starts = db.table(unit).to_polars()["window_start"].to_list()
        assert starts == [datetime(1, 1, 1), datetime(2026, 1, 1), datetime(9999, 12, 31)]


# -- several inputs

COLUMNS: dict[str, Any] = {
    "aware": pl.Datetime("us", "UTC"),
    "naive": pl.Datetime("us"),
    "ms": pl.Datetime("ms", "UTC"),
    "naive ms": pl.Datetime("ms"),
    "ns": pl.Datetime("ns", "Europe/Berlin"),
    "date": pl.Date,
    "append": None,
}


@pytest.mark.parametrize("seed", range(6))
def test_times_of_several_inputs_meet_in_one_window(db: of.Database, seed: int) -> None:
    """Whatever types their columns have, whichever came first, and also after other workers took over."""
    random = Random(seed)
    chosen = random.sample(sorted(COLUMNS), 3)
    rows: Any = None
    for name in chosen:
        stream = db.stream(name, partitions=random.randint(1, 2))
        stream.create()
        at = None if COLUMNS[name] is None else "at"
        one = db.read_stream(
            name, follow=True, event_time=at, watermark_delay="1d", max_ahead=None, idle=None
        ).select("k")
        rows = one if rows is None else rows.union(one)
    if seed % 2:
        rows = rows.map(lambda row: {"k": row["k"]}, schema={"k": pl.Int64})
    windowed = rows.window(of.window.sliding("2d", every="1d") if seed % 3 else of.window.tumbling("30d"))
    job = windowed.group_by("k").agg(n=agg.count()).into("t")
    run = job.start(latency=0, workers=random.randint(1, 2))
    today = datetime.now(UTC).date()
    for _ in range(4):
        for name in random.sample(chosen, random.randint(1, 3)):
            at = pl.Series("at", [today], dtype=pl.Date).cast(COLUMNS[name] or pl.Datetime)
            db.stream(name).append_many(pl.DataFrame({"at": at, "k": [random.randrange(2)]}), key="k")
        run.catch_up(timeout=T)
        if random.random() < 0.5:
            run.stop()
            run = job.start(latency=0, workers=random.randint(1, 2))
    run.stop(drain=True, timeout=T)
    status = run.status()
    table = run.result().to_polars()
    assert (status.late, status.dead) == (0, 0)
    assert status.rows == sum(db.stream(name).to_polars().height for name in chosen)
    assert table["n"].sum() == status.rows * (2 if seed % 3 else 1)
    assert table["window_start"].dtype.time_unit == "us"  # type: ignore[attr-defined]


def test_a_history_is_no_input_whose_times_must_fit() -> None:
    """The times of a stream keep the type of its column next to a history, which has its own and is cast."""
    stream = StreamInput("clicks", "at")
    for inputs, shared in (
        ((stream,), False),
        ((stream, replace(stream, history="h")), False),
        ((stream, stream), True),
    ):
        assert Schemas(inputs).of[0].times.shared is shared
