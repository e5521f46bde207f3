"""What a transaction reads of a region: a snapshot of its shard, and the record of everything that it read.

As ``state.transactions.reads``, for a region's log. A row is recorded by the signature of what a reader sees in it: what an
import leaves as it was does not conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onefold import config
from onefold.available.kinds import places
from onefold.available.ops import Read, Span
from onefold.available.reading import signature
from onefold.available.rows import shown_tables
from onefold.errors import SpaceError, TooOld, Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.state.available.settling import settle_due
from onefold.state.core.consistency import SESSION
from onefold.state.transactions.buffer import OPERATION_BYTES, Meter
from onefold.state.transactions.reads import OpenSpan

if TYPE_CHECKING:
    from onefold.available.kinds.row import Row
    from onefold.shard.api import View
    from onefold.state.available.client import RegionClient

_FIRST_PAGE_ROWS = 32


class Reads:
    """The snapshots and the record of one transaction. A read-only one may read several shards, each as of a moment of its
    own, and records nothing."""

    def __init__(self, client: RegionClient, meter: Meter, *, read_only: bool) -> None:
        self._client = client
        self._meter = meter
        self._keep = not read_only
        self._settles = not read_only
        self._now_ms: int | None = None
        """The clock by which what is due counts as gone, where nothing is appended."""
        self._offsets: dict[int, int] = {}
        self._rows: dict[int, str] = {}
        """Of each snapshot, what the tables of its collections are below: another one after a full sync."""
        self._seen: dict[tuple[str, bytes], bytes] = {}
        self._spans: list[OpenSpan] = []

    # -- reading

    def get(self, shard_id: int, place: str, key: bytes) -> Row:
        """The row in the snapshot, an empty one where there is none; recorded."""
        offset = self.offset(shard_id)
        with self._kept(shard_id, offset):
            data, _ = self._client.shards[shard_id].peek(self._table(shard_id, place), key, at=offset)
        return self._recorded(place, key, data)

    def get_many(self, shard: int, place: str, keys: Iterable[bytes]) -> dict[bytes, Row]:
        """The rows of the keys; all are recorded."""
        wanted = list(dict.fromkeys(keys))
        with self._view(shard) as view:
            found = view.get_many(self._table(shard, place), wanted)
        return {key: self._recorded(place, key, found.get(key)) for key in wanted}

    def span(self, shard: int, place: str, start: bytes, stop: bytes, *, reverse: bool = False) -> OpenSpan:
        """A scan begins; anyone who gives out its keys says how far it came."""
        span = OpenSpan(shard, place, start, stop, reverse)
        self.offset(shard)
        if self._keep:
            self._meter.add(1, OPERATION_BYTES + len(place) + len(start) + len(stop))
            self._spans.append(span)
        return span

    def scan(
        self, span: OpenSpan, check: Callable[[], None], limit: int | None = None
    ) -> Iterator[tuple[bytes, Row]]:
        """Keys and rows in the span's range that are live, page by page. ``check`` is called before each page; ``limit``: how
        many the caller will take at most, so that no more are fetched at first."""
        start, stop = span.start, span.stop
        want = _FIRST_PAGE_ROWS if limit is None else max(1, min(limit, config.MAP_PAGE_ROWS))
        while start < stop:
            check()
            with self._view(span.shard) as view:
                table = self._table(span.shard, span.name)
                page = list(view.scan(table, start, stop, limit=want, reverse=span.reverse))
            for key, data in page:
                row = self._lasting(places.read_row(span.name, data))
                if row.is_live():
                    yield key, row
            if len(page) < want:
                return
            page_bytes = sum([len(data) for _, data in page])
            want = max(1, min(config.MAP_PAGE_ROWS, config.MAP_PAGE_BYTES * len(page) // page_bytes))
            if span.reverse:
                stop = page[-1][0]
            else:
                start = page[-1][0] + b"\x00"

    # -- what was read

    def reads(self) -> tuple[Read, ...]:
        """The rows that were read, each with what was seen."""
        return tuple(Read(place, key, seen) for (place, key), seen in self._seen.items())

    def spans(self) -> tuple[Span, ...]:
        """The ranges that were read, without overlaps."""
        consumed = [(span.name, span.consumed(), span.shard) for span in self._spans]
        told = sorted((place, *part, shard) for place, part, shard in consumed if part is not None)
        merged: list[tuple[str, bytes, bytes, int]] = []
        for place, start, stop, shard in told:
            if merged and merged[-1][0] == place and start <= merged[-1][2]:
                merged[-1] = (place, merged[-1][1], max(stop, merged[-1][2]), shard)
            else:
                merged.append((place, start, stop, shard))
        return tuple(Span(place, start, stop, self._offsets[shard]) for place, start, stop, shard in merged)

    # -- the snapshot

    def offset(self, shard: int) -> int:
        """The shard's snapshot; taken when the shard is first read. It has all that the session has seen, here and in other
        regions. Raises as ``RegionClient.view``."""
        found = self._offsets.get(shard)
        if found is not None:
            return found
        client = self._client
        if self._settles:
            try:
                settle_due(client, shard)
            except SpaceError as error:
                let_pass(error)
                self._settles = False  # the connection is read-only; if it is closed, the view says so
            except Unavailable as error:
                let_pass(error)
                self._settles = False
        if not self._settles and self._now_ms is None:
            self._now_ms = client.env.wall_ms()  # one moment for all shards and reads
        with client.view(shard, SESSION) as view:
            self._rows[shard] = shown_tables(view).rows
            self._offsets[shard] = view.offset
            return view.offset

    def _table(self, shard: int, place: str) -> str:
        return self._rows[shard] + place

    @contextmanager
    def _view(self, shard_id: int) -> Iterator[View]:
        offset = self.offset(shard_id)
        with self._kept(shard_id, offset), self._client.shards[shard_id].view(at=offset) as view:
            yield view

    @contextmanager
    def _kept(self, shard_id: int, offset: int) -> Iterator[None]:
        """Says of a snapshot that is no longer kept what to do."""
        try:
            yield
        except TooOld as error:
            raise TooOld(
                f"the transaction's snapshot (offset {offset} of shard {shard_id} of region {self._client.region.name}) has left "
                f"the history that is kept ({config.HISTORY_WINDOW_OFFSETS} offsets): too much was written since it began. Run "
                "it again, shorter"
            ) from error

    def _recorded(self, place: str, key: bytes, data: bytes | None) -> Row:
        row = places.read_row(place, data)
        if self._keep and (place, key) not in self._seen:
            self._meter.add(1, OPERATION_BYTES + len(place) + len(key))
            self._seen[place, key] = signature(row)
        return self._lasting(row)

    def _lasting(self, row: Row) -> Row:
        """Without what has ended by the clock of a transaction that appends nothing."""
        if self._now_ms is None:
            return row
        found: Row = row.expired(self._now_ms)
        return found
