"""How fresh a replica is, known from its own records alone.

An idle log proves nothing, and neither does another machine's clock. But a record that this replica appended itself, not before
the moment t of its own boot clock, comes after everything that had been acknowledged by t. Once it is applied here, so is
all that. Every record that a replica appends serves, so a busy writer needs no heartbeats, and a quiet one appends a record
when somebody asks.
"""

from __future__ import annotations

import math
import threading


class Freshness:
    """The moment of the boot clock up to which everything acknowledged is known to be applied here. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since_s = -math.inf

    def prove(self, began_s: float) -> None:
        """A record whose append began at this moment, or later, is applied here."""
        with self._lock:
            self._since_s = max(self._since_s, began_s)

    def age(self, now_s: float) -> float:
        """What was acknowledged longer ago than so many seconds is applied here; infinite when nothing is known."""
        return now_s - self._since_s

    def within(self, seconds: float, now_s: float) -> bool:
        """Whether everything acknowledged more than ``seconds`` before ``now_s`` is applied here."""
        return seconds > 0 and self._since_s >= now_s - seconds
