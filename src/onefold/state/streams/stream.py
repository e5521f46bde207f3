"""Streams: durable, partitioned, ordered within each partition.

A stream is what the fold keeps of what was appended: contiguous offsets from 0 in each partition, and the fold time of each
append. How long it is kept (``retention``) has nothing to do with the trimming of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from onefold import config
from onefold.arguments import check_flag, check_whole, shown
from onefold.durations import Duration, seconds, wait_seconds
from onefold.errors import Conflict, InvalidArgument
from onefold.state.core import guard
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Consistency, Level, parse_level
from onefold.state.core.outcomes import outcome
from onefold.state.core.time_limits import limited, one_call
from onefold.state.encoding.names import check_request_id
from onefold.state.encoding.positions import Position
from onefold.state.fold.streams.ops import Append
from onefold.state.fold.streams.rows import Head, StreamRow
from onefold.state.streams import batches as stream_batches
from onefold.state.streams import large_frames
from onefold.state.streams.appending import Appending, StreamCodec
from onefold.state.streams.in_transaction import TxStream
from onefold.state.streams.layout import Layout
from onefold.state.streams.reading import Reader, Start, check_start, start_offsets

if TYPE_CHECKING:
    import polars as pl

    from onefold.state.fold.kinds import Write
    from onefold.state.streams.consumer import Consumer

T = TypeVar("T")


class Stream(Generic[T]):
    """A durable stream of records. Thread-safe.

    It is made by the first append, ``create`` or ``consumer``; before, it reads as empty. Its number of partitions is fixed
    then: asking for another one raises InvalidArgument wherever the stream is used. A record with a key goes to the
    partition of that key, CRC32C(encoded key) modulo the number of partitions, however it is appended; one without to any.
    """

    def __init__(
        self,
        client: StateClient,
        name: str,
        *,
        partitions: int | None = None,
        type: type[T] | None = None,
        retention: Duration | None = None,
    ) -> None:
        """Programs call ``db.stream``. Raises InvalidArgument."""
        self._layout = Layout(client, name, partitions)
        self._codec = StreamCodec(type)
        self._retention_ms = None if retention is None else _retention_ms(retention)
        self._row: StreamRow | None = None

    @property
    def client(self) -> StateClient:
        """The database that it belongs to."""
        return self._layout.client

    @property
    def name(self) -> str:
        """What it is called."""
        return self._layout.name

    @property
    def layout(self) -> Layout:
        """Where its partitions live."""
        return self._layout

    @property
    def codec(self) -> StreamCodec:
        """What encodes and decodes its values."""
        return self._codec

    @property
    def partitions(self) -> int:
        """How many partitions it has; before it is made: will have."""
        row = self._layout.find()
        return (self._layout.wanted or 1) if row is None else row.partitions

    @property
    def wanted_retention_ms(self) -> int | None:
        """The retention that this handle gives the stream, in milliseconds; None: it leaves it as it is."""
        return self._retention_ms

    @property
    def retention(self) -> float | None:
        """How many seconds records are kept; None: for ever."""
        row = self._layout.find()
        found = self._retention_ms if row is None else row.retention_ms
        return None if found is None else found / 1000

    @one_call
    def create(self) -> None:
        """Make the stream now unless it is there, and set its retention if this handle has one.

        Raises:
            InvalidArgument: definite; an argument is not valid.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check("create")
        self._made()

    @one_call
    def set_retention(self, retention: Duration | None) -> None:
        """Keep records for this long (fold time) from now on; None: for ever. Older ones go with the next append or read.

        Records that were appended within about a second of each other go together. Makes the stream if it is not there.
        """
        self._check("set_retention")
        self._retention_ms = None if retention is None else _retention_ms(retention)
        self._row = self._layout.set_retention(self._retention_ms)

    # -- writing

    def append(self, value: T, key: object = None, request_id: str | None = None) -> Position:
        """Append one record; reading from the position that is returned gives it and what came after it (from other
        partitions also what has its millisecond).

        ``value``: whatever a map's value may be. ``key``: what a map's key may be; records of one key stay in order. With a
        ``request_id`` it happens once, however often it is tried with the same arguments.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check("append")
        check_request_id(request_id)
        if self._row is not None and self.client.shard_count == 1:
            return self._append(value, key, request_id)  # one operation, with a deadline of its own
        with limited(self.client):
            return self._append(value, key, request_id)

    def _append(self, value: T, key: object, request_id: str | None) -> Position:
        writes, row = self._prepared(lambda appending: [appending.one(value, key)], request_id)
        return self._commit(writes, row, request_id)

    @one_call
    def append_many(self, records: object, key: str | None = None, request_id: str | None = None) -> Position:
        """Append many records, all or nothing; the position returned is that of the first of them in each partition they
        went to. Over several shards it is the earliest one where a shard no longer remembers a repeated request, or has not
        heard yet that the append is committed.

        ``records``: a list of values, or a Polars DataFrame or pyarrow Table, whose rows are read back as dicts. Frames are split
        by the key column and stored as Arrow, never row by row (in a typed stream each row is looked at). ``key``: the name
        of the column or field that is the key; a null is not a key. Records stay in order within each partition; those without
        key go to partitions in pieces of up to ``config.STREAM_FRAME_BYTES_MAX``. A piece over ``config.STREAM_BLOB_BYTES_MIN``
        may be kept as a blob, which is durable before the append.

        Raises:
            InvalidArgument: definite; a LazyFrame, no such column.
            InvalidKey, InvalidValue: definite; a key or a value is not valid.
            TooLarge: definite; over ``config.TRANSACTION_BYTES_MAX`` together.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check("append_many")
        check_request_id(request_id)
        if isinstance(records, Iterator):
            records = list(records)  # they may be needed twice
        writes, row = self._prepared(lambda appending: appending.many(records, key), request_id)
        if not writes:
            heads, _ = self._layout.heads(range(row.partitions))
            return Position(self._layout.tag, {partition: head.next for partition, head in heads.items()})
        return self._commit(writes, row, request_id)

    # -- reading

    def read(
        self,
        start: Start = "earliest",
        *,
        follow: bool = False,
        partitions: int | Collection[int] | None = None,
        consistency: Consistency | None = None,
        timeout: Duration | None = None,
    ) -> Reader[T]:
        """The records from ``start`` on, in order of offset within each partition, and of (time, partition, offset) over
        partitions as far as they are there.

        ``start``: ``"earliest"``, ``"latest"`` (what comes after this call), a Position or its text, or a datetime (naive: local
        time; the first records of that time or later). Without ``follow`` it ends where the stream ended at the call; with it,
        it waits for more, for ever or until nothing came for ``timeout``. ``partitions``: read only these.

        Raises:
            TooOld: definite, now or while reading; retention has removed what a position names.
            InvalidValue: definite, while reading; a record cannot be read. The iterator can be continued behind it.
            InvalidArgument: definite; an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check("read")
        check_flag("follow", follow)
        wanted = _check_wanted(partitions)
        level = None if consistency is None else parse_level(consistency)
        wait_s = None if timeout is None else wait_seconds(timeout)
        start = check_start(start)
        at = self._opened(start, wanted, level)
        if follow:
            waiting = _Opening(self, start, wanted, at)
            return Reader(self._layout, self._codec, waiting, stops=None, timeout=wait_s)
        heads = at[1] if at is not None else {}
        stops = {partition: head.next for partition, head in heads.items()}
        return Reader(
            self._layout, self._codec, lambda: at[0] if at is not None else {}, stops=stops, timeout=wait_s
        )

    def read_frames(
        self,
        start: Start = "earliest",
        *,
        partitions: int | Collection[int] | None = None,
        consistency: Consistency | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The records from ``start`` up to the present end as frames, each of one partition, partition by partition.

        The columns are those of the values (a value that is not a dict: ``value``), and ``_partition``, ``_offset``, ``_time``
        (UTC) and ``_key`` (as text). What was appended as a frame comes back without a step for each row; its columns may differ
        from frame to frame.

        Raises:
            TooOld: definite, now or while reading; retention has removed what a position names.
            InvalidArgument: definite; an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check("read_frames")
        wanted = _check_wanted(partitions)
        level = None if consistency is None else parse_level(consistency)
        at = self._opened(check_start(start), wanted, level)
        if at is None:
            return iter(())
        spans = {partition: (at[0][partition], head.next) for partition, head in at[1].items()}
        return stream_batches.frames(self._layout, spans)

    def to_polars(
        self,
        start: Start = "earliest",
        *,
        partitions: int | Collection[int] | None = None,
        consistency: Consistency | None = None,
    ) -> pl.DataFrame:
        """What ``read_frames`` gives, in one frame; a column that some records do not have is null there.

        A column whose types differ gets one that holds all its values as they are: whole numbers a wider one, numbers next to
        floats a float.

        Raises:
            InvalidValue: definite; no type holds all the values of a column.
            TooOld: definite; retention has removed what a position names.
            InvalidArgument: definite; an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return stream_batches.together(
            self.name, self.read_frames(start, partitions=partitions, consistency=consistency)
        )

    def positions(self, consistency: Consistency | None = None) -> dict[int, tuple[int, int]]:
        """(first offset that is kept, next offset to be given) of each partition.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check("positions")
        level = None if consistency is None else parse_level(consistency)
        row = self._layout.find(level)
        if row is None:
            return dict.fromkeys(range(self._layout.wanted or 1), (0, 0))
        heads = self._layout.kept(row, range(row.partitions), level)
        return {partition: (head.first, head.next) for partition, head in sorted(heads.items())}

    def __len__(self) -> int:
        """How many records are kept."""
        return sum(end - first for first, end in self.positions().values())

    def __bool__(self) -> bool:
        """True: a handle, not a container that may be empty."""
        return True

    def consumer(
        self, group: str, start: Literal["earliest", "latest"] = "earliest", timeout: Duration | None = None
    ) -> Consumer[T]:
        """A member of a consumer group: an iterator of the records of its share of the partitions, with ``.commit()``.

        The members of one group, also in other processes, share the partitions among them. ``start``: where a group begins
        that is new. ``timeout``: iteration ends after so long without a record (default: never). Close it, or use it as a
        context manager.

        Raises:
            InvalidArgument: definite; an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        from onefold.state.streams.consumer import Consumer

        self._check("consumer")
        return Consumer(self, group, start=start, timeout=timeout)

    def __repr__(self) -> str:
        return f"<Stream {self.name!r}>"

    # -- inside

    def _check(self, what: str) -> None:
        guard.check_plain(self.client, f"stream({self.name!r}).{what}")

    def _made(self) -> StreamRow:
        """The stream, made if it is not there, with this handle's retention."""
        if self._row is None:
            row = self._layout.make(retention_ms=self._retention_ms)
            if self._retention_ms is not None and row.retention_ms != self._retention_ms:
                row = self._layout.set_retention(self._retention_ms)
            self._row = row
        return self._row

    def _prepared(
        self, encode: Callable[[Appending], list[Append]], request_id: str | None
    ) -> tuple[list[Append], StreamRow]:
        """What is to be appended, and the stream. It is made after all has been encoded: what is refused leaves nothing."""
        row = self._row or self._layout.known()
        count = (self._layout.wanted or 1) if row is None else row.partitions
        writes = encode(Appending(self.client, self.name, count, self._codec, request_id))
        if row is None and request_id is not None:
            self._check_request(request_id)
        row = self._made()
        if row.partitions != count:  # another program has made it meanwhile
            writes = encode(Appending(self.client, self.name, row.partitions, self._codec, request_id))
        return writes, row

    def _check_request(self, request_id: str) -> None:
        """Raises Conflict, before the stream is made, when the request was something else, or was rejected."""
        if self._layout.find() is not None:
            return
        kept = outcome(self.client, request_id)
        # Looked for again: an append under this request may have made it in between.
        if kept is not None and self._layout.find() is None:
            raise self._other_request(request_id, kept)

    def _other_request(self, request_id: str, kept: str = "committed") -> Conflict:
        return Conflict(
            f"the request {request_id!r} was {kept} before and was no append to {self.name!r}; nothing was appended. "
            "Use another request_id"
        )

    def _commit(self, writes: Sequence[Append], row: StreamRow, request_id: str | None) -> Position:
        parts: dict[int, list[Write]] = {}
        for write in writes:
            parts.setdefault(self._layout.shard(write.partition), []).append(write)
        for shard in parts:
            self._layout.copy_to(shard, row)
        with large_frames.stored(self.client, parts) as stored:
            results = self._results(stored.parts, request_id)
        if request_id is not None:
            stored.drop_unnamed()
        offsets: dict[int, int] = {}
        for partition, base, _ in results:
            offsets[partition] = min(base, offsets.get(partition, base))
        # Where the others stand is not known: the other partitions are read from their beginning.
        since_ms = min(time_ms for _, _, time_ms in results) if len(results) == len(writes) else None
        return Position(self._layout.tag, offsets, since_ms)

    def _results(
        self, parts: Mapping[int, Sequence[Write]], request_id: str | None
    ) -> list[tuple[int, int, int]]:
        """(partition, offset, fold time in ms) of each write, of those for which that is known. It is not where a shard has not
        heard yet that they are committed, nor where an append under the same request id is no longer remembered. Raises Conflict
        when that was no append."""
        if len(parts) == 1:
            ((shard, writes),) = parts.items()
            done = {shard: self.client.commit(shard, tuple(writes), request_id=request_id)}
        else:
            from onefold.state.transactions.attempt import Earlier
            from onefold.state.transactions.over_shards import ShardPart, commit_over_shards

            done = commit_over_shards(
                self.client,
                {
                    shard: ShardPart(reads=(), spans=(), writes=tuple(writes))
                    for shard, writes in parts.items()
                },
                request_id,
            )
            if not isinstance(done, Earlier):
                # None: its shard has not heard of it yet.
                return [one for committed in done.values() for one in committed.results if one is not None]
        found = [result for committed in done.values() for result in committed.results]
        if not all(isinstance(one, list | tuple) and len(one) == 3 for one in found):
            raise self._other_request(str(request_id))
        return found

    def _opened(
        self, start: Start, wanted: list[int] | None, level: Level | None
    ) -> tuple[dict[int, int], dict[int, Head]] | None:
        """Where reading starts, and the partitions' heads; None when the stream is not there yet."""
        row = self._layout.find(level)
        if row is None:
            if not isinstance(start, datetime) and start not in ("earliest", "latest"):
                Position.of(start, self._layout.tag, config.STREAM_PARTITIONS_MAX)
            return None
        chosen = range(row.partitions) if wanted is None else wanted
        for partition in chosen:
            if partition >= row.partitions:
                raise InvalidArgument(
                    f"partition {partition} does not exist: the stream {self.name!r} has {row.partitions}, from 0"
                )
        heads = self._layout.kept(row, chosen, level)
        whole = self.client.always_strong or (level or self.client.level).kind == "strong"
        return start_offsets(self._layout, start, heads, row.partitions, whole=whole), heads


