"""The doctor finds what is wrong, says what to do, and finds nothing where all is well. Each illness is planted here."""

import os
import shutil
import sys
import time
from contextlib import closing

import pytest

import onefold as of
from onefold import agg, config
from onefold.codec import Op, Record, encode_record
from onefold.db import Database
from onefold.doctor import embedded
from onefold.doctor.embedded import check_space
from onefold.doctor.state import check_state
from onefold.env import SeededEnv
from onefold.folds import all_blob_tables
from onefold.folds import folds as space_folds
from onefold.ids import client_id
from onefold.log.sqlite.engine import entry_crc
from onefold.space.open_space import open_shards
from onefold.state.fold import rows


def checks(db, **options):
    found = [
        *check_space(db._shards, space_folds, blob_tables=all_blob_tables(), **options),
        *check_state(db._state),
    ]
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    for check in found:
        assert check.found and not check.found.endswith(".")
        assert bool(check.advice) == (check.status in ("warn", "problem")), check
    return {check.name: check for check in found}


def ill(found):
    return {name: check.status for name, check in found.items() if check.status in ("warn", "problem")}


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def db(request, tmp_path):
    with of.connect(tmp_path / "space", shards=request.param) as opened:
        opened.map("m").update(dict.fromkeys(range(50), "x" * 50))
        with opened.transaction() as tx:
            tx.map("m")[1] = 2
            tx.map("m")[2] = 3
            tx.queue("q").put(1)
        opened.map("m").put("short", 1, ttl="1h")
        opened.stream("s", partitions=3).append(1)
        yield opened


def test_where_all_is_well_nothing_is_found(db):
    found = checks(db)
    assert ill(found) == {}
    per_shard = len([name for name in found if name.startswith(("file", "log", "state"))])
    assert per_shard == 3 * len(db._shards)
    assert "is what the log gives" in found["state"].found


def test_a_space_with_jobs_is_well_too(tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 10)
    with of.connect(tmp_path / "space") as db:
        for _ in range(2):
            db.read_text(str(tmp_path / "a.txt")).group_by("line").agg(n=agg.count()).into("t").run(
                progress=False, workers=1
            )
        assert ill(checks(db)) == {}


def test_it_changes_nothing(db):
    before = [(space.applied, space.state_digest()) for space in db._shards]
    checks(db, deep=True, fix=True)
    assert [(space.applied, space.state_digest()) for space in db._shards] == before


def test_state_that_the_log_does_not_give_is_a_problem(db):
    space = db._shards[-1]
    with space.log.file.writing() as con:
        tid = con.execute("SELECT id FROM tables WHERE name = ?", (rows.map_table("m"),)).get
        key = con.execute("SELECT k FROM kv WHERE t = ? LIMIT 1", (tid,)).get
        con.execute(
            "UPDATE kv SET v = ? WHERE t = ? AND k = ?", (rows.row_head(1, 0, None) + b"\x07", tid, key)
        )
    name = "state" if len(db._shards) == 1 else f"state of shard {len(db._shards) - 1}"
    assert ill(checks(db)) == {name: "problem"}


def test_a_lost_row_of_state_is_a_problem(db):
    with db._shard.log.file.writing() as con:
        con.execute("UPDATE head SET number = number - 1")
    assert ill(checks(db)) == {"state": "problem"}


@pytest.mark.parametrize("how", ["damaged", "other bytes", "gone"])
def test_a_log_that_is_not_what_was_applied_is_a_problem(db, how):
    with db._shard.log.file.writing() as con:
        if how == "damaged":
            con.execute("UPDATE log SET data = zeroblob(length(data)) WHERE offset = 1")
        elif how == "gone":
            con.execute("DELETE FROM log WHERE offset = 1")
        else:
            ms = con.execute("SELECT ms FROM log WHERE offset = 1").get
            data = encode_record(Record(client_id(0, SeededEnv(1)), 1, ms, (Op("state", b"x"),)))
            con.execute("UPDATE log SET data = ?, crc = ? WHERE offset = 1", (data, entry_crc(1, ms, data)))
    found = checks(db)
    assert ill(found) == {"log": "problem"}
    assert found["state"].status == "skipped"
    assert "backup" in found["log"].advice


