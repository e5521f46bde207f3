"""Streams, asynchronously: see ``onefold.state.streams.stream`` and ``onefold.state.streams.consumer``."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from onefold.aio.bridge import Bridge
from onefold.aio.iterators import Fed, Pulled
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
        """Append one record; its position."""
        self._check()
        return await self._bridge.call(self.sync.append, value, key, request_id)

    async def append_many(
        self, records: object, key: str | None = None, request_id: str | None = None
    ) -> Position:
        """Append many records, all or nothing."""
        self._check()
        return await self._bridge.call(self.sync.append_many, records, key, request_id)

    async def count(self) -> int:
        """How many records are kept."""
        self._check()
        return await self._bridge.call(self.sync.__len__)

    async def positions(self) -> dict[int, tuple[int, int]]:
        """(first, next) offset of each partition."""
        self._check()
        return await self._bridge.call(self.sync.positions)

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
        """What was given so far is done."""
        self._check("commit(consumer)")
        await self._bridge.call(self.sync.commit)

    async def skip(self) -> bool:
        """Pass the record that the last step could not read; whether there was one."""
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
        """Continue from ``start``, as ``AsyncStream.read`` takes it."""
        self._check()
        await self._bridge.complete(self.sync.seek, start)

    def _check(self, what: str = "") -> None:
        self._bridge.check(self.sync.client if what else None, what)

    async def aclose(self) -> None:
        """Leave the group."""
        await self._fed.aclose()
