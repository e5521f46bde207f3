"""Partial, merge and final of native aggregates equal Polars on the whole frame, however the rows are split."""

from __future__ import annotations

import datetime as dt
import itertools
import math
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

import onefold as of
from onefold import agg
from onefold.compute.aggregates import (
    Aggregate,
    decode,
    empty_partial,
    encode,
    final,
    frames,
    merge_all,
    merge_pair,
    partial,
    result_schema,
    totals,
    whole_sums,
)
from onefold.compute.results.merge import Leaf, merge_tree

NAN, INF = math.nan, math.inf
DAY = dt.datetime(2024, 5, 6, 7, 8, 9, 123457)


@pytest.fixture(autouse=True)
def nothing_is_doubted() -> None:
    frames._doubted.clear()


VALUES: dict[str, tuple[pl.DataType, list[Any]]] = {
    "i8": (pl.Int8(), [-128, 127, 0, 5]),
    "i16": (pl.Int16(), [-32768, 32767, 12]),
    "i32": (pl.Int32(), [2**31 - 1, -(2**31), 7]),
    "i64": (pl.Int64(), [2**62, 2**62 - 1, -5, 3]),
    "u8": (pl.UInt8(), [255, 0, 3]),
    "u16": (pl.UInt16(), [65535, 1]),
    "u32": (pl.UInt32(), [2**32 - 1, 9]),
    "u64": (pl.UInt64(), [2**63, 2**64 - 1, 1]),
    "i128": (pl.Int128(), [2**100, 2**99, 4]),
    "f32": (pl.Float32(), [0.5, -2.25, 1024.0]),
    "f64": (pl.Float64(), [0.1, -7.3, 1e9, 2.5]),
    "f64_special": (pl.Float64(), [NAN, INF, -0.0, 0.0, 1.0]),
    "f64_nan": (pl.Float64(), [NAN, NAN, 3.0, -1.0]),
    "bool": (pl.Boolean(), [True, False]),
    "decimal": (pl.Decimal(12, 3), [Decimal("12.345"), Decimal("-0.001"), Decimal("99999.999")]),
    "date": (pl.Date(), [dt.date(1969, 12, 31), dt.date(2024, 2, 29), dt.date(1900, 1, 1)]),
    "datetime": (pl.Datetime("us"), [DAY, dt.datetime(1960, 1, 1, 0, 0, 0, 1)]),
    "datetime_utc": (
        pl.Datetime("ms", "UTC"),
        [DAY.replace(tzinfo=dt.UTC), dt.datetime(2000, 1, 1, tzinfo=dt.UTC)],
    ),
    "duration": (pl.Duration("us"), [dt.timedelta(microseconds=-3), dt.timedelta(days=2)]),
    "time": (pl.Time(), [dt.time(23, 59, 59), dt.time(1)]),
    "string": (pl.String(), ["b", "", "ä", "a long string that is not inlined"]),
    "binary": (pl.Binary(), [b"\xff", b"", b"ab"]),
    "categorical": (pl.Categorical(), ["zebra", "ant", "bee"]),
    "enum": (pl.Enum(["z", "a", "m"]), ["z", "a", "m"]),
    "null": (pl.Null(), [None]),
}
ORDERED = {"count", "min", "max"}
MEAN = ORDERED | {"mean"}
NUMBERS = MEAN | {"sum", "std", "var"}
WORKS = {
    **dict.fromkeys(VALUES, NUMBERS),
    **dict.fromkeys(["date", "datetime", "datetime_utc", "time"], MEAN),
    "duration": MEAN | {"sum"},
    **dict.fromkeys(["string", "binary", "categorical", "enum"], ORDERED),
}


def aggregates(which: set[str]) -> list[tuple[str, Aggregate]]:
    every: list[tuple[str, str, Aggregate]] = [
        ("count", "rows", agg.count()),
        ("count", "present", agg.count("x")),
        ("sum", "sum", agg.sum("x")),
        ("mean", "mean", agg.mean("x")),
        ("min", "min", agg.min("x")),
        ("max", "max", agg.max("x")),
        ("std", "std", agg.std("x")),
        ("var", "var", agg.var("x")),
        ("var", "var0", agg.var("x", ddof=0)),
        ("std", "std3", agg.std("x", ddof=3)),
    ]
    return [(name, one) for kind, name, one in every if kind in which]


