"""What a transaction has written and not yet committed: one entry for each key, laid over what its snapshot shows.

Pure: no clock, no space. However often a key is written, one write of it is left, so a transaction's size is that of what it
changes; and the fold judges an increment by what was there before the transaction, which only holds for a single write.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

from onefold import config
from onefold.errors import InvalidValue, TooLarge
from onefold.state.encoding import values
from onefold.state.encoding.lifetimes import remaining_ms
from onefold.state.fold.kinds import Write
from onefold.state.fold.maps.ops import Delete, Increment, Put

OPERATION_BYTES = 24
"""What an operation takes in addition to its key, value and the name of its map, at most about."""


class Stored(NamedTuple):
    """The key was put."""

    value: bytes
    ttl_ms: int | None
    expires_ms: int | None = None
    """The end of the item that this replaces, which it keeps; ``ttl_ms`` is None then."""


class Gone(NamedTuple):
    """The key was deleted."""


class Added(NamedTuple):
    """The key was incremented, and what it holds was not looked at."""

    by: bytes
    """An encoded number."""
    ttl_ms: int | None


Entry: TypeAlias = Stored | Gone | Added
GONE = Gone()


class Meter:
    """Counts what a transaction reads and writes against its limits."""

    def __init__(self) -> None:
        self.operations = 0
        self.bytes = 0

    def add(self, operations: int, size: int) -> None:
        """Count more. Raises TooLarge (definite), and then counts nothing."""
        if self.operations + operations > config.TRANSACTION_OPERATIONS_MAX:
            raise TooLarge(
                f"the transaction reads and writes more than {config.TRANSACTION_OPERATIONS_MAX} keys. "
                "Split it into several transactions"
            )
        if self.bytes + size > config.TRANSACTION_BYTES_MAX:
            raise TooLarge(
                f"the transaction reads and writes more than {config.TRANSACTION_BYTES_MAX} bytes. "
                "Split it into several transactions"
            )
        self.operations += operations
        self.bytes += size


class Buffer:
    """The entries of one transaction, by map and encoded key."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._entries: dict[str, dict[bytes, Entry]] = {}
        self._sorted: dict[str, list[bytes]] = {}

    def get(self, name: str, key: bytes) -> Entry | None:
        """What was written to the key; None: nothing."""
        entries = self._entries.get(name)
        return None if entries is None else entries.get(key)

    def range(
        self, name: str, start: bytes, stop: bytes, *, reverse: bool = False
    ) -> list[tuple[bytes, Entry]]:
        """What was written to keys with ``start <= key < stop``, in key order. A copy."""
        keys = self._sorted.get(name, [])
        entries = self._entries.get(name, {})
        chosen = keys[bisect_left(keys, start) : bisect_left(keys, stop)]
        return [(key, entries[key]) for key in (reversed(chosen) if reverse else chosen)]

    def put_many(self, name: str, items: Iterable[tuple[bytes, bytes]], ttl_ms: int | None = None) -> None:
        """Set keys: all of them, or none when it raises TooLarge."""
        self._set(name, {key: Stored(value, ttl_ms) for key, value in items})

    def replace(self, name: str, key: bytes, value: bytes, expires_ms: int | None) -> None:
        """Set a key that is there and keep its end. Raises TooLarge. A value that this transaction has put before keeps the
        lifetime that it was put with."""
        before = self.get(name, key)
        if isinstance(before, Stored):
            self._set(name, {key: before._replace(value=value)})
        else:
            self._set(name, {key: Stored(value, None, expires_ms)})

    def delete(self, name: str, keys: Iterable[bytes]) -> None:
        """Remove keys: all of them, or none when it raises TooLarge."""
        self._set(name, dict.fromkeys(keys, GONE))

    def increment(self, name: str, key: bytes, by: float, ttl_ms: int | None = None) -> None:
        """Add to a number. Onto a key that was put, the sum is put; onto an earlier increment, both become one.

        Raises InvalidArgument when ``by`` is not a finite number, InvalidValue when the key was put and holds none, TooLarge.
        """
        values.check_increment(by)
        before = self.get(name, key)
        match before:
            case None:
                entry: Entry = Added(_sum(None, by, name), ttl_ms)
            case Gone():
                entry = Stored(_sum(None, by, name), ttl_ms)
            case Stored():
                entry = before._replace(value=_sum(before.value, by, name))
            case Added():
                # The lifetime counts for the increment that makes the key, and that is the first one.
                entry = Added(_sum(before.by, by, name), before.ttl_ms)
        self._set(name, {key: entry})

    def writes(self, shard_of: Callable[[bytes], int], wall_ms: int) -> dict[int, list[Write]]:
        """The fewest writes that bring about all entries, for each shard. The same entries made in the same order give the same
        writes at the same time. ``wall_ms``: the present, for what keeps its end."""
        puts: dict[tuple[int, str, int | None], list[tuple[bytes, bytes]]] = {}
        deletes: dict[tuple[int, str], list[bytes]] = {}
        increments: list[tuple[int, Increment]] = []
        for name, entries in self._entries.items():
            for key, entry in entries.items():
                shard = shard_of(key)
                match entry:
                    case Stored():
                        ttl_ms = entry.ttl_ms
                        if entry.expires_ms is not None:
                            ttl_ms = remaining_ms(entry.expires_ms, wall_ms)
                        puts.setdefault((shard, name, ttl_ms), []).append((key, entry.value))
                    case Gone():
                        deletes.setdefault((shard, name), []).append(key)
                    case Added():
                        increments.append((shard, Increment(name, key, entry.by, entry.ttl_ms)))
        found: dict[int, list[Write]] = {}
        for (shard, name, ttl_ms), items in puts.items():
            found.setdefault(shard, []).append(Put(name, tuple(items), ttl_ms))
        for (shard, name), keys in deletes.items():
            found.setdefault(shard, []).append(Delete(name, tuple(keys)))
        for shard, increment in increments:
            found.setdefault(shard, []).append(increment)
        return found

    def _set(self, name: str, new: dict[bytes, Entry]) -> None:
        entries = self._entries.get(name, {})
        operations = sum(1 for key in new if key not in entries)
        size = operations * (OPERATION_BYTES + len(name))
        for key, entry in new.items():
            old = entries.get(key)
            size += _size(entry) + (len(key) if old is None else -_size(old))
        self._meter.add(operations, size)
        entries = self._entries.setdefault(name, entries)
        ordered = self._sorted.setdefault(name, [])
        many = operations > len(ordered) // 8
        for key, entry in new.items():
            if key not in entries and not many:
                insort(ordered, key)
            entries[key] = entry
        if many:
            ordered[:] = sorted(entries)


