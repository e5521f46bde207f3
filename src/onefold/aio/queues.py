"""Queues and locks, asynchronously: see ``onefold.state.queues.queue`` and ``onefold.state.locks.lock``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from onefold.aio.bridge import Bridge, kept
from onefold.arguments import check_flag
from onefold.durations import wait_seconds
from onefold.errors import InvalidArgument, OnefoldError
from onefold.machine.undisturbed import if_possible, is_interrupt
from onefold.state.core.cancelling import Gate
from onefold.state.core.client import StateClient
from onefold.state.core.leases import keeper
from onefold.state.locks.lock import Lock
from onefold.state.queues.messages import Message
from onefold.state.queues.queue import DeadLetter, Queue, QueueCounts

T = TypeVar("T")
R = TypeVar("R")
Duration = float | timedelta | str


class AsyncQueue(Generic[T]):
    """A durable queue."""

    def __init__(self, bridge: Bridge, plain: Queue[T]) -> None:
        """Programs call ``AsyncDatabase.queue``."""
        self._bridge = bridge
        self.sync = plain
        """The synchronous handle of the same queue."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.sync.name

    def __repr__(self) -> str:
        return f"<AsyncQueue {self.name!r}>"

    async def _call(self, fn: Callable[..., R], *args: Any, **options: Any) -> R:
        self._bridge.check(self.sync.client, f"queue({self.name!r})")
        return await self._bridge.call(fn, *args, **options)

    async def put(
        self,
        value: T,
        *,
        key: object = None,
        delay: Duration | None = None,
        request_id: str | None = None,
    ) -> int:
        """Put a message; durable when this returns. Its number in the queue, which is its ``id``.

        ``key``: messages with the same key are given out one at a time, in order. ``delay``: it is not given out before.
        ``request_id``: it is put at most once under this name.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.put, value, key=key, delay=delay, request_id=request_id)

    async def put_many(
        self,
        values: Iterable[T],
        *,
        key: object = None,
        delay: Duration | None = None,
        request_id: str | None = None,
    ) -> Sequence[int]:
        """Put messages in this order, all or none, in one record; their ids. Otherwise as ``put``.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.put_many, values, key=key, delay=delay, request_id=request_id)

    def get(self, timeout: Duration | None = None, *, renew: bool = False) -> AsyncDelivery[T]:
        """The next message, for ``async with q.get(timeout="5s") as msg``; ``msg`` is None when none came in time. It is
        acknowledged when the block ends, and given back when it raises."""
        self._bridge.check(self.sync.client, f"queue({self.name!r})")
        check_flag("renew", renew)
        return AsyncDelivery(
            self._bridge, self.sync, None if timeout is None else wait_seconds(timeout), renew
        )

    async def count(self) -> int:
        """How many messages are still to be acknowledged."""
        return await self._call(self.sync.__len__)

    async def counts(self) -> QueueCounts:
        """How many messages are where.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.counts)

    async def dead(self, limit: int = 1000) -> list[DeadLetter[T]]:
        """The dead letters of this queue, by number, at most ``limit``: those that are kept aside and, with ``dead_letter``,
        those that are in that queue and not yet acknowledged there.

        One whose value does not fit the queue's type hides no other: its ``problem`` says why, and its ``value`` raises that.

        Raises:
            InvalidArgument: definite; an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.dead, limit)


