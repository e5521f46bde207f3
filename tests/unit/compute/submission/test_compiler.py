"""From plans to stages: how joins are made, what the columns are, and every mistake that needs them."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from onefold import agg, config
from onefold.compute.dataset import Dataset, PreparedJob
from onefold.compute.plan.nodes import Job, Map, Source
from onefold.compute.plan.schemas import schema_after
from onefold.compute.plan.stages import (
    Branch,
    BroadcastJoin,
    JoinLeaf,
    MapOutput,
    PartialOutput,
    PublishOutput,
    ReduceLeaf,
    RowsOutput,
    ShuffleOutput,
    SourceLeaf,
    Stage,
)
from onefold.compute.submission.compiler import Compiled, compile_job, python_stages
from onefold.errors import InvalidPlan

BIG = config.BROADCAST_BYTES_MAX + 1
SCHEMAS: dict[str, dict[str, Any]] = {
    "orders": {"id": pl.Int64(), "city": pl.String(), "price": pl.Float64(), "tags": pl.List(pl.String)},
    "cities": {"city": pl.String(), "country": pl.String(), "price": pl.Int64()},
    "more": {"price": pl.Float64(), "id": pl.Int64(), "tags": pl.List(pl.String), "city": pl.String()},
    "lines": {"line": pl.String()},
}


def read(name: str) -> Dataset:
    return Dataset(Source("parquet", (name,)), None)  # type: ignore[arg-type]


def compiled(job: Dataset | PreparedJob, **sizes: int) -> Compiled:
    if isinstance(job, Dataset):
        job = job.into("t")
    return compile_job(
        job.job,
        schema_of=lambda source: tuple(SCHEMAS[source.paths[0]].items()),
        bytes_of=lambda source: sizes.get(source.paths[0], 1000),
    )


def one(record: Any) -> Any:
    return record


def two(key: Any, values: Any) -> Any:
    return values


def kinds(branch: Branch) -> list[str]:
    return [type(step).__name__ for step in branch.steps]


def leaf(name: str) -> SourceLeaf:
    return SourceLeaf(Source("parquet", (name,)), tuple(SCHEMAS[name].items()))


def test_rows_of_one_source() -> None:
    result = compiled(
        read("orders").filter(pl.col("id") > 1).with_columns(double=pl.col("price") * 2).explode("tags")
    )
    (stage,) = result.stages
    assert stage.output == RowsOutput()
    assert stage.needs == ()
    assert stage.branches[0].leaf == leaf("orders")
    assert kinds(stage.branches[0]) == ["Filter", "WithColumns", "Explode"]
    assert result.columns == ("id", "city", "price", "tags", "double")
    assert dict(result.schema or ())["tags"] == pl.String
    assert result.sources == (Source("parquet", ("orders",)),)


def test_steps_do_not_carry_the_plan_below_them() -> None:
    dataset = read("orders")
    for _ in range(2000):
        dataset = dataset.filter(pl.col("id") > 1)
    result = compiled(dataset)
    assert len(result.stages[0].branches[0].steps) == 2000
    assert all(not hasattr(step.input, "input") for step in result.stages[0].branches[0].steps)  # type: ignore[union-attr]


def test_aggregates_end_a_plan() -> None:
    result = compiled(
        read("orders").group_by("city", year=pl.col("id") // 10).agg(n=agg.count(), s=agg.sum("price"))
    )
    (stage,) = result.stages
    assert isinstance(stage.output, PartialOutput)
    assert [name for name, _ in stage.output.aggs] == ["n", "s"]
    assert result.columns == ("city", "year", "n", "s")
    assert dict(result.schema or ()) == {"city": pl.String, "year": pl.Int64, "n": pl.UInt32, "s": pl.Float64}
    assert (
        compiled(read("orders").group_by().agg(f=agg.fold(list, lambda a, b: a, lambda a, b: a))).schema
        is None
    )
    assert compiled(read("orders").group_by().agg(n=agg.count())).columns == ("n",)


def test_a_union_has_branches_with_one_order_of_columns() -> None:
    result = compiled(read("orders").union(read("more").filter(pl.col("id") > 1)).map(one))
    (stage,) = result.stages
    assert [branch.leaf for branch in stage.branches] == [leaf("orders"), leaf("more")]
    assert kinds(stage.branches[0]) == ["Map"]
    assert kinds(stage.branches[1]) == ["Filter", "Select", "Map"]
    assert [source.paths[0] for source in result.sources] == ["orders", "more"]
    assert result.columns is None


def test_the_small_right_side_is_broadcast() -> None:
    result = compiled(
        read("orders").join(read("cities").filter(pl.col("country") == "CH"), on="city"), orders=BIG
    )
    small, final = result.stages
    assert small.output == RowsOutput()
    assert kinds(small.branches[0]) == ["Filter"]
    assert final.needs == (0,)
    assert final.branches[0].leaf == leaf("orders")
    assert final.branches[0].steps == (BroadcastJoin(0, ("city",), "inner", "right"),)
    assert result.columns == ("id", "city", "price", "tags", "country", "price_right")


def test_the_small_left_side_of_an_inner_join_is_broadcast() -> None:
    result = compiled(read("orders").join(read("cities"), on="city"), cities=BIG)
    small, final = result.stages
    assert small.branches[0].leaf == leaf("orders")
    assert final.branches[0].leaf == leaf("cities")
    assert final.branches[0].steps == (BroadcastJoin(0, ("city",), "inner", "left"),)
    assert result.columns == ("id", "city", "price", "tags", "country", "price_right")


@pytest.mark.parametrize(("how", "orders"), [("inner", BIG), ("left", BIG), ("left", 10)])
def test_other_joins_are_shuffled(how: Any, orders: int) -> None:
    joined = read("orders").join(read("cities"), on="city", how=how).filter(pl.col("price_right") > 1)
    result = compiled(joined, orders=orders, cities=BIG)
    left, right, final = result.stages
    partitions = config.SHUFFLE_PARTITIONS_DEFAULT
    assert left.output == right.output == ShuffleOutput(("city",), partitions)
    assert final.needs == (0, 1)
    assert final.branches[0].leaf == JoinLeaf(0, 1, ("city",), how, partitions)
    assert kinds(final.branches[0]) == ["Filter"]
    assert result.columns == ("id", "city", "price", "tags", "country", "price_right")


def test_joins_nest_and_union() -> None:
    inner = read("orders").join(read("cities"), on="city").select("id", "country")
    result = compiled(
        inner.join(inner.union(read("orders").select("id", country="city")), on="id").union(
            inner.with_columns(country_right="country")
        ),
        orders=BIG,
        cities=BIG,
    )
    for stage in result.stages:
        assert all(need < stage.index for need in stage.needs)
    final = result.stages[-1]
    assert [type(branch.leaf).__name__ for branch in final.branches] == ["JoinLeaf", "JoinLeaf"]
    assert final.needs == tuple(
        sorted({leaf for branch in final.branches for leaf in (branch.leaf.left, branch.leaf.right)})
    )  # type: ignore[union-attr]
    sides = [
        stage
        for stage in result.stages
        if len(stage.branches) == 2 and isinstance(stage.output, ShuffleOutput)
    ]
    assert [type(branch.leaf).__name__ for branch in sides[0].branches] == ["JoinLeaf", "SourceLeaf"]
    assert len(result.sources) == 7


def test_map_reduce_takes_two_stages_and_rows_follow() -> None:
    result = compiled(
        read("lines")
        .map_reduce(map=one, reduce=two, partitions=5)
        .filter(pl.col("value") > 1)
        .group_by("key")
        .agg(n=pl.len())
    )
    mapped, reduced = result.stages
    assert mapped.output == MapOutput(one, None, 5)
    assert reduced.branches[0].leaf == ReduceLeaf(0, two, 5)
    assert reduced.needs == (0,)
    assert kinds(reduced.branches[0]) == ["Filter"]
    assert result.columns == ("key", "n")
    assert compiled(read("lines").map_reduce(map=one, reduce=two)).columns == ("key", "value")


def test_publishing_is_a_stage_of_its_own() -> None:
    result = compiled(read("orders").write_parquet("out", "city", "append"))
    rows, publish = result.stages
    assert rows.output == RowsOutput()
    assert publish == Stage(1, (), PublishOutput("out", ("city",), "append"), (0,))


def test_which_stages_call_python() -> None:
    mapped = read("lines").map(one, schema={"id": pl.Int64, "x": pl.Int64})
    plain = read("orders")
    assert python_stages(compiled(plain.join(mapped, on="id")).stages) == {0}
    assert python_stages(compiled(mapped.join(plain, on="id")).stages) == {1}
    assert python_stages(compiled(read("lines").map_reduce(map=one, reduce=two)).stages) == {0, 1}
    assert python_stages(compiled(plain.group_by("id").agg(n=agg.count())).stages) == set()
    folded = plain.group_by("id").agg(n=agg.fold(list, lambda a, b: a, lambda a, b: a))
    assert python_stages(compiled(folded).stages) == {0}


@pytest.mark.parametrize(
    ("dataset", "columns", "known"),
    [
        (read("lines").map(one), None, False),
        (read("lines").map(one, schema={"a": pl.Int64}), ("a",), True),
        (read("lines").map(one).select("a", b=pl.col("c") + 1), ("a", "b"), False),
        (read("lines").map(one).select("a").with_columns(d=pl.col("a")), ("a", "d"), False),
        (read("lines").map(one).with_columns(d=pl.col("a")), None, False),
        (read("lines").map(one).select(pl.all()), None, False),
        (
            read("lines").map(one).select("id", "y").join(read("orders"), on="id"),
            ("id", "y", "city", "price", "tags"),
            False,
        ),
    ],
)
def test_columns_as_far_as_they_are_known(
    dataset: Dataset, columns: tuple[str, ...] | None, known: bool
) -> None:
    result = compiled(dataset)
    assert result.columns == columns
    assert (result.schema is not None) == known


MISTAKES: list[tuple[Callable[[], Dataset | PreparedJob], str]] = [
    (lambda: read("orders").select("x"), "select: column 'x' is not there; there are: 'id', 'city', 'price', 'tags'"),
    (lambda: read("orders").select("id").filter(pl.col("city") == "x"), "filter: column 'city' is not there; there are: 'id'"),
    (lambda: read("orders").with_columns(pl.col("city") + pl.col("id").dt.year()), "with_columns: .*the columns are: 'id' Int64"),
    (lambda: read("orders").filter(pl.col("id") + 1), r"filter: .* is Int64, but a filter needs true or false"),
    (lambda: read("orders").explode("city"), "explode: column 'city' is String, not a list"),
    (lambda: read("orders").explode("x"), "explode: column 'x' is not there"),
    (lambda: read("orders").select(pl.col("id"), pl.col("^i.*$")), "select: .*'?id'?"),
    (lambda: read("orders").select(pl.col(pl.Date)), "select: no columns are left"),
    (lambda: read("orders").union(read("cities")), "union: input 2 lacks 'id', 'tags' and has 'country' more than input 1"),
    (lambda: read("orders").union(read("more").with_columns(pl.col("id").cast(pl.Int8))),
     "union: column 'id' is Int64 in input 1 but Int8 in input 2"),
    (lambda: read("orders").join(read("cities"), on="id"), "join: on the right side column 'id' is not there; there are: 'city'"),
    (lambda: read("cities").join(read("orders"), on="id"), "join: on the left side column 'id' is not there"),
    (lambda: read("orders").join(read("cities"), on="price"), "join: column 'price' is Float64 on the left and Int64 "),
    (lambda: read("orders").with_columns(x_right="id", x="id").join(read("orders").with_columns(x="id"), on="id"),
     "join on id: .*right"),
    (lambda: read("orders").group_by("x").agg(n=agg.count()), "group_by: column 'x' is not there"),
    (lambda: read("orders").group_by("id").agg(n=agg.sum("x")), "agg 'n': column 'x' is not there"),
    (lambda: read("orders").group_by("id").agg(n=agg.sum(pl.col("city").dt.year())), "agg 'n': "),
    (lambda: read("orders").write_parquet("o", "x"), "write_parquet: partition_by: column 'x' is not there"),
    (lambda: read("orders").select("id").write_parquet("o", "id"), "takes all columns"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "words"), MISTAKES)
def test_mistakes_name_the_step_and_the_column(make: Any, words: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        compiled(make())
    assert re.search(words, str(caught.value)), str(caught.value)


def test_steps_after_aggregates_are_refused_in_the_compiler_too() -> None:
    group = read("orders").group_by("id").agg(n=agg.count()).node
    with pytest.raises(InvalidPlan, match="ends a plan"):
        compile_job(
            Job(Map(group, one), read("orders").into("t").job.sink),
            schema_of=lambda _: (),
            bytes_of=lambda _: 0,
        )


def test_schema_after_stops_at_a_function_without_a_schema() -> None:
    schema = tuple(SCHEMAS["orders"].items())
    node: Any = read("orders").filter(pl.col("id") > 1).select("id").node
    assert schema_after(schema, [node.input, node]) == (("id", pl.Int64()),)
    assert schema_after(schema, [read("orders").map(one).node, node]) is None  # type: ignore[list-item]
    assert schema_after(None, [node]) is None


# -- the stages mean what the plan means ---------------------------------------------------------------------


def frame(rng: random.Random, name: str) -> pl.DataFrame:
    rows = rng.randrange(0, 12)
    made: dict[str, list[Any]] = {
        "id": [rng.randrange(4) for _ in range(rows)],
        "city": [rng.choice(["a", "b", None]) for _ in range(rows)],
        "price": [float(rng.randrange(9)) for _ in range(rows)],
        "tags": [[str(rng.randrange(3)) for _ in range(rng.randrange(3))] for _ in range(rows)],
        "country": [rng.choice(["x", "y"]) for _ in range(rows)],
        "line": ["l"] * rows,
    }
    schema = SCHEMAS[name]
    return pl.DataFrame({column: made[column] for column in schema}, schema=schema, strict=False)


def execute(stages: Sequence[Stage], frames: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Run stages of rows with Polars alone: a small executor, to hold the compiler against."""
    results: list[pl.DataFrame] = []
    for stage in stages:
        parts = []
        for branch in stage.branches:
            match branch.leaf:
                case SourceLeaf(source=source):
                    rows = frames[source.paths[0]]
                case JoinLeaf() as join:
                    rows = results[join.left].join(results[join.right], on=list(join.on), how=join.how)
                case _:
                    raise AssertionError
            for step in branch.steps:
                match step:
                    case BroadcastJoin(small_is="right"):
                        rows = rows.join(results[step.stage], on=list(step.on), how=step.how)
                    case BroadcastJoin():
                        rows = results[step.stage].join(rows, on=list(step.on), how=step.how)
                    case _:
                        rows = apply(step, rows)
            parts.append(rows)
        results.append(pl.concat(parts))
    return results[-1]


