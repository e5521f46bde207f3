"""A replica: one shard's folds and their store, brought from record to record.

The caller owns the transaction: ``load``, any number of ``apply``, ``flush`` before it commits, then ``commit`` or ``rollback``.
So the more records a transaction has, the fewer statements each of them costs. The applied offset and the log's digest are
written in addition to what was applied, so a store always says truly where it stands.

A record that does not decode although its bytes are as they were appended is *refused*: skipped by every replica, counted
and listed, since otherwise one garbage append would stop them all. A hole, or bytes that changed, *halts* (LogCorrupt).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import apsw

from onefold import config
from onefold.codec import CorruptRecord, Op, Record, UnknownFormat, decode_record
from onefold.errors import InvalidArgument, LogCorrupt, SpaceError
from onefold.fold import authority, system
from onefold.fold.api import NEVER, PASSING, Context, Fold, TimedFold
from onefold.ids import is_of_node
from onefold.invariants import invariant
from onefold.log.api import Entry, Log
from onefold.machine.undisturbed import is_interrupt
from onefold.store import exactly_once
from onefold.store.exactly_once import ClientRow, Verdict
from onefold.store.tables import Head, Tables, read_head
from onefold.store.writer import SqlStore

_REFUSED_LISTED_MAX = 1000
_WRITE_HEAD = (
    "UPDATE head SET applied = ?, now_ms = ?, fold_version = ?, client_floor = ?, log_first = ?, digest = ?,"
    " refused = ?"
)
_REPLACE_HEAD = (
    "REPLACE INTO head(id, applied, now_ms, fold_version, client_floor, log_first, digest, refused,"
    " client, number, client_offset, outcomes) VALUES(1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
"""The whole row, which costs less than setting each column of it."""


class Applied(NamedTuple):
    """What became of one record."""

    offset: int
    client: str | None
    """None for a record that was refused."""
    number: int
    verdict: Verdict
    outcomes: tuple[bytes, ...]
    """Of this record; for a duplicate those that are kept."""


class FoldFailed(SpaceError):
    """A fold raised, which it must not: a bug in that fold."""


def next_digest(digest: bytes, data: bytes) -> bytes:
    """The log's digest with one more record: 16 bytes of BLAKE2b over the digest before and the record's bytes."""
    return hashlib.blake2b(data, key=digest, digest_size=16).digest()


def read_digests(con: apsw.Connection) -> dict[int, bytes]:
    """The log's digests at multiples of ``config.DIGEST_EVERY_OFFSETS``, as far as they are kept, in order."""
    rows: list[Any] = con.execute("SELECT offset, digest FROM digests ORDER BY offset").fetchall()
    return dict(rows)


def agrees(con: apsw.Connection, log: Log) -> bool:
    """Whether the log's digest at the store's applied offset is the store's, as far as the log still goes back."""
    head = read_head(con)
    row = con.execute("SELECT offset, digest FROM digests ORDER BY offset DESC LIMIT 1").fetchone()
    offset, digest = (0, b"") if row is None else row
    if offset + 1 < log.first:
        return True
    while offset < head.applied:
        entries = log.read(offset + 1)
        if not entries:
            return False
        for entry in entries[: head.applied - offset]:
            offset, digest = entry.offset, next_digest(digest, entry.data)
    return bool(digest == head.digest)


