"""Which regions a space has, as it was decided; asking makes none."""

from __future__ import annotations

from collections.abc import Sequence

from onefold.fold.nodes.regions import living, read_decisions
from onefold.shard.api import Shard
from onefold.shard.requirements import ReadRequirement


def region_names(space: Sequence[Shard]) -> list[str]:
    """The names of those that are not evicted, in the order in which they came. ``space``: the shards of the space itself. One in
    memory, and one in which no region was used yet, has none. Raises as ``Shard.view``."""
    with space[0].view(need=ReadRequirement()) as view:
        return [region.name for region in living(read_decisions(view))]
