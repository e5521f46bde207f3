"""Runs are compacted next to the commits: few stay however many commits there were, and little is written twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.backoff import wait_until
from onefold.compute.live.bundles import Delta, HeldBundle
from onefold.compute.live.garbage import LiveGarbage
from onefold.compute.live.runs import tiers
from onefold.compute.live.worker import compaction
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows

START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def bytes_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What commits have written: of batches, and of compacted runs."""
    written = {"delta": 0, "compacted": 0, "commits": 0, "largest": 0}
    commit: Callable[..., Any] = HeldBundle.commit

    def counted(self: HeldBundle, delta: Delta) -> Any:
        # Before the commit: whoever waits for it looks at these as soon as it is there.
        for run in delta.runs:
            written["compacted" if run.replaces else "delta"] += run.size
        written["commits"] += 1
        written["largest"] = max(written["largest"], sum(run.size for run in delta.runs if not run.replaces))
        return commit(self, delta)

    monkeypatch.setattr(HeldBundle, "commit", counted)
    return written


def runs_of(db: of.Database, job: str) -> list[Any]:
    with db._shard.view() as view:
        return [run for key, _ in live_rows.parts(view, job, 1) for run in live_rows.runs(view, key)]


def running(db: of.Database) -> Any:
    rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
    return rows.group_by("k").agg(n=agg.count(), ttl=None).into("t")


@pytest.mark.parametrize("keys", [7, 100_000])
def test_few_runs_stay_and_little_is_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_of: dict[str, int], keys: int
) -> None:
    random = Random(keys)
    monkeypatch.setattr(config, "LIVE_BATCH_ROWS_MAX", 10)
    monkeypatch.setattr(tiers, "TIER_BYTES_MIN", 256)  # so that there are several
    monkeypatch.setattr(compaction.Merging, "has_ended", property(lambda self: self.wait() is None))
    with of.connect(tmp_path) as db:
        for _ in range(40):
            k = [random.randrange(keys) for _ in range(100)]
            db.stream("s").append_many(pl.DataFrame({"at": [START] * 100, "k": k}), key=None)
        run = running(db).start(latency=0)
        run.catch_up(timeout=60)
        counted = db.table("t").to_polars()
        assert counted["n"].sum() == 4000 and counted.height <= keys
        run.stop()
        assert bytes_of["commits"] >= 200
        stayed = len([one for one in runs_of(db, "t") if one.row.kind == "state"])
        assert stayed <= 18
        assert 0 < bytes_of["compacted"] <= 4 * bytes_of["delta"]
        run.resume()
        db.stream("s").append_many(pl.DataFrame({"at": [START], "k": [0]}), key=None)
        run.catch_up(timeout=120)
        assert db.table("t").to_polars()["n"].sum() == 4001


def test_runs_are_compacted_whatever_is_between_their_commits(tmp_path: Path) -> None:
    """Rows and silence in turn."""
    with of.connect(tmp_path) as db:
        db.stream("s").append({"at": START, "k": 0})
        rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle="1ms")
        run = (
            rows.window(of.window.tumbling("10s")).group_by("k").agg(n=agg.count()).into("t").start(latency=0)
        )
        for number in range(1, 33):
            run.catch_up(timeout=120)
            assert wait_until(lambda: run.status().partitions[0][3], 120, 0.001)
            db.stream("s").append({"at": START + timedelta(seconds=10 * number), "k": number})
        run.catch_up(timeout=120)
        assert run.status().commits >= 60
        kinds = [one.row.kind for one in runs_of(db, "t")]
        assert kinds.count("state") <= 20 and kinds.count("result") <= 20
        assert db.table("t").to_polars()["n"].to_list() == [1] * 32


def pending(run: Any) -> Any:
    """The compactor of the job's worker, once a merge has ended that no commit has named."""

    def found() -> Any:
        for slot in run._workers._slots.get(run.id, ()):
            for part in () if slot._worker is None else slot._worker._parts:
                for fold in part._folds.values():
                    merging = fold.compactor._merging
                    if merging is not None and merging.has_ended and any(one.blob for one in merging.runs()):
                        return merging
        return None

    return found


@pytest.mark.parametrize("quiet", ["a day", "an hour"])
def test_a_job_that_is_quiet_for_a_day_keeps_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_of: dict[str, int], quiet: str
) -> None:
    """A merged run waits for the next commit to name it. What nothing names for a day is removed."""
    monkeypatch.setattr(tiers, "TIER_BYTES_MIN", 256)
    with of.connect(tmp_path) as db:
        stream, total = db.stream("s"), 0
        stream.create()
        run = running(db).start(latency=0, lanes=4)

        def add() -> None:
            nonlocal total
            k = [f"{number} {random.randbytes(8).hex()}" for number in range(3000)]
            stream.append_many(pl.DataFrame({"at": [START] * 3000, "k": k}), key=None)
            total += 3000
            run.catch_up(timeout=120)

        random, merging = Random(11), pending(run)
        while not wait_until(lambda: merging() is not None, 0.2, 0.01):
            add()
        waits = merging()
        if quiet == "a day":
            removed = LiveGarbage(db._state, db._engine.blobs).remove_unnamed(age_s=-1)
            assert removed >= 1
        else:  # not removed yet, but it may be between the look and the commit
            waits._began_s -= config.LIVE_MERGED_KEPT_S + 1
        named: list[str] = []
        commit = HeldBundle.commit
        monkeypatch.setattr(
            HeldBundle,
            "commit",
            lambda self, delta: (named.extend(run.blob for run in delta.runs), commit(self, delta))[1],
        )
        before = bytes_of["compacted"]
        while bytes_of["compacted"] == before:
            add()
        assert not {one.blob for one in waits.runs()} & set(named) and run.state == "running"
    with of.connect(tmp_path) as db:
        assert db.table("t").to_polars()["n"].sum() == total


