"""Waiting a little longer before each try, until a moment: what every loop of tries needs, once.

A ``Deadline`` is the moment at which a wait ends, a ``Backoff`` gives the pauses of one loop. Neither waits by itself: the caller
knows whether to sleep, to wait for an event, or to await. So the same loop runs in threads, in asyncio and in a simulator, whose
``Env`` gives the time and the jitter.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from onefold.env import SYSTEM, Env

T = TypeVar("T")
_JITTER_STEPS: Final = 256
"""One random byte decides."""


def jittered(seconds: float, env: Env = SYSTEM) -> float:
    """Half to one and a half times as long, evenly spread: those that failed together do not try again together."""
    return seconds * (0.5 + env.token(1)[0] / _JITTER_STEPS)


class Deadline:
    """A moment of the boot clock at which something ends; or never."""

    __slots__ = ("_clock", "at_s")

    def __init__(self, at_s: float | None, env: Env = SYSTEM) -> None:
        """``at_s``: the moment, in seconds of ``env.boot_s``; None: it never comes."""
        self._clock = env.boot_s
        self.at_s = at_s

    @classmethod
    def after(cls, seconds: float | None, env: Env = SYSTEM) -> Deadline:
        """So many seconds from now; None: it never comes."""
        return cls(None if seconds is None else env.boot_s() + seconds, env)

    @property
    def left_s(self) -> float | None:
        """Seconds until then, 0 or less once it has passed; None: it never comes."""
        return None if self.at_s is None else self.at_s - self._clock()

    @property
    def passed(self) -> bool:
        """Whether it has come."""
        return self.at_s is not None and self._clock() >= self.at_s

    def within(self, seconds: float) -> float:
        """So many seconds, or what is left if that is less; never below 0."""
        return seconds if self.at_s is None else max(0.0, min(seconds, self.at_s - self._clock()))

    def before(self, seconds: float) -> bool:
        """Whether it comes within the next so many seconds, or has passed."""
        return self.at_s is not None and self._clock() + seconds >= self.at_s


NEVER: Final = Deadline(None)
"""The deadline of what may take as long as it takes."""


class Backoff:
    """The pauses of one loop of tries: the first is ``first_s`` long, each further one twice as long, up to ``max_s``."""

    __slots__ = ("_first_s", "_jitter", "_max_s", "next_s")

    def __init__(self, first_s: float, max_s: float, jitter: Env | None = None) -> None:
        """``jitter``: where the randomness comes from that spreads the pauses; None: they are exact."""
        self._first_s = first_s
        self._max_s = max_s
        self._jitter = jitter
        self.next_s = first_s
        """How long the next pause will be, before jitter."""

    def pause_s(self) -> float:
        """How long to wait now, in seconds."""
        pause_s, self.next_s = self.next_s, min(2 * self.next_s, self._max_s)
        return pause_s if self._jitter is None else jittered(pause_s, self._jitter)

    def reset(self) -> None:
        """A try has succeeded: begin with the first pause again."""
        self.next_s = self._first_s


def retried(
    work: Callable[[], T],
    errors: type[Exception] | tuple[type[Exception], ...],
    seconds: float,
    backoff: Backoff,
    pause: Callable[[float], object] = time.sleep,
) -> T:
    """What ``work`` returns, called again while it raises one of ``errors``.

    It is not called again when the next pause would end after ``seconds``, or when ``pause`` returns true, as the ``wait`` of a
    ``threading.Event`` does once it is set: then the last error is raised.
    """
    deadline = Deadline.after(seconds)
    while True:
        try:
            return work()
        except errors:
            if deadline.before(backoff.next_s) or pause(backoff.pause_s()) is True:
                raise


def wait_until(
    found: Callable[[], bool], seconds: float, look_s: float, pause: Callable[[float], object] = time.sleep
) -> bool:
    """Look every ``look_s`` seconds whether ``found()``, for at most ``seconds``; what it was in the end."""
    deadline = Deadline.after(seconds)
    while not found():
        if deadline.passed:
            return False
        pause(look_s)
    return True
