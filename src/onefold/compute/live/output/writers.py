"""Rows as writes of a map or a stream, or as calls of a function.

What is in the shard of the job's rows is written by the commit itself. What belongs to other shards goes into the commit's
outbox, from which a forwarder does it there. A function is called before the commit, so after a crash it is called again with
rows that it had: at least once, never less.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec
import polars as pl

from onefold import config
from onefold.compute.frames.shown_values import unreadable_rows
from onefold.compute.live.output.hop_rows import HopWriter
from onefold.compute.live.plan import OP, CallbackSink, HopSink, MapSink, Sink, StreamSink
from onefold.compute.tasks.failures import one_line, user_traceback
from onefold.errors import InvalidArgument, InvalidKey, InvalidPlan, InvalidValue, TooLarge
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.values import encode_value
from onefold.state.fold.kinds import Write
from onefold.state.fold.live.ops import Outgoing
from onefold.state.fold.maps.ops import Delete, Put
from onefold.state.streams import large_frames
from onefold.state.streams.appending import Appending, StreamCodec
from onefold.state.streams.layout import Layout

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient

MESSAGE_BYTES: Final = 1024 * 1024
"""Writes for another shard are put into messages of about this size."""
_Refused = (InvalidArgument, InvalidKey, InvalidValue, TooLarge)


@dataclass
class Written:
    """What rows became."""

    writes: list[Write] = field(default_factory=list)
    """In the shard of the job's rows."""
    outbox: list[Outgoing] = field(default_factory=list)
    refused: list[tuple[pl.DataFrame, str]] = field(default_factory=list)
    """Rows that cannot be written, with the reason."""
    stored: large_frames.Stored | None = None
    """Large frames of the writes, of which ``keep`` is to be called after the commit."""

    @property
    def too_large(self) -> int:
        """The bytes of all of it, if a commit cannot hold them; 0: it can."""
        size = sum(len(message.writes) for message in self.outbox)
        size += len(encode_writes(self.writes)) if self.writes else 0
        return 0 if size <= config.LIVE_OUTBOX_COMMIT_BYTES_MAX else size


class Writer(Protocol):
    """Makes writes of a commit's rows."""

    def write(self, rows: pl.DataFrame | None, gone: pl.DataFrame | None) -> Written:
        """The writes for rows that are there now and rows that are no more. Raises InvalidPlan."""
        ...


def writer(client: StateClient, home: int, sink: Sink, hop: str = "") -> Writer | None:
    """What makes writes for this sink; None for a table. ``hop``: the stream of a part that another one reads.

    Raises InvalidArgument for a stream that has another number of partitions.
    """
    match sink:
        case MapSink():
            return _MapWriter(client, home, sink)
        case StreamSink():
            return _StreamWriter(client, home, sink)
        case CallbackSink():
            return _Caller(sink)
        case HopSink():
            return HopWriter(hop)
        case _:
            return None


class _MapWriter:
    def __init__(self, client: StateClient, home: int, sink: MapSink) -> None:
        self._client, self._home, self._sink = client, home, sink

    def write(self, rows: pl.DataFrame | None, gone: pl.DataFrame | None) -> Written:
        """Puts by key, the last row of a key counts; deletes of keys that are in no row."""
        written = Written()
        items: dict[bytes, bytes] = {}
        odd = {} if rows is None else unreadable_rows(rows)
        if odd and rows is not None:
            written.refused += [(rows[at], reason) for at, reason in odd.items()]
            rows = _without_rows(rows, odd)
        for at, row in self._rows(rows):
            key = row.pop(self._sink.key)
            try:
                items[encode_key(key)] = encode_value(row)
            except _Refused as error:
                assert rows is not None
                written.refused.append((rows[at], str(error)))
        lost: set[bytes] = set()
        # A row that could not be read was not put either.
        for _, row in self._rows(None if gone is None else _without_rows(gone, unreadable_rows(gone))):
            try:
                lost.add(encode_key(row[self._sink.key]))
            except _Refused:
                continue  # it could not be put either
        by_shard: dict[int, tuple[list[tuple[bytes, bytes]], list[bytes]]] = {}
        for item in items.items():
            by_shard.setdefault(self._client.shard_of(item[0]), ([], []))[0].append(item)
        for key in sorted(lost - items.keys()):
            by_shard.setdefault(self._client.shard_of(key), ([], []))[1].append(key)
        for shard, (puts, deletes) in sorted(by_shard.items()):
            writes: list[Write] = [Delete(self._sink.map, tuple(deletes))] if deletes else []
            writes += [Put(self._sink.map, tuple(piece)) for piece in _pieces(puts)]
            _send(written, shard, self._home, writes)
        return written

    def _rows(self, frame: pl.DataFrame | None) -> Iterator[tuple[int, dict[str, Any]]]:
        if frame is None:
            return iter(())
        if self._sink.key not in frame.columns:
            raise InvalidPlan(
                f"into_map: there is no column {self._sink.key!r}; the rows have {', '.join(map(repr, frame.columns))}"
            )
        return enumerate(frame.iter_rows(named=True))