def test_a_flipped_bit_in_the_file_is_a_problem(tmp_path):
    with of.connect(tmp_path / "space") as db:
        db.map("m").update({number: os.urandom(500) for number in range(2000)})
    path = tmp_path / "space" / "space.db"
    data = bytearray(path.read_bytes())
    for at in range(len(data) // 3, len(data) - 5000, 4096):
        data[at] ^= 4
    path.write_bytes(data)
    with of.connect(tmp_path / "space", create=False) as db:
        found = checks(db)
    assert found["file"].status == "problem"
    assert "restore" in found["file"].advice


def test_records_that_no_program_can_read_are_told(tmp_path):
    with of.connect(tmp_path / "space") as db:
        db.map("m")["k"] = 1
        with db._shard.log.appending() as con:
            db._shard.log.append_in(con, b"garbage", db._shard.env.wall_ms())
        db._shard.catch_up()
        found = checks(db)
        assert ill(found) == {"refused": "warn"} and "offset 2" in found["refused"].found


def test_a_clock_that_was_ahead_is_told(tmp_path):
    env = SeededEnv(1)
    with closing(Database(open_shards(tmp_path / "space", space_folds, env=env))) as db:
        env.advance(5000)
        db.map("m")["k"] = 1
        env.advance(-4000)
        found = checks(db)
        assert ill(found) == {"time": "warn"} and "4000 s ahead" in found["time"].found
        env.advance(3990)
        assert ill(checks(db)) == {}


def test_a_large_log_is_folded_again_only_when_asked(db, monkeypatch):
    monkeypatch.setattr(config, "DOCTOR_REPLAY_BYTES_MAX", 100)
    assert {check.status for name, check in checks(db).items() if name.startswith("state")} == {"skipped"}
    assert {check.status for name, check in checks(db, deep=True).items() if name.startswith("state")} == {
        "ok"
    }


def test_a_trimmed_log_is_checked_as_far_as_it_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "DIGEST_EVERY_OFFSETS", 8)
    with of.connect(tmp_path / "space") as db:
        for number in range(30):
            db.map("m")[number] = number
        db._shard.trim(20)
        found = checks(db)
        assert ill(found) == {} and found["state"].status == "skipped" and "20" in found["log"].found
        with db._shard.log.file.writing() as con:
            ms = con.execute("SELECT ms FROM log WHERE offset = 26").get
            con.execute("UPDATE log SET data = x'00', crc = ? WHERE offset = 26", (entry_crc(26, ms, b"\0"),))
        assert ill(checks(db)) == {"log": "problem"}


def test_blobs_of_no_job_are_removed_when_they_are_old(tmp_path):
    (tmp_path / "a.txt").write_text("x\n" * 10)
    with of.connect(tmp_path / "space") as db:
        db.read_text(str(tmp_path / "a.txt")).group_by("line").agg(n=agg.count()).into("t").run(
            progress=False, workers=1
        )
        blobs = db._engine.blobs
        kept = set(blobs.names())
        young, old = blobs.put(b"young"), blobs.put(b"old")
        for name in {*kept, old}:
            os.utime(blobs.path(name), (time.time() - 2 * config.ORPHAN_BLOB_AGE_S,) * 2)
        assert ill(checks(db)) == {"orphans": "warn"}
        assert blobs.exists(old)
        assert ill(checks(db, fix=True)) == {}
        assert set(blobs.names()) == kept | {young}
        assert db.table("t").to_polars().rows() == [("x", 10)]
        blobs.delete(next(iter(kept)))
        assert ill(checks(db)) == {"blobs": "warn"}


def test_a_full_disk_is_told(db, monkeypatch):
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10**9, 10**9))
    assert ill(checks(db)) == {"disk": "warn"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 10**12 - 10**6, 10**6))
    assert ill(checks(db)) == {"disk": "problem"}


