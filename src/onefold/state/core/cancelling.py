"""Waits that can be given up from outside, for callers whose own wait may be cancelled (``onefold.aio``).

A look that is under way in a thread cannot be interrupted. What matters is what it does to the space: a ``Gate`` stands before
each operation that would take something, and after the wait was given up nobody passes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

GivenUp = Callable[[], bool]
"""Whether the wait was given up."""


def never() -> bool:
    """The wait is never given up."""
    return False


class Gate:
    """Stands before operations that take something. Thread-safe."""

    __slots__ = ("_given_up", "_inside", "_mutex")

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._given_up = False
        self._inside = False

    def enter(self) -> bool:
        """Before such an operation; False: do not start it."""
        with self._mutex:
            self._inside = not self._given_up
            return self._inside

    def leave(self) -> None:
        """The operation has taken nothing."""
        with self._mutex:
            self._inside = False

    def give_up(self) -> bool:
        """Nobody wants it any more. Whether nothing was taken, nor is being taken, so that nothing will be."""
        with self._mutex:
            self._given_up = True
            return not self._inside

    def given_up(self) -> bool:
        """Whether ``give_up`` was called."""
        return self._given_up
