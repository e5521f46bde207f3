"""Which partition is read next: the one that is behind in event time.

After an hour of downtime a partition could be read far ahead of another one: the lowest watermark counts, so an hour of windows
times all keys would be open at once. Only partitions with unread records hold others back. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from onefold.state.fold.live.ops import Position


class Unread(NamedTuple):
    """A partition that has records behind ``position.next``."""

    position: Position
    touched: bool
    """Whether this job has read anything of it."""


class Choice(NamedTuple):
    """What to read next."""

    position: Position
    until_us: int | None
    """Records behind the first one that is later than this are read after another choice. None: no bound."""


def choose(unread: Iterable[Unread], skew_us: int) -> Choice | None:
    """The partition to read from now; None when there is nothing to read.

    One that nothing was read of yet comes first: nobody knows where in time it stands. Then the one with the lowest highest time.
    One of which only rows were read that do not count, since they are too far ahead, comes last: it holds nobody back.
    ``skew_us``: how far a partition may be read ahead of the next one.
    """
    waiting = sorted(unread, key=_order)
    if not waiting:
        return None
    first, others = waiting[0], waiting[1:]
    bound = next((one.position.max_us for one in others if one.position.max_us is not None), None)
    return Choice(first.position, None if bound is None else bound + skew_us)


def _order(one: Unread) -> tuple[bool, bool, int, int, int]:
    at = one.position
    return (one.touched, one.touched and at.max_us is None, at.max_us or 0, at.input, at.partition)
