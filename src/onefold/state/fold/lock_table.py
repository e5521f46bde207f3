"""The locks of prepared transactions, in one shard: which there are, and which of them somebody's reads and writes would meet.

Locks stand on keys and on ranges of keys of one collection, shared for what was read and exclusive for what is written; only
shared ones go together. Which locks a write calls for, its kind of collection says (``Kind.want``).

Messages put into queues and records appended to streams take no locks: they meet no other write, and anyone who looks resolves
first what is decided. Their place in the queue or stream is where the transaction is resolved, so one that was put meanwhile,
even by somebody who had seen the transaction in another shard, may stand before them.

Nothing here is history: a lock counts for what comes next only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, Literal, NamedTuple

import msgspec

from onefold.fold.api import Store, StoreView, prefix_stop

LOCKS: Final = "state/x/locks"
"""(collection, key) -> who holds it, and how."""
RANGES: Final = "state/x/ranges"
"""(collection, offset, index, number) -> range, who holds it, and how."""

Mode = Literal[1, 2]
SHARED: Final[Mode] = 1
EXCLUSIVE: Final[Mode] = 2

_PLACE = struct.Struct(">cI")
_ROW = struct.Struct(">QII")
_holders: msgspec.msgpack.Decoder[list[tuple[str, Mode]]] = msgspec.msgpack.Decoder(list[tuple[str, Mode]])


class Range(msgspec.Struct, frozen=True, array_like=True):
    """A locked range, ``start <= key < stop`` of one collection."""

    start: bytes
    stop: bytes
    transaction: str
    mode: Mode


_range = msgspec.msgpack.Decoder(Range)
_encode = msgspec.msgpack.Encoder().encode


class Wants(NamedTuple):
    """The locks that reads and writes call for."""

    keys: dict[bytes, Mode]
    """By row key: collection and key."""
    ranges: list[tuple[bytes, bytes, bytes, Mode]]
    """Collection, start, stop, mode."""


def want_key(found: Wants, place: bytes, key: bytes, mode: Mode) -> None:
    """A lock on a key of a collection."""
    row = place + key
    found.keys[row] = max(mode, found.keys.get(row, mode))


def want_whole(found: Wants, write: Any) -> None:
    """A lock on the whole collection against writes of this sort, for those that nobody knows to meet no others."""
    want_key(found, place_of(write), b"", EXCLUSIVE)


def met(store: StoreView, wanted: Wants, *, limit: int) -> list[str]:
    """The transactions whose locks these would meet: each once, in the order found, at most about ``limit``."""
    found: dict[str, None] = {}
    places: dict[bytes, list[Range]] = {}
    for row, value in store.get_many(LOCKS, wanted.keys).items():
        _note(found, _holders.decode(value), wanted.keys[row])
    for row, mode in wanted.keys.items():
        if len(found) >= limit:
            break
        place, key = _split(row)
        for held in _ranges(store, place, places):
            if held.start <= key < held.stop:
                _note(found, ((held.transaction, held.mode),), mode)
    for place, start, stop, mode in wanted.ranges:
        for _, value in store.scan(LOCKS, place + start, place + stop):
            if len(found) >= limit:
                break
            _note(found, _holders.decode(value), mode)
        for held in _ranges(store, place, places):
            if held.start < stop and start < held.stop:
                _note(found, ((held.transaction, held.mode),), mode)
    return sorted(found)[:limit]


def take(store: Store, transaction: str, at: tuple[int, int], wanted: Wants) -> None:
    """Lock them for the transaction that was prepared at (offset, index)."""
    present = store.get_many(LOCKS, wanted.keys)
    store.put_many(
        LOCKS,
        [
            (row, _encode([*(_holders.decode(present[row]) if row in present else ()), (transaction, mode)]))
            for row, mode in wanted.keys.items()
        ],
    )
    store.put_many(RANGES, zip(_range_rows(at, wanted), _locked(transaction, wanted), strict=True))


def give_up(store: Store, transaction: str, at: tuple[int, int], wanted: Wants) -> None:
    """Undo ``take`` with the same arguments."""
    present = store.get_many(LOCKS, wanted.keys)
    kept: list[tuple[bytes, bytes]] = []
    for row in wanted.keys:
        left = [holder for holder in _holders.decode(present.get(row, b"\x90")) if holder[0] != transaction]
        if left:
            kept.append((row, _encode(left)))
        else:
            store.delete(LOCKS, row)
    if kept:
        store.put_many(LOCKS, kept)
    for row in _range_rows(at, wanted):
        store.delete(RANGES, row)


def is_any_held(store: StoreView) -> bool:
    """Whether there is any lock."""
    return any(next(store.scan(table, limit=1), None) is not None for table in (LOCKS, RANGES))


def range_holders(store: StoreView, name: str) -> list[str]:
    """The transactions that hold locks on ranges of a map."""
    return [held.transaction for held in _ranges(store, map_place(name), {})]


def is_held(store: StoreView, name: str, key: bytes) -> bool:
    """Whether a key of a map is under a lock, of whatever mode."""
    place = map_place(name)
    if store.get(LOCKS, place + key) is not None:
        return True
    return any(held.start <= key < held.stop for held in _ranges(store, place, {}))


def _note(found: dict[str, None], holders: Iterable[tuple[str, Mode]], mode: Mode) -> None:
    for transaction, held in holders:
        if EXCLUSIVE in (held, mode):
            found[transaction] = None


def _ranges(store: StoreView, place: bytes, known: dict[bytes, list[Range]]) -> list[Range]:
    if place not in known:
        known[place] = [_range.decode(value) for _, value in store.scan(RANGES, place, prefix_stop(place))]
    return known[place]


def _range_rows(at: tuple[int, int], wanted: Wants) -> Iterator[bytes]:
    for number, (place, _, _, _) in enumerate(wanted.ranges):
        yield place + _ROW.pack(*at, number)


def _locked(transaction: str, wanted: Wants) -> Iterator[bytes]:
    for _, start, stop, mode in wanted.ranges:
        yield _encode(Range(start, stop, transaction, mode))


def map_place(name: str) -> bytes:
    """Where the locks of a map stand."""
    encoded = name.encode()
    return _PLACE.pack(b"m", len(encoded)) + encoded


def place_of(write: Any) -> bytes:
    """Where the locks stand that writes of this sort take in their collection; not of maps."""
    first = getattr(write, write.__struct_fields__[0])
    encoded = f"{write.__struct_config__.tag}/{first if isinstance(first, str) else ''}".encode()
    return _PLACE.pack(b"c", len(encoded)) + encoded


def _split(row: bytes) -> tuple[bytes, bytes]:
    end = _PLACE.size + _PLACE.unpack_from(row)[1]
    return row[:end], row[end:]
