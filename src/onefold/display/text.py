"""The same facts about a run in words, for every kind of view."""

from __future__ import annotations

from onefold.display import words
from onefold.display.model import Frame, TopRows

STATES = {
    "running": "running",
    "done": "done",
    "failed": "FAILED",
    "cancelled": "cancelled",
}


def facts(frame: Frame) -> list[str]:
    """Rows, bytes, workers and what went wrong or was spared: the parts of the second line of a view."""
    progress = frame.progress
    parts: list[str] = []
    if progress.rows:
        speed = words.rate(progress.rows, progress.elapsed)
        parts.append(f"{words.count(progress.rows)} rows" + (f" ({speed})" if speed else ""))
    if progress.bytes:
        parts.append(words.size(progress.bytes))
    if progress.reused:
        parts.append(f"{words.count(progress.reused)} reused")
    if frame.state == "running":
        parts.append(f"{progress.workers} worker{'' if progress.workers == 1 else 's'}")
    if progress.retried:
        parts.append(f"{words.count(progress.retried)} retried")
    if progress.failed:
        parts.append(f"{words.count(progress.failed)} failed")
    return parts


def time_left(frame: Frame) -> str:
    """``2.1 s, about 8 s left`` while it runs, ``in 10.2 s`` afterwards."""
    progress = frame.progress
    if frame.state != "running":
        return f"in {words.duration(progress.elapsed)}"
    if progress.eta is None:
        return words.duration(progress.elapsed)
    return f"{words.duration(progress.elapsed)}, about {words.duration(progress.eta)} left"


def tasks(frame: Frame) -> str:
    """``12/48 tasks  25 %``."""
    progress = frame.progress
    share = words.percent(progress.done, progress.total)
    return f"{words.count(progress.done)}/{words.count(progress.total)} tasks" + (
        f"  {share}" if share else ""
    )


def line(frame: Frame) -> str:
    """A run on one line, for logs and pipes."""
    return " · ".join(
        [
            f"{frame.table}: {STATES[frame.state]}",
            tasks(frame).replace("  ", " "),
            *facts(frame),
            time_left(frame),
        ]
    )


def more(rows: TopRows) -> str:
    """``… and 87 more``, or nothing."""
    return f"… and {words.count(rows.more)} more" if rows.more else ""
