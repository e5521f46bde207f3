"""What a look that found nothing says of the wait that follows, for callers that wait without a thread (``onefold.aio``)."""

from __future__ import annotations

import math
from typing import NamedTuple

from onefold.shard.waiters import Interest


class Awaited(NamedTuple):
    """What ends a wait, in one shard."""

    shard: int
    interest: Interest
    offset: int
    """How far the look saw the shard."""
    place: int = 0
    """In the line, if those who wait for this stand in one."""


class Pause(NamedTuple):
    """Until when there is nothing to be found."""

    awaited: tuple[Awaited, ...]
    """Any of it may bring something to be found."""
    one_in_s: float = math.inf
    """After so many seconds one of those who await the first of it has to look, though nothing is written."""
    in_s: float = math.inf
    """After so many seconds this one has to."""
