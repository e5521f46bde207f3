"""Sets, asynchronously: see ``onefold.state.available.sets``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from onefold.aio.bridge import Bridge
from onefold.aio.iterators import Pulled
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Consistency

if TYPE_CHECKING:
    from onefold.state.available.sets import Sets

R = TypeVar("R")
Duration = float | timedelta | str


class AsyncSets:
    """Sets by key, which every region can change at any time."""

    def __init__(self, bridge: Bridge, plain: Sets, space: StateClient) -> None:
        """Programs call ``AsyncDatabase.sets``. ``space``: whose transactions it stays out of."""
        self._bridge = bridge
        self._space = space
        self.sync = plain
        """The synchronous handle of the same sets."""
        self._what = f"sets({plain.name!r})"

    @property
    def name(self) -> str:
        """Their name."""
        return self.sync.name

    def __repr__(self) -> str:
        return f"<AsyncSets {self.name!r}>"

    async def _call(self, fn: Callable[..., R], *args: Any, **options: Any) -> R:
        self._bridge.check(self._space, self._what)
        return await self._bridge.call(fn, *args, **options)

    async def get(self, key: Any, *, consistency: Consistency | None = None) -> set[Any]:
        """The elements; the empty set when there is nothing under the key.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.get, key, consistency=consistency)

    async def contains(self, key: Any, element: Any, *, consistency: Consistency | None = None) -> bool:
        """Whether the element is in the set under the key.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            UnsupportedConsistency: definite; ``strong``, which no region can give.
            Unavailable, TooStale, TokenError: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.contains, key, element, consistency=consistency)

    def items(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        consistency: Consistency | None = None,
    ) -> Pulled[tuple[Any, set[Any]]]:
        """(key, set) in key order, for ``async for``: see ``Sets.items``."""

        def source() -> Iterator[tuple[Any, set[Any]]]:
            return self.sync.items(
                prefix=prefix, start=start, stop=stop, limit=limit, consistency=consistency
            )

        self._bridge.check(self._space, self._what)
        return Pulled(self._bridge, source)

    async def count(self) -> int:
        """How many sets have elements. Looks at all of them."""
        return await self._call(self.sync.__len__)

    async def add(
        self, key: Any, *elements: Any, ttl: Duration | None = None, request_id: str | None = None
    ) -> int:
        """Add elements to the set under the key, at once; how many were not in it here. ``ttl``: they leave it by themselves
        after so long, unless they are added again. ``request_id``: it happens once under this name, in this region at once, in
        others when they have heard of it. Without elements nothing is written.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TooLarge: definite; too many elements for one record.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.add, key, *elements, ttl=ttl, request_id=request_id)

    async def discard(self, key: Any, *elements: Any, request_id: str | None = None) -> int:
        """Take elements out of the set under the key, at once; how many were in it here. What another region adds at the same
        time stays. ``request_id``: as of ``add``. Without elements nothing is written.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TooLarge: definite; too many elements for one record.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.discard, key, *elements, request_id=request_id)

    async def delete(self, key: Any, *, request_id: str | None = None) -> bool:
        """Take all elements out of the set under the key that are in it here; whether there were any. ``request_id``: as of
        ``add``.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid, or the name stands for something else.
            TooStale, TokenError: definite; what this session has seen elsewhere is not here yet.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.delete, key, request_id=request_id)
