"""Datasets: every method makes a plan and runs nothing, and every mistake shows at the line that makes it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import polars as pl
import polars.selectors as cs
import pytest

from onefold import agg, window
from onefold.compute.dataset import SEED_DEFAULT, Dataset
from onefold.compute.plan.nodes import (
    Explode,
    Filter,
    FlatMap,
    GroupAggregate,
    Into,
    Job,
    Join,
    Map,
    MapBatches,
    MapReduce,
    Select,
    Source,
    Union,
    WithColumns,
    WriteParquet,
)
from onefold.errors import InvalidArgument, InvalidPlan


@dataclass
class Recorder:
    """Keeps what it is asked to start."""

    started: list[tuple[str, Job, dict[str, Any]]] = field(default_factory=list)

    def start(self, job: Job, **options: Any) -> str:
        self.started.append(("start", job, options))
        return "run"

    def run(self, job: Job, *, progress: bool = True, **options: Any) -> str:
        self.started.append(("run", job, {"progress": progress, **options}))
        return "run"


SOURCE = Source("text", ("docs/*.txt",))


@pytest.fixture
def ds() -> Dataset:
    return Dataset(SOURCE, Recorder())


def one(record: Any) -> Any:
    return record


def two(key: Any, values: Any) -> Any:
    return key, values


async def later(record: Any) -> Any:
    return record


async def many_later(record: Any) -> Any:
    yield record


def many(record: Any) -> Any:
    yield record


class Callable1:
    def __call__(self, record: Any) -> Any:
        return record

    def method(self, record: Any) -> Any:
        return record


class CallableMany:
    def __call__(self, record: Any) -> Any:
        yield record


def test_the_example_of_the_contract(ds: Dataset) -> None:
    words = (
        ds.select(pl.col("line").str.extract_all(r"\w+").alias("word"))
        .explode("word")
        .filter(pl.col("word").str.len_chars() > 2)
        .group_by("word")
        .agg(n=agg.count(), longest=agg.max(pl.col("word").str.len_chars()))
        .into("word_counts", mode="continue", version=None, keep=None)
    )
    group = words.job.plan
    assert isinstance(group, GroupAggregate)
    assert [name for name, _ in group.aggs] == ["n", "longest"]
    assert [key.meta.output_name() for key in group.keys] == ["word"]
    steps = []
    node: Any = group.input
    while not isinstance(node, Source):
        steps.append(type(node))
        node = node.input
    assert steps == [Filter, Explode, Select]
    assert words.job.sink == Into("word_counts")
    assert words.explain().splitlines() == [
        "read_text docs/*.txt",
        r'select col("line").str.extract_all(["\w+"]).alias("word")',
        "explode word",
        'filter [(col("word").str.len_chars()) > (dyn int: 2)]',
        words.explain().splitlines()[4],
        "into table 'word_counts' (mode continue)",
    ]


def test_a_dataset_does_not_change(ds: Dataset) -> None:
    ds.filter(pl.col("line") == "x").map(one)
    assert ds.node is SOURCE
    with pytest.raises(AttributeError):
        ds.node = SOURCE  # type: ignore[misc]


def test_columns_by_name_expression_list_and_keyword(ds: Dataset) -> None:
    node = ds.select("a", pl.col("b"), ["c", cs.starts_with("d")], e=pl.col("f"), g="h", i=1, j=None).node
    assert isinstance(node, Select)
    assert [str(expr) for expr in node.exprs[:3]] == ['col("a")', 'col("b")', 'col("c")']
    assert [expr.meta.output_name() for expr in node.exprs[4:]] == ["e", "g", "i", "j"]
    with_node = ds.with_columns(total=pl.col("a") + 1, kind=pl.lit("x"), when=timedelta(days=1)).node
    assert isinstance(with_node, WithColumns)
    assert [expr.meta.output_name() for expr in with_node.exprs] == ["total", "kind", "when"]
    filter_node = ds.filter(pl.col("a") > 1, pl.col("b"), city="Bern").node
    assert isinstance(filter_node, Filter)
    assert str(filter_node.predicates[2]) == '[(col("city")) == ("Bern")]'


@pytest.mark.parametrize(
    "fn", [one, later, Callable1(), Callable1().method, len, str, lambda r: r, print, dict]
)
def test_functions_that_can_be_mapped(ds: Dataset, fn: Callable[..., Any]) -> None:
    assert isinstance(ds.map(fn).node, Map)
    assert isinstance(ds.flat_map(fn).node, FlatMap)


def test_schemas_take_polars_and_python_types(ds: Dataset) -> None:
    expected = (("n", pl.Int64()), ("s", pl.String()), ("l", pl.List(pl.Int8)))
    for given in ({"n": pl.Int64, "s": str, "l": pl.List(pl.Int8)}, pl.Schema(expected), list(expected)):
        node = ds.map(one, schema=given).node
        assert isinstance(node, Map)
        assert node.schema == expected
        assert all(isinstance(dtype, pl.DataType) for _, dtype in node.schema or ())


def test_batches_unions_joins_and_map_reduce(ds: Dataset) -> None:
    other = Dataset(Source("csv", ("b.csv",)), Recorder())
    batches = ds.map_batches(one, batch_rows=100).node
    assert isinstance(batches, MapBatches)
    assert batches.batch_rows == 100
    union = ds.union(other).union(ds, other).node
    assert isinstance(union, Union)
    assert union.inputs == (SOURCE, other.node, SOURCE, other.node)
    join = ds.join(other, on="k", how="left").node
    assert isinstance(join, Join)
    assert (join.left, join.right, join.on, join.how) == (SOURCE, other.node, ("k",), "left")
    assert ds.join(other, on=["k", "l"]).node == Join(SOURCE, other.node, ("k", "l"), "inner")
    reduce = ds.map_reduce(map=many, reduce=two, combine=two, partitions=4).node
    assert reduce == MapReduce(SOURCE, many, two, two, 4)


def test_polars_aggregates_are_taken(ds: Dataset) -> None:
    node = (
        ds.group_by("k")
        .agg(pl.len(), pl.col("x").sum(), pl.col("x").mean().alias("m"), top=pl.col("x").max())
        .node
    )
    assert isinstance(node, GroupAggregate)
    assert [name for name, _ in node.aggs] == ["len", "x", "m", "top"]
    assert [item.kind for _, item in node.aggs] == ["count", "sum", "mean", "max"]
    nothing = ds.group_by().agg(n=agg.count()).node
    assert isinstance(nothing, GroupAggregate)
    assert nothing.keys == ()


def test_keys_may_be_expressions(ds: Dataset) -> None:
    node = (
        ds.group_by("a", pl.col("t").dt.truncate("1d"), length=pl.col("s").str.len_chars())
        .agg(n=pl.len())
        .node
    )
    assert isinstance(node, GroupAggregate)
    assert [key.meta.output_name() for key in node.keys] == ["a", "t", "length"]


def test_starting_passes_options_on(ds: Dataset) -> None:
    recorder = ds.starter
    assert isinstance(recorder, Recorder)
    job = ds.into("t")
    assert job.start(workers=0, target_splits=3) == "run"
    assert job.run(progress=False, seed=9, on_error="skip", max_attempts=1) == "run"
    defaults = {
        "workers": None,
        "seed": SEED_DEFAULT,
        "target_splits": None,
        "on_error": "fail",
        "max_attempts": 4,
    }
    assert recorder.started == [
        ("start", job.job, {**defaults, "workers": 0, "target_splits": 3}),
        ("run", job.job, {**defaults, "progress": False, "seed": 9, "on_error": "skip", "max_attempts": 1}),
    ]


def test_sinks(ds: Dataset) -> None:
    assert ds.into("t", "replace", "v1", "7d").job.sink == Into("t", "replace", "v1", 604800.0)
    assert ds.write_parquet("out/", "day").job.sink == WriteParquet("out/", ("day",))
    assert ds.write_parquet("out", ["a", "b"], "replace_partitions", "2").job == Job(
        SOURCE, WriteParquet("out", ("a", "b"), "replace_partitions", "2")
    )
    assert ds.write_parquet("out").job.table == "parquet:out"


def test_help_shows_the_plan(ds: Dataset) -> None:
    other = Dataset(
        Source("csv", ("b.csv",), (("separator", ";"), ("storage_options", {"key": "secret"}))), ds.starter
    )
    shown = repr(
        ds.map(one).join(other.filter(pl.col("k") > 1), on="k").union(ds).map(functools.partial(two, 1))
    )
    assert shown == (
        "<Dataset\n"
        "input 1 of union:\n"
        "  left side of join:\n"
        "    read_text docs/*.txt\n"
        "    map one\n"
        "  right side of join:\n"
        "    read_csv b.csv, separator=';'\n"
        '    filter [(col("k")) > (dyn int: 1)]\n'
        "  join on k (inner)\n"
        "input 2 of union:\n"
        "  read_text docs/*.txt\n"
        "union of 2\n"
        "map two\n"
        ">"
    )
    assert "call .agg(...)" in repr(ds.group_by("a"))
    assert "into table 't' (mode error, version 'x')" in repr(ds.into("t", "error", "x"))


Mistake = tuple[Callable[[Dataset], Any], type[Exception], str]

MISTAKES: list[Mistake] = [
    (lambda d: d.select(), InvalidArgument, "select needs at least one expression"),
    (lambda d: d.select([]), InvalidArgument, "select needs at least one expression"),
    (lambda d: d.with_columns(), InvalidArgument, "with_columns needs"),
    (lambda d: d.filter(), InvalidArgument, "filter needs"),
    (lambda d: d.select(pl.lit(1)), InvalidPlan, "only constants.*with_columns"),
    (lambda d: d.select(pl.col("x").sum()), InvalidPlan, r"select: an aggregate \(sum\)"),
    (lambda d: d.with_columns(pl.col("x").shift()), InvalidPlan, "with_columns: shift"),
    (lambda d: d.filter(pl.col("x") > pl.col("x").mean()), InvalidPlan, r"filter: an aggregate \(mean\)"),
    (lambda d: d.select("a", pl.col("b").alias("a")), InvalidPlan, "column 'a' is made twice"),
    (lambda d: d.with_columns("a", a=1), InvalidPlan, "column 'a' is made twice"),
    (lambda d: d.select(one), InvalidArgument, r"not functions; use \.map\(fn\) for one"),
    (lambda d: d.select(pl.when(pl.col("a"))), InvalidArgument, r"needs \.then"),
    (lambda d: d.select(pl.Series([1])), InvalidPlan, "literal Series"),
    (lambda d: d.select(object()), InvalidArgument, "select takes expressions"),
    (lambda d: d.explode(), InvalidArgument, "explode needs at least one column"),
    (lambda d: d.explode(pl.col("a")), InvalidArgument, "explode takes the names of columns"),
    (lambda d: d.explode("a", "a"), InvalidArgument, "'a' is given twice"),
    (lambda d: d.map(3), InvalidArgument, "map takes a function of one record; got 3"),
    (
        lambda d: d.map(two),
        InvalidArgument,
        r"map calls its function with one record, but two has the signature",
    ),
    (lambda d: d.map(lambda: 1), InvalidArgument, "map calls its function with one record"),
    (lambda d: d.map(many), InvalidArgument, r"many yields.*use \.flat_map"),
    (lambda d: d.map(CallableMany()), InvalidArgument, "yields"),
    (lambda d: d.map(functools.partial(many)), InvalidArgument, "yields"),
    (lambda d: d.map(many_later), InvalidArgument, "async generator"),
    (lambda d: d.flat_map(many_later), InvalidArgument, "async generator"),
    (lambda d: d.map_batches(later), InvalidArgument, "async"),
    (lambda d: d.map_batches(many), InvalidArgument, "yields"),
    (
        lambda d: d.map_batches(one, batch_rows=0),
        InvalidArgument,
        "batch_rows must be a whole number of at least 1",
    ),
    (lambda d: d.map(one, schema={"a": "text"}), InvalidArgument, "schema"),
    (lambda d: d.map(one, schema={}), InvalidArgument, "no columns"),
    (lambda d: d.map(one, schema=3), InvalidArgument, "schema must be columns"),
    (
        lambda d: d.map_reduce(map=many, reduce=one),
        InvalidArgument,
        "reduce calls its function with a key and its values",
    ),
    (lambda d: d.map_reduce(map=many, reduce=later), InvalidArgument, "reduce"),
    (lambda d: d.map_reduce(map=many, reduce=two, combine=1), InvalidArgument, "combine takes a function"),
    (lambda d: d.map_reduce(map=many, reduce=two, partitions=0), InvalidArgument, "partitions"),
    (lambda d: d.group_by(pl.col("x").sum()), InvalidPlan, "group_by: an aggregate"),
    (lambda d: d.group_by(cs.string()), InvalidPlan, "name each key"),
    (lambda d: d.group_by(pl.lit(1)), InvalidPlan, "constant"),
    (lambda d: d.group_by("a", "a"), InvalidPlan, "made twice"),
    (
        lambda d: d.group_by(window.tumbling("1m"), "a"),
        InvalidArgument,
        r"write \.window\(\.\.\.\), and then",
    ),
    (lambda d: d.group_by("a").agg(), InvalidArgument, "agg needs at least one aggregate"),
    (lambda d: d.group_by("a").agg("x"), InvalidArgument, r"not an aggregate; use onefold\.agg \(count, sum"),
    (lambda d: d.group_by("a").agg(n="x"), InvalidArgument, "n='x'.*not an aggregate"),
    (lambda d: d.group_by("a").agg(agg.count()), InvalidArgument, "needs a name"),
    (lambda d: d.group_by("a").agg(n=one), InvalidArgument, "not an aggregate"),
    (lambda d: d.group_by("a").agg(a=agg.count()), InvalidPlan, "'a' is taken"),
    (lambda d: d.group_by("a").agg(pl.len(), len=agg.count()), InvalidPlan, "'len' is taken"),
    (lambda d: d.group_by("a").agg(n=agg.sum(pl.col("x").rank())), InvalidPlan, "agg 'n': rank"),
    (lambda d: d.group_by("a").agg(pl.col("x").median()), InvalidPlan, ""),
    (lambda d: d.group_by("a").agg(n=agg.count()).filter("a"), InvalidPlan, r"filter cannot follow \.agg"),
    (lambda d: d.union(), InvalidArgument, "union needs another dataset"),
    (lambda d: d.union(3), InvalidArgument, "union takes another dataset"),
    (lambda d: d.union(d.group_by("a").agg(n=agg.count())), InvalidPlan, r"union cannot follow \.agg"),
    (lambda d: d.join(pl.DataFrame(), on="a"), InvalidArgument, "join takes another dataset"),
    (
        lambda d: d.join(d, on="a", how="outer"),
        InvalidArgument,
        "how must be one of 'inner', 'left'; got 'outer'",
    ),
    (lambda d: d.join(d, on=[]), InvalidArgument, "at least one column"),
    (lambda d: d.join(d, on=pl.col("a")), InvalidArgument, "join"),
    (lambda d: d.join(d, on="a", within="10s"), InvalidArgument, "within"),
    (lambda d: d.into(""), InvalidArgument, "table must be text that is not empty"),
    (lambda d: d.into("a/b"), InvalidArgument, "slashes"),
    (lambda d: d.into("a\nb"), InvalidArgument, "control characters"),
    (lambda d: d.into(" a"), InvalidArgument, "space"),
    (lambda d: d.into("x" * 300), InvalidArgument, "longer than 200 bytes"),
    (lambda d: d.into(3), InvalidArgument, "table must be text"),
    (
        lambda d: d.into("t", mode="append"),
        InvalidArgument,
        "mode must be one of 'continue', 'replace', 'error'",
    ),
    (lambda d: d.into("t", version=""), InvalidArgument, "version must be text"),
    (lambda d: d.into("t", version=2), InvalidArgument, "version must be text"),
    (lambda d: d.into("t", keep="soon"), InvalidArgument, "keep must be a duration"),
    (lambda d: d.write_parquet(3), InvalidArgument, "path must be a folder"),
    (lambda d: d.write_parquet("o", mode="error"), InvalidArgument, "mode must be one of"),
    (lambda d: d.write_parquet("o", mode="replace_partitions"), InvalidArgument, "needs partition_by"),
    (lambda d: d.write_parquet("o", ["a", "a"]), InvalidArgument, "given twice"),
    (
        lambda d: d.into("t").start(workers=-1),
        InvalidArgument,
        "workers must be a whole number of at least 0",
    ),
    (lambda d: d.into("t").start(seed="x"), InvalidArgument, "seed"),
    (lambda d: d.into("t").start(target_splits=0), InvalidArgument, "target_splits"),
    (
        lambda d: d.into("t").start(on_error="ignore"),
        InvalidArgument,
        "on_error must be one of 'fail', 'skip'",
    ),
    (lambda d: d.into("t").run(max_attempts=0), InvalidArgument, "max_attempts"),
    (lambda d: d.into("t").run(max_attempts=True), InvalidArgument, "max_attempts"),
]


@pytest.mark.parametrize(("mistake", "error", "words"), MISTAKES)
def test_mistakes_show_at_once(ds: Dataset, mistake: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        mistake(ds)
    assert re.search(words, str(caught.value)), str(caught.value)
    assert isinstance(ds.starter, Recorder)
    assert ds.starter.started == []


def test_credentials_are_shown_nowhere() -> None:
    from onefold.compute.sources import make_source

    source = make_source("parquet", "s3://b/x.parquet", storage_options={"key": "K", "secret": "TOPSECRET"})
    assert "TOPSECRET" not in repr(source) + repr(Dataset(source, None)) + Dataset(source, None).explain()  # type: ignore[arg-type]