def value_over(entry: Entry, below: bytes | None) -> bytes | None:
    """What a key holds with this entry over what is below; None: it is not there. Raises InvalidValue for an increment of
    something that is not a number."""
    match entry:
        case Stored():
            return entry.value
        case Gone():
            return None
        case Added():
            return _sum(below, values.decode_value(entry.by))


def overlay(
    below: Iterator[tuple[bytes, bytes]], own: Sequence[tuple[bytes, Entry]], *, reverse: bool = False
) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of ``below`` with the entries ``own`` laid over them. Both in key order (``reverse``: from the end).
    Lazy: takes from ``below`` one pair more than it has given, at most."""
    waiting = iter(own)
    mine = next(waiting, None)
    for key, value in below:
        while mine is not None and mine[0] != key and (mine[0] < key) is not reverse:
            yield from _alone(mine)
            mine = next(waiting, None)
        if mine is not None and mine[0] == key:
            over = value_over(mine[1], value)
            mine = next(waiting, None)
            if over is not None:
                yield key, over
        else:
            yield key, value
    while mine is not None:
        yield from _alone(mine)
        mine = next(waiting, None)


def _alone(own: tuple[bytes, Entry]) -> Iterator[tuple[bytes, bytes]]:
    value = value_over(own[1], None)
    if value is not None:
        yield own[0], value


def _sum(old: bytes | None, by: float, name: str | None = None) -> bytes:
    added = values.add(old, by)
    if added is None:
        where = f" in {name!r}" if name else ""
        raise InvalidValue(f"an item{where} holds no number (or one too long), so it cannot be incremented")
    return added[0]


def _size(entry: Entry) -> int:
    match entry:
        case Stored():
            return len(entry.value)
        case Added():
            return len(entry.by)
        case Gone():
            return 0
