"""The same facts about a run in words, for every kind of view."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold.display import words
from onefold.display.model import Frame, TopRows

if TYPE_CHECKING:
    from onefold.display.shown import LiveStatus

STATES = {
    "running": "running",
    "done": "done",
    "failed": "FAILED",
    "cancelled": "cancelled",
    "stopped": "stopped",
    "draining": "draining",
}


ACTIVE = ("running", "draining")


def facts(frame: Frame) -> list[str]:
    """Rows, bytes, workers and what went wrong or was spared: the parts of the second line of a view."""
    if frame.live is not None:
        return live_facts(frame.live, with_workers=frame.state in ACTIVE)
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


def live_facts(status: LiveStatus, *, with_workers: bool) -> list[str]:
    """How a live job stands, without what holds it back."""
    parts = [f"{words.count(status.rows)} events"]
    if status.rate > 0:
        parts[0] += f" ({words.rate(status.rate, 1)})"
    parts.append(lag(status))
    if status.watermark is not None:
        parts.append(f"watermark {words.instant(status.watermark)}")
    counted = (
        ("late", status.late),
        ("dead", status.dead),
        ("ahead", status.ahead),
        ("before the seam", status.before_seam),
    )
    parts += [f"{words.count(count)} {name}" for name, count in counted if count]
    if with_workers:
        parts.append(f"{status.workers} worker{'' if status.workers == 1 else 's'}")
    return parts


def lag(status: LiveStatus) -> str:
    """``120 behind (0.3 s)``, or that there is nothing to read."""
    if not status.lag:
        return "caught up"
    return f"{words.count(status.lag)} behind ({words.duration(status.lag_s)})"


def time_left(frame: Frame) -> str:
    """``2.1 s, about 8 s left`` while it runs, ``in 10.2 s`` afterwards."""
    progress = frame.progress
    if frame.live is not None:
        return words.duration(progress.elapsed) if frame.state in ACTIVE else ""
    if frame.state != "running":
        return f"in {words.duration(progress.elapsed)}"
    if progress.eta is None:
        return words.duration(progress.elapsed)
    return f"{words.duration(progress.elapsed)}, about {words.duration(progress.eta)} left"


def tasks(frame: Frame) -> str:
    """``12/48 tasks  25 %``."""
    progress = frame.progress
    if frame.live is not None:
        return f"{words.percent(progress.done, progress.total) or '100 %'} of what came"
    share = words.percent(progress.done, progress.total)
    return f"{words.count(progress.done)}/{words.count(progress.total)} tasks" + (
        f"  {share}" if share else ""
    )


def line(frame: Frame) -> str:
    """A run on one line, for logs and pipes."""
    if frame.live is not None:
        head = f"{frame.table}: {STATES[frame.state]}"
        held = [f"held back: {frame.live.held_by}"] if frame.live.held_by else []
        return " · ".join([head, *facts(frame), *held])
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
