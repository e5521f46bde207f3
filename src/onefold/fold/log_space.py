"""A space over any log: append, then apply what the log says, up to one's own record.

Unlike the embedded engine, log and state are apart here: an append may have an unknown outcome, others' records come in
between, and the store can be behind, or wrong about a log that was replaced. All of that is handled in this file.

A *replica* is a space whose log arrives with delay: ``log.last`` is what was delivered here so far, not what was appended. Its
views show that, so they are weaker than strong until ``barrier``, ``fresh`` or ``reach`` has waited for more.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import apsw

from onefold import config
from onefold.codec import Op
from onefold.env import Env
from onefold.errors import (
    AppendUnknown,
    Expired,
    InvalidArgument,
    LogCorrupt,
    OnefoldError,
    SpaceError,
    Timeout,
    TooOld,
    TooStale,
    Unavailable,
)
from onefold.fold import exactly_once, system
from onefold.fold.api import Fold
from onefold.fold.appender import Appender, Turn
from onefold.fold.exactly_once import Known
from onefold.fold.freshness import Freshness
from onefold.fold.log_writer import LogWriter
from onefold.fold.replica import Replica, agrees
from onefold.fold.snapshot import Snapshot, create_store, load_snapshot, state_digest, write_snapshot
from onefold.fold.store import Head, PastView, Tables, Version, check_readable
from onefold.ids import new_id
from onefold.log.api import Log

_CATCH_UP_BYTES = 16 << 20


class LogSpace:
    """See ``onefold.fold.space.Space``. Thread-safe. The store is in memory; its views read through the history."""

    def __init__(
        self,
        log: Log,
        folds: Sequence[Fold],
        env: Env,
        *,
        url: str = "memory://",
        read_only: bool = False,
        snapshot: Path | None = None,
        pause: Callable[[float], None] | None = None,
        replica: bool = False,
        turns: Callable[[], Turn] | None = None,
    ) -> None:
        """``snapshot``: start from it instead of the log's beginning. ``pause``: waits between tries of an append, given
        seconds (default: really waits). ``replica``: the log is delivered with delay, so reads are not strong by themselves.
        ``turns``: see ``Appender``. With ``pause`` and ``turns`` of a simulator nothing here waits in real time.

        Raises LogCorrupt when the snapshot is of another log; Unavailable when the log is not delivered up to it in time.
        """
        self._log = log
        self._env = env
        self._url = url
        self._read_only = read_only
        self._pause = pause or threading.Event().wait
        self._closed = False
        self._halted: OnefoldError | None = None
        self._lock = threading.RLock()
        self._opened = _WhileOpen(self, self._lock)
        self._con = apsw.Connection(":memory:", statementcachesize=256)
        create_store(self._con)
        self._tables = Tables()
        self._replica = Replica(self._con, self._tables, folds, keep_all=True)
        self._replicates = replica
        self.freshness = Freshness()
        """How fresh this replica is known to be."""
        self._writer = LogWriter(self)
        self._appender = Appender(self._writer.commit, turns)
        self.member = new_id("m", env)
        if snapshot is not None:
            load_snapshot(self._con, snapshot, self._replica.history, keep_all=True)
        head = self._replica.load()
        if replica and log.wait(head.applied - 1, config.APPEND_RETRY_S) < head.applied:
            self._con.close()
            raise Unavailable(
                f"{url} was not delivered up to offset {head.applied}, where the snapshot stands. Try again"
            )
        if head.applied > log.last or not agrees(self._con, log):
            self._con.close()
            raise LogCorrupt(
                f"the snapshot stands at offset {head.applied} of another log than {url}. Start from the log, or use its own"
            )
        self.catch_up()

    # -- the contract

    @property
    def url(self) -> str:
        return self._url

    @property
    def directory(self) -> Path | None:
        return None

    @property
    def incarnation(self) -> str:
        return self._log.incarnation

    @property
    def applied(self) -> int:
        return self.catch_up()

    @property
    def env(self) -> Env:
        return self._env

    @property
    def strong_reads(self) -> bool:
        return not self._replicates

    def peek(self, table: str, key: bytes) -> tuple[bytes | None, int]:
        with self.view() as view:
            return view.get(table, key), view.offset

    def barrier(self, timeout: float | None = None) -> int:
        if not self._replicates:
            return self.catch_up()
        self.check_usable()
        if self._read_only:
            raise Unavailable(
                f"{self._url} was opened read-only, and a strong read appends a record. Read with consistency='session' or weaker"
            )
        patience = config.READ_TIMEOUT_S if timeout is None else timeout
        deadline = self._env.boot_s() + patience
        pause_s = 0.01
        while True:
            try:
                # The appender's next record is one whose append starts after this call, which is what makes the read strong.
                self._appender.submit(
                    [system.system_op(system.Tick())], lambda: max(0.0, deadline - self._env.boot_s())
                )
            except (Unavailable, Timeout, AppendUnknown, Expired) as error:
                if self._env.boot_s() + pause_s >= deadline:
                    raise Unavailable(
                        f"{self._url} gave no answer within {patience:g} s, so what is here may be old: {error}. "
                        "Try again, or read with a weaker consistency",
                        definite=True,
                    ) from error
            else:
                return self._replica.head.applied
            self._pause(pause_s)
            pause_s = min(2 * pause_s, 1.0)

    def fresh(self, seconds: float, timeout: float | None = None) -> None:
        if not self._replicates:
            self.catch_up()
            return
        now_s = self._env.boot_s()
        if self.freshness.within(seconds, now_s):
            return
        try:
            self.barrier(timeout)
        except Unavailable as error:
            if self.freshness.within(seconds, now_s):
                return  # another thread's record was in time
            age = self.freshness.age(self._env.boot_s())
            known = (
                f"is known to be complete only as of {age:.3g} s ago"
                if age < float("inf")
                else "may be of any age"
            )
            raise TooStale(
                f"what is here of {self._url} {known}, and {seconds:g} s are allowed: {error}", definite=True
            ) from error

    def pause(self, seconds: float) -> None:
        self._pause(seconds)

    def reach(self, offset: int, timeout: float | None) -> bool:
        deadline = None if timeout is None else self._env.boot_s() + timeout
        applied = self.catch_up()
        while applied < offset:
            left = None if deadline is None else deadline - self._env.boot_s()
            if left is not None and left <= 0:
                return False
            applied = self.wait(applied, left)
        return True

    def submit(self, ops: Sequence[Op]) -> list[bytes]:
        self.check_usable()
        if self._read_only:
            raise SpaceError(f"{self._url} was opened read-only. Open it without read_only to write")
        return self._appender.submit(ops)

    def view(self, at: int | None = None) -> AbstractContextManager[PastView]:
        """The present, or the state as of offset ``at`` (tables with history). Raises TooOld and InvalidArgument."""
        return self._viewing(at)

    def wait(self, after: int, timeout: float | None) -> int:
        self.check_usable()
        applied = self._replica.head.applied
        if applied > after:
            return applied
        self._log.wait(after, timeout)
        return self._replica.head.applied if self._closed else self.catch_up()

    def member_alive(self, member: str) -> bool | None:
        self.check_usable()
        if self._replicates and member != self.member:
            return None  # it may be on any machine
        return member == self.member

    def close(self) -> None:
        self._closed = True
        self._log.close()
        with self._lock:
            self._con.close()

    def __enter__(self) -> LogSpace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- beyond the contract

    @property
    def log(self) -> Log:
        """The log itself, for reading."""
        return self._log

    def outcome(self, request_id: str) -> bytes | None:
        """The kept outcome of the operation with this request id; None when there was none within the retention."""
        self.catch_up()
        with self._opened:
            return exactly_once.requested(self._con, request_id, self._replica.head.now_ms)

    def raise_fold_version(self, version: int) -> None:
        """From here on folds apply by ``version``. Raises SpaceError when this program is too old."""
        if version > self._replica.version_max:
            raise SpaceError(f"this program knows fold version {self._replica.version_max}, not {version}")
        self._demand(system.RaiseFoldVersion(version))

    def trim(self, before: int) -> None:
        """Forget the records below ``before``; the state stays. Raises InvalidArgument."""
        self._demand(system.Trim(before))
        self._log.trim(before)

    def state_digest(self) -> str:
        """A hash of the whole state: equal for all replicas that have applied the same offsets. Reads everything."""
        self.catch_up()
        with self._opened:
            return state_digest(self._con, self._replica.history)

    def snapshot(self, path: str | Path) -> Snapshot:
        """Write the state to a file that replicas can start from. Atomic."""
        self.catch_up()
        with self._opened:
            return write_snapshot(self._con, Path(path), self._replica.history, self.incarnation)

    def verify(self) -> None:
        """Read the log again and compare it with what was applied. Raises LogCorrupt when they disagree."""
        with self._lock:
            self.check_usable()
            if not agrees(self._con, self._log):
                raise LogCorrupt(
                    f"{self._url} is not the log that was applied here. Start again from it, or restore it"
                )

    # -- inside

    def _demand(self, op: system.SystemOp) -> None:
        if self.submit([system.system_op(op)]) != [system.ACCEPTED]:
            raise InvalidArgument(
                f"the space refused {op}: it is behind what is in force, or ahead of the log"
            )

    # -- for the writer

    @property
    def replicates(self) -> bool:
        """Whether the log is delivered with delay."""
        return self._replicates

    @property
    def fold_version(self) -> int:
        """In force as far as is applied here."""
        return self._replica.head.fold_version

    def missing(self, ops: Sequence[Op]) -> Op | None:
        """See ``Replica.missing``."""
        with self._opened:
            return self._replica.missing(ops)

    def known(self, client: str) -> Known | None:
        """See ``Replica.known``."""
        with self._opened:
            return self._replica.known(client)

    def check_usable(self) -> None:
        """Raises what the replica halted with, and SpaceError when it is closed."""
        if self._halted is not None:
            raise type(self._halted)(f"this replica halted: {self._halted}", definite=self._halted.definite)
        self.check_open()

    def check_open(self) -> None:
        """Raises SpaceError when it is closed."""
        if self._closed:
            raise SpaceError(f"{self._url} is closed. Open it again")

    # -- applying

    def catch_up(self, own: tuple[int, bytes] | None = None) -> int:
        """Apply what the log has; return the applied offset. ``own``: an acknowledged record that must be found there."""
        self.check_usable()
        last = self._log.last if own is None else max(own[0], self._log.last)
        with self._lock:
            self.check_usable()
            if own is not None and own[0] <= self._replica.head.applied:
                self._verify_own(*own)  # another thread was faster
            while self._replica.head.applied < last:
                self._apply_some(own)
            return self._replica.head.applied

    def _verify_own(self, offset: int, data: bytes) -> None:
        try:
            if self._log.read(offset, 1)[0].data == data:
                return
        except TooOld:
            return
        self._halted = self._not_there(offset)
        raise self._halted

    def _not_there(self, offset: int) -> LogCorrupt:
        return LogCorrupt(
            f"the record acknowledged at offset {offset} of {self._url} is not there", definite=False
        )

    def _apply_some(self, own: tuple[int, bytes] | None) -> None:
        self._con.execute("BEGIN")
        try:
            before = self._replica.load().applied
            entries = self._log.read(before + 1, _CATCH_UP_BYTES)
            if not entries:
                raise LogCorrupt(f"offset {before + 1} of {self._url} was announced and is not there")
            for entry in entries:
                if own is not None and entry.offset == own[0] and entry.data != own[1]:
                    raise self._not_there(own[0])
                self._replica.apply(entry)
            self._con.execute("COMMIT")
            self._replica.commit()
        except BaseException as error:
            if self._con.in_transaction:
                self._con.execute("ROLLBACK")
            self._replica.rollback()
            self._replica.load()
            if isinstance(error, (LogCorrupt, SpaceError)):
                error.definite = False
                self._halted = error
            raise

    # -- viewing

    @contextmanager
    def _viewing(self, at: int | None) -> Iterator[PastView]:
        self.catch_up()
        with self._opened:
            head = self._replica.head
            check_readable(head, self._replica.version_max, at)
            view = _LockedView(self._con, self._tables, head.applied if at is None else at, self._opened)
        try:
            yield view
        finally:
            view.end()


class _WhileOpen:
    """The space's lock, for who uses its connection: any thread may close it meanwhile, and then this raises SpaceError."""

    def __init__(self, space: LogSpace, lock: threading.RLock) -> None:
        self._space = weakref.proxy(space)
        self._lock = lock

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._space.check_open()
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _LockedView(PastView):
    """Reads the past through a connection that others write to, one call at a time."""

    def __init__(self, con: apsw.Connection, tables: Tables, offset: int, lock: _WhileOpen) -> None:
        super().__init__(con, tables, offset)
        self._lock = lock

    def get(self, table: str, key: bytes) -> bytes | None:
        with self._lock:
            return super().get(table, key)

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        with self._lock:
            return super().get_many(table, keys)

    def get_at(self, table: str, key: bytes, offset: int) -> bytes | None:
        with self._lock:
            return super().get_at(table, key, offset)

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        with self._lock:
            return super().count(table, start, stop)

    def head(self) -> Head:
        with self._lock:
            return super().head()

    def changes(
        self,
        table: str,
        after: int,
        *,
        within: tuple[int, bytes] | None = None,
        start: bytes = b"",
        stop: bytes | None = None,
        limit: int = 1000,
    ) -> list[Version]:
        with self._lock:
            return super().changes(table, after, within=within, start=start, stop=stop, limit=limit)

    def changed_since(self, table: str, start: bytes, stop: bytes | None, offset: int) -> bool:
        with self._lock:
            return super().changed_since(table, start, stop, offset)

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        with self._lock:
            return super()._page(table, start, stop, rows, reverse)