def oracle(which: set[str]) -> list[pl.Expr]:
    x = pl.col("x")
    every = [
        ("count", pl.len().alias("rows")),
        ("count", x.count().alias("present")),
        ("sum", x.sum().alias("sum")),
        ("mean", x.mean().alias("mean")),
        ("min", x.min().alias("min")),
        ("max", x.max().alias("max")),
        ("std", x.std().alias("std")),
        ("var", x.var().alias("var")),
        ("var", x.var(ddof=0).alias("var0")),
        ("std", x.std(ddof=3).alias("std3")),
    ]
    return [expr for kind, expr in every if kind in which]


def of_polars(rows: pl.DataFrame, which: set[str], keys: bool) -> pl.DataFrame:
    """What Polars gives, but sums that have wrapped around there are right here, in a wider type."""
    whole = "sum" in which and rows.schema["x"].is_integer()
    exprs = oracle(which) + ([pl.col("x").cast(pl.Int128).sum().alias("exact")] if whole else [])
    want = rows.group_by("k").agg(exprs).sort("k") if keys else rows.select(exprs)
    if not whole:
        return want
    if not want["sum"].cast(pl.Int128).equals(want["exact"]):
        wider = pl.Int64 if rows.schema["x"] in (pl.Int32, pl.UInt32) else pl.Int128
        want = want.with_columns(pl.col("exact").cast(wider).alias("sum"))
    return want.drop("exact")


def rows_of(name: str, seed: int, count: int = 120) -> pl.DataFrame:
    rng = random.Random(seed)
    dtype, pool = VALUES[name]
    values = [rng.choice([*pool, None]) for _ in range(count)]
    keys = [rng.choice(["a", "b", "c", None]) for _ in range(count)]
    keys = [f"rare{i}" if rng.random() < 0.1 else key for i, key in enumerate(keys)]
    return pl.DataFrame([pl.Series("k", keys, dtype=pl.String), pl.Series("x", values, dtype=dtype)])


def splits_of(frame: pl.DataFrame, seed: int, count: int) -> list[pl.DataFrame]:
    """Any rows to any split; some splits are empty."""
    rng = random.Random(seed)
    where = pl.Series(
        [rng.randrange(count) if rng.random() < 0.9 else 0 for _ in range(frame.height)], dtype=pl.Int64
    )
    return [frame.filter(where == i) for i in range(count)]


def assert_same(got: pl.DataFrame, want: pl.DataFrame, rel_tol: float = 1e-9) -> None:
    """Equal dtypes and values; a mean time within the unit that Polars' own floating-point mean can be off by."""
    assert got.schema == want.schema
    if "mean" in want.columns and want.schema["mean"].is_temporal():
        off = got["mean"].to_physical().cast(pl.Int64) - want["mean"].to_physical().cast(pl.Int64)
        assert off.abs().max() in (None, 0, 1)
        assert got["mean"].is_null().equals(want["mean"].is_null())
        got, want = got.drop("mean"), want.drop("mean")
    assert_frame_equal(got, want, check_exact=False, rel_tol=rel_tol, abs_tol=1e-9)


def through_tree(
    splits: list[pl.DataFrame], keys: list[pl.Expr], aggs: list[tuple[str, Aggregate]]
) -> pl.DataFrame:
    names = splits[0].select(keys).columns if keys else []
    partials = [decode(encode(partial(split.lazy(), keys, aggs))) for split in splits]
    leaves = {i: Leaf(f"leaf{i}", lambda frame=frame: frame) for i, frame in enumerate(partials)}
    merged = merge_tree(leaves, lambda a, b: merge_pair(a, b, names, aggs))
    assert merged is not None
    return final(merged, names, aggs)


def at_once(
    splits: list[pl.DataFrame], keys: list[pl.Expr], aggs: list[tuple[str, Aggregate]]
) -> pl.DataFrame | None:
    """As ``through_tree``, by ``merge_all``; None where that is not the way."""
    names = splits[0].select(keys).columns if keys else []
    partials = {i: decode(encode(partial(split.lazy(), keys, aggs))) for i, split in enumerate(splits)}
    merged = merge_all(partials, names, aggs)
    return final(merged, names, aggs) if merged is not None else None


@pytest.mark.moving(3)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", VALUES)
def test_any_split_of_any_dtype_equals_polars(name: str, seed: int) -> None:
    rows, aggs = rows_of(name, seed), aggregates(WORKS[name])
    want = of_polars(rows, WORKS[name], keys=True)
    got = through_tree(splits_of(rows, seed, 7), [pl.col("k")], aggs)
    few = rows.head(1).group_by("k").agg(oracle(WORKS[name]))
    assert few.schema == result_schema(rows.schema, [pl.col("k")], aggs)
    assert_same(got, want, 1e-6 if name == "f32" else 1e-9)


