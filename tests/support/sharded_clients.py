"""Clients of shared state over several shards."""

from contextlib import closing, contextmanager

from onefold.env import SYSTEM
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.fold.machine import StateFold


@contextmanager
def client_of(shards):
    """A client over several shards in memory."""
    spaces = [MemoryShard(MemoryLog(env=SYSTEM), [StateFold(shards)], SYSTEM) for _ in range(shards)]
    with closing(StateClient(spaces)) as client:
        yield client
