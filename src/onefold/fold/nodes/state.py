"""What the nodes fold knows, for reading: nodes, reported hashes, snapshots, archives, and how far a log may be trimmed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from onefold import config
from onefold.fold.api import StoreView, prefix_stop
from onefold.fold.nodes import rows
from onefold.fold.nodes.rows import AgreedState, ArchiveState, HashState, NodeState, decode


class Node(NamedTuple):
    """A node, by name."""

    name: str
    state: NodeState

    @property
    def member(self) -> bool:
        """Whether its epoch is in force."""
        return self.state.state in rows.MEMBERS

    @property
    def draining(self) -> bool:
        """Whether it is about to leave."""
        return self.state.state == rows.DRAINING

    @property
    def shards(self) -> frozenset[int]:
        """The shards that it answers reads of."""
        return frozenset(shard for shard, _ in self.state.hosted)


class SnapshotAt(NamedTuple):
    """A snapshot of a state that two nodes have alike."""

    shard: int
    offset: int
    hash: str
    blob: str
    bytes: int


class Archive(NamedTuple):
    """A closed range of a log in the blob store; both ends are included."""

    shard: int
    start: int
    stop: int
    blob: str
    bytes: int


ReportedHashes = dict[tuple[int, int], dict[str, str]]
"""By (shard, offset): what each node reports for that offset, as text."""


def read_node(view: StoreView, name: str) -> NodeState | None:
    """One node."""
    data = view.get(rows.NODE, name.encode())
    return None if data is None else decode(data, NodeState)


def read_nodes(view: StoreView) -> list[Node]:
    """All nodes that are known, by name; also those that are gone."""
    return [Node(key.decode(), decode(data, NodeState)) for key, data in view.scan(rows.NODE)]


def digests(view: StoreView) -> ReportedHashes:
    """The log digests that nodes report."""
    found: ReportedHashes = {}
    for key, data in view.scan(rows.DIGEST):
        shard, offset, name = rows.read_place(key)
        found.setdefault((shard, offset), {})[name] = data.hex()
    return found


def hashes(view: StoreView) -> ReportedHashes:
    """The state hashes that nodes report."""
    found: ReportedHashes = {}
    for key, data in view.scan(rows.HASH):
        shard, offset, name = rows.read_place(key)
        found.setdefault((shard, offset), {})[name] = decode(data, HashState).hash
    return found


def agreed(view: StoreView, shard: int) -> list[SnapshotAt]:
    """The agreed states of a shard, oldest first; ``blob`` is empty where no snapshot was made."""
    prefix = rows.shard_key(shard)
    found = []
    for key, data in view.scan(rows.AGREED, prefix, prefix_stop(prefix)):
        state = decode(data, AgreedState)
        found.append(SnapshotAt(shard, rows.read_place(key)[1], state.hash, state.blob, state.bytes))
    return found


def snapshots(view: StoreView, shard: int) -> list[SnapshotAt]:
    """The snapshots of a shard that can be started from, oldest first."""
    return [one for one in agreed(view, shard) if one.blob]


def archives(view: StoreView, shard: int) -> Iterator[Archive]:
    """The archived ranges of a shard's log, oldest first."""
    prefix = rows.shard_key(shard)
    for key, data in view.scan(rows.ARCHIVE, prefix, prefix_stop(prefix)):
        state = decode(data, ArchiveState)
        yield Archive(shard, rows.read_place(key)[1], state.stop, state.blob, state.bytes)


def archived_to(view: StoreView, shard: int) -> int | None:
    """The last offset of a shard's log that is archived; None: nothing is."""
    prefix = rows.shard_key(shard)
    for _, data in view.scan(rows.ARCHIVE, prefix, prefix_stop(prefix), limit=1, reverse=True):
        return decode(data, ArchiveState).stop
    return None


def trim_floor(view: StoreView, shard: int, *, archived: bool) -> int:
    """Records below this offset may be removed from a shard's log; 1: none may.

    That is up to the oldest snapshot of an agreed state, once there are ``config.SNAPSHOTS_KEPT`` of them: who is less far behind
    than that continues by the log. ``archived``: nothing is removed that is not in the archive.
    """
    made = snapshots(view, shard)
    if len(made) < config.SNAPSHOTS_KEPT:
        return 1
    upto = made[0].offset
    if archived:
        upto = min(upto, archived_to(view, shard) or 0)
    return upto + 1


def garbage(view: StoreView, limit: int) -> list[str]:
    """Blobs that nothing names any more."""
    return [key.decode() for key, _ in view.scan(rows.GARBAGE, limit=limit)]


def named(view: StoreView, blobs: Iterable[str]) -> frozenset[str]:
    """Those of the blobs that snapshots or archives name."""
    found = {decode(data, HashState).blob for _, data in view.scan(rows.HASH)}
    found |= {decode(data, AgreedState).blob for _, data in view.scan(rows.AGREED)}
    found |= {decode(data, ArchiveState).blob for _, data in view.scan(rows.ARCHIVE)}
    return frozenset(found.intersection(blobs))
