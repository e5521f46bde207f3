"""From an event loop to the one synchronous core and back.

The core blocks: on the disk, on the group commit of other callers. So each call runs in a thread: short ones in a pool, a
transaction's calls all in one thread, which holds its block. Callers in different tasks share commits like threads do.

A task that waits for records still to come has no thread (``onefold.aio.waiting``). When something may have come, it looks in a
small pool of its own: a hundred watchers that look must not keep a write from its turn.

A thread cannot be cancelled. What is done about a task that was cancelled while it waited for a call depends on the call:

- ``call``: not begun, it never begins; begun, it runs to its end unobserved. For reads and single writes.
- ``complete``: it happens in any case, and the cancelled task waits for its end, for a bounded time. For what ends something.
- ``obtain``: what it gives is the task's, or it is undone. For what begins something.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from onefold import config
from onefold.aio.waiting import Waiter, Waits
from onefold.errors import InvalidArgument, SpaceError
from onefold.state.core import guard

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient

T = TypeVar("T")
_POOL_THREADS = 32
_LOOK_THREADS = 16
_IDLE_THREADS_MAX = 16


class Bridge:
    """Belongs to the event loop in which it is made. Calls from another one raise InvalidArgument."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_POOL_THREADS, "onefold-aio")
        self._looks = ThreadPoolExecutor(_LOOK_THREADS, "onefold-aio-look")
        self._waits = Waits(self._loop)
        self._idle: list[ThreadPoolExecutor] = []
        self._closing: Future[None] | None = None

    def check(self, client: StateClient | None = None, what: str = "") -> None:
        """Raises InvalidArgument in another event loop than its own, SpaceError when closed, TransactionError when ``what`` is a
        plain handle inside a transaction's block of ``client``."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            raise InvalidArgument(
                "this handle belongs to another event loop. Connect with onefold.aio.connect in the loop where it is used"
            )
        if self._closing is not None:
            raise SpaceError("this connection is closed. Open it again")
        if client is not None:
            guard.check_plain(client, what)

    # -- short calls

    async def call(self, fn: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a short call. Cancelled, it either has not begun and never does, or runs to its end: a write may have happened."""
        return await asyncio.wrap_future(self.submit(partial(fn, *args, **options)))

    async def complete(self, fn: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a short call that happens also when the caller is cancelled; a cancelled caller waits for it (see ``ended``)."""
        return await ended(self.submit(partial(fn, *args, **options)))

    def submit(self, fn: Callable[[], T]) -> Future[T]:
        """Run a short call in the pool."""
        if self._closing is not None:
            raise SpaceError("this connection is closed. Open it again")
        return self._pool.submit(fn)

    # -- waits

    def look(self, fn: Callable[[], T]) -> Future[T]:
        """Run a call that looks for something and does not wait for it to come."""
        if self._closing is not None:
            raise SpaceError("this connection is closed. Open it again")
        return self._looks.submit(fn)

    def waiter(self) -> Waiter:
        """For a task that looks, and waits while there is nothing."""
        return self._waits.waiter()

    def _apart(self, fn: Callable[[], T]) -> Future[T]:
        """Run a call that waits for others, in a thread of its own."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn())
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=run, name="onefold-aio-undo", daemon=True).start()
        return future

    async def obtain(
        self,
        future: Future[T],
        undo: Callable[[T], object],
        give_up: Callable[[], bool] | None = None,
    ) -> T:
        """The result of a call under way, which is something to be ended later. It is the caller's when this returns; when the
        caller is cancelled before, ``undo`` ends it, in a thread, and the caller waits for that (see ``ended``).

        ``give_up``: makes the call return soon; True when it will have nothing to undo, so that nobody need wait for it.
        """
        try:
            return await kept(future)
        except asyncio.CancelledError:
            if not future.cancel() and (give_up is None or not give_up()):
                await _awhile(_wrapped(self._apart(partial(_undo, future, undo))))
            raise

    async def undo(self, future: Future[Any], undo: Callable[[], object]) -> None:
        """For a cancelled caller: end what a call has begun, when the call has come to its end. See ``ended``."""
        await _awhile(_wrapped(self._apart(partial(_undo_after, future, undo))))

    # -- a thread for a transaction

    def hold_thread(self) -> ThreadPoolExecutor:
        """One thread, for calls that must come from the same one. Give it back."""
        try:
            return self._idle.pop()
        except IndexError:
            return ThreadPoolExecutor(1, "onefold-aio-block")

    def give_thread(self, thread: ThreadPoolExecutor) -> None:
        """The thread is free again, once it has done what it was given to do."""
        thread.submit(_nothing).add_done_callback(lambda _: self._is_free(thread))

    def _is_free(self, thread: ThreadPoolExecutor) -> None:
        if self._closing is not None or len(self._idle) >= _IDLE_THREADS_MAX:
            thread.shutdown(wait=False)
        else:
            self._idle.append(thread)

    # -- the end

    async def close(self, close: Callable[[], None]) -> None:
        """Close the core, and let the threads end. It happens also when the caller is cancelled."""
        if self._closing is None:
            self._closing = self._pool.submit(close)
            self._pool.shutdown(wait=False)
            self._looks.shutdown(wait=False)
            self._waits.wake_all()
            while self._idle:
                self._idle.pop().shutdown(wait=False)
        await ended(self._closing)


async def kept(future: Future[T]) -> T:
    """Wait for it. It continues when the waiting task is cancelled."""
    if future.done():
        return future.result()  # without a suspension, at which it could be lost again
    return await asyncio.shield(_wrapped(future))


async def ended(future: Future[T]) -> T:
    """Wait for it, also when the waiting task is cancelled: then until its end, ``config.CANCEL_WAIT_S`` at most or until the
    task is cancelled a second time, and CancelledError is raised. In no case does the call stop."""
    inner = _wrapped(future)
    try:
        return await asyncio.shield(inner)
    except asyncio.CancelledError:
        await _awhile(inner)
        raise


async def _awhile(inner: asyncio.Future[Any]) -> None:
    """Wait for it in a task that was cancelled: not for long, and not when the task is cancelled again."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait([inner], timeout=config.CANCEL_WAIT_S)


def _wrapped(future: Future[T]) -> asyncio.Future[T]:
    inner = asyncio.wrap_future(future)
    inner.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be nobody's by then
    return inner


def _undo(future: Future[T], undo: Callable[[T], object]) -> None:
    """Wait for what nobody wants any more, and end it. What cannot be ended ends by itself, as its lease does."""
    with contextlib.suppress(Exception):
        undo(future.result())


def _undo_after(future: Future[Any], undo: Callable[[], object]) -> None:
    """Wait for the call's end, whatever that is, and end what it has begun."""
    futures.wait([future])
    with contextlib.suppress(Exception):
        undo()


def _nothing() -> None:
    pass
