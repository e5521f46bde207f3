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
