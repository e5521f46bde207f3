"""The names, signatures and defaults that programs are written against."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import signal
import subprocess
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.dataset import Dataset, GroupBy, PreparedJob
from onefold.compute.results.tables import Table
from onefold.compute.runs import Run

REQUIRED = inspect.Parameter.empty


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as opened:
        yield opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.txt").write_text(f"a b w{number}\n" * 20)
    return folder


def takes(function: Callable[..., Any], **expected: Any) -> None:
    """It has these parameters with these defaults; more are allowed after them."""
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    assert {name: found.get(name, "missing") for name in expected} == expected
    for name, default in found.items():
        assert name in expected or default is not REQUIRED, f"{name} is required and nobody gives it"


def by_position(function: Callable[..., Any]) -> list[str]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [n for n, p in inspect.signature(function).parameters.items() if p.kind in kinds and n != "self"]


def test_connect_and_sources() -> None:
    takes(of.connect, url=None, consistency="strong", timeout=None)
    assert by_position(of.connect) == ["url"]
    common = {"paths": REQUIRED, "include_file_paths": None, "storage_options": None}
    takes(of.Database.read_text, **common)
    takes(of.Database.read_csv, **common, schema=None, schema_overrides=None)
    takes(of.Database.read_jsonl, **common, schema=None, schema_overrides=None)
    takes(of.Database.read_parquet, **common)
    takes(of.Database.read_files, paths=REQUIRED, storage_options=None)


def test_datasets_and_jobs() -> None:
    takes(Dataset.map, fn=REQUIRED, schema=None)
    takes(Dataset.flat_map, fn=REQUIRED, schema=None)
    takes(Dataset.map_batches, fn=REQUIRED, schema=None, batch_rows=None)
    takes(Dataset.join, other=REQUIRED, on=REQUIRED, how="inner", within=None)
    takes(Dataset.into, table=REQUIRED, mode="continue", version=None, keep=None)
    takes(Dataset.write_parquet, path=REQUIRED, partition_by=None, mode="replace")
    for name in ("select", "with_columns", "filter", "explode", "union", "group_by"):
        assert callable(getattr(Dataset, name))
    assert callable(GroupBy.agg)
    options = {
        "workers": None,
        "seed": 7,
        "target_splits": None,
        "on_error": "fail",
        "max_attempts": 4,
    }
    takes(PreparedJob.start, **options)
    takes(PreparedJob.run, progress=True, **options)
    assert by_position(PreparedJob.start) == list(options)
    assert by_position(PreparedJob.run) == ["progress"]


def test_database_runs_and_tables() -> None:
    takes(
        of.Database.map_reduce, dataset=REQUIRED, map=REQUIRED, reduce=REQUIRED, into=REQUIRED, combine=None
    )
    takes(of.Database.runs, state=None, table=None)
    takes(of.Database.open_run, id=REQUIRED)
    takes(of.Database.table, name=REQUIRED)
    takes(Run.wait, timeout=None)
    takes(Run.resume, workers=None)
    for name in ("progress", "result", "cancel", "errors"):
        takes(getattr(Run, name))
    takes(Table.top, n=20, by=None)
    takes(Table.get, key=REQUIRED)
    takes(Table.estimate, name=REQUIRED, level=0.95)
    takes(Table.watch, timeout=None)
    for name in ("to_polars", "scan", "to_arrow", "__len__"):
        takes(getattr(Table, name))
    assert isinstance(Table.status, property) and isinstance(Run.state, property)


def test_aggregates() -> None:
    takes(agg.count, col=None)
    for function in (agg.sum, agg.mean, agg.min, agg.max, agg.approx_n_unique):
        takes(function, col=REQUIRED)
    for function in (agg.std, agg.var):
        takes(function, col=REQUIRED, ddof=1)
    for function in (agg.first, agg.last):
        takes(function, col=REQUIRED, by=None)
    takes(agg.approx_quantile, col=REQUIRED, q=REQUIRED)
    takes(agg.most_frequent, col=REQUIRED, k=REQUIRED)
    takes(agg.fold, initial=REQUIRED, add=REQUIRED, merge=REQUIRED)
    assert of.agg is agg


def test_progress_and_status_fields() -> None:
    names = ["done", "total", "rows", "bytes", "failed", "retried", "reused", "workers", "elapsed", "eta"]
    assert [field.name for field in dataclasses.fields(of.Progress)][: len(names)] == names
    assert [field.name for field in dataclasses.fields(of.TableStatus)] == ["done", "total", "exact"]


ERRORS = [
    "Conflict",
    "Unavailable",
    "TooStale",
    "TooOld",
    "Timeout",
    "LogCorrupt",
    "MergeFailed",
    "InvalidKey",
    "InvalidValue",
    "InvalidPlan",
    "InvalidArgument",
    "TooLarge",
    "UnsupportedConsistency",
    "TransactionError",
    "BelowFloor",
    "JobFailed",
    "TokenError",
    "SpaceError",
]


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    kind = getattr(of, name)
    assert issubclass(kind, of.OnefoldError) and isinstance(kind("what to do").definite, bool)
    assert issubclass(kind, ValueError) == (name in ("InvalidKey", "InvalidValue", "InvalidArgument"))
    assert issubclass(kind, TimeoutError) == (name == "Timeout")


def test_exports_can_be_imported_and_have_docstrings() -> None:
    for name in of.__all__:
        value = getattr(of, name)
        assert name.startswith("__") or inspect.getdoc(value), name
    assert set(of.__all__) <= set(dir(of))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = of.nothing_like_it  # type: ignore[attr-defined]


def test_public_methods_have_docstrings_and_types() -> None:
    for kind in (of.Database, Dataset, GroupBy, PreparedJob, Run, Table):
        for name, member in vars(kind).items():
            function = member.fget if isinstance(member, property) else member
            if name.startswith("_") or not inspect.isfunction(function):
                continue
            assert inspect.getdoc(member), f"{kind.__name__}.{name}"
            assert "return" in function.__annotations__, f"{kind.__name__}.{name}"
    assert typing.get_args(inspect.signature(Run.state.fget).return_annotation) or True  # type: ignore[attr-defined]


def test_states_of_runs(db: of.Database, source: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def wait(record: dict[str, str]) -> dict[str, str]:
        import time

        while not gate.exists():
            time.sleep(0.01)
        return record

    def fail(record: dict[str, str]) -> dict[str, str]:
        raise ValueError(f"no {record['line']}")

    waiting = db.read_text(source).map(wait).into("waiting")
    run = waiting.start(workers=1)
    assert run.state == "running"
    assert db.table("waiting").status.exact is False
    with pytest.raises(of.Timeout):
        run.wait(timeout="20ms")
    assert run.progress().eta is None or run.progress().eta >= 0  # type: ignore[operator]
    run.cancel()
    assert run.state == "cancelled" and run.wait() is run
    with pytest.raises(of.Unavailable):
        run.result()
    gate.touch()
    assert db.open_run(run.id).resume(workers=1).wait(timeout=60).state == "done"
    with pytest.raises(of.JobFailed) as failed:
        db.read_text(source).map(fail).into("failing").run(progress=False, workers=1, max_attempts=1)
    assert "no a b" in str(failed.value) and "ValueError" in str(failed.value.traceback)
    assert failed.value.record is not None and ".txt" in str(failed.value.location)
    assert [found.id for found in db.runs()] == [failed.value.run_id, run.id]
    assert [found.id for found in db.runs(state="done")] == [run.id]
    assert [found.id for found in db.runs(table="failing")] == [failed.value.run_id]
    assert [found.id for found in db.runs("failed", "failing")] == [failed.value.run_id]
    assert db.runs(state="running") == [] and db.runs(table="unheard of") == []
    assert all(isinstance(found, Run) for found in db.runs())
    assert db.runs(state="failed")[0].errors()[0].record is not None


def test_modes_of_into(db: of.Database, source: Path) -> None:
    job = db.read_text(source).group_by("line").agg(n=agg.count())
    first = job.into("t").run(progress=False).progress()
    assert first.reused == 0 and first.rows == 120
    again = job.into("t").run(progress=False).progress()
    assert again.reused == again.done == again.total and again.rows == again.bytes == 0
    over = job.into("t", mode="replace").run(progress=False).progress()
    assert over.reused == 0 and over.rows == 120
    with pytest.raises(of.InvalidArgument, match="'t'"):
        job.into("t", mode="error").run(progress=False)
    (source / "new.txt").write_text("a b w0\n" * 5)
    more = job.into("t").run(progress=False).progress()
    assert more.rows == 5 and more.done == more.total == more.reused + 1
    (source / "new.txt").unlink()
    (source / "0.txt").write_text("changed\n" * 2)
    changed = job.into("t").run(progress=False).progress()
    assert changed.rows <= 22
    counts = dict(db.table("t").to_polars().iter_rows())
    assert counts == {"changed": 2, **{f"a b w{number}": 20 for number in range(1, 6)}}


def test_a_version_names_the_tasks(db: of.Database, source: Path) -> None:
    def job(suffix: str, version: str) -> of.Progress:
        marked = db.read_text(source).with_columns(pl.col("line") + suffix)
        return marked.into("t", version=version).run(progress=False).progress()

    assert job("x", "1").reused == 0
    kept = job("y", "1")
    assert kept.reused == kept.total and set(db.table("t").to_polars()["line"].str.slice(-1)) == {"x"}
    assert job("y", "2").reused == 0
    assert set(db.table("t").to_polars()["line"].str.slice(-1)) == {"y"}


def test_progress_while_tasks_fail_and_are_tried_again(db: of.Database, source: Path, tmp_path: Path) -> None:
    marker = tmp_path / "failed once"

    def sometimes(record: dict[str, str]) -> dict[str, str]:
        if not marker.exists():
            marker.touch()
            raise ConnectionError("the first time only")
        return record

    run = db.read_text(source).map(sometimes).into("t").run(progress=False, workers=1)
    progress = run.progress()
    assert (progress.failed, progress.retried, progress.reused, progress.workers) == (1, 1, 0, 0)
    assert progress.done == progress.total and progress.rows == 120 and progress.bytes > 0
    assert progress.eta == 0 and 0 < progress.elapsed == run.progress().elapsed


def test_skipped_records(db: of.Database, source: Path) -> None:
    def picky(record: dict[str, str]) -> dict[str, str]:
        if "w3" in record["line"]:
            raise ValueError("not this one")
        return record

    run = (
        db.read_text(source)
        .filter(pl.col("line") != "a b w5")
        .map(picky)
        .into("t")
        .run(progress=False, workers=1, on_error="skip", max_attempts=1)
    )
    assert run.state == "done" and len(run.result()) == 80
    skipped = [error for error in run.errors() if error.skipped]
    assert len(skipped) == 20 and {error.record for error in skipped} == {"{'line': 'a b w3'}"}
    assert "3.txt" in str(skipped[0].location) and "not this one" in skipped[0].message


def test_map_reduce(db: of.Database, source: Path) -> None:
    def words(record: Any) -> Iterator[tuple[str, int]]:
        for word in record["line"].split():
            yield word, 1

    def total(key: str, values: Any) -> int:
        return sum(values)

    run = db.map_reduce(db.read_text(source), map=words, reduce=total, combine=total, into="t")
    assert isinstance(run, Run)
    table = run.result()
    assert table.to_polars().columns == ["key", "value"]
    assert dict(table.to_polars().iter_rows()) == {"a": 120, "b": 120, **{f"w{i}": 20 for i in range(6)}}
    assert table.get("a") == {"key": "a", "value": 120}
    assert table.top(1, by="value")["value"].to_list() == [120]
    assert run.progress().rows == 120


NOT_ROW_LOCAL = [
    pl.col("line").max(),
    pl.col("line").n_unique(),
    pl.len(),
    pl.col("line").count().over("line"),
    pl.col("line").str.len_chars().rank(),
    pl.col("line").shift(1),
    pl.col("line").str.len_chars().cum_sum(),
    pl.col("line").sort(),
    pl.col("line").unique(),
    pl.col("line").head(3),
    pl.col("line").str.len_chars() > pl.col("line").str.len_chars().mean(),
    pl.col("line").map_batches(lambda series: series),
]


@pytest.mark.parametrize("number", range(len(NOT_ROW_LOCAL)))
def test_what_is_not_row_local_is_refused(db: of.Database, source: Path, number: int) -> None:
    expr, data = NOT_ROW_LOCAL[number], db.read_text(source)
    for step in (data.select, data.filter, data.with_columns):
        with pytest.raises(of.InvalidPlan):
            step(expr.alias("x"))  # type: ignore[operator]


def test_reprs(db: of.Database, source: Path) -> None:
    run = db.read_text(source).group_by("line").agg(n=agg.count()).into("t <i>").run(progress=False)
    for value in (run, run.result()):
        html = value._repr_html_()
        assert "t &lt;i&gt;" in html and "<i>" not in html
        assert "t <i>" in repr(value)
    assert re.search(r"6 of 6|6/6", run._repr_html_() + run.result()._repr_html_())
    assert "memory" in repr(of.connect("memory://")) and str(source) in repr(db.read_text(source))


KILLED = """
import os, sys, time
from pathlib import Path
import onefold as of
from onefold import agg, config

