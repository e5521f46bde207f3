"""Scans of maps as iterators that can be continued after an error, and the errors about stored values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, Self, TypeVar

from onefold.errors import InvalidValue

T = TypeVar("T")
E = TypeVar("E")


class MapScan(Iterator[T], Generic[T]):
    """A scan. When a step raises, the next one continues: behind a value that cannot be read, else where it stood."""

    __slots__ = ("_begin", "_entries", "_give", "_given", "_last")

    def __init__(
        self, begin: Callable[[bytes | None, int], Iterator[tuple[bytes, E]]], give: Callable[[bytes, E], T]
    ) -> None:
        """``begin``: the entries behind an encoded key (None: from the start), of which so many were given before. ``give``: what
        is given for an entry; raises InvalidValue for one that cannot be read."""
        self._begin = begin
        self._give: Callable[[bytes, Any], T] = give
        self._last: bytes | None = None
        self._given = 0
        self._entries: Iterator[tuple[bytes, Any]] | None = begin(None, 0)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        if self._entries is None:
            self._entries = self._begin(self._last, self._given)
        try:
            key, entry = next(self._entries)
        except StopIteration:
            raise
        except BaseException:
            self._entries = None  # a generator that has raised is over
            raise
        self._last = key
        self._given += 1
        return self._give(key, entry)


def unreadable(error: InvalidValue, name: str, key: object) -> InvalidValue:
    """The error for a value of a map that cannot be read: it names the map and the key."""
    found = InvalidValue(f"map {name!r}, key {key!r:.200}: {error}")
    found.map, found.key = name, key
    return found
