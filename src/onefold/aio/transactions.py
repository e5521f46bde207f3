"""Transactions, asynchronously: see ``onefold.state.transaction``.

All calls of one transaction run in one thread, which holds its block; the task's own block is guarded here.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload

from onefold import config
from onefold.aio.bridge import Bridge, ended
from onefold.aio.maps import AsyncMap
from onefold.aio.queues import AsyncQueue
from onefold.arguments import check_flag
from onefold.errors import Conflict, TransactionError
from onefold.machine.undisturbed import let_pass
from onefold.state.core import guard
from onefold.state.encoding.items import Item, Version
from onefold.state.maps.in_transaction import TxMap
from onefold.state.transaction import OneValue, Transaction
from onefold.state.transactions.retries import Retries

if TYPE_CHECKING:
    from onefold.aio.available_maps import AsyncAvailableMap
    from onefold.aio.available_transactions import AsyncTxAvailableMap, AsyncTxCounters, AsyncTxSets
    from onefold.aio.counters import AsyncCounters
    from onefold.aio.sets import AsyncSets
    from onefold.aio.streams import AsyncConsumer, AsyncStream
    from onefold.state.core.client import StateClient
    from onefold.state.queues.queue import Queue
    from onefold.state.streams.stream import Stream

T = TypeVar("T")
R = TypeVar("R")
Duration = float | timedelta | str
_END: Any = object()
_UNSET: Any = object()


class AsyncTransaction:
    """One try of a serializable transaction: ``async with db.transaction() as tx``."""

    def __init__(self, bridge: Bridge, plain: Transaction) -> None:
        """Programs call ``AsyncDatabase.transaction``."""
        self._bridge = bridge
        self.sync = plain
        """The synchronous transaction. Its methods work in its own thread only."""
        self._thread: ThreadPoolExecutor | None = None
        self._block: guard.Block | None = None
        self._task: object = None

    async def __aenter__(self) -> Self:
        """The block begins. Cancelled, nothing is left of it."""
        self._bridge.check()
        block = guard.enter(self.sync.client, self)
        thread = self._bridge.hold_thread()
        entering = thread.submit(self.sync.__enter__)
        try:
            await ended(entering)
        except BaseException as error:
            guard.leave(block)
            thread.submit(_leave, self.sync, entering, error)  # in order: after what runs there still
            self._bridge.give_thread(thread)
            raise
        self._block, self._thread, self._task = block, thread, asyncio.current_task()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It commits, or is given up. A cancelled commit happens or not, and the block is over in any case."""
        thread, self._thread = self._thread, None
        if self._block is not None:
            guard.leave(self._block)
        if thread is None:
            return
        try:
            await ended(thread.submit(self.sync.__exit__, kind, error, trace))
        finally:
            self._bridge.give_thread(thread)

    async def run(self, fn: Callable[..., R], *args: Any, **options: Any) -> R:
        """Run a call of the synchronous transaction in its thread. Raises TransactionError outside of its block and task."""
        return await ended(self._own_thread().submit(partial(fn, *args, **options)))

    def check(self) -> None:
        """Raises TransactionError outside of its block and task."""
        self._own_thread()

    def _own_thread(self) -> ThreadPoolExecutor:
        if self._thread is None:
            raise TransactionError("the transaction is not open: use it inside its `async with` block")
        self._bridge.check()
        if asyncio.current_task() is not self._task:
            raise TransactionError("a transaction belongs to the task that began it; use it there")
        return self._thread

    @overload
    def map(self, name: str) -> AsyncTxMap[Any]: ...

    @overload
    def map(self, name: str, type: type[T]) -> AsyncTxMap[T]: ...

    @overload
    def map(self, name: AsyncMap[T]) -> AsyncTxMap[T]: ...

    @overload
    def map(self, name: AsyncAvailableMap[R, T]) -> AsyncTxAvailableMap[R, T]: ...

    @overload
    def map(
        self, name: str, *, mode: Literal["available"], merge: OneValue = "last_writer_wins"
    ) -> AsyncTxAvailableMap[Any, Any]: ...

    @overload
    def map(
        self, name: str, type: type[T], *, mode: Literal["available"], merge: OneValue = "last_writer_wins"
    ) -> AsyncTxAvailableMap[T, T]: ...

    @overload
    def map(
        self, name: str, *, mode: Literal["available"], merge: Literal["keep_both"]
    ) -> AsyncTxAvailableMap[list[Any], Any]: ...

    @overload
    def map(
        self, name: str, type: type[T], *, mode: Literal["available"], merge: Literal["keep_both"]
    ) -> AsyncTxAvailableMap[list[T], T]: ...

    @overload
    def map(
        self, name: str, *, mode: Literal["available"], merge: Callable[[list[Any]], R]
    ) -> AsyncTxAvailableMap[R, Any]: ...

    @overload
    def map(
        self, name: str, type: type[T], *, mode: Literal["available"], merge: Callable[[list[T]], R]
    ) -> AsyncTxAvailableMap[R, T]: ...

    def map(
        self,
        name: str | AsyncMap[Any] | AsyncAvailableMap[Any, Any],
        type: type[Any] | None = None,
        *,
        mode: Literal["consistent", "available"] | None = None,
        merge: str | Callable[[list[Any]], Any] | None = None,
    ) -> AsyncTxMap[Any] | AsyncTxAvailableMap[Any, Any]:
        """A map inside this transaction, by its name or plain handle."""

        def make() -> Any:
            plain: Any = name if isinstance(name, str) else name.sync
            tx: Any = self.sync
            return tx.map(plain, type, mode=mode, merge=merge)

        if mode == "available" or not isinstance(name, str | AsyncMap):
            from onefold.aio.available_transactions import AsyncTxAvailableMap

            return AsyncTxAvailableMap(self, make)
        return AsyncTxMap(self, make)

    def queue(self, name: str | AsyncQueue[Any]) -> AsyncTxQueue:
        """A queue inside this transaction, by its name or plain handle."""
        return AsyncTxQueue(self, name.sync if isinstance(name, AsyncQueue) else name)

    def stream(self, name: str | AsyncStream[Any]) -> AsyncTxStream:
        """A stream inside this transaction, by its name or plain handle."""
        return AsyncTxStream(self, name if isinstance(name, str) else name.sync)

    def counters(self, name: str | AsyncCounters, *, floor: int | None = None) -> AsyncTxCounters:
        """Counters for every region inside this transaction, by their name (and ``floor``) or plain handle.

        Raises:
            InvalidArgument: definite; a floor that cannot be.
        """
        from onefold.aio.available_transactions import AsyncTxCounters
        from onefold.state.available.counters import check_floor

        check_floor(floor)
        return AsyncTxCounters(self, name, floor)

    def sets(self, name: str | AsyncSets) -> AsyncTxSets:
        """Sets for every region inside this transaction, by their name or plain handle."""
        from onefold.aio.available_transactions import AsyncTxSets

        return AsyncTxSets(self, name)

    async def commit(self, consumer: AsyncConsumer[Any]) -> None:
        """Make a stream consumer's progress part of this transaction: it moves on iff the transaction commits.

        Raises:
            Conflict: definite; partitions were given to another member.
            TransactionError: definite; a consumer of another connection, or outside of the block.
        """
        await self.run(self.sync.commit, consumer.sync)

    @property
    def version(self) -> Version | None:
        """After the block: the version of what it wrote."""
        return self.sync.version

    @property
    def increments(self) -> Mapping[Any, int | float]:
        """After the block: the new values of what was incremented."""
        return self.sync.increments


