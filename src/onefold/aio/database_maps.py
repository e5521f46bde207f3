"""Maps of a database, asynchronously."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from onefold.aio.bridge import Bridge
from onefold.aio.maps import AsyncMap
from onefold.database import Database
from onefold.database.maps import Mode, OneValue
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.aio.available_maps import AsyncAvailableMap
    from onefold.state.core.consistency import Consistency

T = TypeVar("T")
R = TypeVar("R")
_DEFAULT_MERGE = "last_writer_wins"


class AsyncDatabaseMaps:
    """``AsyncDatabase.map``."""

    @property
    def sync(self) -> Database:
        raise NotImplementedError

    @property
    def _bridge(self) -> Bridge:
        raise NotImplementedError

    @overload
    def map(
        self, name: str, *, mode: Literal["consistent"] = "consistent", consistency: Consistency | None = None
    ) -> AsyncMap[Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        type: type[T],
        mode: Literal["consistent"] = "consistent",
        consistency: Consistency | None = None,
    ) -> AsyncMap[T]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: OneValue = "last_writer_wins",
        consistency: Consistency | None = None,
    ) -> AsyncAvailableMap[Any, Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: OneValue = "last_writer_wins",
        type: type[T],
        consistency: Consistency | None = None,
    ) -> AsyncAvailableMap[T, T]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Literal["keep_both"],
        consistency: Consistency | None = None,
    ) -> AsyncAvailableMap[list[Any], Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Literal["keep_both"],
        type: type[T],
        consistency: Consistency | None = None,
    ) -> AsyncAvailableMap[list[T], T]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Callable[[list[Any]], R],
        consistency: Consistency | None = None,
    ) -> AsyncAvailableMap[R, Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Callable[[list[T]], R],
        type: type[T],
        consistency: Consistency | None = None,
    ) -> AsyncAvailableMap[R, T]: ...

    def map(
        self,
        name: str,
        *,
        mode: Mode = "consistent",
        merge: str | Callable[[list[Any]], Any] = _DEFAULT_MERGE,
        type: type[Any] | None = None,
        consistency: Consistency | None = None,
    ) -> AsyncMap[Any] | AsyncAvailableMap[Any, Any]:
        """A shared map; see ``Database.map``. The region of an available one is opened by the first call that needs it."""
        options: dict[str, Any] = {"mode": mode, "merge": merge, "type": type, "consistency": consistency}
        if mode != "available":
            return AsyncMap(self._bridge, self.sync.map(name, **options))
        with first_use:
            from onefold.aio.available_maps import AsyncAvailableMap
            from onefold.state.available.maps.reader import check_arguments

        check_arguments(name, merge, type, consistency)
        return AsyncAvailableMap(self._bridge, self.sync._state, name, lambda: self.sync.map(name, **options))
