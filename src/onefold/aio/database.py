"""Connecting, asynchronously."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Generator
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

from onefold import config
from onefold.aio import transactions
from onefold.aio.bridge import Bridge
from onefold.aio.database_maps import AsyncDatabaseMaps
from onefold.aio.jobs import AsyncRun, AsyncTable
from onefold.aio.queues import AsyncLock, AsyncQueue
from onefold.aio.regions import AsyncRegions
from onefold.aio.streams import AsyncStream
from onefold.aio.transactions import AsyncTransaction
from onefold.database.sources import StreamSources
from onefold.db import Database
from onefold.db import connect as connect_plain
from onefold.durations import wait_seconds
from onefold.errors import SpaceError
from onefold.state.core.tokens import Session
from onefold.state.transaction import Transaction

if TYPE_CHECKING:
    from onefold.compute.dataset import Dataset
    from onefold.compute.engine import Engine
    from onefold.compute.live_dataset import LiveDataset
    from onefold.compute.live_starting import LiveHost
    from onefold.state.encoding.positions import Position

T = TypeVar("T")
R = TypeVar("R")
Duration = float | timedelta | str


def connect(url: str | os.PathLike[str] | None = None, **options: Any) -> AsyncDatabase:
    """Open a space: ``async with of.aio.connect(path) as db``, or ``db = await of.aio.connect(path)``.

    Arguments and errors as ``onefold.connect``; the space is opened when the block begins.
    """
    return AsyncDatabase(lambda: connect_plain(url, **options))


class AsyncDatabase(AsyncDatabaseMaps, StreamSources, AsyncRegions):
    """An open space, for one event loop. Close it, or use it in ``async with``."""

    def __init__(self, connect: Callable[[], Database]) -> None:
        """Programs call ``onefold.aio.connect``."""
        self._connect = connect
        self._plain: Database | None = None
        self._bridge_made: Bridge | None = None

    async def _open(self) -> Self:
        if self._plain is None:
            bridge = Bridge()
            plain = await bridge.obtain(bridge.submit(self._connect), lambda opened: opened.close())
            if self._plain is None:
                self._bridge_made, self._plain = bridge, plain
            else:  # another task was faster
                await bridge.close(plain.close)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Release the space."""
        if self._plain is not None:
            await self._bridge.close(self._plain.close)

    def __repr__(self) -> str:
        return f"<AsyncDatabase {self._plain.url if self._plain is not None else '(not open)'}>"

    @property
    def sync(self) -> Database:
        """The synchronous database, for what has no asynchronous form. Its calls block. (``Database.sync`` is ``sync_regions``
        here.)"""
        if self._plain is None:
            raise SpaceError("this connection is not open yet: async with onefold.aio.connect(...) as db")
        return self._plain

    @property
    def _bridge(self) -> Bridge:
        if self._bridge_made is None:
            raise SpaceError("this connection is not open yet: async with onefold.aio.connect(...) as db")
        return self._bridge_made

    @property
    def url(self) -> str:
        """As it can be opened again."""
        return self.sync.url

    @property
    def session(self) -> Session:
        """What this connection has seen; ``session.token`` is text that another process can continue with."""
        return self.sync.session

    @overload
    def queue(
        self, name: str, *, lease: Duration = "30s", max_attempts: int = 5, dead_letter: str | None = None
    ) -> AsyncQueue[Any]: ...

    @overload
    def queue(
        self,
        name: str,
        *,
        type: type[T],
        lease: Duration = "30s",
        max_attempts: int = 5,
        dead_letter: str | None = None,
    ) -> AsyncQueue[T]: ...

    def queue(
        self,
        name: str,
        *,
        type: type[Any] | None = None,
        lease: Duration = "30s",
        max_attempts: int = 5,
        dead_letter: str | None = None,
    ) -> AsyncQueue[Any]:
        """A durable queue; see ``Database.queue``."""
        options: dict[str, Any] = {"lease": lease, "max_attempts": max_attempts, "dead_letter": dead_letter}
        if type is None:
            return AsyncQueue(self._bridge, self.sync.queue(name, **options))
        return AsyncQueue(self._bridge, self.sync.queue(name, type=type, **options))

    def lock(self, name: str, *, ttl: Duration = "30s", timeout: Duration | None = None) -> AsyncLock:
        """A lock; see ``Database.lock``."""
        timeout_s = None if timeout is None else wait_seconds(timeout)
        return AsyncLock(self._bridge, self.sync._state, self.sync.lock(name, ttl=ttl), timeout_s)

    def stream(
        self,
        name: str,
        *,
        partitions: int | None = None,
        type: type[Any] | None = None,
        retention: Duration | None = None,
    ) -> AsyncStream[Any]:
        """A durable stream; see ``Database.stream``."""
        return AsyncStream(
            self._bridge, self.sync.stream(name, partitions=partitions, type=type, retention=retention)
        )

    def transaction(self, request_id: str | None = None, *, read_only: bool = False) -> AsyncTransaction:
        """One try of a transaction: ``async with db.transaction() as tx``; see ``Database.transaction``."""
        plain = Transaction(self.sync._state, request_id=request_id, read_only=read_only)
        return AsyncTransaction(self._bridge, plain)

    async def run_transaction(
        self,
        fn: Callable[[AsyncTransaction], Awaitable[R]],
        *,
        attempts: int = config.TRANSACTION_ATTEMPTS,
        request_id: str | None = None,
        read_only: bool = False,
    ) -> R:
        """Run ``await fn(tx)`` in a transaction, again when it loses; see ``Database.run_transaction``."""
        return await transactions.run_transaction(
            self._bridge,
            self.sync._state,
            fn,
            attempts=attempts,
            request_id=request_id,
            read_only=read_only,
        )

    # -- jobs

    @property
    def _engine(self) -> Engine:
        return self.sync._engine

    def _check_process(self) -> None:
        self.sync._check_process()

    def _live_starter(self) -> LiveHost:
        return self.sync._live_starter()

    def concat(self, history: Dataset, live: LiveDataset, *, at: datetime | Position) -> LiveDataset:
        """One plan over history and live; see ``Database.concat``. Nothing is read yet."""
        return self.sync.concat(history, live, at=at)

    async def start(self, job: Any, **options: Any) -> AsyncRun:
        """Begin a prepared job (``dataset.into(...)``), batch or live: ``job.start(**options)``. Raises as that."""
        self._bridge.check()
        return AsyncRun(self._bridge, await self._bridge.complete(job.start, **options))

    async def replay(self, job: Any, **options: Any) -> AsyncRun:
        """Compute a live job again into a hidden table: ``job.replay(**options)``. Raises as that."""
        self._bridge.check()
        return AsyncRun(self._bridge, await self._bridge.complete(job.replay, **options))

    def table(self, name: str) -> AsyncTable:
        """A table by its name; see ``Database.table``. Its methods raise InvalidArgument when there is none."""
        return AsyncTable(self._bridge, self.sync, name)

    async def tables(self) -> list[AsyncTable]:
        """All tables, by name."""
        self._bridge.check()
        found = await self._bridge.call(self.sync.tables)
        return [AsyncTable(self._bridge, self.sync, table.name) for table in found]

    async def runs(self, state: Any = None, table: str | None = None) -> list[AsyncRun]:
        """The runs of this space, newest first; see ``Database.runs``."""
        self._bridge.check()
        return [AsyncRun(self._bridge, run) for run in await self._bridge.call(self.sync.runs, state, table)]

    async def open_run(self, id: str) -> AsyncRun:
        """A run by its id, or a live job by its name; see ``Database.open_run``. Raises InvalidArgument."""
        self._bridge.check()
        return AsyncRun(self._bridge, await self._bridge.call(self.sync.open_run, id))

    async def drop(self, name: str) -> bool:
        """Remove a table; see ``Database.drop``. Raises Conflict."""
        self._bridge.check()
        return await self._bridge.complete(self.sync.drop, name)

    async def outcome(self, request_id: str) -> Literal["committed", "rejected"] | None:
        """What became of a write whose answer was lost."""
        self._bridge.check()
        return await self._bridge.call(self.sync.outcome, request_id)

    async def at(self, when: datetime | str) -> AsyncDatabase:
        """The database as it was, for reading. Close it, or use it in ``async with``."""
        self._bridge.check()
        past = AsyncDatabase(lambda: self.sync.at(when))
        return await past
