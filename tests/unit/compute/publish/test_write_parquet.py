"""What ``write_parquet`` publishes is a plain Parquet dataset: every reader takes the folder as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.dataset
import pytest

import onefold as of
from onefold import agg
from onefold.compute.publish import publication_log


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as db:
        yield db


def write(folder: Path, name: str, rows: pl.DataFrame) -> pl.DataFrame:
    folder.mkdir(exist_ok=True)
    rows.write_parquet(folder / name)
    return rows


def some(lo: int, hi: int) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "id": range(lo, hi),
            "day": [("mon", "tue", None)[i % 3] for i in range(lo, hi)],
            "shop": [i % 2 for i in range(lo, hi)],
            "x": [i / 7 for i in range(lo, hi)],
        }
    )


def publish(db: of.Database, source: Path, out: Path, **options: Any) -> of.Progress:
    return db.read_parquet(source).write_parquet(out, **options).run(progress=False).progress()


def check(out: Path, expected: pl.DataFrame) -> None:
    """All readers see these rows, and nothing but Parquet files is there."""

    def same(frame: pl.DataFrame) -> None:
        frame = frame.select(expected.columns).cast(dict(expected.schema)).sort("id")
        assert frame.equals(expected.sort("id"))

    same(pl.read_parquet(out))
    same(pl.scan_parquet(out, hive_partitioning=True).collect())
    arrow = pyarrow.dataset.dataset(out, partitioning="hive", format="parquet").to_table()
    same(pl.DataFrame(pl.from_arrow(arrow)))
    assert {file.suffix for file in out.rglob("*") if file.is_file()} == {".parquet"}
    assert [entry.name for entry in out.parent.iterdir() if entry.name.startswith(".out.")] == []


@pytest.mark.parametrize("by", [None, "day", ["day", "shop"]])
def test_replace(db: of.Database, tmp_path: Path, by: Any) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    rows = write(source, "a.parquet", some(0, 100))
    publish(db, source, out, partition_by=by)
    check(out, rows)
    again = publish(db, source, out, partition_by=by)
    assert again.done == again.total == again.reused and again.rows == 0
    rows = pl.concat([rows, write(source, "b.parquet", some(100, 130))])
    assert publish(db, source, out, partition_by=by).rows == 30
    check(out, rows)
    (source / "a.parquet").unlink()
    publish(db, source, out, partition_by=by)
    check(out, some(100, 130))


@pytest.mark.parametrize("by", [None, "shop"])
def test_append_adds_what_is_not_there_yet(db: of.Database, tmp_path: Path, by: Any) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    rows = write(source, "a.parquet", some(0, 50))
    for _ in range(2):
        publish(db, source, out, partition_by=by, mode="append")
        check(out, rows)
    rows = pl.concat([rows, write(source, "b.parquet", some(50, 70))])
    for _ in range(2):
        publish(db, source, out, partition_by=by, mode="append")
        check(out, rows)
    with of.connect("memory://") as other:  # rows of another program come beside them
        publish(other, write_elsewhere(tmp_path), out, partition_by=by, mode="append")
    check(out, pl.concat([rows, some(1000, 1010)]))


def write_elsewhere(tmp_path: Path) -> Path:
    write(tmp_path / "elsewhere", "c.parquet", some(1000, 1010))
    return tmp_path / "elsewhere"


def test_replace_partitions(db: of.Database, tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    rows = write(source, "a.parquet", some(0, 60))
    publish(db, source, out, partition_by="shop", mode="append")
    odd = write(tmp_path / "odd", "a.parquet", some(100, 110).filter(pl.col("shop") == 1))
    for _ in range(2):
        publish(db, tmp_path / "odd", out, partition_by="shop", mode="replace_partitions")
        check(out, pl.concat([rows.filter(pl.col("shop") == 0), odd]))
    # What the appended rows came from is still known, although one of their files has gone.
    publish(db, source, out, partition_by="shop", mode="append")
    check(out, pl.concat([rows.filter(pl.col("shop") == 0), odd]))


def test_a_folder_or_file_that_was_removed_is_made_again(db: of.Database, tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    rows = write(source, "a.parquet", some(0, 60))
    publish(db, source, out, partition_by="day")
    for gone in ("day=mon", "day=tue", "."):
        shutil.rmtree(out / gone)
        done = publish(db, source, out, partition_by="day")
        assert done.rows == 0  # from the tasks' results
        check(out, rows)
    write(out / "day=mon", "stranger.parquet", some(0, 1).drop("day"))
    publish(db, source, out, partition_by="day")
    check(out, rows)


@pytest.mark.parametrize("by", [None, "shop"])
@pytest.mark.parametrize("mode", ["replace", "append"])
def test_no_rows_still_have_columns(db: of.Database, tmp_path: Path, by: Any, mode: Any) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    write(source, "a.parquet", some(0, 60))
    none = db.read_parquet(source).filter(pl.col("id") < 0)
    for _ in range(2):
        run = none.write_parquet(out, partition_by=by, mode=mode).run(progress=False)
        assert set(pl.read_parquet(out).columns) == {"id", "day", "shop", "x"}
        assert pl.read_parquet(out).is_empty()
    assert run.progress().reused == run.progress().total
    publish(db, source, out, partition_by=by, mode=mode)
    check(out, some(0, 60))


def test_grouped_results(db: of.Database, tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    rows = write(source, "a.parquet", some(0, 60))
    job = db.read_parquet(source).group_by("shop", "day").agg(n=agg.count(), total=agg.sum("id"))
    run = job.write_parquet(out, partition_by="shop").run(progress=False)
    expected = rows.group_by("shop", "day").agg(n=pl.len(), total=pl.col("id").sum())
    found = pl.read_parquet(out).select(expected.columns).cast(dict(expected.schema))
    assert found.sort("shop", "day").equals(expected.sort("shop", "day"))
    assert (
        run.result()
        .to_polars()
        .sort("shop", "day")
        .select(expected.columns)
        .cast(dict(expected.schema))
        .equals(expected.sort("shop", "day"))
    )


def test_every_publication_tells_of_itself(db: of.Database, tmp_path: Path) -> None:
    out, source = tmp_path / "out", tmp_path / "in"
    write(source, "a.parquet", some(0, 60))
    run = db.read_parquet(source).write_parquet(out, partition_by="shop").run(progress=False)
    (known,) = publication_log.read(out).publications.values()
    assert (known.run, known.files, known.rows, known.partition_by) == (run.id, 2, 60, ["shop"])
    assert len(known.contains) == run.progress().total - 1
    assert all(file.name.startswith(run.id) for file in out.rglob("*.parquet"))
