"""All shards of a space as live jobs on a node use them: its own replicas, and other nodes' by questions.

A job's rows, its inputs and what it writes may be in any shard, while a node hosts some. So a node works on every job, wherever
the shards were placed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onefold.shard.api import Shard


class AllShards:
    """For one thread."""

    def __init__(
        self, ready: Callable[[], Mapping[int, Shard]], open_remote: Callable[[int], Shard], shard_count: int
    ) -> None:
        """``ready``: the replicas here that answer, by shard. ``open_remote``: gives a shard that asks other nodes, and asks
        nobody yet."""
        self._ready = ready
        self._open_remote = open_remote
        self._shard_count = shard_count
        self._remote: dict[int, Shard] = {}

    def now(self) -> tuple[Shard, ...] | None:
        """Each shard in order: the replica here, or one that asks. None while shard 0, which every node hosts, is not ready.

        While a shard stays where it is, it is the same object. Raises OnefoldError.
        """
        ready = self._ready()
        if 0 not in ready:
            return None
        for shard in range(self._shard_count):
            if shard not in ready and shard not in self._remote:
                self._remote[shard] = self._open_remote(shard)
        return tuple(ready.get(shard) or self._remote[shard] for shard in range(self._shard_count))

    def close_others(self, used: Sequence[Shard]) -> None:
        """Close those that it has opened and that are not among these: a replica has come in their place."""
        for shard, opened in list(self._remote.items()):
            if not any(opened is one for one in used):
                del self._remote[shard]
                opened.close()

    def close(self) -> None:
        """Close what it has opened."""
        while self._remote:
            self._remote.popitem()[1].close()
