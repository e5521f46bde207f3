"""Registers, where the last writer wins, and maps whose top-level fields are registers of their own.

A register is a base cell, a version of the whole item. With fields there is a base for the whole item, and a cell for each
field, which counts if its stamp is not below that of the base. What is deleted stays as a tombstone until all regions know it:
see ``following``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import msgspec

from onefold.available.kinds.row import Cell, encode, joined_part
from onefold.available.stamps import Dot


class Register(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The row of one key of a register: a base without fields."""

    base: Cell | None = None

    def with_base(self, cell: Cell) -> Register:
        """With another value, unless the one that is there is later."""
        return self if self.base is not None and self.base.stamp > cell.stamp else Register(cell)

    def is_empty(self) -> bool:
        return self.base is None

    def is_live(self) -> bool:
        return self.base is not None and self.base.value is not None

    def ends_ms(self) -> int | None:
        return None if self.base is None else self.base.ends_ms

    def expired(self, now_ms: int) -> Register:
        return Register(self.base.gone()) if self.base is not None and self.base.is_over(now_ms) else self

    def waits(self) -> Dot | None:
        base = self.base
        return None if base is None or base.value is not None else (base.region, base.seq)

    def collected(self, stable: Mapping[int, int]) -> Register:
        base = self.base
        return Register() if base is not None and base.value is None and base.is_in(stable) else self

    def parts(self, data: bytes = b"") -> Collection[bytes]:
        base = self.base
        if base is None or base.value is None or base.ends_ms is not None:
            return ()
        return (data or encode(self),)

    def joined(self, other: Register, mine: Mapping[int, int], theirs: Mapping[int, int]) -> Register:
        return Register(_joined(self.base, other.base, mine, theirs))


class Cells(msgspec.Struct, frozen=True, array_like=True):
    """The row of one key. The fields are in order of their names."""

    base: Cell | None = None
    fields: dict[str, Cell] = msgspec.field(default_factory=dict)

    def all(self) -> Iterator[Cell]:
        """The base, and the fields."""
        if self.base is not None:
            yield self.base
        yield from self.fields.values()

    def with_base(self, cell: Cell) -> Cells:
        """With another base, unless the one that is there is later."""
        if self.base is not None and self.base.stamp > cell.stamp:
            return self
        return Cells(cell, {name: one for name, one in self.fields.items() if one.stamp > cell.stamp})

    def with_fields(self, cells: Mapping[str, Cell]) -> Cells:
        """With other fields, but for those that are later here."""
        least = self.base.stamp if self.base is not None else (0, 0, 0)
        found = dict(self.fields)
        for name, cell in cells.items():
            if cell.stamp >= least and (name not in found or found[name].stamp <= cell.stamp):
                found[name] = cell
        return Cells(self.base, dict(sorted(found.items())))

    def is_empty(self) -> bool:
        return self.base is None and not self.fields

    def is_live(self) -> bool:
        return any(cell.value is not None for cell in self.all())

    def ends_ms(self) -> int | None:
        return min((cell.ends_ms for cell in self.all() if cell.ends_ms is not None), default=None)

    def expired(self, now_ms: int) -> Cells:
        base = self.base.gone() if self.base is not None and self.base.is_over(now_ms) else self.base
        return Cells(
            base,
            {name: cell.gone() if cell.is_over(now_ms) else cell for name, cell in self.fields.items()},
        )

    def waits(self) -> Dot | None:
        return next(((cell.region, cell.seq) for cell in self.all() if cell.value is None), None)

    def collected(self, stable: Mapping[int, int]) -> Cells:
        def stays(cell: Cell | None) -> bool:
            return cell is not None and not (cell.value is None and cell.is_in(stable))

        if all(map(stays, self.all())):
            return self
        fields = {name: cell for name, cell in self.fields.items() if stays(cell)}
        return Cells(self.base if stays(self.base) else None, fields)

    def parts(self, data: bytes = b"") -> Collection[bytes]:  # noqa: ARG002
        return [
            encode((cell is self.base, name, *cell.stamp, cell.value))
            for name, cell in (("", self.base), *self.fields.items())
            if cell is not None and cell.value is not None and cell.ends_ms is None
        ]

    def joined(self, other: Cells, mine: Mapping[int, int], theirs: Mapping[int, int]) -> Cells:
        base = _joined(self.base, other.base, mine, theirs)
        names = sorted({*self.fields, *other.fields})
        found = {name: _joined(self.fields.get(name), other.fields.get(name), mine, theirs) for name in names}
        least = base.stamp if base is not None else (0, 0, 0)
        return Cells(
            base, {name: cell for name, cell in found.items() if cell is not None and cell.stamp >= least}
        )


def _joined(
    one: Cell | None, other: Cell | None, mine: Mapping[int, int], theirs: Mapping[int, int]
) -> Cell | None:
    larger = one
    if one is not None and other is not None:
        # One that has ended on one side only is gone.
        larger = max(one, other, key=lambda cell: (cell.stamp, cell.value is None))
    return joined_part(
        one,
        other,
        known_here=other is not None and other.is_in(mine),
        known_there=one is not None and one.is_in(theirs),
        larger=larger,
    )
