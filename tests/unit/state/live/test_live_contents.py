"""Live jobs where all kinds of collections are looked at: lists, the doctor, exports, backups."""

from __future__ import annotations

import io
import json

import pytest

import onefold as of
from onefold.backup.backup import backup, restore
from onefold.compute.blobs.store import BlobStore
from onefold.compute.live.bundles import Delta, Worker
from onefold.compute.live.client import LiveJob
from onefold.doctor.embedded import check_blobs
from onefold.doctor.state import check_state
from onefold.folds import all_blob_tables, blob_tables, folds
from onefold.state.export.exporting import export
from onefold.state.fold.live.ops import Position
from support.live_counting import PART


@pytest.fixture
def db(tmp_path):
    with of.connect(tmp_path / "space", shards=3) as found:
        yield found


def started(db):
    """A job whose rows are not in the first shard, with its plan and a run in blobs."""
    blobs = BlobStore(db._shards[0].directory / "blobs")
    job = next(job for job in (LiveJob(db._state, f"job{number}") for number in range(100)) if job.home == 2)
    job.start(blobs.put(b"plan"), [PART])
    (held,) = Worker(job, 1).claim("count")
    run = held.run("state", bytes(100_000), 1, blobs)
    held.commit(Delta((Position(0, 0, 5, 50),), 50, (run,)))
    return job, run.blob


def test_it_is_listed_with_its_shard(db):
    job, _ = started(db)
    (found,) = [one for one in db.collections() if one.kind == "live job"]
    assert (found.name, found.count, found.shards) == (job.name, 1, (2,))


def test_the_doctor_sees_who_holds_its_lanes(db, monkeypatch):
    started(db)
    details = {check.name: check.found for check in check_state(db._state)}
    assert details["leases"] == "1 leases of locks, messages and live jobs are held"
    for shard in db._shards:
        monkeypatch.setattr(shard, "member_alive", lambda member: False)
    details = {check.name: check.found for check in check_state(db._state)}
    assert "lanes of the live job" in details["leases"]


def test_the_doctor_knows_its_blobs_in_every_shard(db):
    _, blob = started(db)
    tables = all_blob_tables()
    checks = {check.name: check for check in check_blobs(db._shards, tables, fix=True)}
    assert checks["blobs"].status == "ok" and "all 2" in checks["blobs"].found
    (db._shards[0].directory / "blobs" / blob[:2] / blob).unlink()
    checks = {check.name: check for check in check_blobs(db._shards, tables, fix=True)}
    assert checks["blobs"].status == "problem" and blob[:16] in checks["blobs"].found


def test_a_backup_has_its_rows_and_blobs(db, tmp_path):
    job, blob = started(db)
    made = backup(db._shards, tmp_path / "backup", blob_tables=blob_tables())
    assert any(blob in name for name in made.files) and made.missing_blobs == ()
    restored = restore(tmp_path / "backup", tmp_path / "other", folds, blob_tables=blob_tables())
    assert restored.missing_blobs == ()
    with of.connect(tmp_path / "other") as again:
        other = LiveJob(again._state, job.name)
        assert other.row() == job.row()
        assert other.start("plan2", [PART]).before == "running"


def test_it_is_not_exported_and_exports_stay_whole(db):
    started(db)
    db.map("m")["k"] = 1
    out = io.StringIO()
    export(db._state, out.write)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert lines[1]["map"] == "m" and lines[-1] == {"end": True, "lines": 1}


def test_a_read_only_program_sees_it(db, tmp_path):
    job, _ = started(db)
    with job.view() as view:
        assert view.tables("state/l/")
