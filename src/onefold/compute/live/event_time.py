"""Event time: what a bundle knows of it after its commits. Pure.

Times are integers, microseconds since 1970 (naive times are UTC). A watermark ``w`` says: rows earlier than ``w`` are not
expected any more. A window is closed once its end plus the allowed lateness is at or below ``w``.

- A partition's watermark is the highest time of its *committed* rows, of those at most ``max_ahead`` ahead of their append, minus
  the delay. A row further ahead is processed, and moves nothing: capping it at its arrival would jump to today when old data is
  replayed.
- The operator's watermark is the lowest of the partitions that are not idle, and never goes back. A partition without any row
  holds it until it is idle. When all are idle it is the highest of them, as if the most advanced had fallen silent last: the
  result must not depend on the order of two clocks. There it stays, however long nothing comes.
- What is idle is in the commit, so the next owner of a bundle knows what the last one knew. Only a row takes it back.
- Late is judged against the watermark *before* the batch (``compute.plan.windows`` says when windows close).

Sources: Akidau et al., "The Dataflow Model", VLDB 2015; Akidau et al., "Watermarks in Stream Processing Systems", VLDB 2021.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

from onefold.machine.lazy import LazyModule
from onefold.state.fold.live.ops import TIME_MAX_US, Position

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Times = NDArray[np.int64]
    """Microseconds since 1970."""
else:
    np = LazyModule("numpy")

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Moved(NamedTuple):
    """A partition after some of its rows."""

    position: Position
    ahead: int
    """How many of the rows were too far ahead of their append to count for the watermark."""


def advanced(position: Position, upto: int, times: Times, appended: Times, max_ahead_us: int | None) -> Moved:
    """The partition once its rows before offset ``upto`` are committed.

    ``times`` and ``appended``: when each of the rows happened and was appended. ``max_ahead_us``: None trusts all times.
    """
    honest = (times >= -TIME_MAX_US) & (times <= TIME_MAX_US)  # the absolute of the lowest number is itself
    if max_ahead_us is not None:
        honest &= times <= appended + max_ahead_us
    counting = times[honest]
    highest = position.max_us
    if counting.size:
        top = int(counting.max())
        highest = top if highest is None else max(highest, top)
    idle = position.idle and upto == position.next
    moved = Position(position.input, position.partition, upto, highest, idle)
    return Moved(moved, int(times.size - counting.size))


def partition_watermark(position: Position, delay_us: int) -> int | None:
    """None: below every time."""
    return None if position.max_us is None else max(-TIME_MAX_US, position.max_us - delay_us)


def operator_watermark(
    before: int | None, positions: Iterable[Position], delays_us: Mapping[int, int]
) -> int | None:
    """The watermark after a commit with these positions. ``before``: that of the commit before. ``delays_us``: by input."""
    all_positions = list(positions)
    active = [one for one in all_positions if not one.idle]
    marks = [partition_watermark(one, delays_us.get(one.input, 0)) for one in active or all_positions]
    known = [mark for mark in marks if mark is not None]
    if not known or (active and len(known) < len(marks)):
        return before
    mark = min(known) if active else max(known)
    return mark if before is None else max(before, mark)


def passed_by(
    positions: Iterable[Position], heads: Mapping[tuple[int, int], tuple[int, int]]
) -> list[Position]:
    """Partitions of processing time that time has passed by, as of then. ``heads``: by (input, partition), the end of each and
    the fold time in one view: what comes behind that end is appended then, or later. One that is not read to it stays as it is.
    """
    found: list[Position] = []
    for one in positions:
        head, now_us = heads.get((one.input, one.partition), (-1, 0))
        if head == one.next and (one.max_us is None or one.max_us < now_us):
            found.append(Position(one.input, one.partition, one.next, now_us, one.idle))
    return found


def lowest(marks: list[int | None]) -> int | None:
    """The lowest watermark; None when one is below every time, or there is none."""
    known = [mark for mark in marks if mark is not None]
    return min(known) if known and len(known) == len(marks) else None


def time_of(micros: int | None) -> datetime | None:
    """A time in UTC; None for no time, and for what no datetime holds."""
    if micros is None:
        return None
    try:
        return _EPOCH + timedelta(microseconds=micros)
    except OverflowError:
        return None