class _Opening:
    """Where a reader that follows starts: at once, or once the stream is there."""

    def __init__(
        self,
        stream: Stream[Any],
        start: Start,
        wanted: list[int] | None,
        at: tuple[dict[int, int], dict[int, Head]] | None,
    ) -> None:
        self._stream = stream
        # A stream that was not there at the call has nothing before it.
        self._start = "earliest" if start == "latest" else start
        self._wanted = wanted
        self._at = at

    def __call__(self) -> Mapping[int, int] | None:
        if self._at is None:
            self._at = self._stream._opened(self._start, self._wanted, None)
        return None if self._at is None else self._at[0]


def _retention_ms(retention: Duration) -> int:
    found = seconds(retention, "retention")
    if found <= 0:
        raise InvalidArgument(f"retention must be longer than nothing; got {shown(retention)}")
    return min(max(1, round(found * 1000)), 1 << 50)


def _check_wanted(partitions: int | Collection[int] | None) -> list[int] | None:
    if partitions is None:
        return None
    given = [partitions] if isinstance(partitions, int) else partitions
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Collection):
        raise InvalidArgument(f"partitions must be a number or a list of numbers; got {shown(partitions)}")
    for partition in given:
        check_whole("a partition", partition, least=0, most=config.STREAM_PARTITIONS_MAX - 1)
    return sorted(set(given))


__all__ = ["Stream", "TxStream"]
