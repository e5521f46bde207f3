"""The live view of a live job, in a terminal, in a pipe and in a notebook: how far it is, and what holds it back."""

from __future__ import annotations

import io
import os
import pty
import re
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

import onefold as of
from onefold import agg
from onefold.display import follow, run_html, table_html, terminal, text, words
from onefold.display.model import Frame, LiveProgress, Reader
from support.times import scaled

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HELD = "64 of 64 lanes have no worker"


def start(db: of.Database, *, window: bool = True, workers: int = 1) -> Any:
    db.stream("clicks").append_many(
        [{"at": NOON + timedelta(seconds=second), "page": "ab"[second % 2]} for second in range(100)]
    )
    rows: Any = db.read_stream("clicks", follow=True, event_time="at", idle=None)
    rows = rows.window(of.window.tumbling("1m")) if window else rows
    return rows.group_by("page").agg(n=agg.count()).into("t").start(workers)


def late(db: of.Database, run: Any) -> None:
    run.catch_up("120s")
    db.stream("clicks").append_many([{"at": NOON, "page": "a"}] * 3)
    run.catch_up("120s")


def frame_of(run: Any) -> Frame:
    state, status = run.look()
    progress = LiveProgress(status.rows, status.rows + status.lag, status.rows, status.workers, 1.0)
    return Frame(run.id, "t", state, progress, live=status)


def test_a_line_says_how_far_a_job_is_and_what_holds_it_back() -> None:
    with of.connect("memory://") as db:
        run = start(db, workers=0)
        line = text.line(frame_of(run))
        assert line.startswith("t: running · 0 events · 100 behind (")
        assert f"0 workers · held back: {HELD}" in line
        run.resume()
        late(db, run)
        line = text.line(frame_of(run))
        assert re.fullmatch(
            r"t: running · 100 events( \(.*/s\))? · caught up · watermark 2026-01-01 12:01:39 UTC · 3 late · 1 worker",
            line,
        )


def test_a_terminal_shows_a_job_until_it_is_stopped_and_its_newest_windows_first() -> None:
    with of.connect("memory://") as db:
        run = start(db)
        late(db, run)
        primary, secondary = pty.openpty()
        screen = os.fdopen(secondary, "w", encoding="utf-8")
        said: list[bytes] = []
        reader = threading.Thread(target=lambda: collect(primary, said), daemon=True)
        reader.start()
        seen: list[int] = []

        def stop(progress: Any) -> str | None:
            seen.append(progress.done)
            if len(seen) == 3:
                run.stop()
            return None

        follow(run, file=screen, on_progress=stop)
        screen.close()
        reader.join(scaled(30))
        shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(said).decode())
        last = shown[shown.rindex("100 % of what came") :]
        assert seen[0] == 100
        assert "watermark 2026-01-01 12:01:39 UTC · 3 late" in last
        assert "held back: the job is stopped: start it again" in last
        assert last.index("12:01:00") < last.index("12:00:00"), "the newest window first"
        assert "≥ 20" in last and "exact up to 2026-01-01 12:01:39 UTC, 3 late, not in it" in last


def collect(fd: int, said: list[bytes]) -> None:
    try:
        while data := os.read(fd, 1 << 16):
            said.append(data)
    except OSError:
        return  # closed


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_picture_is_as_wide_as_the_terminal_but_for_what_wraps(width: int) -> None:
    with of.connect("memory://") as db:
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(terminal.draw(frame_of(start(db, workers=0)), width=width))
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert HELD in " ".join(shown.split())
        assert max(map(len, shown.splitlines())) <= width


def test_a_notebook_shows_the_same() -> None:
    with of.connect("memory://") as db:
        run = start(db)
        late(db, run)
        assert "watermark 2026-01-01 12:01:39 UTC" in run_html(run) and "3 late" in run_html(run)
        run.stop()
        assert "held back: the job is stopped" in run_html(run)
        assert "exact up to 2026-01-01 12:01:39 UTC" in table_html(db.table("t"))


def test_the_headline_says_exact_only_of_what_cannot_change() -> None:
    with of.connect("memory://") as db:
        run = start(db)
        run.catch_up("120s")
        assert Reader(db.table("t")).read().headline() == "exact up to 2026-01-01 12:01:39 UTC"
        db.stream("clicks").append({"at": NOON + timedelta(seconds=99), "page": "a"})
        run.stop(drain=True, timeout="120s")
        assert Reader(db.table("t")).read().headline() == "exact: all windows are closed"
    with of.connect("memory://") as db:
        run = start(db, window=False)
        run.catch_up("120s")
        rows = Reader(db.table("t")).read()
        assert rows.headline() == "the events so far"
        assert {cell.mark for row in rows.rows for cell in row.cells} == {"bound"}
        run.stop()
        db.stream("clicks").append({"at": NOON, "page": "a"})
        assert Reader(db.table("t")).read().headline() == "the events so far, 1 events behind"


def test_rows_of_windows_have_their_keys_and_all_their_values() -> None:
    with of.connect("memory://") as db:
        db.stream("clicks").append_many(
            [{"at": NOON + timedelta(seconds=s), "page": "ab"[s % 2], "s": s} for s in range(100)]
        )
        live = db.read_stream("clicks", follow=True, event_time="at").window(of.window.tumbling("1m"))
        live.group_by("page").agg(n=agg.count(), last=agg.max("s")).into("t").start().catch_up("120s")
        rows = Reader(db.table("t"), values_max=4).read()
        assert (rows.keys, rows.values) == (("window_start", "page"), ("n", "last"))
        shown = [(row.key[1], *(cell.text for cell in row.cells)) for row in rows.rows]
        assert shown == [("a", "20", "98"), ("b", "20", "99"), ("a", "30", "58"), ("b", "30", "59")]


def test_a_job_that_failed_at_its_first_record_has_nothing_exact() -> None:
    with of.connect("memory://") as db:
        db.stream("clicks").append({"at": "noon", "page": "a"})
        windows = db.read_stream("clicks", follow=True, event_time="at").window(of.window.tumbling("1m"))
        run = windows.group_by("page").agg(n=agg.count()).into("t").start()
        with pytest.raises(of.JobFailed):
            run.catch_up("120s")
        assert Reader(db.table("t")).read().headline() == "no window is closed, 1 events behind"


def test_instants_are_in_utc_with_milliseconds_only_where_they_have_them() -> None:
    assert words.instant(NOON) == "2026-01-01 12:00:00 UTC"
    assert words.instant(NOON + timedelta(microseconds=34567)) == "2026-01-01 12:00:00.034 UTC"
