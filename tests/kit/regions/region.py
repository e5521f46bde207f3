"""One simulated region: a log, and the fold of it over a store in memory."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from onefold.available import exchange, ops, reading, regions
from onefold.available.effects import decode_effect, next_chain
from onefold.available.fold import AvailableFold
from onefold.available.kinds import places
from onefold.available.kinds.places import split_key
from onefold.available.ops import AvailableOp, available_op, decode_outcome
from onefold.available.rows import all_places, part_hash, row_key, table_of
from onefold.fold.api import Context
from onefold.testing.memory_store import MemoryStore


class Violation(Exception):
    """Regions do not do what they promise."""


class Entry(NamedTuple):
    """A record of the log; all of them have one operation."""

    now_ms: int
    body: bytes
    request_id: str | None
    trusted: bool
    decided: int
    """How many of the decisions on regions the log had with it."""


@dataclass
class SimRegion:
    """See above. ``skew_ms``: how far its clock is off."""

    number: int
    name: str
    skew_ms: int = 0
    log: list[Entry] = field(default_factory=list)
    store: MemoryStore = field(default_factory=MemoryStore)
    now_ms: int = 0
    decided: int = 0
    """How many of the decisions on regions are in its log."""

    def append(self, op: AvailableOp, clock_ms: int, request_id: str | None = None) -> Any:
        """Append an operation and apply it. Returns the outcome."""
        self.now_ms = max(self.now_ms, clock_ms + self.skew_ms)
        trusted = not isinstance(op, ops.Do)
        entry = Entry(self.now_ms, available_op(op).body, request_id, trusted, self.decided)
        self.log.append(entry)
        return decode_outcome(self._apply(self.store, len(self.log), entry))

    def _apply(self, store: MemoryStore, offset: int, entry: Entry) -> bytes:
        fold = AvailableFold()
        if offset == 1 or entry.now_ms > self.log[offset - 2].now_ms:
            fold.advance(store, Context(offset, -1, entry.now_ms, "c0-x", None))
        context = Context(offset, 0, entry.now_ms, "c0-x", entry.request_id, entry.trusted)
        return fold.apply(store, context, entry.body, fold.version)

    def restart(self) -> None:
        """Fold the log again: the state must be the same."""
        store = MemoryStore()
        for offset, entry in enumerate(self.log, 1):
            self._apply(store, offset, entry)
        if store.digest() != self.store.digest():
            raise Violation(f"region {self.number} has another state after a restart")
        self.store = store

    def back_to(self, offset: int) -> None:
        """Lose what came after an offset: a log that was restored from a backup."""
        del self.log[offset:]
        self.store = MemoryStore()
        for at, entry in enumerate(self.log, 1):
            self._apply(self.store, at, entry)
        self.now_ms, self.decided = self.log[-1].now_ms, self.log[-1].decided

    @property
    def me(self) -> regions.Known:
        """What its log knows of regions."""
        return regions.read_self(self.store)

    def have(self) -> dict[int, int]:
        """Its vector."""
        return self.me.have()

    def ask(self) -> exchange.Ask:
        """What it asks another one."""
        return exchange.ask(self.store)

    def shown(self) -> dict[tuple[str, bytes], Any]:
        """All that a reader sees, by place and key."""
        found: dict[tuple[str, bytes], Any] = {}
        for _, at in reading.names(self.store):
            for place in at:
                if place[0] == places.SET:
                    found.update(self._sets(place))
                else:
                    found.update({(place, key): value for key, value in reading.items(self.store, place)})
        return found

    def counted(self) -> tuple[bytes, int, int]:
        """The content hash, gone rows and their bytes, counted over all rows that readers see."""
        content = gone = size = 0
        for place in all_places(self.store):
            for key, data in self.store.scan(table_of(self.store, place)):
                row = places.read_row(place, data)
                content += sum(part_hash(row_key(place, key), part) for part in row.parts())
                gone += row.waits() is not None
                size += 0 if row.is_live() else len(key) + len(data)
        return (content % (1 << 128)).to_bytes(16), gone, size

    def unseen_tables(self) -> list[str]:
        """Tables with rows of generations that readers do not see."""
        generations = {str(self.me.shown)}
        if self.me.sync is not None:
            generations.add(str(self.me.sync.generation))
        by_generation = re.compile(r"ap/(?:c|names|due|gone|requests|requests_due|staged|later)/(\d+)")
        found = ((table, by_generation.match(table)) for table in self.store.tables())
        return [table for table, at in found if at is not None and at[1] not in generations]

    def check_cleared(self, clock_ms: int) -> None:
        """What full syncs have left goes bit by bit. Raises Violation if something stays."""
        for _ in range(2000):
            if not (self.me.cleared or self.me.staged or self.me.later or self.me.passed):
                break
            self.append(ops.Accept(self.number, 0), clock_ms)
        if self.unseen_tables():
            raise Violation(f"region {self.number} keeps {self.unseen_tables()}")

    def _sets(self, place: str) -> dict[tuple[str, bytes], set[bytes]]:
        found: dict[tuple[str, bytes], set[bytes]] = {}
        for at, _ in self.store.scan(table_of(self.store, place)):
            key, element = split_key(at)
            found.setdefault((place, key), set()).add(element)
        return found


def after(ask: exchange.Ask, reply: exchange.Reply) -> exchange.Ask:
    """What is asked next, before the answer has arrived."""
    have, chains = dict(ask.have), dict(ask.chains)
    for data in reply.effects:
        effect = decode_effect(data)
        assert effect is not None
        have[effect.origin] = effect.seq
        chains[effect.origin] = next_chain(chains.get(effect.origin, b""), data)
    return exchange.Ask(ask.number, have, chains, b"")
