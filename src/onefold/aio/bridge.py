"""From an event loop to the one synchronous core and back.

The core blocks: on the disk, on the group commit of other callers, on records that are still to come. So each call runs in a
thread: short ones in a pool, waits in a thread of their own (a hundred waiting watchers must not keep a write from its turn),
a transaction's calls all in one thread, which holds its block. Callers in different tasks share commits like threads do.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from onefold.errors import InvalidArgument, SpaceError
from onefold.state import guard

if TYPE_CHECKING:
    from onefold.state.client import StateClient

T = TypeVar("T")
_POOL_THREADS = 32
_IDLE_THREADS_MAX = 16
_BATCH = 256


class Bridge:
    """Belongs to the event loop in which it is made. Calls from another one raise InvalidArgument."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = ThreadPoolExecutor(_POOL_THREADS, "onefold-aio")
        self._idle: list[ThreadPoolExecutor] = []
        self._closed = False

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
        if self._closed:
            raise SpaceError("this connection is closed. Open it again")
        if client is not None:
            guard.check_plain(client, what)

    async def call(self, fn: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a short call. Cancelled, it still runs to its end: a write may have happened."""
        return await self._loop.run_in_executor(self._pool, lambda: fn(*args, **options))

    def wait(self, fn: Callable[[], T]) -> Future[T]:
        """Run a call that may wait for long, in a thread of its own."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn())
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=run, name="onefold-aio-wait", daemon=True).start()
        return future

    def hold_thread(self) -> ThreadPoolExecutor:
        """One thread, for calls that must come from the same one. Give it back."""
        return self._idle.pop() if self._idle else ThreadPoolExecutor(1, "onefold-aio-block")

    def give_thread(self, thread: ThreadPoolExecutor) -> None:
        """The thread is free again."""
        if self._closed or len(self._idle) >= _IDLE_THREADS_MAX:
            thread.shutdown(wait=False)
        else:
            self._idle.append(thread)

    async def run_in(self, thread: ThreadPoolExecutor, fn: Callable[..., T], *args: Any, **options: Any) -> T:
        """Run a call in that thread, to its end also when the caller is cancelled (the block goes on after it)."""
        future = self._loop.run_in_executor(thread, lambda: fn(*args, **options))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(BaseException):
                await asyncio.wait([future])
            raise

    async def close(self, close: Callable[[], None]) -> None:
        """Close the core, then end the threads."""
        if not self._closed:
            self._closed = True
            await self._loop.run_in_executor(self._pool, close)
            for thread in self._idle:
                thread.shutdown(wait=False)
            self._pool.shutdown(wait=False)


class Pulled(AsyncIterator[T], Generic[T]):
    """An iterator of the core as an asynchronous one. A cancelled wait loses nothing: what it was waiting for comes next."""

    def __init__(
        self,
        bridge: Bridge,
        source: Callable[[], Iterator[T]],
        *,
        waits: bool = False,
        close: Callable[[Any], None] | None = None,
    ) -> None:
        """``source``: makes the iterator, in a thread. ``waits``: it waits for what is to come, so its items come one by one and
        not in batches. ``close``: ends the iterator from another thread."""
        self._bridge = bridge
        self._source: Callable[[], Iterator[T]] | None = source
        self._iterator: Iterator[T] | None = None
        self._waits = waits
        self._close = close
        self._pending: Future[list[T]] | None = None
        self._ready: list[T] = []
        self._ended = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._bridge.check()
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            if self._pending is None:
                self._pending = self._bridge.wait(self._pull) if self._waits else None
            if self._pending is None:
                got = await self._bridge.call(self._pull)
            else:
                got = await _kept(self._pending)
                self._pending = None
            self._ended = not got
            self._ready = got[::-1]
        return self._ready.pop()

    def _pull(self) -> list[T]:
        if self._iterator is None and self._source is not None:
            self._iterator = iter(self._source())
            self._source = None
        return [] if self._iterator is None else list(islice(self._iterator, 1 if self._waits else _BATCH))

    async def __aenter__(self) -> Self:
        self._bridge.check()
        if self._source is not None:
            source, self._source = self._source, None
            self._iterator = iter(await self._bridge.call(source))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it."""
        self._ended = True
        self._ready = []
        if self._close is not None and self._iterator is not None:
            self._close(self._iterator)
        pending, self._pending = self._pending, None
        if pending is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(_kept(pending), 5)


async def _kept(future: Future[T]) -> T:
    """Wait for it; it goes on when the waiting task is cancelled."""
    inner = asyncio.wrap_future(future)
    inner.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be nobody's by then
    return await asyncio.shield(inner)
