"""A name is one thing: whether a collection of this name may be used as what a program takes it for.

Asked when a handle is first used, of all shards of the region: each has its own list of names, and the fold of one refuses only
what another kind of collection has written there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold.available import reading
from onefold.available.kinds.places import split_place
from onefold.errors import InvalidArgument
from onefold.shard.requirements import ReadRequirement
from onefold.state.available.refusals import other_kind
from onefold.state.fold.rows import map_table

if TYPE_CHECKING:
    from onefold.state.available.client import RegionClient


def places_of(client: RegionClient, name: str) -> list[str]:
    """Where the region has collections of this name: several only where regions have made it as different kinds."""
    found: dict[str, None] = {}
    for number, shard in enumerate(client.shards):
        need = ReadRequirement(client.session.floor(number), timeout=client.read_time())
        with shard.view(need=need) as view:
            found |= dict.fromkeys(reading.places_of(view, name))
    return list(found)


def check_place(client: RegionClient, place: str) -> None:
    """Raises InvalidArgument (definite) if the collection's name stands for something else in this region."""
    name = split_place(place)[1]
    known = places_of(client, name)
    if known and place not in known:
        raise other_kind(name, known[0])
    if not known and _has_consistent_map(client, name):
        raise InvalidArgument(
            f"{name!r} is a consistent map already, and a name is one thing. Take another name, or copy what is in it by a loop"
        )


def check_consistent(client: RegionClient, name: str) -> None:
    """Raises InvalidArgument (definite) if the name stands for an available collection, as far as this process can see."""
    for shard in client.shards:
        if not shard.reads_here:
            continue
        with shard.view(need=ReadRequirement()) as view:
            known = reading.places_of(view, name)
        if known:
            raise other_kind(name, known[0])


def _has_consistent_map(client: RegionClient, name: str) -> bool:
    """As far as it can be seen without asking anybody: whether consistent maps have a majority now is not known."""
    for shard in client.space.shards:
        if shard.reads_here:
            with shard.view(need=ReadRequirement()) as view:
                if next(view.scan(map_table(name), limit=1), None) is not None:
                    return True
    return False
