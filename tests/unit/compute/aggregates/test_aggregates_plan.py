"""What a plan asks of aggregates: identity, parsing, schemas, and errors that name the column."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import cloudpickle
import polars as pl
import pytest

from onefold import agg
from onefold.compute.aggregates import (
    Aggregate,
    decode,
    encode,
    from_polars,
    merge_pair,
    partial,
    result_schema,
)
from onefold.errors import InvalidArgument, InvalidPlan, InvalidValue

SCHEMA = pl.Schema({"k": pl.Int64, "x": pl.Float32, "s": pl.String, "tags": pl.List(pl.String)})


@pytest.mark.parametrize(
    ("expr", "name", "same"),
    [
        (pl.len(), "len", agg.count()),
        (pl.len().alias("n"), "n", agg.count()),
        (pl.col("x").len(), "x", agg.count()),
        (pl.col("x").count(), "x", agg.count("x")),
        (pl.col("x").sum(), "x", agg.sum("x")),
        (pl.sum("x").alias("a").alias("b"), "b", agg.sum("x")),
        ((pl.col("x") * 2 + pl.col("k")).mean().alias("m"), "m", agg.mean(pl.col("x") * 2 + pl.col("k"))),
        (pl.col("x").alias("y").min(), "y", agg.min(pl.col("x").alias("y"))),
        (pl.col("s").str.len_chars().max(), "s", agg.max(pl.col("s").str.len_chars())),
    ],
    ids=range(9),
)
def test_plain_polars_aggregations_are_taken(expr: pl.Expr, name: str, same: Aggregate) -> None:
    assert from_polars(expr) == (name, same)


@pytest.mark.parametrize(
    "expr",
    [
        pl.col("x"),
        pl.col("x").sum() + 1,
        pl.col("x").median(),
        pl.col("x").n_unique(),
        pl.col("x").std(),
        pl.col("x").first(),
        pl.col("x").nan_min(),
        pl.col("x").sum().over("k"),
        pl.col("x", "k").sum(),
        pl.all().sum(),
        pl.col("x").sum().name.suffix("_total"),
        pl.lit(1),
        "x",
    ],
    ids=str,
)
def test_anything_else_is_not(expr: Any) -> None:
    with pytest.raises(InvalidPlan, match=r"onefold\.agg"):
        from_polars(expr)


EVERY: list[Aggregate] = [
    agg.count(),
    agg.count("x"),
    agg.sum("x"),
    agg.mean("x"),
    agg.min("x"),
    agg.max("x"),
    agg.std("x"),
    agg.std("x", ddof=0),
    agg.var("x"),
    agg.first("x"),
    agg.first("x", by="k"),
    agg.last("x"),
    agg.approx_n_unique("x"),
    agg.approx_quantile("x", 0.5),
    agg.approx_quantile("x", 0.9),
    agg.most_frequent("x", 2),
    agg.most_frequent("x", 3),
    agg.sum(pl.col("x") + 1),
    agg.fold(int, max, max, col="x"),
    agg.fold(int, max, max),
]


@pytest.mark.parametrize("one", EVERY, ids=lambda one: one.kind)
def test_equal_means_the_same_and_survives_pickling(one: Aggregate) -> None:
    copy = cloudpickle.loads(cloudpickle.dumps(one))
    assert copy == one and hash(copy) == hash(one)
    assert [other for other in EVERY if other == one] == [one]
    kind, expressions, functions, options = one.describe()
    assert kind == one.kind and expressions == one.expressions() and functions == one.functions()
    assert isinstance(options, tuple)
    with pytest.raises(AttributeError):
        one.kind2 = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("one", "message"),
    [
        (agg.sum("s"), "total"),
        (agg.std("s"), "total"),
        (agg.mean("tags"), "total"),
        (agg.approx_quantile("s", 0.5), "total"),
        (agg.approx_n_unique("tags"), "total"),
        (agg.sum("nothing"), "nothing"),
        (agg.max(pl.col("s").dt.year()), "total"),
    ],
)
def test_schema_errors_name_the_column(one: Aggregate, message: str) -> None:
    with pytest.raises(InvalidPlan, match=message):
        result_schema(SCHEMA, [pl.col("k")], [("total", one)])


def test_schema_errors_of_keys_and_names() -> None:
    count = ("n", agg.count())
    with pytest.raises(InvalidPlan, match="missing"):
        result_schema(SCHEMA, [pl.col("missing")], [count])
    with pytest.raises(InvalidPlan, match="twice"):
        result_schema(SCHEMA, [pl.col("k").alias("n")], [count])
    with pytest.raises(InvalidPlan, match="another name"):
        result_schema(SCHEMA, [pl.col("k").alias("n:n")], [count])
    with pytest.raises(InvalidPlan, match="without keys"):
        result_schema(SCHEMA, [], [])


def test_names_that_look_like_states_of_others() -> None:
    rows = pl.LazyFrame({"k": [1, 1], "x": [1.5, 2.5]})
    aggs = [("a", agg.mean("x")), ("a:s", agg.sum("x")), ("a:s:s", agg.count())]
    state = partial(rows, [pl.col("k")], aggs)
    from onefold.compute.aggregates import final

    assert final(merge_pair(state, state, ["k"], aggs), ["k"], aggs).rows() == [(1, 2.0, 8.0, 4)]


@pytest.mark.parametrize(
    "make",
    [
        lambda: agg.sum(3),  # type: ignore[arg-type]
        lambda: agg.sum(pl.col("a", "b")),
        lambda: agg.approx_quantile("x", 1.5),
        lambda: agg.approx_quantile("x", "half"),  # type: ignore[arg-type]
        lambda: agg.most_frequent("x", 0),
        lambda: agg.std("x", ddof=-1),
        lambda: agg.fold(0, max, max),  # type: ignore[arg-type]
    ],
)
def test_arguments_that_make_no_sense(make: Any) -> None:
    with pytest.raises(InvalidArgument):
        make()


def test_partials_that_do_not_fit_or_do_not_decode() -> None:
    aggs = [("top", agg.max("x"))]
    a = partial(pl.LazyFrame({"k": [1], "x": ["text"]}), [pl.col("k")], aggs)
    b = partial(
        pl.LazyFrame({"k": [1], "x": [True]}).with_columns(x=pl.lit(timedelta(1))), [pl.col("k")], aggs
    )
    with pytest.raises(InvalidPlan, match="do not fit together"):
        merge_pair(a, b, ["k"], aggs)
    with pytest.raises(InvalidValue, match="cannot be read"):
        decode(b"not a frame")
    assert decode(encode(a)).equals(a)


def test_decode_reads_files(tmp_path: Any) -> None:
    for height in (3, 30_000):
        frame = pl.DataFrame({"k": range(height)})
        (tmp_path / "blob").write_bytes(encode(frame))
        assert decode(tmp_path / "blob").equals(frame)


def test_small_partials_fit_into_a_record() -> None:
    rows = pl.DataFrame({"k": range(2000), "x": [float(i) for i in range(2000)]})
    data = encode(partial(rows.lazy(), [pl.col("k")], [("n", agg.count()), ("s", agg.sum("x"))]))
    assert len(data) < 32 * 1024
    assert data == encode(decode(data))
