"""Aggregates of jobs on real files are what plain Polars gives on them, for whoever reads the table, and estimates until then."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute import aggregates
from support.polars_files import (
    SPLITS,
    Files,
    db_in_memory,  # noqa: F401
    db_on_disk_or_in_memory,  # noqa: F401
    files_of_each_format,  # noqa: F401
    result,
    same,
    same_by,
    small_splits,  # noqa: F401
)


def most_frequent(column: str, k: int) -> Callable[[pl.DataFrame], list[dict[str, Any]]]:
    def of_group(frame: pl.DataFrame) -> list[dict[str, Any]]:
        counts = frame[column].drop_nulls().value_counts(name="count").rename({column: "value"})
        return counts.sort(["count", "value"], descending=[True, False]).head(k).to_dicts()

    return of_group


def add(state: int, row: dict[str, Any]) -> int:
    return state + row["u"]


AGGREGATES: dict[str, Any] = {
    "rows": agg.count(),
    "count": agg.count("f"),
    "sum": agg.sum("i"),
    "sum_u8": agg.sum("u"),
    "sum_f": agg.sum("f"),
    "sum_b": agg.sum("b"),
    "mean": agg.mean("f"),
    "mean_i": agg.mean("i"),
    "mean_none": agg.mean("nothing"),
    "sum_none": agg.sum("nothing"),
    "min": agg.min("f"),
    "max": agg.max("i"),
    "min_text": agg.min("k"),
    "max_t": agg.max("t"),
    "min_day": agg.min("day"),
    "max_b": agg.max("b"),
    "std": agg.std("f"),
    "std0": agg.std("u", ddof=0),
    "var": agg.var("f"),
    "var0": agg.var("i", ddof=0),
    "first": agg.first("k"),
    "last": agg.last("f"),
    "first_by": agg.first("id", by=pl.col("u").cast(pl.Int64) * 1000 + pl.col("id")),
    "last_by": agg.last("id", by="id"),
    "n_unique": agg.approx_n_unique("k"),
    "median": agg.approx_quantile("u", 0.5),
    "q90": agg.approx_quantile("f", 0.9),
    "expr": agg.sum(pl.col("u").cast(pl.Int64) * 2 + 1),
    "plain_sum": pl.col("i").sum(),
    "plain_mean": pl.col("f").mean(),
    "plain_min": pl.col("t").min(),
    "plain_max": pl.col("k").max(),
    "plain_len": pl.len(),
}
BY_U = pl.col("u").cast(pl.Int64) * 1000 + pl.col("id")
EXPECTED: dict[str, pl.Expr] = {
    "rows": pl.len(),
    "count": pl.col("f").count(),
    "sum": pl.col("i").sum(),
    "sum_u8": pl.col("u").sum(),
    "sum_f": pl.col("f").sum(),
    "sum_b": pl.col("b").sum(),
    "mean": pl.col("f").mean(),
    "mean_i": pl.col("i").mean(),
    "mean_none": pl.col("nothing").mean(),
    "sum_none": pl.col("nothing").sum(),
    "min": pl.col("f").min(),
    "max": pl.col("i").max(),
    "min_text": pl.col("k").min(),
    "max_t": pl.col("t").max(),
    "min_day": pl.col("day").min(),
    "max_b": pl.col("b").max(),
    "std": pl.col("f").std(),
    "std0": pl.col("u").std(ddof=0),
    "var": pl.col("f").var(),
    "var0": pl.col("i").var(ddof=0),
    "first": pl.col("k").first(),
    "last": pl.col("f").last(),
    "first_by": pl.col("id").sort_by(BY_U).first(),
    "last_by": pl.col("id").last(),
    "n_unique": pl.col("k").n_unique(),
    "median": pl.col("u").quantile(0.5, "nearest"),
    "q90": pl.col("f").quantile(0.9, "nearest"),
    "expr": (pl.col("u").cast(pl.Int64) * 2 + 1).sum(),
    "plain_sum": pl.col("i").sum(),
    "plain_mean": pl.col("f").mean(),
    "plain_min": pl.col("t").min(),
    "plain_max": pl.col("k").max(),
    "plain_len": pl.len(),
}
KEYS: dict[str, list[Any]] = {
    "text": ["k"],
    "several": ["g", "b"],
    "day": ["day"],
    "expression": [pl.col("t").dt.truncate("1d"), (pl.col("u") % 3).alias("third")],
    "none": [],
}


@pytest.mark.moving(5)
@pytest.mark.parametrize("splits", SPLITS)
@pytest.mark.parametrize("keys", KEYS)
def test_every_aggregate(memory: of.Database, files: Files, keys: str, splits: int) -> None:
    found = result(files.onefold(memory).group_by(*KEYS[keys]).agg(**AGGREGATES), splits)
    plain = files.polars()
    expected = (
        plain.group_by(KEYS[keys], maintain_order=True).agg(**EXPECTED)
        if KEYS[keys]
        else plain.select(**EXPECTED)
    )
    assert found.columns == expected.columns
    names = expected.columns[: len(KEYS[keys])]
    for name in expected.columns:
        assert (name, found.schema[name]) == (name, expected.schema[name])
        one = [*names, name] if name not in names else names
        if names:
            same(found.select(one).sort(names), expected.select(one).sort(names))
        else:
            same(found.select(name), expected.select(name))


@pytest.mark.parametrize("splits", SPLITS)
def test_aggregates_of_types_that_only_parquet_keeps(
    memory: of.Database, tmp_path: Path, splits: int
) -> None:
    files = Files(tmp_path / "in", "parquet", seed=23)
    found = result(
        files.onefold(memory)
        .group_by("cat")
        .agg(
            total=agg.sum("dec"),
            mean=agg.mean("dec"),
            least=agg.min("dec"),
            most=agg.max("nan"),
            nan=agg.sum("nan"),
            unique=agg.approx_n_unique("dec"),
            first=agg.first("list"),
            kinds=agg.approx_n_unique("cat"),
        ),
        splits,
    )
    expected = (
        files.polars()
        .group_by("cat")
        .agg(
            total=pl.col("dec").sum(),
            mean=pl.col("dec").mean(),
            least=pl.col("dec").min(),
            most=pl.col("nan").max(),
            nan=pl.col("nan").sum(),
            unique=pl.col("dec").n_unique(),
            first=pl.col("list").first(),
            kinds=pl.col("cat").n_unique(),
        )
    )
    assert found.columns == expected.columns
    by = pl.col("cat").cast(pl.String)
    same(found.sort(by), expected.sort(by))


@pytest.mark.moving(3)
@pytest.mark.parametrize("splits", SPLITS)
def test_most_frequent_and_fold(db: of.Database, files: Files, splits: int) -> None:
    found = result(
        files.onefold(db)
        .group_by("b")
        .agg(
            words=agg.most_frequent("k", 3),
            all=agg.fold(int, add, lambda a, b: a + b),
            longest=agg.fold(str, lambda s, v: max(s, v or ""), max, col="k"),
        ),
        splits,
    )
    top = most_frequent("k", 3)
    for row in found.to_dicts():
        group = files.polars().filter(pl.col("b").eq_missing(row["b"]))
        assert row["words"] == top(group)
        assert row["all"] == group["u"].cast(pl.Int64).sum()
        assert row["longest"] == group["k"].max()
    assert found.height == 3


def test_float_keys(memory: of.Database, tmp_path: Path) -> None:
    """NaN is one group, and so are both zeros."""
    files = Files(tmp_path / "in", "parquet", seed=3)
    found = result(files.onefold(memory).group_by("nan").agg(n=agg.count()), 17)
    same_by(found, files.polars().group_by("nan").agg(n=pl.len()), "nan")


NAN = float("nan")
KEYS_OF_FEW = {
    "float": pl.Series([NAN, NAN, 1.0, None, -0.0, 0.0]),
    "float32": pl.Series([NAN, None, -0.0], dtype=pl.Float32),
    "list": pl.Series([[NAN], [NAN, 1.0], None, []], dtype=pl.List(pl.Float64)),
    "struct": pl.Series([{"a": NAN}, {"a": 1.0}, {"a": None}]),
    "text": pl.Series(["", "NaN", None]),
    "binary": pl.Series([b"", b"NaN", None]),
    "boolean": pl.Series([True, False, None]),
    "duration": pl.Series([0, 1, None]).cast(pl.Duration("ns")),
    "decimal": pl.Series(["0.0", "1.5", None]).cast(pl.Decimal(10, 2)),
    "wide": pl.Series([0, 2**100, None], dtype=pl.Int128),
}
"""Of each kind of key some whose comparison is special."""
COLLECTED = {
    "f": agg.first("i", by="i"),
    "l": agg.last("i", by="i"),
    "m": agg.most_frequent("i", 3),
    "u": agg.approx_n_unique("i"),
    "q": agg.approx_quantile("i", 0.5),
}
"""Aggregates that are given the number of each row's group."""


