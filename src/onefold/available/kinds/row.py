"""What a row of an available collection can do, whichever its kind."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from onefold.available.ops import INT_MAX
from onefold.available.stamps import Dot, Hlc, Number, Seq, knows

T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode


def clamped(value: int) -> int:
    """As it can be stored. Sums over regions, and what forged effects add, may be longer."""
    return max(-INT_MAX, min(value, INT_MAX))


class Row(Protocol):
    """Immutable. A row that ``is_empty`` is not stored."""

    def is_empty(self) -> bool:
        """Whether nothing is to be kept of it."""
        ...

    def is_live(self) -> bool:
        """Whether a reader sees anything."""
        ...

    def ends_ms(self) -> int | None:
        """The fold time at which the first of its parts ends."""
        ...

    def expired(self, now_ms: int) -> Any:
        """Without the parts that have ended."""
        ...

    def waits(self) -> Dot | None:
        """A dot that all regions have to know before ``collected`` removes something; None: nothing is gone."""
        ...

    def collected(self, stable: Mapping[int, int]) -> Any:
        """Without the gone parts that all regions know."""
        ...

    def parts(self, data: bytes = b"") -> Collection[bytes]:
        """What readers see, part by part, the same in all regions that know the same effects. Without what has an end, which is
        reached at different times. ``data``: the row's bytes, if they are at hand."""
        ...

    def joined(self, other: Any, mine: Mapping[int, int], theirs: Mapping[int, int]) -> Any:
        """The row of one who knows what both know: ``mine`` and ``theirs`` are the vectors of the two sides."""
        ...


class Cell(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A value with the stamp of its effect; None: gone, a tombstone."""

    hlc: Hlc
    region: Number
    seq: Seq
    value: bytes | None = None
    ends_ms: int | None = None

    @property
    def stamp(self) -> tuple[int, int, int]:
        """Later ones win."""
        return self.hlc, self.region, self.seq

    def is_over(self, now_ms: int) -> bool:
        """Whether it has ended, and is not a tombstone yet."""
        return self.ends_ms is not None and self.ends_ms <= now_ms

    def gone(self) -> Cell:
        """The tombstone that is left of it, with its old stamp."""
        return Cell(self.hlc, self.region, self.seq)

    def is_in(self, vector: Mapping[int, int]) -> bool:
        """Whether its effect is known there."""
        return knows(vector, self.region, self.seq)


def joined_part(
    mine: T | None, theirs: T | None, *, known_here: bool, known_there: bool, larger: T | None
) -> T | None:
    """A part that one side or both have. Who lacks it although its effect is known there has removed it."""
    if mine is not None and theirs is not None:
        return larger
    if mine is not None:
        return None if known_there else mine
    return None if known_here else theirs
