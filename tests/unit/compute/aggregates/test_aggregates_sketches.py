"""Sketches, picks and folds: exact where they promise it, within their bounds elsewhere, whatever the splits."""

from __future__ import annotations

import datetime as dt
import math
import random
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onefold import agg
from onefold.compute.aggregates import (
    ORDER_COLUMN,
    Aggregate,
    decode,
    distinct_bounds,
    encode,
    final,
    kll,
    merge_pair,
    partial,
    quantile_count,
    quantile_rank,
    quantile_states,
    quantile_value,
    result_schema,
)

Aggs = list[tuple[str, Aggregate]]
KEY = [pl.col("k")]


def splits_of(frame: pl.DataFrame, seed: int, count: int) -> list[pl.DataFrame]:
    rng = random.Random(seed)
    where = pl.Series([rng.randrange(count - 1) for _ in range(frame.height)], dtype=pl.Int64)
    return [frame.filter(where == i) for i in range(count)]


def merged(splits: list[pl.DataFrame], keys: list[pl.Expr], aggs: Aggs) -> pl.DataFrame:
    names = ["k"] if keys else []
    partials = [decode(encode(partial(split.lazy(), keys, aggs))) for split in splits]
    while len(partials) > 1:
        pairs = [partials[i : i + 2] for i in range(0, len(partials), 2)]
        partials = [merge_pair(*pair, names, aggs) if len(pair) == 2 else pair[0] for pair in pairs]
    return partials[0]


def through(splits: list[pl.DataFrame], keys: list[pl.Expr], aggs: Aggs) -> pl.DataFrame:
    return final(merged(splits, keys, aggs), ["k"] if keys else [], aggs)