@pytest.mark.parametrize("name", VALUES)
def test_no_keys_gives_one_row(name: str) -> None:
    rows, aggs = rows_of(name, 5), aggregates(WORKS[name])
    want = of_polars(rows, WORKS[name], keys=False)
    got = through_tree(splits_of(rows, 5, 4), [], aggs)
    assert got.schema == want.schema
    assert_same(got, want, 1e-6 if name == "f32" else 1e-9)


@pytest.mark.parametrize("name", VALUES)
def test_no_rows(name: str) -> None:
    rows, aggs = rows_of(name, 5), aggregates(WORKS[name])
    nothing = rows.clear()
    assert_frame_equal(through_tree([nothing, nothing], [], aggs), nothing.select(oracle(WORKS[name])))
    assert through_tree([nothing, nothing], [pl.col("k")], aggs).height == 0
    empty = empty_partial(rows.schema, [], aggs)
    some = partial(rows.lazy(), [], aggs)
    assert_frame_equal(
        final(merge_pair(empty, some, [], aggs), [], aggs),
        final(some, [], aggs),
        check_exact=False,
        rel_tol=1e-12,
    )


SUMS: dict[str, tuple[list[list[Any]], Any]] = {
    "within a split": ([[2**62, 2**62], [2**62, 5]], pl.Int64),
    "across splits": ([[2**62], [2**62], [-1], [2**62]], pl.Int64),
    "there and back": ([[2**62, 2**62, 2**62], [-(2**62)], [-(2**62), -(2**62)]], pl.Int64),
    "below zero": ([[-(2**63), -1], [-(2**63)]], pl.Int64),
    "whole turns": ([[2**62] * 4, [2**62] * 4, [1]], pl.Int64),
    "just fits": ([[2**62], [2**62 - 1]], pl.Int64),
    "unsigned": ([[2**63, 2**63], [2**63, None]], pl.UInt64),
    "unsigned just fits": ([[2**63], [2**63 - 1]], pl.UInt64),
    "32 bits": ([[2**31 - 1, 2**31 - 1], [5]], pl.Int32),
    "unsigned of 32 bits": ([[2**32 - 1], [1]], pl.UInt32),
    "16 bits": ([[2**15 - 1] * 3, [2**15 - 1]], pl.Int16),
    "128 bits": ([[2**100, 2**100], [-(2**101)]], pl.Int128),
}


@pytest.mark.parametrize("case", SUMS)
@pytest.mark.parametrize("keys", [0, 1, 2])
def test_sums_never_wrap_around(case: str, keys: int) -> None:
    """``keys``: none, one for all rows, or one besides that the merges have to align."""
    splits, dtype = SUMS[case]
    frames = [
        pl.DataFrame({"x": values, "k": ["all"] * len(values)}, schema={"x": dtype, "k": pl.String})
        for values in splits
    ]
    if keys == 2:
        other = {"x": [1], "k": ["other"]}
        frames += [pl.DataFrame(other, schema=frames[0].schema)]
    want = sum(value for values in splits for value in values if value is not None)
    plain = frames[0].select(pl.col("x").sum()).schema["x"]
    for order in (frames, frames[::-1], [pl.concat(frames)]):
        by = [pl.col("k")] if keys else []
        got = through_tree(order, by, [("s", agg.sum("x")), ("m", agg.mean("x"))])
        assert got["s"][0] == want
        fits = pl.select(plain.min()).item() <= want <= pl.select(plain.max()).item()
        assert fits == (got.schema["s"] == plain)
        assert got["m"][0] == pytest.approx(
            want / sum(frame["x"].count() for frame in frames if frame["k"][0] == "all")
        )
        same = at_once(order, by, [("s", agg.sum("x"))])
        assert same is None or same["s"].to_list() == got["s"].to_list()


@pytest.mark.parametrize("dtype", [pl.Int64, pl.UInt64])
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_merged_at_once_never_wrap_around(dtype: Any, sign: int) -> None:
    for bits, taken in ((40, True), (62, False)):
        number = 2**bits * (sign if dtype == pl.Int64 else 2)
        frames = [
            pl.DataFrame({"x": [number, 5], "k": [1, 2 + i % 2]}, schema={"x": dtype, "k": pl.Int64})
            for i in range(4)
        ]
        by, aggs = [pl.col("k")], [("s", agg.sum("x"))]
        same = at_once(frames, by, aggs)
        assert (same is not None) == taken
        assert through_tree(frames, by, aggs)["s"].to_list() == [4 * number, 10, 10]
        assert same is None or same["s"].to_list() == [4 * number, 10, 10]


