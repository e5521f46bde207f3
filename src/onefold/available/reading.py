"""Reading a region's collections: what is live in rows, at whatever offset the view shows.

A row that has ended by the reader's clock is still there until fold time reaches its end; anyone who serves it appends a tick
first, as for other maps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, NamedTuple, cast

from onefold.available import regions
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells, Register
from onefold.available.kinds.counts import Counter
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.places import key_range, place_of, split_key
from onefold.available.kinds.row import Row, encode
from onefold.available.kinds.shares import Shares
from onefold.available.rows import (
    CONFLICTS,
    SHOWN,
    Conflict,
    conflict_decoder,
    decode_shown,
    load_row,
    names_decoder,
    number_key,
    shown_tables,
    table_of,
    tables_of,
)
from onefold.available.stamps import ms_of
from onefold.errors import TooOld
from onefold.fold.api import StoreView
from onefold.store.paged_view import Version

if TYPE_CHECKING:
    from onefold.shard.api import View

Value = bytes | list[bytes] | dict[str, bytes] | set[bytes] | int
"""Of a register, keep-both map, map by fields, set, counter."""


class RegionStatus(NamedTuple):
    """What this region's log knows of another one, or of itself."""

    number: int
    name: str
    state: str
    """``here``, ``live``, ``held``, ``evicting`` or ``evicted``. How long a link has been silent, no log can know."""
    seq: int
    ahead_ms: int
    """Of one that is held: how far its clock is ahead of fold time."""


class Status(NamedTuple):
    """A region as its own log knows it."""

    number: int
    writing: bool
    retired: bool
    have: dict[int, int]
    hlc: int
    content: bytes
    gone_rows: int
    gone_bytes: int
    out_effects: int
    out_bytes: int
    conflicts: int
    owes_beat: bool
    regions: list[RegionStatus]


def visible(row: Row, place: str) -> Value | None:
    """What a reader sees of a row; None: nothing. Of a set's row: the empty value."""
    if not row.is_live():
        return None
    match row:
        case Cells():
            return {name: cell.value for name, cell in row.fields.items() if cell.value is not None}
        case Register():
            return None if row.base is None else row.base.value
        case Dots() if place[0] == places.KEEP_BOTH:
            return [cell.value or b"" for cell in row.cells]
        case Dots():
            return b""
        case Counter() | Shares():
            return row.value()
    return None


def signature(row: Row) -> bytes:
    """What a reader of a row has seen, for ``ops.Read``: another one when anything that is live has changed. Empty: nothing."""
    if not row.is_live():
        return b""
    if isinstance(row, Shares):
        return _digest(encode([(region, share.seq) for region, share in row.regions.items()]))
    if isinstance(row, Counter):
        return _digest(b"".join(row.parts()))
    if isinstance(row, Register):
        return _digest(encode(row.base.stamp)) if row.base is not None else b""
    if isinstance(row, Dots):
        return _digest(encode([cell.stamp for cell in row.cells]))
    fields = cast(Cells, row)
    # Tombstones are collected at some time, which changes nothing for those who read.
    names = [name for name, cell in fields.fields.items() if cell.value is not None]
    return _digest(encode([*names, *(cell.stamp for cell in fields.all() if cell.value is not None)]))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=12).digest()


def get(view: StoreView, place: str, key: bytes) -> Value | None:
    """The value of a key; None when there is none. Not of sets."""
    return visible(load_row(view, place, key), place)


def items(
    view: StoreView,
    place: str,
    start: bytes = b"",
    stop: bytes | None = None,
    *,
    limit: int | None = None,
    reverse: bool = False,
) -> Iterator[tuple[bytes, Value]]:
    """Keys with their values, in order of the keys. Not of sets."""
    left = limit
    if left == 0:
        return
    for key, data in view.scan(table_of(view, place), start, stop, reverse=reverse):
        value = visible(places.read_row(place, data), place)
        if value is not None:
            yield key, value
            if left is not None:
                left -= 1
                if not left:
                    return


def elements(view: StoreView, name: str, key: bytes) -> Iterator[bytes]:
    """The elements of a set, in order."""
    for at, _ in view.scan(table_of(view, place_of(places.SET, name)), *key_range(key)):
        yield split_key(at)[1]


def contains(view: StoreView, name: str, key: bytes, element: bytes) -> bool:
    """Whether an element is in a set."""
    return load_row(view, place_of(places.SET, name), places.joined_key(key, element)).is_live()


def sets(view: StoreView, name: str, start: bytes = b"") -> Iterator[tuple[bytes, list[bytes]]]:
    """The sets of a collection that have elements, in order of their keys, from a key on."""
    place = place_of(places.SET, name)
    found: list[bytes] = []
    last: bytes | None = None
    for at, _ in view.scan(table_of(view, place), key_range(start)[0] if start else b""):
        key, element = split_key(at)
        if last is not None and key != last:
            yield last, found
            found = []
        last = key
        found.append(element)
    if last is not None:
        yield last, found


