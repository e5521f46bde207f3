"""What a view must show, as one value: each kind of shard meets it in its own way.

An embedded shard always shows everything, a replica of a log waits (by a barrier, or until an offset is applied), and a shard
without a replica makes it part of the question, so that waiting and reading take one round trip.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from onefold import config
from onefold.errors import Unavailable


class ReadRequirement(NamedTuple):
    """What a view must show at least. One that names nothing is met by any replica."""

    after: int = 0
    """Everything up to this offset."""
    shown: bool = False
    """Everything that was shown here before, in whatever view."""
    barrier: bool = False
    """Everything acknowledged before it was asked for."""
    fresh_s: float | None = None
    """Everything acknowledged so many seconds before it was asked for."""
    timeout: float | None = None
    """Seconds that it may take; None: ``config.READ_TIMEOUT_S``."""
    seen: Callable[[int], None] | None = None
    """Called with the offset of a view of the present, once that is known."""


class Behind(Unavailable):
    """No replica that was asked has applied what the read must show, in the time that it had."""

    def __init__(self, message: str, applied: int = 0, *, definite: bool | None = None) -> None:
        super().__init__(message, definite=definite)
        self.applied = applied
        """As far as is known."""


def reach_needed(
    need: ReadRequirement, reach: Callable[[int, float | None], bool], applied: Callable[[], int]
) -> None:
    """Wait until ``need.after`` is applied here. ``reach``: see ``Shard.reach``. Raises Behind (definite)."""
    if not need.after:
        return
    patience_s = config.READ_TIMEOUT_S if need.timeout is None else need.timeout
    if not reach(need.after, patience_s):
        known = applied()
        raise Behind(
            f"offset {need.after} was not applied here within {patience_s:g} s, only {known}. Try again",
            known,
            definite=True,
        )
