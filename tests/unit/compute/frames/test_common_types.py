"""Values have the same type, or the same error, in one chunk, in two chunks and in two splits."""

from __future__ import annotations

import datetime as dt
import itertools
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import agg
from onefold.compute.aggregates import (
    align,
    decode,
    encode,
    merge_pair,
    partial,
    read_head,
    row_types,
    with_row_types,
)
from onefold.compute.aggregates.align import ROW_TYPES
from onefold.compute.frames.common_types import common_type
from onefold.compute.frames.values import concat, frame_of_dicts
from onefold.errors import InvalidValue
from support.in_process import functions_in_process  # noqa: F401

BERLIN = ZoneInfo("Europe/Berlin")
VALUES: dict[str, Any] = {
    "null": None,
    "bool": True,
    "int": 1,
    "wide": 2**63,
    "wider": 2**70,
    "float": 0.5,
    "decimal": Decimal("1.25"),
    "finer": Decimal("1.00001"),
    "text": "x",
    "bytes": b"x",
    "date": dt.date(2020, 1, 1),
    "naive": dt.datetime(2020, 1, 1, 1),
    "utc": dt.datetime(2020, 1, 1, 1, tzinfo=dt.UTC),
    "offset": dt.datetime(2020, 1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    "berlin": dt.datetime(2020, 1, 1, 1, tzinfo=BERLIN),
    "time": dt.time(1),
    "span": dt.timedelta(1),
    "ints": [1],
    "floats": [0.5],
    "texts": ["x"],
    "empty": [],
    "nulls": [None],
    "lists": [[1]],
    "struct": {"a": 1},
    "float struct": {"a": 0.5},
    "text struct": {"a": "x"},
    "other struct": {"b": 1},
}


def tried(make: Callable[[], pl.DataFrame]) -> Any:
    """The type of the column, fields of structs in any order, or that there is none."""
    try:
        dtype = make().schema["v"]
    except InvalidValue:
        return "none"
    return sorted(dtype.to_schema().items(), key=str) if isinstance(dtype, pl.Struct) else dtype


def of_values(*values: Any) -> pl.DataFrame:
    return frame_of_dicts([{"v": value} for value in values], None)


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(VALUES, 2)))
def test_one_chunk_is_as_two(one: str, other: str) -> None:
    a, b = VALUES[one], VALUES[other]
    together = [
        tried(lambda: of_values(a, b)),
        tried(lambda: of_values(b, a)),
        tried(lambda: concat([of_values(a), of_values(b)])),
        tried(lambda: concat([of_values(b), of_values(a)])),
    ]
    assert together[1:] == together[:1] * 3, together


def test_common_types_do_not_depend_on_the_order() -> None:
    types = [of_values(value).schema["v"] for value in VALUES.values()]
    types += [
        pl.Int8(),
        pl.UInt8(),
        pl.UInt64(),
        pl.UInt128(),
        pl.Float32(),
        pl.Decimal(10, 2),
        pl.Array(pl.Int8(), 2),
        pl.Array(pl.Int64(), 3),
        pl.Struct({"b": pl.Float64()}),
        pl.Enum(["x"]),
        pl.Categorical(),
        pl.Datetime("ns"),
    ]

    def meet(*found: Any) -> Any:
        total: Any = pl.Null()
        for dtype in found:
            total = None if total is None else common_type(total, dtype)
        return (
            repr(sorted(total.to_schema().items(), key=str)) if isinstance(total, pl.Struct) else repr(total)
        )

    for some in itertools.combinations(types, 3):
        assert len({meet(*order) for order in itertools.permutations(some)}) == 1, some


def test_values_keep_their_worth() -> None:
    frame = concat([of_values({"a": 1}, None), of_values({"b": [1.5]}), of_values(None)])
    assert frame["v"].to_list() == [{"a": 1, "b": None}, None, {"a": None, "b": [1.5]}, None]
    assert concat([of_values(-1), of_values(2**63)])["v"].to_list() == [-1, 2**63]
    with pytest.raises(InvalidValue, match="datetime without a zone"):
        of_values(VALUES["naive"], VALUES["utc"])


# -- partials ------------------------------------------------------------------------------------------------


def merged(aggregate: Any, *splits: list[Any]) -> Any:
    """The value of one aggregate over column v, of splits whose types are found from their values."""
    aggs = (("x", aggregate),)
    parts = []
    for values in splits:
        rows = of_values(*values)
        parts.append(with_row_types(partial(rows.lazy(), (), aggs), rows.schema))
    whole = parts[0]
    for part in parts[1:]:
        whole = merge_pair(whole, part, (), aggs)
    assert ROW_TYPES in whole.columns
    return aggregate.finish(
        {name[2:]: whole[name] for name in whole.columns if name.startswith("x:")}
    ).to_list()[0]


