"""The consistency levels, by name."""

from __future__ import annotations

from datetime import timedelta
from typing import Final, Literal, NamedTuple

from onefold.durations import seconds as to_seconds
from onefold.errors import UnsupportedConsistency

Kind = Literal["strong", "bounded", "session", "prefix", "eventual"]


class Level(NamedTuple):
    """A consistency level. ``seconds``: how stale a ``bounded`` read may be."""

    kind: Kind
    seconds: float = 0.0

    def __str__(self) -> str:
        return f"bounded:{self.seconds:g}s" if self.kind == "bounded" else self.kind


Consistency = str | Level
STRONG: Final = Level("strong")
"""Linearizable: sees everything acknowledged before the call."""
SESSION: Final = Level("session")
"""Sees at least what this session has seen and written."""
PREFIX: Final = Level("prefix")
"""Some prefix of the log."""
EVENTUAL: Final = Level("eventual")
"""What is here."""
_NAMED: Final = {level.kind: level for level in (STRONG, SESSION, PREFIX, EVENTUAL)}


def bounded(seconds: float | timedelta | str) -> Level:
    """Everything that was acknowledged more than this long ago is visible.

    Raises:
        InvalidArgument: definite; an argument is not valid.
    """
    return Level("bounded", to_seconds(seconds, "consistency: the bound"))


def parse_level(level: Consistency) -> Level:
    """The level of that name. Raises UnsupportedConsistency for a wrong one, InvalidArgument for a bound that is not a
    duration."""
    if isinstance(level, Level):
        return level
    if isinstance(level, str):
        if level.startswith("bounded:"):
            return bounded(level.removeprefix("bounded:"))
        if level in _NAMED:
            return _NAMED[level]
    raise UnsupportedConsistency(
        f"unknown consistency {level!r}; use 'strong', 'bounded:5s', 'session', 'prefix' or 'eventual'"
    )
