"""Keeping logs short: closed ranges are archived, a ``Trim`` record states up to where the log may be dropped, and it is.

The first node of a shard does it, and any other can continue where it stopped: what was decided is in the log. Nothing is
forgotten that is not below a snapshot which two nodes agree about and which is there, nor (where the blob store is apart from the
servers) that is not in the archive.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.blobs import sweeping
from onefold.env import Env
from onefold.fold.nodes import state
from onefold.fold.nodes.ops import Accepted, Archived, Swept
from onefold.log.api import Entry, Log
from onefold.node.snapshots.archive import write_archive
from onefold.node.snapshots.store import Vault
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import Tracing

if TYPE_CHECKING:
    from onefold.node.hosting import Replica
    from onefold.node.maintenance import Round

_READ_BYTES = 4 << 20


@dataclass
class Counts:
    """For metrics."""

    trimmed: int = 0
    archived: int = 0
    archived_bytes: int = 0
    swept: int = 0


class Trimming:
    """What the first node of each shard does. Used by one thread."""

    def __init__(self, name: str, vault: Vault | None, log: JsonLog, tracing: Tracing, env: Env) -> None:
        self.counts = Counts()
        self._name = name
        self._vault = vault
        self._log = log
        self._tracing = tracing
        self._env = env
        self._tidied_s = env.boot_s()
        """When what was swept was settled last."""

    def look(self, now: Round) -> None:
        """Archive, trim and delete what is due. Raises as ``Shard.submit``, ``Log`` and ``Vault``."""
        if self._vault is None:
            return
        for shard, replica in now.hosted.items():
            hosts = now.placement.get(shard, ())
            if not hosts or hosts[0] != self._name:
                continue
            if self._vault.apart:
                self._archive(now, self._vault, shard, replica)
            self._trim(now, self._vault, shard, replica)
        if now.placement.get(0, ("",))[0] == self._name:
            self._sweep(now, self._vault)

    # -- the archive

    def _archive(self, now: Round, vault: Vault, shard: int, replica: Replica) -> None:
        """Archive the ranges up to the newest agreed state, one file each."""
        every = config.SNAPSHOT_EVERY_OFFSETS
        for _ in range(config.ARCHIVES_AT_ONCE):
            with now.view() as view:
                agreed = state.agreed(view, shard)
                end = state.archived_to(view, shard)
            start = replica.log.first if end is None else end + 1
            if not agreed or start > agreed[-1].offset:
                return
            if start < replica.log.first:
                self._log.begins("archive_gap", f"shard {shard}: {start} was trimmed before it was archived")
                return
            stop = min((start - 1) // every * every + every, agreed[-1].offset)
            path = vault.scratch / f"archive-{shard}-{start}"
            try:
                with self._tracing.span("archive", shard=shard, start=start, stop=stop):
                    write_archive(path, _range(replica.log, start, stop))
                    stored = vault.store(path)
                    op = Archived(
                        self._name, now.membership.epoch, shard, start, stop, stored.blob, stored.bytes
                    )
                    if not isinstance(now.membership.say(op), Accepted):
                        return
                    vault.keep(stored, path)
            finally:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            self.counts.archived += 1
            self.counts.archived_bytes += stored.bytes
            self._log.info("archived", shard=shard, start=start, stop=stop, bytes=stored.bytes)

    # -- the log

    def _trim(self, now: Round, vault: Vault, shard: int, replica: Replica) -> None:
        with now.view() as view:
            floor = state.trim_floor(view, shard, archived=vault.apart)
            kept = state.snapshots(view, shard)
        with replica.view() as view:
            decided = view.head().log_first
        if floor <= max(decided, 1):
            if decided > replica.log.first:
                # It was decided, and not done. Whatever was decided: nothing goes that a newcomer needs.
                replica.log.trim(min(decided, floor))
            return
        missing = [one for one in kept if not vault.has(one.blob)]
        if missing:
            where = f"shard {shard}: the snapshot at offset {missing[0].offset} is not in {vault.place}"
            self._log.begins("log_trim_blocked", where, level="error")
            return
        self._log.ends("log_trim_blocked")
        with self._tracing.span("trim", shard=shard, before=floor):
            replica.trim(floor)
        self.counts.trimmed += 1
        self._log.info("log_trimmed", shard=shard, before=floor)

    # -- what nothing names any more

    def _sweep(self, now: Round, vault: Vault) -> None:
        with now.view() as view:
            blobs = state.garbage(view, config.SWEPT_BLOBS_MAX)
        passed_s = self._env.boot_s() - self._tidied_s
        if not blobs and passed_s < config.GARBAGE_SWEEP_S:
            return

        def swept(names: Sequence[str]) -> tuple[str, ...]:
            outcome = now.membership.say(Swept(self._name, now.membership.epoch, tuple(names)))
            return outcome.blobs if isinstance(outcome, Accepted) else ()

        def named(names: Iterable[str]) -> frozenset[str]:
            with now.view() as view:
                return state.named(view, names)

        if blobs:
            self.counts.swept += sweeping.sweep(vault, blobs, swept, named, kind=sweeping.SNAPSHOTS)
        if passed_s >= config.GARBAGE_SWEEP_S:
            self._tidied_s += passed_s
            sweeping.tidy(vault, blobs, named, kind=sweeping.SNAPSHOTS)


def _range(log: Log, start: int, stop: int) -> Iterator[Entry]:
    """Entries from ``start`` to ``stop``, both included. Raises as ``Log.read``."""
    while start <= stop:
        entries = log.read(start, _READ_BYTES)
        for entry in entries:
            if entry.offset > stop:
                return
            yield entry
        if not entries:
            return
        start = entries[-1].offset + 1
