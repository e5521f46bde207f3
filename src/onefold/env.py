"""Time and randomness, as arguments: what is pure takes an ``Env``, so that a seed replays it.

``boot_s`` counts while the machine sleeps (CLOCK_BOOTTIME), so a lease observed with it cannot outlive a suspended
laptop; ``wall_ms`` is what people read and what writers stamp on records.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

_boot_s: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class Env(Protocol):
    """The outside world as far as Onefold's own logic needs it."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970, UTC."""
        ...

    def boot_s(self) -> float:
        """Seconds of a clock that never goes back and counts suspended time."""
        ...

    def token(self, nbytes: int) -> bytes:
        """Random bytes, for identifiers."""
        ...


class SystemEnv:
    """The real clock and the real entropy."""

    boot_s = staticmethod(_boot_s)  # a function of C, as it is: every write asks

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def token(self, nbytes: int) -> bytes:
        return os.urandom(nbytes)


class SeededEnv:
    """A clock that moves when told, and randomness from a seed: the same seed gives the same run."""

    def __init__(self, seed: int, *, wall_ms: int = 1_700_000_000_000) -> None:
        self._random = random.Random(seed)
        self._wall_ms = wall_ms
        self._boot_s = 0.0

    def wall_ms(self) -> int:
        return self._wall_ms

    def boot_s(self) -> float:
        return self._boot_s

    def token(self, nbytes: int) -> bytes:
        return self._random.randbytes(nbytes)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._boot_s += seconds
        self._wall_ms += int(seconds * 1000)


SYSTEM: Env = SystemEnv()
"""The environment of a real process."""