@pytest.mark.moving(4)
@pytest.mark.parametrize("second", [False, True], ids=["one key", "two keys"])
@pytest.mark.parametrize("name", KEYS_OF_FEW)
def test_any_few_rows_with_any_keys_have_their_groups(name: str, second: bool) -> None:
    """Joins and groupings of one or two rows take ways of their own."""
    series = KEYS_OF_FEW[name]
    keys = [pl.col("k"), pl.col("j")] if second else [pl.col("k")]
    names = ["k", "j"] if second else ["k"]
    for count in (1, 2, 3):
        for places in product(range(len(series)), repeat=count):
            rows = pl.DataFrame({"k": series.gather(places), "j": [1] * count, "i": range(count)})
            found = aggregates.final(
                aggregates.partial(rows.lazy(), keys, tuple(COLLECTED.items())),
                names,
                tuple(COLLECTED.items()),
            )
            assert found["u"].to_list() == found["m"].list.len().to_list(), (places, found)
            assert sum(found["u"]) == count, (places, found)
            assert sorted(value["value"] for group in found["m"] for value in group) == [*range(count)]
            assert not sum(found.select("f", "l", "q").null_count().row(0)), (places, found)


def test_the_sign_of_a_zero_does_not_depend_on_the_splits(memory: of.Database, tmp_path: Path) -> None:
    for number, value in enumerate(("-0.0", "0.5", "-0.0")):
        (tmp_path / f"{number}.csv").write_text(f"k\n{value}\n")
    (tmp_path / "one.csv").write_text("k\n-0.0\n0.5\n-0.0\n")
    for paths in ("?.csv", "one.csv"):
        job = memory.read_csv(tmp_path / paths).group_by("k").agg(n=agg.count()).into("t", mode="replace")
        assert job.run(progress=False).result().to_polars().write_csv() == "k,n\n0.0,2\n0.5,1\n"


