"""The embedded shard: log and state in one SQLite file, committed together by whichever process writes.

So there is nothing to catch up with and no outcome to wait for: a record is appended and applied in one transaction, and
every view is a snapshot of the newest commit of any process.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

import apsw

from onefold import config
from onefold.backoff import Backoff, Deadline
from onefold.codec import Op, Record, encode_record
from onefold.env import Env
from onefold.errors import (
    ASK_LATER,
    AppendUnknown,
    InvalidArgument,
    LogCorrupt,
    OnefoldError,
    SpaceError,
    Timeout,
)
from onefold.fold import system
from onefold.fold.api import Fold
from onefold.ids import born_at, client_id, new_id
from onefold.log.api import Entry
from onefold.log.sqlite.engine import LOG_SCHEMA, SqliteLog, read_in
from onefold.log.sqlite.file import SqliteFile
from onefold.log.sqlite.pooled_file import Hold
from onefold.machine import members, wake
from onefold.machine.undisturbed import if_possible, is_interrupt, let_pass, undisturbed
from onefold.shard.appender import Appender
from onefold.shard.log_keep import LogKeep
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import ReadRequirement, reach_needed
from onefold.shard.state_here import StateHere
from onefold.store import exactly_once
from onefold.store import views as file_views
from onefold.store.exactly_once import ClientRow, Verdict
from onefold.store.formats import EARLIER
from onefold.store.replica import Replica
from onefold.store.snapshot import Snapshot, write_snapshot
from onefold.store.tables import (
    STORE_SCHEMA,
    Head,
    PastView,
    PresentView,
    Tables,
    read_head,
)

_HOUSEKEEPING_EVERY_OFFSETS = 1024
T = TypeVar("T")
_CATCH_UP_BYTES = 16 << 20
_PAUSE_S = (0.01, 1.0)


class EmbeddedShard(StateHere):
    """See ``onefold.shard.api.Shard``. Thread-safe."""

    def __init__(
        self,
        directory: Path,
        folds: Sequence[Fold] | Callable[[int], Sequence[Fold]],
        env: Env,
        *,
        create: bool = True,
        read_only: bool = False,
        timeout: float | None = None,
        shards: int = 1,
    ) -> None:
        """``shards``: see ``SqliteFile``. ``folds``: or what gives them, told how many shards the space has."""
        self._env = env
        self._directory = directory
        self._read_only = read_only
        self._tables = Tables()
        self._client: str | None = None
        self._in_doubt: int | None = None
        self._hold: Hold | None = None
        """Of the commit that is under way."""
        self._until_s = 0.0
        """Its deadline."""
        self._tried: tuple[Sequence[Op], str, int] | None = None
        """What it appends, as which client and under which number."""
        self._done: tuple[Sequence[Op], Sequence[bytes]] | None = None
        """The operations of the latest commit that has happened, and their outcomes."""
        self._committed = 0
        """Its offset."""
        self._closing = threading.Lock()
        self._member: members.Member | None = None
        undisturbed(
            lambda: self._open(folds, create=create, timeout=timeout, shards=shards), lambda _: self.close()
        )

    def _open(
        self,
        folds: Sequence[Fold] | Callable[[int], Sequence[Fold]],
        *,
        create: bool,
        timeout: float | None,
        shards: int,
    ) -> None:
        directory, env, read_only = self._directory, self._env, self._read_only
        self._file = SqliteFile(
            directory,
            (*LOG_SCHEMA, *STORE_SCHEMA),
            env,
            create=create,
            read_only=read_only,
            timeout=timeout,
            shards=shards,
            earlier=EARLIER,
        )
        folds = folds(self._file.shard_count) if callable(folds) else folds
        self._log = SqliteLog(directory, env=env, file=self._file)
        self.log_keep = LogKeep(self._file, self._log, lambda before: self._demand(system.Trim(before)))
        self._appender = Appender(
            self._commit, env, mend=self._mend_commit, passes=lambda error: isinstance(error, Timeout)
        )
        try:
            if read_only:
                with self._file.reading() as con:
                    self._replica = Replica(con, self._tables, folds)
                    self._replica.load()
                self.member = new_id("r", env)
                return
            with self._file.writing() as con:
                self._replica = Replica(con, self._tables, folds)
                self._file.end_statements = self._replica.end_statements
                head = self._replica.load()
            if head.applied != self._log.last or head.log_first != self._log.first:
                self.catch_up()
            self._sweep()
            self._member = members.Member(
                directory / "members", new_id("m", env), _note(self._replica.version_max)
            )
            self.member = self._member.id
        except BaseException:
            self.close()
            raise

    # -- the contract

    @property
    def url(self) -> str:
        return str(self._directory)

    @property
    def directory(self) -> Path:
        return self._directory

    @property
    def incarnation(self) -> str:
        return self._file.incarnation

    @property
    def applied(self) -> int:
        with self._file.reading() as con:
            return read_head(con).applied

    @property
    def env(self) -> Env:
        return self._env

    @property
    def strong_reads(self) -> bool:
        return True

    @property
    def gives_receipts(self) -> bool:
        return True

    @property
    def read_only(self) -> bool:
        """Whether it was opened for reading only."""
        return self._read_only

    def submit(
        self, ops: Sequence[Op], deadline: float | None = None, receipt: Receipt | None = None
    ) -> list[bytes]:
        # First: in a forked process, the thread that the appender would wait for is not there.
        self._file.check_usable()
        return self._appender.submit(ops, deadline, receipt)

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        if need is not None:
            self.meet(need)
        return file_views.peek(self._file, self._tables, self._replica.version_max, table, key, at)

    def barrier(self, timeout: float | None = None) -> int:  # noqa: ARG002
        return self.applied

    def fresh(self, seconds: float, timeout: float | None = None) -> None:  # noqa: ARG002
        self._file.check_usable()

    def check_usable(self) -> None:
        """Raises SpaceError when it is closed, or in a process forked after opening."""
        self._file.check_usable()

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def reach(self, offset: int, timeout: float | None) -> bool:
        deadline = Deadline.after(timeout, self._env)
        applied = self.applied
        while applied < offset:
            if deadline.passed:
                return False
            applied = self.wait(applied, deadline.left_s)
        return True

    def meet(self, need: ReadRequirement) -> None:
        """Everything acknowledged is here, so it waits only for what is in no commit yet. Raises Behind."""
        reach_needed(need, self.reach, lambda: self.applied)

    def _viewing(
        self, at: int | None, seen: Callable[[int], None] | None
    ) -> AbstractContextManager[PresentView | PastView]:
        return file_views.Viewing(self._file, self._tables, at, self._replica.version_max, seen)

    def _in_snapshot(self, read: Callable[[apsw.Connection], T]) -> T:
        with self._file.reading() as con:
            con.execute("BEGIN")
            return read(con)

    def wait(self, after: int, timeout: float | None) -> int:
        self._file.check_usable()
        return self._log.wait(after, timeout)

    def member_alive(self, member: str) -> bool | None:
        self._file.check_usable()
        if member == self.member:
            return True
        return members.alive(self._directory / "members", member)

    def close(self) -> None:
        undisturbed(self._close)

    def _close(self) -> None:
        with self._closing:  # one that was interrupted continues; the next one waits for it
            self.log_keep.close()
            self._log.close()
            if self._member is not None:
                self._member.close()

    def __enter__(self) -> EmbeddedShard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- beyond the contract

    @property
    def history(self) -> frozenset[str]:
        return self._replica.history

    @property
    def log(self) -> SqliteLog:
        """The log itself, for reading."""
        return self._log

    def raise_fold_version(self, version: int) -> None:
        """From here on folds apply by ``version``; programs that do not know it must stop.

        Raises SpaceError when this program or another live one is too old.
        """
        if version > self._replica.version_max:
            raise SpaceError(f"this program knows fold version {self._replica.version_max}, not {version}")
        for member, note in members.notes(self._directory / "members").items():
            known = json.loads(note)["fold_version_max"]
            if known < version:
                raise SpaceError(
                    f"{member} ({note}) knows fold version {known} only. Stop it and upgrade it first"
                )
        self._demand(system.RaiseFoldVersion(version))

    raise_here = raise_fold_version
    """Any program that has the space open may do it."""

    def trim(self, before: int) -> None:
        """Forget the records below ``before``; the state stays. Raises InvalidArgument."""
        self._demand(system.Trim(before))
        undisturbed(lambda: self._log.trim(before))

    def snapshot(self, path: str | Path) -> Snapshot:
        """Write the state to a file that ``restore_space`` and replicas can start from. Atomic."""
        with self._file.exporting() as con:
            return write_snapshot(con, Path(path), self._replica.history, self.incarnation)

    def exporting(self) -> AbstractContextManager[apsw.Connection]:
        """A connection of one's own to the state and the log, which can write to files attached to it only."""
        return self._file.exporting()

    # -- committing

    def _commit(self, ops: Sequence[Op], deadline: float) -> Sequence[bytes]:
        self._done = None  # its caller has its answer
        try:
            outcomes = self._try_commit(ops, deadline)
        except BaseException as error:
            # An interrupt too: the next commit must not take that number's outcomes for its own.
            outcomes = self._commit_doubted(error, ops, deadline)
        applied = self._committed
        if applied % _HOUSEKEEPING_EVERY_OFFSETS == 0:
            self._done = (ops, outcomes)  # what follows has a number of its own
            # The operations have happened, so nothing that fails from here on may be reported about them: another time.
            with if_possible:
                self._forget_clients(applied)
                self.log_keep.look_soon()
        elif self.log_keep.appended >= config.LOG_KEEP_LOOK_BYTES:  # the log may be too long
            self._done = (ops, outcomes)
            with if_possible:
                self.log_keep.look_soon()
        return outcomes

    def _commit_doubted(self, error: BaseException, ops: Sequence[Op], deadline: float) -> Sequence[bytes]:
        """The outcomes of a commit that failed in a way that may surface later, found by trying again. Raises what it fails with
        in the end; of other failures that is ``error``."""
        until, backoff = Deadline(deadline, self._env), Backoff(*_PAUSE_S)
        try:
            while self._in_doubt is not None and isinstance(error, OnefoldError) and not is_interrupt(error):
                if not isinstance(error, AppendUnknown):
                    raise AppendUnknown(
                        f"a commit may have happened, and trying it again failed: {error}. {ASK_LATER}"
                    ) from error
                if until.passed:
                    break
                time.sleep(until.within(backoff.pause_s()))
                try:
                    return self._try_commit(ops, deadline)
                except OnefoldError as again:
                    let_pass(again)
                    error = again
            raise error
        except BaseException:
            if self._in_doubt is not None:
                self._in_doubt = self._client = None  # that number stays open; a new client has no open one
            raise

    def _try_commit(self, ops: Sequence[Op], deadline: float) -> Sequence[bytes]:
        replica, file, number = self._replica, self._file, 0
        self._until_s = deadline
        hold = self._hold = Hold(file, self._lock_time)
        try:
            with file.writing(hold=hold):
                head = replica.load(file.foreign)
                client = self._client
                known = None if client is None else replica.known(client)
                if client is None or (known is None and born_at(client) < head.client_floor):
                    self._client = client = client_id(head.applied, self._env)
                number = known.number + 1 if known is not None else 1
                if known is not None and known.number == self._in_doubt:
                    self._tried = (ops, client, known.number)
                    outcomes = known.outcomes  # the commit of unknown outcome had happened
                else:
                    self._tried = (ops, client, number)
                    outcomes = self._append(head, client, known, ops)
                    replica.flush()
        except BaseException as error:
            replica.rollback()
            if isinstance(error, AppendUnknown) and self._in_doubt is None:
                self._in_doubt = number
            raise
        self._in_doubt = None
        self._committed = replica.commit().applied
        self._log.announce(self._committed)
        return outcomes if len(outcomes) == len(ops) else outcomes[len(outcomes) - len(ops) :]

    def _lock_time(self) -> float:
        """Seconds that the commit which is under way may queue."""
        return max(0.0, min(self._file.timeout, self._until_s - self._env.boot_s()))

    def _mend_commit(self, ops: Sequence[Op]) -> Callable[[], Sequence[bytes] | None] | None:
        """End a commit that was broken off by an interrupt, where nothing may be waited for. Whether it happened is for the file
        to say, so nothing that is remembered of it counts. What reads its outcomes, later; None when it did not begin."""
        tried, done = self._tried, self._done
        try:
            if self._hold is not None:
                self._file.mend(self._hold)
            self._replica.rollback()
        finally:
            # That number stays open; a new client has no open one, and leaves the outcomes of this one where they are.
            self._in_doubt = self._client = None
        if done is not None and done[0] is ops:
            return lambda: done[1]
        if tried is None or tried[0] is not ops:
            return None  # it was broken off before
        return partial(self._outcomes_of, tried[1], tried[2], len(ops))

    def _outcomes_of(self, client: str, number: int, count: int) -> Sequence[bytes] | None:
        """Of the last ``count`` operations of the client's commit with that number, its last; None when it did not happen."""
        with self._file.reading() as con:
            known = exactly_once.load(con, client)
        if known is None or known.number != number:
            return None
        return known.outcomes[len(known.outcomes) - count :]

    def _append(
        self, head: Head, client: str, known: ClientRow | None, ops: Sequence[Op]
    ) -> tuple[bytes, ...]:
        number = 1 if known is None else known.number + 1
        first = self._replica.missing(ops)
        batch = tuple(ops) if first is None else (first, *ops)
        now_ms = self._env.wall_ms()
        record = Record(client, number, now_ms, batch, head.fold_version)
        data = encode_record(record)
        offset = self._log.append_in(self._replica.cursor, data, now_ms, head.applied + 1)
        self.log_keep.appended += len(data)
        applied = self._replica.apply(Entry(offset, data, now_ms), record, known)
        if applied.verdict is not Verdict.APPLY:
            raise SpaceError(
                f"record {number} of {client} was judged {applied.verdict.value}. Open the space again"
            )
        return applied.outcomes

    def _demand(self, op: system.SystemOp) -> None:
        if undisturbed(lambda: self.submit([system.system_op(op)])) != [system.ACCEPTED]:
            raise InvalidArgument(
                f"the space refused {op}: it is behind what is in force, or ahead of the log"
            )

    def _forget_clients(self, applied: int) -> None:
        """Keep the table of clients bounded. The record goes in a batch of its own, by this thread, which leads."""
        floor = applied - config.CLIENT_IDLE_OFFSETS
        if floor > 0:
            with self._file.reading() as con:
                many = exactly_once.count(con) > config.CLIENTS_KEPT_MAX
            if many:
                deadline = self._env.boot_s() + config.APPEND_RETRY_S
                ops = [system.system_op(system.ExpireClients(floor))]
                try:
                    self._try_commit(ops, deadline)
                except BaseException as error:
                    self._commit_doubted(error, ops, deadline)

    # -- opening

    def catch_up(self) -> None:
        """Apply what the log has and the store has not (a store that was thrown away), and finish a trim."""
        entries: Sequence[Entry] = ()
        while True:
            try:
                with self._file.writing() as con:
                    head = self._replica.load()
                    entries = read_in(con, head.applied + 1, _CATCH_UP_BYTES, str(self._file.path))
                    for entry in entries:
                        self._replica.apply(entry)
                    self._replica.flush()
            except BaseException:
                self._replica.rollback()
                raise
            self._replica.commit()
            if not entries:
                break
        if self._log.last < head.applied:
            raise LogCorrupt(
                f"the log of {self._directory} ends at {self._log.last} but {head.applied} was applied. "
                "Restore it from a snapshot or a backup"
            )
        self._log.trim(head.log_first)

    def _sweep(self) -> None:
        """Remove what dead processes left behind."""
        members.sweep(self._directory / "members")
        wake.sweep(self._directory / "wake")


def _note(fold_version_max: int) -> str:
    return json.dumps({"pid": os.getpid(), "fold_version_max": fold_version_max})
