"""Pages of a partition, the records in them, and the merging of several partitions.

A page is read in a view of its own, so no reader holds the write-ahead log back, and appends continue meanwhile. What a page
shows is decoded outside of the view.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from onefold import config
from onefold.errors import InvalidValue
from onefold.fold.api import StoreView
from onefold.shard.api import View
from onefold.state.encoding.items import utc
from onefold.state.encoding.keys import Key, decode_key
from onefold.state.encoding.positions import Position
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.rows import Run
from onefold.state.streams import frames as stream_frames
from onefold.state.streams.large_frames import with_frames
from onefold.state.streams.layout import Layout, check_offset

T = TypeVar("T")
_PAGE_ROWS = 256


class Trail:
    """In what order records were given, so that each can tell the position behind it without holding a vector of its own."""

    __slots__ = ("base", "given")

    def __init__(self, base: dict[int, int]) -> None:
        self.base = base
        self.given: list[int] = []

    def after(self, place: int) -> dict[int, int]:
        offsets = dict(self.base)
        for partition in self.given[:place]:
            offsets[partition] += 1
        return offsets


class StreamRecord(Generic[T]):
    """A record of a stream."""

    __slots__ = ("_place", "_tag", "_trail", "key", "offset", "partition", "time_ms", "value")

    def __init__(
        self,
        value: T,
        key: Key,
        partition: int,
        offset: int,
        time_ms: int,
    ) -> None:
        self.value = value
        """A private copy. A row of a frame is a dict of its columns."""
        self.key = key
        """None: it has none."""
        self.partition = partition
        self.offset = offset
        """Its place in its partition: contiguous, from 0."""
        self.time_ms = time_ms
        """The fold time at which it was appended, in ms since 1970."""
        self._trail: Trail | None = None
        self._place = 0
        self._tag = 0

    @property
    def time(self) -> datetime:
        """When it was appended (fold time), in UTC."""
        return utc(self.time_ms) or datetime.max.replace(tzinfo=UTC)

    @property
    def position(self) -> Position:
        """The next record to read, in every partition that its reader reads: reading from it continues after this record."""
        trail = self._trail
        offsets = {self.partition: self.offset + 1} if trail is None else trail.after(self._place)
        return Position(self._tag, offsets)

    def placed(self, trail: Trail, tag: int) -> None:
        """It was given as the next of the trail."""
        trail.given.append(self.partition)
        self._trail, self._place, self._tag = trail, len(trail.given), tag

    def tagged(self, tag: int) -> None:
        """It was given alone: its position is of its own partition only."""
        self._tag = tag

    def __eq__(self, other: object) -> bool:
        """By what it holds and where it stands in its stream, however it was read."""
        if not isinstance(other, StreamRecord):
            return NotImplemented
        return (self.partition, self.offset, self.time_ms, self.key, self.value) == (
            (other.partition, other.offset, other.time_ms, other.key, other.value)
        )

    def __hash__(self) -> int:
        return hash((self.partition, self.offset, self.time_ms))

    def __repr__(self) -> str:
        return f"<StreamRecord {self.partition}:{self.offset} key={self.key!r} value={self.value!r:.80}>"


class Codec(Protocol):
    """What decodes values."""

    def decode(self, data: bytes) -> Any:
        """A single value."""
        ...

    def decode_row(self, row: dict[str, Any]) -> Any:
        """A row of a frame."""
        ...


class Page(NamedTuple):
    """Some runs of a partition, in order, and the offset behind them. Frames in blobs are not there yet: see
    ``large_frames.with_frames``."""

    runs: list[Run]
    next: int


def read_page(view: View, stream: str, partition: int, offset: int, stop: int, bytes_max: int) -> Page:
    """Runs that hold records from ``offset`` on, before ``stop``: at least one if there is one, and about
    ``bytes_max`` of them. The first may begin before ``offset``, the last end behind ``stop``.

    Raises TooOld when the record at ``offset`` has been removed by retention.
    """
    head = stream_rows.head_of(view, stream, partition)
    check_offset(head, stream, partition, offset)
    runs: list[Run] = []
    if offset >= min(stop, head.next):
        return Page(runs, offset)
    table = stream_rows.segment_table(stream, partition)
    frames = stream_rows.frame_table(stream, partition)
    at, size = offset, 0
    first = _segment_with(view, table, offset)
    for key, row in view.scan(table, first, stream_rows.segment_key(stop), limit=_PAGE_ROWS):
        segment = stream_rows.read_segment(key, row)
        for run in segment.runs:
            if run.offset + run.count <= offset or run.offset >= stop:
                continue
            found = run
            if segment.beside:
                found = run._replace(frame=view.get(frames, key) or b"")
            runs.append(found)
            size += found.size
            at = run.offset + run.count
        if size >= bytes_max:
            break
    return Page(runs, at)


def _segment_with(view: StoreView, table: str, offset: int) -> bytes:
    """The key of the segment that holds the offset."""
    above = stream_rows.segment_key(offset) + b"\x00"
    found = next(iter(view.scan(table, stream_rows.FIRST_KEY, above, limit=1, reverse=True)), None)
    return stream_rows.segment_key(offset) if found is None else found[0]


def offset_at(view: StoreView, stream: str, partition: int, time_ms: int) -> int:
    """The first record whose time is ``time_ms`` or later; the end when there is none. Segments are found by bisection,
    since time never goes back within a partition."""
    head = stream_rows.head_of(view, stream, partition)
    table = stream_rows.segment_table(stream, partition)
    low, high = head.first, head.next
    while low < high:
        middle = (low + high) // 2
        above = stream_rows.segment_key(middle) + b"\x00"
        found = next(iter(view.scan(table, stream_rows.FIRST_KEY, above, limit=1, reverse=True)), None)
        if found is None:
            break
        segment = stream_rows.read_segment(*found)
        if segment.last_ms < time_ms:
            low = segment.base + segment.count
        elif segment.first_ms >= time_ms:
            high = segment.base
        else:
            return next(run.offset for run in segment.runs if run.time_ms >= time_ms)
    return low


def decode_run(
    codec: Codec, partition: int, run: Run, offset: int, stop: int, stream: str
) -> Iterator[StreamRecord[Any]]:
    """The run's records with ``offset <= record.offset < stop``. Raises InvalidValue, which names an unreadable record, or the
    first of a run that cannot be read."""
    try:
        yield from _decode_run(codec, partition, run, offset, stop, stream)
    except InvalidValue as error:
        if error.offset is not None:
            raise
        raise _unreadable(error, stream, partition, run.offset, run.offset + run.count) from None


def _decode_run(
    codec: Codec, partition: int, run: Run, offset: int, stop: int, stream: str
) -> Iterator[StreamRecord[Any]]:
    low, high = max(offset - run.offset, 0), min(stop - run.offset, run.count)
    if run.format == stream_frames.RECORDS:
        pairs = stream_frames.decode_records(run.frame)
        check_run(partition, run, len(pairs))
        time_ms = run.time_ms
        for at, (key, raw) in enumerate(pairs[low:high], run.offset + low):
            found = None if key is None else decode_key(key)
            try:
                value = codec.decode(bytes(raw))
            except InvalidValue as error:
                raise _unreadable(error, stream, partition, at) from None
            yield StreamRecord(value, found, partition, at, time_ms)
        return
    check_run(partition, run)
    name, frame = stream_frames.decode_frame(run.frame)
    check_run(partition, run, frame.height)
    for at, row in enumerate(frame.slice(low, high - low).iter_rows(named=True), run.offset + low):
        key_value = None if name is None else row[name]
        try:
            value = codec.decode_row(row)
        except InvalidValue as error:
            raise _unreadable(error, stream, partition, at) from None
        yield StreamRecord(value, key_value, partition, at, run.time_ms)


def _unreadable(
    error: InvalidValue, stream: str, partition: int, offset: int, behind: int | None = None
) -> InvalidValue:
    what = "this record" if behind is None else f"offset {behind - 1}"
    found = InvalidValue(
        f"stream {stream!r}, partition {partition}, offset {offset}: {error}. A reader continues behind {what}, a consumer after "
        "skip()"
    )
    found.stream, found.partition, found.offset = stream, partition, offset
    found.next_offset = offset + 1 if behind is None else behind
    return found


def check_run(partition: int, run: Run, count: int | None = None) -> None:
    """Raises InvalidValue for a run of an unknown format, or of another number of records than announced."""
    if run.format not in (stream_frames.RECORDS, stream_frames.ARROW):
        raise InvalidValue(
            f"partition {partition}, offset {run.offset}: the records have format {run.format}, written by a newer program"
        )
    if count is not None and count != run.count:
        raise InvalidValue(
            f"partition {partition}, offset {run.offset}: {count} records where {run.count} were announced"
        )


class Cursor:
    """Gives the records of one partition between two offsets, page by page."""

    def __init__(self, layout: Layout, partition: int, side_by_side: int = 1) -> None:
        """``side_by_side``: how many are read at a time; their pages share ``config.STREAM_PAGE_BYTES``."""
        self._layout = layout
        self._shard = layout.client.shards[layout.shard(partition)]
        self._stream = layout.name
        self._partition = partition
        self._bytes = config.STREAM_PAGE_BYTES // side_by_side

    def runs(self, offset: int, stop: int) -> Iterator[Run]:
        """The runs with records from ``offset`` on, before ``stop``."""
        while offset < stop:
            with self._shard.view() as view:
                page = read_page(view, self._stream, self._partition, offset, stop, self._bytes)
            if not page.runs:
                return
            yield from with_frames(self._layout, self._partition, page.runs)
            offset = page.next

    def records(self, codec: Codec, offset: int, stop: int) -> Iterator[StreamRecord[Any]]:
        """The records from ``offset`` on, before ``stop``."""
        for run in self.runs(offset, stop):
            yield from decode_run(codec, self._partition, run, offset, stop, self._stream)


def merged(layout: Layout, codec: Codec, spans: Mapping[int, tuple[int, int]]) -> Iterator[StreamRecord[Any]]:
    """The records of several partitions, each from an offset to another, in order of (time, partition, offset)."""
    busy = {partition: span for partition, span in sorted(spans.items()) if span[0] < span[1]}
    sources = [
        Cursor(layout, partition, len(busy)).records(codec, low, high)
        for partition, (low, high) in busy.items()
    ]
    if len(sources) == 1:
        return sources[0]
    return heapq.merge(*sources, key=lambda record: (record.time_ms, record.partition, record.offset))
