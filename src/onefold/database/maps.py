"""Maps of a database: consistent ones, and those that every region can write."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from onefold.errors import InvalidArgument
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient
    from onefold.state.available.maps.map import AvailableMap
    from onefold.state.core.client import StateClient
    from onefold.state.core.consistency import Consistency
    from onefold.state.maps.map import Map

T = TypeVar("T")
R = TypeVar("R")
Mode = Literal["consistent", "available"]
OneValue = Literal["last_writer_wins", "fields"]
_DEFAULT_MERGE = "last_writer_wins"


class DatabaseMaps:
    """``Database.map``."""

    _region_client: RegionClient | None
    """Of the region, once it is open."""

    @property
    def _state(self) -> StateClient:
        raise NotImplementedError

    @property
    def _available(self) -> RegionClient:
        raise NotImplementedError

    @overload
    def map(
        self, name: str, *, mode: Literal["consistent"] = "consistent", consistency: Consistency | None = None
    ) -> Map[Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        type: type[T],
        mode: Literal["consistent"] = "consistent",
        consistency: Consistency | None = None,
    ) -> Map[T]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: OneValue = "last_writer_wins",
        consistency: Consistency | None = None,
    ) -> AvailableMap[Any, Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: OneValue = "last_writer_wins",
        type: type[T],
        consistency: Consistency | None = None,
    ) -> AvailableMap[T, T]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Literal["keep_both"],
        consistency: Consistency | None = None,
    ) -> AvailableMap[list[Any], Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Literal["keep_both"],
        type: type[T],
        consistency: Consistency | None = None,
    ) -> AvailableMap[list[T], T]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Callable[[list[Any]], R],
        consistency: Consistency | None = None,
    ) -> AvailableMap[R, Any]: ...

    @overload
    def map(
        self,
        name: str,
        *,
        mode: Literal["available"],
        merge: Callable[[list[T]], R],
        type: type[T],
        consistency: Consistency | None = None,
    ) -> AvailableMap[R, T]: ...

    def map(
        self,
        name: str,
        *,
        mode: Mode = "consistent",
        merge: str | Callable[[list[Any]], Any] = _DEFAULT_MERGE,
        type: type[Any] | None = None,
        consistency: Consistency | None = None,
    ) -> Map[Any] | AvailableMap[Any, Any]:
        """A shared map: a ``MutableMapping`` whose keys are str, int, bytes, bool, None or tuples of those.

        ``type``: a msgspec Struct, dataclass or other type of its values; new fields of it need defaults. ``consistency``: of its
        reads, instead of the connection's. The map need not exist: it is empty until something is put.

        ``mode="available"``: a map that every region can write at any time, merged later. ``merge``: what becomes of concurrent
        writes of one key. ``"last_writer_wins"``: the later one stays. ``"fields"``: the same for each top-level field.
        ``"keep_both"``: all are kept, and a key is read as their list. A function: that gets this list, and what it returns is
        read. It should be pure: it is called whenever the key is read. Reads of such a map are ``session`` ones unless
        ``consistency`` says otherwise.

        Raises:
            InvalidArgument: definite; a name or an argument is not valid, the name stands for another collection, or it is not
                clear which region is meant.
            UnsupportedConsistency: definite; an unknown level, or ``strong`` for an available map.
            Unavailable, TokenError: definite; the region cannot be opened, or the session's token is of another one.
        """
        if mode == "available":
            with first_use:
                from onefold.state.available.maps.map import AvailableMap
                from onefold.state.available.maps.reader import check_arguments

            level = check_arguments(name, merge, type, consistency)
            return AvailableMap(self._available, name, merge=merge, type=type, level=level)
        if mode != "consistent":
            raise InvalidArgument(f"mode must be 'consistent' or 'available'; got {mode!r:.100}")
        if merge != _DEFAULT_MERGE:
            raise InvalidArgument("merge is for maps that every region can write: mode='available'")
        from onefold.state.core.consistency import parse_level
        from onefold.state.maps.map import Map

        level = None if consistency is None else parse_level(consistency)
        made = Map(self._state, name, type=type, level=level)
        if self._region_client is not None:
            with first_use:
                from onefold.state.available.places import check_consistent

            check_consistent(self._region_client, name)
        return made
