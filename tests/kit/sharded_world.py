"""A space of several shards in memory, with clients that take steps: for tests of transactions over shards."""

from __future__ import annotations

from collections.abc import Callable

from kit.stepper import Stepper, stepped
from onefold import config
from onefold.env import SeededEnv
from onefold.log.memory import Faults, MemoryLog
from onefold.shard.api import View
from onefold.shard.memory import MemoryShard
from onefold.state.core import recovery
from onefold.state.core.client import StateClient
from onefold.state.encoding.keys import encode_key, shard_of
from onefold.state.fold.machine import StateFold

_KEPT = ("locks", "ranges", "open", "prepared", "parts", "decided")


class ShardedWorld:
    """Logs, and clients with replicas of their own. Everything comes from the seed."""

    def __init__(
        self, seed: int, shards: int = 3, *, alive: Callable[[str], bool | None] = lambda _: None
    ) -> None:
        """``alive``: what is known of a client's process, see ``Shard.member_alive``."""
        self.shards = shards
        self.env = SeededEnv(seed)
        self.stepper = Stepper(seed)
        self.logs = [MemoryLog(seed=seed * shards + shard, env=self.env) for shard in range(shards)]
        self._alive = alive

    def client(self, *, replica: bool = False) -> StateClient:
        """Another program. ``replica``: its reads are strong by barriers only."""
        shards = [
            MemoryShard(log, [StateFold(self.shards)], self.env, pause=self.env.advance, replica=replica)
            for log in self.logs
        ]
        return StateClient([stepped(shard, self.stepper, self.env, self._alive) for shard in shards])

    def keys(self, shard: int, many: int) -> list[bytes]:
        """The first keys ``a0``, ``a1``, ... that live in the shard."""
        found = (encode_key(f"a{number}") for number in range(100 * many * self.shards))
        return [key for key in found if shard_of(key, self.shards) == shard][:many]

    def fail(self, faults: Faults) -> None:
        """From now on appends go wrong."""
        for log in self.logs:
            log.faults = faults

    def heal(self) -> None:
        """No more faults, and what was late surfaces."""
        for log in self.logs:
            log.faults = Faults()
            log.surface_all()

    def end(self) -> StateClient:
        """Have everything decided that was left behind; raises AssertionError when something stays, or replays disagree."""
        client = self.client()
        recovery.recover(client)
        self.env.advance(config.TRANSACTION_TIMEOUT_S + 1)
        left = recovery.recover(client)
        assert left == 0, f"{left} transactions stay undecided"
        for shard_id, shard in enumerate(client.shards):
            with shard.view() as view:
                kept = left_behind(view)
            assert not kept, f"shard {shard_id} keeps {kept}"
            replayed = MemoryShard(self.logs[shard_id], [StateFold(self.shards)], self.env)
            assert replayed.state_digest() == shard.state_digest()  # type: ignore[attr-defined]
        return client


def left_behind(view: View) -> dict[str, list[tuple[bytes, bytes]]]:
    """Everything that transactions keep in a shard, save of tombstones."""
    return {table: found for table in _KEPT if (found := list(view.scan(f"state/x/{table}")))}
