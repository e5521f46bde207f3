"""Columns of Python values: exact, and of the same type or error in whatever order the values come and are split."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import random
from collections import OrderedDict, namedtuple
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.frames.values import concat, frame_of_dicts
from onefold.compute.plan.nodes import MapBatches, Node
from onefold.compute.tasks.found_types import Found, Notes
from onefold.compute.tasks.python_steps import BatchStep
from onefold.errors import InvalidValue
from support.in_process import functions_in_process  # noqa: F401


class Letter(enum.Enum):
    A = "a"
    B = "b"


class OfNanoseconds(dt.datetime):
    """As of a library that counts them."""

    nanosecond = 1


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Point:
    x: Any


Named = namedtuple("Named", "x y")
BERLIN = ZoneInfo("Europe/Berlin")
LATER = dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1)
FAMILIES: list[list[Any]] = [
    [1, 2**63, 2**64 - 1],
    [1, -5, 2**62, 2**63, 2**64, -(2**127), 2**127, 2**200, np.int8(3), np.uint64(2**63), np.int64(300), Number.ONE],
    [0.5, 1.1, 1e300, float("inf"), np.float32(1.1), np.float64(1.1), np.float16(0.5), 3, np.int8(3), np.uint64(7), Number.ONE],
    [Decimal("0.0000000001"), Decimal("1" * 30), Decimal("1.50"), Decimal("1E5"), Decimal("1" * 39), Decimal("NaN"), Decimal(0)],
    [np.array([1]), np.array([1, 2]), [1], (2.5,), [], np.array([1.5], dtype="f4"), range(2), [None]],
    [{"x": None}, {"x": 1}, {"x": 0.5}, Point(1), Point(None), Named(1, "y"), OrderedDict(y="z"), {"x": np.float32(1.1)}],
    [Letter.A, Letter.B, Point(Letter.A), "a", np.str_("b")],
    [True, np.bool_(False), 1],
    [dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(2024, 10, 27, 2, 30, tzinfo=BERLIN, fold=1)],
    [dt.date(2020, 1, 1), dt.time(1), dt.timedelta(1), dt.time(1, tzinfo=dt.UTC), b"x"],
]  # fmt: skip


def python(value: Any) -> Any:
    """What a column gives back for a value."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, np.generic | np.ndarray):
        return python(value.tolist())
    if isinstance(value, Point):
        return {"x": python(value.x)}
    if isinstance(value, Named):
        return value._asdict()
    if isinstance(value, dict):
        return {key: python(item) for key, item in value.items()}
    return [python(item) for item in value] if isinstance(value, list | tuple | range) else value


def same(given: Any, held: Any) -> bool:
    if isinstance(given, dict):
        return all(same(given.get(key), item) for key, item in held.items()) and given.keys() <= held.keys()
    if isinstance(given, list):
        return len(given) == len(held) and all(map(same, given, held))
    return bool(given == held)


def exact(dtype: Any) -> Any:
    """The type with the fields of structs in one order."""
    if isinstance(dtype, pl.Struct):
        return sorted((field.name, exact(field.dtype)) for field in dtype.fields)
    return repr(pl.List(dtype.inner)) if isinstance(dtype, pl.List) else repr(dtype)


def column(parts: list[list[Any]]) -> pl.Series | None:
    """The column that the values have, of parts as tasks see them; None for an error."""
    found = Found(0, {})
    frames = []
    try:
        for part in parts:
            frames.append(frame_of_dicts([{"v": value} for value in part], None))
            found.decimals(0, frames[-1])
            found.through()
        if Notes().add(found.names()):
            return None
        return concat(frames)["v"]
    except InvalidValue:
        return None


@pytest.mark.parametrize("seed", range(len(FAMILIES)))
def test_types_and_values_do_not_depend_on_the_split(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        pool = [*FAMILIES[seed], None]
        if rng.random() < 0.2:
            pool += rng.choice(FAMILIES)
        values = rng.choices(pool, k=rng.randint(1, 5))
        one = column([values])
        if one is not None:
            assert all(map(same, map(python, values), one.to_list())), values
        for _ in range(3):
            order = rng.sample(range(len(values)), len(values))
            cuts = sorted(rng.choices(range(len(values) + 1), k=rng.randint(0, 3)))
            parts = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
            many = column([[values[index] for index in part] for part in parts if part])
            assert (one is None) == (many is None), (values, parts)
            if one is not None and many is not None:
                assert exact(one.dtype) == exact(many.dtype), (values, parts)
                assert all(same(python(values[index]), item) for index, item in zip(order, many, strict=True))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Decimal("NaN"), "column 'v' holds Decimal\\('NaN'\\)"),
        (Decimal("1" * 39), "39 digits before and 0 after the point, and a column has 38"),
        (2**127, "column 'v' .* is too large for 128 bits"),
        (dt.time(1, tzinfo=dt.UTC), "times of day with a zone"),
        (np.datetime64("2020-01-01"), "numpy values of datetime64"),
        (1j, "holds complex"),
        (OfNanoseconds(2020, 1, 1), "which has nanoseconds"),
    ],
)
def test_what_no_column_holds_is_named(value: Any, text: str) -> None:
    for given in ([value], [None, value]):
        with pytest.raises(InvalidValue, match=text):
            frame_of_dicts([{"v": item} for item in given], None)


