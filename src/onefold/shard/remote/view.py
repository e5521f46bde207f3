"""A view of a shard that has no replica here: every read is a question about one offset, learned from the first answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from onefold import config
from onefold.errors import InvalidArgument, SpaceError
from onefold.shard.remote import protocol
from onefold.shard.remote.protocol import What
from onefold.shard.requirements import ReadRequirement
from onefold.store.paged_view import PagedView, Version
from onefold.store.tables import Head


class RemoteView(PagedView):
    """See ``onefold.shard.api.View``."""

    page_rows_max = config.ASK_ROWS_MAX

    def __init__(
        self,
        ask: Callable[[What, ReadRequirement | None, int | None], tuple[int, Any]],
        at: int | None,
        need: ReadRequirement | None,
    ) -> None:
        """``ask``: see ``RemoteShard.ask``. ``at``: its offset; None: that of the first answer, which meets ``need``."""
        self._ask = ask
        self._at = at
        self._need = need
        self._rest = None if need is None else ReadRequirement(timeout=need.timeout)

    @property
    def offset(self) -> int:
        """The offset that this view shows; asks for it when nothing was read yet."""
        if self._at is None:
            self._read(protocol.Applied())
        return self._at or 0

    def end(self) -> None:
        """The view is over: using it from now on raises SpaceError."""
        self._ask = _ended

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        found: dict[bytes, bytes] = {}
        for page in _pages(keys):
            left = page
            while left:
                values: list[bytes | None] = self._read(protocol.Get(table, left))
                found.update(
                    {key: value for key, value in zip(left, values, strict=False) if value is not None}
                )
                left = left[max(1, len(values)) :]
        return found

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        page, more = self._read(protocol.Scan(table, start, stop, rows, reverse))
        return page, more

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        return int(self._read(protocol.Count(table, start, stop)))

    def _changes_page(
        self,
        table: str,
        after: int,
        within: tuple[int, bytes] | None,
        start: bytes,
        stop: bytes | None,
        rows: int,
    ) -> tuple[list[Version], bool]:
        """Nothing beyond this view's offset."""
        if self._at is not None and after > self._at:
            raise InvalidArgument(f"offset {after} is beyond the offset {self._at} of this view")
        want = min(rows, config.ASK_ROWS_MAX)
        page, more = self._read(protocol.Changes(table, after, within, start, stop, want))
        return [Version(*row) for row in page], more

    def tables(self, prefix: str) -> list[str]:
        names: list[str] = []
        while True:
            page, more = self._read(protocol.Tables(prefix, names[-1] if names else ""))
            names += page
            if not more or not page:
                return names

    def head(self) -> Head:
        return Head(*self._read(protocol.HeadOf()))

    def _read(self, what: What) -> Any:
        if self._at is None:
            self._at, result = self._ask(what, self._need, None)
            return result
        return self._ask(what, self._rest, self._at)[1]


def _ended(*_: object) -> tuple[int, Any]:
    raise SpaceError("a view is valid inside its `with` block only; open another")


def _pages(keys: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    """The keys, each once, in pages that fit into a question."""
    page: list[bytes] = []
    size = 0
    for key in dict.fromkeys(keys):
        size += len(key) + 8
        if page and (len(page) == config.ASK_KEYS_MAX or size > config.ASK_KEYS_BYTES):
            yield tuple(page)
            page, size = [], len(key) + 8
        page.append(key)
    if page:
        yield tuple(page)