def test_a_log_much_larger_than_its_state_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "LOG_BYTES_LARGE", 10_000)
    with of.connect(tmp_path / "space") as db:
        for _ in range(30):
            db.map("m")["k"] = "x" * 1000
        assert ill(checks(db)) == {"size": "warn"}


def test_dead_letters_are_told(tmp_path):
    with of.connect(tmp_path / "space") as db:
        queue = db.queue("mail", max_attempts=1)
        queue.put(1)
        queue.take(timeout=0).nack(error="no")
        found = checks(db)
        assert ill(found) == {"dead letters": "warn"} and "1 in 'mail'" in found["dead letters"].found


HOLDER = """
import os, signal, sys
import onefold as of
db = of.connect(sys.argv[1])
db.lock("l").acquire()
db.queue("q").put(1)
db.queue("q").take(timeout=0)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_dead_processes_hold_is_told(tmp_path):
    import subprocess

    subprocess.run([sys.executable, "-c", HOLDER, str(tmp_path / "space")], timeout=60, check=False)
    with of.connect(tmp_path / "space", create=False) as db:
        found = checks(db)
        assert (
            "2 leases of locks, messages and live jobs are held, 2 of them by processes that are dead"
            in found["leases"].found
        )
        assert ill(found) == {}  # they heal by themselves


def test_a_transaction_left_by_a_dead_process_is_told(tmp_path):
    import subprocess

    program = """
import os, signal, sys
import onefold as of
db = of.connect(sys.argv[1], shards=3)
db.map("m").update({n: n for n in range(9)})
submits = 0
for space in db._shards:
    real = space.submit
    def submit(ops, *args, real=real, **kwargs):
        global submits
        submits += 1
        if submits > 2: os.kill(os.getpid(), signal.SIGKILL)
        return real(ops, *args, **kwargs)
    space.submit = submit
with db.transaction() as tx:
    for n in range(9): tx.map("m")[n] = -n
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "space")], timeout=60, check=False)
    with of.connect(tmp_path / "space", create=False) as db:
        found = checks(db)
        assert found["transactions"].status == "warn" and "unfinished" in found["transactions"].found
        assert set(ill(found)) == {"transactions"}
        db.map("m").update({n: n for n in range(9)})
        assert "transactions" not in ill(checks(db))


def test_a_space_in_memory_has_nothing_to_look_at():
    with of.connect("memory://") as db:
        found = checks(db)
        assert found["files"].status == "skipped"


def test_an_orphan_that_is_named_again_meanwhile_stays(tmp_path, monkeypatch):
    """A run that computes the same again finds its blob there, writes nothing, and names it."""
    (tmp_path / "a.txt").write_text("\n".join(str(number) for number in range(40_000)))
    with of.connect(tmp_path / "space") as db:
        job = db.read_text(str(tmp_path / "a.txt")).group_by("line").agg(n=agg.count()).into("t")
        job.run(progress=False, workers=1)
        blobs = db._engine.blobs
        kept = {name: blobs.get(name) for name in blobs.names()}
        monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
        db.drop("t")
        db._engine.garbage.sweep()
        assert not set(blobs.names()) and not blobs.hidden()
        for name, data in kept.items():
            assert blobs.put(data) == name
            os.utime(blobs.path(name), (time.time() - 2 * config.ORPHAN_BLOB_AGE_S,) * 2)
        damaged = embedded._damaged

        def meanwhile(*args, **options):
            job.run(progress=False, workers=1)
            return damaged(*args, **options)

        monkeypatch.setattr(embedded, "_damaged", meanwhile)
        checks(db, fix=True)
        for _ in range(2):
            db._engine.garbage.sweep()
        with db._shard.view() as view:
            named = {key.decode() for key, _ in view.scan("jobs/blob")}
        assert named and named <= set(blobs.names())
        assert len(db.table("t").to_polars()) == 40_000
