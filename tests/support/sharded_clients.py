"""Clients of shared state over several shards."""

from contextlib import closing, contextmanager

from onefold.env import SYSTEM
from onefold.fold.log_space import LogSpace
from onefold.log.memory import MemoryLog
from onefold.state.client import StateClient
from onefold.state.fold import StateFold


@contextmanager
def client_of(shards):
    """A client over several shards in memory."""
    spaces = [LogSpace(MemoryLog(env=SYSTEM), [StateFold(shards)], SYSTEM) for _ in range(shards)]
    with closing(StateClient(spaces)) as client:
        yield client
