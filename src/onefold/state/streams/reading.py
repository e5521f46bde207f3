"""Reading streams, merged over partitions.

A reader goes in **rounds**: it looks where the partitions end, and gives what is there in order of (time, partition, offset);
one that follows then waits for more and begins another round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from onefold import config
from onefold.arguments import shown
from onefold.errors import InvalidArgument, InvalidValue
from onefold.state.core.client import StateClient
from onefold.state.core.waiting import Looking, Pause, wait_any
from onefold.state.encoding.positions import Position, parse_position
from onefold.state.fold.streams.rows import Head
from onefold.state.streams.layout import Layout, check_offset, stream_tag
from onefold.state.streams.news import awaited
from onefold.state.streams.pages import (
    Codec,
    StreamRecord,
    Trail,
    decode_run,
    merged,
    offset_at,
    read_page,
)

T = TypeVar("T")
Start = str | Position | datetime
"""``"earliest"``, ``"latest"``, a position or its text, or an aware datetime."""
_TRAIL = 1024


def start_offsets(
    layout: Layout, start: Start, heads: Mapping[int, Head], partitions: int, *, whole: bool
) -> dict[int, int]:
    """Where reading starts in each of the partitions of ``heads``. ``whole``: the heads show all there is, so a position beyond
    them is of no record. Raises InvalidArgument, TooOld."""
    if isinstance(start, datetime):
        return _at_time(layout, heads, time_ms_of(start))
    if isinstance(start, str) and start == "earliest":
        return {partition: head.first for partition, head in heads.items()}
    if isinstance(start, str) and start == "latest":
        return {partition: head.next for partition, head in heads.items()}
    position = Position.of(start, layout.tag, partitions)
    offsets = position.offsets
    for partition, offset in offsets.items():
        head = heads.get(partition)
        if head is None:
            continue
        check_offset(head, layout.name, partition, offset)
        if whole and offset > head.next:
            raise InvalidArgument(
                f"{position!r} is beyond the end of partition {partition} ({head.next}): it is of another space, or of this "
                "one before it was restored. Start at 'earliest' or 'latest'"
            )
    others = {partition: head for partition, head in heads.items() if partition not in offsets}
    if position.since_ms is not None:
        offsets |= _at_time(layout, others, position.since_ms)
    else:
        offsets |= {partition: head.first for partition, head in others.items()}
    return {partition: offset for partition, offset in offsets.items() if partition in heads}


def _at_time(layout: Layout, heads: Mapping[int, Head], time_ms: int) -> dict[int, int]:
    found: dict[int, int] = {}
    for shard, partitions in layout.by_shard(heads).items():
        with layout.client.shards[shard].view() as view:
            for partition in partitions:
                found[partition] = offset_at(view, layout.name, partition, time_ms)
    return found


def time_ms_of(when: datetime) -> int:
    """The first millisecond that is not before the moment. One without a time zone is local time, as for ``Database.at``."""
    delta = utc_of(when) - datetime(1970, 1, 1, tzinfo=UTC)
    micros = (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds
    return -(-micros // 1000)


def utc_of(when: datetime) -> datetime:
    """The moment in UTC. One without a time zone is local time."""
    try:
        return when.astimezone(UTC)
    except (OverflowError, ValueError):  # too near the ends of the calendar to be moved to another zone
        return when.replace(tzinfo=UTC)


def check_start(start: object, stream: str | None = None) -> Start:
    """Raises InvalidArgument for what cannot be a start, of this stream if one is named."""
    if isinstance(start, datetime):
        time_ms_of(start)
        return start
    if isinstance(start, str) and start in ("earliest", "latest"):
        return start
    if isinstance(start, Position | str):
        position = start if isinstance(start, Position) else parse_position(start)
        if stream is not None:
            Position.of(position, stream_tag(stream), config.STREAM_PARTITIONS_MAX)
        return start
    raise InvalidArgument(
        f"start must be 'earliest', 'latest', a Position or a datetime; got {shown(start)} ({type(start).__name__})"
    )


Opened = Callable[[], "Mapping[int, int] | None"]


class Reader(Looking, Generic[T]):
    """An iterator of records; see ``Stream.read``. For one thread."""

    def __init__(
        self,
        layout: Layout,
        codec: Codec,
        opened: Opened,
        *,
        stops: Mapping[int, int] | None,
        timeout: float | None,
    ) -> None:
        """``opened``: the start offsets, once the stream is there. ``stops``: where reading ends; None: follow."""
        self._layout = layout
        self._codec = codec
        self._opened = opened
        self._stops = stops
        self._timeout = timeout
        self._next = opened()
        self._trail = Trail(dict(self._next or {}))
        self._round: Iterator[StreamRecord[Any]] | None = None
        """What is read now; None: to be begun where this reader stands."""
        self._ahead: StreamRecord[Any] | None = None
        """Found by ``look``, and not given."""
        self._seen: dict[int, int] = {}
        """How far the last look saw each shard."""
        self._closed = False

    @property
    def client(self) -> StateClient:
        """The core under it."""
        return self._layout.client

    @property
    def timeout(self) -> float | None:
        """How many seconds a step waits at most."""
        return self._timeout

    def __iter__(self) -> Reader[T]:
        return self

    def __next__(self) -> StreamRecord[T]:
        """The next record. Raises InvalidValue for one that cannot be read, which names it; iteration continues behind it."""
        record, self._ahead = self._ahead, None
        if record is None:
            record = self._find()
        if record is None:
            raise StopIteration
        return self._placed(record)

    def look(self) -> Pause | None:
        """Find the next record without waiting for one; None: it is found. Raises as iterating."""
        if self._ahead is None and not self._closed:
            self._ahead = self._find(waits=False)
        if self._ahead is not None:
            return None
        return Pause(awaited(self._layout, self._seen, self._next or ()))

    def give(self) -> StreamRecord[T] | None:
        """The record that ``look`` has found."""
        record, self._ahead = self._ahead, None
        return None if record is None else self._placed(record)

    def close(self) -> None:
        """End it; a thread that waits in it stops within ``config.WATCH_LOOK_S``."""
        self._closed = True

    def _placed(self, record: StreamRecord[Any]) -> StreamRecord[T]:
        if len(self._trail.given) >= _TRAIL:
            self._trail = Trail(self._trail.after(_TRAIL))
        record.placed(self._trail, self._layout.tag)
        return record

    def _find(self, *, waits: bool = True) -> StreamRecord[Any] | None:
        try:
            record = None if self._round is None else next(self._round, None)
            while record is None and not self._closed and self._begin_or_wait(waits):
                record = next(self._round or iter(()), None)
        except InvalidValue as error:
            if error.partition is not None and error.next_offset is not None:  # it is passed
                offsets = self._trail.after(len(self._trail.given))
                self._trail = Trail(offsets | {error.partition: error.next_offset})
            self._round = None
            raise
        except BaseException:
            self._round = None  # an iterator that has raised is over: another one continues from here
            raise
        return record

    def _begin_or_wait(self, waits: bool) -> bool:
        """Begin a round; False when there is nothing more."""
        if self._stops is None:
            return self._await_more(waits)
        if self._next is None or self._round is not None:
            return False
        at = self._trail.after(len(self._trail.given))
        self._round = merged(
            self._layout, self._codec, {p: (offset, self._stops[p]) for p, offset in at.items()}
        )
        return True

    @property
    def position(self) -> Position:
        """The next record to read in each partition that is read; reading from it continues after what this reader gave."""
        return Position(self._layout.tag, self._trail.after(len(self._trail.given)))

    def _await_more(self, waits: bool) -> bool:
        """Begin another round once there is something for it; False when nothing came within the timeout."""
        client = self._layout.client
        deadline = None if self._timeout is None else client.env.boot_s() + self._timeout
        while True:
            seen = self._seen = {self._layout.home: client.shards[self._layout.home].applied}
            if self._next is None:
                self._next = self._opened()
                self._trail = Trail(dict(self._next or {}))
            if self._next is not None and self._begin(seen):
                return True
            left = None if deadline is None else deadline - client.env.boot_s()
            if self._closed or not waits or (left is not None and left <= 0):
                return False
            wait_any(client, seen, config.WATCH_LOOK_S if left is None else min(left, config.WATCH_LOOK_S))

    def _begin(self, seen: dict[int, int]) -> bool:
        at = self._trail.after(len(self._trail.given))
        heads, offsets = self._layout.heads(at, self._layout.local)
        seen.clear()
        seen.update(offsets)
        spans = {p: (offset, heads[p].next) for p, offset in at.items()}
        for partition, offset in at.items():
            check_offset(heads[partition], self._layout.name, partition, offset)
        if not any(low < high for low, high in spans.values()):
            return False
        self._round = merged(self._layout, self._codec, spans)
        return True


__all__ = [
    "Reader",
    "Start",
    "StreamRecord",
    "check_start",
    "decode_run",
    "read_page",
    "start_offsets",
    "time_ms_of",
]
