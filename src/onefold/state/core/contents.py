"""What a kind of collection says of everything that there is of it: for lists of collections, exports and checks.

Each kind has one such description next to its handles, and all are listed in ``state.kinds``. It reads views only, one of each
shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from onefold.shard.api import View

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient

CollectionKind = Literal["map", "queue", "stream", "lock", "live job", "table", "counters", "sets"]


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection of a space."""

    kind: CollectionKind
    name: str
    count: int
    """Items of a map, messages of a queue that are not yet acknowledged, records kept of a stream, finished tasks of a table,
    bundles of a live job, keys of counters and sets, and of a lock that somebody has: who waits for it."""
    shards: tuple[int, ...] = (0,)
    """Where it lives; of a map and a stream those that hold some of it."""
    mode: Literal["consistent", "available"] = "consistent"
    """``available``: every region can write it. The count is what this connection's region knows."""
    merge: str | None = None
    """Of an available map: ``last_writer_wins``, ``fields``, or ``keep_both``, which a function of the siblings has too."""
    floor: int | None = None
    """Of counters that have one."""


@dataclass(frozen=True)
class Contents:
    """What there is of one kind."""

    collections: Callable[[Sequence[View]], Iterator[Collection]]
    """Those that hold something, by name."""
    export: Callable[[StateClient, Sequence[View]], Iterator[dict[str, Any]]] | None = None
    """Everything in them as lines of an export, by the views of a client. None: it is not exported."""
    holders: Callable[[View], Iterator[tuple[str, str]]] | None = None
    """What somebody holds in a shard, in words, and which process that is (as ``Shard.member_alive`` knows it)."""
    given_up: Callable[[View], Iterator[tuple[str, int]]] | None = None
    """Of which collection of a shard how much was given up, and waits for somebody to decide about it."""


def table_names(views: Sequence[View], prefix: str) -> list[str]:
    """The names of collections that have each a table below this prefix, and ever held something."""
    return sorted({table.removeprefix(prefix) for view in views for table in view.tables(prefix)})