MIDNIGHT, FIVE = dt.datetime(2020, 1, 1), dt.datetime(2020, 1, 1, 5)
HELD: list[tuple[Any, Any, Any]] = [
    (MIDNIGHT, pl.Date, dt.date(2020, 1, 1)),
    ("2020-01-01", pl.Date, dt.date(2020, 1, 1)),
    (dt.date(2020, 1, 1), pl.Datetime("us"), MIDNIGHT),
    (FIVE, pl.Datetime("ms"), FIVE),
    (LATER, pl.Datetime("us", "UTC"), dt.datetime(2024, 10, 27, 1, 30, tzinfo=dt.UTC)),
    (1.1, pl.Float32, float(np.float32(1.1))),
    (2**53, pl.Float64, float(2**53)),
    (Decimal("1.5000"), pl.Decimal(10, 2), Decimal("1.5")),
    ("1.50", pl.Decimal(10, 2), Decimal("1.5")),
    (1.1, pl.Decimal(10, 2), Decimal("1.1")),
    (Decimal("0.1"), pl.Float64, 0.1),
    (dt.timedelta(1), pl.Duration("ms"), dt.timedelta(1)),
    ({"a": 1}, pl.Struct({"a": pl.Int8, "b": pl.String}), {"a": 1, "b": None}),
    (Point(Letter.A), pl.Struct({"x": pl.String}), {"x": "a"}),
    (np.array([1, 2]), pl.List(pl.Int8), [1, 2]),
    (2**63, pl.UInt64, 2**63),
    (np.float32(1.1), pl.Float64, float(np.float32(1.1))),
    (Letter.A, pl.String, "a"),
    (Letter.A, pl.Categorical(), "a"),
    (2**100, pl.Float32, float(2**100)),
    (LATER, pl.Datetime("us", "Europe/Berlin"), LATER.astimezone(ZoneInfo("Europe/Berlin"))),
]  # fmt: skip
REFUSED: list[tuple[Any, Any]] = [
    (FIVE, pl.Date),
    (FIVE, pl.Time),
    (FIVE.replace(tzinfo=dt.UTC), pl.Datetime("us")),
    (FIVE, pl.Datetime("us", "UTC")),
    (FIVE.replace(microsecond=1), pl.Datetime("ms")),
    (dt.datetime(9999, 1, 1), pl.Datetime("ns")),
    ("2020-01-01T00:00:00.0001", pl.Datetime("ms")),
    ("01/02/2020", pl.Date),
    (1, pl.Null),
    (1e300, pl.Float32),
    (2**24 + 1, pl.Float32),
    (2**53 + 1, pl.Float64),
    (Decimal("0.12345678901234567890"), pl.Float64),
    (Decimal("1.005"), pl.Decimal(10, 2)),
    ("1.005", pl.Decimal(10, 2)),
    (Decimal("1" * 9), pl.Decimal(10, 2)),
    (Decimal("NaN"), pl.Decimal(10, 2)),
    (dt.timedelta(microseconds=1), pl.Duration("ms")),
    ({"a": 1, "b": 2}, pl.Struct({"a": pl.Int64})),
    ({"a": 1.5}, pl.Struct({"a": pl.Int64})),
    ({"a": 300}, pl.Struct({"a": pl.Int8})),
    ({"a": 1}, pl.Struct({"a": pl.String})),
    (1.5, pl.Int64),
    (1, pl.String),
    (dt.date(2020, 1, 1), pl.String),
    (2**130, pl.Float32),
    (2**60 + 1, pl.Float16),
    (10**400, pl.Float64),
    ("z", pl.Enum(["a"])),
    ("1", pl.Int64),
    ("01", pl.Int64),
    ("1.5", pl.Float64),
    ("true", pl.Boolean),
    (FIVE, pl.Datetime("us", "Europe/Berlin")),
    (dt.date(2020, 1, 1), pl.Datetime("us", "UTC")),
    (MIDNIGHT.replace(tzinfo=dt.UTC), pl.Date),
    (dt.time(5), pl.Datetime("us")),
    (OfNanoseconds(2020, 1, 1), pl.Datetime("us")),
    (OfNanoseconds(2020, 1, 1), pl.Date),
]


def of_values(values: list[Any], dtype: Any) -> pl.DataFrame:
    """As ``map`` makes the column."""
    return frame_of_dicts([{"v": value} for value in values], (("v", dtype),))


def of_frames(values: list[Any], dtype: Any) -> pl.DataFrame:
    """As ``map_batches`` makes it, of a column that has the type of the values."""
    given = frame_of_dicts([{"v": value} for value in values], None)
    return BatchStep(MapBatches(Node(), lambda _: given, (("v", dtype),))).call(pl.DataFrame({"a": [1]}))