def test_a_merge_of_runs_that_changed_meanwhile_is_not_published(tmp_path: Path) -> None:
    """The worker says so, before the fold would have to refuse the commit."""
    with of.connect(tmp_path) as db:
        for number in range(6):
            db.stream("s").append({"at": START, "k": number})
        run = running(db).start(latency=0)
        run.catch_up(timeout=120)
        run.stop()
        runs = [one for one in runs_of(db, "t") if one.row.kind == "state"]
        (lanes,) = {lane_sets.unpack(one.row.lanes) for one in runs}
        merging = object.__new__(compaction.Merging)
        merging._chosen = [compaction._Chosen(runs, False)]
        assert merging.still_holds(runs, lanes)
        assert not merging.still_holds(runs[1:], lanes), "one is gone"
        row = msgspec.structs.replace(runs[0].row, lanes=lane_sets.pack(lanes & ~1))
        assert not merging.still_holds([runs[0]._replace(row=row), *runs[1:]], lanes), "one covers less"
        assert merging.still_holds([runs[0]._replace(row=row), *runs[1:]], lanes & ~1), "not less of these"


def test_commits_do_not_wait_for_a_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bytes_of: dict[str, int]
) -> None:
    may_go, begun, compacted = threading.Event(), threading.Event(), compaction._compacted

    def slow(*args: Any) -> Any:
        begun.set()
        assert may_go.wait(120)
        return compacted(*args)

    monkeypatch.setattr(compaction, "_compacted", slow)
    monkeypatch.setattr(config, "LIVE_BATCH_ROWS_MAX", 5)
    with of.connect(tmp_path) as db:
        stream = db.stream("s")
        stream.create()
        run = running(db).start(latency=0)
        frame = pl.DataFrame({"at": [START] * 5, "k": [*range(5)]})
        while not begun.is_set():
            stream.append_many(frame, key=None)
            run.catch_up(timeout=120)
        before = bytes_of["commits"]
        for _ in range(20):
            stream.append_many(frame, key=None)
            run.catch_up(timeout=120)
        assert bytes_of["commits"] >= before + 5 and not bytes_of["compacted"]
        may_go.set()

        def published() -> bool:
            stream.append_many(frame, key=None)
            run.catch_up(timeout=120)
            return bytes_of["compacted"] > 0

        assert wait_until(published, 120, 0.01)
        shown = db.table("t").to_polars()
        assert shown["n"].n_unique() == 1 and shown.height == 5
        assert shown["n"].sum() == run.status().rows


def test_windows_that_close_during_a_compaction_are_closed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LIVE_BATCH_ROWS_MAX", 4)
    compacted, random = compaction._compacted, Random(5)

    def slow(*args: Any) -> Any:
        threading.Event().wait(random.random() * 0.02)
        return compacted(*args)

    monkeypatch.setattr(compaction, "_compacted", slow)
    with of.connect(tmp_path) as db:
        at = [START + timedelta(seconds=number // 3) for number in range(450)]
        db.stream("s").append_many(pl.DataFrame({"at": at, "k": [1] * 450}), key=None)
        rows = db.read_stream("s", follow=True, event_time="at", max_ahead=None, idle=None)
        job = rows.window(of.window.tumbling("10s")).group_by("k").agg(n=agg.count()).into("t", keep="60s")
        run = job.start(latency=0)
        run.catch_up(timeout=60)
        table = db.table("t").to_polars()
        assert set(table["n"]) == {30}
        kinds = [one.row.kind for one in runs_of(db, "t")]
        assert kinds.count("state") <= 20 and kinds.count("result") <= 20
        run.stop(drain=True, timeout=120)


def test_a_small_commit_writes_as_much_with_many_open_keys(tmp_path: Path, bytes_of: dict[str, int]) -> None:
    written = {}
    for keys in (1_000, 100_000):
        with of.connect(tmp_path / str(keys)) as db:
            stream = db.stream("s")
            stream.append_many(pl.DataFrame({"at": [START] * keys, "k": [*range(keys)]}), key=None)
            run = running(db).start(latency=0)
            run.catch_up(timeout=60)
            bytes_of["delta"] = 0
            stream.append_many(pl.DataFrame({"at": [START] * 10, "k": [*range(10)]}), key=None)
            run.catch_up(timeout=120)
            written[keys] = bytes_of["delta"]
            run.stop()
    assert 0 < written[100_000] <= 2 * written[1_000]
