"""What a refusal of a live job names, and that its advice works."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.compute.live.job import held_by
from support.command_line import ask

T = 120


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as opened:
        opened.stream("clicks", partitions=2).append({"at": datetime(2026, 1, 1), "page": "a"})
        yield opened


def source(db: of.Database, name: str = "clicks") -> Any:
    return db.read_stream(name, follow=True, event_time="at", watermark_delay="0s", idle=None)


def windows(db: of.Database) -> Any:
    return source(db).window(of.window.tumbling("1m")).group_by("page").agg(n=agg.count()).into("t")


def test_the_first_function_before_the_keys_is_named_as_what_changed(db: of.Database) -> None:
    rows, count = source(db), {"n": agg.count()}
    rows.group_by("page").agg(**count).into("t").start().stop()
    rows.map(lambda row: row).group_by("page").agg(**count).into("u").start().stop()
    with pytest.raises(of.Conflict, match=r"a Python function .* now comes before the keys") as refused:
        rows.map(lambda row: row).group_by("page").agg(**count).into("t").start()
    assert "partitions was" not in str(refused.value)
    with pytest.raises(of.Conflict, match="came before the keys, and none does now"):
        rows.group_by("page").agg(**count).into("u").start()


def test_a_job_that_is_done_says_one_thing(db: of.Database) -> None:
    run = windows(db).start()
    run.stop(drain=True, timeout=T)
    with pytest.raises(of.Conflict, match=r"live job t is done: start a replay of it, or drop it first$"):
        windows(db).start()
    assert run.resume().state == "done"
    assert db.drop("t")
    assert windows(db).start().catch_up(timeout=T).status().rows == 1


def test_a_stopped_job_is_drained(db: of.Database) -> None:
    run = windows(db).start()
    run.catch_up(timeout=T).stop()
    assert run.stop(drain=True, timeout=T).state == "done"
    assert db.table("t").to_polars()["n"].to_list() == [1]


def test_a_stopped_job_is_drained_by_the_command(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.stream("clicks").append({"at": datetime(2026, 1, 1), "page": "a"})
        windows(db).start().catch_up(timeout=T).stop()
    assert ask("stop", "t", "--drain", url=tmp_path).stderr.endswith("live job t/1 is done\n")


def test_a_cancelled_job_is_not_drained(db: of.Database) -> None:
    run = windows(db).start()
    run.cancel()
    with pytest.raises(of.Conflict, match=r"live job t .*is cancelled$"):
        run.stop(drain=True, timeout=T)


def test_jobs_that_would_feed_each_other_are_refused(db: of.Database) -> None:
    source(db, "a").into_stream("b").start(workers=0)
    source(db, "b").into_stream("c").start(workers=0)
    with pytest.raises(of.InvalidPlan, match=r"'c' → 'a' → 'b' → 'c'\."):
        source(db, "c").into_stream("a").start(workers=0)
    assert [run.name for run in db.runs() if run.name == "stream:a"] == []
    source(db, "b").into_stream("d").start(workers=0)
    source(db, "a").into_stream("b").start(workers=0)  # continued


def test_arguments_that_cannot_be(db: of.Database) -> None:
    run = windows(db).start(workers=0)
    with pytest.raises(of.InvalidArgument, match="final must be True, False or None"):
        run.result().to_polars(final="x")
    with pytest.raises(of.InvalidPlan, match="offset=30s means the same"):
        source(db).window(of.window.tumbling("1m", offset="90s"))
    with pytest.raises(of.InvalidPlan, match="offset=0us means the same"):
        source(db).window(of.window.sliding("1m", every="10s", offset="10s"))
    assert str(of.window.tumbling(".5s")) == str(of.window.tumbling("0.5s"))
    with pytest.raises(of.InvalidArgument, match="history"):
        source(db).into("a@history")


def test_a_worker_that_is_starting_is_not_missing(db: of.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run = windows(db).start(workers=0)
    assert "lanes have no worker: start the job" in run.status().held_by
    monkeypatch.setattr(run._workers, "busy_s", lambda found: 0.0)  # its thread has claimed nothing yet
    assert "the worker of this process is starting" in run.status().held_by
    with pytest.raises(of.Timeout, match="the worker of this process is starting"):
        run.catch_up(timeout=0)


def test_a_function_that_does_not_return_is_named(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_by, "_LONG_S", 0.05)
    leave = tmp_path / "leave"

    def hangs(frame: Any) -> None:
        while not leave.exists():
            time.sleep(0.01)

    run = source(db).for_each(hangs, name="hangs").start()
    limit = time.monotonic() + T
    while "has been in one step for" not in run.status().held_by:
        assert time.monotonic() < limit
        time.sleep(0.01)
    leave.touch()
    run.catch_up(timeout=T)
    while "one step" in run.status().held_by:  # the worker may be in one now, on a slow machine
        assert time.monotonic() < limit
        time.sleep(0.01)
