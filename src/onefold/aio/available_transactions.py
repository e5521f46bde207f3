"""Collections for every region in a transaction, asynchronously: see ``onefold.state.available.transactions``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from onefold.aio.transactions import AsyncTxMap, TxScan

if TYPE_CHECKING:
    from onefold.aio.counters import AsyncCounters
    from onefold.aio.sets import AsyncSets
    from onefold.aio.transactions import AsyncTransaction
    from onefold.state.available.transactions.counters import TxCounters
    from onefold.state.available.transactions.sets import TxSets
    from onefold.state.encoding.items import Version
    from onefold.state.maps.writing import Pairs

R = TypeVar("R")
T = TypeVar("T")
Duration = float | timedelta | str


class _Handle:
    """In the transaction's thread, where its synchronous handle is made when it is first used."""

    def __init__(self, tx: AsyncTransaction, make: Callable[[], Any]) -> None:
        self._tx = tx
        self._make = make
        self._made: Any = None

    async def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return await self._tx.run(lambda: getattr(self._plain(), name)(*args, **options))

    def _plain(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


class AsyncTxAvailableMap(AsyncTxMap[R], Generic[R, T]):
    """An available map in a transaction; see ``onefold.state.available.transactions.maps``."""

    async def put(  # type: ignore[override]  # what is put may differ from what is read
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

    async def put_many(self, items: Pairs, *, ttl: Duration | None = None) -> None:
        """Set several keys."""
        await self._call("put_many", items, ttl=ttl)

    async def update(self, other: Any = (), /, **more: T) -> None:  # type: ignore[override]
        """As of a dict."""
        await self._call("update", other, **more)

    async def patch(
        self,
        key: Any,
        set: Mapping[str, Any] | None = None,
        *,
        unset: Iterable[str] | str | None = None,
        inc: object = None,
        push: object = None,
        if_version: object = None,
    ) -> None:
        """Set and remove some top-level fields of an item of a map with ``merge="fields"``."""
        await self._call("patch", key, set, unset=unset, inc=inc, push=push, if_version=if_version)

    async def modify(  # type: ignore[override]
        self, key: Any, fn: Callable[[Any], T], default: Any = None, *, ttl: Duration | None = None
    ) -> R:
        """Replace the value by ``fn(value)``; the new value."""
        found: R = await self._call("modify", key, fn, default, ttl=ttl)
        return found


class AsyncTxCounters(_Handle):
    """Counters in a transaction; see ``onefold.state.available.transactions.counters``."""

    def __init__(self, tx: AsyncTransaction, name: str | AsyncCounters, floor: int | None) -> None:
        def make() -> TxCounters:
            return tx.sync.counters(name if isinstance(name, str) else name.sync, floor=floor)

        super().__init__(tx, make)

    async def get(self, key: Any, default: int = 0) -> int:
        """The value, or ``default`` where nothing was counted."""
        return int(await self._call("get", key, default))

    async def contains(self, key: Any) -> bool:
        """Whether anything was counted."""
        return bool(await self._call("__contains__", key))

    async def count(self) -> int:
        """How many counters there are. The transaction then depends on all of them."""
        return int(await self._call("__len__"))

    def items(
        self, *, prefix: Any = None, start: Any = None, stop: Any = None, limit: int | None = None
    ) -> TxScan[tuple[Any, int]]:
        """Keys and values in key order, for ``async for``."""
        return TxScan(
            self._tx, lambda: self._plain().items(prefix=prefix, start=start, stop=stop, limit=limit)
        )

    async def add(self, key: Any, n: int = 1) -> None:
        """Add to a counter when the transaction commits."""
        await self._call("add", key, n)

    async def delete(self, key: Any) -> bool:
        """Delete a counter when the transaction commits; whether anything was counted."""
        return bool(await self._call("delete", key))


class AsyncTxSets(_Handle):
    """Sets in a transaction; see ``onefold.state.available.transactions.sets``."""

    def __init__(self, tx: AsyncTransaction, name: str | AsyncSets) -> None:
        def make() -> TxSets:
            return tx.sync.sets(name if isinstance(name, str) else name.sync)

        super().__init__(tx, make)

    async def get(self, key: Any) -> set[Any]:
        """The elements of a set; none for one that is not there."""
        found: set[Any] = await self._call("get", key)
        return found

    async def contains(self, key: Any, element: Any) -> bool:
        """Whether an element is in a set."""
        return bool(await self._call("contains", key, element))

    async def count(self) -> int:
        """How many sets have elements. The transaction then depends on all of them."""
        return int(await self._call("__len__"))

    def items(
        self, *, prefix: Any = None, start: Any = None, stop: Any = None, limit: int | None = None
    ) -> TxScan[tuple[Any, set[Any]]]:
        """Keys and their sets in key order, for ``async for``."""
        return TxScan(
            self._tx, lambda: self._plain().items(prefix=prefix, start=start, stop=stop, limit=limit)
        )

    async def add(self, key: Any, *elements: Any, ttl: Duration | None = None) -> None:
        """Add elements when the transaction commits."""
        await self._call("add", key, *elements, ttl=ttl)

    async def discard(self, key: Any, *elements: Any) -> None:
        """Remove elements when the transaction commits."""
        await self._call("discard", key, *elements)

    async def delete(self, key: Any) -> bool:
        """Remove all elements when the transaction commits; whether there were any."""
        return bool(await self._call("delete", key))
