"""What a transaction has written to one row of an available collection and not yet committed.

Pure: no clock, no log. However often a row is written, one entry of it is left, so a transaction's size is that of what it
changes. An entry laid over the row that the snapshot shows gives the row as the transaction sees it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

from onefold.available import ops
from onefold.available.kinds import places
from onefold.available.kinds.cells import Cells, Register
from onefold.available.kinds.counts import Counter
from onefold.available.kinds.dots import Dots
from onefold.available.kinds.row import Cell, Row
from onefold.available.kinds.shares import Shares
from onefold.available.stamps import HLC_MAX
from onefold.state.encoding.lifetimes import remaining_ms

PENDING: Final = 0
"""The region of what the transaction itself has written: it gets a real one when it commits."""


class Whole(NamedTuple):
    """A register or keep-both item was put; None: deleted."""

    value: bytes | None
    ttl_ms: int | None = None
    ends_ms: int | None = None
    """The end of the item that this replaces, which it keeps; ``ttl_ms`` is None then."""


class Parts(NamedTuple):
    """Fields were written: on top of ``base``, which is what the snapshot has (``below``), nothing but them (``put``), or a
    deleted item (``gone``)."""

    base: Literal["below", "put", "gone"]
    fields: Mapping[str, bytes | None]
    """None: removed."""
    ttl_ms: int | None = None
    ends_ms: int | None = None

    def patched(self, fields: Mapping[str, bytes | None]) -> Parts:
        """With other fields set and removed."""
        found = {**self.fields, **fields}
        if self.base != "below":
            found = {name: value for name, value in found.items() if value is not None}
        return self._replace(fields=found)


class Sum(NamedTuple):
    """A counter was added to; ``reset``: it was deleted, and nothing was added since."""

    by: int = 0
    reset: bool = False


class Member(NamedTuple):
    """An element of a set was added, or discarded."""

    present: bool
    ttl_ms: int | None = None


Entry: TypeAlias = Whole | Parts | Sum | Member


def is_whole(entry: Entry) -> bool:
    """Whether the entry alone says what the row holds, so that the one below need not be read."""
    match entry:
        case Parts():
            return entry.base != "below"
        case Sum():
            return entry.reset
    return True


def over(place: str, entry: Entry, below: Row, wall_ms: int) -> Row:
    """The row with the entry laid over it. ``wall_ms``: the present, from which lifetimes are expected to count."""
    match entry:
        case Whole():
            cell = _cell(entry.value, _end(entry, wall_ms))
            if place[0] == places.REGISTER:
                return Register(cell)
            return Dots(() if entry.value is None else (cell,))
        case Parts():
            return _fields_over(entry, cast(Cells, below), wall_ms)
        case Sum() if place[0] == places.COUNTER:
            return Counter() if entry.reset else cast(Counter, below).added(PENDING, 1, 1, entry.by)
        case Sum():
            return cast(Shares, below).spent(PENDING, 1, entry.by)
        case Member():
            end = None if entry.ttl_ms is None else wall_ms + entry.ttl_ms
            return Dots((_cell(b"", end),) if entry.present else ())


def _fields_over(entry: Parts, below: Cells, wall_ms: int) -> Cells:
    if entry.base == "below":
        base = below.base
        end = None if base is None or base.value is None else base.ends_ms
        return below.with_fields({name: _cell(value, end) for name, value in entry.fields.items()})
    end = _end(entry, wall_ms)
    base = _cell(b"" if entry.base == "put" else None, end)
    return Cells(base).with_fields({name: _cell(value, end) for name, value in entry.fields.items()})


def _cell(value: bytes | None, ends_ms: int | None) -> Cell:
    return Cell(HLC_MAX, PENDING, 1, value, None if value is None else ends_ms)


def _end(entry: Whole | Parts, wall_ms: int) -> int | None:
    if entry.ends_ms is not None:
        return entry.ends_ms
    return None if entry.ttl_ms is None else wall_ms + entry.ttl_ms


def size(entry: Entry) -> int:
    """Its bytes, about."""
    match entry:
        case Whole():
            return len(entry.value or b"")
        case Parts():
            return sum(len(name) + len(value or b"") for name, value in entry.fields.items())
    return 8


def requests(
    entries: Mapping[str, Mapping[bytes, Entry]], emptied: Iterable[tuple[str, bytes]], wall_ms: int
) -> tuple[ops.AnyRequest, ...]:
    """The fewest requests that bring about all entries, by place and row key. ``emptied``: (place, key) of sets whose elements
    were all removed before their entries. ``wall_ms``: the present, for what keeps its end."""
    found: list[ops.AnyRequest] = [
        ops.Empty(places.split_place(place)[1], key) for place, key in dict.fromkeys(emptied)
    ]
    for place, of_place in entries.items():
        letter, name, floor = places.split_place(place)
        if letter in (places.REGISTER, places.KEEP_BOTH):
            found += _of_wholes(cast(Any, letter), name, cast(Any, of_place), wall_ms)
        elif letter == places.FIELDS:
            found += _of_fields(name, cast(Any, of_place), wall_ms)
        elif letter == places.SET:
            found += _of_members(name, cast(Any, of_place))
        else:
            for key, entry in cast("Mapping[bytes, Sum]", of_place).items():
                found.append(_of_sum(name, floor, key, entry))
    return tuple(found)


def _of_wholes(
    kind: Literal["r", "k"], name: str, entries: Mapping[bytes, Whole], wall_ms: int
) -> list[ops.AnyRequest]:
    puts: dict[int | None, list[tuple[bytes, bytes]]] = {}
    gone: list[bytes] = []
    for key, entry in entries.items():
        if entry.value is None:
            gone.append(key)
        else:
            puts.setdefault(_ttl(entry, wall_ms), []).append((key, entry.value))
    found: list[ops.AnyRequest] = [
        ops.Put(kind, name, tuple(items), ttl_ms) for ttl_ms, items in puts.items()
    ]
    return [*found, ops.Delete(kind, name, tuple(gone))] if gone else found


def _of_fields(name: str, entries: Mapping[bytes, Parts], wall_ms: int) -> list[ops.AnyRequest]:
    gone = tuple(key for key, entry in entries.items() if entry.base == "gone")
    found: list[ops.AnyRequest] = [ops.Delete(places.FIELDS, name, gone)] if gone else []
    for key, entry in entries.items():
        fields = tuple(entry.fields.items())
        if entry.base == "put":
            set_fields = tuple((field, value) for field, value in fields if value is not None)
            found.append(ops.Replace(name, key, set_fields, _ttl(entry, wall_ms)))
        elif fields:
            found.append(ops.Patch(name, key, fields))
    return found


def _of_members(name: str, entries: Mapping[bytes, Member]) -> list[ops.AnyRequest]:
    added: dict[tuple[bytes, int | None], list[bytes]] = {}
    discarded: dict[bytes, list[bytes]] = {}
    for at, entry in entries.items():
        key, element = places.split_key(at)
        if entry.present:
            added.setdefault((key, entry.ttl_ms), []).append(element)
        else:
            discarded.setdefault(key, []).append(element)
    return [
        *(ops.Include(name, key, tuple(some), ttl_ms) for (key, ttl_ms), some in added.items()),
        *(ops.Exclude(name, key, tuple(some)) for key, some in discarded.items()),
    ]


def _of_sum(name: str, floor: int | None, key: bytes, entry: Sum) -> ops.AnyRequest:
    if floor is not None:
        return ops.Change(name, floor, key, entry.by)
    return ops.Reset(name, key) if entry.reset else ops.Add(name, key, entry.by)


def _ttl(entry: Whole | Parts, wall_ms: int) -> int | None:
    return entry.ttl_ms if entry.ends_ms is None else remaining_ms(entry.ends_ms, wall_ms)
