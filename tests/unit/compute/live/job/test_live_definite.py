"""An error that says that it is definite means that nothing has happened: of each call, whichever of its records meets one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.jobs import state as jobs
from onefold.compute.live.worker.job_worker import JobWorker
from onefold.compute.upkeep.keeper import Keeper
from onefold.shard.embedded import EmbeddedShard
from onefold.state.fold.live import rows as live_rows
from support.live_clicks import wait_for

AT = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = [{"k": f"k{number % 10}", "at": AT} for number in range(20)]


def lives(db: of.Database) -> list[Any]:
    """What there is of live jobs and their histories: what a call of these tests is there to change."""
    found: list[Any] = []
    for shard in db._state.shards:
        with shard.view() as view:
            for name, job in live_rows.jobs(view):
                found.append((name, job))
                for number, row in live_rows.generations(view, name):
                    found.append((number, row.state, row.plan))
    with db._engine.shard.view() as view:
        found += [(run.table, run.state) for run in jobs.list_runs(view)]
    return found


class Refusing:
    """The record with this number, of all that no worker writes, cannot be written."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.reached = False
        """Whether the last call had that record."""
        submit = EmbeddedShard.submit

        def refusing(shard: EmbeddedShard, *args: Any, **options: Any) -> Any:
            if self.left is not None and not threading.current_thread().name.startswith("onefold"):
                self.left -= 1
                if self.left < 0:
                    self.left, self.reached = None, True
                    raise of.Unavailable("it cannot be written now", definite=True)
            return submit(shard, *args, **options)

        patch.setattr(EmbeddedShard, "submit", refusing)

    def met(self, call: Callable[[], object], number: int) -> of.OnefoldError | None:
        """What the call raises; None: nothing."""
        self.left, self.reached = number, False
        try:
            call()
        except of.OnefoldError as error:
            return error
        finally:
            self.left = None
        return None


def into_map(db: of.Database) -> Any:
    return db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into_map("m", key="k")


def into_table(db: of.Database) -> Any:
    return db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into("t")


def over_history(db: of.Database, folder: Path) -> Any:
    live = db.read_stream("s", follow=True, event_time="at")
    past = pl.DataFrame({"at": [AT - timedelta(hours=1)], "k": ["a"]})
    if not (folder / "past.parquet").exists():
        past.write_parquet(folder / "past.parquet")
    return db.concat(db.read_parquet(str(folder / "past.parquet")), live, at=AT).group_by("k")


def prepared(db: of.Database, folder: Path, how: str) -> Callable[[], object]:
    """A space in which the call is possible, and the call."""
    match how:
        case "start":
            return lambda: into_table(db).start(workers=0)
        case "start with a history":
            return lambda: over_history(db, folder).agg(n=agg.count()).into("h").start(workers=0)
        case "replay" | "swap":
            into_table(db).start(workers=0)
            if how == "replay":
                return lambda: into_table(db).replay(workers=0)
            again = into_table(db).replay(workers=0)
            return lambda: again.swap(force=True)
        case "cancel with a history":
            return over_history(db, folder).agg(n=agg.count()).into("h").start(workers=0).cancel
        case "drop with a history":
            over_history(db, folder).agg(n=agg.count()).into("h").start(workers=0).stop()
            return lambda: db.drop("h")
        case "drop of several":
            into_table(db).start(workers=0)
            into_table(db).replay(workers=0).swap(force=True)
            db.open_run("t").stop()  # type: ignore[attr-defined]
            return lambda: db.drop("t")
    run = into_map(db).start(latency=0)
    wait_for(lambda: run.status().rows == len(ROWS))
    db._live.workers.stop(run.name, 1)
    if how in ("drop", "resume", "drain a stopped one"):
        run._job.stop(1)
    return {
        "cancel": run.cancel,
        "stop": run.stop,
        "drop": lambda: db.drop("map:m"),
        "resume": lambda: run.resume(workers=0),
        "drain": lambda: run.stop(drain=True, timeout=0),
        "drain a stopped one": lambda: run.stop(drain=True, timeout=0),
    }[how]


HOW = [
    *("start", "start with a history", "replay", "swap", "cancel", "cancel with a history", "stop", "resume"),
    *("drop", "drop with a history", "drop of several", "drain", "drain a stopped one"),
]


@pytest.mark.parametrize("how", HOW)
def test_a_definite_error_means_that_nothing_has_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The worker has died between its commit and the forwarding, so ends have rows to send."""
    monkeypatch.setattr(JobWorker, "_forward", lambda self: False)
    monkeypatch.setattr(JobWorker, "_give_back", lambda self: self.worker.leave())
    monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)
    refusing = Refusing(monkeypatch)
    refused = 0
    for number in range(60):
        (tmp_path / str(number)).mkdir()
        with of.connect(tmp_path / str(number) / "space", shards=3) as db:
            db.stream("s", partitions=1).append_many(ROWS, key=None)
            call = prepared(db, tmp_path / str(number), how)
            before = lives(db)
            error = refusing.met(call, number)
            after = lives(db)
            if error is not None:
                assert after == before or not error.definite, f"{number}: {error}"
            if not refusing.reached:
                break
            refused += 1
    assert refused > 0
