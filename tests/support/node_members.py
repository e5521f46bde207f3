"""Nodes of a space of two shards over logs in memory, whose duties are done step by step."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onefold import config
from onefold.compute.blobs.backends import DirectoryBackend
from onefold.env import SYSTEM
from onefold.fold.nodes import state
from onefold.fold.nodes.state import SnapshotAt
from onefold.folds import folds as space_folds
from onefold.log.memory import MemoryLog
from onefold.node.divergence import DivergenceCheck
from onefold.node.maintenance import Round
from onefold.node.members.membership import Identity, Membership
from onefold.node.members.placement import Placement
from onefold.node.snapshots.snapshots import Snapshots
from onefold.node.snapshots.store import Vault
from onefold.node.snapshots.trimming import Trimming
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import NoTracing
from onefold.shard.memory import MemoryShard
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Commit, state_op

EVERY = 32


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SNAPSHOT_EVERY_OFFSETS", EVERY)
    monkeypatch.setattr(config, "DIGEST_EVERY_OFFSETS", 8)


class Replica(MemoryShard):
    """A replica in memory that comes to rest at boundaries, as persistent ones do."""

    boundary: Callable[[int, Any], None] | None = None

    def _apply_some(self, own: tuple[int, bytes] | None) -> None:
        before = self._replica.head.applied
        stop = (before // EVERY + 1) * EVERY
        held, self._log = self._log, self._log._log.hold(stop)  # type: ignore[attr-defined]
        try:
            super()._apply_some(own)
        finally:
            self._log = held
        if self.boundary is not None and self._replica.head.applied % EVERY == 0:
            self._con.execute("BEGIN")
            self.boundary(self._replica.head.applied, self._con)
            if self._con.in_transaction:
                self._con.execute("ROLLBACK")

    @property
    def history(self) -> frozenset[str]:
        return self._replica.history

    def digests(self) -> Mapping[int, bytes]:
        with self._lock:
            self.check_open()
            return dict(self._con.execute("SELECT offset, digest FROM digests").fetchall())  # type: ignore[arg-type]


class Member:
    """A node's duties over logs in memory, driven step by step."""

    def __init__(self, name: str, logs: list[MemoryLog], folder: Path, order: list[str]) -> None:
        self.name = name
        self.said = io.StringIO()
        self.log = JsonLog(name, stream=self.said)
        self.order = order
        self.vault = Vault(DirectoryBackend(folder / "vault"), folder / name / "scratch", apart=True)
        self.snapshots = Snapshots(name, self.vault, self.log, NoTracing(), SYSTEM)
        self.trimming = Trimming(name, self.vault, self.log, NoTracing(), SYSTEM)
        self.halted: dict[int, str] = {}
        self.divergence_check = DivergenceCheck(
            name, self.log, NoTracing(), hashed=self.snapshots.said, refold=lambda shard, at: None,
            halt=self.halted.__setitem__,
        )  # fmt: skip
        self.replicas: dict[int, Replica] = {}
        for shard, log in enumerate(logs):
            replica = Replica(log.hold(1 << 60), space_folds(shard, len(logs)), SYSTEM, replica=True)
            replica.boundary = lambda offset, con, shard=shard: self.at_boundary(shard, offset, con)
            self.replicas[shard] = replica
        self.membership = Membership(self.replicas[0], Identity(name, "eu", ""))
        self.membership.join()

    def at_boundary(self, shard: int, offset: int, con: Any) -> None:
        history = self.replicas[shard].history
        self.snapshots.at_boundary(
            shard,
            offset,
            con,
            history=history,
            incarnation=self.replicas[shard].incarnation,
            hosts=self.order,
        )

    def round(self) -> Round:
        for replica in self.replicas.values():
            replica.catch_up()
        placement: Placement = {shard: tuple(self.order) for shard in self.replicas}
        with self.replicas[0].view() as view:
            nodes = state.read_nodes(view)
        return Round(self.membership, nodes, placement, self.replicas, SYSTEM.boot_s(), self.replicas[0].view)  # type: ignore[arg-type]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.said.getvalue().splitlines()) if line["event"] == event]

    def close(self) -> None:
        for replica in self.replicas.values():
            replica.close()


@dataclass
class World:
    folder: Path
    logs: list[MemoryLog] = field(default_factory=lambda: [MemoryLog(), MemoryLog()])
    members: dict[str, Member] = field(default_factory=dict)
    order: list[str] = field(default_factory=lambda: ["a", "b"])

    def join(self, *names: str) -> None:
        for name in names:
            self.members[name] = Member(name, self.logs, self.folder, self.order)

    def write(self, upto: int, shard: int = 1) -> None:
        """Append to a shard's log up to an offset, and let everybody apply it."""
        space = self.members[self.order[0]].replicas[shard]
        while space.catch_up() < upto:
            put = Put("m", ((f"k{space.applied}".encode(), b"v"),))
            space.submit([state_op(Commit((), (), (put,)))])
        for member in self.members.values():
            member.round()

    def look(self, *parts: str) -> None:
        for member in self.members.values():
            for part in parts or ("snapshots", "trimming"):
                getattr(member, part).look(member.round())

    def snapshots(self, shard: int = 1) -> list[SnapshotAt]:
        member = self.members[self.order[0]]
        with member.round().view() as view:
            return state.snapshots(view, shard)


@pytest.fixture(name="world")
def world_of_members(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for member in made.members.values():
        member.close()
