"""``write_parquet(mode="append")`` never counts input twice: what it cannot add once it refuses, and writes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.blobs.store import BlobsUnavailable
from onefold.compute.code import identity
from onefold.compute.execution import publishing
from onefold.compute.plan.stages import Result
from onefold.compute.publish.folder_writer import FolderWriter
from onefold.errors import InvalidArgument, InvalidPlan


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    (tmp_path / "in").mkdir()
    put(tmp_path, 0, "k,v\n1,1\n2,1\n")
    with of.connect("memory://") as db:
        yield db


def put(folder: Path, number: int, text: str) -> None:
    (folder / "in" / f"{number}.csv").write_text(text)


def append(rows: of.Dataset, out: Path, **options: Any) -> list[tuple[Any, ...]]:
    rows.write_parquet(out, mode="append", **options).run(progress=False, workers=1)
    return sorted(pl.read_parquet(out).rows())


def files(out: Path) -> list[str]:
    return sorted(str(file) for file in out.rglob("*"))


def pairs(record: dict[str, Any]) -> list[tuple[int, int]]:
    return [(record["k"], record["v"])]


@pytest.mark.parametrize(
    "made",
    [
        lambda rows: rows.group_by("k").agg(n=agg.sum("v")),
        lambda rows: rows.group_by().agg(n=agg.count()),
        lambda rows: rows.map_reduce(map=pairs, reduce=lambda key, values: sum(values)),
        lambda rows: rows.map_reduce(map=pairs, reduce=lambda key, values: 1).select("key"),
        lambda rows: rows.join(rows.select("k", w="v"), on="k"),
    ],
    ids=["grouped", "one group", "map_reduce", "steps after map_reduce", "join"],
)
def test_results_that_new_input_changes(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made: Callable[[of.Dataset], of.Dataset]
) -> None:
    monkeypatch.setattr(of.config, "BROADCAST_BYTES_MAX", 0)
    rows = made(db.read_csv(tmp_path / "in" / "*.csv"))
    with pytest.raises(InvalidPlan, match='mode="replace"'):
        append(rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    rows.write_parquet(tmp_path / "out").run(progress=False, workers=1)


@pytest.mark.parametrize("options", [{}, {"version": "1"}, {"partition_by": "k"}])
def test_a_file_that_has_changed(db: of.Database, tmp_path: Path, options: dict[str, Any]) -> None:
    out = tmp_path / "out"
    rows = db.read_csv(tmp_path / "in" / "*.csv", schema={"k": pl.Int64, "v": pl.Int64})
    append(rows, out, **options)
    before = files(out)
    put(tmp_path, 0, "k,v\n1,1\n2,3\n4,4\n")
    with pytest.raises(InvalidArgument, match=r"0\.csv.*has changed"):
        append(rows, out, **options)
    assert files(out) == before


def test_files_that_are_new_or_gone(db: of.Database, tmp_path: Path) -> None:
    rows, out = db.read_csv(tmp_path / "in" / "*.csv"), tmp_path / "out"
    assert append(rows, out) == [(1, 1), (2, 1)]
    put(tmp_path, 1, "k,v\n5,5\n")
    (tmp_path / "in" / "0.csv").unlink()
    assert append(rows, out) == [(1, 1), (2, 1), (5, 5)]
    # Other files through the same job, and other rows of a file through another one.
    (tmp_path / "b.csv").write_text("k,v\n7,7\n")
    assert append(db.read_csv(tmp_path / "b.csv"), out) == [(1, 1), (2, 1), (5, 5), (7, 7)]
    assert append(rows, out) == [(1, 1), (2, 1), (5, 5), (7, 7)]
    assert append(rows.filter(pl.col("k") == 5), out) == [(1, 1), (2, 1), (5, 5), (5, 5), (7, 7)]


def test_another_run_between_does_not_hide_a_change(db: of.Database, tmp_path: Path) -> None:
    rows, out = db.read_csv(tmp_path / "in" / "*.csv"), tmp_path / "out"
    append(rows, out)
    (tmp_path / "b.csv").write_text("k,v\n7,7\n")
    append(db.read_csv(tmp_path / "b.csv"), out)
    put(tmp_path, 0, "k,v\n3,3\n")
    with pytest.raises(InvalidArgument, match=r"0\.csv"):
        append(rows, out)
    with of.connect("memory://") as other, pytest.raises(InvalidArgument, match=r"0\.csv"):
        append(other.read_csv(tmp_path / "in" / "*.csv"), out)


def test_one_file_of_a_task_is_gone(db: of.Database, tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(tmp_path, 1, "k,v\n5,5\n")

    def publish() -> None:
        rows = db.read_csv(tmp_path / "in" / "*.csv")
        rows.write_parquet(out, mode="append").run(progress=False, workers=1, target_splits=1)

    publish()
    (tmp_path / "in" / "1.csv").unlink()
    with pytest.raises(InvalidArgument, match=r"0\.csv.*read with it"):
        publish()


def test_the_other_side_of_a_join_changes(db: of.Database, tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "names.csv"
    other.write_text("k,name\n1,a\n2,b\n")
    rows = db.read_csv(tmp_path / "in" / "*.csv").join(db.read_csv(other), on="k")
    assert append(rows, out) == [(1, 1, "a"), (2, 1, "b")]
    put(tmp_path, 1, "k,v\n2,5\n")
    assert append(rows, out) == [(1, 1, "a"), (2, 1, "b"), (2, 5, "b")]
    other.write_text("k,name\n1,a\n2,other\n")
    with pytest.raises(InvalidArgument, match="joined with"):
        append(rows, out)


def test_a_new_file_changes_a_type(db: of.Database, tmp_path: Path) -> None:
    rows, out = db.read_csv(tmp_path / "in" / "*.csv"), tmp_path / "out"
    append(rows, out)
    put(tmp_path, 1, "k,v\n2,0.5\n")
    with pytest.raises(InvalidArgument, match="types of its columns"):
        append(rows, out)


def test_partitions_that_are_replaced_keep_what_was_read(db: of.Database, tmp_path: Path) -> None:
    rows, out = db.read_csv(tmp_path / "in" / "*.csv"), tmp_path / "out"
    append(rows, out, partition_by="k")
    (tmp_path / "b.csv").write_text("k,v\n1,7\n2,7\n")
    job = db.read_csv(tmp_path / "b.csv").write_parquet(out, partition_by="k", mode="replace_partitions")
    job.run(progress=False, workers=1)
    put(tmp_path, 0, "k,v\n1,9\n")
    with pytest.raises(InvalidArgument, match=r"0\.csv"):
        append(rows, out, partition_by="k")


def test_a_job_that_has_another_name_in_every_run(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, out = db.read_csv(tmp_path / "in" / "*.csv"), tmp_path / "out"
    odd = identity.Digest("ab" * 16, {f"{identity.UNSTABLE}x is a lock": ""})
    monkeypatch.setattr(identity, "plan_digest", lambda job: odd)
    with pytest.raises(InvalidPlan, match=r"x is a lock.*version="):
        append(rows, out)
    assert not out.exists()
    assert append(rows, out, version="1") == append(rows, out, version="1") == [(1, 1), (2, 1)]


@pytest.mark.parametrize("overlap", ["same files", "one file of two"])
def test_two_programs_that_append_at_once_add_each_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overlap: str
) -> None:
    """Of two spaces, so that no log puts them in order: both have all rows ready before one of them publishes."""
    (tmp_path / "in").mkdir()
    for number in range(3):
        put(tmp_path, number, f"k,v\n{number},1\n")
    barrier = threading.Barrier(2)
    ready = threading.local()
    finish = FolderWriter.finish

    def both_ready(writer: FolderWriter, existing: Any) -> None:
        finish(writer, existing)
        if not getattr(ready, "once", False):  # the second one makes its rows again
            ready.once = True
            barrier.wait(60)

    monkeypatch.setattr(FolderWriter, "finish", both_ready)
    first, second = ("012", "012") if overlap == "same files" else ("01", "12")
    with of.connect("memory://") as one, of.connect("memory://") as other:
        runs = [
            db.read_csv([tmp_path / "in" / f"{number}.csv" for number in numbers])
            .write_parquet(tmp_path / "out", mode="append")
            .start(workers=1, target_splits=3)
            for db, numbers in ((one, first), (other, second))
        ]
        assert [run.wait(timeout=60).state for run in runs] == ["done", "done"]
    assert sorted(pl.read_parquet(tmp_path / "out")["k"]) == [0, 1, 2]


def test_a_run_that_was_killed_after_it_had_appended_says_what(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of.config, "NODE_RETRY_S", 0.01)
    publish = publishing.publish_result
    made: list[Result] = []

    def killed_once(*args: Any) -> Result:
        made.append(publish(*args))
        if len(made) == 1:  # the folder is there, and the log does not know it
            raise BlobsUnavailable("away")
        return made[-1]

    monkeypatch.setattr(publishing, "publish_result", killed_once)
    rows = db.read_csv(tmp_path / "in" / "*.csv", schema={"k": pl.Int64, "v": pl.Int64})
    assert append(rows, tmp_path / "out") == [(1, 1), (2, 1)]
    first, second = made
    assert (first.rows_out, second.rows_out, second.blob) == (2, 2, first.blob)
