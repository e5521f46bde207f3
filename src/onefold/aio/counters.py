"""Counters, asynchronously: see ``onefold.state.available.counters``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from onefold.aio.bridge import Bridge
from onefold.aio.iterators import Pulled
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Consistency

if TYPE_CHECKING:
    from onefold.state.available.counters import Counters

R = TypeVar("R")


class AsyncCounters:
    """Integers by key, to which every region can add at any time."""

    def __init__(self, bridge: Bridge, plain: Counters, space: StateClient) -> None:
        """Programs call ``AsyncDatabase.counters``. ``space``: whose transactions it stays out of."""
        self._bridge = bridge
        self._space = space
        self.sync = plain
        """The synchronous handle of the same counters."""
        self._what = f"counters({plain.name!r})"

    @property
    def name(self) -> str:
        """Their name."""
        return self.sync.name

    def __repr__(self) -> str:
        return f"<AsyncCounters {self.name!r}>"

    async def _call(self, fn: Callable[..., R], *args: Any, **options: Any) -> R:
        self._bridge.check(self._space, self._what)
        return await self._bridge.call(fn, *args, **options)

    async def get(self, key: Any, default: Any = 0, *, consistency: Consistency | None = None) -> Any:
        """The value as far as it is known in this region, or ``default`` when nothing was ever added.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.get, key, default, consistency=consistency)

    async def contains(self, key: Any) -> bool:
        """Whether anything was ever added under the key."""
        return await self._call(self.sync.__contains__, key)

    def items(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        consistency: Consistency | None = None,
    ) -> Pulled[tuple[Any, int]]:
        """(key, value) in key order, for ``async for``: see ``Counters.items``."""

        def source() -> Iterator[tuple[Any, int]]:
            return self.sync.items(
                prefix=prefix, start=start, stop=stop, limit=limit, consistency=consistency
            )

        self._bridge.check(self._space, self._what)
        return Pulled(self._bridge, source)

    async def count(self) -> int:
        """How many counters there are. Looks at all of them."""
        return await self._call(self.sync.__len__)

    async def here(self, key: Any, *, consistency: Consistency | None = None) -> int:
        """How much of a counter with a floor this region may take by itself now, without asking others.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the counters have no floor.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.here, key, consistency=consistency)

    async def add(self, key: Any, n: int = 1, *, request_id: str | None = None) -> int:
        """Add ``n``, which may be negative; the new value as far as it is known in this region.

        Below a floor nothing is taken: if this region may not take so much, the others are asked for rights, and they are waited
        for until the time limit of the connection (20 seconds without one). If they cannot have as much between them,
        ``BelowFloor`` comes at once. What was refused may be tried again, under the same ``request_id`` too.
        ``request_id``: it happens once under this name, in this region at once, in others when they have heard of it.

        Raises:
            BelowFloor: definite; nothing was taken. ``value`` and ``here`` say how much there is, and how much of it here.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            InvalidValue: definite; the counter would leave the integers of 64 bit.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        taking = await self._call(self.sync._taking, key, n, request_id)
        if taking is None:
            return await self._bridge.call(self.sync.add, key, n, request_id=request_id)
        with self._bridge.waiter() as waiter:  # other regions are waited for without a thread
            while True:
                waiter.begin_look()
                found = await self._bridge.call(taking.look)
                if found is not None:
                    return found
                await waiter.wait(taking.client, taking.pause, None)

    async def move(self, key: Any, n: int, to: str, *, request_id: str | None = None) -> int:
        """Give the region ``to`` the rights to take ``n``; how much is left here. It may use them as soon as it has heard of it.
        ``request_id``: as of ``add``.

        Raises:
            BelowFloor: definite; more than this region may take, so nothing was moved.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, the counters have no floor, or there is
                no such region to give something to.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.move, key, n, to, request_id=request_id)

    async def delete(self, key: Any, *, request_id: str | None = None) -> bool:
        """Remove a counter; whether there was one here. What other regions add at the same time counts from 0. One with a floor
        cannot be removed. ``request_id``: as of ``add``.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the counters have a floor.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.delete, key, request_id=request_id)