@pytest.mark.moving(3)
@pytest.mark.parametrize("seed", range(20))
def test_random_sums_are_those_of_python(seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice([pl.Int64, pl.UInt64, pl.Int32])
    low, high = pl.select(dtype.min()).item(), pl.select(dtype.max()).item()
    bits = rng.choice([8, 31, 60, 64])
    values = [max(low, min(high, rng.randint(-(2**bits), 2**bits))) for _ in range(40)]
    rows = pl.DataFrame(
        {"k": [rng.randrange(3) for _ in values], "x": values}, schema={"k": pl.Int64, "x": dtype}
    )
    want = {key: sum(v for k, v in rows.rows() if k == key) for key in set(rows["k"])}
    cuts = sorted(rng.sample(range(41), 4))
    splits = [rows[a:b] for a, b in itertools.pairwise([0, *cuts, 40])]
    got = through_tree(splits, [pl.col("k")], [("s", agg.sum("x")), ("n", agg.count())])
    assert dict(zip(got["k"], got["s"], strict=True)) == want


def test_keys_that_become_one_keep_their_sums_exact() -> None:
    wide = pl.DataFrame({"k": [2**53, 2**53 + 1], "x": [2**62, 2**62]})
    floats = pl.DataFrame({"k": [0.5], "x": [1]})
    got = through_tree([wide, floats], [pl.col("k")], [("s", agg.sum("x"))])
    assert got["s"].to_list() == [1, 2**63]


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([2**126, 2**126], pl.Int128),
        ([-(2**127), -1], pl.Int128),
        ([2**127, 2**127], pl.UInt128),
        ([2**128 - 1, 1], pl.UInt128),
        ([2**62, 2**62], pl.Duration("ns")),
        ([Decimal("9" * 38), Decimal("9" * 38)], pl.Decimal(38, 0)),
    ],
)
def test_sums_that_no_type_holds_are_errors(values: list[Any], dtype: Any, splits: int) -> None:
    rows = pl.DataFrame({"x": values}, schema={"x": dtype})
    with pytest.raises(of.InvalidValue, match=r"a sum is more than .* holds"):
        through_tree([rows] if splits == 1 else [rows[:1], rows[1:]], [], [("s", agg.sum("x"))])


@pytest.mark.parametrize("splits", [1, 2])
def test_means_of_wide_numbers(splits: int) -> None:
    def mean(values: list[int], dtype: Any) -> Any:
        rows = pl.DataFrame({"x": values}, schema={"x": dtype})
        parts = [rows] if splits == 1 else [rows[:1], rows[1:]]
        return through_tree(parts, [], [("m", agg.mean("x"))])["m"][0]

    for values in ([2**127, 2**127, 2**127 + 2**100], [2**128 - 1, 2**128 - 1], [2**70, 3]):
        assert mean(values, pl.UInt128) == pytest.approx(sum(values) / len(values))
    with pytest.raises(of.InvalidValue, match=r"a sum is more than .* holds"):
        mean([2**126, 2**126], pl.Int128)


def test_a_second_sum_that_is_too_far_off_is_an_error() -> None:
    """Of one that is a quarter of a turn off it is not known how often the sum has wrapped."""
    for off, wrong in ((0.2, False), (0.3, True), (-0.3, True), (1.2, False), (0.7, True)):
        state = {
            "s": pl.Series("s", [5], dtype=pl.Int64),
            "c": pl.Series("c", [1], dtype=pl.UInt64),
            "f": pl.Series("f", [5 + off * 2.0**64]),
        }
        if wrong:
            with pytest.raises(of.InvalidValue, match=r"a sum is more than"):
                whole_sums.settled(state)
        else:
            assert whole_sums.settled(state)["s"].to_list() == [5 + round(off) * 2**64]


def test_rows_are_read_once_where_no_sum_can_have_wrapped():
    read = []

    def note(frame):
        read.append(frame.height)
        return frame

    rows = pl.LazyFrame({"k": [1, 1, 2] * 100, "v": [5, -6, 7] * 100}).map_batches(
        note, streamable=True, validate_output_schema=False
    )
    made = partial(rows, [pl.col("k")], [("s", agg.sum("v"))])
    assert made["s:s"].to_list() == [-100, 700]
    assert sum(read) == 300


