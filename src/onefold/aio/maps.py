"""Maps, asynchronously: see ``onefold.state.maps.map`` for what each method does and raises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any, Generic, TypeVar

from onefold.aio.bridge import Bridge
from onefold.aio.iterators import Fed, Pulled
from onefold.arguments import check_flag
from onefold.state.core.consistency import Consistency
from onefold.state.encoding.items import Change, Item, Version
from onefold.state.maps.map import Map
from onefold.state.maps.watch import moment_of
from onefold.state.maps.writing import Pairs

T = TypeVar("T")
R = TypeVar("R")
Duration = float | timedelta | str
_UNSET: Any = object()


class AsyncMap(Generic[T]):
    """A shared map."""

    def __init__(self, bridge: Bridge, plain: Map[T]) -> None:
        """Programs call ``AsyncDatabase.map``."""
        self._bridge = bridge
        self.sync = plain
        """The synchronous handle of the same map."""
        self._what = f"map({plain.name!r})"

    @property
    def name(self) -> str:
        """Its name."""
        return self.sync.name

    def __repr__(self) -> str:
        return f"<AsyncMap {self.name!r}>"

    async def _call(self, fn: Callable[..., R], *args: Any, **options: Any) -> R:
        self._bridge.check(self.sync.client, self._what)
        return await self._bridge.call(fn, *args, **options)

    async def get(self, key: Any, default: Any = None, *, consistency: Consistency | None = None) -> Any:
        """The value, or ``default`` when there is none.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.get, key, default, consistency=consistency)

    async def get_item(self, key: Any, *, consistency: Consistency | None = None) -> Item[T] | None:
        """The value with its version and when it ends, or None.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.get_item, key, consistency=consistency)

    async def get_many(self, keys: Iterable[Any], *, consistency: Consistency | None = None) -> dict[Any, T]:
        """The values of those keys that are there, under the keys as they were given. One snapshot; of several shards too
        at ``strong``, else of each of them.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            InvalidValue: definite; a value cannot be read. It names its map and key.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.get_many, keys, consistency=consistency)

    async def contains(self, key: Any) -> bool:
        """Whether the key is there."""
        return await self._call(self.sync.__contains__, key)

    async def count(self, prefix: Any = None, *, consistency: Consistency | None = None) -> int:
        """How many keys there are, or of those that begin with a prefix (see ``scan``). Looks at all of them.

        Raises:
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
        """
        return await self._call(self.sync.count, prefix, consistency=consistency)

    async def put(
        self,
        key: Any,
        value: T,
        *,
        ttl: Duration | None = None,
        if_version: Version | str | None = None,
        if_absent: bool = False,
        request_id: str | None = None,
    ) -> Version:
        """Set a key; the version that it has now.

        ``ttl``: it ends by itself after so long; without it, it stays, also when it had a lifetime before. ``if_version``:
        only when the key has this version (or ETag) now; ``if_absent``: only when it is not there.
        ``request_id``: it happens once under this name, no matter who repeats it (see ``Database.outcome``).

        Raises:
            Conflict: definite; the key has another version, or is there (``if_version``, ``if_absent``).
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(
            self.sync.put,
            key,
            value,
            ttl=ttl,
            if_version=if_version,
            if_absent=if_absent,
            request_id=request_id,
        )

    async def put_many(
        self, items: Pairs, *, ttl: Duration | None = None, atomic: bool = True, request_id: str | None = None
    ) -> Version:
        """Set many keys, of a mapping or of (key, value) pairs (the later of two wins). Nothing is written for none.

        ``atomic``: all or nothing, also over several shards; TooLarge (definite) when they do not fit into one record. Else
        in parts of bounded size, so it may fail half done, with the error of the first part that failed; pairs may then be any
        number, as they are read bit by bit. The version returned is then that of the last part (of each shard).

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.put_many, items, ttl=ttl, atomic=atomic, request_id=request_id)

    async def update(self, other: Any = (), /, **more: T) -> None:
        """As of a dict, all or nothing: see ``put_many``.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        await self._call(self.sync.update, other, **more)

    async def delete(
        self, key: Any, *, if_version: Version | str | None = None, request_id: str | None = None
    ) -> bool:
        """Remove a key; whether it was there. ``if_version``, ``request_id``: as of ``put``.

        Raises:
            Conflict: definite; the key has another version (``if_version``).
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.delete, key, if_version=if_version, request_id=request_id)

    async def pop(self, key: Any, default: Any = _UNSET) -> Any:
        """Remove a key and return its value: one atomic operation.

        Raises:
            KeyError: it is not there and there is no ``default``.
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.pop, key, *(() if default is _UNSET else (default,)))

    async def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of a key, which is set to ``default`` first if it is not there: one atomic operation.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.setdefault, key, default)

    async def modify(
        self, key: Any, fn: Callable[[Any], T], default: Any = None, *, ttl: Duration | None = None
    ) -> T:
        """Replace the value by ``fn(value)``, atomically; the new value. ``fn`` gets a copy of its own, of ``default`` when the
        key is not there. It runs again whenever somebody else was faster, so it should do nothing but compute; when it raises,
        nothing is written. ``ttl``: as of ``put``; without it an item keeps the end that it has, to within the milliseconds that
        the write takes.

        Raises:
            Conflict: definite; others were faster ``config.MAP_ATTEMPTS`` times.
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.modify, key, fn, default, ttl=ttl)

    async def increment(
        self, key: Any, by: float = 1, *, ttl: Duration | None = None, request_id: str | None = None
    ) -> T:
        """Add to a number, in one operation that never conflicts; the new value. A key that is not there counts as 0, and lives
        for ``ttl`` from then on. ``by``: an int or a finite float.

        Raises:
            InvalidValue: definite; the value is not a number.
            InvalidKey, InvalidArgument: definite; a key or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return await self._call(self.sync.increment, key, by, ttl=ttl, request_id=request_id)

    async def clear(self) -> None:
        """Remove everything. One operation in each shard, one shard after the other: with several it is not atomic.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        await self._call(self.sync.clear)

    def scan(
        self,
        *,
        prefix: Any = None,
        start: Any = None,
        stop: Any = None,
        limit: int | None = None,
        reverse: bool = False,
        consistency: Consistency | None = None,
    ) -> Pulled[tuple[Any, T]]:
        """(key, value) in key order, for ``async for``."""

        def source() -> Iterator[tuple[Any, T]]:
            return self.sync.scan(
                prefix=prefix, start=start, stop=stop, limit=limit, reverse=reverse, consistency=consistency
            )

        self._bridge.check(self.sync.client, self._what)
        check_flag("reverse", reverse)
        return Pulled(self._bridge, source)

    def items(self) -> Pulled[tuple[Any, T]]:
        """Everything, in key order, for ``async for``."""
        return self.scan()

    def keys(self) -> Pulled[Any]:
        """The keys, in order, for ``async for``."""
        self._bridge.check(self.sync.client, self._what)
        return Pulled(self._bridge, lambda: iter(self.sync))

    def values(self) -> Pulled[T]:
        """The values, in the order of their keys, for ``async for``."""
        self._bridge.check(self.sync.client, self._what)
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
    ) -> Fed[Change[T]]:
        """The changes, for ``async for`` and ``async with``. They begin with this call; with
        ``replicas="remote"`` when the first step or the ``async with`` has come to its end."""
        self._bridge.check(self.sync.client, self._what)
        check_flag("initial", initial)
        begun = moment_of(self.sync.client)
        return Fed(
            self._bridge,
            lambda: self.sync._watch_since(begun, prefix, start, initial, timeout),
            ends=True,
        )