SEEN, GATE = sys.argv[3:]

def words(record):
    Path(SEEN, str(os.getpid()) + "." + str(time.time_ns())).touch()
    while len(list(Path(SEEN).iterdir())) > 50 and os.path.exists(GATE):
        time.sleep(0.01)
    return record["line"].split()

if __name__ == "__main__":
    with of.connect(sys.argv[1]) as db:
        job = db.read_text(sys.argv[2]).flat_map(words).group_by("value").agg(n=agg.count()).into("t")
        print(job.start(workers=1).id, flush=True)
        time.sleep(600)
"""


def test_a_killed_run_is_resumed_by_a_process_without_its_functions(source: Path, tmp_path: Path) -> None:
    program, seen, gate = tmp_path / "program.py", tmp_path / "seen", tmp_path / "gate"
    program.write_text(KILLED)
    seen.mkdir()
    gate.touch()
    child = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path / "space"), str(source), str(seen), str(gate)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        run_id = child.stdout.readline().strip()
        with of.connect(tmp_path / "space") as db:
            for snapshot in db.table("t").watch(timeout=60):
                if snapshot.done >= 2:
                    break
            assert not snapshot.exact and set(snapshot.estimate("n")["kind"]) == {"estimate"}
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            program.unlink()
            gate.unlink()
            run = db.open_run(run_id)
            assert run.state == "running"
            before = run.progress()
            assert before.done >= 2
            with pytest.raises(of.Unavailable, match="resume"):
                run.wait(timeout=60)
            table = run.resume(workers=1).result()
            after = run.progress()
            assert (after.done, after.reused, after.rows, after.failed) == (after.total, 0, 120, 0)
            assert dict(table.to_polars().iter_rows()) == {
                "a": 120,
                "b": 120,
                **{f"w{i}": 20 for i in range(6)},
            }
            assert db.open_run(run_id).resume().state == "done"  # and nothing happens
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_are_counted_once_as_they_are_read(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    if shuffled:
        monkeypatch.setattr(config, "BROADCAST_BYTES_MAX", 0)
    for name, n in (("a", 1000), ("b", 100)):
        pl.DataFrame({"k": range(n), name: range(n)}).write_parquet(tmp_path / f"{name}.parquet")
    left, right = (db.read_parquet(tmp_path / f"{name}.parquet") for name in "ab")
    sizes = sum((tmp_path / f"{name}.parquet").stat().st_size for name in "ab")
    joined = left.join(right, on="k").into("joined").run(progress=False)
    assert joined.progress().rows == 1100
    assert sizes / 2 < joined.progress().bytes <= sizes  # of a Parquet file its columns, not its footer
    assert len(joined.result()) == 100
    both = left.select("k").union(right.select("k")).into("both").run(progress=False)
    assert (both.progress().rows, len(both.result())) == (1100, 1100)
    written = left.write_parquet(tmp_path / "out").run(progress=False)
    assert (written.progress().rows, len(written.result())) == (1000, 1000)
    again = left.write_parquet(tmp_path / "out").run(progress=False).progress()
    assert (again.rows, again.bytes, again.reused) == (0, 0, again.total)


def test_the_folds_that_connecting_names_are_the_real_ones() -> None:
    from onefold.compute.jobs.fold import JobsFold
    from onefold.fold.nodes.fold import NodesFold
    from onefold.folds import folds
    from onefold.state.fold.machine import StateFold

    for lazy, real in zip(folds(0, 2), (JobsFold(), StateFold(2), NodesFold()), strict=True):
        assert (lazy.name, lazy.version, lazy.history) == (real.name, real.version, real.history)
    assert [fold.name for fold in folds(1, 2)] == ["state"]
