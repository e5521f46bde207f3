"""The types that inference gives a task's columns are part of its name: of the columns that it uses, and no others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.jobs import state
from onefold.compute.plan.nodes import Explode, Filter, Map, Node, Select, Source, WithColumns
from onefold.compute.plan.stages import Branch, BroadcastJoin, PartialOutput, RowsOutput, SourceLeaf
from onefold.compute.plan.used_types import used_types
from onefold.compute.submission.submit import decode_inputs
from support.in_process import functions_in_process  # noqa: F401

AT = Node()
SCHEMA = (("a", pl.Int64()), ("b", pl.String()), ("c", pl.List(pl.Int64())), ("d", pl.Datetime("ms", "UTC")))
ALL = ["a", "b", "c", "d"]


def used(*steps: Any, keys: tuple[pl.Expr, ...] | None = (pl.col("k"),), **aggs: Any) -> list[str]:
    """The columns of SCHEMA whose types count, of a branch with these steps; ``keys=None``: its rows are the result."""
    output = RowsOutput() if keys is None else PartialOutput(keys, tuple(aggs.items()))
    found = used_types(Branch(SourceLeaf(Source("csv", ("x",)), SCHEMA), steps), output)
    assert dict(found).items() <= {name: repr(dtype) for name, dtype in SCHEMA}.items()
    return [name for name, _ in found]


def test_only_columns_that_the_steps_read_count() -> None:
    a, b = pl.col("a"), pl.col("b")
    none = {"keys": ()}
    assert used(keys=None) == ALL
    assert used(keys=(), n=agg.count()) == []
    assert used(keys=(b,), n=agg.count()) == ["b"]
    assert used(keys=(b,), n=agg.sum(a + 1)) == ["a", "b"]
    assert used(keys=(b,), n=agg.first("a", by="d")) == ["a", "b", "d"]
    assert used(Filter(AT, (a > 1,)), **none, n=agg.count()) == ["a"]
    assert used(Explode(AT, ("c",)), **none, n=agg.count()) == ["c"]
    assert used(Select(AT, (a, b)), keys=None) == ["a", "b"]
    assert used(Select(AT, (a, b.alias("x"))), keys=(pl.col("x"),), n=agg.count()) == ["b"]
    assert used(WithColumns(AT, (a.alias("b"),)), keys=(b,), n=agg.count()) == ["a"]
    assert used(WithColumns(AT, ((a + b).alias("b"),)), keys=(b,), n=agg.count()) == ["a", "b"]
    assert used(WithColumns(AT, (a.alias("x"),)), keys=(b,), n=agg.count()) == ["b"]
    assert used(WithColumns(AT, (a.alias("x"),)), keys=None) == ALL


def test_what_may_read_any_column_counts_all() -> None:
    def fold() -> Any:
        return agg.fold(int, lambda state, _: state, lambda left, _: left)

    assert used(Map(AT, dict), keys=(pl.col("b"),), n=agg.count()) == ALL
    assert used(Select(AT, (cs.numeric(),)), keys=(pl.col("b"),), n=agg.count()) == ALL
    assert used(Select(AT, (pl.sum_horizontal(cs.numeric()).alias("x"),)), keys=None) == ALL
    assert used(keys=(pl.struct(pl.all()).alias("k"),), n=agg.count()) == ALL
    assert used(Filter(AT, (pl.max_horizontal(pl.col("^[ab]$")) > 1,)), keys=(), n=agg.count()) == ALL
    assert used(keys=(), n=fold()) == ALL


def test_both_sides_of_a_join_count() -> None:
    join = BroadcastJoin(0, ("a",), "inner")
    assert used(join, keys=(pl.col("label"),), n=agg.count()) == ["a"]
    # What the other side calls b is b_right because this side has a b.
    assert used(join, keys=(pl.col("b_right"),), n=agg.count()) == ["a", "b"]
    assert used(Select(AT, (pl.col("a"), pl.col("d"))), join, keys=(pl.col("b"),), n=agg.count()) == ["a"]


# -- second runs ---------------------------------------------------------------------------------------------


pytestmark = pytest.mark.usefixtures("functions_in_process")


@pytest.fixture(name="db")
def db_in_memory() -> Iterator[of.Database]:
    with of.connect("memory://") as opened:
        yield opened


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as CSV or JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [
            ",".join(rows[0]),
            *(",".join(map(str, row.values())) for row in rows if None not in row.values()),
        ]
        path.write_text("\n".join(lines) + "\n")


ZIPS = [[{"zip": "01234", "v": 9}], [{"zip": "K1A", "v": 10}, {"zip": "01234", "v": 3}]]
SIZES = [[{"zip": "x", "v": 9}, {"zip": "x", "v": 10}], [{"zip": "x", "v": "q"}]]
NULLS = [[{"zip": "x", "v": None}], [{"zip": "x", "v": 9}], [{"zip": "x", "v": 10}]]


def added(rows: Any) -> Any:
    return {"zip": str(rows["zip"]), "v": rows["v"]}


def pairs(row: Any) -> Any:
    yield str(row["zip"]), 1


JOBS: dict[str, Callable[[of.Database, of.Dataset], of.Dataset]] = {
    "rows": lambda _, data: data,
    "keys": lambda _, data: data.group_by("zip").agg(n=agg.count()),
    "extremes": lambda _, data: data.group_by("zip").agg(low=agg.min("v"), high=agg.max("v")),
    "texts": lambda _, data: data.select(z=pl.col("zip").cast(pl.String)).group_by("z").agg(n=agg.count()),
    "map": lambda _, data: data.map(added).group_by("zip").agg(n=agg.count()),
    "map_batches": lambda _, data: data.map_batches(
        lambda frame: frame.select(pl.col("zip").cast(pl.String))
    ),
    "union": lambda _, data: data.union(data.filter(pl.col("v").is_not_null())),
    "joined": lambda _, data: (
        data.join(data.select("zip", other="v"), on="zip").group_by("other").agg(n=agg.count())
    ),
}


def result(dataset: of.Dataset, table: str, **into: Any) -> pl.DataFrame:
    run = dataset.into(table, **into).run(progress=False, workers=1, target_splits=3)
    return run.result().to_polars()


def same(one: pl.DataFrame, other: pl.DataFrame) -> bool:
    return one.schema == other.schema and sorted(map(repr, one.rows())) == sorted(map(repr, other.rows()))


@pytest.mark.moving(3)
@pytest.mark.parametrize("version", [None, "1"])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize(
    ("kind", "files"), [("csv", ZIPS), ("csv", SIZES), ("jsonl", ZIPS), ("jsonl", NULLS)]
)
def test_a_second_run_is_as_a_first_one(
    db: of.Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    files: list[list[dict[str, Any]]],
    shuffled: bool,
    version: str | None,
) -> None:
    if shuffled:
        monkeypatch.setattr(config, "BROADCAST_BYTES_MAX", 0)
    read = db.read_csv if kind == "csv" else db.read_jsonl
    for number, rows in enumerate(files):
        write(tmp_path / f"{number}.{kind}", rows)
        for name, job in JOBS.items():
            if shuffled != (name == "joined"):
                continue
            dataset = job(db, read(f"{tmp_path}/*.{kind}"))
            again = result(dataset, name, version=version)
            assert same(again, result(dataset, f"{name} {number}")), (name, number)


def test_partition_folders_that_change_their_type(db: of.Database, tmp_path: Path) -> None:
    for number, folder in enumerate(("k=01", "k=7", "k=x")):
        path = tmp_path / folder / "a.parquet"
        path.parent.mkdir()
        pl.DataFrame({"v": [number]}).write_parquet(path)
        dataset = db.read_parquet(tmp_path).group_by("k").agg(n=agg.sum("v"))
        assert same(result(dataset, "t"), result(dataset, f"t {number}"))


def test_map_reduce_runs_again_when_types_change(db: of.Database, tmp_path: Path) -> None:
    for number, rows in enumerate(ZIPS):
        write(tmp_path / f"{number}.csv", rows)
        for table in ("t", f"t {number}"):
            data = db.read_csv(f"{tmp_path}/*.csv")
            run = db.map_reduce(data, map=pairs, reduce=lambda _, values: sum(values), into=table)
            run.result()
        found = [db.table(table).to_polars() for table in ("t", f"t {number}")]
        assert same(*found)


def test_new_columns_and_types_that_nobody_uses_leave_tasks_done(db: of.Database, tmp_path: Path) -> None:
    dataset = db.read_jsonl(f"{tmp_path}/*.jsonl").group_by("k").agg(n=agg.count())
    for number, row in enumerate(
        ({"k": "x", "v": 1}, {"k": "x", "v": "text"}, {"k": "x", "v": None, "w": 1})
    ):
        write(tmp_path / f"{number}.jsonl", [row])
        run = dataset.into("t").run(progress=False, workers=1)
        assert run.result().to_polars().rows() == [("x", number + 1)]
        progress = run.progress()
        assert progress.reused == progress.total - 1


def test_explain_names_the_column_and_both_types(db: of.Database, tmp_path: Path) -> None:
    for number, rows in enumerate(ZIPS):
        write(tmp_path / f"{number}.csv", rows)
        dataset = db.read_csv(f"{tmp_path}/*.csv").group_by("zip").agg(n=agg.count())
        result(dataset, "t")
    told = db.explain("t")
    assert "0 of its 2 tasks are reused, 2 were computed." in told
    assert told[-2:] == [
        f"1 file is new: {tmp_path}/1.csv.",
        "Column 'zip' was Int64 and is String, so the tasks that use it have new names and are computed.",
    ]


def test_tasks_that_run_again_are_no_exact_part_of_an_estimate(db: of.Database, tmp_path: Path) -> None:
    """Finished tasks come first in the dispatch order because they are exact. Those that run again belong to the sample."""
    for number in range(40):
        write(tmp_path / f"{number:02}.csv", [{"k": "x", "v": number}])
    dataset = db.read_csv(f"{tmp_path}/*.csv").group_by("k").agg(n=agg.count(), v=agg.max("v"))
    orders = []
    for _ in range(2):
        run = dataset.into("t").run(progress=False, workers=1, target_splits=40)
        assert run.progress().reused == 0
        with db._engine.shard.view() as view:
            row = state.read_run(view, run.id)
        assert row is not None
        inputs = decode_inputs(db._engine.blobs.get(row.stages[0].inputs))
        orders.append([unit.path for item in inputs for unit in item.units])
        write(tmp_path / "99.csv", [{"k": "x", "v": "text"}])
    before, after = orders
    assert [path for path in after if path in before] != before
