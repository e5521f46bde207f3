"""A clock that is moved by hand, and databases in memory that live by it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

from onefold import config
from onefold.arguments import WHOLE_MAX, check_whole, shown
from onefold.db import Database
from onefold.durations import seconds
from onefold.errors import InvalidArgument
from onefold.folds import folds as space_folds
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.consistency import Consistency, parse_level

START = datetime(2024, 1, 1, tzinfo=UTC)
"""Where a fake clock starts unless told otherwise."""
_LAST_MS = 253_402_300_799_999
"""The end of the year 9999."""


class FakeClock:
    """A clock for tests of what takes hours: lifetimes, leases, delays, retention.

    ``clock.advance("1h")`` lets time pass. A database on this clock (``clock.connect()``) never really waits for time: a wait
    with a timeout (``q.get(timeout="5s")``) in which nothing happens moves the clock by the timeout and returns. It is an
    ``onefold.env.Env``; identifiers are seeded, so a test does the same each time.
    """

    def __init__(self, start: datetime = START, *, seed: int = 0) -> None:
        """``start``: the time of day in the beginning (with a time zone). Raises InvalidArgument."""
        if not isinstance(start, datetime):
            raise InvalidArgument(f"start must be a datetime; got {shown(start)}")
        check_whole("seed", seed, least=-WHOLE_MAX)
        try:
            self._start_ms = round(start.timestamp() * 1000)
        except (ValueError, OverflowError, OSError):
            raise InvalidArgument(f"start={start!r} is not a moment that this machine can tell") from None
        self._passed_s = 0.0
        self._random = random.Random(seed)

    @property
    def now(self) -> datetime:
        """The time of day, UTC."""
        return datetime.fromtimestamp(self.wall_ms() / 1000, UTC)

    def advance(self, duration: float | timedelta | str) -> None:
        """Let so much time pass: seconds, a timedelta or text (``"1h"``). Nothing is woken by it; what is due is seen by anyone
        who looks next."""
        passed_s = self._passed_s + seconds(duration, "duration")
        if self._start_ms + passed_s * 1000 > _LAST_MS:
            raise InvalidArgument(
                f"duration {shown(duration)} leads beyond the year 9999, which no clock can tell"
            )
        self._passed_s = passed_s

    def connect(self, *, shards: int = 1, consistency: Consistency = "strong") -> Database:
        """A new, empty database in memory whose time is this clock's."""
        level = parse_level(consistency)
        check_whole("shards", shards, least=1, most=config.SHARDS_MAX)
        all_shards = [
            MemoryShard(_ClockLog(self), space_folds(shard, shards), self, pause=self._pause)
            for shard in range(shards)
        ]
        return Database(all_shards, level=level)

    # -- what a database asks

    def wall_ms(self) -> int:
        return self._start_ms + round(self._passed_s * 1000)

    def boot_s(self) -> float:
        return self._passed_s

    def token(self, nbytes: int) -> bytes:
        return self._random.randbytes(nbytes)

    def _pause(self, seconds_: float) -> None:
        self._passed_s += max(0.0, seconds_)


class _ClockLog(MemoryLog):
    """Where nothing comes within a timeout, the timeout passes at once."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(env=clock)
        self._clock = clock

    def wait(self, after: int, timeout: float | None) -> int:
        if timeout is None or self.last > after or self._closed:
            return super().wait(after, timeout)
        self._clock._pause(timeout)
        return self.last
