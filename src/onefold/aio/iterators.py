"""Iterators of the core as asynchronous ones. A cancelled step skips nothing, and one that raised can be continued."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from enum import Enum
from types import TracebackType
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from onefold.aio.bridge import Bridge, kept
from onefold.aio.waiting import Waiter
from onefold.shard.waiters import Interest
from onefold.state.core.shards_client import ShardsClient
from onefold.state.core.waiting import Pause

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_BATCH = 256


class Pulled(AsyncIterator[T], Generic[T]):
    """An iterator of the core that does not wait for what is to come. It is read in batches, in the threads of the pool.

    Which batch is on its way is kept, so a cancelled step loses nothing: the next one gets it.
    """

    def __init__(self, bridge: Bridge, source: Callable[[], Iterator[T]]) -> None:
        """``source``: makes the iterator, in a thread."""
        self._bridge = bridge
        self._source = source
        self._iterator: Iterator[T] | None = None
        self._pending: Future[_Batch[T]] | None = None
        self._ready: deque[T] = deque()
        self._error: Exception | None = None
        self._closed = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._bridge.check()
        while True:
            if self._closed:
                raise StopAsyncIteration
            if self._ready:
                return self._ready.popleft()
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if await self._step(self._pull):
                raise StopAsyncIteration

    async def _step(self, pull: Callable[[], _Batch[T]]) -> bool:
        """Get the next batch, or the one that a cancelled step has left behind; whether that was the end."""
        if self._pending is None:
            self._pending = self._bridge.submit(pull)
        pending = self._pending
        batch = await kept(pending)
        if self._pending is not pending:
            return False  # another task that iterates has got it
        self._pending = None
        self._ready.extend(batch.items)
        self._error = batch.error
        return batch.ended

    def _open(self) -> _Batch[T]:
        try:
            self._opened()
        except Exception as error:
            return _Batch([], error)
        return _Batch([])

    def _opened(self) -> Iterator[T]:
        if self._iterator is None:
            self._iterator = iter(self._source())
        return self._iterator

    def _pull(self) -> _Batch[T]:
        items: list[T] = []
        try:
            iterator = self._opened()
            while len(items) < _BATCH:
                items.append(next(iterator))
        except StopIteration:
            return _Batch(items, None, ended=not items)
        except Exception as error:
            return _Batch(items, error)  # what came before it is given first
        return _Batch(items)

    async def __aenter__(self) -> Self:
        """It begins here: what it shows is of this moment."""
        self._bridge.check()
        await self._step(self._open)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it."""
        self._closed = True
        self._ready.clear()
        self._error = None


class _Batch(NamedTuple, Generic[T]):
    items: list[T]
    error: Exception | None = None
    """What came after the items."""
    ended: bool = False


class Feed(Protocol[T_co]):
    """An iterator of the core that waits for what is to come."""

    @property
    def client(self) -> ShardsClient:
        """The core under it."""
        ...

    @property
    def timeout(self) -> float | None:
        """How many seconds a step waits at most."""
        ...

    def look(self) -> Pause | None:
        """Find what can be given next; None: it is found. Waits for nothing that is still to come. Raises as iterating does.
        Nothing counts as given by this."""
        ...

    def handed(self, interests: Sequence[Interest]) -> bool:
        """See ``Looking``. While no look is under way."""
        ...

    def quiet(self) -> Pause | None:
        """See ``Looking``. While no look is under way."""
        ...

    def give(self) -> T_co | None:
        """What the last ``look`` has found, at once. None: that is not the next any more; look again."""
        ...

    def close(self) -> None:
        """End it, from any thread."""
        ...


class Fed(AsyncIterator[T], Generic[T]):
    """A feed of the core as an asynchronous iterator. It looks in a thread; what was found is given in the event loop, to a step
    that was not cancelled."""

    def __init__(
        self, bridge: Bridge, source: Callable[[], Feed[T]], *, ends: bool = False, holds: bool = False
    ) -> None:
        """``source``: opens the feed, in a thread. ``ends``: it is over when nothing came within its timeout. ``holds``: while it
        is open others wait for it, so it is closed again when its opening was cancelled."""
        self._bridge = bridge
        self._source = source
        self._ends = ends
        self._holds = holds
        self._feed: Feed[T] | None = None
        self._opening: Future[Feed[T]] | None = None
        self._one_opens = asyncio.Lock()
        self._look: Future[Pause | None] | None = None
        """Under way, or left behind by a cancelled step."""
        self._steps: set[Waiter] = set()
        """Those that wait."""
        self._closed = False

    @property
    def feed(self) -> Feed[T] | None:
        """The core's, once it is open."""
        return self._feed

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        self._bridge.check()
        if self._closed:
            raise StopAsyncIteration
        feed = await self.open()
        loop = asyncio.get_running_loop()
        end_s = None if feed.timeout is None else loop.time() + feed.timeout
        with self._bridge.waiter() as waiter:
            quiet = feed.quiet() if self._look is None else None
            if quiet is not None:
                await self._sleep(feed, waiter, quiet, feed.timeout)
            while not self._closed:
                handed = self._look is None and feed.handed(waiter.interests)
                pause = None if handed else await self._looked(feed, waiter)
                if pause is None:
                    item = feed.give()
                    if item is not None:
                        waiter.satisfied()
                        return item
                elif isinstance(pause, Pause):
                    left_s = None if end_s is None else end_s - loop.time()
                    if left_s is not None and left_s <= 0:
                        self._closed = self._closed or self._ends
                        break
                    await self._sleep(feed, waiter, pause, left_s)
        raise StopAsyncIteration

    async def _looked(self, feed: Feed[T], waiter: Waiter) -> Pause | _Stale | None:
        """Look, or get what a look under way has found."""
        fresh = self._look is None
        if fresh:
            waiter.begin_look()
        look = self._look = self._look or self._bridge.look(feed.look)
        try:
            found = await kept(look)
        except Exception:
            if self._look is look:
                self._look = None
            if fresh:
                raise
            return _STALE  # it failed while nobody waited; whether it still does is seen now
        if self._look is not look:
            return _STALE  # another task that iterates has got it
        self._look = None
        return found if fresh or found is None else _STALE  # it began before this step

    async def _sleep(self, feed: Feed[T], waiter: Waiter, pause: Pause, left_s: float | None) -> None:
        self._steps.add(waiter)
        try:
            await waiter.wait(feed.client, pause, left_s)
        finally:
            self._steps.discard(waiter)

    async def open(self) -> Feed[T]:
        """Open it, once."""
        if self._feed is None:
            async with self._one_opens:
                if self._feed is None:
                    self._feed = await (self._obtained() if self._holds else self._kept())
        return self._feed

    async def _obtained(self) -> Feed[T]:
        return await self._bridge.obtain(self._bridge.look(self._source), lambda feed: feed.close())

    async def _kept(self) -> Feed[T]:
        """It begins where it was opened first, though that step was cancelled."""
        if self._opening is None:
            self._opening = self._bridge.look(self._source)
        opening = self._opening
        try:
            return await kept(opening)
        except Exception:
            self._opening = None
            raise

    async def __aenter__(self) -> Self:
        self._bridge.check()
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End it. Steps that wait end."""
        self._closed = True
        for waiter in list(self._steps):
            waiter.wake()
        if self._feed is not None:
            if self._holds:
                await self._bridge.complete(self._feed.close)
            else:
                self._feed.close()


class _Stale(Enum):
    """A look whose result says nothing to this step."""

    IT = 0


_STALE = _Stale.IT
