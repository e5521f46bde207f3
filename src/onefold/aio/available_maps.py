"""Maps that every region can write, asynchronously: see ``onefold.state.available.maps.map`` for what each method does."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Generic, NoReturn, TypeVar

from onefold.aio.bridge import Bridge
from onefold.aio.iterators import Fed, Pulled
from onefold.arguments import check_flag
from onefold.state.available.maps.map import AvailableMap
from onefold.state.core.client import StateClient
from onefold.state.core.consistency import Consistency
from onefold.state.encoding.items import Change, Item, RegionVersion, Version
from onefold.state.maps.watch import moment_of
from onefold.state.maps.writing import Pairs

R = TypeVar("R")
T = TypeVar("T")
S = TypeVar("S")
Duration = float | timedelta | str
_UNSET: Any = object()


class AsyncAvailableMap(Generic[R, T]):
    """A map that every region can write."""

    def __init__(
        self, bridge: Bridge, space: StateClient, name: str, make: Callable[[], AvailableMap[R, T]]
    ) -> None:
        """Programs call ``AsyncDatabase.map``. ``make``: opens the region, which may take its time: it is called in a thread."""
        self._bridge = bridge
        self._space = space
        self._make = make
        self._made: AvailableMap[R, T] | None = None
        self._lock = threading.Lock()
        self._name = name
        self._what = f"map({name!r})"

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    @property
    def sync(self) -> AvailableMap[R, T]:
        """The synchronous handle of the same map. The first use of an available collection opens the region, which may block."""
        if self._made is None:
            with self._lock:
                if self._made is None:
                    self._made = self._make()
        return self._made

    def __repr__(self) -> str:
        return f"<AsyncAvailableMap {self.name!r}>"

    async def _call(self, fn: Callable[..., S], *args: Any, **options: Any) -> S:
        self._bridge.check(self._space, self._what)
        return await self._bridge.call(lambda: fn(self.sync, *args, **options))

    async def get(self, key: Any, default: Any = None, *, consistency: Consistency | None = None) -> Any:
        """The value, or ``default`` when there is none.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(AvailableMap.get, key, default, consistency=consistency)

    async def get_item(self, key: Any, *, consistency: Consistency | None = None) -> Item[R] | None:
        """The value with its version, when it ends, the region of its latest write, and its siblings where both are kept; or
        None.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(AvailableMap.get_item, key, consistency=consistency)

    async def get_many(self, keys: Iterable[Any], *, consistency: Consistency | None = None) -> dict[Any, R]:
        """The values of those keys that are there, under the keys as they were given. One snapshot of each shard.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(AvailableMap.get_many, keys, consistency=consistency)

    async def contains(self, key: Any) -> bool:
        """Whether the key is there."""
        return await self._call(AvailableMap.__contains__, key)

    async def count(self, prefix: Any = None, *, consistency: Consistency | None = None) -> int:
        """How many keys there are, or of those that begin with a prefix (see ``scan``). Looks at all of them.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(AvailableMap.count, prefix, consistency=consistency)

    async def put(
        self,
        key: Any,
        value: T,
        *,
        ttl: Duration | None = None,
        if_version: Version | str | None = None,
        if_absent: bool = False,
        request_id: str | None = None,
    ) -> RegionVersion:
        """Set a key; the version that it has now in this region. It replaces what this region holds, siblings and all fields too.

        ``ttl``: it ends by itself after so long; without it, it stays, also when it had a lifetime before. ``if_version``:
        only when the key has this version (or ETag) in this region now; ``if_absent``: only when it is not there.
        ``request_id``: it happens once under this name in this region, and in others once they have heard of it.

        Raises:
            Conflict: definite; the key has another version, or is there (``if_version``, ``if_absent``).
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(
            AvailableMap.put,
            key,
            value,
            ttl=ttl,
            if_version=if_version,
            if_absent=if_absent,
            request_id=request_id,
        )

    async def put_many(
        self,
        items: Pairs,
        *,
        ttl: Duration | None = None,
        atomic: bool = True,
        request_id: str | None = None,
    ) -> RegionVersion:
        """Set many keys, of a mapping or of (key, value) pairs (the later of two wins). Nothing is written for none.

        ``atomic``: all or nothing, here and in every other region; then all keys have to be of one shard. Else in parts of
        bounded size, so it may fail half done, with the error of the first part that failed; pairs may then be any number, as
        they are read bit by bit. The version returned is then that of the last part (of each shard).

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, or ``atomic`` and the keys are of several shards.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(AvailableMap.put_many, items, ttl=ttl, atomic=atomic, request_id=request_id)

    async def update(self, other: Any = (), /, **more: T) -> None:
        """As of a dict: one effect in each shard, which is whole everywhere. TooLarge when those of a shard do not fit into one
        record.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        await self._call(AvailableMap.update, other, **more)

    async def patch(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        unset: Iterable[str] | str | None = None,
        inc: object = None,
        push: object = None,
        if_version: object = None,
        request_id: str | None = None,
    ) -> R:
        """Set and remove some top-level fields of an item of a map with ``merge="fields"``; the new value, as it is known here.

        Other fields stay as they are, so two regions that patch different fields lose nothing. A key that is not there begins
        without fields. What an item with a lifetime gets ends with it. ``inc``, ``push``, ``if_version`` and paths with dots are
        of consistent maps.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(
            AvailableMap.patch,
            key,
            set,
            unset=unset,
            inc=inc,
            push=push,
            if_version=if_version,
            request_id=request_id,
        )

    async def delete(
        self, key: Any, *, if_version: Version | str | None = None, request_id: str | None = None
    ) -> bool:
        """Remove a key; whether it was there in this region. It is removed in others too, where they have heard no later write.
        ``if_version``, ``request_id``: as of ``put``.

        Raises:
            Conflict: definite; the key has another version (``if_version``).
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(AvailableMap.delete, key, if_version=if_version, request_id=request_id)

    async def pop(self, key: Any, default: Any = _UNSET) -> Any:
        """Remove a key and return its value: one atomic operation in this region.

        Raises:
            KeyError: it is not there and there is no ``default``.
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            MergeFailed: definite; the merge function raised. It has the siblings.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(AvailableMap.pop, key, *(() if default is _UNSET else (default,)))

    async def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, which is set to ``default`` first if it is not there: one atomic operation in this region.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(AvailableMap.setdefault, key, default)

    async def modify(
        self, key: Any, fn: Callable[[Any], T], default: Any = None, *, ttl: Duration | None = None
    ) -> R:
        """Replace the value by ``fn(value)``, atomically in this region; the new value. ``fn`` gets a copy of its own, of
        ``default`` when the key is not there. Where both are kept, and with a merge function, it gets the list of siblings, which
        is empty when the key is not there and there is no ``default``; what it returns replaces them all. It runs again whenever
        somebody else was faster, so it should do nothing but compute; when it raises, nothing is written. ``ttl``: as of ``put``;
        without it an item keeps the end that it has, to within the milliseconds that the write takes.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            MergeFailed: definite; the merge function raised. It has the siblings.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(AvailableMap.modify, key, fn, default, ttl=ttl)

    async def increment(
        self, key: Any, by: float = 1, *, ttl: Duration | None = None, request_id: str | None = None
    ) -> NoReturn:
        """Refused: two regions that add to one number at a time would lose one of the additions. A counter adds up
        what all regions add.

        Raises:
            InvalidArgument: definite; always.
        """
        await self._call(AvailableMap.increment, key, by, ttl=ttl, request_id=request_id)

    async def clear(self) -> None:
        """Remove every key that this region knows, some at a time: it is not atomic.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        await self._call(AvailableMap.clear)

    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
        consistency: Consistency | None = None,
    ) -> Pulled[tuple[Any, R]]:
        """(key, value) in key order, for ``async for``."""

        def source() -> Iterator[tuple[Any, R]]:
            return self.sync.scan(
                prefix=prefix, start=start, stop=stop, limit=limit, reverse=reverse, consistency=consistency
            )

        self._bridge.check(self._space, self._what)
        check_flag("reverse", reverse)
        return Pulled(self._bridge, source)

    def items(self) -> Pulled[tuple[Any, R]]:
        """Everything, in key order, for ``async for``."""
        return self.scan()

    def keys(self) -> Pulled[Any]:
        """The keys, in order, for ``async for``."""
        self._bridge.check(self._space, self._what)
        return Pulled(self._bridge, lambda: iter(self.sync))

    def values(self) -> Pulled[R]:
        """The values, in the order of their keys, for ``async for``."""
        self._bridge.check(self._space, self._what)
        return Pulled(self._bridge, lambda: iter(self.sync.values()))

    def __aiter__(self) -> Pulled[Any]:
        return self.keys()

    def watch(
        self,
        prefix: Any = None,
        *,
        start: str | None = None,
        initial: bool = False,
        timeout: Duration | None = None,
    ) -> Fed[Change[R]]:
        """The changes, for ``async for`` and ``async with``. They begin with this call, where the region is open and its state is
        in this process; else when the first step or the ``async with`` has come to its end."""
        self._bridge.check(self._space, self._what)
        check_flag("initial", initial)
        begun = None if self._made is None else moment_of(self._made.client)
        return Fed(
            self._bridge,
            lambda: self.sync._watch_since(begun, prefix, start, initial, timeout),
            ends=True,
        )
