"""All collections of a region, as lists show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from onefold.available import reading
from onefold.available.kinds import places
from onefold.available.kinds.places import read_row, split_key, split_place
from onefold.available.rows import table_of
from onefold.shard.api import View
from onefold.state.available.maps.merges import BY_FIELDS, KEEP_BOTH, LAST_WRITER_WINS
from onefold.state.core.contents import Collection, CollectionKind

MERGES: Final = {places.REGISTER: LAST_WRITER_WINS, places.FIELDS: BY_FIELDS, places.KEEP_BOTH: KEEP_BOTH}
"""How a map is merged, by the letter of its kind."""


def places_in(views: Sequence[View]) -> list[str]:
    """Where there are collections, by name. ``views``: one of each of the region's shards."""
    found = {place for view in views for _, known in reading.names(view) for place in known}
    return sorted(found, key=lambda place: (split_place(place)[1], place))


def collections(views: Sequence[View], wall_ms: int) -> Iterator[Collection]:
    """Those that hold something that has not ended by that clock, by name. Looks at every row."""
    for place in places_in(views):
        letter, name, floor = split_place(place)
        counts = [_count(view, place, wall_ms) for view in views]
        if any(counts):
            merge = MERGES.get(letter)
            kind: CollectionKind = (
                "map" if merge is not None else "sets" if letter == places.SET else "counters"
            )
            shards = tuple(shard for shard, count in enumerate(counts) if count)
            yield Collection(kind, name, sum(counts), shards, "available", merge, floor)


def _count(view: View, place: str, wall_ms: int) -> int:
    count, last = 0, None
    for key, data in view.scan(table_of(view, place)):
        if read_row(place, data).expired(wall_ms).is_live():
            shown = (
                split_key(key)[0] if place[0] == places.SET else key
            )  # elements of a set are rows of their own
            count += shown != last
            last = shown
    return count
