"""Backups, the doctor and spaces restored from backups know the blobs and rows of live jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.backup.backup import backup, restore
from onefold.doctor.embedded import check_blobs, check_space
from onefold.folds import all_blob_tables, blob_tables, folds
from onefold.state.fold import blobs as named_blobs

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def every_run_is_a_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LIVE_INLINE_BYTES_MAX", 64)


def job(db: of.Database) -> Any:
    rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
    return rows.window(of.window.tumbling("10s")).group_by("k").agg(n=agg.count()).into("t")


def append(db: of.Database, run: Any, first: int, count: int) -> None:
    for number in range(first, first + count):
        at = [START + timedelta(seconds=number)] * 3
        db.stream("s").append_many(pl.DataFrame({"at": at, "k": [1, 2, 3]}), key=None)
        run.catch_up(timeout=120)


def checks(db: of.Database, **options: Any) -> dict[str, Any]:
    found = check_blobs(db._shards, all_blob_tables(), fix=False, **options)  # type: ignore[arg-type]
    return {check.name: check for check in found}


def test_a_restored_space_continues_its_live_job(tmp_path: Path) -> None:
    with of.connect(tmp_path / "a") as db:
        db.stream("s").create()
        run = job(db).start(latency=0, lanes=4)
        append(db, run, 0, 25)
        manifest = backup(db._shards, tmp_path / "b", blob_tables=blob_tables())  # while the job runs
        assert not manifest.missing_blobs
        assert any(name.startswith("blobs/") for name in manifest.files)
    assert not restore(tmp_path / "b", tmp_path / "c", folds, blob_tables=blob_tables()).missing_blobs
    with of.connect(tmp_path / "c") as db:
        found = check_space(db._shards, folds, deep=True, blob_tables=all_blob_tables(), fix=False)
        assert {check.status for check in found} <= {"ok", "skipped"}
        run = job(db).start(latency=0)
        append(db, run, 25, 10)
        run.stop(drain=True, timeout=120)
        table = db.table("t").to_polars()
        assert table["n"].to_list() == [10] * 9 + [5] * 3 and table.height == 12


def test_the_doctor_says_what_a_missing_blob_of_a_live_job_means(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        run = job(db).start(latency=0, lanes=4)
        append(db, run, 0, 20)
        run.stop()
        assert checks(db)["blobs"].status == "ok"
        with db._shard.view() as view:
            garbage = next(iter(view.scan(named_blobs.GARBAGE)))[0].decode()
            name = next(iter(view.scan(named_blobs.BLOBS)))[0].decode()
        db._engine.blobs.hide(garbage, "l")
        assert checks(db)["blobs"].status == "ok", "nothing needs it any more"
        db._engine.blobs.delete(name)
        missing = checks(db)["blobs"]
        assert missing.status == "problem" and "replay" in str(missing)