def test_splits_after_one_with_doubtful_sums_are_read_once() -> None:
    read: list[int] = []

    def split(number: int) -> pl.LazyFrame:
        def note(frame: pl.DataFrame) -> pl.DataFrame:
            read.append(frame.height)
            return frame

        rows = pl.LazyFrame({"k": [1, 1, 2], "v": [number, number, 7]})
        return rows.map_batches(note, streamable=True, validate_output_schema=False)

    by, reads, sums = [pl.col("k")], [], []
    for number in (2**62, 2**62, 2**61, 5, 5, 2**62):
        read.clear()
        made = partial(split(number), by, [("s", agg.sum("v")), ("m", agg.mean("v"))])
        assert made.columns[:3] == ["k", "s:s", "s:c"] and "s:f" not in made.columns
        reads.append(sum(read))
        sums.append(made["s:s"].to_list())
    assert reads == [6, 3, 3, 3, 3, 6]
    assert sums == [[2 * number, 7] for number in (2**62, 2**62, 2**61, 5, 5, 2**62)]


@pytest.mark.parametrize("more", [{}, {"u": agg.approx_n_unique("x")}, {"q": agg.approx_quantile("x", 0.5)}])
def test_rows_are_counted_once_when_sums_are_added_again(tmp_path: Path, more: dict[str, Aggregate]) -> None:
    (tmp_path / "in.csv").write_text("k,x\n" + f"a,{2**62}\n" * 6)
    with of.connect("memory://") as db:
        run = db.read_csv(tmp_path / "in.csv").group_by("k").agg(s=agg.sum("x"), **more).into("t")
        run = run.run(progress=False, workers=1)
        assert run.result().to_polars()["s"].to_list() == [6 * 2**62]
        assert run.progress().rows == 6


@pytest.mark.moving(3)
@pytest.mark.parametrize(
    "keys",
    [
        pl.Series("k", [0.0, -0.0, NAN, None, NAN, 1.5, -0.0, None]),
        pl.Series("k", ["x", "y", None, "x", "z", "", "y", None], dtype=pl.Categorical),
        pl.Series("k", ["z", "a", None, "z", "a", "m", "m", None], dtype=pl.Enum(["z", "a", "m"])),
        pl.Series("k", [True, False, None, True, False, None, True, True]),
        pl.Series("k", [dt.date(2020, 1, 1), None, dt.date(1960, 1, 1)] * 2 + [None, dt.date(2020, 1, 2)]),
        pl.Series("k", [1, -5, 3, 1, -5, 9, 2, 2], dtype=pl.Int16),
        pl.Series("k", [1, 2**63, 3, 1, 2**63, 9, 2, 2], dtype=pl.UInt64),
        pl.Series("k", [1, 2**70, 3, 1, 2**70, 9, None, 2], dtype=pl.Int128),
        pl.Series("k", [Decimal("1.5"), Decimal("2"), None, Decimal("1.50"), None, None, None, Decimal("3")]),
        pl.Series("k", [{"a": 1}, {"a": 2}, None, {"a": 1}, {"a": None}, {"a": None}, {"a": 3}, {"a": 2}]),
        pl.Series("k", [b"a", b"", None, b"a", b"", b"b", b"c", b"a"]),
    ],
    ids=lambda series: str(series.dtype).split("(", maxsplit=1)[0],
)
@pytest.mark.parametrize("seed", range(6))
def test_keys_of_every_kind(keys: pl.Series, seed: int) -> None:
    rows = pl.DataFrame([keys, pl.Series("x", range(8)), pl.Series("j", [1, 1, None, 1, 2, 2, 2, None])])
    want = rows.group_by("k").agg(pl.len().alias("n"), pl.col("x").sum()).sort("k")
    aggs = [("n", agg.count()), ("x", agg.sum("x"))]
    got = through_tree(splits_of(rows, seed, 4), [pl.col("k")], aggs)
    assert_frame_equal(got, want, check_row_order=False)
    two = rows.group_by("k", "j").agg(pl.len().alias("n"), pl.col("x").sum()).sort("k", "j")
    got = through_tree(splits_of(rows, seed, 3), [pl.col("k"), pl.col("j")], aggs)
    assert_frame_equal(got, two, check_row_order=False)


