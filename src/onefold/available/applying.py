"""What each write of an effect does to a row: the same in the region that made it and in all others.

An effect that meets a row with a dot that is not in its past is concurrent with it. What both wrote goes to the conflict feed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, cast

from onefold import config
from onefold.available import effects
from onefold.available.effects import AnyWrite, Effect
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells, Register
from onefold.available.kinds.counts import Counter
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.row import Cell, encode
from onefold.available.kinds.shares import Shares, Wanted
from onefold.available.rows import CONFLICTS, Conflict, Working, conflict_decoder, number_key

CONFLICTS_KEPT: Final = 10_000
"""So many conflicts are listed, the latest ..."""
CONFLICTS_BYTES_MAX: Final = 64 * 1024 * 1024
"""... fewer where their values are longer than this in all ..."""
CONFLICTS_KEPT_MS: Final = 7 * 86_400_000
"""... and none that is older than this."""


class Source(NamedTuple):
    """The effect that a write belongs to."""

    origin: int
    seq: int
    hlc: int
    past: dict[int, int]

    def cell(self, value: bytes | None, ends_ms: int | None) -> Cell:
        """A value with its stamp."""
        return Cell(self.hlc, self.origin, self.seq, value, None if value is None else ends_ms)


def source_of(effect: Effect) -> Source:
    """That of its writes."""
    return Source(effect.origin, effect.seq, effect.hlc, effect.past())


def is_sound(effect: Effect) -> bool:
    """Whether all of its writes can be done; others are malformed."""
    for write in effect.writes:
        letters = _LETTERS.get(type(write))
        if letters is not None and not (places.is_place(write.place) and write.place[0] in letters):  # type: ignore[union-attr]
            return False
    return True


def rows_of(some: Iterable[Effect]) -> list[tuple[str, bytes]]:
    """The rows that their writes touch, as far as they name them."""
    found: list[tuple[str, bytes]] = []
    for effect in some:
        for write in effect.writes:
            if type(write) is effects.SetCell:
                found.append((write.place, write.key))
            elif isinstance(write, effects.Mark):
                found.append((write.place, places.joined_key(write.key, write.element)))
            elif not isinstance(write, (effects.MarkNone, *effects.CONTROL)):
                found.append((write.place, write.key))
    return found


def apply_write(work: Working, source: Source, write: AnyWrite) -> None:
    """Do it. Rows are in ``work`` until it writes them."""
    if type(write) is effects.SetCell and write.place[0] == places.REGISTER:  # first, since most are
        work.note_place(write.place)
        _set_register(work, source, write.place, write.key, source.cell(write.value, write.ends_ms))
        return
    if isinstance(write, effects.CONTROL):
        _control(work, source, write)
        return
    work.note_place(write.place)
    match write:
        case effects.SetCell(place, key, value, ends_ms):
            _set_sibling(work, source, place, key, source.cell(value, ends_ms))
        case effects.SetFields():
            _set_fields(work, source, write)
        case effects.Mark(place, key, element, present, ends_ms):
            at = places.joined_key(key, element)
            row = cast(Dots, work.row(place, at))
            added = source.cell(b"", ends_ms) if present else None
            work.set_row(place, at, row.replaced(source.past, added))
        case effects.MarkNone(place, key):
            for at in work.keys(place, *places.key_range(key)):
                row = cast(Dots, work.row(place, at))
                work.set_row(place, at, row.replaced(source.past, None))
        case effects.Count(place, key, birth, by):
            counter = cast(Counter, work.row(place, key))
            work.set_row(place, key, counter.added(source.origin, source.seq, birth, by))
        case effects.Uncount(place, key, seen):
            counter = cast(Counter, work.row(place, key))
            work.set_row(place, key, counter.deleted(seen, source.origin, source.seq))
        case effects.Spend(place, key, by):
            shares = cast(Shares, work.row(place, key))
            work.set_row(place, key, shares.spent(source.origin, source.seq, by))
        case effects.Send(place, key, to, by):
            shares = cast(Shares, work.row(place, key))
            work.set_row(place, key, shares.sent(source.origin, source.seq, to, by))
        case effects.Want(place, key, need, until_ms):
            shares = cast(Shares, work.row(place, key))
            wish = Wanted(source.hlc, need, until_ms) if need else None
            work.set_row(place, key, shares.wished(source.origin, source.seq, wish))


_LETTERS: dict[type, str] = {
    effects.SetCell: places.REGISTER + places.KEEP_BOTH,
    effects.SetFields: places.FIELDS,
    effects.Mark: places.SET,
    effects.MarkNone: places.SET,
    effects.Count: places.COUNTER,
    effects.Uncount: places.COUNTER,
    effects.Spend: places.BOUNDED,
    effects.Send: places.BOUNDED,
    effects.Want: places.BOUNDED,
}


def _control(work: Working, source: Source, write: effects.Admitted | effects.Votes) -> None:
    origin = work.me.origin(source.origin)
    match write:
        case effects.Admitted(number):
            origin.admits = tuple(sorted({*origin.admits, number}))
        case effects.Votes(round, seen):
            origin.round, origin.votes = round, dict(seen)


def _set_register(work: Working, source: Source, place: str, key: bytes, cell: Cell) -> None:
    row = cast(Register, work.row(place, key))
    if row.base is not None and not row.base.is_in(source.past):
        _note(work, place, key, "", row.base, cell)
    work.set_row(place, key, row.with_base(cell))


def _set_sibling(work: Working, source: Source, place: str, key: bytes, cell: Cell) -> None:
    row = cast(Dots, work.row(place, key))
    for other in row.outside(source.past):
        _note(work, place, key, "", other, cell)
    work.set_row(place, key, row.replaced(source.past, None if cell.value is None else cell))


def _set_fields(work: Working, source: Source, write: effects.SetFields) -> None:
    place, key, past = write.place, write.key, source.past
    row = cast(Cells, work.row(place, key))
    cells = {name: source.cell(value, write.ends_ms) for name, value in write.fields}
    if write.base:
        cell = source.cell(b"" if write.base == 1 else None, write.ends_ms)
        if row.base is not None and not row.base.is_in(past):
            _note(work, place, key, "", row.base, cell)
        for name, other in row.fields.items():
            if name not in cells and not other.is_in(past) and other.stamp < cell.stamp:
                _note(work, place, key, name, other, cell)
    elif row.base is not None and not row.base.is_in(past):
        for name, cell in cells.items():
            if cell.stamp < row.base.stamp:
                _note(work, place, key, name, row.base, cell)
    for name, cell in cells.items():
        found = row.fields.get(name)
        if found is not None and not found.is_in(past):
            _note(work, place, key, name, found, cell)
    if write.base:
        row = row.with_base(source.cell(b"" if write.base == 1 else None, write.ends_ms))
    work.set_row(place, key, row.with_fields(cells))


def _note(work: Working, place: str, key: bytes, field: str, one: Cell, other: Cell) -> None:
    kept, dropped = (one, other) if one.stamp > other.stamp else (other, one)
    if kept.stamp == dropped.stamp or (kept.value is None and dropped.value is None):
        return
    work.conflicts.append(
        Conflict(
            place,
            key,
            field,
            kept.value,
            dropped.value,
            (kept.region, kept.seq),
            (dropped.region, dropped.seq),
            work.now_ms,
        )
    )


def write_conflicts(work: Working) -> None:
    """Keep the latest ones, up to a number, to a size and to an age. How many there ever were is counted."""
    me, store = work.me, work.store
    if not work.conflicts and work.context.offset % config.HISTORY_PRUNE_EVERY_OFFSETS:
        return
    for conflict in work.conflicts[-CONFLICTS_KEPT:]:
        data = encode(conflict)
        me.conflicts_bytes += len(data)
        store.put(CONFLICTS, number_key(me.conflicts), data)
        me.conflicts += 1
    oldest_ms = work.now_ms - CONFLICTS_KEPT_MS
    while me.conflicts_first < me.conflicts:
        data = store.get(CONFLICTS, number_key(me.conflicts_first)) or b""
        many = me.conflicts - me.conflicts_first > CONFLICTS_KEPT or me.conflicts_bytes > CONFLICTS_BYTES_MAX
        if not many and data and conflict_decoder.decode(data).time_ms >= oldest_ms:
            return
        store.delete(CONFLICTS, number_key(me.conflicts_first))
        me.conflicts_bytes -= len(data)
        me.conflicts_first += 1
