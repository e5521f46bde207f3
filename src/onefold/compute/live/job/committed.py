"""How far the inputs of a job are committed over all of its bundles, and what of them is not. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from onefold.compute.live.idleness import Place
    from onefold.compute.live.plan import StreamInput
    from onefold.state.fold.live.ops import Position
    from onefold.state.fold.live.rows import BundleRow


def committed(bundles: Iterable[BundleRow]) -> dict[Place, Position]:
    """Of each partition, in their order, the lowest position of all bundles; it is idle only if it is idle in all."""
    found: dict[Place, Position] = {}
    for row in bundles:
        for one in row.positions:
            place = (one.input, one.partition)
            other = found.get(place, one)
            least = min(one, other, key=lambda at: (at.next, at.idle))
            found[place] = msgspec.structs.replace(least, idle=one.idle and other.idle)
    return {place: found[place] for place in sorted(found)}


def unread(
    positions: Mapping[Place, Position], heads: Mapping[Place, int], inputs: Sequence[StreamInput]
) -> dict[Place, int]:
    """How many records of each partition are not committed; only partitions with any. A history does not count as one."""
    return {
        place: heads[place] - one.next
        for place, one in positions.items()
        if heads.get(place, 0) > one.next and not inputs[place[0]].history
    }
