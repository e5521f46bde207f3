"""The task slots of a node, which all runs that it works on share."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from onefold.backoff import Deadline

Note = Callable[[str, dict[str, Any]], None]
"""Told of what happens: an event's name and its fields."""


class Slots:
    """At most ``count`` tasks at a time, handed out in the order in which they were asked for. Thread-safe."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @property
    def in_use(self) -> int:
        """Slots that are taken now."""
        return self.count - self._free

    def take(self, timeout: float) -> bool:
        """Take a slot, waiting for it up to ``timeout`` seconds (0: only if nobody else waits); False when there was none."""
        ticket = object()
        deadline = Deadline.after(timeout)
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not (self._free and self._waiting[0] is ticket):
                    if deadline.passed or not self._changed.wait(deadline.within(timeout)):
                        return False
                self._free -= 1
                return True
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def give_back(self) -> None:
        """Give a taken slot back."""
        with self._changed:
            self._free += 1
            self._changed.notify_all()


@dataclass(frozen=True)
class Host:
    """The node that runners work for."""

    node: str
    """Its name."""
    slots: Slots
    """Shared by its runners."""