def _without_rows(frame: pl.DataFrame, numbers: Collection[int]) -> pl.DataFrame:
    keep = [number for number in range(frame.height) if number not in numbers]
    return frame[keep]


def _pieces(items: list[tuple[bytes, bytes]]) -> Iterator[list[tuple[bytes, bytes]]]:
    piece: list[tuple[bytes, bytes]] = []
    size = 0
    for item in items:
        piece.append(item)
        size += len(item[0]) + len(item[1])
        if size >= MESSAGE_BYTES:
            yield piece
            piece, size = [], 0
    if piece:
        yield piece


class _StreamWriter:
    def __init__(self, client: StateClient, home: int, sink: StreamSink) -> None:
        self._client, self._home, self._sink = client, home, sink
        self._layout = Layout(client, sink.stream, sink.partitions)
        self._row = self._layout.make()
        for shard in self._layout.by_shard(range(self._row.partitions)):
            self._layout.copy_to(shard, self._row)

    def write(self, rows: pl.DataFrame | None, gone: pl.DataFrame | None) -> Written:
        """Records to append: those that are no more first, so the last record of a key says what is there."""
        written = Written()
        here: list[Write] = []
        for frame, op in ((gone, "delete"), (rows, "put")):
            if frame is None or not frame.height:
                continue
            if self._sink.emit == "update":
                frame = frame.with_columns(pl.lit(op).alias(OP))
            self._append(frame, written, here)
        # What goes to other shards waits in the outbox, which names no blobs.
        with large_frames.stored(self._client, {self._home: here}) as stored:
            written.writes += stored.parts[self._home]
        written.stored = stored
        return written

    def _append(self, frame: pl.DataFrame, written: Written, here: list[Write]) -> None:
        """``here``: what is appended in the shard of the job's rows."""
        appending = Appending(self._client, self._sink.stream, self._row.partitions, StreamCodec(None), None)
        try:
            writes = appending.many(frame, self._sink.key)
        except _Refused as error:
            if frame.height == 1:
                written.refused.append((frame, str(error)))
                return
            half = frame.height // 2
            self._append(frame.head(half), written, here)
            self._append(frame.slice(half), written, here)
            return
        for write in writes:
            shard = self._layout.shard(write.partition)
            if shard == self._home:
                here.append(write)
            else:
                _send(written, shard, self._home, [write])


class _Caller:
    def __init__(self, sink: CallbackSink) -> None:
        self._sink = sink

    def write(self, rows: pl.DataFrame | None, gone: pl.DataFrame | None) -> Written:  # noqa: ARG002
        """Call the function. A frame for which it raises is refused."""
        written = Written()
        if rows is not None:
            for frame in rows.iter_slices(self._sink.batch_rows):
                try:
                    self._sink.fn(frame)
                except BaseException as error:  # sys.exit() is of its frame too
                    reason = f"the function of for_each raised {one_line(error)}\n{user_traceback(error)}"
                    written.refused.append((frame, reason.strip()))
        return written


def _send(written: Written, shard: int, home: int, writes: list[Write]) -> None:
    if shard == home:
        written.writes += writes
    elif writes:
        written.outbox.append(Outgoing(shard, encode_writes(writes)))


encode_writes: Callable[[list[Write]], bytes] = msgspec.msgpack.Encoder().encode
decode_writes: Callable[[bytes], list[Write]] = msgspec.msgpack.Decoder(list[Write]).decode