def changes(
    view: View,
    place: str,
    after: int,
    *,
    within: tuple[int, bytes] | None = None,
    start: bytes = b"",
    stop: bytes | None = None,
    limit: int = 1000,
    at: Callable[[int], AbstractContextManager[StoreView]] | None = None,
) -> list[Version]:
    """What changed in the rows of a collection, as ``View.changes`` of its table, which a full sync makes another one.

    ``at`` opens a view of an offset: what changes in the record that ends a full sync is what differs between the states before
    and after it. Without ``at`` such a record is refused. The values are rows: see ``visible`` and ``kinds.places.read_row``.

    Raises TooOld; InvalidArgument.
    """
    found: list[Version] = []
    switches: dict[int, tuple[int, int, int]] = {}
    for version in view.changes(SHOWN, after):
        shown = decode_shown(version.value)
        switches[version.offset] = (
            *switches.get(version.offset, (version.place, shown.before))[:2],
            shown.generation,
        )
    generation = None
    for offset, (index, before, generation) in switches.items():
        if after < offset - 1:
            table = tables_of(before).rows + place
            left = limit - len(found)
            for version in view.changes(table, after, within=within, start=start, stop=stop, limit=left):
                if version.offset >= offset:
                    break
                found.append(version)
            if len(found) == limit:
                return found
            within = None
        if at is None:
            raise TooOld(f"a full sync has changed {place} at offset {offset}. Read it again")
        from_key = start if within is None else max(start, within[1] + b"\x00")
        with at(offset - 1) as old, at(offset) as new:
            tables = tables_of(before).rows + place, tables_of(generation).rows + place
            for key, value in _differing(old, new, tables, from_key, stop):
                found.append(Version(offset, index, key, value))
                if len(found) == limit:
                    return found
        after, within = offset, None
    table = table_of(view, place) if generation is None else tables_of(generation).rows + place
    left = limit - len(found)
    return found + view.changes(table, after, within=within, start=start, stop=stop, limit=left)


def _differing(
    old: StoreView, new: StoreView, tables: tuple[str, str], start: bytes, stop: bytes | None
) -> Iterator[tuple[bytes, bytes | None]]:
    """Keys in order whose values differ, with what they are in the new one."""
    before, after = old.scan(tables[0], start, stop), new.scan(tables[1], start, stop)
    one, other = next(before, None), next(after, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one[0] < other[0]):
            assert one is not None
            yield one[0], None
            one = next(before, None)
        elif one is None or other[0] < one[0]:
            yield other
            other = next(after, None)
        else:
            if one[1] != other[1]:
                yield other
            one, other = next(before, None), next(after, None)


def here(view: StoreView, name: str, floor: int, key: bytes) -> int:
    """What this region may take of a bounded counter by itself."""
    me = regions.read_self(view)
    row = cast(Shares, load_row(view, place_of(places.BOUNDED, name, floor), key))
    return row.rights(me.number, floor, me.heirs())


def places_of(view: StoreView, name: str) -> list[str]:
    """Where there are collections of this name: more than one if regions have made it as different kinds."""
    data = view.get(shown_tables(view).names, name.encode())
    return [] if data is None else names_decoder.decode(data)


def names(view: StoreView) -> Iterator[tuple[str, list[str]]]:
    """All collections: name and places."""
    for name, data in view.scan(shown_tables(view).names):
        yield name.decode(), names_decoder.decode(data)


def conflicts(view: StoreView, after: int = -1, limit: int = 1000) -> list[tuple[int, Conflict]]:
    """Conflicts in the order in which this region has met them, with their numbers, from behind a number on."""
    found = view.scan(CONFLICTS, number_key(after + 1), limit=limit)
    return [(int.from_bytes(key), conflict_decoder.decode(data)) for key, data in found]


def status(view: StoreView, now_ms: int) -> Status:
    """What ``onefold status`` shows of a region, as far as its own log knows it."""
    me = regions.read_self(view)
    have = me.have()
    listed = [
        RegionStatus(
            number,
            region.name,
            _state(me, number, region),
            have.get(number, 0),
            max(0, ms_of(region.held) - now_ms) if region.held else 0,
        )
        for number, region in sorted(me.regions.items())
    ]
    return Status(
        me.number,
        me.may_write(),
        me.retired,
        have,
        me.hlc,
        me.content,
        me.gone_rows,
        me.gone_bytes,
        me.out_count,
        me.out_bytes,
        me.conflicts,
        me.owes_beat(),
        listed,
    )


def _state(me: regions.Known, number: int, region: regions.Region) -> str:
    if number == me.number:
        return "evicted" if me.retired else "here"
    if region.round:
        return "evicted" if region.out else "evicting"
    return "held" if region.held else "live"
