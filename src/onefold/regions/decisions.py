"""What was decided on regions comes into the log of each of them: everything, in the same order.

All this may be done again, and by several at once: a log takes each decision once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onefold.available import ops
from onefold.available.regions import Known, read_self
from onefold.fold.nodes.regions import Admit, Decision, Evict, Reclaim, living, read_decisions
from onefold.shard.api import Shard
from onefold.shard.requirements import ReadRequirement


def missing(me: Known, decisions: Sequence[Decision], final: int = 0) -> Iterator[ops.AvailableOp]:
    """What a log that knows this lacks, in order. ``final``: if its own region was evicted, its last effect that counts."""
    for decision in decisions:
        match decision:
            case Admit(number, name, founder):
                if number not in me.regions:
                    yield ops.Admit(number, name, founder=founder)
            case Evict(number, round):
                if number != me.number:
                    region = me.regions.get(number)
                    if region is None or not region.round:
                        yield ops.Evict(number, round)
                elif not me.retired:
                    yield ops.Retire(final)
            case Reclaim(number, heir):
                if number != me.number:
                    region = me.regions.get(number)
                    if region is None or not region.heir:
                        yield ops.Reclaim(number, heir)


def apply_decisions(
    shard: Shard, decisions: Sequence[Decision], *, final: int = 0, deadline: float | None = None
) -> bool:
    """Append to one log of a region what it lacks of them; whether that was anything. In an evicted region's log that
    is noted, and nothing is written there any more.

    ``final``: of an evicted region, its last effect in this shard that counts; 0 while that is not known. ``deadline``: as that
    of ``Shard.submit``. Raises as it does.
    """
    with shard.view() as view:
        lacking = list(missing(read_self(view), decisions, final))
    if lacking:
        shard.submit([ops.available_op(op) for op in lacking], deadline)
    return bool(lacking)


def region_names(space: Sequence[Shard]) -> list[str]:
    """The names of those that are not evicted, in the order in which they came. ``space``: the shards of the space itself. One in
    memory, and one in which no region was used yet, has none. Raises as ``Shard.view``."""
    with space[0].view(need=ReadRequirement()) as view:
        return [region.name for region in living(read_decisions(view))]
