"""A plan that changes: workers take it, replays beside the old table, swaps; and streams that are not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from support.live_clicks import counts, event, same, source, wait_for


def test_workers_take_the_plan_of_the_last_start(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db, of.connect(tmp_path) as other:
        stream = db.stream("clicks")
        stream.append(event(1))
        run = counts(db).into("t", emit="update").start()
        run.catch_up(timeout=120)
        filtered = source(other).filter(pl.col("v") > 1).window(of.window.tumbling("10s"))
        changed = filtered.group_by("page").agg(n=agg.count(), total=agg.sum("v")).into("t", emit="update")
        changed.start(workers=0)
        wait_for(lambda: run.status().workers == 1)
        stream.append_many([event(2), event(3, v=2)])
        run.catch_up(timeout=120)
        assert db.table("t").to_polars()["n"].to_list() == [2]


def test_a_swap_at_a_point_does_not_wait_for_inputs_to_rest(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.append_many([event(1), event(2)])
        counts(db).into("t").start().catch_up(timeout=120)
        run = counts(db).into("t").replay()
        assert (run.role, db.open_run("t").role) == ("replay", "current")
        point = run.point()
        run.caught_up(point, timeout=30)
        run._workers.stop("t", 2)
        stream.append(event(3))
        with pytest.raises(of.Conflict, match="Wait until it has caught up"):
            run.swap()
        run.swap(point=point)
        assert (run.role, db.open_run("t/1").role) == ("current", "replaced")
        run.resume().catch_up(timeout=120)
        assert db.table("t").to_polars(final=False)["n"].to_list() == [3]


def test_replay_into_a_hidden_table_and_swap(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.append_many([event(1), event(2, v=5), event(11)])
        old = counts(db).into("t").start()
        old.catch_up(timeout=120)
        table = db.table("t")
        changed = source(db).window(of.window.tumbling("5s")).group_by("page").agg(n=agg.count()).into("t")
        with pytest.raises(of.Conflict, match="aggregate total"):
            changed.start()
        run = changed.replay(workers=0)
        assert run.id == "t/2"
        assert (run.table_name, db.open_run("t").id) == ("t/2", "t/1")
        with pytest.raises(of.Conflict, match="replayed up to 0 of 3"):
            run.swap()
        with pytest.raises(of.Conflict, match="replays already"):
            changed.replay()
        run.resume().catch_up(timeout=120)
        assert "total" in table.to_polars().columns
        run.swap()
        assert (old.state, run.state, db.open_run("t").id) == ("stopped", "running", "t/2")
        assert table.to_polars().columns == ["window_start", "window_end", "page", "n"], (
            "a handle by name follows"
        )
        assert db.table("t/1").to_polars()["total"].to_list() == [6]
        assert old.result().to_polars()["total"].to_list() == [6]
        stream.append(event(12))
        run.catch_up(timeout=120)
        assert db.drop("t/1")
        with pytest.raises(of.InvalidArgument, match="t/1"):
            db.table("t/1")
        assert [one.id for one in db.runs()] == ["t/2"]


def test_a_replay_whose_lower_part_lags_is_not_swapped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.compute.live.worker.part_worker import PartWorker

    work, held = PartWorker.work, [True]

    def working(self: PartWorker, generation: Any, seen: Any, *, may_read: bool) -> bool:
        if held[0] and self._part.name == "main" and self._generation == 2:
            return False
        return work(self, generation, seen, may_read=may_read)

    monkeypatch.setattr(PartWorker, "work", working)
    with of.connect(tmp_path) as db:
        db.stream("clicks", partitions=1).append_many([event(1, v=number) for number in range(20)])
        job = source(db).map(same).group_by("v").agg(n=agg.count()).into("t")
        job.start().catch_up(timeout=120)
        replay = job.replay()
        point = replay.point()
        wait_for(lambda: replay.status().lag == 0)
        for given in (None, point, replay.point()):
            with pytest.raises(of.Conflict, match=r"'main'.* is replayed up to 0 of 20"):
                replay.swap(point=given)
        assert db.table("t").to_polars().height == 20
        held[0] = False
        replay.caught_up(point, timeout=30).swap(point=point)
        assert (db.open_run("t").id, db.table("t").to_polars().height) == ("t/2", 20)


def test_a_sink_that_others_read_is_not_replayed_into(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").create()
        job = counts(db).into_stream("out")
        job.start(workers=0)
        with pytest.raises(of.InvalidPlan, match="put out again"):
            job.replay()


def test_a_replay_of_nothing_is_refused(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").create()
        with pytest.raises(of.Conflict):
            counts(db).into("t").replay()


def test_what_cannot_be_swapped_or_dropped_says_which_run_can(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").append(event(1))
        run = counts(db).into("t").start()
        replay = counts(db).into("t").replay(workers=0)
        assert "db.open_run('t/2').resume()" in replay.status().held_by
        with pytest.raises(of.Conflict, match=r"generation 1 of t does not replay\. .*db\.open_run\("):
            run.swap()
        for runs in ("t", "t/2"):
            with pytest.raises(of.Conflict, match=f"`onefold stop {runs}`"):
                db.drop("t")
            db.open_run(runs).stop(timeout=60)
        assert db.drop("t")


@pytest.mark.parametrize("start", ["earliest", "latest"])
def test_a_stream_that_is_not_there_yet_is_waited_for(tmp_path: Path, start: str) -> None:
    with of.connect(tmp_path) as db:
        run = counts(db, start=start).into("t").start(workers=2)
        assert "no stream 'clicks' yet" in run.status().held_by
        assert run.catch_up(timeout=120).status().lag == 0
        db.stream("clicks", partitions=3).append_many([event(1), event(2, "b"), event(11)], key="page")
        run.catch_up(timeout=120)
        assert run.status().rows == 3
        counts(db, start=start).into("t").start()
        run.stop(drain=True, timeout=120)
        assert db.table("t").to_polars()["n"].sum() == 3


def test_a_stream_that_no_worker_has_seen_yet_is_drained_too(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        run = counts(db).into("t").start(workers=0)
        db.stream("clicks", partitions=3).append_many([event(1), event(2), event(21)])
        with pytest.raises(of.Timeout):
            run.stop(drain=True, timeout=0)
        run.resume(workers=1).wait(timeout=120)
        assert (run.state, run.status().rows) == ("done", 3)


def test_a_job_over_no_stream_stops_and_drains(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        run = counts(db).into("t").start()
        run.stop(drain=True, timeout=120)
        assert run.state == "done"
        assert db.table("t").to_polars().height == 0
