"""Collections inside a transaction, made from their names or plain handles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onefold.errors import InvalidArgument
from onefold.state.available.counters import Counters, check_floor
from onefold.state.available.maps.map import AvailableMap
from onefold.state.available.maps.merges import LAST_WRITER_WINS
from onefold.state.available.sets import Sets
from onefold.state.available.transactions.counters import TxCounters
from onefold.state.available.transactions.maps import TxAvailableMap
from onefold.state.available.transactions.sets import TxSets
from onefold.state.encoding.names import check_name

if TYPE_CHECKING:
    from onefold.state.available.transactions.part import AvailablePart


def is_available(handle: object, mode: object) -> bool:
    """Whether a map is meant that every region can write. Raises InvalidArgument for the handle of one with another mode."""
    if not isinstance(handle, AvailableMap):
        return mode == "available"
    if mode not in (None, "available"):
        raise InvalidArgument(f"{handle!r} is an available map, not of mode={mode!r:.100}")
    return True


def map(
    part: AvailablePart,
    name: str | AvailableMap[Any, Any] | object,
    type: type[Any] | None,
    merge: str | Callable[[list[Any]], Any] | None,
) -> TxAvailableMap[Any, Any]:
    """See ``Transaction.map``."""
    if isinstance(name, str):
        return TxAvailableMap(
            part, AvailableMap(part.client, name, merge=merge or LAST_WRITER_WINS, type=type)
        )
    if not isinstance(name, AvailableMap):
        raise InvalidArgument(f"{name!r:.100} is not an available map")
    if merge is not None and merge != name.merge:
        raise InvalidArgument(f"{name!r} has merge={name.merge!r:.100}, not {merge!r:.100}")
    if type is not None:
        name = AvailableMap(part.client, name.name, merge=name.merge, type=type)
    return TxAvailableMap(part, name)


def counters(part: AvailablePart, name: str | Counters, floor: int | None) -> TxCounters:
    """See ``Transaction.counters``."""
    if isinstance(name, str):
        check_floor(floor)
        return TxCounters(part, check_name("counters", name), floor)
    if not isinstance(name, Counters):
        raise InvalidArgument(f"tx.counters takes the name of counters or their handle; got {name!r:.100}")
    if floor is not None and floor != name.floor:
        raise InvalidArgument(f"{name!r} has floor={name.floor}, not {floor!r:.60}")
    return TxCounters(part, name.name, name.floor)


def sets(part: AvailablePart, name: str | Sets) -> TxSets:
    """See ``Transaction.sets``."""
    if isinstance(name, str):
        return TxSets(part, check_name("sets", name))
    if not isinstance(name, Sets):
        raise InvalidArgument(f"tx.sets takes the name of sets or their handle; got {name!r:.100}")
    return TxSets(part, name.name)