def numbered(frame: pl.DataFrame) -> pl.DataFrame:
    """With the place of each row, over two files with two units each."""
    row = pl.int_range(frame.height)
    place = pl.struct(
        path=pl.when(row < 50).then(pl.lit("b.csv")).otherwise(pl.lit("a.csv")),
        start=pl.when(row < 50).then(row // 25 * 500).otherwise(1000 - row // 25 * 250),
        row=row % 25,
    )
    return frame.with_columns(place.alias(ORDER_COLUMN))


def picked(seed: int) -> pl.DataFrame:
    rng = random.Random(seed)
    return numbered(
        pl.DataFrame(
            {
                "k": [rng.choice("abcd") for _ in range(100)],
                "x": [rng.choice([None, 1, 2, 3]) for _ in range(100)],
                "t": [rng.choice([None, 0.5, 7.0, math.nan, 8.0, 9.0]) for _ in range(100)],
            }
        )
    )


@pytest.mark.moving(3)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("keys", [KEY, []], ids=["keys", "no keys"])
def test_first_and_last_by_file_and_row(seed: int, keys: list[pl.Expr]) -> None:
    rows = picked(seed)
    aggs: Aggs = [("f", agg.first("x")), ("l", agg.last("x"))]
    by = pl.col("x").sort_by(ORDER_COLUMN)
    exprs = [by.first().alias("f"), by.last().alias("l")]
    want = rows.group_by(keys).agg(exprs).sort("k") if keys else rows.select(exprs)
    assert_frame_equal(through(splits_of(rows, seed, 30), keys, aggs), want)
    assert all(one.needs_order for _, one in aggs)


@pytest.mark.parametrize("seed", range(5))
def test_first_and_last_by_a_column(seed: int) -> None:
    rows = picked(seed).drop(ORDER_COLUMN)
    aggs: Aggs = [
        ("f", agg.first("x", by="t")),
        ("l", agg.last("x", "t")),
        ("o", agg.last("t", by=-pl.col("x"))),
    ]
    known = rows.drop_nulls("t")
    want = {}
    for key in "abcd":
        group = known.filter(k=key)
        up = group.sort("t", "x", nulls_last=True)
        down = group.sort("t", "x", descending=True, nulls_last=True)
        best = rows.filter(k=key).drop_nulls("x").sort(-pl.col("x"), "t", descending=True, nulls_last=True)
        want[key] = (up["x"][0], down["x"][0], best["t"][0])
    got = through(splits_of(rows, seed, 5), KEY, aggs)
    assert {row[0]: str(row[1:]) for row in got.rows()} == {key: str(row) for key, row in want.items()}
    assert not any(one.needs_order for _, one in aggs)


def test_a_group_without_by_has_no_first() -> None:
    rows = pl.DataFrame({"k": [1, 2], "x": [1, 2], "t": [None, 3]}, schema_overrides={"t": pl.Int64})
    assert through([rows, rows], KEY, [("f", agg.first("x", by="t"))]).rows() == [(1, None), (2, 2)]


DISTINCT: dict[str, pl.Series] = {
    "i64": pl.Series([1, -5, None, 2**62]),
    "u64": pl.Series([1, 2**64 - 1, None, 2**63], dtype=pl.UInt64),
    "f64": pl.Series([0.0, -0.0, math.nan, None, 1.5]),
    "string": pl.Series(["a", "", None, "ä"]),
    "binary": pl.Series([b"a", b"\xff\x00", None]),
    "bool": pl.Series([True, False, None]),
    "date": pl.Series([dt.date(2020, 1, 1), dt.date(1960, 1, 1), None]),
    "decimal": pl.Series(["1.50", "2.25", None]).cast(pl.Decimal(10, 2)),
    "categorical": pl.Series(["x", "y", None], dtype=pl.Categorical),
    "i128": pl.Series([2**100, 2**101, None], dtype=pl.Int128),
}


@pytest.mark.parametrize("name", DISTINCT)
def test_few_distinct_values_are_counted_exactly(name: str) -> None:
    rng = random.Random(3)
    rows = pl.DataFrame({"k": [rng.randrange(6) for _ in range(60)]}).with_columns(
        x=DISTINCT[name].gather([rng.randrange(len(DISTINCT[name])) for _ in range(60)])
    )
    want = rows.group_by("k").agg(u=pl.col("x").n_unique()).sort("k")
    assert_frame_equal(through(splits_of(rows, 3, 6), KEY, [("u", agg.approx_n_unique("x"))]), want)


@pytest.mark.parametrize("seed", [1, 2])
def test_many_distinct_values_are_within_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = pl.DataFrame({"k": rng.integers(0, 2, 30_000), "x": rng.integers(0, 20_000, 30_000)})
    aggs: Aggs = [("u", agg.approx_n_unique("x"))]
    state = merged(splits_of(rows, seed, 5), KEY, aggs)
    exact = rows.group_by("k").agg(pl.col("x").n_unique()).sort("k")["x"]
    for true, (_, value), (_, low, high) in zip(
        exact,
        final(state, ["k"], aggs).rows(),
        distinct_bounds(state, ["k"], aggs, "u", 3).rows(),
        strict=True,
    ):
        assert value == pytest.approx(true, rel=0.06)
        assert low <= true <= high


MEASURES: dict[str, tuple[pl.DataType, list[Any]]] = {
    "i16": (pl.Int16(), [-5, 7, 30000]),
    "f64": (pl.Float64(), [0.5, -1.0, math.nan, 9.0]),
    "f32": (pl.Float32(), [0.1, 3.7]),
    "decimal": (pl.Decimal(10, 2), ["1.25", "7.50"]),
    "date": (pl.Date(), [dt.date(2020, 1, 1), dt.date(1950, 1, 1)]),
    "datetime": (
        pl.Datetime("ms", "UTC"),
        [dt.datetime(2020, 1, 1, tzinfo=dt.UTC), dt.datetime(1950, 1, 1, tzinfo=dt.UTC)],
    ),
    "duration": (pl.Duration("us"), [dt.timedelta(1), dt.timedelta(-3), dt.timedelta(9)]),
    "time": (pl.Time(), [dt.time(1), dt.time(2)]),
}


@pytest.mark.moving(3)
@pytest.mark.parametrize("q", [0.0, 0.1, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", MEASURES)
def test_small_groups_have_exact_quantiles(name: str, q: float) -> None:
    rng = random.Random(f"{name}{q}")
    dtype, pool = MEASURES[name]
    values = [rng.choice([*pool, None]) for _ in range(90)]
    series = pl.Series(values).cast(dtype) if name == "decimal" else pl.Series(values, dtype=dtype)
    rows = pl.DataFrame({"k": [rng.randrange(12) for _ in range(90)], "x": series})
    aggs: Aggs = [("q", agg.approx_quantile("x", q))]
    want = rows.group_by("k").agg(q=pl.col("x").quantile(q, interpolation="nearest")).sort("k")
    assert_frame_equal(through(splits_of(rows, 1, 4), KEY, aggs), want)
    assert_frame_equal(
        through(splits_of(rows, 1, 4), [], aggs), rows.select(q=pl.col("x").quantile(q, "nearest"))
    )
    assert result_schema(rows.schema, KEY, aggs) == want.schema


@pytest.mark.moving(2)
@pytest.mark.parametrize("shape", ["uniform", "sorted", "few values", "lognormal"])
@pytest.mark.parametrize("splits", [2, 40])
def test_large_groups_have_a_small_rank_error(shape: str, splits: int) -> None:
    rng = np.random.default_rng(len(shape))
    values = {
        "uniform": rng.random(60_000),
        "sorted": np.arange(60_000.0),
        "few values": rng.integers(0, 50, 60_000).astype(float),
        "lognormal": rng.lognormal(0, 3, 60_000),
    }[shape]
    rows = pl.DataFrame({"k": np.arange(60_000) % 2, "x": values})
    aggs: Aggs = [("q", agg.approx_quantile("x", 0.9))]
    cut = 60_000 // splits
    state = merged([rows[i : i + cut] for i in range(0, 60_000, cut)], KEY, aggs)
    assert len(encode(state)) < 40_000
    for key, data, n in quantile_states(state, ["k"], "q").rows():
        exact = np.sort(rows.filter(k=key)["x"].to_numpy())
        assert n == quantile_count(data) == len(exact)
        for q in (0.0, 0.01, 0.25, 0.5, 0.9, 0.99, 1.0):
            found = quantile_value(data, q)
            low, high = np.searchsorted(exact, found, "left"), np.searchsorted(exact, found, "right")
            assert low / n - 0.015 <= q <= high / n + 0.015
            assert quantile_rank(data, found) == pytest.approx(high / n, abs=0.015)
        assert final(state, ["k"], aggs).filter(k=key)["q"][0] == quantile_value(data, 0.9)


def test_a_quantile_sketch_is_a_function_of_its_input() -> None:
    rows = pl.DataFrame({"x": np.random.default_rng(1).random(50_000)})
    aggs: Aggs = [("q", agg.approx_quantile("x", 0.5))]
    first, again = (
        encode(partial(rows.sample(fraction=1, shuffle=True, seed=s).lazy(), [], aggs)) for s in (1, 2)
    )
    assert first == again


def test_quantile_states_of_empty_and_small_groups() -> None:
    rows = pl.DataFrame({"k": [1, 1, 1, 2], "x": [3, 1, 2, None]})
    states = quantile_states(partial(rows.lazy(), KEY, [("q", agg.approx_quantile("x", 0.5))]), ["k"], "q")
    small, empty = states["state"].to_list()
    assert [quantile_rank(small, x) for x in (0, 1, 2.5, 3)] == [0.0, 1 / 3, 2 / 3, 1.0]
    assert (quantile_value(small, 0.5), quantile_count(small)) == (2.0, 3)
    assert (
        quantile_value(empty, 0.5) is None
        and math.isnan(quantile_rank(empty, 1.0))
        and quantile_count(empty) == 0
    )
    assert kll.to_bytes(kll.from_bytes(small)) == small


@pytest.mark.parametrize("seed", range(3))
def test_most_frequent_is_exact_for_few_values(seed: int) -> None:
    rng = random.Random(seed)
    rows = pl.DataFrame(
        {
            "k": [rng.randrange(5) for _ in range(400)],
            "x": [rng.choice(["a", "b", "c", "d", "e", None]) for _ in range(400)],
        }
    )
    aggs: Aggs = [("top", agg.most_frequent("x", 3))]
    got = through(splits_of(rows, seed, 6), KEY, aggs)
    assert got.schema == result_schema(rows.schema, KEY, aggs)
    for key, top in got.rows():
        counts = Counter(rows.filter(k=key)["x"].drop_nulls().to_list())
        best = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:3]
        assert [(one["value"], one["count"]) for one in top] == best


def test_most_frequent_finds_heavy_values_among_many() -> None:
    rng = np.random.default_rng(5)
    values = np.where(rng.random(60_000) < 0.3, rng.integers(0, 5, 60_000), rng.integers(10, 50_000, 60_000))
    rows = pl.DataFrame({"x": values})
    [(top,)] = through(splits_of(rows, 5, 9), [], [("top", agg.most_frequent("x", 5))]).rows()
    counts = Counter(values.tolist())
    assert {one["value"] for one in top} == {0, 1, 2, 3, 4}
    for one in top:
        assert counts[one["value"]] <= one["count"] <= counts[one["value"]] + 60_000 / 1025


def test_most_frequent_of_nothing_is_an_empty_list() -> None:
    rows = pl.DataFrame({"k": [1, 1], "x": [None, None]}, schema_overrides={"x": pl.String})
    assert through([rows, rows.clear()], KEY, [("top", agg.most_frequent("x", 2))]).rows() == [(1, [])]


class Longest:
    """A state of the user's own class."""

    def __init__(self, text: str = "") -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Longest) and other.text == self.text

    __hash__ = None  # type: ignore[assignment]


def test_fold_of_rows_and_of_values() -> None:
    rows = pl.DataFrame({"k": [1, 2, 1, 1], "x": ["a", "bbb", "cc", None], "y": [1, 2, 3, 4]})

    def longer(state: Longest, value: str | None) -> Longest:
        return Longest(value) if value and len(value) > len(state.text) else state

    aggs: Aggs = [
        (
            "total",
            agg.fold(lambda: 0, lambda s, row: s + row["y"] * row["k"], lambda a, b: a + b, dtype=pl.Int64),
        ),
        ("set", agg.fold(list, lambda s, x: [*s, x] if x else s, lambda a, b: sorted(a + b), col="x")),
        ("longest", agg.fold(Longest, longer, lambda a, b: longer(a, b.text), col="x")),
    ]
    got = through([rows[:1], rows[1:3], rows[3:]], KEY, aggs)
    assert got["total"].to_list() == [8, 4] and got.schema["total"] == pl.Int64
    assert got["set"].to_list() == [["a", "cc"], ["bbb"]]
    assert got["longest"].to_list() == [Longest("cc"), Longest("bbb")]
    schema = result_schema(rows.schema, KEY, aggs)
    assert schema["total"] == pl.Int64 and schema["set"] == pl.Unknown
    assert through([rows.clear(), rows.clear()], [], aggs)["total"].to_list() == [0]


def test_an_error_of_the_users_function_comes_out_as_it_is() -> None:
    rows = pl.DataFrame({"x": [1, 0]})
    with pytest.raises(ZeroDivisionError):
        partial(
            rows.lazy(),
            [],
            [("f", agg.fold(lambda: 0, lambda s, x: s + 1 // x, lambda a, b: a + b, col="x"))],
        )
