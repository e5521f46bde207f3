"""The kinds of collections that there are: the one list of them in the fold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Union

from onefold.state.fold.kind import Kind
from onefold.state.fold.live import fold as live
from onefold.state.fold.locks import fold as locks
from onefold.state.fold.maps import fold as maps
from onefold.state.fold.queues import fold as queues
from onefold.state.fold.streams import fold as streams

__all__ = ["BY_OPERATION", "BY_WRITE", "KINDS", "LATER", "NAMING", "SINGLE", "Operation", "Write"]

KINDS: Final = (maps.KIND, queues.KIND, locks.KIND, streams.KIND, live.KIND)
"""In the order in which they advance, which is part of the state that replicas agree on."""

BY_WRITE: Final[dict[type, Kind]] = {write: kind for kind in KINDS for write in kind.writes}
BY_OPERATION: Final[dict[type, Kind]] = {operation: kind for kind in KINDS for operation in kind.operations}
SINGLE: Final = frozenset(write for kind in KINDS for write in kind.single)
NAMING: Final = frozenset(write for kind in KINDS for write in kind.naming)
LATER: Final[dict[int, frozenset[type]]] = {
    version: frozenset(
        part
        for kind in KINDS
        for part in (*kind.writes, *kind.operations)
        if kind.later.get(part, kind.since) > version
    )
    for version in range(max(kind.version for kind in KINDS))
}
"""The writes and operations that are not there yet, by each fold version below the highest one."""

if TYPE_CHECKING:
    from onefold.state.fold.kind import Operation, Write
else:  # what records are decoded as: any of those that there are
    Write = Union[tuple(BY_WRITE)]  # noqa: UP007 - of as many as there are
    Operation = Union[tuple(BY_OPERATION)]  # noqa: UP007
