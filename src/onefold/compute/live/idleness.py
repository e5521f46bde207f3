"""When an input partition is idle: read to its head, and nothing new for a while on the boot clock of the worker that reads it.

Only a *barriered* view may say where the head is: a replica that lags believes that it has read everything. The clock only
proposes. What counts is the flag in the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from onefold.state.fold.live.ops import Position

Place = tuple[int, int]
"""(input, partition)."""


class IdleClock:
    """What one worker has seen of the partitions of a bundle. It starts again with each owner."""

    def __init__(self, idle_s: Mapping[int, float | None]) -> None:
        """``idle_s``: by input; None: its partitions are never idle."""
        self._idle_s = idle_s
        self._since: dict[Place, tuple[int, float]] = {}
        """Where a partition stands, and since when it was seen there."""

    def due(self, positions: Iterable[Position], boot_s: float) -> bool:
        """Whether to ask where the heads are: one of these has stood where it stands for long enough.

        Where a head is now found at the same place, nothing has come since then: so nobody needs to ask at the beginning.
        """
        is_due = False
        for one in positions:
            idle_s = self._idle_s.get(one.input)
            if idle_s is None:
                continue
            place = (one.input, one.partition)
            offset, since_s = self._since.get(place, (-1, boot_s))
            if offset != one.next:
                since_s = boot_s
                self._since[place] = (one.next, boot_s)
            is_due |= boot_s - since_s >= idle_s
        return is_due

    def found_idle(
        self, positions: Iterable[Position], heads: Mapping[Place, int], boot_s: float
    ) -> list[Position]:
        """The partitions that are idle from now on, as they are to be committed.

        ``positions``: those committed. ``heads``: the partitions' ends in a barriered view that was taken after the read of
        these positions; those missing are not known. ``boot_s``: the boot clock when the view was asked for.
        """
        idle: list[Position] = []
        for one in positions:
            place = (one.input, one.partition)
            if heads.get(place) != one.next:
                continue
            offset, since_s = self._since.setdefault(place, (one.next, boot_s))
            if offset != one.next:
                since_s = boot_s
                self._since[place] = (one.next, boot_s)
            idle_s = self._idle_s.get(one.input)
            if not one.idle and idle_s is not None and boot_s - since_s >= idle_s:
                idle.append(Position(one.input, one.partition, one.next, one.max_us, True))
        return idle
