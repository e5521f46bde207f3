"""Nodes of one process over logs in memory."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from onefold import config
from onefold.env import SYSTEM
from onefold.fold.api import Fold
from onefold.fold.nodes.state import Node as NodeRow
from onefold.fold.nodes.state import read_nodes
from onefold.folds import folds as space_folds
from onefold.log.memory import MemoryLog
from onefold.node.hosting import placement_of
from onefold.node.members.membership import Identity
from onefold.node.process import Node
from onefold.node.telemetry.logging import JsonLog
from onefold.shard.memory import MemoryShard
from support.times import scaled

SHARDS = 6


class Replica(MemoryShard):
    """A replica in memory."""

    @property
    def history(self) -> frozenset[str]:
        return self._replica.history

    def digests(self) -> Mapping[int, bytes]:
        with self._lock:
            self.check_open()
            return dict(self._con.execute("SELECT offset, digest FROM digests").fetchall())  # type: ignore[arg-type]


@dataclass
class Serving:
    ground: MemoryGround
    shard: int

    def close(self) -> None:
        self.ground.serving.discard(self.shard)


@dataclass
class MemoryGround:
    """Logs that all nodes of the test share; what one node opened and answers."""

    logs: list[MemoryLog]
    opened: dict[int, Replica] = field(default_factory=dict)
    serving: set[int] = field(default_factory=set)
    removed: list[int] = field(default_factory=list)
    stored: set[int] = field(default_factory=set)
    opening: Callable[[int], None] = lambda _: None
    folds: Callable[[int, int], Sequence[Fold]] = space_folds

    @property
    def shard_count(self) -> int:
        return len(self.logs)

    def open_replica(self, shard: int) -> Replica:
        assert shard not in self.stored, "two copies in one place"
        self.stored.add(shard)
        try:
            self.opening(shard)
        except BaseException:
            self.stored.discard(shard)
            raise
        folds = self.folds(shard, self.shard_count)
        self.opened[shard] = Replica(self.logs[shard].hold(1 << 60), folds, SYSTEM, replica=True)
        return self.opened[shard]

    def serve(self, shard: int, replica: Any) -> Serving:
        self.serving.add(shard)
        return Serving(self, shard)

    def condemn(self, shard: int, why: str) -> None:
        raise AssertionError(why)

    def remove(self, shard: int) -> None:
        self.stored.discard(shard)
        self.removed.append(shard)


class Running:
    """A node in a thread."""

    def __init__(
        self, logs: list[MemoryLog], name: str, ground: MemoryGround | None = None, **more: Any
    ) -> None:
        self.ground = ground or MemoryGround(logs)
        self.said = io.StringIO()
        identity = Identity(name, "eu", "a")
        self.node = Node(self.ground, identity, JsonLog(name, stream=self.said), **more)
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._run, name=f"node-{name}")
        self.thread.start()

    def _run(self) -> None:
        try:
            self.node.run()
        except BaseException as error:
            self.failed = error

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in self.said.getvalue().splitlines()]

    def end(self) -> None:
        self.node.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.005)
    return found


class World:
    def __init__(self) -> None:
        self.logs = [MemoryLog() for _ in range(SHARDS)]
        self.nodes: dict[str, Running] = {}
        self.space = MemoryShard(self.logs[0].hold(1 << 60), space_folds(0, SHARDS), SYSTEM, replica=True)

    def start(self, name: str, **more: Any) -> Running:
        self.nodes[name] = Running(self.logs, name, **more)
        return self.nodes[name]

    def rows(self) -> dict[str, NodeRow]:
        self.space.catch_up()
        with self.space.view() as view:
            return {node.name: node for node in read_nodes(view)}

    def states(self) -> dict[str, str]:
        return {name: node.state.state for name, node in self.rows().items()}

    def hosts(self) -> dict[int, set[str]]:
        """Who answers for each shard, as the fold has it."""
        found: dict[int, set[str]] = {shard: set() for shard in range(SHARDS)}
        for name, node in self.rows().items():
            for shard in node.shards:
                found[shard].add(name)
        return found

    def settled(self, *names: str) -> bool:
        """Whether just these nodes (default: all that were started) are members, and each stores and answers for exactly what is
        placed there, and says so."""
        rows_ = self.rows()
        if set(names or self.nodes) != {name for name, node in rows_.items() if node.member}:
            return False
        placement = placement_of(SHARDS, rows_.values())
        live = {name for name, node in rows_.items() if node.member}
        wanted = {shard: set(names) if shard else live for shard, names in placement.items()}
        stored = {
            shard: {name for name in live if shard in self.nodes[name].ground.stored} for shard in wanted
        }
        return self.hosts() == stored == wanted and all(self.nodes[name].node.ready()["ok"] for name in live)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(config, "NODE_BEAT_S", scaled(0.05))
    monkeypatch.setattr(config, "NODE_LEASE_S", 60)  # nobody is taken for dead because the machine is busy
    monkeypatch.setattr(config, "UPKEEP_LOOK_S", scaled(0.05))
    monkeypatch.setattr(config, "NODE_LOOK_S", scaled(0.01))
    made = World()
    yield made
    for running in made.nodes.values():
        running.end()
    made.space.close()


@pytest.fixture
def short_lease(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is silent is soon expired."""
    monkeypatch.setattr(config, "NODE_LEASE_S", scaled(2.0))
