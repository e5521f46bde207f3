"""A run and a table as HTML for notebooks: self-contained, no script, everything that comes from data
escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from onefold.display import text, words
from onefold.display.model import Cell, Frame, Reader, TopRows, error_lines
from onefold.display.shown import LiveRun
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from onefold.display.shown import Run, Table

_COLOURS = {
    "running": "#0891b2",
    "draining": "#0891b2",
    "done": "#15803d",
    "failed": "#b91c1c",
    "cancelled": "#b45309",
    "stopped": "#b45309",
}
_MARK_COLOURS = {
    "exact": "#15803d",
    "estimate": "#0891b2",
    "bound": "#a21caf",
    "withheld": "#78716c",
    "so far": "#78716c",
}
_CELL = "padding:1px 12px 1px 0;border:none;background:none;"


def run_html(run: Run) -> str:
    """A run as it is now: progress, facts, and why it failed if it did."""
    live = run.look()[1] if isinstance(run, LiveRun) else None
    frame = Frame(run.id, run.table_name, run.state, run.progress(), live=live)
    return frame_html(frame, errors=error_lines(run) if frame.state == "failed" else ())


def table_html(table: Table, n: int = 10) -> str:
    """A table as it is now: its first rows with their intervals, and how many tasks are in it."""
    try:
        rows = Reader(table, n=n, values_max=3).read()
    except OnefoldError as error:
        return f"<div><b>{_text(table.name)}</b><br>{_text(str(error))}</div>"
    head = f"<b>{_text(table.name)}</b> <span style='opacity:.7'>{_text(rows.headline())}</span>"
    return f"<div style='font-family:system-ui,sans-serif'>{head}{rows_html(rows)}</div>"


def frame_html(frame: Frame, errors: tuple[str, ...] = ()) -> str:
    """One picture of a run."""
    progress = frame.progress
    colour = _COLOURS[frame.state]
    share = 100 * progress.done / progress.total if progress.total else (100 if frame.state == "done" else 0)
    parts = [
        "<div style='font-family:system-ui,sans-serif;max-width:60em'>",
        f"<div><b>{_text(frame.table)}</b> <span style='color:{colour}'>"
        f"{_text(text.STATES[frame.state])} {_text(text.time_left(frame))}</span></div>",
        "<div style='background:#8883;border-radius:3px;height:8px;margin:4px 0'>"
        f"<div style='background:{colour};border-radius:3px;height:8px;width:{min(100.0, share):.1f}%'></div>"
        "</div>",
        f"<div style='opacity:.7'>{_text(' · '.join([text.tasks(frame), *text.facts(frame)]))}</div>",
    ]
    held = [f"held back: {frame.live.held_by}"] if frame.live is not None and frame.live.held_by else []
    parts.extend(f"<div style='color:#b45309'>{_text(note)}</div>" for note in (*held, *frame.notes))
    if frame.rows is not None and frame.rows.rows:
        parts.append(rows_html(frame.rows))
        parts.append(f"<div style='opacity:.7'>{_text(frame.rows.headline())}</div>")
    elif frame.problem:
        parts.append(f"<div style='opacity:.7'>{_text(frame.problem)}</div>")
    if errors:
        parts.append(f"<pre style='color:{_COLOURS['failed']}'>{_text(chr(10).join(errors))}</pre>")
    return "".join([*parts, "</div>"])


def rows_html(rows: TopRows) -> str:
    """The rows as an HTML table."""
    heads = [f"<th style='{_CELL}text-align:left'>{_text(key)}</th>" for key in rows.keys]
    for name in rows.values:
        heads.append(f"<th style='{_CELL}text-align:right'>{_text(name)}</th><th style='{_CELL}'></th>")
    lines = []
    for row in rows.rows:
        cells = [f"<td style='{_CELL}text-align:left'>{_text(part)}</td>" for part in row.key]
        cells.extend(_cell(cell) for cell in row.cells)
        lines.append(f"<tr>{''.join(cells)}</tr>")
    foot = f"<div style='opacity:.7'>{_text(text.more(rows))}</div>" if rows.more else ""
    table = "<table style='border-collapse:collapse;font-variant-numeric:tabular-nums;margin:4px 0'>"
    return f"{table}<thead><tr>{''.join(heads)}</tr></thead><tbody>{''.join(lines)}</tbody></table>{foot}"


def _cell(cell: Cell) -> str:
    mark_text = cell.interval or ("no interval yet" if cell.mark == "withheld" else cell.mark)
    title = f" title='{_text(cell.reason)}'" if cell.reason else ""
    return (
        f"<td style='{_CELL}text-align:right'>{_text(cell.text)}</td>"
        f"<td style='{_CELL}text-align:left;color:{_MARK_COLOURS[cell.mark]}'{title}>{_text(mark_text)}</td>"
    )


def _text(value: str) -> str:
    # The data may hold anything, and a notebook that is shared runs what is in its output.
    return escape(
        "".join(char if char.isprintable() or char == "\n" else words.visible(char) for char in value),
        quote=True,
    )
