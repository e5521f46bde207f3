"""The region of a space in memory: there is one, and nobody else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold.regions.beginning import LOCAL, first_ops, founders
from onefold.space.open_space import Folds, open_shards

if TYPE_CHECKING:
    from onefold.env import Env
    from onefold.regions.peers import Peers
    from onefold.shard.api import Shard


class RegionInMemory:
    """A region that is open in this process."""

    number = 1
    peers: Peers | None = None

    def __init__(self, name: str, shards: Sequence[Shard]) -> None:
        self.name = name
        self.shards = shards

    def look(self) -> None:
        """There is no other region."""

    def close(self) -> None:
        """Forget it."""
        for shard in self.shards:
            shard.close()


def open_in_memory(shard_count: int, region: str | None, env: Env, *, folds: Folds) -> RegionInMemory:
    """Make the region of a space in memory, which keeps nothing. ``region``: its name (None: ``local``)."""
    name = region or LOCAL
    shards = open_shards("memory://", folds, shards=shard_count, env=env)
    for number, shard in enumerate(shards):
        shard.submit(first_ops(founders([name]), 1, number))
    return RegionInMemory(name, shards)
