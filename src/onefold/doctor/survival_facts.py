"""What a collection stands on, gathered from a cluster's servers and from what its nodes say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from onefold.doctor.region_survival import OverRegions
from onefold.doctor.survival import Copy, NodeAt, Standing, Stream
from onefold.fold.nodes.state import Node
from onefold.log.jetstream import names
from onefold.log.jetstream.regions import WITNESS
from onefold.log.jetstream.streams import state_of

if TYPE_CHECKING:
    from onefold.doctor.facts import ClusterFacts, StreamFacts

_MEMORY_FILE_SYSTEMS: Final = frozenset({"tmpfs", "ramfs"})


def standing_of(
    facts: ClusterFacts, nodes: Iterable[Node], shards: Sequence[int], *, with_blobs: bool = False
) -> Standing:
    """What a collection in these shards stands on. ``with_blobs``: its content is among the space's blobs too."""
    assert facts.space is not None
    up: dict[str, str | None] = {
        server.name: server.region
        for server in facts.servers
        if server.name is not None and server.problem is None
    }
    places = {server.name: server.region for server in facts.servers if server.name is not None}
    blobs = names.blobs_stream(facts.space.space) if with_blobs and facts.space.blobs == "jetstream" else None
    streams = []
    for one in facts.streams:
        is_log = one.log is not None and not one.region and one.log.shard in shards
        if is_log or one.name == blobs:
            streams.append(_stream(one, facts, places, up, is_log=is_log))
    members = [
        NodeAt(
            node.name,
            set(shards) <= node.shards,
            frozenset(place for place in (node.state.region, node.state.zone) if place),
        )
        for node in nodes
        if node.member
    ]
    return Standing(tuple(streams), up, tuple(members))


def over_regions(
    facts: ClusterFacts,
    nodes: Iterable[Node],
    shards: Sequence[int],
    *,
    with_blobs: bool = False,
    evicted: Collection[str] = (),
) -> OverRegions:
    """The same in a space of several regions. ``shards``: also of the regions' own logs. ``evicted``: regions that do not count
    any more."""
    assert facts.space is not None
    space = standing_of(facts, nodes, shards, with_blobs=with_blobs)
    places = {server.name: server.region for server in facts.servers if server.name is not None}
    own: dict[str, tuple[Stream, ...]] = {}
    for logs in facts.space.region_logs:
        if logs.name not in evicted:
            own[logs.name] = tuple(
                _stream(one, facts, places, space.servers, is_log=True, replicas=logs.replicas)
                for one in facts.streams
                if one.region == logs.name and one.log is not None and one.log.shard in shards
            )
    return OverRegions(tuple(own), space, own, WITNESS)


def _stream(
    one: StreamFacts,
    facts: ClusterFacts,
    places: dict[str | None, str | None] | dict[str, str | None],
    up: dict[str, str | None],
    *,
    is_log: bool,
    replicas: int | None = None,
) -> Stream:
    """``replicas``: how many copies it is to have, where that is not what the space has."""
    assert facts.space is not None
    name = f"shard {one.log.shard}" if one.log is not None else "its blobs"
    if one.info is None:  # nobody leads it: a majority is away, and who is left cannot be determined
        known = tuple(Copy(server, False, places.get(server)) for server in sorted(one.copies))
        return Stream(name, replicas or facts.space.replicas, known, is_log)
    state = state_of(one.name, one.info)
    if not (one.info.get("cluster") or {}):  # one server, in no cluster
        alone = next(iter(up), "the server")
        return Stream(name, 1, (Copy(alone, True, places.get(alone)),), is_log)
    copies = tuple(
        Copy(server, server in state.current and server in up, places.get(server))
        for server in sorted(state.servers)
    )
    return Stream(name, state.replicas, copies, is_log)


def is_in_memory(folder: Path) -> bool:
    """Whether a folder's file system is one that a crash of the machine empties."""
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
        place = folder.resolve()
    except OSError:
        return False
    mounts = [line.split()[1:3] for line in lines if len(line.split()) > 2]
    above = [(len(Path(at).parts), kind) for at, kind in mounts if place.is_relative_to(at)]
    return bool(above) and max(above)[1] in _MEMORY_FILE_SYSTEMS
