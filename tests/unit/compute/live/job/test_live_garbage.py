"""Blobs of live jobs: what nothing names goes after a while, and nothing that is named ever does."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.store import BlobStore
from onefold.compute.code import functions
from onefold.compute.live.client import LiveJob
from onefold.compute.live.garbage import LiveGarbage
from onefold.compute.live.run_bytes import Origin, plan_note, seal
from onefold.compute.upkeep.keeper import Keeper
from onefold.folds import blob_tables

START = datetime(2026, 1, 1, tzinfo=UTC)
DAYS_2 = 2 * 24 * 3600


@pytest.fixture(autouse=True)
def every_run_is_a_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "LIVE_INLINE_BYTES_MAX", 64)


def plan(db: of.Database, table: str = "t") -> Any:
    rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
    return rows.window(of.window.tumbling("10s")).group_by("k").agg(n=agg.count()).into(table)


def commits(db: of.Database, run: Any, count: int, since: int = 0) -> None:
    for number in range(since, since + count):
        at = [START + timedelta(seconds=number)] * 5
        db.stream("s").append_many(pl.DataFrame({"at": at, "k": [*range(number, number + 5)]}), key=None)
        run.catch_up(timeout=120)


def garbage_of(db: of.Database) -> LiveGarbage:
    return LiveGarbage(db._state, db._engine.blobs)


def files(db: of.Database) -> set[str]:
    return set(BlobStore(Path(db.url) / "blobs").names())


def named(db: of.Database, *, garbage: bool = False) -> set[str]:
    with db._shard.view() as view:
        return {key.decode() for table in blob_tables(garbage=garbage) for key, _ in view.scan(table)}


def test_what_compaction_replaced_goes_and_the_table_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        run = plan(db).start(latency=0, lanes=4)
        commits(db, run, 40)
        shown = db.table("t").to_polars(final=False).sort(pl.all())
        replaced = named(db, garbage=True) - named(db)
        garbage = garbage_of(db)
        assert garbage.sweep() == 0, "readers may still have it on their list"
        assert garbage.sweep(kept_s=-60) == len(replaced) > 0
        assert files(db) >= named(db) == named(db, garbage=True) and not files(db) & replaced
        monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
        applied = db._shard.applied
        assert garbage.sweep(kept_s=-60) == 0 and not db._engine.blobs.hidden()
        assert db._shard.applied == applied, "nothing to remove: nothing appended"
        assert db.table("t").to_polars(final=False).sort(pl.all()).equals(shown)
        run.stop()
    with of.connect(tmp_path) as db:
        run = plan(db).start(latency=0)  # what it recovers from is there
        commits(db, run, 1, since=40)
        assert db.table("t").to_polars(final=False)["n"].sum() == 41 * 5


def test_runs_of_commits_that_never_happened_go_after_a_day(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        run = plan(db).start(latency=0, lanes=4)
        commits(db, run, 12)
        stored = db._engine.blobs.put(seal(Origin("t", 1, "part", 0, 1, 99, 7, 0), b"rows"))
        other = db._engine.blobs.put(b"a result of a batch job, about to be named")
        kept = named(db, garbage=True)
        assert stored not in kept
        garbage = garbage_of(db)
        assert garbage.remove_unnamed() == 0 and stored in files(db)
        for name in files(db):
            os.utime(db._engine.blobs.path(name), (time.time() - DAYS_2,) * 2)
        assert garbage.remove_unnamed() == 1
        assert stored not in files(db) and files(db) >= kept | {other}
        run.stop()


def test_a_plan_that_is_swept_and_started_again_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        run = plan(db).start(latency=0, lanes=4)
        run.cancel()
        db.drop("t")
        start = LiveJob.start

        def swept_before(self: LiveJob, *args: Any) -> Any:
            assert garbage_of(db).sweep(kept_s=-60) == 1  # between the store and the record
            db._engine.garbage.sweep()  # batch jobs settle their own copies only
            return start(self, *args)

        monkeypatch.setattr(LiveJob, "start", swept_before)
        plan(db).start(latency=0, lanes=4)
        assert files(db) >= named(db) != set()
        db._engine.garbage.sweep()
        garbage_of(db).sweep(kept_s=-60)
        assert files(db) >= named(db)


def test_a_plan_that_is_swept_and_replayed_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        plan(db).start(workers=0, lanes=4)
        plan(db).start(workers=0, latency=0)  # another plan: nothing names the first one any more
        replay = LiveJob.replay

        def swept_before(self: LiveJob, *args: Any) -> Any:
            assert garbage_of(db).sweep(kept_s=-60) == 1  # between the store and the record
            return replay(self, *args)

        monkeypatch.setattr(LiveJob, "replay", swept_before)
        plan(db).replay(workers=0, lanes=4)
        assert len(named(db)) == 2 and files(db) >= named(db)


def test_batch_jobs_settle_no_copies_of_live_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        plan(db).start(latency=0, lanes=4)
        (name,) = named(db)
        ticket = db._engine.blobs.hide(name, "l")  # as a sweeper does before it asks the fold
        monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
        db._engine.garbage.sweep()
        assert db._engine.blobs.hidden() == {(name, ticket)}
        garbage_of(db).sweep()
        assert files(db) == {name} and not db._engine.blobs.hidden()


def test_workers_of_a_process_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with of.connect(tmp_path) as db:
        db.stream("s").create()
        run = plan(db).start(latency=0, lanes=4)
        commits(db, run, 20)
        monkeypatch.setattr(config, "LIVE_GARBAGE_S", -60)
        assert named(db, garbage=True) > named(db)
        Keeper(lambda: db._state, lambda: db._engine.blobs, lambda *_: None).look()
        assert named(db, garbage=True) == named(db)


def test_the_keeper_removes_runs_of_commits_that_never_happened(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        blobs = db._engine.blobs
        left, young = (blobs.put(seal(Origin("t", 1, "part", 0, 1, 99, 7, nr), b"rows")) for nr in (0, 1))
        os.utime(blobs.path(left), (time.time() - DAYS_2,) * 2)
        Keeper(lambda: db._state, lambda: blobs, lambda *_: None).look()
        assert files(db) == {young}


class Killed(BaseException):
    """The program is gone."""


def killed(*_: Any) -> None:
    raise Killed


def plan_of_a_killed_start(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> str:
    db.stream("s").create()
    with monkeypatch.context() as dying:
        dying.setattr(LiveJob, "start", killed)
        with pytest.raises(Killed):
            plan(db).start(latency=0, lanes=4)
    (left,) = files(db)
    os.utime(db._engine.blobs.path(left), (time.time() - DAYS_2,) * 2)
    return left


def test_the_plan_of_a_start_that_was_killed_goes_after_a_day(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path) as db:
        left = plan_of_a_killed_start(db, monkeypatch)
        job = db._engine.blobs.put(functions.dump(["a batch job, about to be submitted"]))
        young = db._engine.blobs.put(functions.dump(None, plan_note(db._shard.incarnation)))
        os.utime(db._engine.blobs.path(job), (time.time() - DAYS_2,) * 2)
        assert garbage_of(db).remove_unnamed() == 1
        assert files(db) == {job, young}
        assert {name for name, _ in db._engine.blobs.hidden()} == {left}, "a start may be about to name it"
        monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
        garbage_of(db).sweep()
        assert not db._engine.blobs.hidden() and files(db) == {job, young}


@pytest.mark.parametrize("when", ["before it is hidden", "while it is hidden", "behind it", "dies behind it"])
def test_a_plan_that_is_started_again_while_it_is_removed_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The start stores it before, and names it at that point."""
    with of.connect(tmp_path) as db:
        left = plan_of_a_killed_start(db, monkeypatch)
        garbage, known = garbage_of(db), LiveGarbage._known
        looks: list[set[str]] = []

        def removed() -> None:
            garbage.remove_unnamed()

        def at_a_look(self: LiveGarbage, names: Any) -> frozenset[str]:
            looks.append(set(names))
            if len(looks) == {"before it is hidden": 2, "while it is hidden": 3}.get(when):
                plan(db).start(latency=0, lanes=4, workers=0)
            return known(self, names)

        def behind(self: LiveJob, *args: Any) -> Any:
            removed()
            started = start(self, *args)
            if when == "dies behind it":
                raise Killed
            return started

        start = LiveJob.start
        if "behind it" in when:
            monkeypatch.setattr(LiveJob, "start", behind)
            try:
                plan(db).start(latency=0, lanes=4, workers=0)
            except Killed:
                assert when == "dies behind it"
        else:
            monkeypatch.setattr(LiveGarbage, "_known", at_a_look)
            removed()
            assert files(db) == {left} and not db._engine.blobs.hidden()
        monkeypatch.setattr(config, "SWEPT_KEPT_S", -60)
        garbage.sweep()
        assert named(db) == {left} == files(db)
        assert not db._engine.blobs.hidden()
