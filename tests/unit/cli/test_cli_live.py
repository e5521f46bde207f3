"""Live jobs from the command line: how they stand, and their life, as programs and people use it."""

from __future__ import annotations

import contextlib
import io
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.cli.jobs.live import print_live
from onefold.cli.output import PIPE_WIDTH
from support.command_line import ONEFOLD, ask, document

NOON = datetime(2026, 1, 1, 12)
PROGRAM = """
import sys
import onefold as of
from onefold import agg

db = of.connect()
clicks = db.read_stream("clicks", follow=True, event_time="at", watermark_delay="5s", idle=None)
windows = clicks.window(of.window.tumbling("1m")).group_by("page")
aggregates = {"n": agg.count()} | ({"last": agg.max("at")} if "changed" in sys.argv else {})
windows.agg(**aggregates).into("per_minute").start(on_error="skip")
"""


def click(second: float, page: str = "a") -> dict[str, Any]:
    return {"at": NOON + timedelta(seconds=second), "page": page}


def job(db: of.Database) -> Any:
    """The job of the program."""
    clicks = db.read_stream("clicks", follow=True, event_time="at", watermark_delay="5s", idle=None)
    return clicks.window(of.window.tumbling("1m")).group_by("page").agg(n=agg.count()).into("per_minute")