class AsyncMessage(Generic[T]):
    """A message that is held."""

    def __init__(self, bridge: Bridge, message: Message[T]) -> None:
        self._bridge = bridge
        self.sync = message
        self.id = message.id
        self.value = message.value
        self.key = message.key
        self.attempt = message.attempt

    async def extend(self, lease: Duration | None = None) -> None:
        """The lease starts again now, with the queue's length or this one.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            InvalidArgument: definite; it was ended before, or the lease is not valid.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        await self._bridge.complete(self.sync.extend, lease)

    async def ack(self) -> None:
        """It is done with and never given out again. Leaving the ``with`` block does this.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            InvalidArgument: definite; it was ended before.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        await self._bridge.complete(self.sync.ack)

    async def nack(self, *, error: str = "given back", delay: Duration | None = None) -> None:
        """Give it back as a failed attempt: it is given out again, after ``delay``, or goes to the dead letters.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            InvalidArgument: definite; it was ended before.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        await self._bridge.complete(self.sync.nack, error=error, delay=delay)


class AsyncDelivery(Generic[T]):
    """What ``AsyncQueue.get`` gives, for one ``async with`` block."""

    def __init__(self, bridge: Bridge, queue: Queue[T], timeout: float | None, renew: bool) -> None:
        self._bridge = bridge
        self._queue = queue
        self._timeout = timeout
        self._renew = renew
        self._message: AsyncMessage[T] | None = None

    async def __aenter__(self) -> AsyncMessage[T] | None:
        if self._message is not None:
            raise InvalidArgument("this delivery is in use; call get() for each message")
        message = await self._taken()
        if message is not None:
            self._message = AsyncMessage(self._bridge, message)
            if self._renew:
                keeper(self._queue.client).renewer.add(message)
        return self._message

    async def _taken(self) -> Message[T] | None:
        """Look, and wait while there is nothing."""
        bridge, queue, gate = self._bridge, self._queue, Gate()
        taking = queue.taking(self._timeout, gate)
        with bridge.waiter() as waiter:
            while True:
                waiter.begin_look()
                look = bridge.look(partial(queue.look_for, taking))
                message, pause = await bridge.obtain(look, _give_back, gate.give_up)
                if message is not None:
                    waiter.satisfied()
                    return message
                if pause is None:
                    return None
                await waiter.wait(queue.client, pause, taking.left_s)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held, self._message = self._message, None
        if held is None:
            return
        message = held.sync
        if self._renew:
            keeper(self._queue.client).renewer.remove(message)
        if message.ended:
            return  # by msg.ack() or msg.nack() in the block
        if error is None:
            await self._bridge.complete(_ack, message)
            return
        with if_possible:  # the block's own error is the one to see; the lease ends by itself
            await self._bridge.complete(message.nack, error=f"{type(error).__name__}: {error}")


class AsyncLock:
    """A lock, for an ``async with`` block."""

    def __init__(self, bridge: Bridge, client: StateClient, plain: Lock, timeout: float | None) -> None:
        """Programs call ``AsyncDatabase.lock``."""
        self._bridge = bridge
        self._client = client
        self._timeout = timeout
        self.sync = plain
        """The synchronous handle of the same lock."""

    @property
    def name(self) -> str:
        """Its name."""
        return self.sync.name

    @property
    def fencing_token(self) -> int:
        """Larger at each grant; pass it to what the lock protects."""
        return self.sync.fencing_token

    @property
    def held(self) -> bool:
        """Whether this object holds it, as far as it knows."""
        return self.sync.held

    async def check(self) -> None:
        """Make sure that it is held still.

        Raises:
            Conflict: definite; it was lost.
            InvalidArgument: definite; it is not held.
        """
        await self._bridge.call(self.sync.check)

    async def __aenter__(self) -> Self:
        self._bridge.check(self._client, f"lock({self.name!r})")
        bridge = self._bridge
        acquisition = self.sync.acquisition(self._timeout)
        with bridge.waiter() as waiter:
            try:
                while True:
                    waiter.begin_look()
                    look = bridge.look(acquisition.look)
                    pause = await kept(look)
                    if pause is None:
                        waiter.satisfied()
                        return self
                    await waiter.wait(self._client, pause, acquisition.left_s)
            except asyncio.CancelledError:
                begun = not look.cancel()
                if not acquisition.give_up() or begun:
                    await bridge.undo(look, acquisition.undo)
                raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._bridge.complete(self.sync.release)
        except OnefoldError as failure:
            if error is None or is_interrupt(failure):
                raise


def _give_back(looked: tuple[Message[Any] | None, object]) -> None:
    message, _ = looked
    if message is not None:
        message.give_back()


def _ack(message: Message[Any]) -> None:
    if not message.ended:  # by a cancelled msg.ack() that has come to its end meanwhile
        message.ack()
