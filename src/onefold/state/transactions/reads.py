"""What a transaction reads: a snapshot of each shard that it touches, and the record of everything that it read.

The record is what the fold validates, so it must hold all that could have influenced the transaction: the version of each key
(of those that were not there too), and each range as far as it was looked at. No view stays open between two calls: a
snapshot is an offset in the history window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onefold import config
from onefold.errors import SpaceError, TooOld
from onefold.machine.undisturbed import let_pass
from onefold.state.core.consistency import STRONG
from onefold.state.fold import rows
from onefold.state.fold.ops import Read, Span
from onefold.state.fold.rows import Row
from onefold.state.transactions.buffer import OPERATION_BYTES, Meter

if TYPE_CHECKING:
    from onefold.shard.api import View
    from onefold.state.core.client import StateClient

_FIRST_PAGE_ROWS = 32


class OpenSpan:
    """A range of one shard that is being scanned, and how far it was consumed."""

    __slots__ = ("_reached", "name", "reverse", "shard", "start", "stop")

    def __init__(self, shard: int, name: str, start: bytes, stop: bytes, reverse: bool) -> None:
        self.shard = shard
        self.name = name
        self.start = start
        self.stop = stop
        self.reverse = reverse
        self._reached: bytes | None = None

    def reach(self, key: bytes) -> None:
        """The scan has given this key out, so it has told what is between its beginning and the key."""
        self._reached = key

    def reach_end(self) -> None:
        """The scan has told everything."""
        self._reached = self.start if self.reverse else self.stop

    def consumed(self) -> tuple[bytes, bytes] | None:
        """The range whose answer was returned; None: nothing."""
        reached = self._reached
        if reached is None:
            return None
        if self.reverse:
            return reached, self.stop
        return self.start, reached if reached == self.stop else reached + b"\x00"


class Reads:
    """The snapshots and the record of one transaction."""

    def __init__(self, client: StateClient, meter: Meter, *, read_only: bool, keep: bool) -> None:
        """``read_only``: append nothing, and take what is due as gone. ``keep``: whether a record is needed at all."""
        self._client = client
        self._meter = meter
        self._read_only = self._at_one_moment = read_only
        self._keep = keep
        self._offsets: dict[int, int] = {}
        self._now_ms: int | None = None
        self._seen: dict[int, dict[tuple[str, bytes], tuple[int, int]]] = {}
        self._spans: list[OpenSpan] = []

    @property
    def shards(self) -> list[int]:
        """The shards of which something was read."""
        return [] if self._at_one_moment else sorted(self._offsets)

    # -- reading

    def get(self, shard_id: int, name: str, key: bytes) -> Row | None:
        """The key's row in the snapshot; recorded."""
        offset = self._offset(shard_id)
        with self._kept(shard_id, offset):
            data, _ = self._client.shards[shard_id].peek(rows.map_table(name), key, at=offset)
        return self._told(shard_id, name, key, data)

    def get_many(self, shard: int, name: str, keys: Iterable[bytes]) -> dict[bytes, Row]:
        """The rows of those of the keys that are there; all are recorded."""
        wanted = list(dict.fromkeys(keys))
        with self._view(shard) as view:
            found = view.get_many(rows.map_table(name), wanted)
        told = {key: self._told(shard, name, key, found.get(key)) for key in wanted}
        return {key: row for key, row in told.items() if row is not None}

    def span(self, shard: int, name: str, start: bytes, stop: bytes, *, reverse: bool) -> OpenSpan:
        """A scan begins; anyone who gives out its keys says how far it came."""
        span = OpenSpan(shard, name, start, stop, reverse)
        self._offset(shard)
        if self._keep:
            self._meter.add(1, OPERATION_BYTES + len(name) + len(start) + len(stop))
            self._spans.append(span)
        return span

    def scan(
        self, span: OpenSpan, check: Callable[[], None], limit: int | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in the span's range, page by page. ``check`` is called before each page; ``limit``: how many the
        caller will take at most, so that no more are fetched at first."""
        start, stop = span.start, span.stop
        want = _FIRST_PAGE_ROWS if limit is None else max(1, min(limit, config.MAP_PAGE_ROWS))
        while start < stop:
            check()
            with self._view(span.shard) as view:
                table = rows.map_table(span.name)
                page = list(view.scan(table, start, stop, limit=want, reverse=span.reverse))
            for key, data in page:
                row = rows.read_row(data)
                if not self._ended(row):
                    yield key, row.value
            if len(page) < want:
                return
            page_bytes = sum([len(data) for _, data in page])
            want = max(1, min(config.MAP_PAGE_ROWS, config.MAP_PAGE_BYTES * len(page) // page_bytes))
            if span.reverse:
                stop = page[-1][0]
            else:
                start = page[-1][0] + b"\x00"

    # -- what was read

    def reads(self, shard: int) -> tuple[Read, ...]:
        """The keys that were read in the shard, each with the version seen."""
        seen = self._seen.get(shard, {})
        return tuple(Read(name, key, offset, index) for (name, key), (offset, index) in seen.items())

    def spans(self, shard: int) -> tuple[Span, ...]:
        """The ranges that were read in the shard, without overlaps."""
        told = sorted(
            (span.name, *consumed)
            for span in self._spans
            if span.shard == shard and (consumed := span.consumed()) is not None
        )
        merged: list[tuple[str, bytes, bytes]] = []
        for name, start, stop in told:
            if merged and merged[-1][0] == name and start <= merged[-1][2]:
                merged[-1] = (name, merged[-1][1], max(stop, merged[-1][2]))
            else:
                merged.append((name, start, stop))
        return tuple(Span(name, start, stop, self._offsets[shard]) for name, start, stop in merged)

    # -- the snapshot

    def _offset(self, shard: int) -> int:
        """The shard's snapshot; taken when the shard is first touched."""
        offset = self._offsets.get(shard)
        if offset is not None:
            return offset
        client, settled = self._client, None
        if not self._read_only:
            try:
                settled = client.settle_due(shard)
            except SpaceError as error:
                let_pass(error)
                self._read_only = True  # the connection is; if the space is closed, the view says so
        if self._read_only and self._now_ms is None:
            # One moment for all shards and reads, so that nothing ends in the middle.
            self._now_ms = client.env.wall_ms()
        if self._at_one_moment and client.shard_count > 1:
            from onefold.state.transactions.moments import moment

            self._offsets.update(moment(client))
            return self._offsets[shard]
        if settled is not None and client.shows_all:
            client.session.observe(shard, settled)
            self._offsets[shard] = settled  # what a strong view shows was looked at a moment ago
            return settled
        with client.view(shard, STRONG) as view:
            self._offsets[shard] = view.offset
            return view.offset

    @contextmanager
    def _view(self, shard_id: int) -> Iterator[View]:
        offset = self._offset(shard_id)
        with self._kept(shard_id, offset), self._client.shards[shard_id].view(at=offset) as view:
            yield view

    @contextmanager
    def _kept(self, shard_id: int, offset: int) -> Iterator[None]:
        """Says of a snapshot that is no longer kept what to do."""
        try:
            yield
        except TooOld as error:
            raise TooOld(
                f"the transaction's snapshot (offset {offset} of shard {shard_id}) has left the history that is kept "
                f"({config.HISTORY_WINDOW_OFFSETS} offsets): too much was written since it began. Run it again, shorter"
            ) from error

    def _told(self, shard: int, name: str, key: bytes, data: bytes | None) -> Row | None:
        row = None if data is None else rows.read_row(data)
        if self._keep:
            seen = self._seen.setdefault(shard, {})
            if (name, key) not in seen:
                self._meter.add(1, OPERATION_BYTES + len(name) + len(key))
                seen[name, key] = (0, 0) if row is None else (row.offset, row.index)
        return None if row is None or self._ended(row) else row

    def _ended(self, row: Row) -> bool:
        return self._now_ms is not None and row.expires_ms is not None and row.expires_ms <= self._now_ms
