"""Regions in memory whose exchange a test does by hand: databases of several regions over one space, without threads.

>>> regions = MemoryRegions("eu", "us")
>>> eu, us = regions.database("eu"), regions.database("us")
>>> ...; regions.exchange()  # until both know the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onefold.available import exchange, regions
from onefold.available.ops import Admit, AvailableOp, Imported, available_op, decode_outcome
from onefold.database import Database
from onefold.folds import folds, region_folds
from onefold.regions.peers import LinkState
from onefold.shard.api import Shard
from onefold.space.open_space import open_shards
from onefold.state.core.consistency import STRONG


class MemoryRegion:
    """One of them; as ``state.available.client.Region``."""

    def __init__(self, name: str, number: int, shards: Sequence[Shard], of: MemoryRegions) -> None:
        self.name = name
        self.number = number
        self.shards = shards
        self.peers = _Peers(self, of) if len(of.names) > 1 else None

    def look(self) -> None:
        """Nothing: all are there from the beginning."""

    def close(self) -> None:
        """Nothing: other databases of the test may use it."""


class _Peers:
    def __init__(self, mine: MemoryRegion, of: MemoryRegions) -> None:
        self._mine, self._of = mine, of

    def links(self) -> Sequence[LinkState]:
        mine = self._mine.name
        return [
            LinkState(other.number, other.name, 0.0, "cut" if self._of.is_cut(other.name, mine) else "linked")
            for other in self._of.regions.values()
            if other is not self._mine
        ]

    def latest(self, timeout_s: float) -> Mapping[int, Mapping[int, int]]:
        self._of.exchange_if_linked()
        found: dict[int, Mapping[int, int]] = {}
        for other in self._of.regions.values():
            if other is self._mine or self._of.is_cut(other.name, self._mine.name):
                continue
            found[other.number] = {
                at: _known(shard).origin(other.number).seq for at, shard in enumerate(other.shards)
            }
        return found


class MemoryRegions:
    """See the module. ``cut`` holds pairs (from, to) over which nothing goes; ``linked``: ask the others before levels do."""

    def __init__(self, *names: str, shards: int = 1) -> None:
        self.names = names
        self.cut: set[tuple[str, str]] = set()
        self.linked = True
        self.space = open_shards("memory://", folds, shards=shards)
        self.regions: dict[str, MemoryRegion] = {}
        for number, name in enumerate(names, start=1):
            logs = open_shards("memory://", region_folds, shards=shards)
            self.regions[name] = MemoryRegion(name, number, logs, self)
            for log in logs:
                for of, other in enumerate(names, start=1):
                    submit(log, Admit(of, other, here=other == name, founder=True))
        self.databases: list[Database] = []

    def database(self, name: str, token: str | None = None, timeout: float | None = None) -> Database:
        """A connection in that region."""
        made = Database(
            self.space,
            level=STRONG,
            token=token,
            timeout=timeout,
            open_region=lambda _: self.regions[name],
        )
        self.databases.append(made)
        return made

    def is_cut(self, source: str, to: str) -> bool:
        """Whether nothing goes from one to the other."""
        return (source, to) in self.cut

    def pull(self, to: str, source: str) -> int:
        """What one lacks of the other comes in, in all shards; how many effects."""
        taken = 0
        for mine, theirs in zip(self.regions[to].shards, self.regions[source].shards, strict=True):
            with mine.view() as view:
                asked = exchange.ask(view)
            with theirs.view() as view:
                reply = exchange.answer(view, asked)
            assert reply.state in ("effects", "same"), reply
            if reply.effects:
                outcome = submit(mine, reply.as_import())
                assert isinstance(outcome, Imported), outcome
                taken += outcome.taken
        if taken:
            self._note(to)
        return taken

    def _note(self, region: str) -> None:
        """Session reads see it at once, as after ``db.sync``. Else a program may read what it has in memory for some moments."""
        for database in self.databases:
            client = database._region_client
            if client is not None and client.region.name == region:
                for number, shard in enumerate(client.shards):
                    client.session.observe(number, shard.applied)

    def exchange(self) -> None:
        """Everything goes everywhere that is not cut."""
        pairs = [(to, source) for to in self.names for source in self.names if to != source]
        while sum(self.pull(to, source) for to, source in pairs if not self.is_cut(source, to)):
            pass

    def exchange_if_linked(self) -> None:
        """When a level asks."""
        if self.linked:
            self.exchange()

    def close(self) -> None:
        """Close all that was opened."""
        for database in self.databases:
            database.close()
        for region in self.regions.values():
            for log in region.shards:
                log.close()


def give_region(database: Database) -> None:
    """Let a database that was opened otherwise have a region in memory, which is the only one."""
    region = MemoryRegions("eu", shards=len(database._shards)).regions["eu"]
    database._open_region = lambda _default: region


def submit(shard: Shard, op: AvailableOp) -> object:
    """Append one operation as a node does; its outcome."""
    return decode_outcome(shard.submit([available_op(op)])[0])


def _known(shard: Shard) -> regions.Known:
    with shard.view() as view:
        return regions.read_self(view)
