"""The locks of prepared transactions, in one shard: which there are, and which of them somebody's reads and writes would meet.

Locks stand on keys and on ranges of keys of one collection, shared for what was read and exclusive for what is written; only
shared ones go together. Increments lock like other writes although they commute: each answers with the new value, and so
reads.

Messages put into queues and records appended to streams take no locks: they meet no other write, and anyone who looks resolves
first what is decided. Their place in the queue or stream is where the transaction is resolved, so one that was put meanwhile,
even by somebody who had seen the transaction in another shard, may stand before them.

Nothing here is history: a lock counts for what comes next only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from onefold.fold.api import Store, StoreView, prefix_stop
from onefold.state.fold.ops import Clear, Delete, Increment, Put, Read, Span, Write
from onefold.state.fold.queues.ops import Enqueue
from onefold.state.fold.streams.ops import Append, CommitOffsets

LOCKS: Final = "state/x/locks"
"""(collection, key) -> who holds it, and how."""
RANGES: Final = "state/x/ranges"
"""(collection, offset, index, number) -> range, who holds it, and how."""

Mode = Literal[1, 2]
SHARED: Final[Mode] = 1
EXCLUSIVE: Final[Mode] = 2

_PLACE = struct.Struct(">cI")
_ROW = struct.Struct(">QII")
_BLIND: Final = (Enqueue, Append)
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


def wants(reads: Sequence[Read], spans: Sequence[Span], writes: Sequence[Write]) -> Wants:
    """The locks for these."""
    found = Wants({}, [])
    for read in reads:
        _want(found, _map(read.map) + read.key, SHARED)
    for span in spans:
        found.ranges.append((_map(span.map), span.start, span.stop, SHARED))
    for write in writes:
        match write:
            case Put():
                for key, _ in write.items:
                    _want(found, _map(write.map) + key, EXCLUSIVE)
            case Delete():
                for key in write.keys:
                    _want(found, _map(write.map) + key, EXCLUSIVE)
            case Clear():
                found.ranges.append((_map(write.map), write.start, write.stop, EXCLUSIVE))
            case Increment():
                _want(found, _map(write.map) + write.key, EXCLUSIVE)
            case CommitOffsets():
                _want(found, _other(write) + write.group.encode(), EXCLUSIVE)
            case _ if isinstance(write, _BLIND):
                pass
            case _:
                _want(found, _other(write), EXCLUSIVE)
    return found


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
    return [held.transaction for held in _ranges(store, _map(name), {})]


def is_held(store: StoreView, name: str, key: bytes) -> bool:
    """Whether a key of a map is under a lock, of whatever mode."""
    place = _map(name)
    if store.get(LOCKS, place + key) is not None:
        return True
    return any(held.start <= key < held.stop for held in _ranges(store, place, {}))


def _want(found: Wants, row: bytes, mode: Mode) -> None:
    found.keys[row] = max(mode, found.keys.get(row, mode))


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


def _map(name: str) -> bytes:
    encoded = name.encode()
    return _PLACE.pack(b"m", len(encoded)) + encoded


def _other(write: Any) -> bytes:
    """The collection of a write of another kind. One that is not known to be blind locks all of it against its like."""
    first = getattr(write, write.__struct_fields__[0])
    encoded = f"{write.__struct_config__.tag}/{first if isinstance(first, str) else ''}".encode()
    return _PLACE.pack(b"c", len(encoded)) + encoded


def _split(row: bytes) -> tuple[bytes, bytes]:
    end = _PLACE.size + _PLACE.unpack_from(row)[1]
    return row[:end], row[end:]