def apply(step: Any, rows: pl.DataFrame) -> pl.DataFrame:
    match type(step).__name__:
        case "Select":
            return rows.select(*step.exprs)
        case "WithColumns":
            return rows.with_columns(*step.exprs)
        case "Filter":
            return rows.filter(*step.predicates)
        case "Explode":
            return rows.explode(*step.columns)
    raise AssertionError(step)


PLANS: list[Callable[[], Dataset]] = [
    lambda: read("orders").join(read("cities"), on="city"),
    lambda: read("orders").join(read("cities"), on="city", how="left").filter(pl.col("country") == "x"),
    lambda: (
        read("orders")
        .union(read("more"))
        .explode("tags")
        .join(read("cities").select("city", "country"), on="city")
    ),
    lambda: (
        read("cities")
        .join(read("orders").union(read("more")), on="city")
        .with_columns(s=pl.col("price_right") + 1)
    ),
    lambda: read("orders").join(read("more"), on=["id", "city"]).select("id", "price", "price_right"),
    lambda: (
        read("orders")
        .join(read("cities"), on="city")
        .join(read("more").select("id", "tags"), on="id", how="left")
    ),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("number", range(len(PLANS)))
def test_all_ways_to_join_give_the_same_rows_and_columns(number: int, seed: int) -> None:
    rng = random.Random(seed)
    frames = {name: frame(rng, name) for name in SCHEMAS}
    results = []
    for big in ([], ["orders"], ["cities"], ["more"], list(SCHEMAS)):
        result = compiled(PLANS[number](), **dict.fromkeys(big, BIG))
        rows = execute(result.stages, frames)
        assert tuple(rows.schema.items()) == result.schema
        results.append(rows)
    for other in results[1:]:
        assert_frame_equal(other, results[0], check_row_order=False)