@pytest.mark.parametrize("make", [of_values, of_frames])
@pytest.mark.parametrize("nest", [False, True])
def test_a_schema_is_obeyed_exactly(nest: bool, make: Callable[[list[Any], Any], pl.DataFrame]) -> None:
    wrap: Any = (lambda item: {"f": [item]}) if nest else (lambda item: item)
    for value, dtype, held in HELD:
        of_type = pl.Struct({"f": pl.List(dtype)}) if nest else dtype
        for given, wanted in (
            ([wrap(value), None], [wrap(held), None]),
            ([wrap(value), wrap(None)], [wrap(held), wrap(None)]),
        ):
            frame = make(given, of_type)
            assert frame.schema == {"v": of_type} and frame["v"].to_list() == wanted, (value, dtype)
    for value, dtype in REFUSED:
        of_type = pl.Struct({"f": pl.List(dtype)}) if nest else dtype
        for refused in ([value], [None, value]):
            with pytest.raises(InvalidValue, match="column 'v"):
                print(value, make([wrap(item) for item in refused], of_type))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [
        (1e300, pl.Float32),
        (2**53 + 1, pl.Float64),
        (FIVE, pl.Date),
        (dt.timedelta(microseconds=1), pl.Duration("ms")),
        (Decimal("1.005"), pl.Decimal(10, 2)),
        (1, pl.Null),
        ({"a": 1, "b": 2}, pl.Struct({"a": pl.Int64})),
        ([FIVE], pl.List(pl.Date)),
    ],
)
def test_frames_of_batches_obey_a_schema_too(value: Any, dtype: Any) -> None:
    step = BatchStep(MapBatches(Node(), lambda _: pl.DataFrame({"v": [value]}), (("v", dtype),)))
    with pytest.raises(InvalidValue, match="schema="):
        step.call(pl.DataFrame({"a": [1]}))


def test_batches_may_be_rounded_to_narrow_floats() -> None:
    step = BatchStep(
        MapBatches(Node(), lambda _: pl.DataFrame({"v": [1.1, None, float("inf")]}), (("v", pl.Float32),))
    )
    assert step.call(pl.DataFrame({"a": [1]}))["v"].to_list() == [float(np.float32(1.1)), None, float("inf")]


JOBS: dict[str, tuple[list[Any], Any]] = {
    "dicts and bare values": ([{"v": 1}, 5], "gave both dicts and bare values|a dict for some records"),
    "dicts and null": ([{"v": 1}, None], "gave both dicts and bare values|a dict for some records"),
    "decimals": ([{"v": Decimal("1E-10")}, {"v": Decimal("1" * 30)}], "30 digits before and 10 after the point"),
    "explode nulls": ([{"v": None}, {"v": [1]}], [(1,)]),
}  # fmt: skip


@pytest.mark.parametrize("case", JOBS)
def test_jobs_give_the_same_however_they_are_split(
    functions_in_process: None,  # noqa: F811
    tmp_path: Path,
    case: str,
) -> None:
    given, wanted = JOBS[case]
    for number in range(2):
        (tmp_path / f"{number}.txt").write_text(f"{number}\n")
    with of.connect("memory://") as db:
        rows = db.read_text(f"{tmp_path}/*.txt").map(lambda record: given[int(record["line"])])
        jobs = [rows.explode("v")] if "explode" in case else [rows]
        if case == "decimals":
            jobs.append(rows.group_by().agg(top=agg.max("v")))
        for number, job in enumerate(jobs):
            for splits in (1, 2):
                dataset = job.into(f"t{number}{splits}")
                if isinstance(wanted, str):
                    with pytest.raises(of.JobFailed, match=wanted):
                        dataset.run(progress=False, workers=1, target_splits=splits)
                else:
                    run = dataset.run(progress=False, workers=1, target_splits=splits)
                    assert run.result().to_polars().rows() == wanted


APART: dict[str, list[Any]] = {
    "decimals": [Decimal("1E-10"), Decimal("1" * 30), Decimal(5), Decimal(7)],
    "decimals in lists": [[Decimal("1E-10")], [Decimal("1" * 30)], None, []],
    "dicts and bare values": [{"v": 1}, 5, {"v": 2}, 7],
    "types": [1, "x", 2, 3],
}


@pytest.mark.parametrize("case", APART)
def test_records_that_do_not_fit_together_are_not_skipped(
    functions_in_process: None,  # noqa: F811
    tmp_path: Path,
    case: str,
) -> None:
    given = [item if isinstance(item, dict) else {"v": item} for item in APART[case]]
    if "bare" in case:
        given = APART[case]
    for files in (1, 4):
        folder = tmp_path / str(files)
        folder.mkdir()
        for number in range(files):
            lines = range(number * 4 // files, (number + 1) * 4 // files)
            (folder / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines))
        with of.connect("memory://") as db:
            rows = db.read_text(f"{folder}/*.txt").map(lambda record: given[int(record["line"])])
            run = rows.into("t").start(workers=1, on_error="skip", target_splits=4).wait(timeout=60)
            assert (run.state, run.progress().skipped) == ("failed", 0)
