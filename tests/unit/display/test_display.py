"""The live view: what it shows in a terminal, in a pipe and in a notebook, and what looking costs."""

from __future__ import annotations

import io
import os
import pty
import re
import sys
import threading
import time
import types
from dataclasses import dataclass, field
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from onefold.compute.runs import Progress, RunError
from onefold.display import follow, run_html, screens, table_html, terminal, words
from onefold.display.model import Cell, Frame, Reader, Row, TopRows
from onefold.display.pace import Pace
from onefold.display.screens import TerminalScreen
from onefold.errors import InvalidArgument, JobFailed, Timeout, Unavailable

ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def progress(done: int, total: int = 10, **changes: Any) -> Progress:
    values: dict[str, Any] = {
        "rows": done * 1000,
        "bytes": done * 12_000,
        "failed": 0,
        "retried": 0,
        "reused": 0,
        "workers": 2,
        "elapsed": 1.5 * done,
        "eta": 1.5 * (total - done),
    }
    return Progress(done=done, total=total, **(values | changes))


def estimates(rows: list[dict[str, Any]]) -> pl.DataFrame:
    base = {"level": 0.95, "n": 5, "N": 10, "reason": None}
    return pl.DataFrame([row | base | row for row in rows], infer_schema_length=None)


HALF = [
    {"word": "the", "value": 1000.0, "lo": 950.0, "hi": 1050.0, "kind": "estimate"},
    {"word": "of", "value": 700.0, "lo": None, "hi": None, "kind": "estimate", "reason": "in too few splits"},
    {"word": "[red]and[/red]", "value": 50.0, "lo": 40.0, "hi": 60.0, "kind": "estimate"},
]
WHOLE = [
    {"word": "the", "value": 1012, "lo": 1012, "hi": 1012, "kind": "exact", "n": 10},
    {"word": "of", "value": 690, "lo": 690, "hi": 690, "kind": "exact", "n": 10},
    {"word": "[red]and[/red]", "value": 49, "lo": 49, "hi": 49, "kind": "exact", "n": 10},
]


@dataclass
class Moment:
    """A snapshot that says what its script says."""

    done: int
    total: int
    exact: bool
    frame: pl.DataFrame
    cost_s: float = 0.0

    def estimate(self, name: str, level: float = 0.95) -> pl.DataFrame:
        if name != "n":
            raise InvalidArgument(f"no aggregate {name!r}; there are: n")
        time.sleep(self.cost_s)
        return self.frame

    def to_polars(self) -> pl.DataFrame:
        return self.frame.select("word", n="value") if "value" in self.frame.columns else self.frame


@dataclass
class ScriptedTable:
    """A table that stands still at one moment."""

    moment: Moment
    name: str = "words"
    key_columns: tuple[str, ...] = ("word",)
    value_columns: tuple[str, ...] = ("n",)
    readings: int = 0

    def watch(self, *, timeout: float | None = None) -> Any:
        self.readings += 1
        yield self.moment


@dataclass
class ScriptedRun:
    """A run that takes its steps one a ``wait`` and ends as told."""

    steps: list[Progress]
    end: str = "done"
    id: str = "run_1"
    table_name: str = "words"
    cost_s: float = 0.0
    step_s: float = 0.05
    at: int = 0
    failures: list[RunError] = field(default_factory=list)

    @property
    def state(self) -> str:
        return self.end if self.at >= len(self.steps) - 1 else "running"

    def progress(self) -> Progress:
        return self.steps[min(self.at, len(self.steps) - 1)]

    @property
    def table(self) -> ScriptedTable:
        self.shown = LiveTable(self)
        return self.shown

    def wait(self, timeout: float | None = None) -> ScriptedRun:
        time.sleep(min(timeout or 0.0, self.step_s))
        self.at += 1
        if self.state == "running":
            raise Timeout("goes on", definite=True)
        if self.end == "failed":
            raise JobFailed("it failed")
        return self

    def errors(self) -> list[RunError]:
        return self.failures


class LiveTable(ScriptedTable):
    """The table of a scripted run, as far as the run is."""

    def __init__(self, run: ScriptedRun) -> None:
        self._run = run
        super().__init__(self._now())

    def _now(self) -> Moment:
        run, now = self._run, self._run.progress()
        ended = run.state == "done"
        return Moment(now.done, now.total, ended, estimates(WHOLE if ended else HALF), run.cost_s)

    def watch(self, *, timeout: float | None = None) -> Any:
        self.readings += 1
        yield self._now()


