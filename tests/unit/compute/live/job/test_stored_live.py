"""Spaces with live jobs that releases made: their tables read as they did, and the jobs continue with the same plan.

``support/space_of_live.py`` made them. A difference here is a changed format, not a broken test; see ``docs/formats.md``.
"""

from __future__ import annotations

import json
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from support.space_of_live import BEGIN, FIRST, events, how_it_reads, jobs

ASSETS = Path(__file__).parents[4] / "assets"
KEPT = sorted(path.name for path in ASSETS.glob("space-*-live"))


@pytest.fixture(params=KEPT)
def kept(request: pytest.FixtureRequest) -> Path:
    return ASSETS / str(request.param)


@pytest.fixture
def space(kept: Path, tmp_path: Path) -> Path:
    with tarfile.open(kept / "space.tar.gz") as archive:
        archive.extractall(tmp_path / "space", filter="data")
    return tmp_path / "space"


def test_every_release_with_live_jobs_is_kept() -> None:
    assert {"space-0.4-live", "space-0.5-live"} <= set(KEPT)


def test_it_reads_as_it_did(space: Path, kept: Path) -> None:
    expected = json.loads((kept / "expected.json").read_text())["reads"]
    with of.connect(space, create=False) as db:
        assert json.loads(json.dumps(how_it_reads(db))) == expected
    with of.connect(space, read_only=True) as db:
        assert json.loads(json.dumps(how_it_reads(db))) == expected


def test_its_jobs_continue(space: Path) -> None:
    whole = pl.concat(
        [
            events(),
            pl.DataFrame({"at": [BEGIN], "page": ["/late"], "user": ["late"], "ms": [1], "price": [0.5]}),
        ]
    )
    with of.connect(space, create=False) as db:
        db.stream("clicks").append_many(events().slice(FIRST), key="page")
        runs = {name: job.start() for name, job in jobs(db).items()}
        for run in runs.values():
            run.catch_up(timeout=60)
            run.stop(drain=True)
        for run in runs.values():
            run.wait(60)
        assert {page: row["n"] for page, row in db.map("pages").items()} == _counts(whole, "page", "n")
        assert _counts_of(db.table("users").to_polars(), "user", "n") == _counts(whole, "user", "n")
        assert db.table("minutes").to_polars()["n"].sum() + db.table("minutes").late().height == whole.height
        minutes = (
            whole.filter(pl.col("page") != "/late").group_by(pl.col("at").dt.truncate("1m"), "page").len()
        )
        made = db.table("minutes").to_polars()
        assert sorted(made.select("window_start", "page", "n").rows()) == sorted(
            (at, page, n) for at, page, n in minutes.rows()
        )
        slow = whole.filter(pl.col("ms") > 990)
        assert sorted(r.value["user"] for r in db.stream("slow").read()) == sorted(slow["user"])
        assert db.table("sliding").to_polars()["window_start"].max() >= whole["at"].max() - timedelta(
            minutes=1
        )


def test_a_job_that_was_begun_without_its_sink_still_has_its_plan(space: Path) -> None:
    with of.connect(space, create=False) as db:
        clicks = db.read_stream("clicks", follow=True, event_time="at", watermark_delay="2s")
        with pytest.raises(of.Conflict, match="aggregate m was nothing"):
            clicks.group_by("user").agg(m=of.agg.count()).into("users").start(workers=0)
        assert jobs(db)["users"].start(workers=0).id == "users/1"


def _counts(frame: pl.DataFrame, key: str, value: str) -> dict[Any, Any]:
    return _counts_of(frame.group_by(key).agg(pl.len().alias(value)), key, value)


def _counts_of(frame: pl.DataFrame, key: str, value: str) -> dict[Any, Any]:
    return dict(frame.select(key, value).rows())
