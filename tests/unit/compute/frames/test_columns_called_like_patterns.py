"""A column whose name Polars takes for a pattern is refused by name: expressions would mean other columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.errors import InvalidArgument, InvalidPlan, JobFailed


@pytest.mark.parametrize("name", ["*", "^a.*$"])
@pytest.mark.parametrize("kind", ["csv", "parquet", "json"])
def test_files_that_have_it(tmp_path: Path, name: str, kind: str) -> None:
    frame = pl.DataFrame({name: [1], "ab": [2]})
    file = tmp_path / f"in.{kind}"
    {"csv": frame.write_csv, "parquet": frame.write_parquet, "json": frame.write_ndjson}[kind](file)
    with of.connect("memory://") as db:
        read = {"csv": db.read_csv, "parquet": db.read_parquet, "json": db.read_jsonl}[kind]
        with pytest.raises(InvalidPlan) as caught:
            read(file).write_parquet(tmp_path / "out").run(progress=False)
        assert repr(name) in str(caught.value) and "rename" in str(caught.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "made",
    [
        lambda rows: rows.select(pl.col("ab").alias("*")),
        lambda rows: rows.with_columns(pl.col("ab").alias("^a.*$")),
        lambda rows: rows.group_by("ab").agg(**{"*": agg.count()}),
        lambda rows: rows.map(lambda record: {"^a.*$": 1}),
        lambda rows: rows.map_batches(lambda frame: frame.rename({"ab": "*"})),
    ],
)
def test_steps_that_make_it(tmp_path: Path, made: Callable[[of.Dataset], of.Dataset]) -> None:
    (tmp_path / "in.csv").write_text("ab,c\n1,2\n")
    with of.connect("memory://") as db, pytest.raises((InvalidPlan, JobFailed), match="pattern of names"):
        made(db.read_csv(tmp_path / "in.csv")).into("t").run(progress=False, workers=1)


@pytest.mark.parametrize("name", ["*", "^a.*$", "^x$"])
@pytest.mark.parametrize("framed", [False, True], ids=["records", "frame"])
def test_streams_that_have_it(name: str, framed: bool) -> None:
    """As a key it is one column; jobs over the stream do without it, or are refused."""
    rows = [{"ab": number, name: "kl"[number % 2]} for number in range(6)]
    with of.connect("memory://") as db:
        stream = db.stream("s", partitions=3)
        stream.append_many(pl.DataFrame(rows) if framed else rows, key=name)
        keys = {"k": [0, 2, 4], "l": [1, 3, 5]}
        assert {key: sorted(r.value["ab"] for r in stream.read() if r.key == key) for key in keys} == keys
        assert sorted(stream.to_polars()["_key"]) == ["k"] * 3 + ["l"] * 3
        for read in (
            lambda: db.read_stream("s").into("batch").run(progress=False),
            lambda: db.read_stream("s", follow=True).into("live").start().catch_up(timeout=60),
        ):
            with pytest.raises((InvalidPlan, JobFailed), match="pattern of names"):
                read()
        run = db.read_stream("s", follow=True, schema={"ab": pl.Int64}).into("some").start()
        run.catch_up(timeout=60)
        assert run.status().left_out == 6 and sorted(db.table("some").to_polars()["ab"]) == list(range(6))


AGGREGATES = {
    "count": agg.count,
    "sum": agg.sum,
    "mean": agg.mean,
    "min": agg.min,
    "max": agg.max,
    "std": agg.std,
    "var": agg.var,
    "first": agg.first,
    "first by": lambda col: agg.first("ab", by=col),
    "last": agg.last,
    "last by": lambda col: agg.last("ab", by=col),
    "approx_n_unique": agg.approx_n_unique,
    "approx_quantile": lambda col: agg.approx_quantile(col, 0.5),
    "most_frequent": lambda col: agg.most_frequent(col, 2),
    "fold": lambda col: agg.fold(int, lambda s, v: s + v, lambda a, b: a + b, col=col),
}


def test_every_aggregate_is_tried() -> None:
    assert {name.partition(" ")[0] for name in AGGREGATES} == {*agg.__all__} - {"Aggregate"}


@pytest.mark.parametrize("name", AGGREGATES)
@pytest.mark.parametrize("pattern", ["*", "^a.*$"])
def test_aggregates_refuse_a_pattern_by_its_name(name: str, pattern: str) -> None:
    """Also where the rows have one column only, so that it would stand for just that."""
    for col in (pattern, pl.col(pattern)):
        with pytest.raises(
            InvalidArgument, match=r"name one column .* agg\.count\(\) without a column"
        ) as caught:
            AGGREGATES[name](col)
        assert not isinstance(col, str) or str(caught.value).startswith(repr(pattern))


@pytest.mark.parametrize("pattern", ["*", "^a.*$"])
def test_group_by_refuses_a_pattern_by_its_name(tmp_path: Path, pattern: str) -> None:
    (tmp_path / "in.csv").write_text("ab\n1\n")
    with of.connect("memory://") as db:
        rows = db.read_csv(tmp_path / "in.csv")
        for keys, named in (((pattern,), {}), ((), {"k": pattern}), ((["ab", pattern],), {})):
            with pytest.raises(InvalidPlan, match=r"group_by\(\) without keys") as caught:
                rows.group_by(*keys, **named)
            assert f"group_by: {pattern!r} may stand for several columns" in str(caught.value)
        with pytest.raises(InvalidPlan, match="may stand for several columns"):
            rows.group_by(pl.all())
