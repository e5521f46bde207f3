"""Hybrid clocks, dots and vectors: what orders effects, and what says which of them are known.

A *dot* is (region number, seq): it names one effect. A *vector* has, for each region number, the highest seq that is known; all
lower ones are known too. A hybrid clock (Kulkarni et al., "Logical Physical Clocks", OPODIS 2014) is one integer: milliseconds
above ``COUNT_BITS`` bits of a count. Effects are ordered by (clock, region number, seq), which no two of them share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Final

import msgspec

COUNT_BITS: Final = 16
"""Below the milliseconds of a hybrid clock."""
HLC_MAX: Final = (1 << 62) - 1
NUMBER_MAX: Final = (1 << 16) - 1
"""The highest number of a region; a region that comes again gets a new one."""
SEQ_MAX: Final = (1 << 53) - 1

CLOCK_AHEAD_MAX_MS: Final = 60_000
"""An effect of another region whose clock is further ahead than this waits."""

Number = Annotated[int, msgspec.Meta(ge=1, le=NUMBER_MAX)]
Seq = Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]
Hlc = Annotated[int, msgspec.Meta(ge=0, le=HLC_MAX)]
Dot = tuple[int, int]
Vector = dict[Number, Seq]


def clock_at(ms: int) -> int:
    """The lowest hybrid clock of this millisecond."""
    return min(max(ms, 0) << COUNT_BITS, HLC_MAX)


def ms_of(hlc: int) -> int:
    """The milliseconds of a hybrid clock."""
    return hlc >> COUNT_BITS


def knows(vector: Mapping[int, int], number: int, seq: int) -> bool:
    """Whether the vector has this dot."""
    return vector.get(number, 0) >= seq


def covers(vector: Mapping[int, int], other: Mapping[int, int]) -> bool:
    """Whether the vector has all that the other one has."""
    return all(vector.get(number, 0) >= seq for number, seq in other.items())


def merged(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    """The least vector that has what both have."""
    found = dict(one)
    for number, seq in other.items():
        if seq > found.get(number, 0):
            found[number] = seq
    return found


def common(vectors: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The largest vector that all of these have; that of none is empty."""
    found: dict[int, int] | None = None
    for vector in vectors:
        if found is None:
            found = dict(vector)
        else:
            found = {
                number: min(seq, vector[number]) for number, seq in found.items() if vector.get(number, 0) > 0
            }
    return found or {}
