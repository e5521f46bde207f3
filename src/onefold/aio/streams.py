"""Streams, asynchronously: see ``onefold.state.streams`` and ``consumers``."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from onefold.aio.bridge import Bridge, Pulled
from onefold.state.consistency import Consistency
from onefold.state.consumers import Consumer
from onefold.state.positions import Position
from onefold.state.stream_reading import StreamRecord
from onefold.state.streams import Stream

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
    ) -> Pulled[StreamRecord[T]]:
        """The records, for ``async for``. ``"latest"`` is where the first step or the ``async with`` is."""
        self._check()
        return Pulled(
            self._bridge,
            lambda: self.sync.read(
                start, follow=follow, partitions=partitions, consistency=consistency, timeout=timeout
            ),
            waits=follow,
            close=lambda reader: reader.close(),
        )

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
        self._make = lambda: stream.consumer(group, start, timeout)
        self._made: Consumer[T] | None = None
        self._pulled: Pulled[StreamRecord[T]] | None = None

    @property
    def sync(self) -> Consumer[T]:
        """The synchronous consumer, once it is open."""
        if self._made is None:
            raise RuntimeError("open it first: async with stream.consumer(...) as consumer")
        return self._made

    async def _open(self) -> Pulled[StreamRecord[T]]:
        self._bridge.check()
        if self._pulled is None:
            made = self._made = await self._bridge.call(self._make)
            self._pulled = Pulled(self._bridge, lambda: iter(made), waits=True)
        return self._pulled

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamRecord[T]:
        return await (await self._open()).__anext__()

    async def commit(self) -> None:
        """What was given so far is done."""
        await self._bridge.call(self.sync.commit)

    async def aclose(self) -> None:
        """Leave the group."""
        if self._made is not None:
            await self._bridge.call(self._made.close)
