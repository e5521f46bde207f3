"""Whatever goes wrong while a folder is published ends the run with an error of Onefold, and it can be resumed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold.compute.execution import attempts, publishing, runner
from onefold.compute.publish import folder_writer
from onefold.errors import InvalidArgument, InvalidPlan, InvalidValue, JobFailed


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    pl.DataFrame({"k": [1, 2], "v": ["a", "b"]}).write_parquet(tmp_path / "in.parquet")
    with of.connect(tmp_path / "space") as db:
        yield db


def rows(db: of.Database, tmp_path: Path) -> Any:
    return db.read_parquet(tmp_path / "in.parquet")


def state_of(db: of.Database, out: Path) -> list[str]:
    return [run.state for run in db.runs(table=f"parquet:{out}")]


def ended(run: of.Run) -> None:
    run.wait(timeout=60)
    run.raise_if_failed()


def test_replace_publishes_other_columns(db: of.Database, tmp_path: Path) -> None:
    out = tmp_path / "out"
    read = rows(db, tmp_path)
    for by in (None, "k"):
        read.write_parquet(out, partition_by=by).run(progress=False)
        wider = read.with_columns(w=pl.col("k") * 2)
        wider.write_parquet(out, partition_by=by).run(progress=False)
        assert sorted(pl.read_parquet(out).columns) == ["k", "v", "w"]
        read.select("k", v=pl.col("k")).write_parquet(out, partition_by=by).run(progress=False)
        assert sorted(pl.read_parquet(out).columns) == ["k", "v"]
    for mode in ("append", "replace_partitions"):
        with pytest.raises(JobFailed, match=r"'w' is new, 'v' is String, not Int64"):
            wider.filter(pl.col("k") == 1).write_parquet(out, partition_by="k", mode=mode).run(progress=False)
    assert sorted(pl.read_parquet(out).columns) == ["k", "v"]


class _Panic(BaseException):
    """What no ``except Exception`` catches, as a panic of native code."""


CAUSES = [
    ValueError("odd"), KeyError("k"), TypeError("no"), MemoryError(), RecursionError(), _Panic("native"),
    pl.exceptions.ComputeError("polars"), pl.exceptions.PanicException("panicked"), InvalidValue("ours"),
    OSError(28, "No space left on device"),
]  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES, ids=lambda cause: type(cause).__name__)
@pytest.mark.parametrize("place", ["write", "collect", "publish"])
def test_any_exception_fails_the_run(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: BaseException, place: str
) -> None:
    out = tmp_path / "out"
    job = rows(db, tmp_path).write_parquet(out)

    def fail(*_: Any, **__: Any) -> Any:
        raise cause

    with monkeypatch.context() as patch:
        if place == "write":
            patch.setattr(pl.DataFrame, "write_parquet", fail)
        elif place == "collect":
            patch.setattr(folder_writer.frames, "concat", fail)
        else:
            patch.setattr(publishing.publish, "publish_folder", fail)
        with pytest.raises(JobFailed):
            job.run(progress=False)
        (run,) = db.runs(table=f"parquet:{out}")
        assert run.state == "failed" and not out.exists()
        run.resume().wait(timeout=60)
        assert run.state == "failed"
        with pytest.raises(JobFailed):
            run.raise_if_failed()
    run.resume().wait(timeout=60)
    assert run.state == "done" and pl.read_parquet(out).height == 2
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".out.")] == []


@pytest.mark.parametrize(
    "values",
    [
        pl.Series([[1], [2]]),
        pl.Series([[1], [2]], dtype=pl.Array(pl.Int64, 1)),
        pl.Series([{"a": 1}, {"a": 2}]),
        pl.Series([b"\xff", b"\xfe"]),
        pl.Series([1, 2]).cast(pl.Duration("us")),
    ],
    ids=lambda values: str(values.dtype.base_type()),
)
def test_a_partition_that_cannot_be_a_folder(db: of.Database, tmp_path: Path, values: pl.Series) -> None:
    pl.DataFrame([values.alias("p"), pl.Series("i", [1, 2])]).write_parquet(tmp_path / "odd.parquet")
    read = db.read_parquet(tmp_path / "odd.parquet")
    out = tmp_path / "out"
    with pytest.raises(InvalidPlan, match=r"makes? no folder names"):
        read.write_parquet(out, partition_by="p").run(progress=False)
    assert state_of(db, out) == []
    with pytest.raises(
        JobFailed, match=r"makes? no folder names"
    ):  # of a function, whose types are not known before
        read.map_batches(lambda frame: frame).write_parquet(out, partition_by="p").run(progress=False)
    assert state_of(db, out) == ["failed"] and not out.exists()


def test_a_column_that_parquet_cannot_hold(db: of.Database, tmp_path: Path) -> None:
    read, out = rows(db, tmp_path), tmp_path / "out"
    for dtype in (pl.Struct({}), pl.List(pl.Struct({})), pl.Struct({"a": pl.Struct({})})):
        with pytest.raises(InvalidPlan, match=r"'e' is .* cannot hold"):
            read.with_columns(e=pl.lit(None, dtype=dtype)).write_parquet(out).run(progress=False)
    assert state_of(db, out) == []
    job = read.map_batches(lambda frame: frame.with_columns(e=pl.lit(None, dtype=pl.Struct({}))))
    with pytest.raises(JobFailed):
        job.write_parquet(out).run(progress=False)
    assert state_of(db, out) == ["failed"] and not out.exists()


def test_a_path_that_is_a_file(db: of.Database, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for out in (file, file / "below", file / "far" / "below"):
        with pytest.raises(InvalidArgument, match="is a file"):
            rows(db, tmp_path).write_parquet(out).run(progress=False)
        assert state_of(db, out) == []
    out = tmp_path / "later"

    def made_meanwhile(frame: pl.DataFrame) -> pl.DataFrame:
        out.write_text("mine")
        return frame

    with pytest.raises(JobFailed, match="is a file"):
        rows(db, tmp_path).map_batches(made_meanwhile).write_parquet(out).run(progress=False)
    assert state_of(db, out) == ["failed"] and out.read_text() == "mine"
    out.unlink()
    (run,) = db.runs(table=f"parquet:{out}")
    assert run.resume().wait(timeout=60).state == "done" and pl.read_parquet(out).height == 2


def test_kept_files_that_are_damaged(db: of.Database, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.parquet").write_bytes(b"PAR1 this is not what it says PAR1")
    with pytest.raises(JobFailed, match=r"a\.parquet"):
        rows(db, tmp_path).write_parquet(out, mode="append").run(progress=False)
    assert state_of(db, out) == ["failed"]
    assert [entry.name for entry in out.iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("cause", [KeyError("defect"), _Panic("native")], ids=["python", "panic"])
@pytest.mark.parametrize("place", ["claim", "inputs", "waiting"])
def test_a_defect_outside_of_tasks_is_an_onefold_error(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, cause: BaseException
) -> None:
    job = rows(db, tmp_path).into("t")

    def fail(*_: Any, **__: Any) -> Any:
        raise cause

    with monkeypatch.context() as patch:
        if place == "claim":
            patch.setattr(runner.Runner, "_take_slot", fail)
        elif place == "inputs":
            patch.setattr(attempts, "decode_inputs", fail)
        else:
            patch.setattr(runner.Runner, "_wait_for_work", fail)
        run = job.start(workers=1)
        if place == "waiting":
            run.wait(timeout=60)
        else:
            with pytest.raises(of.OnefoldError) as caught:
                ended(run)
            assert type(cause).__name__ in str(caught.value)
    assert place == "waiting" or run.abandoned or run.state == "failed"
    run.resume().wait(timeout=60)
    assert run.state == "done" and db.table("t").to_polars().height == 2


def test_a_result_that_no_record_holds_fails_its_task(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = db._engine.submit
    refused = threading.Event()

    def refuse(*operations: Any) -> Any:
        if any(isinstance(one, attempts.ops.Done) for one in operations):
            refused.set()
            raise of.TooLarge("a record of many bytes")
        return submit(*operations)

    with monkeypatch.context() as patch:
        patch.setattr(db._engine, "submit", refuse)
        run = rows(db, tmp_path).into("t").start(workers=1)
        run.wait(timeout=60)
        with pytest.raises(JobFailed, match="many bytes"):
            run.raise_if_failed()
    assert refused.is_set() and run.resume().wait(timeout=60).state == "done"


def test_a_stored_job_that_cannot_be_loaded(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.compute import renames

    run = rows(db, tmp_path).into("t").start(workers=0)
    db._engine._stored.clear()

    def fail(*_: Any) -> Any:
        raise RuntimeError("a class of yours has changed")

    with monkeypatch.context() as patch:
        patch.setattr(renames, "loads", fail)
        with pytest.raises(of.OnefoldError, match="has changed"):
            run.resume(workers=1)
    assert run.resume(workers=1).wait(timeout=60).state == "done"