class AsyncTxMap(Generic[T]):
    """A map in a transaction; see ``onefold.state.maps.in_transaction``."""

    def __init__(self, tx: AsyncTransaction, make: Callable[[], TxMap[T]]) -> None:
        self._tx = tx
        self._make = make
        self._made: TxMap[T] | None = None

    async def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return await self._tx.run(lambda: getattr(self._plain(), name)(*args, **options))

    def _plain(self) -> TxMap[T]:
        """The synchronous one; in the transaction's thread."""
        if self._made is None:
            self._made = self._make()
        return self._made

    async def get(self, key: Any, default: Any = None) -> Any:
        """The value, or ``default``."""
        return await self._call("get", key, default)

    async def get_item(self, key: Any) -> Item[T] | None:
        """The value with its version and end."""
        found: Item[T] | None = await self._call("get_item", key)
        return found

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, T]:
        """The values of those that are there."""
        found: dict[Any, T] = await self._call("get_many", keys)
        return found

    async def contains(self, key: Any) -> bool:
        """Whether the key is there."""
        return bool(await self._call("__contains__", key))

    async def count(self, prefix: Any = None) -> int:
        """How many keys there are, or of those that begin with a prefix. The transaction then depends on all of them."""
        return int(await self._call("count", prefix))

    async def put(
        self,
        key: Any,
        value: T,
        *,
        ttl: Duration | None = None,
        if_version: Version | str | None = None,
        if_absent: bool = False,
    ) -> None:
        """Set a key."""
        await self._call("put", key, value, ttl=ttl, if_version=if_version, if_absent=if_absent)

    async def put_many(
        self, items: Mapping[Any, T] | Iterable[tuple[Any, T]], *, ttl: Duration | None = None
    ) -> None:
        """Set several keys."""
        await self._call("put_many", items, ttl=ttl)

    async def update(self, other: Any = (), /, **more: T) -> None:
        """As of a dict."""
        await self._call("update", other, **more)

    async def delete(self, key: Any, *, if_version: Version | str | None = None) -> bool:
        """Remove a key; whether it was there."""
        return bool(await self._call("delete", key, if_version=if_version))

    async def pop(self, key: Any, default: Any = _UNSET) -> Any:
        """Remove a key and return its value. Raises KeyError without a ``default``."""
        return await self._call("pop", key, *(() if default is _UNSET else (default,)))

    async def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, set first if it is not there."""
        return await self._call("setdefault", key, default)

    async def modify(
        self, key: Any, fn: Callable[[Any], T], default: Any = None, *, ttl: Duration | None = None
    ) -> Any:
        """Replace the value by ``fn(value)``; the new value."""
        return await self._call("modify", key, fn, default, ttl=ttl)

    async def increment(self, key: Any, by: float = 1, *, ttl: Duration | None = None) -> None:
        """Add to a number, blindly."""
        await self._call("increment", key, by, ttl=ttl)

    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
    ) -> TxScan[tuple[Any, T]]:
        """(key, value) in key order, for ``async for``: see ``TxMap.scan``."""
        check_flag("reverse", reverse)
        return TxScan(
            self._tx,
            lambda: self._plain().scan(prefix=prefix, start=start, stop=stop, limit=limit, reverse=reverse),
        )

    def items(self) -> TxScan[tuple[Any, T]]:
        """Everything, in key order."""
        return self.scan()


def _leave(plain: Transaction, entering: Future[Any], error: BaseException) -> None:
    """End the block of a transaction whose entering was cancelled, in its thread."""
    if entering.exception() is None:
        plain.__exit__(type(error), error, None)


class TxScan(Generic[T]):
    """A scan in a transaction, one item at a time: it depends only on what was taken, and on what a cancelled step had found,
    which the next one gives."""

    def __init__(self, tx: AsyncTransaction, begin: Callable[[], Iterator[T]]) -> None:
        self._tx = tx
        self._begin = begin
        self._iterator: Iterator[T] | None = None
        self._ahead: list[Any] = []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._tx.check()
        if not self._ahead:
            await self._tx.run(self._look)
        found = self._ahead[0]
        if found is _END:
            raise StopAsyncIteration
        del self._ahead[0]
        item: T = found
        return item

    def _look(self) -> None:
        if self._ahead:
            return  # a cancelled step's
        if self._iterator is None:
            self._iterator = self._begin()
        self._ahead.append(next(self._iterator, _END))


class AsyncTxQueue:
    """A queue in a transaction."""

    def __init__(self, tx: AsyncTransaction, name: str | Queue[Any]) -> None:
        self._tx = tx
        self._name = name

    async def put(self, value: object, *, key: object = None, delay: Duration | None = None) -> None:
        """Put a message when the transaction commits."""
        await self._tx.run(lambda: self._tx.sync.queue(self._name).put(value, key=key, delay=delay))


class AsyncTxStream:
    """A stream in a transaction."""

    def __init__(self, tx: AsyncTransaction, name: str | Stream[Any]) -> None:
        self._tx = tx
        self._name = name

    async def append(self, value: object, key: object = None) -> None:
        """Append a record when the transaction commits."""
        await self._tx.run(lambda: self._tx.sync.stream(self._name).append(value, key))

    async def append_many(self, records: object, key: str | None = None) -> None:
        """Append records when the transaction commits."""
        await self._tx.run(lambda: self._tx.sync.stream(self._name).append_many(records, key))


async def run_transaction(
    bridge: Bridge,
    client: StateClient,
    fn: Callable[[AsyncTransaction], Awaitable[R]],
    *,
    attempts: int = config.TRANSACTION_ATTEMPTS,
    request_id: str | None = None,
    read_only: bool = False,
) -> R:
    """See ``AsyncDatabase.run_transaction``."""
    retries = Retries(client, attempts, request_id)
    while True:
        last = retries.begin()
        plain = Transaction(client, request_id=request_id, read_only=read_only, last_try=last)
        try:
            async with AsyncTransaction(bridge, plain) as tx:
                result = fn(tx)
                if not inspect.isawaitable(result):
                    raise TransactionError(
                        "run_transaction takes an async function here; this one returned no awaitable"
                    )
                return_value = await result
        except Conflict as error:
            let_pass(error)
            if retries.ended_by(error):
                raise
            if request_id is not None:
                await bridge.call(retries.check_request, error, plain.kept)
        else:
            return return_value
        await asyncio.sleep(retries.pause_s())
