"""The life of a live job: started, stopped, resumed, cancelled, replayed, swapped, dropped; by its name, from any connection."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.live_runs import LiveRun
from support.live_clicks import at, counts, event, same, source, wait_for


def test_a_job_is_found_by_its_name_from_any_connection(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").append(event(1))
        counts(db).into("t").start().catch_up(timeout=120)
        source(db).group_by("page").agg(n=agg.count()).into_map("pages", key="page").start(workers=0)
    with of.connect(tmp_path) as db:
        assert [table.name for table in db.tables()] == ["t"]
        assert db.table("t").status.live
        assert db.table("t").to_polars(final=False)["n"].to_list() == [1]
        assert {run.id for run in db.runs()} == {"t/1", "map:pages/1"}
        assert [run.id for run in db.runs(state="running", table="t")] == ["t/1"]
        run = db.open_run("t")
        assert isinstance(run, LiveRun)
        assert (run.id, run.state, run.table_name) == ("t/1", "running", "t")
        assert db.open_run("t/1").id == "t/1"
        with pytest.raises(of.InvalidArgument, match="no run 'u'"):
            db.open_run("u")
        with pytest.raises(of.InvalidArgument, match="no table 'u'"):
            db.table("u")


def test_batch_tables_and_live_tables_stand_in_one_list(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\ny\n")
    with of.connect(tmp_path / "db") as db:
        db.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count()).into("words").run(progress=False)
        db.stream("clicks").append(event(1))
        counts(db).into("t").start().catch_up(timeout=120)
        assert [table.name for table in db.tables()] == ["t", "words"]
        assert [run.table_name for run in db.runs()] == ["t", "words"]
        assert not db.table("words").status.live
        assert db.table("words").late().height == 0
        counted = [(one.name, one.count) for one in db.collections() if one.kind == "table"]
        assert counted == [("t", 1), ("words", 1)]
        said = db.explain("t")
        assert said[0] == "live job t/1 is running" and said[1].startswith("reads 'clicks', ")


def test_a_table_has_one_job_batch_or_live(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x\n")
    with of.connect(tmp_path / "db") as db:
        words = db.read_text(tmp_path / "a.txt").group_by("line").agg(n=agg.count())
        words.into("words").run(progress=False)
        db.stream("clicks").create()
        counts(db).into("t").start(workers=0)
        with pytest.raises(of.InvalidArgument, match="'words' is made by a batch job"):
            counts(db).into("words").start()
        with pytest.raises(of.InvalidArgument, match="'t' is made by a live job"):
            words.into("t").start()
        with pytest.raises(of.Conflict, match="aggregate total"):
            source(db).window(of.window.tumbling("10s")).group_by("page").agg(n=agg.count()).into("t").start()
        assert db.table("t").status.live
        assert db.table("words").status.exact


def test_reading_a_live_table(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.append_many([event(1), event(2, v=5), event(3, "b"), event(21)])
        run = counts(db).into("t").start()
        run.catch_up(timeout=120)
        table = db.table("t")
        assert table.get((at(0), "a")) == {
            "window_start": at(0),
            "window_end": at(10),
            "page": "a",
            "n": 2,
            "total": 6,
        }
        assert table.get((at(20), "a")) is None, "it is open, and emit is final"
        assert table.top(1)["page"].to_list() == ["a"]
        assert len(table) == 2
        assert table.to_polars(final=False).height == 3
        assert table.known_columns() == (["window_start", "window_end", "page", "n", "total"], True)
        status = table.status
        assert (status.live, status.exact, status.watermark, status.lag) == (True, True, at(21), 0)
        assert (status.done, status.total) == (4, 4)


def test_estimates_are_exact_bounds_or_nothing(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        rows = source(db).with_columns(u=pl.col("v").cast(pl.UInt32)).window(of.window.tumbling("10s"))
        job = rows.group_by("page").agg(
            n=agg.count(),
            least=agg.min("v"),
            most=agg.max("v"),
            mean=agg.mean("v"),
            s=agg.sum("v"),
            u=agg.sum("u"),
        )
        db.stream("clicks").append_many([event(1, v=3), event(11, v=4)])
        run = job.into("t").start()
        run.catch_up(timeout=120)
        table = db.table("t")
        found = {
            name: table.estimate(name).select("value", "lo", "hi", "kind", "N").rows()
            for name in ("n", "least", "most", "mean", "s", "u")
        }
        assert all(
            rows[0][3] == "exact" and rows[0][0] == rows[0][1] == rows[0][2] for rows in found.values()
        )
        assert [found[name][1] for name in found] == [
            (1, 1, None, "bound", None),
            (4, None, 4, "bound", None),
            (4, 4, None, "bound", None),
            (4.0, None, None, "bound", None),
            (4, None, None, "bound", None),
            (4, 4, None, "bound", None),
        ]
        reasons = table.estimate("mean")["reason"].to_list()
        assert reasons[0] is None
        assert (
            reasons[1].startswith("open until 2026-01-01 00:00:20")
            and "watermark 2026-01-01 00:00:11" in reasons[1]
        )
        with pytest.raises(of.InvalidArgument, match="no aggregate 'x'"):
            table.estimate("x")
        run.stop(drain=True, timeout=120)
        assert table.estimate("mean")["kind"].to_list() == ["exact", "exact"]


def test_watch_gives_each_change_until_the_job_ends(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.create()
        run = counts(db).into("t", emit="update").start()
        seen: list[tuple[int, bool]] = []

        def follow() -> None:
            with of.connect(tmp_path) as other:
                for moment in other.table("t").watch():
                    seen.append((moment.to_polars()["n"].sum() or 0, moment.live))

        thread = threading.Thread(target=follow)
        thread.start()
        for second in (1, 2, 12):
            stream.append(event(second))
            run.catch_up(timeout=120)
            wait_for(lambda: seen and seen[-1][0] == run.status().rows)
        run.stop(drain=True, timeout=120)
        thread.join(120)
        assert seen[-1] == (3, False)
        assert list(dict.fromkeys(seen)) == sorted(seen, key=lambda one: (one[0], not one[1]))
        assert not next(iter(db.table("t").watch(timeout=0))).live


@pytest.mark.parametrize(
    "window", [of.window.tumbling("10s"), of.window.sliding("20s", every="10s"), of.window.session("3s")]
)
def test_lanes_at_different_watermarks_show_each_event_once(tmp_path: Path, window: Any) -> None:
    """One worker is ahead of another: a window that is closed in some lanes is shown from their results, in others as it is."""
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        events = [event(second % 37, page, second) for second in range(0, 60, 3) for page in "abcdefgh"]
        events.sort(key=lambda one: one["at"])
        rows = source(db, watermark_delay="1s").window(window)
        job = rows.group_by("page").agg(n=agg.count(), total=agg.sum("v")).into("t", emit="update")
        run = job.start(workers=0, lanes=8)
        slow = db.open_run("t")
        assert isinstance(slow, LiveRun)
        claimed = _claim_some(slow)
        fast = job.start(workers=1)
        for number in range(0, len(events), 16):  # a commit each, so windows are closed by later ones
            commits = fast.status().commits
            stream.append_many(events[number : number + 16])
            wait_for(lambda before=commits: fast.status().commits > before)
        assert _unequal(fast)
        partly = db.table("t").to_polars()
        claimed.leave()
        run.catch_up(timeout=120)
        whole = db.table("t").to_polars()
        shown = partly.join(whole, on=[*whole.columns], how="semi", nulls_equal=True)
        assert shown.height == partly.height > 0, "what is shown of a key is all of its events"
        assert not partly.select("window_start", "page").is_duplicated().any()
        assert partly["page"].n_unique() < whole["page"].n_unique() == 8


def _claim_some(run: LiveRun) -> Any:
    """A worker that takes half of the lanes and does nothing."""
    from onefold.compute.live.bundles import Worker

    other = Worker(run._job, 1)
    other.claim("main")
    mine = Worker(run._job, 1)
    mine.claim("main")
    other.give("main")
    mine.leave()
    return other


def _unequal(run: LiveRun) -> bool:
    marks = {row.watermark_us for row in run._moment().bundles}
    return len(marks) > 1


def test_stop_resume_and_wait(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.append(event(1))
        counts(db).into("t").start().catch_up(timeout=120).stop()
    with of.connect(tmp_path) as db:
        run = db.open_run("t")
        assert isinstance(run, LiveRun)
        assert run.wait(timeout=120).state == "stopped"
        db.stream("clicks").append(event(2))
        with pytest.raises(of.JobFailed, match="stopped"):
            run.catch_up(timeout=120)
        run.resume(workers=2).catch_up(timeout=120)
        assert run.status().rows == 2
        wait_for(lambda: run.status().workers == 2)
        with pytest.raises(of.Timeout, match="has not ended"):
            run.wait(timeout=0.01)
        run.stop(drain=True, timeout=120)
        assert run.wait().state == "done"
        assert run.resume().state == "done"
        assert run.stop().state == "done"
        with pytest.raises(of.Conflict, match="done"):
            counts(db).into("t").start()


def test_a_job_that_another_one_has_drained_is_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").append(event(1))
        run = counts(db).into("t").start()
        other = db.open_run("t")
        assert isinstance(other, LiveRun)
        ends = run.ends
        with monkeypatch.context() as meanwhile:  # between its look at the state and its drain
            meanwhile.setattr(run, "ends", lambda: (other.stop(drain=True, timeout=120), ends())[1])
            assert run.stop(drain=True, timeout=120).state == "done"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_drain_that_failed_drains_on_to_the_same_end(tmp_path: Path, workers: int) -> None:
    """With one worker the part above a hop is drained when the part below fails; with two, one half of the lanes."""
    got: list[tuple[Any, ...]] = []
    broken = {7}
    drained = tmp_path / "drained"

    def sink(frame: pl.DataFrame) -> None:
        if broken & {*frame["v"].to_list()}:
            if workers == 2:
                wait_for(drained.exists)
            raise ValueError("the target is down")
        got.extend(frame.select("v", "n").rows())

    with of.connect(tmp_path) as db:
        stream = db.stream("clicks", partitions=1)
        stream.append_many([event(1, v=number) for number in range(40)])
        rows = source(db).map(same) if workers == 1 else source(db)
        job = rows.window(of.window.tumbling("10s")).group_by("v").agg(n=agg.count()).for_each(sink, name="j")
        run = job.start(workers=workers, latency=0)
        assert isinstance(run, LiveRun)
        run.catch_up(timeout=120)
        if workers == 2:
            wait_for(
                lambda: (
                    {row.owner for row in run._moment().bundles} == {*_workers(run)}
                    and len(_workers(run)) == 2
                )
            )
        other = threading.Thread(target=_when_some_are_drained, args=(run, drained))
        other.start()
        with pytest.raises(of.JobFailed, match="the target is down"):
            run.stop(drain=True, timeout=120)
        other.join()
        broken.clear()
        stream.append_many([event(12, v=number) for number in range(40)])
        run = job.start(latency=0)
        assert run.wait(timeout=120).state == "done"
        assert run.stop(drain=True, timeout=120).state == "done"
        assert run.status().rows == 40
        assert sorted({*got}) == [(number, 1) for number in range(40)]
        with pytest.raises(of.JobFailed, match="is done: it was drained"):
            run.catch_up(timeout=120)


def _when_some_are_drained(run: LiveRun, drained: Path) -> None:
    from onefold.state.fold.live import ops

    wait_for(lambda: any(row.watermark_us == ops.WATERMARK_END_US for row in run._moment().bundles))
    drained.touch()


def _workers(run: LiveRun) -> Any:
    from onefold.state.fold.live import rows as live_rows

    with run._job.local() as view:
        return live_rows.workers(view, run.name, 1)


def test_a_failed_job_continues_with_a_plan_that_is_right(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks")
        stream.append(event(1))
        stream.append({"at": None, "page": "b", "v": 2})
        run = counts(db).into("t").start()
        with pytest.raises(of.JobFailed, match="record 1 of partition 0"):
            run.catch_up(timeout=120)
        assert run.state == "failed"
        assert [error.skipped for error in run.errors()] == [False]
        run = counts(db).into("t").start(on_error="skip")
        run.catch_up(timeout=120)
        letters = run.dead_letters()
        assert letters["location"].to_list() == ["record 1 of partition 0 of clicks"]
        assert "no time" in letters["error"][0]
        assert "'page': 'b'" in letters["record"][0]
        assert (len(run.errors()), run.errors().complete) == (1, True)


def test_cancel_frees_the_state_and_keeps_what_was_put_out(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").append_many([event(1), event(11)])
        run = counts(db).into("t").start()
        run.catch_up(timeout=120)
        assert run.status().state_bytes > 0
        run.cancel()
        assert run.state == "cancelled"
        assert run.status().state_bytes == 0
        assert db.table("t").to_polars()["window_start"].to_list() == [at(0)]
        with pytest.raises(of.Conflict, match="cancelled"):
            run.resume()
        assert db.drop("t")
        assert not db.drop("t")
        assert db.tables() == db.runs() == []
        counts(db).into("t").start().catch_up(timeout=120)
        assert db.open_run("t").progress().rows == 2


def test_cancel_keeps_running_aggregates_which_are_the_table(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").append_many([event(1), event(11)])
        run = source(db).group_by("page").agg(n=agg.count()).into("t").start()
        run.catch_up(timeout=120)
        run.cancel()
        assert db.table("t").get("a") == {"page": "a", "n": 2}


def test_a_job_that_runs_is_not_dropped(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").create()
        counts(db).into("t").start(workers=0)
        with pytest.raises(of.Conflict, match="stop it first"):
            db.drop("t")


def test_nobody_works_is_reported_instead_of_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onefold.compute.live_runs._NOBODY_S", 0.05)
    with of.connect(tmp_path) as db:
        db.stream("clicks").append(event(1))
        counts(db).into("t").start(workers=0)
    with of.connect(tmp_path) as db:
        run = db.open_run("t")
        assert isinstance(run, LiveRun)
        assert run.abandoned
        with pytest.raises(of.Unavailable, match=r"open_run\('t/1'\).resume"):
            run.catch_up()


def test_a_worker_that_is_left_alone_has_one_bundle(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        stream = db.stream("clicks", partitions=2)
        stream.append_many([event(1), event(2, "b")], key="page")
        run = counts(db).into("t").start(workers=1)
        with of.connect(tmp_path) as other:
            counts(other).into("t").start(workers=2)
            appended = 0
            while len({row.owner for row in run._moment().bundles}) < 3:  # lanes move with commits
                stream.append(event(3))
                appended += 1
                run.catch_up(timeout=120)
        stream.append(event(5, "c"))
        run.catch_up(timeout=120)
        wait_for(lambda: len(run._moment().bundles) == 1)
        assert run.status().workers == 1
        run.stop(drain=True, timeout=120)
        assert db.table("t").to_polars()["n"].sum() == 3 + appended
