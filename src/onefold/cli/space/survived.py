"""What ``onefold explain`` says of failures: for a consistent collection, and for one that every region can write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onefold.cli.collections.available import MERGES

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.doctor.facts import ClusterFacts
    from onefold.doctor.survival import Survival
    from onefold.fold.nodes.state import Node
    from onefold.state.available.status import Region
    from onefold.state.catalog import Collection


def as_json(survives: list[Survival]) -> list[dict[str, Any]]:
    """``survives`` for `explain --json`."""
    return [
        {
            "failure": one.failure,
            "writes": (one.where or "yes") if one.writes else "no",
            "reads": one.reads,
            "why": one.why,
            "remote": {
                "writes": (one.where or "yes") if one.remote_writes else "no",
                "reads": one.remote_reads,
            },
            "kept": one.kept,
        }
        for one in survives
    ]


def consistent(
    db: Database, collection: Collection, facts: ClusterFacts | None
) -> tuple[list[Survival], list[str]]:
    """Which failures it survives, and the same for people."""
    from onefold.fold.nodes.state import read_nodes

    consistency = "It is CP: every operation is linearizable, and transactions are strictly serializable."
    if facts is not None and facts.space is not None:
        with db._shards[0].view() as view:
            nodes = read_nodes(view)
        spread = collection.kind in ("map", "stream")  # what is written next may go to any shard
        shards = list(range(len(db._shards))) if spread else list(collection.shards)
        found, told = on_cluster(facts, nodes, shards, is_table=collection.kind == "table")
        return found, [consistency, *told]
    found, told = _here(db)
    return found, [consistency, *told]


def on_cluster(
    facts: ClusterFacts, nodes: Iterable[Node], shards: list[int], *, is_table: bool
) -> tuple[list[Survival], list[str]]:
    """The same of what the logs of these shards hold."""
    from onefold.doctor import region_survival, survival, survival_facts

    if facts.space is not None and facts.space.regions:
        over = survival_facts.over_regions(facts, nodes, shards, with_blobs=is_table)
        told = region_survival.sentences(over, available=False)
        found = region_survival.survivals(over, available=False)
    else:
        standing = survival_facts.standing_of(facts, nodes, shards, with_blobs=is_table)
        told = survival.sentences(standing)
        found = survival.survivals(standing)
    if is_table and facts.space is not None and facts.space.blobs != "jetstream":
        told.append(f"Its results are in {facts.space.blobs}, whose failures are not counted here.")
    return found, told


def _here(db: Database, *, regions: int = 0) -> tuple[list[Survival], list[str]]:
    """Of a space on this machine. ``regions``: of an available collection, how many there are."""
    from onefold.doctor import survival, survival_facts

    if db.url.startswith("memory:"):
        found = survival.of_memory()
    else:
        folder = Path(db.url.removeprefix("sqlite://"))
        found = survival.of_folder(in_memory=survival_facts.is_in_memory(folder), regions=regions)
    return found, survival.folder_sentences(found)


# -- available collections


def available(db: Database, name: str, facts: ClusterFacts | None) -> list[dict[str, Any]]:
    """What the region has of that name: one, if anything; several where regions made it as different kinds."""
    from onefold.state.available.places import places_of

    if not _choose_region(db, facts):
        return []
    return [_collection(db, place, facts) for place in places_of(db._available, name)]


def _choose_region(db: Database, facts: ClusterFacts | None) -> bool:
    """Whether there are regions. Of a connection that names none it is the first one whose logs take records."""
    if facts is not None and facts.space is not None:
        silent = {one.region for one in facts.streams if one.log is not None and one.info is None}
        names = sorted(facts.space.regions, key=lambda name: name in silent)
    else:
        from onefold.regions.decisions import region_names

        names = region_names(db._shards)
    if names and db._default_region is None:
        db._default_region = names[0]
    return bool(names)


def _collection(db: Database, place: str, facts: ClusterFacts | None) -> dict[str, Any]:
    from onefold.available.kinds.places import split_place

    kind, name, floor = split_place(place)
    client, regions = db._available, db.regions()
    merge = MERGES.get(kind)
    what = "map" if merge is not None else ("sets" if kind == "s" else "counters")
    count = _count(db, place)
    survives, told = _survives(db, facts, regions)
    made_as = (
        f" of merge {merge}" if merge is not None else "" if floor is None else f" with the floor {floor}"
    )
    sentences = [
        f"{what.capitalize()} {name!r}{made_as}: {count:,} {'items' if merge is not None else 'keys'}, as region "
        f"{client.region.name} knows it.",
        "It is AP: every region writes it at any time, and what others wrote is merged when it arrives.",
        *told,
        *_lag_sentences(regions),
    ]
    others = [region for region in regions if region.state not in ("here", "evicted")]
    return {
        "kind": what,
        "count": count,
        "shards": list(range(client.shard_count)),
        "sentences": sentences,
        "mode": "available",
        "survives": as_json(survives),
        "region": client.region.name,
        "merge": merge,
        "floor": floor,
        "lag": [
            {"region": one.name, "state": one.state, "writes": one.behind_writes, "seconds": one.behind_s}
            for one in others
        ],
    }


def _count(db: Database, place: str) -> int:
    from onefold.available import reading
    from onefold.available.kinds.places import split_place
    from onefold.shard.requirements import ReadRequirement

    kind, name, _ = split_place(place)
    count = 0
    for shard in db._available.shards:
        with shard.view(need=ReadRequirement()) as view:
            found = reading.sets(view, name) if kind == "s" else reading.items(view, place)
            count += sum(1 for _ in found)
    return count


def _survives(
    db: Database, facts: ClusterFacts | None, regions: list[Region]
) -> tuple[list[Survival], list[str]]:
    if facts is None or facts.space is None:
        return _here(db, regions=len(regions))
    from onefold.doctor import region_survival, survival_facts
    from onefold.errors import OnefoldError
    from onefold.fold.nodes.state import read_nodes

    client = db._available
    nodes: dict[str, Node] = {}
    for shard in (db._shards[0], client.shards[0]):
        # The consistent logs may be away: their nodes are not needed for what the region does by itself.
        with contextlib.suppress(OnefoldError), shard.view() as view:
            nodes |= {node.name: node for node in read_nodes(view)}
    gone = [region.name for region in regions if region.state == "evicted"]
    shards = list(range(client.shard_count))
    over = survival_facts.over_regions(facts, nodes.values(), shards, evicted=gone)
    return (
        region_survival.survivals(over, available=True),
        region_survival.sentences(over, available=True),
    )


def _lag_sentences(regions: list[Region]) -> list[str]:
    """What would be lost with disks now."""
    found = []
    for one in regions:
        if one.state in ("here", "evicted"):
            continue
        if one.behind_writes:
            found.append(
                f"Now: {one.behind_writes:,} writes of up to {one.behind_s:.1f} s are not exchanged with region {one.name} "
                f"({one.state}), as far as is known here: they are lost if the disks that have them are."
            )
        elif one.state == "linked":
            found.append(f"Now: all writes are exchanged with region {one.name}.")
        else:
            found.append(f"Now: region {one.name} is {one.state}; what it wrote since is not known here.")
    return found
