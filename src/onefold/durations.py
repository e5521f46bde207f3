"""Durations as people write them: seconds, ``timedelta`` or text such as ``"5s"``, ``"1m"``, ``"1h30m"``."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

from onefold.arguments import shown
from onefold.errors import InvalidArgument

Duration = float | int | str | timedelta
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+(?:\.\d+)?|\.\d+)(ms|s|m|h|d|w)")


MICROS_MAX: Final = (1 << 62) - 1
"""About 146,000 years: so that two fit into 64 bits."""


SECONDS_MAX: Final = 1e14
"""About three million years, which is for ever. Longer durations count as this long, so that they can be counted in
milliseconds and added to a time."""


WAIT_S_MAX: Final = 1e9
"""About thirty years. A longer timeout counts as this long, since no lock of Python waits for much longer."""


def wait_seconds(value: Duration, name: str = "timeout") -> float:
    """A timeout in seconds; raises InvalidArgument that names the argument."""
    return min(_seconds(value, name), WAIT_S_MAX)


def seconds(value: Duration, name: str) -> float:
    """The duration in seconds; raises InvalidArgument that names the argument."""
    return min(_seconds(value, name), SECONDS_MAX)


def _seconds(value: Duration, name: str) -> float:
    if isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, str):
        text = value.strip()
        if not re.fullmatch(rf"(?:{_PART.pattern})+", text):
            raise InvalidArgument(
                f"{name} must be a duration such as '5s', '1m' or '1h30m'; got {shown(value)}"
            )
        result = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(f"{name} must be seconds, a timedelta or text such as '5s'; got {shown(value)}")
    else:
        try:
            result = float(value)
        except OverflowError:
            result = math.inf
    if not math.isfinite(result) or result < 0:
        raise InvalidArgument(f"{name} must be a finite duration of zero or more; got {shown(value)}")
    return result


def micros(value: Duration, name: str, most: int | None = MICROS_MAX) -> int:
    """The duration in microseconds; raises InvalidArgument also for one longer than ``most`` (None: however long)."""
    found = round(seconds(value, name) * 1e6)
    if most is not None and found > most:
        raise InvalidArgument(f"{name} must be at most {most / 1e6:,.0f} seconds; got {shown(value)}")
    return found
