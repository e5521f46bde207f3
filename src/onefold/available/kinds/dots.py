"""Keep-both maps and sets: values side by side, each with the dot of its effect, until an effect that knew it replaces it.

Without tombstones: effects arrive in causal order and once, so what was removed cannot come again. A set has a row for each of
its elements; an element is in it while there is any dot (an add-wins set: Bieniusa et al., "An optimized conflict-free
replicated set", INRIA RR-8083, 2012).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from onefold.available.kinds.row import Cell, encode
from onefold.available.stamps import Dot


class Dots(msgspec.Struct, frozen=True, array_like=True):
    """The siblings of one key, or what keeps one element in a set, in order of their stamps."""

    cells: tuple[Cell, ...] = ()

    def outside(self, past: Mapping[int, int]) -> tuple[Cell, ...]:
        """Those that an effect with this past leaves as they are: concurrent ones."""
        return tuple(cell for cell in self.cells if not cell.is_in(past))

    def replaced(self, past: Mapping[int, int], cell: Cell | None) -> Dots:
        """After an effect with this past; with its own cell, unless it removes."""
        kept = self.outside(past)
        if cell is not None:
            kept = tuple(sorted((*kept, cell), key=lambda one: one.stamp))
        return Dots(kept)

    def is_empty(self) -> bool:
        return not self.cells

    def is_live(self) -> bool:
        return bool(self.cells)

    def ends_ms(self) -> int | None:
        return min((cell.ends_ms for cell in self.cells if cell.ends_ms is not None), default=None)

    def expired(self, now_ms: int) -> Dots:
        return Dots(tuple(cell for cell in self.cells if not cell.is_over(now_ms)))

    def waits(self) -> Dot | None:
        return None

    def collected(self, stable: Mapping[int, int]) -> Dots:  # noqa: ARG002
        return self

    def parts(self, data: bytes = b"") -> Collection[bytes]:  # noqa: ARG002
        return [encode((*cell.stamp, cell.value)) for cell in self.cells if cell.ends_ms is None]

    def joined(self, other: Dots, mine: Mapping[int, int], theirs: Mapping[int, int]) -> Dots:
        here = {cell.stamp: cell for cell in self.cells}
        there = {cell.stamp: cell for cell in other.cells}
        kept = [cell for stamp, cell in here.items() if stamp in there or not cell.is_in(theirs)]
        kept += [cell for stamp, cell in there.items() if stamp not in here and not cell.is_in(mine)]
        return Dots(tuple(sorted(kept, key=lambda one: one.stamp)))