READER = """
import sys
import onefold as of
with of.connect(sys.argv[1]) as db:
    db.table("t").to_polars().write_parquet(sys.argv[2])
    print(len(db.table("t")), db.table("t").status)
"""


def test_another_process_reads_the_same_table(tmp_path: Path) -> None:
    files = Files(tmp_path / "in", "parquet", seed=8)
    with of.connect(tmp_path / "space") as db:
        job = files.onefold(db).group_by("k", "g").agg(**AGGREGATES).into("t")
        table = job.run(progress=False, target_splits=7).result()
        here = table.to_polars()
        command = [sys.executable, "-c", READER, str(tmp_path / "space"), str(tmp_path / "there.parquet")]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert said == f"{here.height} {table.status}\n" and table.status.exact
    there = pl.read_parquet(tmp_path / "there.parquet")
    assert there.sort("k", "g").equals(here.sort("k", "g"))  # bit for bit
    with of.connect(tmp_path / "space") as db:
        assert db.table("t").to_polars().equals(there)


@pytest.mark.moving(3)
def test_the_ways_to_read_a_table(db: of.Database, files: Files) -> None:
    job = files.onefold(db).group_by("k").agg(n=agg.count(), s=agg.sum("i"))
    table = job.into("t").run(progress=False, target_splits=5).result()
    expected = files.polars().group_by("k").agg(n=pl.len(), s=pl.col("i").sum())
    assert len(table) == expected.height
    assert table.status == of.TableStatus(done=table.status.total, total=table.status.total, exact=True)
    for row in expected.to_dicts():
        assert table.get(row["k"]) == row
    assert table.get("not there") is None
    top = table.top(3, by="n")
    assert top["n"].to_list() == expected["n"].sort(descending=True).head(3).to_list()
    assert table.top()["n"].to_list() == expected["n"].sort(descending=True).to_list()
    assert isinstance(table.scan(), pl.LazyFrame)
    lazy = table.scan().filter(pl.col("n") > 10).select("k", "n").collect()
    same_by(lazy, expected.filter(pl.col("n") > 10).select("k", "n"), "k")
    arrow = table.to_arrow()
    assert arrow.num_rows == expected.height and arrow.column_names == ["k", "n", "s"]
    (last,) = table.watch()
    assert (last.done, last.total, last.exact) == (table.status.total, table.status.total, True)
    assert last.to_polars().equals(table.to_polars())
    several = files.onefold(db).group_by("g", "b").agg(n=agg.count()).into("two").run(progress=False)
    for row in files.polars().group_by("g", "b").agg(n=pl.len()).to_dicts():
        assert several.result().get((row["g"], row["b"])) == row
    nothing = files.onefold(db).group_by().agg(n=agg.count()).into("one").run(progress=False).result()
    assert nothing.to_polars().to_dicts() == [{"n": files.polars().height}]


