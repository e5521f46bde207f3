"""The terminal, redrawn in place, and plain lines for pipes and logs."""

from __future__ import annotations

import time
from typing import Final, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from onefold.display import terminal, text
from onefold.display.model import Frame

LINE_EVERY_S: Final = 5.0
"""A plain line appears at least this often while something moves …"""
LINE_LEAST_S: Final = 1.0
"""… at most this often …"""
LINE_STEP: Final = 10
"""… and at each tenth percent of the tasks."""


class TerminalScreen:
    """A picture redrawn in place. Only whole pictures are written, so nothing flickers."""

    shows_rows = True

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._live: Live | None = None

    @property
    def usable(self) -> bool:
        """Whether the terminal can move its cursor."""
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def show(self, frame: Frame) -> None:
        picture = self._picture(frame, whole=False)
        if self._live is None:
            self._live = Live(
                picture, console=self._console, auto_refresh=False, transient=True, vertical_overflow="crop"
            )
            self._live.start(refresh=True)
        else:
            self._live.update(picture, refresh=True)

    def note(self, text: str) -> None:
        self._console.print(Text(text, style="bold yellow"))

    def close(self, frame: Frame | None) -> None:
        # The pictures on the way are transient, so that the last one is printed whole even when it is higher
        # than the screen; it scrolls like any output.
        if self._live is not None:
            self._live.stop()
        if frame is not None:
            self._console.print(self._picture(frame, whole=True))

    def _picture(self, frame: Frame, *, whole: bool) -> RenderableType:
        if not whole and frame.rows is not None:
            room = max(1, self._console.height - terminal.LINES_AROUND_ROWS - len(frame.notes))
            frame = terminal.cut(frame, room)
        return terminal.draw(frame, width=min(self._console.width, terminal.WIDTH_MAX))


class PlainScreen:
    """A line from time to time, and the rows once at the end."""

    shows_rows = False

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, width=200, color_system=None, force_terminal=False)
        self._step = -1
        self._written_s = float("-inf")
        self._done = -1

    def show(self, frame: Frame) -> None:
        progress = frame.progress
        now = time.monotonic()
        step = LINE_STEP * progress.done // progress.total if progress.total else 0
        waited = now - self._written_s
        stepped = step != self._step and waited >= LINE_LEAST_S
        if stepped or (waited >= LINE_EVERY_S and progress.done != self._done):
            self._write(frame)
            self._step, self._done, self._written_s = step, progress.done, now

    def note(self, text: str) -> None:
        print(text, file=self._stream, flush=True)

    def close(self, frame: Frame | None) -> None:
        if frame is None:
            return
        self._write(frame)
        if frame.state != "running" and frame.rows is not None and frame.rows.rows:
            self._console.print(terminal.draw_rows(frame.rows))
            print(
                "; ".join(part for part in (frame.rows.headline(), text.more(frame.rows)) if part),
                file=self._stream,
            )
        self._stream.flush()

    def _write(self, frame: Frame) -> None:
        print(text.line(frame), file=self._stream, flush=True)