def fill(space: Path) -> None:
    with of.connect(space) as db:
        db.stream("clicks").append_many([click(second, "ab"[second % 2]) for second in range(100)])


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job with a closed window, two late events and a dead record; nobody works on it."""
    space = tmp_path_factory.mktemp("live") / "space"
    fill(space)
    with of.connect(space) as db:
        run = job(db).start(on_error="skip")
        run.catch_up("120s")
        db.stream("clicks").append_many([click(1), click(2, "b"), {"page": "c"}])
        run.catch_up("120s")
    return space


@contextlib.contextmanager
def working(*command: str | Path, space: Path) -> Iterator[subprocess.Popen[str]]:
    """A command of the line in a process of its own."""
    args = [*ONEFOLD, *map(str, command), "--url", str(space)]
    with subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        try:
            yield program
        finally:
            program.kill()


def wait_for(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.05)


def standing(space: Path) -> dict[str, Any]:
    found: dict[str, Any] = document(ask("live", "per_minute", "--json", url=space))[0]
    return found


# -- how it stands


def test_live_says_how_jobs_stand_and_what_holds_them_back(stopped: Path) -> None:
    (one,) = document(ask("live", "--json", url=stopped))
    assert (one["id"], one["name"], one["role"], one["state"]) == (
        "per_minute/1",
        "per_minute",
        "current",
        "running",
    )
    assert (one["problem"], one["error"]) == (None, None)
    status = one["status"]
    assert status["watermark"] == "2026-01-01T12:01:34+00:00"
    assert {part: status[part] for part in ("lag", "rows", "late", "dead", "ahead", "workers")} == {
        "lag": 0, "rows": 100, "late": 2, "dead": 1, "ahead": 0, "workers": 0,
    }  # fmt: skip
    assert "64 lanes have no worker" in status["held_by"]
    text = ask("live", url=stopped).stdout
    assert "per_minute" in text and "2026-01-01 12:01:34 UTC" in text and "have no worker" in text


def test_lists_tables_and_status_know_live_jobs(stopped: Path) -> None:
    (table,) = document(ask("tables", "--json", url=stopped))
    assert (table["name"], table["live"], table["late"], table["lag"]) == ("per_minute", True, 2, 0)
    shown = document(ask("table", "per_minute", "--json", url=stopped))
    assert [row["n"] for row in shown["rows"]] == [30, 30], "the open windows are not final"
    assert sorted(row["kind"] for row in shown["estimate"]["rows"]) == ["bound", "bound", "exact", "exact"]
    assert (
        "exact up to 2026-01-01 12:01:34 UTC, 2 late, not in it"
        in ask("table", "per_minute", url=stopped).stderr
    )
    text = ask("table", "per_minute", "--estimate", "n", url=stopped).stdout
    assert re.search(r"^window_start +page +n ", text) and "None" not in text
    assert re.search(r"^window_start +page +n ", ask("table", "per_minute", url=stopped).stdout)
    (run,) = document(ask("runs", "--json", url=stopped))
    assert (run["id"], run["progress"]["done"]) == ("per_minute/1", 100)
    assert "per_minute/1" in ask("runs", url=stopped).stdout
    status = document(ask("status", "--json", url=stopped))
    assert [one["id"] for one in status["live"]] == ["per_minute/1"] and status["running"] == []
    line = next(line for line in ask("status", url=stopped).stdout.splitlines() if line.startswith("live"))
    assert "0 records behind, watermark 2026-01-01 12:01:34 UTC, 2 late, 1 dead; held back: 64 of 64" in line
    said = ask("explain", "per_minute", url=stopped).stdout
    assert (
        "Live job 'per_minute'" in said and "window: tumbling(1m)" in said and "100 events are in it" in said
    )
    assert "Lock" not in said


def test_late_prints_what_came_too_late(stopped: Path) -> None:
    found = document(ask("late", "per_minute", "--json", url=stopped))
    assert found["count"] == 2 and [row["page"] for row in found["rows"]] == ["a", "b"]
    assert [row["_offset"] for row in found["rows"]] == [100, 101]
    assert [
        row["page"]
        for row in document(ask("late", "per_minute", "--limit", "1", "--json", url=stopped))["rows"]
    ] == ["b"]
    shown = ask("late", "per_minute", url=stopped)
    assert "12:00:01" in shown.stdout and "2 late events" in shown.stderr


def test_runs_errors_cancel_and_resume(stopped: Path, tmp_path: Path) -> None:
    (dead,) = document(ask("runs", "errors", "per_minute", "--json", url=stopped))["errors"]
    assert (
        dead["skipped"]
        and dead["location"] == "record 102 of partition 0 of clicks"
        and "'c'" in dead["record"].replace('"', "'")
    )
    shown = ask("runs", "--url", stopped, "errors", "per_minute/1")
    assert shown.stdout.startswith("set aside: ") and "per_minute/1 is running: 1 errors" in shown.stderr
    fill(tmp_path)
    with of.connect(tmp_path) as db:
        job(db).start(workers=0)
    with working("runs", "resume", "per_minute", space=tmp_path) as worker:
        wait_for(lambda: standing(tmp_path)["status"]["rows"] == 100)
        assert document(ask("runs", "cancel", "per_minute", "--json", url=tmp_path))["state"] == "cancelled"
        assert worker.wait(120) == 1, "it did not end as done"
    again = ask("runs", "cancel", "per_minute", url=tmp_path)
    assert again.returncode == 0 and "is cancelled" in again.stderr
    for command in ("errors", "cancel", "resume"):
        missing = ask("runs", command, "nothing", url=tmp_path)
        assert missing.returncode == 1 and "no run 'nothing'" in missing.stderr


def test_a_job_of_another_python_hides_no_other_and_can_be_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onefold.compute.live.job.stored import LiveJobs

    fill(tmp_path)
    with of.connect(tmp_path) as db:
        job(db).start(workers=0)
        rows = db.read_stream("clicks", follow=True).group_by("page").agg(n=agg.count())
        rows.into("foreign").start(workers=0)
    load = LiveJobs.plan

    def refused(self: LiveJobs, blob: str) -> Any:
        plan = load(self, blob)
        if plan.job == "foreign":
            raise of.errors.InvalidValue("made by another Python")
        return plan

    monkeypatch.setattr(LiveJobs, "plan", refused)
    jobs = {one["name"]: one for one in document(ask("live", "--json", url=tmp_path))}
    assert jobs["foreign"]["problem"] == "made by another Python" and jobs["foreign"]["status"] is None
    assert jobs["per_minute"]["status"]["lag"] == 100
    assert "another Python" in ask("live", url=tmp_path).stdout
    assert {one["id"]: one["progress"] is None for one in document(ask("runs", "--json", url=tmp_path))} == {
        "per_minute/1": False, "foreign/1": True,
    }  # fmt: skip
    assert "foreign/1" in ask("runs", url=tmp_path).stdout
    tables = {one["name"]: one["error"] for one in document(ask("tables", "--json", url=tmp_path))}
    assert tables == {"per_minute": None, "foreign": "made by another Python"}
    assert "another Python" in ask("status", url=tmp_path).stdout
    assert document(ask("stop", "foreign", "--json", url=tmp_path))["state"] == "stopped"


# -- following one, and its life


def test_run_shows_a_live_job_and_ctrl_c_leaves_it(tmp_path: Path) -> None:
    space, program = tmp_path / "space", tmp_path / "job.py"
    program.write_text(PROGRAM)
    fill(space)
    with (
        working("run", program, space=space) as worker,
        working("live", "per_minute", "--watch", space=space) as view,
    ):
        assert worker.stderr is not None and view.stdout is not None and view.stderr is not None
        wait_for(
            lambda: (
                ask("live", "per_minute", url=space).returncode == 0 and standing(space)["status"]["lag"] == 0
            )
        )
        line = next(line for line in worker.stderr if "100 events" in line)
        assert (
            line.startswith("per_minute: running · 100 events")
            and "watermark 2026-01-01 12:01:34 UTC · 1 worker" in line
        )
        with of.connect(space) as db:
            db.stream("clicks").append(click(200))
        wait_for(lambda: standing(space)["status"]["rows"] == 101)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(120) == 130
        said = worker.stderr.read()
        assert "live job per_minute/1 is left as it is" in said and "Traceback" not in said
        assert standing(space)["state"] == "running", "others may work on it"
        if view.stdout.readline():  # it may have begun before there was a job, and has ended then
            view.send_signal(signal.SIGINT)
            assert view.wait(120) == 0
            assert "Traceback" not in view.stderr.read()


def test_watch_ends_cleanly_and_prints_a_list_a_line_as_json(stopped: Path) -> None:
    with working("live", "--watch", "--json", space=stopped) as view:
        assert view.stdout is not None and view.stderr is not None
        assert json.loads(view.stdout.readline())[0]["id"] == "per_minute/1"
        assert json.loads(view.stdout.readline())[0]["status"]["late"] == 2
        view.send_signal(signal.SIGINT)
        assert view.wait(120) == 0
        assert view.stderr.read() == ""
    with working("live", "per_minute", "--watch", space=stopped) as view:
        assert view.stdout is not None and view.stderr is not None
        assert view.stdout.readline().startswith("per_minute: running · 100 events · caught up")
        view.send_signal(signal.SIGINT)
        assert view.wait(120) == 0
        assert "Traceback" not in view.stderr.read()


def test_stop_drain_replay_swap_and_drop(tmp_path: Path) -> None:
    space, program = tmp_path / "space", tmp_path / "job.py"
    program.write_text(PROGRAM)
    fill(space)
    with of.connect(space) as db:
        job(db).start().catch_up("120s")
        missing = ask("swap", "per_minute", url=space)
        assert missing.returncode == 1 and "nothing replays live job 'per_minute'" in missing.stderr
        replayed = ask("replay", "per_minute", program, "--json", "changed", url=space)
        assert document(replayed)["role"] == "replay" and "has caught up" in replayed.stderr
        assert document(ask("table", "per_minute", "--json", url=space))["value_columns"] == ["n"]
        hidden = document(ask("table", "per_minute/2", "--json", url=space))
        assert hidden["value_columns"] == ["n", "last"] and [row["n"] for row in hidden["rows"]] == [30, 30]
        db.stream("clicks").append(click(300))  # nobody works on the replay: the swap reads this first
        swapped = document(ask("swap", "per_minute", "--json", url=space))
        assert (swapped["id"], swapped["role"], swapped["status"]["rows"]) == ("per_minute/2", "current", 101)
        roles = {one["id"]: (one["role"], one["state"]) for one in document(ask("live", "--json", url=space))}
        assert roles == {"per_minute/1": ("replaced", "stopped"), "per_minute/2": ("current", "running")}
        assert document(ask("drop", "live", "per_minute/1", "--json", url=space))["dropped"]
    running = ask("drop", "table", "per_minute", url=space)
    assert running.returncode == 1 and "stop it first" in running.stderr
    assert document(ask("stop", "per_minute", "--drain", "--json", url=space))["state"] == "done"
    assert sum(row["n"] for row in document(ask("table", "per_minute", "--json", url=space))["rows"]) == 101
    assert ask("drop", "table", "per_minute", url=space).returncode == 0
    assert (
        document(ask("live", "--json", url=space)) == []
        and document(ask("tables", "--json", url=space)) == []
    )
    gone = ask("drop", "live", "per_minute", "--json", url=space)
    assert gone.returncode == 1 and not json.loads(gone.stdout)["dropped"]


def test_replay_swaps_at_once_when_it_is_asked_to(tmp_path: Path) -> None:
    space, program = tmp_path / "space", tmp_path / "job.py"
    program.write_text(PROGRAM)
    fill(space)
    with of.connect(space) as db:
        job(db).start().catch_up("120s")
    done = ask("replay", "per_minute", program, "--swap", "--from", "2020-01-01", url=space)
    assert done.returncode == 0 and "per_minute/2 is now the job 'per_minute'" in done.stderr
    other = ask("replay", "elsewhere", program, url=space)
    assert (
        other.returncode == 1
        and "did not start a live job 'elsewhere'; it started 'per_minute'" in other.stderr
    )


def test_a_job_that_nobody_works_on_is_drained_by_the_command(tmp_path: Path) -> None:
    fill(tmp_path)
    with of.connect(tmp_path) as db:
        job(db).start(workers=0)
    drained = ask("stop", "per_minute", "--drain", url=tmp_path)
    assert "nobody works on live job per_minute/1: this command does" in drained.stderr
    assert drained.stderr.endswith("live job per_minute/1 is done\n")
    with of.connect(tmp_path) as db:
        assert db.table("per_minute").to_polars()["n"].sum() == 100


def test_drop_empties_a_map(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        db.map("m").update({"a": 1, "b": 2})
    assert document(ask("drop", "map", "m", "--json", url=tmp_path))["dropped"]
    again = ask("drop", "map", "m", url=tmp_path)
    assert again.returncode == 1 and "there is no map 'm'" in again.stderr


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("live", "nothing"), 1, "there is no live job 'nothing'"),
        (("late", "nothing"), 1, "there is no live job 'nothing'"),
        (("stop", "nothing"), 1, "there is no live job 'nothing'"),
        (("swap", "nothing"), 1, "there is no live job 'nothing'"),
        (("stop",), 2, "NAME"),
        (("stop", "per_minute", "--timeout", "soon"), 2, "--timeout"),
        (("replay", "per_minute"), 2, "JOB.py"),
        (("replay", "per_minute", "no_such.py"), 2, "no_such.py"),
        (("replay", "per_minute", __file__, "--from", "once"), 2, "is not a moment"),
        (("drop", "stream", "clicks"), 2, "stream retain"),
        (("drop", "table"), 2, "NAME"),
    ],
)
def test_what_cannot_be_says_what_to_do(args: tuple[str, ...], code: int, says: str, stopped: Path) -> None:
    done = ask(*args, url=stopped)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert says in done.stderr and "Traceback" not in done.stderr


def test_a_long_sentence_is_cut_and_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stdout", written)
    status = dict.fromkeys(("workers", "rows", "lag", "late", "dead", "ahead"), 1234567)
    status |= {"rate": 1.0, "lag_s": 5.0, "watermark": NOON, "held_by": ""}
    one = {"id": "orders/1", "name": "orders", "role": "current", "state": "running", "status": status}
    print_live([one, one | {"state": "failed", "status": status | {"held_by": "it failed: " + "why " * 100}}])
    head, first, second = written.getvalue().splitlines()
    for name in ("job", "state", "workers", "events", "rate", "behind", "watermark", "late", "held back by"):
        assert name in head
    for line in (first, second):
        assert line.count("1,234,567") == 6
        assert "orders" in line
        assert "2026-01-01 12:00:00" in line
    assert "it failed: why why" in second
    assert second.rstrip().endswith("…")
    assert len(second) <= PIPE_WIDTH
