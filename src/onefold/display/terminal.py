"""Drawing a run with Rich: a bar, the facts, and the top rows with their intervals."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid
from rich.text import Text

from onefold.display import text, words
from onefold.display.model import Cell, Frame, TopRows

if TYPE_CHECKING:
    from rich.console import RenderableType

STATE_STYLES = {
    "running": "cyan",
    "draining": "cyan",
    "done": "green",
    "failed": "bold red",
    "cancelled": "yellow",
    "stopped": "yellow",
}
MARK_STYLES = {"exact": "green", "estimate": "cyan", "bound": "magenta", "withheld": "dim", "so far": "dim"}
MARK_WORDS = {"withheld": "no interval yet"}
KEY_WIDTH_MAX = 32
LINES_AROUND_ROWS = 8
"""Lines of the picture that are not rows: head, bar, facts, blanks, column heads, headline, and one to
spare."""


WIDTH_MAX = 110
"""Wider than this a line is hard to follow with the eye."""


def cut(frame: Frame, rows_max: int) -> Frame:
    """The picture with fewer rows, so that it fits the screen."""
    if frame.rows is None or len(frame.rows.rows) <= rows_max:
        return frame
    return replace(frame, rows=replace(frame.rows, rows=frame.rows.rows[:rows_max]))


def draw(frame: Frame, *, width: int) -> RenderableType:
    """The whole picture of a run, at most ``width`` cells wide."""
    parts: list[RenderableType] = [_head(frame, width), _bar(frame, width), _facts(frame)]
    if frame.live is not None and frame.live.held_by:
        parts.append(Text(f"held back: {frame.live.held_by}", style="yellow"))
    parts.extend(Text(note, style="yellow") for note in frame.notes)
    if frame.rows is not None and frame.rows.rows:
        parts.extend([Text(""), draw_rows(frame.rows), _foot(frame.rows)])
    elif frame.problem:
        parts.append(Text(frame.problem, style="dim"))
    return Group(*parts)


def draw_rows(rows: TopRows) -> Grid:
    """The rows with value, interval and mark. The mark of each row is that of its first value."""
    several = len(rows.values) > 1
    marked = any(cell.mark not in ("exact", "so far") for row in rows.rows for cell in row.cells)
    grid = Grid(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for key in rows.keys:
        grid.add_column(words.visible(key), no_wrap=True, overflow="ellipsis", max_width=KEY_WIDTH_MAX)
    for name in rows.values:
        grid.add_column(words.visible(name), justify="right", no_wrap=True, overflow="ellipsis", max_width=60)
        if marked:
            grid.add_column(f"{100 * rows.level:g} %", no_wrap=True, overflow="ellipsis", style="cyan")
    if marked and not several:
        grid.add_column("", no_wrap=True, overflow="ellipsis")
    for row in rows.rows:
        line: list[Text] = [Text(part) for part in row.key]
        for cell in row.cells:
            line.append(Text(cell.text))
            if marked:
                line.append(Text(cell.interval) if not several else _interval_or_mark(cell))
        if marked and not several:
            line.append(_mark(row.cells[0]))
        grid.add_row(*line)
    return grid


def _interval_or_mark(cell: Cell) -> Text:
    return Text(cell.interval) if cell.interval else _mark(cell)


def _mark(cell: Cell) -> Text:
    return Text(MARK_WORDS.get(cell.mark, cell.mark), style=MARK_STYLES[cell.mark])


def _head(frame: Frame, width: int) -> Text:
    state = text.STATES[frame.state]
    end = f"{state} {text.time_left(frame)}"
    name = Text(words.visible(frame.table), style="bold")
    name.truncate(max(8, width - len(end) - 2), overflow="ellipsis")
    head = Text.assemble(
        name, " " * max(2, width - name.cell_len - len(end)), (end, STATE_STYLES[frame.state])
    )
    head.no_wrap = True
    return head


def _bar(frame: Frame, width: int) -> RenderableType:
    progress = frame.progress
    label = text.tasks(frame)
    bar = ProgressBar(
        total=max(1, progress.total),
        completed=progress.done,
        width=max(10, width - len(label) - 2),
        complete_style=STATE_STYLES[frame.state],
        finished_style="green",
    )
    grid = Grid.grid(padding=(0, 2, 0, 0))
    grid.add_column()
    grid.add_column(no_wrap=True)
    grid.add_row(bar, Text(label))
    return grid


def _facts(frame: Frame) -> Text:
    return Text(" · ".join(text.facts(frame)), style="dim", no_wrap=True, overflow="ellipsis")


def _foot(rows: TopRows) -> Text:
    parts = [rows.headline(), text.more(rows)]
    return Text("; ".join(part for part in parts if part), style="green" if rows.exact else "dim")
