"""Streams, asynchronously: see ``onefold.state.streams.stream`` and ``onefold.state.streams.consumer``."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from onefold.aio.bridge import Bridge
from onefold.aio.iterators import Fed, Pulled
from onefold.arguments import check_flag
from onefold.errors import InvalidArgument
from onefold.state.core.consistency import Consistency
from onefold.state.encoding.positions import Position
from onefold.state.streams.consumer import Consumer
from onefold.state.streams.reading import Reader, Start, StreamRecord
from onefold.state.streams.stream import Stream

T = TypeVar("T")
Duration = float | timedelta | str


class AsyncStream(Generic[T]):
    """A durable stream."""

    def __init__(self, bridge: Bridge, plain: Stream[T]) -> None:
        """Programs call ``AsyncDatabase.stream``."""
        self._bridge = bridge
        self.sync = plain
        """The synchronous handle of the same stream."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.sync.name

    def __repr__(self) -> str:
        return f"<AsyncStream {self.name!r}>"

    def _check(self) -> None:
        self._bridge.check(self.sync.client, f"stream({self.name!r})")

    async def append(self, value: T, key: object = None, request_id: str | None = None) -> Position:
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
        self._check()
        return await self._bridge.call(self.sync.append, value, key, request_id)

    async def append_many(
        self, records: object, key: str | None = None, request_id: str | None = None
    ) -> Position:
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
        self._check()
        return await self._bridge.call(self.sync.append_many, records, key, request_id)

    async def count(self) -> int:
        """How many records are kept."""
        self._check()
        return await self._bridge.call(self.sync.__len__)

    async def positions(self, consistency: Consistency | None = None) -> dict[int, tuple[int, int]]:
        """(first offset that is kept, next offset to be given) of each partition.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check()
        return await self._bridge.call(self.sync.positions, consistency)

    def read(
        self,
        start: Any = "earliest",
        *,
        follow: bool = False,
        partitions: int | Collection[int] | None = None,
        consistency: Consistency | None = None,
        timeout: Duration | None = None,
    ) -> Pulled[StreamRecord[T]] | Fed[StreamRecord[T]]:
        """The records, for ``async for``. ``"latest"`` is where the first step or the ``async with`` is."""
        self._check()
        check_flag("follow", follow)

        def source() -> Reader[T]:
            return self.sync.read(
                start, follow=follow, partitions=partitions, consistency=consistency, timeout=timeout
            )

        return Fed(self._bridge, source) if follow else Pulled(self._bridge, source)

    def consumer(
        self, group: str, start: Literal["earliest", "latest"] = "earliest", timeout: Duration | None = None
    ) -> AsyncConsumer[T]:
        """A member of a consumer group, for ``async with`` and ``async for``."""
        self._check()
        return AsyncConsumer(self._bridge, self.sync, group, start, timeout)


class AsyncConsumer(Generic[T]):
    """A member of a consumer group. Records come one by one; ``commit`` makes the progress durable."""

    def __init__(
        self,
        bridge: Bridge,
        stream: Stream[T],
        group: str,
        start: Literal["earliest", "latest"],
        timeout: Duration | None,
    ) -> None:
        self._bridge = bridge
        self._fed: Fed[StreamRecord[T]] = Fed(
            bridge, lambda: stream.consumer(group, start, timeout), holds=True
        )

    @property
    def sync(self) -> Consumer[T]:
        """The synchronous consumer, once it is open."""
        found = self._fed.feed
        if not isinstance(found, Consumer):
            raise InvalidArgument("open it first: async with stream.consumer(...) as consumer")
        return found

    async def __aenter__(self) -> Self:
        """Join the group. Cancelled, it is not a member."""
        await self._fed.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamRecord[T]:
        if isinstance(self._fed.feed, Consumer):
            self._fed.feed.check_settled()
        return await self._fed.__anext__()

    async def commit(self) -> None:
        """Commit the offsets of all that was given.

        Raises:
            Conflict: definite; partitions were given to another member meanwhile.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._check("commit(consumer)")
        await self._bridge.call(self.sync.commit)

    async def skip(self) -> bool:
        """Pass the record that the last step could not read, or all of a lost blob: they count as given, and the next commit
        covers them. False when there is none."""
        self._check()
        return await self._bridge.complete(self.sync.skip)

    async def rewind(self) -> None:
        """Forget what was given and not committed: iteration continues after what was committed last. Not open yet, it has given
        nothing, and this does nothing."""
        self._check()
        if self._fed.feed is None:
            return
        await self._bridge.complete(self.sync.rewind)

    async def seek(self, start: Start) -> None:
        """Continue from ``start`` (as ``Stream.read`` takes it) in this member's partitions, with the next record.

        Raises:
            TooOld: definite; retention has removed what the position names.
            InvalidArgument: definite; an argument is not valid.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        self._check()
        await self._bridge.complete(self.sync.seek, start)

    def _check(self, what: str = "") -> None:
        self._bridge.check(self.sync.client if what else None, what)

    async def aclose(self) -> None:
        """Leave the group."""
        await self._fed.aclose()