def test_negative_zero_is_the_key_zero() -> None:
    splits = [pl.DataFrame({"k": [-0.0], "x": [1]}), pl.DataFrame({"k": [0.0, -0.0], "x": [2, 3]})]
    got = through_tree(splits, [pl.col("k")], [("x", agg.sum("x"))])
    assert got.rows() == [(0.0, 6)] and math.copysign(1, got["k"][0]) == 1


def test_key_expressions_and_input_expressions() -> None:
    rows = rows_of("i16", 9)
    keys = [pl.col("k").str.len_chars().alias("size"), (pl.col("x") > 0).alias("up")]
    aggs = [("total", agg.sum(pl.col("x").cast(pl.Int64) * 2)), ("ones", agg.sum(pl.lit(1)))]
    want = (
        rows.with_columns(one=pl.lit(1))
        .group_by(keys)
        .agg((pl.col("x").cast(pl.Int64) * 2).sum().alias("total"), pl.col("one").sum().alias("ones"))
    )
    got = through_tree(splits_of(rows, 9, 5), keys, aggs)
    assert_frame_equal(got, want, check_row_order=False)


@pytest.mark.parametrize("offset", [0.0, 1e6, 1e9, 1e12])
@pytest.mark.parametrize("seed", [1, 2])
def test_variance_far_from_zero(offset: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = pl.DataFrame({"k": rng.integers(0, 3, 3000), "x": rng.random(3000) + offset})
    got = through_tree(splits_of(rows, seed, 16), [pl.col("k")], [("v", agg.var("x")), ("s", agg.std("x"))])
    for key, v, s in got.rows():
        exact = rows.filter(pl.col("k") == key)["x"].to_numpy().astype(np.longdouble)
        assert v == pytest.approx(float(exact.var(ddof=1)), rel=1e-9)
        assert s == pytest.approx(float(exact.std(ddof=1)), rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_merging_is_associative(seed: int) -> None:
    rows = rows_of("f64", seed)
    aggs = aggregates(NUMBERS)
    a, b, c = (partial(split.lazy(), [pl.col("k")], aggs) for split in splits_of(rows, seed, 3))
    left = merge_pair(merge_pair(a, b, ["k"], aggs), c, ["k"], aggs)
    right = merge_pair(a, merge_pair(b, c, ["k"], aggs), ["k"], aggs)
    assert_frame_equal(final(left, ["k"], aggs), final(right, ["k"], aggs), check_exact=False, rel_tol=1e-12)


def test_splits_with_a_column_of_nulls_only() -> None:
    typed = pl.DataFrame({"k": [1, 2, 2], "x": [1.5, None, 2.5]})
    untyped = pl.DataFrame({"k": [2, 3], "x": [None, None]})
    nothing = pl.DataFrame({"k": pl.Series([None], dtype=pl.Null), "x": [None]})
    whole = pl.concat([typed, untyped, nothing], how="vertical_relaxed")
    aggs = aggregates(NUMBERS)
    want = whole.group_by("k").agg(oracle(NUMBERS)).sort("k")
    for splits in (
        [typed, untyped, nothing],
        [nothing, untyped, typed],
        [untyped, nothing, typed, typed.clear()],
    ):
        assert_frame_equal(through_tree(splits, [pl.col("k")], aggs), want, check_exact=False)


def test_count_and_boolean_sum_beyond_32_bits_stay_right() -> None:
    huge = pl.DataFrame({"n:n": pl.Series([2**32 - 1], dtype=pl.UInt64)})
    aggs = [("n", agg.count())]
    assert final(huge, [], aggs).schema["n"] == pl.UInt32
    assert final(merge_pair(huge, huge, [], aggs), [], aggs)["n"].to_list() == [2**33 - 2]


def test_totals_are_what_intervals_need() -> None:
    rows = pl.DataFrame({"k": [1, 1, 2], "x": [1.5, None, 4.0]})
    aggs = [("n", agg.count()), ("s", agg.sum("x")), ("m", agg.mean("x")), ("top", agg.max("x"))]
    state = partial(rows.lazy(), [pl.col("k")], aggs)
    assert totals(state, ["k"], aggs, "n").rows() == [(1, 2.0, 2.0), (2, 1.0, 1.0)]  # type: ignore[union-attr]
    for name in ("s", "m"):
        assert totals(state, ["k"], aggs, name).rows() == [(1, 1.5, 1.0), (2, 4.0, 1.0)]  # type: ignore[union-attr]
    assert totals(state, ["k"], aggs, "top") is None
