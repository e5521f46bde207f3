"""Decisions on regions: each log of this region gets what was decided in the space's log.

They are read from the node's own replica of the space's shard 0, so nothing waits for its log to have a majority.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onefold.available.regions import read_self
from onefold.errors import OnefoldError
from onefold.fold.nodes.regions import Decision, Evict, read_decisions
from onefold.regions.decisions import apply_decisions

if TYPE_CHECKING:
    from onefold.node.maintenance import Round
    from onefold.regions.cluster import ClusterNeighbours
    from onefold.shard.api import Shard


class Decisions:
    """Appends to the logs of this region what was decided: one of the duties, of the first node of each shard."""

    def __init__(self, name: str, first: Callable[[], Shard | None], neighbours: ClusterNeighbours) -> None:
        """``first``: the replica of the space's shard 0; None while it does not answer. ``neighbours``: where the last effect of
        an evicted region that counts is looked up."""
        self._name = name
        self._first = first
        self._neighbours = neighbours
        self._done: dict[int, int] = {}
        """By shard, how many decisions its log has."""

    def look(self, now: Round) -> None:
        """Append what is missing. Raises as ``Shard.submit``."""
        first = self._first()
        if first is None:
            return
        with first.view() as view:
            decisions = read_decisions(view)
        for shard, replica in now.hosted.items():
            if now.placement.get(shard, ("",))[0] != self._name or self._done.get(shard) == len(decisions):
                continue
            if self._apply(replica, shard, decisions):
                self._done[shard] = len(decisions)

    def _apply(self, replica: Shard, shard: int, decisions: Sequence[Decision]) -> bool:
        """Whether the log has all of them now."""
        with replica.view() as view:
            me = read_self(view)
        final = 0
        if any(isinstance(one, Evict) and one.number == me.number for one in decisions) and not me.retired:
            found = self._final(shard, me.number)
            if found is None:
                return False
            final = found
        apply_decisions(replica, decisions, final=final)
        return True

    def _final(self, shard: int, number: int) -> int | None:
        """The last effect of the evicted region ``number`` that counts, as any other region knows it; None: not known yet."""
        for other in self._neighbours.others():
            try:
                with self._neighbours.shard(other.name, shard).view() as view:
                    region = read_self(view).regions.get(number)
            except OnefoldError:
                continue  # another one may be reached
            if region is not None and region.final:
                return region.limit
        return None