def to_the_end(step_s: float = 0.05) -> ScriptedRun:
    return ScriptedRun([progress(done) for done in range(11)], step_s=step_s)


class Screen:
    """A pseudo-terminal whose output is collected."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self._collected: list[bytes] = []
        self._thread = threading.Thread(target=self._collect, daemon=True)
        self._thread.start()

    def _collect(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self._collected.append(data)
        except OSError:
            pass

    def text(self) -> str:
        self.file.close()
        self._thread.join(60)
        os.close(self._master)
        return b"".join(self._collected).decode()


# -- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "spread", "text"),
    [
        (1234567, None, "1,234,567"),
        (12.0, None, "12"),
        (12.345678, 0.5, "12.35"),
        (12.345678, 0.05, "12.346"),
        (123456.789, 5000.0, "123,457"),
        (float("nan"), None, "nan"),
        (None, None, "–"),
        (True, None, "True"),
        ("a\x1b[31mb\n", None, "a\\x1b[31mb\\n"),
        (b"x", None, "b'x'"),
    ],
)
def test_values_are_shown_with_the_digits_that_they_deserve(
    value: Any, spread: float | None, text: str
) -> None:
    assert words.value(value, spread) == text


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [(0, 10, "0 %"), (1, 1000, "<1 %"), (999, 1000, "99 %"), (1000, 1000, "100 %"), (0, 0, "")],
)
def test_percent_says_all_only_when_it_is_all(done: int, total: int, text: str) -> None:
    assert words.percent(done, total) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.0123, "12 ms"), (0.9999, "1.0 s"), (59.96, "1:00"), (75.2, "1:15"), (3725, "1:02:05")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert words.duration(seconds) == text


def test_an_interval_that_is_not_symmetric_is_shown_by_its_ends() -> None:
    assert words.interval(100.0, 90.0, 110.0) == "± 10 (10 %)"
    assert words.interval(100.0, 95.0, 140.0) == "[95, 140]"
    assert words.interval(100.0, 100.0, 100.0) == ""


# -- pace ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0.0001, 0.01, 0.3, 2.0])
def test_looking_takes_at_most_its_share_of_the_time(cost: float) -> None:
    pace, now, spent = Pace(share=0.03, least_s=0.5), 0.0, 0.0
    for turn in range(50):
        assert pace.due(now)
        pace.spent(now, now + cost)
        spent += cost if turn else 0.0  # a first slow reading may be an import
        now += cost + pace.left_s(now + cost) + 1e-9
        if turn == 0:
            assert now <= cost + 0.5001
    assert spent / now <= 0.0301
    assert now >= 49.9 * 0.5


def test_a_table_that_is_slow_to_read_is_read_seldom() -> None:
    steps = [*(progress(done, 100) for done in range(30)), progress(100, 100)]
    run = ScriptedRun(steps, cost_s=0.6)
    screen = Screen()
    follow(run, file=screen.file)
    screen.text()
    # Two to know that it is slow, and the last; it is not read each half second.
    assert run.shown.readings == 3


# -- rows ------------------------------------------------------------------------------------------------


def test_rows_say_what_is_estimated_exact_and_withheld() -> None:
    table = ScriptedTable(Moment(6, 10, False, estimates(HALF)))
    rows = Reader(table).read()
    assert [(row.key, row.cells[0]) for row in rows.rows] == [
        (("the",), Cell("1,000", "± 50 (5 %)", "estimate")),
        (("of",), Cell("700", "", "withheld", "in too few splits")),
        (("[red]and[/red]",), Cell("50", "± 10 (20 %)", "estimate")),
    ]
    assert rows.headline() == "estimates of the whole, 95 % intervals, from 5 of 10 splits"
    whole = Reader(ScriptedTable(Moment(10, 10, True, estimates(WHOLE)))).read()
    assert {cell.mark for row in whole.rows for cell in row.cells} == {"exact"}
    assert whole.headline() == "exact: every task is in"


def test_a_key_that_is_called_like_a_column_of_the_estimate_is_shown() -> None:
    rows = [{"key_value": "a", "value": 7.0, "lo": 6.0, "hi": 8.0, "kind": "estimate"}]
    table = ScriptedTable(Moment(6, 10, False, estimates(rows)), key_columns=("value",))
    shown = Reader(table).read()
    assert (shown.keys, shown.rows[0].key, shown.rows[0].cells[0].text) == (("value",), ("a",), "7")


def test_a_bound_is_shown_as_one() -> None:
    bound = [{"word": "a", "value": 7, "lo": 7, "hi": None, "kind": "bound"}]
    below = [{"word": "a", "value": 3, "lo": None, "hi": 3, "kind": "bound"}]
    cells = [
        Reader(ScriptedTable(Moment(6, 10, False, estimates(rows)))).read().rows[0].cells[0]
        for rows in (bound, below)
    ]
    assert cells == [Cell("7", "≥ 7", "bound"), Cell("3", "≤ 3", "bound")]


def test_rows_of_a_table_without_aggregates_are_so_far() -> None:
    frame = pl.DataFrame({"word": ["b", "a"], "size": [2, 1]})
    table = ScriptedTable(Moment(1, 10, False, frame), key_columns=(), value_columns=())
    rows = Reader(table, n=1).read()
    assert rows.rows == (Row((), (Cell("b", "", "so far"), Cell("2", "", "so far"))),)
    assert (rows.more, rows.headline()) == (1, "so far: 1 of 10 tasks")
    with pytest.raises(InvalidArgument, match="no column 'nope'; there are: word, size"):
        Reader(table, by="nope").read()


def test_a_table_with_no_task_done_has_no_rows() -> None:
    assert Reader(ScriptedTable(Moment(0, 10, False, pl.DataFrame()))).read().rows == ()


# -- the terminal ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("state", ["running", "done", "failed", "cancelled"])
def test_a_picture_never_is_wider_than_the_terminal(width: int, state: str) -> None:
    long = "a_table_with_a_name_that_is_longer_than_any_terminal_" * 3
    cells = (Cell("1,234,567,890", "± 1,234 (0.1 %)", "estimate"),)
    rows = TopRows(("key",), ("value",), tuple(Row(("k" * 200,), cells) for _ in range(5)), 77, 5, 10, seen=4)
    now = progress(5, rows=123_456_789_012, retried=3, failed=2, reused=44_000)
    picture = terminal.draw(Frame("run_1", long, state, now, rows, ("a note",)), width=width)
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, legacy_windows=False).print(picture)
    lines = ANSI.sub("", out.getvalue()).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    # A row that wraps would push the picture down at each redraw.
    assert sum("kk" in line for line in lines) == 5


def test_a_terminal_shows_each_step_in_place_and_ends_with_the_exact_rows() -> None:
    screen = Screen()
    follow(to_the_end(step_s=0.12), file=screen.file)
    raw = screen.text()
    text = ANSI.sub("", raw)
    assert "estimates of the whole, 95 % intervals" in text
    assert "no interval yet" in text
    assert "± 50 (5 %)" in text
    last = text[text.rindex("words  ") :]
    assert "done in 15.0 s" in last
    assert "10/10 tasks  100 %" in last
    assert "1,012" in last
    assert "[red]and[/red]" in last
    assert "exact: every task is in" in last
    assert max(len(line.rstrip()) for line in re.split(r"[\r\n]+", text)) <= 80
    assert raw.count("\x1b[?25l") == raw.count("\x1b[?25h") == 1, "the cursor is hidden once and given back"
    assert "\x1b[2J" not in raw, "clearing the screen is what flickers"


def test_a_small_terminal_gets_fewer_rows_while_it_runs_and_all_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LINES", "14")
    many = [
        {"word": f"w{i:02}", "value": 100.0 - i, "lo": 90.0 - i, "hi": 110.0 - i, "kind": "estimate"}
        for i in range(30)
    ]
    screen = Screen()
    terminal_screen = TerminalScreen(screen.file)
    rows = Reader(ScriptedTable(Moment(6, 10, False, estimates(many))), n=30).read()
    terminal_screen.show(Frame("run_1", "words", "running", progress(6), rows))
    terminal_screen.close(Frame("run_1", "words", "done", progress(10), rows))
    text = ANSI.sub("", screen.text())
    shown, whole = text.split("done in", 1)
    assert set(re.findall(r"w\d\d", shown)) == {f"w{i:02}" for i in range(6)}
    assert len(re.findall(r"w\d\d", whole)) == 30


def test_notes_stay_on_the_screen() -> None:
    screen = Screen()
    said: list[int] = []

    def watcher(now: Progress) -> str | None:
        said.append(now.done)
        return "killed worker 123" if now.done == 5 else None

    follow(to_the_end(), file=screen.file, on_progress=watcher)
    assert screen.text().count("killed worker 123") == 1
    assert said[-1] == 10


def test_an_interrupt_passes_through_and_leaves_the_terminal_in_order() -> None:
    class Interrupted(ScriptedRun):
        def wait(self, timeout: float | None = None) -> ScriptedRun:
            if self.at == 3:
                raise KeyboardInterrupt
            return super().wait(timeout)

    screen = Screen()
    with pytest.raises(KeyboardInterrupt):
        follow(Interrupted([progress(done) for done in range(11)]), file=screen.file)
    raw = screen.text()
    assert raw.rindex("\x1b[?25h") > raw.rindex("\x1b[?25l")
    assert "3/10 tasks" in ANSI.sub("", raw)[-400:]


def test_a_table_that_cannot_be_read_does_not_end_the_view() -> None:
    class Lost(ScriptedRun):
        @property
        def table(self) -> Any:
            raise Unavailable("a task's data has been lost")

    screen = Screen()
    follow(Lost([progress(done) for done in range(11)]), file=screen.file)
    assert "no rows to show: a task's data has been lost" in ANSI.sub("", screen.text())


def test_a_run_that_nobody_works_on_is_said_to_be() -> None:
    class Abandoned(ScriptedRun):
        def wait(self, timeout: float | None = None) -> ScriptedRun:
            raise Unavailable("nobody works on run run_1")

    with pytest.raises(Unavailable, match="nobody works"):
        follow(Abandoned([progress(0), progress(1)]), file=io.StringIO())


# -- pipes -----------------------------------------------------------------------------------------------


def test_a_pipe_gets_plain_lines_and_the_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screens, "LINE_LEAST_S", 600.0)  # a slow machine needs longer than a second
    out = io.StringIO()
    follow(to_the_end(), file=out)
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    lines = text.splitlines()
    assert lines[0] == "words: running · 0/10 tasks 0 % · 2 workers · 0 ms, about 15.0 s left"
    progress_lines = [line for line in lines if line.startswith("words: ")]
    assert len(progress_lines) == 2, "its time did not pass, so there is the first line and the last"
    assert progress_lines[-1] == "words: done · 10/10 tasks 100 % · 10,000 rows (667/s) · 120 kB · in 15.0 s"
    assert text.count("1,012") == 1
    assert lines[-1] == "exact: every task is in"


def test_a_failed_run_ends_the_view_without_raising() -> None:
    out = io.StringIO()
    follow(ScriptedRun([progress(0), progress(1), progress(2, failed=4)], end="failed"), file=out)
    assert "words: FAILED · 2/10 tasks 20 %" in out.getvalue()
    assert "4 failed" in out.getvalue()


# -- notebooks -------------------------------------------------------------------------------------------


def test_html_escapes_what_comes_from_data() -> None:
    bad = "<script>alert('x')</script>"
    run = ScriptedRun(
        [progress(1)],
        end="failed",
        table_name=bad,
        failures=[RunError(bad, f"line\n{bad}", bad, bad, 0, 0, 1, False)],
    )
    rows = [
        {"word": bad, "value": 3.0, "lo": None, "hi": None, "kind": "estimate", "reason": "' onmouseover='x"}
    ]
    table = ScriptedTable(Moment(6, 10, False, estimates(rows)), name=bad)
    for html in (run_html(run), table_html(table)):
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert "' onmouseover" not in html
        assert "src=" not in html


def test_html_shows_state_rows_and_why() -> None:
    html = table_html(ScriptedTable(Moment(6, 10, False, estimates(HALF))))
    assert "± 50 (5 %)" in html
    assert "no interval yet" in html
    assert "in too few splits" in html
    assert "12/48 tasks" in run_html(ScriptedRun([progress(12, 48), progress(13, 48)]))


class Handle:
    """What IPython's display gives back: collects the updates of one output."""

    def __init__(self, first: str) -> None:
        self.pictures = [first]

    def update(self, picture: str) -> None:
        self.pictures.append(picture)


def test_a_notebook_gets_one_output_that_is_updated(monkeypatch: pytest.MonkeyPatch) -> None:
    handles: list[Handle] = []

    def display(picture: str, *, display_id: bool) -> Handle:
        handles.append(Handle(picture))
        return handles[-1]

    shell = types.SimpleNamespace(kernel=object())
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = lambda: shell
    show: Any = types.ModuleType("IPython.display")
    show.HTML, show.display = str, display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", show)
    follow(to_the_end(), on_progress=lambda now: "a note" if now.done == 5 else None)
    (handle,) = handles
    assert "running" in handle.pictures[0]
    assert "exact: every task is in" in handle.pictures[-1]
    assert "a note" in handle.pictures[-1]


def test_ipython_in_a_terminal_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from onefold.display import notebook

    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not notebook.in_kernel()
    monkeypatch.delitem(sys.modules, "IPython")
    assert not notebook.in_kernel()