AGGREGATES = [
    agg.count("v"),
    agg.sum("v"),
    agg.mean("v"),
    agg.min("v"),
    agg.max("v"),
    agg.var("v"),
    agg.approx_quantile("v", 0.5),
    agg.approx_n_unique("v"),
    agg.most_frequent("v", 3),
    agg.first("v", by="v"),
    agg.last("v", by="v"),
]
SPLITS = [
    [[9, 10], [9.0, 0.5]],
    [[None], [9, 10]],
    [[None, None], [0.5], [9]],
    [[2**53 + 1, 2**53], [0.5]],
    [[2**63], [1.5]],
]


@pytest.mark.parametrize("splits", SPLITS, ids=repr)
@pytest.mark.parametrize("aggregate", AGGREGATES, ids=lambda one: one.kind)
def test_numbers_of_two_types_are_as_in_one_split(aggregate: Any, splits: list[list[Any]]) -> None:
    one = merged(aggregate, [value for values in splits for value in values])
    for order in itertools.permutations(splits):
        found = merged(aggregate, *order)
        if aggregate.kind == "most_frequent":
            assert [(item["value"], item["count"]) for item in found] == [
                (item["value"], item["count"]) for item in one
            ]
        elif aggregate.kind == "approx_n_unique":  # the values themselves count, which no float tells apart
            assert found == one or 2**53 + 1 in splits[0]
        else:
            assert found == pytest.approx(one, rel=1e-9)


@pytest.mark.parametrize(
    "aggregate", [agg.min("v"), agg.approx_quantile("v", 0.5), agg.max("v"), agg.mean("v")]
)
def test_a_split_of_nulls_says_nothing_of_the_type(aggregate: Any) -> None:
    values = [dt.datetime(2020, 1, day) for day in (1, 2, 3)]
    assert merged(aggregate, [None], values) == merged(aggregate, values, [None]) == merged(aggregate, values)


@pytest.mark.parametrize("aggregate", AGGREGATES[:1] + AGGREGATES[3:5], ids=lambda one: one.kind)
def test_text_and_numbers_in_two_splits_are_an_error(aggregate: Any) -> None:
    for other in ("x", True, b"x", dt.date(2020, 1, 1)):
        with pytest.raises(InvalidValue, match="column 'v' mixes "):
            merged(aggregate, [1], [other])


def test_groups_that_no_float_tells_apart_are_one() -> None:
    aggs = (("n", agg.count()),)
    a, b = (of_values(*values) for values in ((2**53, 2**53 + 1, 3), (0.5, float(2**53))))
    parts = [with_row_types(partial(rows.lazy(), (pl.col("v"),), aggs), rows.schema) for rows in (a, b)]
    for left, right in (parts, parts[::-1]):
        found = merge_pair(left, right, ("v",), aggs)
        assert found.select("v", "n:n").rows() == [(0.5, 1), (3.0, 1), (float(2**53), 3)]


@pytest.mark.parametrize("two_keys", [False, True])
def test_thousands_of_groups_that_become_one_take_few_merges(
    monkeypatch: pytest.MonkeyPatch, two_keys: bool
) -> None:
    aggs = (("n", agg.count()), ("last", agg.last("w", by="w")), ("top", agg.max("w")))
    numbers = [2**62 + number for number in range(5_000)] + [2**61 + number for number in range(7)] + [1]
    rows = pl.DataFrame({"v": numbers, "o": [7] * len(numbers), "w": range(len(numbers))})
    other = pl.DataFrame({"v": [0.5], "o": [7], "w": [-1]})
    keys = ("v", "o") if two_keys else ("v",)
    a, b = (
        with_row_types(partial(part.lazy(), [pl.col(key) for key in keys], aggs), part.schema)
        for part in (rows, other)
    )
    one = partial(
        rows.with_columns(pl.col("v").cast(pl.Float64)).vstack(other).lazy(),
        [pl.col(key) for key in keys],
        aggs,
    )
    merges = 0
    combined = align._combined

    def counting(*args: Any) -> pl.DataFrame:
        nonlocal merges
        merges += 1
        return combined(*args)

    monkeypatch.setattr(align, "_combined", counting)
    found = merge_pair(a, b, keys, aggs)
    assert merges <= 14
    assert found.drop(ROW_TYPES).equals(one.select(found.drop(ROW_TYPES).columns))
    assert found.equals(merge_pair(a, b, keys, aggs))


def test_decimals_of_two_scales_are_counted_by_value() -> None:
    counted = agg.approx_n_unique("v")
    assert (
        merged(counted, [Decimal("9.0"), Decimal("100")], [Decimal("9.00"), Decimal("0.25"), Decimal(100)])
        == 3
    )
    assert merged(agg.approx_n_unique("v"), [2**64, 2**63, 5], [5.0, float(2**63), float(2**64), 0.25]) == 4


# -- whole jobs ----------------------------------------------------------------------------------------------