class Replica:
    """Applies records to the store of one connection. Used by one thread at a time."""

    def __init__(
        self, con: apsw.Connection, tables: Tables, folds: Sequence[Fold], *, keep_all: bool = False
    ) -> None:
        """``keep_all``: see ``SqlStore``. Raises InvalidArgument for folds whose names clash."""
        self._con = con
        self._folds = {fold.name: fold for fold in folds}
        self._timed = [fold for fold in folds if isinstance(fold, TimedFold)]
        if len(self._folds) != len(folds) or system.SYSTEM_FOLD in self._folds:
            raise InvalidArgument(
                f"fold names must differ and not be {system.SYSTEM_FOLD!r}: {[f.name for f in folds]}"
            )
        self.version_max = min((fold.version for fold in folds), default=1)
        self.history = frozenset().union(*(fold.history for fold in folds)) if folds else frozenset[str]()
        self._store = SqlStore(con, tables, self.history, keep_all=keep_all)
        self._memory = exactly_once.Memory(con)
        self.cursor = con.cursor()
        """For what is written with each record: a cursor for each statement is a third of what a statement costs."""
        self._registered: set[str] = set()
        self._registering: set[str] = set()
        self._head = self._written = Head(0, 0, 1, 0, 1, b"", 0)
        self._foreign: int | None = None

    @property
    def head(self) -> Head:
        """As of the last ``load`` or ``apply``."""
        return self._head

    def load(self, foreign: int | None = None) -> Head:
        """Read where the store stands. ``foreign``: how often others have committed to it (``PooledFile.foreign``), if the caller
        knows; while that stays the same, what this replica has written is what there is, and nothing is read.

        Raises SpaceError when the store's fold version is beyond this program.
        """
        if foreign is None or foreign != self._foreign:
            self._head = self._written = read_head(self._con)
            self._check_version(self._head.fold_version)
            self._store.look_again()
            self._memory.forget()
            self._foreign = foreign
        return self._head

    def flush(self) -> None:
        """Bring what was applied into the caller's transaction, which is about to be committed."""
        self._store.flush()
        resident = self._memory.flush()
        if resident is not None:
            self.cursor.execute(_REPLACE_HEAD, (*self._head, *resident))
        elif self._head is not self._written:
            self._con.execute(_WRITE_HEAD, self._head)
        self._written = self._head

    def commit(self) -> Head:
        """The caller's transaction was flushed and committed. Returns where the store stands."""
        written = self._head is self._written
        invariant(written, "what was applied is flushed before it is committed", head=self._head)
        self._store.settle()
        if self._registering:
            self._registered |= self._registering
            self._registering = set()
        return self._head

    def end_statements(self) -> None:
        """See ``SqlStore.end_statements``."""
        self._store.end_statements()
        self.cursor.close(True)
        self.cursor = self._con.cursor()

    def rollback(self) -> None:
        """The caller's transaction was rolled back; ``load`` before the next use."""
        self._store.forget()
        self._memory.forget()
        self._foreign = None
        self._registering = set()

    def missing(self, ops: Sequence[Op]) -> Op | None:
        """The operation that must come before these so that their folds exist, or None. Raises InvalidArgument."""
        registered = self._registered
        for op in ops:
            if op.fold not in registered and op.fold != system.SYSTEM_FOLD:
                return self._registration(ops)
        return None

    def _registration(self, ops: Sequence[Op]) -> Op | None:
        unknown = {op.fold for op in ops if op.fold not in self._registered} - {system.SYSTEM_FOLD}
        for name in sorted(unknown):
            if name not in self._folds:
                raise InvalidArgument(
                    f"no fold {name!r} was given to open_shard; it has {sorted(self._folds)}"
                )
        if all(self._is_registered(name) for name in unknown):
            return None
        return system.system_op(system.Register(tuple(sorted(unknown))))

    def known(self, client: str) -> ClientRow | None:
        """The client's exactly-once row."""
        return self._memory.known(client)

    def apply(self, entry: Entry, record: Record | None = None, known: ClientRow | None = None) -> Applied:
        """Apply the next record. ``record``, ``known``: the entry decoded and its client's row, if the caller has them.

        Raises LogCorrupt when the entry is not the next one, SpaceError when this program is too old for it, and
        FoldFailed; then the caller must roll back.
        """
        head = self._head
        if entry.offset != head.applied + 1:
            raise LogCorrupt(f"offset {head.applied + 1} is missing: the log continued at {entry.offset}")
        digest = next_digest(head.digest, entry.data)
        if record is None:
            try:
                record = decode_record(entry.data)
            except UnknownFormat as error:
                raise SpaceError(
                    f"offset {entry.offset}: {error}. Upgrade: pip install -U onefold"
                ) from error
            except CorruptRecord as error:
                return self._refuse(entry, digest, str(error))
        client, number, offset = record.client, record.number, entry.offset
        if is_of_node(client) and not (entry.trusted and authority.in_force(head.fold_version)):
            return self._refuse(entry, digest, f"only nodes are clients like {client!r}")
        known = known or self.known(client)
        verdict = exactly_once.judge(client, number, known, offset=offset, floor=head.client_floor)
        if verdict is Verdict.MALFORMED:
            return self._refuse(entry, digest, f"no client has the id {client!r}")
        now_ms = max(head.now_ms, min(entry.engine_ms, record.stamp_ms))
        self._head = Head(
            offset, now_ms, head.fold_version, head.client_floor, head.log_first, digest, head.refused
        )
        self._store.start(offset)
        if now_ms > head.now_ms and now_ms >= self._store.quiet_until_ms:
            self._advance(client)
        outcomes: tuple[bytes, ...] = ()
        if verdict is Verdict.APPLY:
            trusted, found = entry.trusted, []
            for index, op in enumerate(record.ops):
                found.append(self._apply_op(record, index, op, trusted=trusted))
            outcomes = tuple(found)
            self._memory.save(client, ClientRow(number, offset, outcomes))
        elif verdict is Verdict.DUPLICATE and known is not None and known.number == number:
            outcomes = known.outcomes
        self._finish()
        return Applied(offset, client, number, verdict, outcomes)

    def _advance(self, client: str) -> None:
        next_ms, store = NEVER, self._store
        store.quiet_until_ms = NEVER
        for fold in self._timed:
            if fold.name in self._registered or self._is_registered(fold.name):
                store.turn(fold.name, -1)
                context = Context(self._head.applied, -1, self._head.now_ms, client, None)
                next_ms = min(next_ms, fold.advance(store, context))
            else:
                next_ms = 0  # a record may register it
        # Unless one of them has written to what another one had looked at.
        if store.quiet_until_ms == NEVER:
            store.quiet_until_ms = next_ms

    def _apply_op(self, record: Record, index: int, op: Op, *, trusted: bool) -> bytes:
        now_ms = self._head.now_ms
        if op.request_id is not None:
            kept = self._memory.requested(op.request_id, now_ms)
            if kept is not None:
                return kept
        if op.fold == system.SYSTEM_FOLD:
            outcome = self._apply_system(record, index, op.body, trusted=trusted)
        elif op.fold not in self._registered and not self._is_registered(op.fold):
            return system.REFUSED
        else:
            outcome = self._apply_fold(
                Context(self._head.applied, index, now_ms, record.client, op.request_id, trusted), op
            )
        if op.request_id is not None and not outcome.startswith(PASSING):
            self._memory.keep_request(op.request_id, now_ms, outcome)
        return outcome

    def _apply_fold(self, context: Context, op: Op) -> bytes:
        fold = self._folds.get(op.fold)
        if fold is None:
            raise SpaceError(
                f"offset {context.offset} has an operation for the fold {op.fold!r}, which this program does not have. "
                "Open the space with that fold, or upgrade: pip install -U onefold"
            )
        self._store.turn(op.fold, context.index)
        try:
            outcome = fold.apply(self._store, context, op.body, self._head.fold_version)
        except (apsw.Error, RecursionError, MemoryError):
            raise  # of this process at this moment, so nothing is wrong with the fold or the record
        except Exception as error:
            if is_interrupt(error):
                raise
            raise FoldFailed(
                f"the fold {op.fold!r} raised {type(error).__name__}: {error} at offset {context.offset}, "
                f"operation {context.index}. A fold must refuse, not raise: this is a bug in it"
            ) from error
        if not isinstance(outcome, bytes):
            raise FoldFailed(f"the fold {op.fold!r} returned {type(outcome).__name__}; an outcome is bytes")
        return outcome

    def _apply_system(self, record: Record, index: int, body: bytes, *, trusted: bool) -> bytes:
        head, op = self._head, system.decode(body)
        if op is not None and not authority.system_op_allowed(
            op,
            trusted=trusted,
            fold_version=head.fold_version,
            of_region=not trusted and self._is_registered(authority.AVAILABLE_FOLD),
        ):
            if authority.in_force(head.fold_version):
                # Before, programs of earlier releases fold the same log; they refuse it too, and write nothing.
                self._store.turn(system.SYSTEM_FOLD, index)
                kind = type(op).__name__
                authority.count_refusal(self._store, system.SYSTEM_FOLD, kind, head.applied, record.client)
            return system.REFUSED
        match op:
            case system.Register(names):
                for name in names:
                    if not self._is_registered(name):
                        self._con.execute("INSERT INTO folds VALUES(?, ?)", (name, head.applied))
                        self._registering.add(name)
            case system.RaiseFoldVersion(version) if version > head.fold_version:
                self._check_version(version)
                self._head = head._replace(fold_version=version)
            case system.ExpireClients(floor) if head.client_floor < floor <= head.applied:
                self._memory.forget_below(floor)
                self._head = head._replace(client_floor=floor)
            case system.Trim(before) if head.log_first < before <= head.applied:
                self._head = head._replace(log_first=before)
            case system.Tick():
                pass
            case _:
                return system.REFUSED
        return system.ACCEPTED

    def _is_registered(self, name: str) -> bool:
        if name in self._registered or name in self._registering:
            return True
        found = bool(self._con.execute("SELECT EXISTS(SELECT 1 FROM folds WHERE name = ?)", (name,)).get)
        if found and not self._con.in_transaction:
            self._registered.add(name)
        elif found:
            self._registering.add(name)  # seen inside a transaction: sure once that commits
        return found

    def _check_version(self, version: int) -> None:
        if version > self.version_max:
            raise SpaceError(
                f"the space is at fold version {version}; this program knows {self.version_max}. "
                "Upgrade: pip install -U onefold"
            )

    def _refuse(self, entry: Entry, digest: bytes, reason: str) -> Applied:
        self._con.execute("INSERT INTO refused VALUES(?, ?)", (entry.offset, reason))
        self._con.execute(
            "DELETE FROM refused WHERE offset <= (SELECT offset FROM refused ORDER BY offset DESC LIMIT 1 OFFSET ?)",
            (_REFUSED_LISTED_MAX,),
        )
        self._head = self._head._replace(applied=entry.offset, digest=digest, refused=self._head.refused + 1)
        self._store.start(entry.offset)
        self._finish()
        return Applied(entry.offset, None, 0, Verdict.MALFORMED, ())

    def _finish(self) -> None:
        head = self._head
        if head.applied % config.HISTORY_PRUNE_EVERY_OFFSETS == 0:
            self._store.prune()
            self._memory.prune_requests(head.now_ms)
        if head.applied % config.DIGEST_EVERY_OFFSETS == 0:
            self._con.execute("INSERT INTO digests VALUES(?, ?)", (head.applied, head.digest))
        if head.applied > self._written.applied + 1:  # a transaction of one record is flushed at once
            self._store.relieve()
