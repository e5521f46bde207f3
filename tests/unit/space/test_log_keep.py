"""Spaces in folders keep as much of their log as was said, and say how far back their past reaches."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import onefold as of
from onefold import agg, config
from onefold.backup.backup import backup, restore
from onefold.compute.live_starting import LiveHost
from onefold.folds import blob_tables, folds
from onefold.log.sqlite.engine import SqliteLog
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.log_keep import KEEP_ALL, LogKeep
from onefold.space.kept_log import kept_log

KEEP = 128 * 1024


def fill(db: of.Database, puts: int, size: int = 4096) -> None:
    for number in range(puts):
        db.map("m")[number % 10] = number.to_bytes(4, "big") * (size // 4)


def shard_of(db: of.Database) -> EmbeddedShard:
    shard = db._shards[0]
    assert isinstance(shard, EmbeddedShard)
    return shard


def log_bytes(db: of.Database) -> int:
    with shard_of(db).log.file.reading() as con:
        return int(str(con.execute("SELECT coalesce(sum(length(data)), 0) FROM log").get))


def test_the_log_is_kept_up_to_the_bound_and_the_state_stays(tmp_path: Path) -> None:
    with of.connect(tmp_path, log_keep=KEEP) as db:
        largest = 0
        for _ in range(5):
            fill(db, 100)
            shard_of(db).log_keep.trim()
            largest = max(largest, log_bytes(db))
        assert KEEP / 2 <= largest <= 4 * KEEP  # it is cut at multiples of 64 records, here of 256 KB
        shard = shard_of(db)
        first = shard.log.first
        assert first > 100 and shard.log_keep.trim() == first, "nothing more to trim"
        assert db.map("m")[3] == (93).to_bytes(4, "big") * 1024
        shown = kept_log(db._shards)
        assert shown is not None and shown.trimmed and shown.keep_bytes == KEEP and shown.at_from_ms > 0
        shard.verify()
    with of.connect(tmp_path) as db:
        assert shard_of(db).log_keep.bytes == KEEP and shard_of(db).log.first == first
        fill(db, 1)


def test_small_records_are_cut_close_to_the_bound(tmp_path: Path) -> None:
    with of.connect(tmp_path, log_keep=64 * 1024) as db:
        fill(db, 700, size=256)
        shard_of(db).log_keep.trim()
        assert 32 * 1024 <= log_bytes(db) <= 100 * 1024


def test_a_process_trims_by_itself_after_so_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LOG_KEEP_LOOK_BYTES", 50_000)
    with of.connect(tmp_path, log_keep=KEEP) as db:
        for _ in range(40):
            fill(db, 20)
            if shard_of(db).log.first > 1:
                break
        assert shard_of(db).log.first > 1


def test_nothing_is_trimmed_unless_it_was_said(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        fill(db, 200)
        shard = shard_of(db)
        assert shard.log_keep.bytes is None and shard.log_keep.trim() == 1 == shard.log.first
        assert kept_log(db._shards) == (None, False, 0)


def test_a_second_process_obeys_and_what_was_left_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path, log_keep=KEEP) as db:
        fill(db, 200)
        shard = shard_of(db)
        with monkeypatch.context() as killed:  # between the record and the deletes
            killed.setattr(LogKeep, "_steps", lambda *_: [])
            shard.log_keep.trim()
        with shard.view() as view:
            decided = view.head().log_first
        assert shard.log.first < decided
        with of.connect(tmp_path) as other:
            assert shard_of(other).log.first == decided and shard_of(other).log_keep.trim() == decided


def test_a_process_that_closes_ends_after_the_step_and_the_next_one_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LOG_TRIM_STEP_BYTES", 1)
    with of.connect(tmp_path, log_keep=None) as db:
        fill(db, 400)
        shard = shard_of(db)
        steps, trim = [], type(shard.log).trim

        def closing(log: SqliteLog, upto: int) -> None:
            steps.append(upto)
            trim(log, upto)
            shard.log_keep._closing.set()

        with monkeypatch.context() as patched:
            patched.setattr(LogKeep, "look_soon", lambda _: None)
            patched.setattr(type(shard.log), "trim", closing)
            shard.log_keep.say(KEEP)
            shard.log_keep.trim()
        with shard.view() as view:
            decided = view.head().log_first
        assert len(steps) == 1 and steps[0] == shard.log.first < decided
    with of.connect(tmp_path) as db:
        assert shard_of(db).log.first == decided


@pytest.mark.parametrize("given", ["much", "1kb", 100, True, -1, "nan", "inf", 2.5])
def test_a_bound_that_is_none_is_refused(tmp_path: Path, given: object) -> None:
    with pytest.raises(of.InvalidArgument, match="log_keep must be bytes or text"):
        of.connect(tmp_path / "s", log_keep=given)  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_clusters_and_readers_cannot_say_it(tmp_path: Path) -> None:
    with pytest.raises(of.InvalidArgument, match="space in a folder"):
        of.connect("nats://127.0.0.1:1/x", log_keep="1GB")
    with pytest.raises(of.InvalidArgument, match="read_only"):
        of.connect(tmp_path, log_keep="1GB", read_only=True)
    with pytest.raises(of.InvalidArgument, match=r"in memory keeps its whole log .* or open a folder"):
        of.connect("memory://", log_keep="1GB")
    with of.connect("memory://", log_keep=None) as db:  # which is so
        db.map("m")["a"] = 1


def test_backups_take_the_bound_along(tmp_path: Path) -> None:
    with of.connect(tmp_path / "a", log_keep=None, shards=2) as db:
        fill(db, 3)
        backup(db._shards, tmp_path / "b", blob_tables=blob_tables())
    restore(tmp_path / "b", tmp_path / "c", folds, blob_tables=blob_tables())
    with of.connect(tmp_path / "c") as db:
        assert [shard.log_keep.bytes for shard in db._shards] == [KEEP_ALL] * 2  # type: ignore[attr-defined]


def live_job(db: of.Database) -> None:
    db.stream("s").append({"at": datetime(2026, 1, 1, tzinfo=UTC), "k": 1})
    rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None)
    run = rows.group_by("k").agg(n=agg.count(), ttl=None).into("t").start(latency=0)
    run.stop(drain=True, timeout=120)


@pytest.mark.parametrize("said", ["nothing", "all", "much"])
def test_the_first_live_job_says_that_it_bounds_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], said: str
) -> None:
    options = {"nothing": {}, "all": {"log_keep": None}, "much": {"log_keep": "20GB"}}[said]
    with of.connect(tmp_path, shards=2, **options) as db:  # type: ignore[arg-type]
        live_job(db)
        assert ("first live job" in capfd.readouterr().err) == (said == "nothing")
        db.drop("t")
        live_job(db)
        assert not capfd.readouterr().err, "said once"
        shown = kept_log(db._shards)
        assert shown is not None
        assert shown.keep_bytes == {"nothing": 10**9, "all": None, "much": 20 * 10**9}[said]


@pytest.mark.parametrize("how", ["start", "resume", "replay"])
def test_a_log_is_bounded_by_whoever_continues_a_job_whose_program_died_before_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with of.connect(tmp_path) as db:
        job = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into("t")
        with monkeypatch.context() as patch:
            patch.setattr(LiveHost, "_keep_log", lambda _: None)
            run = job.start(workers=0)
        shown = kept_log(db._shards)
        assert shown is not None and shown.keep_bytes is None
        {"start": job.start, "resume": run.resume, "replay": job.replay}[how](workers=0)
        shown = kept_log(db._shards)
        assert shown is not None and shown.keep_bytes == 10**9


def test_status_says_how_far_back_the_past_reaches(tmp_path: Path) -> None:
    with of.connect(tmp_path, log_keep="100MB") as db:
        fill(db, 1)
    command = [sys.executable, "-m", "onefold.cli", "status", "--url", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "log      100" in shown and "db.at reaches back to the beginning" in shown
