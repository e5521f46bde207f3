"""A column whose name Polars takes for a pattern is refused by name: expressions would mean other columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.errors import InvalidPlan, JobFailed


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
