"""What all views have in common: reading a table as pages of bounded size, wherever the pages come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import ClassVar, NamedTuple

_FIRST_ROWS = 32
"""Of a scan without a limit, since few read it to the end."""
_GROWTH = 8
"""How much larger each further page is."""


class Version(NamedTuple):
    """One change of a key: what it holds since (offset, place in the record); None: it was removed."""

    offset: int
    place: int
    key: bytes
    value: bytes | None


class PagedView(ABC):
    """``fold.api.StoreView``, and the ``changes`` of ``shard.api.View``, over four primitives."""

    page_rows_max: ClassVar[int] = 512
    """The largest page that is asked for."""

    @abstractmethod
    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        """See ``StoreView``."""

    @abstractmethod
    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        """See ``StoreView``."""

    @abstractmethod
    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Up to so many of the first pairs with ``start <= key < stop`` (``reverse``: of the last, from the end), and whether
        there may be more. It may be fewer than asked for, but none only when there are no more."""

    @abstractmethod
    def _changes_page(
        self,
        table: str,
        after: int,
        within: tuple[int, bytes] | None,
        start: bytes,
        stop: bytes | None,
        rows: int,
    ) -> tuple[list[Version], bool]:
        """Up to so many of the first changes (see ``changes``), and whether there may be more, with the same promise."""

    def get(self, table: str, key: bytes) -> bytes | None:
        return self.get_many(table, (key,)).get(key)

    def scan(
        self,
        table: str,
        start: bytes = b"",
        stop: bytes | None = None,
        *,
        limit: int | None = None,
        reverse: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        left, rows_max = limit, _FIRST_ROWS if limit is None else self.page_rows_max
        while left is None or left > 0:
            page, more = self._page(
                table, start, stop, rows_max if left is None else min(left, rows_max), reverse
            )
            yield from page
            if not more or not page:
                return
            if left is not None:
                left -= len(page)
            if reverse:
                stop = page[-1][0]
            else:
                start = page[-1][0] + b"\x00"
            rows_max = min(self.page_rows_max, _GROWTH * rows_max)

    def changes(
        self,
        table: str,
        after: int,
        *,
        within: tuple[int, bytes] | None = None,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int = 1000,
    ) -> list[Version]:
        """What changed beyond offset ``after``, in order of (offset, place, key); with ``within`` = (place, key) also what
        follows that change in the record after ``after``. Only keys with ``start <= key < stop``.

        A place of -1 is what time did (expiry) before the record's operations. Raises TooOld; InvalidArgument.
        """
        found: list[Version] = []
        while len(found) < limit:
            page, more = self._changes_page(table, after, within, start, stop, limit - len(found))
            found += page
            if not more or not page:
                break
            after, within = found[-1].offset - 1, (found[-1].place, found[-1].key)
        return found

    def changed_since(self, table: str, start: bytes, stop: bytes | None, offset: int) -> bool:
        """Whether any key with ``start <= key < stop`` was written beyond ``offset``. Raises TooOld; InvalidArgument."""
        return bool(self.changes(table, offset, start=start, stop=stop, limit=1))
