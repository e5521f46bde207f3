"""Snapshots of what a node hosts: made at the same offsets by all, told by their hash, stored once, and found by newcomers.

At each multiple of ``config.SNAPSHOT_EVERY_OFFSETS`` every node that hosts the shard says the hash of its state there. When two
say the same, the first node of the shard stores its file (the second one, when the first has not done so for
``config.SNAPSHOT_TAKEOVER_S``) and says its name.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from onefold import config
from onefold.codec import CorruptRecord, decode_record
from onefold.env import Env
from onefold.errors import OnefoldError
from onefold.fold import authority, system
from onefold.fold.nodes import state
from onefold.fold.nodes.ops import NODES_FOLD, Accepted, StateHash, decode_op
from onefold.fold.nodes.state import SnapshotAt
from onefold.log.api import Entry, Log, TrustedLog
from onefold.node.snapshots.store import Vault
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import Tracing
from onefold.store.snapshot import state_digest, write_snapshot

if TYPE_CHECKING:
    import apsw

    from onefold.node.maintenance import Round

_SCAN_BYTES = 8 << 20


class Made(NamedTuple):
    """What this node found at a boundary."""

    offset: int
    hash: str
    path: Path | None
    """The file, when this node is one that may have to store it."""
    made_s: float


@dataclass
class Counts:
    """For metrics."""

    hashed: int = 0
    failed: int = 0
    missed: int = 0
    stored: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0


@dataclass
class _Shard:
    made: Made | None = None
    said: int = 0
    """The offset of which the hash was said."""
    stored: int = 0
    hashes: dict[int, str] = field(default_factory=dict)


class Snapshots:
    """Makes and stores them. ``at_boundary`` is called by replicas' threads, ``look`` by the node's maintenance."""

    def __init__(self, name: str, vault: Vault | None, log: JsonLog, tracing: Tracing, env: Env) -> None:
        self.counts = Counts()
        self._name = name
        self._vault = vault
        self._log = log
        self._tracing = tracing
        self._env = env
        self._lock = threading.Lock()
        self._shards: dict[int, _Shard] = {}

    def at_boundary(
        self,
        shard: int,
        offset: int,
        con: apsw.Connection,
        *,
        history: frozenset[str],
        incarnation: str,
        hosts: Sequence[str],
    ) -> None:
        """A replica stands at a boundary; ``con`` shows it there, in a read transaction. ``hosts``: the shard's nodes, first
        ones first."""
        began_s = self._env.boot_s()
        path = None
        with self._tracing.span("snapshot", shard=shard, offset=offset):
            try:
                if self._vault is not None and self._name in hosts[:2]:
                    path = self._vault.scratch / f"shard-{shard}-at-{offset}"
                    found = write_snapshot(con, path, history, incarnation).state_digest
                else:
                    found = state_digest(con, history)
            except Exception as error:  # whatever a damaged file or a full disk brings: the replica continues
                self.counts.failed += 1
                self._log.error("snapshot_failed", shard=shard, offset=offset, error=error)
                return
        seconds = self._env.boot_s() - began_s
        self.counts.hashed += 1
        self.counts.seconds += seconds
        made = Made(offset, found, path, self._env.boot_s())
        with self._lock:
            kept = self._shards.setdefault(shard, _Shard())
            before, kept.made = kept.made, made
            kept.hashes[offset] = found
            for old in sorted(kept.hashes)[: -config.HASHES_KEPT]:
                del kept.hashes[old]
        _remove(before)
        self._log.info("state_hashed", shard=shard, offset=offset, hash=found, seconds=round(seconds, 3))

    def missed(self, shard: int, offset: int) -> None:
        """A boundary came while the state at an earlier one was read, and a better one waits already: nobody compares it."""
        with self._lock:  # each shard's replica tells it in a thread of its own
            self.counts.missed += 1
        self._log.warning("boundary_missed", shard=shard, offset=offset)

    def said(self, shard: int, offset: int) -> str | None:
        """The hash that this process found there."""
        with self._lock:
            kept = self._shards.get(shard)
            return None if kept is None else kept.hashes.get(offset)

    def look(self, now: Round) -> None:
        """Say what is not said yet, and store what this node is to store. Raises as ``Shard.submit`` and ``Vault``."""
        for shard, kept in list(self._shards.items()):
            made = kept.made
            if made is None or shard not in now.hosted:
                continue
            if kept.said < made.offset and self._say(now, shard, made):
                kept.said = made.offset
            if made.path is not None and kept.stored < made.offset and self._is_mine(now, shard, made):
                self._store(now, shard, made)
                kept.stored = made.offset

    def _say(self, now: Round, shard: int, made: Made, blob: str = "", size: int = 0) -> bool:
        op = StateHash(self._name, now.membership.epoch, shard, made.offset, made.hash, blob, size)
        outcome = now.membership.say(op)
        return isinstance(outcome, Accepted) or outcome.code == "conflict"

    def _is_mine(self, now: Round, shard: int, made: Made) -> bool:
        """Whether the state is agreed, nobody has stored a snapshot of it, and it is this node's turn."""
        hosts = now.placement.get(shard, ())
        if self._name not in hosts[:2]:
            return False
        with now.view() as view:
            agreed = {one.offset: one for one in state.agreed(view, shard)}.get(made.offset)
        if agreed is None or agreed.hash != made.hash or agreed.blob:
            return False
        return hosts[0] == self._name or self._env.boot_s() - made.made_s > config.SNAPSHOT_TAKEOVER_S

    def _store(self, now: Round, shard: int, made: Made) -> None:
        if self._vault is None or made.path is None:
            return
        began_s = self._env.boot_s()
        with self._tracing.span("store_snapshot", shard=shard, offset=made.offset):
            stored = self._vault.store(made.path)
            self._say(now, shard, made, stored.blob, stored.bytes)
            self._vault.keep(stored, made.path)
        _remove(made)
        self.counts.stored += 1
        self.counts.stored_bytes += stored.bytes
        seconds = round(self._env.boot_s() - began_s, 3)
        self._log.info(
            "snapshot_stored", shard=shard, offset=made.offset, bytes=stored.bytes, seconds=seconds
        )


