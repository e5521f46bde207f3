"""A fold's store in memory: sorted tables of bytes, to test folds without an engine."""

from __future__ import annotations

import hashlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping

from onefold.errors import TooOld


class MemoryStore:
    """``onefold.fold.api.Store`` over dictionaries. ``writes`` counts changed keys, for tests that bound an
    operation's cost."""

    def __init__(self) -> None:
        self._values: dict[str, dict[bytes, bytes]] = {}
        self._keys: dict[str, list[bytes]] = {}
        self.writes = 0

    def get(self, table: str, key: bytes) -> bytes | None:
        return self._values.get(table, {}).get(key)

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        values = self._values.get(table, {})
        return {key: values[key] for key in keys if key in values}

    def scan(
        self,
        table: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        keys = self._keys.get(table, [])
        first = bisect_left(keys, start)
        last = len(keys) if stop is None else max(first, bisect_left(keys, stop))
        if limit is not None and limit < last - first:
            first, last = (last - limit, last) if reverse else (first, first + limit)
        values = self._values.get(table, {})
        chosen = keys[first:last]
        return iter([(key, values[key]) for key in (reversed(chosen) if reverse else chosen)])

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        return sum(1 for _ in self.scan(table, start, stop))

    def changed_since(self, table: str, start: bytes, stop: bytes | None, offset: int) -> bool:  # noqa: ARG002
        raise TooOld(f"a store in memory keeps no history of {table} since {offset}. Test with MemoryShard")

    def put(self, table: str, key: bytes, value: bytes) -> None:
        values = self._values.setdefault(table, {})
        if key not in values:
            insort(self._keys.setdefault(table, []), key)
        values[key] = value
        self.writes += 1

    def put_many(self, table: str, items: Iterable[tuple[bytes, bytes]]) -> None:
        new = dict(items)
        values = self._values.setdefault(table, {})
        keys = self._keys.setdefault(table, [])
        keys.extend(key for key in new if key not in values)
        keys.sort()
        values.update(new)
        self.writes += len(new)

    def delete(self, table: str, key: bytes) -> None:
        values = self._values.get(table, {})
        if key in values:
            del values[key]
            keys = self._keys[table]
            del keys[bisect_left(keys, key)]
            self.writes += 1

    def delete_range(self, table: str, start: bytes, stop: bytes | None) -> None:
        keys = self._keys.get(table, [])
        first = bisect_left(keys, start)
        last = len(keys) if stop is None else max(first, bisect_left(keys, stop))
        values = self._values.get(table, {})
        for key in keys[first:last]:
            del values[key]
        del keys[first:last]
        self.writes += last - first

    def first(self, table: str) -> bytes | None:
        return next(iter(self._keys.get(table, ())), None)

    def tables(self) -> list[str]:
        """Names of the tables that have keys, in order."""
        return sorted(table for table, keys in self._keys.items() if keys)

    def digest(self) -> bytes:
        """A hash of the whole state: the same on all replicas that applied the same operations."""
        state = hashlib.blake2b(digest_size=16)
        for table in sorted(self._keys):
            for key in self._keys[table]:
                for part in (table.encode(), key, self._values[table][key]):
                    state.update(len(part).to_bytes(8, "big") + part)
        return state.digest()
