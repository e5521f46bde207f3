"""How often to look: a reading that is slow is made seldom."""

from __future__ import annotations

from typing import Final

SHARE_MAX: Final = 0.04
"""Looking takes at most this part of one core's time; two paces (progress, table) stay below a twentieth
together."""
TURNS_PER_S_MAX: Final = 6.0


class Pace:
    """Decides when the next reading is due, from what the last ones cost.

    ``share``: the largest part of the time that may be spent reading. ``least_s``: the shortest time between
    two readings. All times are seconds of one monotonic clock, given by the caller.
    """

    def __init__(self, *, share: float = SHARE_MAX, least_s: float = 1 / TURNS_PER_S_MAX) -> None:
        self._share = share
        self._least_s = least_s
        self._due_s = float("-inf")
        self._last_cost_s = 0.0

    def due(self, now_s: float) -> bool:
        """Whether to read now."""
        return now_s >= self._due_s

    def left_s(self, now_s: float) -> float:
        """Seconds until the next reading is due."""
        return max(0.0, self._due_s - now_s)

    def spent(self, started_s: float, ended_s: float) -> None:
        """A reading took from ``started_s`` to ``ended_s``; plan the next one."""
        cost = max(0.0, ended_s - started_s)
        # One slow reading (the first, which imports; a busy disk) is not how slow readings are: two in a row
        # are.
        counted, self._last_cost_s = min(cost, self._last_cost_s), cost
        self._due_s = ended_s + max(self._least_s, counted * (1 - self._share) / self._share)
