"""Follow a run until it ends, on whatever there is to show it on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol, TextIO

from onefold.display.model import Frame, LiveProgress, Reader, TopRows
from onefold.display.pace import Pace
from onefold.display.shown import LiveRun
from onefold.display.text import ACTIVE
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from onefold.display.shown import LiveStatus, Progress, Run

ROWS_LEAST_S: Final = 0.5
"""The table is read at most this often, however cheap it is."""
STILL_AFTER_S: Final = 3.0
"""When nothing has moved for this long …"""
STILL_WAIT_S: Final = 1.2
"""… the run is waited for this long at a time."""
Watcher = Callable[["Progress"], str | None]
"""Called with each new progress; text that it returns becomes a line of the view."""


class Screen(Protocol):
    """Where a run is shown."""

    shows_rows: bool
    """Whether pictures between the first and the last need the table's rows."""

    def show(self, frame: Frame) -> None:
        """Draw this picture in place of the last one."""
        ...

    def note(self, text: str) -> None:
        """Something happened: a line that stays."""
        ...

    def close(self, frame: Frame | None) -> None:
        """The last picture (None when following was interrupted before there was any)."""
        ...


def follow(
    run: Run,
    *,
    top: tuple[str | None, int] = (None, 10),
    file: TextIO | None = None,
    on_progress: Watcher | None = None,
) -> None:
    """Show a run until it ends: in place on a terminal or in a notebook, as plain lines anywhere else.

    ``top``: the column that orders the rows shown (default: the first aggregate) and how many there are; 0
    shows none. ``file``: where to, by default stderr, so that a program's own output stays clean.
    ``on_progress`` is called with each new ``Progress``; what it returns is shown as a line that stays.

    Returns when the run is done, failed or cancelled, and does not raise for how it ended. KeyboardInterrupt
    passes through and leaves the screen in order; the run continues. Raises Unavailable when nobody works on
    the run. Costs at most about a twentieth of one core.
    """
    screen = _screen(file)
    follower = _Follower(run, screen, top, on_progress)
    try:
        follower.until_end()
    finally:
        screen.close(follower.last)


class _Follower:
    """The loop: wait for the run, read what is due, draw."""

    def __init__(
        self, run: Run, screen: Screen, top: tuple[str | None, int], on_progress: Watcher | None
    ) -> None:
        self._run = run
        self._table = run.table_name
        self._began_s = time.monotonic() - run.progress().elapsed
        self._screen = screen
        self._by, self._count = top
        self._reader: Reader | None = None
        self._on_progress = on_progress
        self._pace = Pace(share=0.02)
        self._rows_pace = Pace(share=0.03, least_s=ROWS_LEAST_S)
        self._rows: TopRows | None = None
        self._problem = ""
        self._moved_s = time.monotonic()
        self.last: Frame | None = None

    def until_end(self) -> None:
        """Returns when the run is not running any more and its last picture is read."""
        while True:
            state, live = self._look()
            ended = state not in ACTIVE
            self._draw(state, live, ended)
            if ended:
                return
            self._wait()

    def _look(self) -> tuple[str, LiveStatus | None]:
        if isinstance(self._run, LiveRun):
            return self._run.look(strong=False)
        return self._run.state, None

    def _wait(self) -> None:
        if isinstance(self._run, LiveRun):
            # It does not end by itself, and when nobody works on it the view says so.
            time.sleep(max(0.05, self._pace.left_s(time.monotonic())))
            return
        # When nothing moves there is nothing to draw; and only a wait of over a second finds out that nobody
        # works on the run any more.
        still = time.monotonic() - self._moved_s > STILL_AFTER_S
        try:
            self._run.wait(timeout=STILL_WAIT_S if still else max(0.05, self._pace.left_s(time.monotonic())))
        except TimeoutError:
            pass
        except OnefoldError:
            # How the run ended is the caller's to raise; here its state says it.
            if self._run.state == "running":
                raise

    def _draw(self, state: str, live: LiveStatus | None, ended: bool) -> None:
        started = time.monotonic()
        progress = self._run.progress() if live is None else self._of_live(live)
        if self.last is None or (progress.done, progress.rows) != (
            self.last.progress.done,
            self.last.progress.rows,
        ):
            self._moved_s = started
        note = self._on_progress(progress) if self._on_progress is not None else None
        if note:
            self._screen.note(note)
        rows_started = time.monotonic()
        there_are = progress.done > 0 and self._screen.shows_rows
        if ended or (there_are and self._rows_pace.due(rows_started)):
            self._read_rows(state)
            self._rows_pace.spent(rows_started, time.monotonic())
        rows_ended = time.monotonic()
        self.last = Frame(
            self._run.id, self._table, state, progress, self._rows, problem=self._problem, live=live
        )
        if not ended:
            self._screen.show(self.last)
        now = time.monotonic()
        self._pace.spent(started + (rows_ended - rows_started), now)

    def _of_live(self, live: LiveStatus) -> Progress:
        elapsed = time.monotonic() - self._began_s
        return LiveProgress(live.rows, live.rows + live.lag, live.rows, live.workers, elapsed)

    def _read_rows(self, state: str) -> None:
        if self._count <= 0:
            return
        try:
            if self._reader is None:
                self._reader = Reader(self._run.table, by=self._by, n=self._count)
            self._rows, self._problem = self._reader.read(), ""
        except OnefoldError as error:
            # The view must not end the job: it says why it has nothing to show and continues.
            self._rows, self._problem = None, f"no rows to show: {error}" if state == "running" else ""


def _screen(file: TextIO | None) -> Screen:
    if file is None:
        from onefold.display import notebook

        if notebook.in_kernel():
            return notebook.NotebookScreen()
    stream: Any = file if file is not None else sys.stderr
    from onefold.display.screens import PlainScreen, TerminalScreen

    if stream.isatty():
        terminal = TerminalScreen(stream)
        if terminal.usable:
            return terminal
    return PlainScreen(stream)
