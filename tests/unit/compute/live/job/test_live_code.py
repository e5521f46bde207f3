"""Which plans of live jobs a process loads, and what it lists of those that it cannot load."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.code import functions
from onefold.compute.code.references import CodeRefused
from onefold.compute.live.plan import LivePlan


def stored(db: of.Database, job: Any) -> bytes:
    jobs = db._live_starter().jobs
    job.start(workers=0)
    row = jobs.get(job.name).job.generation(1)
    assert row is not None
    return jobs.blobs.get(row.plan)


@pytest.mark.parametrize(
    "window", [of.window.tumbling("1m"), of.window.sliding("1h", every="5m"), of.window.session("30s"), None]
)
def test_plans_of_expressions_are_loaded_without_code(window: Any) -> None:
    with of.connect("memory://") as db:
        start = db.stream("clicks").append({"page": "a"})
        rows = db.read_stream("clicks", follow=True, schema={"page": pl.String}, start=start)
        rows = rows.filter(pl.col("page") != "b")
        rows = rows if window is None else rows.window(window)
        grouped = rows.group_by("page").agg(
            n=agg.count(), q=agg.approx_quantile(pl.col("page").str.len_chars(), 0.5)
        )
        for job in (grouped.into("t"), grouped.into_map("m", key="page"), grouped.into_stream("o")):
            plan = functions.load(stored(db, job), code="reference")
            assert isinstance(plan, LivePlan) and plan.job == job.name


def test_plans_that_carry_code_are_refused() -> None:
    with of.connect("memory://") as db:
        db.stream("clicks").create()
        rows = db.read_stream("clicks", follow=True)
        mapped = rows.map(lambda row: row).group_by("page").agg(n=agg.count()).into("t")
        with pytest.raises(CodeRefused, match="code of its own"):
            functions.load(stored(db, mapped), code="reference")
        folded = rows.group_by("page").agg(n=agg.fold(int, int.__add__, int.__add__)).into("u")
        with pytest.raises(CodeRefused):
            functions.load(stored(db, folded), code="reference")


@pytest.mark.parametrize("missing", ["module", "blob"])
def test_jobs_whose_plan_cannot_be_loaded_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    library = tmp_path / "site-packages"
    library.mkdir()
    (library / "library_of_a_job.py").write_text("def same(row):\n    return row\n")
    with monkeypatch.context() as patched:
        patched.syspath_prepend(library)
        import library_of_a_job  # type: ignore[import-not-found]

        with of.connect(tmp_path / "space") as db:
            db.stream("clicks").append({"page": "a"})
            rows = db.read_stream("clicks", follow=True)
            rows.map(library_of_a_job.same).into("odd").start().catch_up(timeout=120).stop()
            rows.into("fine").start().catch_up(timeout=120).stop()
            if missing == "blob":
                jobs = db._live_starter().jobs
                row = jobs.get("odd").job.generation(1)
                assert row is not None
                jobs.blobs.delete(row.plan)
    del sys.modules["library_of_a_job"]
    with of.connect(tmp_path / "space") as db:
        found = {run.name: run for run in db.runs()}
        assert {name: run.state for name, run in found.items()} == {"odd": "stopped", "fine": "stopped"}
        assert found["fine"].status().rows == 1
        with pytest.raises((of.InvalidValue, of.Unavailable)):
            found["odd"].status()
        tables = {table.name: table for table in db.tables()}
        assert "1 events" in repr(tables["fine"]) and repr(tables["odd"]).startswith("<LiveTable 'odd': ")
        db.drop("odd")
        assert [run.name for run in db.runs()] == ["fine"]
        assert "dropped" in repr(found["odd"])
