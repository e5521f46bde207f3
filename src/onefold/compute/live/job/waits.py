"""Waits for a live job: how long, and in which steps.

The time limit is of the whole call. Each step of the wait has what a read or a write of the connection has, and ends with the
wait, or shortly after it (``limited_step``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, TypeVar

from onefold.backoff import Deadline
from onefold.compute import arguments
from onefold.state.core.time_limits import limited_step

if TYPE_CHECKING:
    from onefold.durations import Duration
    from onefold.state.core.client import StateClient

T = TypeVar("T")
_LOOK_S: Final = 0.25


class Wait:
    """One call that waits."""

    def __init__(self, client: StateClient, timeout: Duration | None) -> None:
        """``timeout``: what the caller gave, in any form. Raises InvalidArgument."""
        self._client = client
        self.limit_s = arguments.timeout(timeout)
        """In seconds; None: as long as it takes."""
        self.deadline = Deadline.after(self.limit_s, client.env)

    @property
    def left_s(self) -> float | None:
        """Seconds until it ends, never below 0; None: as long as it takes."""
        left_s = self.deadline.left_s
        return None if left_s is None else max(0.0, left_s)

    def or_s(self, seconds: float) -> Deadline:
        """When it ends, or in so many seconds where the caller gave no limit."""
        return Deadline.after(seconds, self._client.env) if self.limit_s is None else self.deadline

    def step(self) -> AbstractContextManager[object]:
        """A ``with`` block for one step of it."""
        return limited_step(self._client, self.deadline)

    def until(
        self, shard: int, look: Callable[[], tuple[int, T | None]], check: Callable[[], None]
    ) -> T | None:
        """What a look finds; None: the time is over. ``look``: gives the offset of that shard at which it looked, and what it
        found, or None. ``check``: raises where it is of no use to wait on."""
        while True:
            with self.step():
                offset, found = look()
                if found is not None or self.deadline.passed:
                    return found
                check()
            self._client.shards[shard].wait(offset, self.deadline.within(_LOOK_S))