@pytest.fixture(name="db")
def db_in_memory(functions_in_process: None) -> Iterator[of.Database]:  # noqa: F811
    with of.connect("memory://") as opened:
        yield opened


@pytest.mark.parametrize("values", [[[[0]], [[1]]], [[{"p": 0}], [{"p": 1}]], [[[1, 2]], [[1]]]], ids=repr)
def test_first_and_last_by_what_only_sorting_orders(db: of.Database, tmp_path: Path, values: Any) -> None:
    for number, held in enumerate(values):
        pl.DataFrame(
            {"k": [1], "b": held if isinstance(held[0], dict) else [held], "v": [number]}
        ).write_parquet(tmp_path / f"{number}.parquet")
    whole = pl.read_parquet(f"{tmp_path}/*.parquet").sort("b")
    data = db.read_parquet(f"{tmp_path}/*.parquet").group_by("k")
    for splits in (1, 2):
        job = data.agg(a=agg.first("v", by="b"), z=agg.last("v", by="b"), own=agg.first("b", by="k"))
        run = job.into(f"t{splits}").run(progress=False, workers=1, target_splits=splits)
        expected = (1, whole["v"][0], whole["v"][-1], whole["b"].to_list()[0])
        assert run.result().to_polars().rows() == [expected]


def test_a_count_of_what_no_column_holds_is_an_error(db: of.Database, tmp_path: Path) -> None:
    for name, rows in (("a", "9\n10\n"), ("b", "x7\n")):
        (tmp_path / f"{name}.txt").write_text(rows)

    def parsed(record: dict[str, Any]) -> dict[str, Any]:
        text = record["line"]
        return {"k": 1, "v": int(text) if text.isdigit() else text}

    data = db.read_text(f"{tmp_path}/*.txt").map(parsed)
    for number, job in enumerate(
        (data, data.group_by("k").agg(n=agg.count()), data.group_by("v").agg(n=agg.count()))
    ):
        for splits in (1, 2):
            dataset = job.into(f"{number} {splits}")
            with pytest.raises(of.JobFailed, match="column 'v'"):
                dataset.run(progress=False, workers=1, target_splits=splits)


def test_a_file_that_does_not_fit_what_is_there_fails_the_run(db: of.Database, tmp_path: Path) -> None:
    """A run is never done with a result that cannot be read: not with results of an earlier run either."""

    def parsed(record: dict[str, Any]) -> dict[str, Any]:
        text = record["line"]
        return {"k": 1, "v": int(text) if text.isdigit() else text}

    rows = db.read_text(f"{tmp_path}/*.txt").map(parsed)
    for table, job in (("rows", rows), ("groups", rows.group_by("k").agg(n=agg.count()))):
        (tmp_path / "a.txt").write_text("9\n")
        (tmp_path / "b.txt").unlink(missing_ok=True)
        job.into(table).run(progress=False, workers=1, target_splits=1)
        (tmp_path / "b.txt").write_text("x7\n")
        for _ in range(2):
            with pytest.raises(of.JobFailed, match="column 'v' mixes int, str, "):
                job.into(table).run(progress=False, workers=1)
        (tmp_path / "b.txt").write_text("7\n")
        assert len(job.into(table).run(progress=False, workers=1).result()) > 0


def test_the_types_of_a_partial_are_read_without_its_rows(tmp_path: Path) -> None:
    frame = pl.DataFrame(
        {
            "n": [1, 2],
            "same": [1, 2],
            "big": [2**40, None],
            "t": [VALUES["berlin"], None],
            "d": [Decimal("1.5"), None],
            "l": [[{"p": 1}], None],
            "e": pl.Series(["a", None], dtype=pl.Enum(["a"])),
            "c": pl.Series(["a", None], dtype=pl.Categorical),
            "z": [None, None],
        }
    )
    for height in (0, 2, 30_000):
        data = encode(with_row_types(frame.head(1).clear(height), frame.schema))
        (tmp_path / "partial").write_bytes(data)
        for held in (data, tmp_path / "partial"):
            assert read_head(held)[0] == decode(held).schema
            assert {name: str(dtype) for name, dtype in row_types(read_head(held)[0]).items()} == {
                name: str(dtype) for name, dtype in frame.schema.items()
            }
    for broken in (b"", b"OFP1", data[:40]):
        with pytest.raises(InvalidValue):
            read_head(broken)


@pytest.mark.parametrize("rows", [3, 30_000])
def test_some_columns_of_a_partial_are_read(rows: int) -> None:
    frame = pl.DataFrame({"a": range(rows), "b": ["x"] * rows, "": range(rows), "d": range(1, rows + 1)})
    data = encode(frame, ["a note"])
    for columns in (["a"], [""], ["d", "b"], ["b", "", "a"], ["nothing"], []):
        wanted = [name for name in frame.columns if name in columns]
        assert_frame_equal(decode(data, columns), frame.select(wanted))
    assert_frame_equal(decode(data), frame)
