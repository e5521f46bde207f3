"""How long items live."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Final

from onefold.durations import seconds
from onefold.errors import InvalidArgument

_TTL_S_MAX: Final = 1e15


def ttl_ms(ttl: float | timedelta | str | None) -> int | None:
    """A lifetime in milliseconds, rounded up; None: for ever. Raises InvalidArgument (definite) unless it is more than zero."""
    if ttl is None:
        return None
    ttl_s = seconds(ttl, "ttl")
    if ttl_s <= 0:
        raise InvalidArgument(f"ttl must be more than zero; got {ttl!r}")
    return math.ceil(min(ttl_s, _TTL_S_MAX) * 1000)


def remaining_ms(expires_ms: int | None, wall_ms: int) -> int | None:
    """The lifetime that is left of an item: what a write that keeps its end has to ask for. None: it has no end.

    Operations carry lifetimes and not ends, and the record that takes this one is stamped a moment later, so the new end is later
    than the old one by the time that the write was on its way: milliseconds.
    """
    return None if expires_ms is None else max(1, expires_ms - wall_ms)