ESTIMATED: dict[str, tuple[Any, str]] = {
    "rows": (agg.count(), "estimate"),
    "some": (agg.count("f"), "estimate"),
    "sum": (agg.sum("u"), "estimate"),
    "mean": (agg.mean("u"), "estimate"),
    "median": (agg.approx_quantile("u", 0.5), "estimate"),
    "least": (agg.min("u"), "bound"),
    "most": (agg.max("u"), "bound"),
    "unique": (agg.approx_n_unique("u"), "bound"),
    "std": (agg.std("u"), "estimate"),
    "var": (agg.var("u"), "estimate"),
    "first": (agg.first("u"), "estimate"),
    "last": (agg.last("u"), "estimate"),
    "often": (agg.most_frequent("u", 2), "estimate"),
    "folded": (agg.fold(int, add, lambda a, b: a + b), "estimate"),
}
COLUMNS = ["value", "lo", "hi", "level", "kind", "n", "N", "reason"]


def test_estimates_half_way_and_at_the_end(tmp_path: Path) -> None:
    """Half of the tasks wait for a file; what the table says meanwhile is called what it is."""
    folder, gate = tmp_path / "in", tmp_path / "gate"
    folder.mkdir()
    chance = random.Random(4)
    for number in range(40):
        pl.DataFrame(
            {
                "g": [chance.choice("ab") for _ in range(50)],
                "u": [chance.randint(0, 99) for _ in range(50)],
                "f": [chance.choice((1.0, None)) for _ in range(50)],
            }
        ).write_parquet(folder / f"{number:02d}.parquet")
    started = tmp_path / "started"
    started.mkdir()

    def wait(frame: pl.DataFrame) -> pl.DataFrame:
        import time
        import uuid

        if len(list(started.iterdir())) >= 20:
            while not gate.exists():
                time.sleep(0.01)
        (started / uuid.uuid4().hex).touch()
        return frame

    plain = pl.read_parquet(folder)
    with of.connect(tmp_path / "space") as db:
        job = (
            db.read_parquet(folder)
            .map_batches(wait, schema={"g": pl.String, "u": pl.Int64, "f": pl.Float64})
            .group_by("g")
            .agg(**{name: made for name, (made, _) in ESTIMATED.items()})
        )
        run = job.into("t").start(workers=1, target_splits=40)
        table = db.table("t")
        for snapshot in table.watch(timeout=60):
            if snapshot.done == 20:
                break
        assert run.state == "running"
        assert table.status == of.TableStatus(done=20, total=40, exact=False)
        for name, (_, kind) in ESTIMATED.items():
            half = table.estimate(name, level=0.9)
            assert half.columns == ["g", *COLUMNS], name
            assert set(half["kind"]) == {kind}, name
            assert set(half["N"]) == {40} and set(half["n"]) == {20}, name
            assert half.sort("g")["g"].to_list() == ["a", "b"]
        for name in ("rows", "some", "sum", "mean", "median"):
            half = table.estimate(name, level=0.9)
            assert half["reason"].null_count() == 2 and set(half["level"]) == {0.9}, (name, half)
            assert (half["lo"] < half["value"]).all() and (half["value"] < half["hi"]).all(), (name, half)
        low, high = table.estimate("least"), table.estimate("most")
        assert low["lo"].null_count() == 2 and low["hi"].equals(low["value"], check_names=False)
        assert high["hi"].null_count() == 2 and high["lo"].equals(high["value"], check_names=False)
        assert run.progress().done == 20 and run.progress().eta is not None
        gate.touch()
        assert run.wait(timeout=60).state == "done"
        exact = plain.group_by("g").agg(
            rows=pl.len(), some=pl.col("f").count(), sum=pl.col("u").sum(), mean=pl.col("u").mean(),
            median=pl.col("u").quantile(0.5, "nearest"), least=pl.col("u").min(), most=pl.col("u").max(),
            unique=pl.col("u").n_unique(), std=pl.col("u").std(), var=pl.col("u").var(),
            folded=pl.col("u").sum(),
        ).sort("g")  # fmt: skip
        final = table.to_polars().sort("g")
        for name in ESTIMATED:
            done = table.estimate(name).sort("g")
            assert done.columns == ["g", *COLUMNS]
            assert set(done["kind"]) == {"exact"} and set(done["n"]) == set(done["N"]) == {40}
            for column in ("value", "lo", "hi"):
                assert done[column].equals(final[name], check_names=False), name
            if name in exact.columns and name != "median":
                same(final.select("g", name), exact.select("g", name))