def _remove(made: Made | None) -> None:
    if made is not None and made.path is not None:
        with contextlib.suppress(OSError):
            made.path.unlink(missing_ok=True)


# -- finding one to start from


def in_log(log: Log, shard: int = 0) -> SnapshotAt | None:
    """The newest snapshot of a shard that two nodes agree about, from the records of shard 0's log alone: for a node that has no
    state of shard 0 yet. What is named there was said after its offset, so the log that is left names what leads to it.

    What stands in records that are not trusted counts only before the record that brought in force that it does not: see
    ``fold.authority``. Raises as ``Log.read`` and ``TrustedLog.first_trusted``.
    """
    every = config.SNAPSHOT_EVERY_OFFSETS
    trust = _Trust(log)
    window = log.last // every
    while window >= 0 and (window + 1) * every >= log.first:
        start = max(log.first, window * every + 1)
        found = _agreed_in(_records(log, start, min(log.last, (window + 1) * every), trust), shard)
        if found is not None and found.offset >= log.first - 1:
            return found
        window -= 1
    return None


class _Trust:
    """Below which offset a log's untrusted records count too."""

    def __init__(self, log: Log) -> None:
        self._seen = False
        self._below: int | None = None
        """None: everywhere, as far as is known."""
        first = log.first_trusted() if isinstance(log, TrustedLog) else None
        if first is not None:
            # Where an earlier record is the oldest that is left, all that is left of nodes' words is younger than the raise.
            self._below = first.offset if _raises(first) else 0

    def counts(self, entry: Entry) -> bool:
        """Whether the nodes' operations in it count, as far as can be determined without the state."""
        self._seen = self._seen or entry.trusted
        if entry.trusted:
            return True
        return not self._seen if self._below is None else entry.offset < self._below


def _raises(entry: Entry) -> bool:
    """Whether that record brings in force that only trusted ones count."""
    with contextlib.suppress(CorruptRecord):
        for op in decode_record(entry.data).ops:
            found = system.decode(op.body) if op.fold == system.SYSTEM_FOLD else None
            if isinstance(found, system.RaiseFoldVersion) and authority.in_force(found.version):
                return True
    return False


def _agreed_in(hashes: Iterator[StateHash], shard: int) -> SnapshotAt | None:
    said: dict[int, dict[str, StateHash]] = {}
    for op in hashes:
        if op.shard == shard:
            before = said.setdefault(op.offset, {}).get(op.name)
            if before is None or op.blob or before.hash != op.hash:
                said[op.offset][op.name] = op
    for offset in sorted(said, reverse=True):
        words = [op.hash for op in said[offset].values()]
        for op in said[offset].values():
            if op.blob and words.count(op.hash) >= config.HASHES_TO_AGREE:
                return SnapshotAt(shard, offset, op.hash, op.blob, op.bytes)
    return None


def _records(log: Log, start: int, stop: int, trust: _Trust) -> Iterator[StateHash]:
    while start <= stop:
        entries = log.read(start, _SCAN_BYTES)
        if not entries:
            return
        for entry in entries:
            if entry.offset > stop:
                return
            if not trust.counts(entry):
                continue
            with contextlib.suppress(CorruptRecord):
                for op in decode_record(entry.data).ops:
                    if op.fold == NODES_FOLD and isinstance(found := decode_op(op.body), StateHash):
                        yield found
        start = entries[-1].offset + 1


def fetch_first(vault: Vault, candidates: Sequence[SnapshotAt], log: JsonLog) -> Path | None:
    """A file of the first of these that can be had whole; the caller removes it."""
    for one in candidates:
        try:
            path = vault.fetch(one.blob)
        except OnefoldError as error:
            log.warning("snapshot_unusable", shard=one.shard, offset=one.offset, error=error)
            continue
        if path is not None:
            log.info("snapshot_fetched", shard=one.shard, offset=one.offset, bytes=one.bytes)
            return path
        log.warning("snapshot_missing", shard=one.shard, offset=one.offset, blob=one.blob, place=vault.place)
    return None
