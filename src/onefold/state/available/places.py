"""A name is one thing: whether a collection of this name may be used as what a program takes it for.

Asked when a handle is first used, of all shards of the region: each has its own list of names, and the fold of one refuses only
what another kind of collection has written there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold.available import reading
from onefold.available.kinds.places import split_place
from onefold.shard.requirements import ReadRequirement
from onefold.state.available.refusals import other_kind

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
