"""A space over any log: append, then apply what the log says, up to one's own record.

Unlike the embedded engine, log and state are apart here: an append may have an unknown outcome, others' records come in
between, and the store can be behind, or wrong about a log that was replaced. All of that is handled in this file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import apsw

from onefold import config
from onefold.codec import Op, Record, encode_record
from onefold.env import Env
from onefold.errors import AppendUnknown, Expired, InvalidArgument, LogCorrupt, OnefoldError, SpaceError
from onefold.fold import exactly_once, system
from onefold.fold.api import Fold
from onefold.fold.appender import Appender
from onefold.fold.replica import Replica, agrees
from onefold.fold.snapshot import Snapshot, create_store, load_snapshot, state_digest, write_snapshot
from onefold.fold.store import PastView, Tables, check_readable
from onefold.ids import client_id, new_id
from onefold.log.api import Log

_ATTEMPTS_MAX = 100
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
    ) -> None:
        """``snapshot``: start from it instead of the log's beginning. ``pause``: waits between tries of an append, given
        seconds (default: really waits)."""
        self._log = log
        self._env = env
        self._url = url
        self._read_only = read_only
        self._pause = pause or threading.Event().wait
        self._closed = False
        self._halted: OnefoldError | None = None
        self._client: str | None = None
        self._number = 0
        self._lock = threading.RLock()
        self._con = apsw.Connection(":memory:", statementcachesize=256)
        create_store(self._con)
        self._tables = Tables()
        self._replica = Replica(self._con, self._tables, folds, keep_all=True)
        self._appender = Appender(self._commit)
        self.member = new_id("m", env)
        if snapshot is not None:
            load_snapshot(self._con, snapshot, self._replica.history, keep_all=True)
        head = self._replica.load()
        if head.applied > log.last or not agrees(self._con, log):
            self._con.close()
            raise LogCorrupt(
                f"the snapshot stands at offset {head.applied} of another log than {url}. Start from the log, or use its own"
            )
        self._catch_up()

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
        return self._catch_up()

    def submit(self, ops: Sequence[Op]) -> list[bytes]:
        self._check_usable()
        if self._read_only:
            raise SpaceError(f"{self._url} was opened read-only. Open it without read_only to write")
        return self._appender.submit(ops)

    def view(self, at: int | None = None) -> AbstractContextManager[PastView]:
        """The present, or the state as of offset ``at`` (tables with history). Raises TooOld and InvalidArgument."""
        return self._viewing(at)

    def wait(self, after: int, timeout: float | None) -> int:
        self._check_usable()
        self._log.wait(after, timeout)
        return self._replica.head.applied if self._closed else self._catch_up()

    def member_alive(self, member: str) -> bool | None:
        self._check_usable()
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
        self._catch_up()
        with self._lock:
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
        self._catch_up()
        with self._lock:
            return state_digest(self._con, self._replica.history)

    def snapshot(self, path: str | Path) -> Snapshot:
        """Write the state to a file that replicas can start from. Atomic."""
        self._catch_up()
        with self._lock:
            return write_snapshot(self._con, Path(path), self._replica.history, self.incarnation)

    def verify(self) -> None:
        """Read the log again and compare it with what was applied. Raises LogCorrupt when they disagree."""
        with self._lock:
            self._check_usable()
            if not agrees(self._con, self._log):
                raise LogCorrupt(
                    f"{self._url} is not the log that was applied here. Start again from it, or restore it"
                )

    # -- appending

    def _commit(self, ops: Sequence[Op]) -> Sequence[bytes]:
        applied = self._catch_up()
        with self._lock:
            first = self._replica.missing(ops)
        batch = tuple(ops) if first is None else (first, *ops)
        for _ in range(2):
            if self._client is None:
                self._client, self._number = client_id(applied, self._env), 0
            try:
                outcomes = self._append(self._client, self._number + 1, batch)
                return outcomes[len(outcomes) - len(ops) :]
            except Expired as error:
                self._client = None
                if not error.definite:
                    raise
            applied = (
                self._catch_up()
            )  # forgotten after a long rest, and nothing was applied: as a new client
        raise Expired(
            f"new clients of {self._url} are forgotten at once: its expiry floor is wrong", definite=True
        )

    def _append(self, client: str, number: int, ops: tuple[Op, ...]) -> tuple[bytes, ...]:
        """Append until the record is known to be applied, always under the same number."""
        record = Record(client, number, self._env.wall_ms(), ops, self._replica.head.fold_version)
        data = encode_record(record)
        deadline = self._env.boot_s() + config.APPEND_RETRY_S
        pause_s, in_doubt = 0.01, False
        for _ in range(_ATTEMPTS_MAX):
            try:
                offset = self._log.append(data)
            except AppendUnknown:
                in_doubt = True
            except OnefoldError as error:
                if not in_doubt:
                    raise
                self._client = None  # its number stays open; a new client has no open one
                raise AppendUnknown(
                    f"an append may have happened, and trying it again failed: {error}"
                ) from error
            else:
                self._catch_up(own=(offset, data))
                outcomes = self._outcomes(client, number)
                if outcomes is None:
                    raise Expired(
                        f"client {client} has been forgotten by the space; its record {number} was not applied at "
                        f"offset {offset}" + (", an earlier try of it may have been" if in_doubt else ""),
                        definite=not in_doubt,
                    )
                return outcomes
            self._catch_up()
            outcomes = self._outcomes(client, number)
            if outcomes is not None:
                return outcomes  # it had surfaced
            if self._env.boot_s() + pause_s > deadline:
                break
            self._pause(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        self._client = None
        raise AppendUnknown(f"the log gave no answer to record {number} of {client}; it may surface later")

    def _outcomes(self, client: str, number: int) -> tuple[bytes, ...] | None:
        with self._lock:
            known = self._replica.known(client)
        if known is None or known.number != number:
            return None
        self._number = number
        return known.outcomes

    def _demand(self, op: system.SystemOp) -> None:
        if self.submit([system.system_op(op)]) != [system.ACCEPTED]:
            raise InvalidArgument(
                f"the space refused {op}: it is behind what is in force, or ahead of the log"
            )

    # -- applying

    def _catch_up(self, own: tuple[int, bytes] | None = None) -> int:
        """Apply what the log has; return the applied offset. ``own``: an acknowledged record that must be found there."""
        with self._lock:
            self._check_usable()
            last = self._log.last if own is None else max(own[0], self._log.last)
            while self._replica.head.applied < last:
                self._apply_some(own)
            return self._replica.head.applied

    def _apply_some(self, own: tuple[int, bytes] | None) -> None:
        self._con.execute("BEGIN")
        try:
            before = self._replica.load().applied
            entries = self._log.read(before + 1, _CATCH_UP_BYTES)
            if not entries:
                raise LogCorrupt(f"offset {before + 1} of {self._url} was announced and is not there")
            for entry in entries:
                if own is not None and entry.offset == own[0] and entry.data != own[1]:
                    raise LogCorrupt(
                        f"the record acknowledged at offset {own[0]} of {self._url} is not there"
                    )
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

    def _check_usable(self) -> None:
        if self._halted is not None:
            raise type(self._halted)(f"this replica halted: {self._halted}", definite=self._halted.definite)
        if self._closed:
            raise SpaceError(f"{self._url} is closed. Open it again")

    # -- viewing

    @contextmanager
    def _viewing(self, at: int | None) -> Iterator[PastView]:
        self._catch_up()
        with self._lock:
            head = self._replica.head
            check_readable(head, self._replica.version_max, at)
            view = _LockedView(self._con, self._tables, head.applied if at is None else at, self._lock)
        try:
            yield view
        finally:
            view.end()


class _LockedView(PastView):
    """Reads the past through a connection that others write to, one call at a time."""

    def __init__(self, con: apsw.Connection, tables: Tables, offset: int, lock: threading.RLock) -> None:
        super().__init__(con, tables, offset)
        self._lock = lock

    def get(self, table: str, key: bytes) -> bytes | None:
        with self._lock:
            return super().get(table, key)

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        with self._lock:
            return super().get_many(table, keys)

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        with self._lock:
            return super()._page(table, start, stop, rows, reverse)
