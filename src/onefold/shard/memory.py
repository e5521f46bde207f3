"""A shard over any log, its state in memory: append, then apply what the log says, up to one's own record."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import apsw

from onefold import config
from onefold.codec import Op
from onefold.env import Env
from onefold.errors import LogCorrupt, SpaceError, Unavailable
from onefold.fold.api import Fold
from onefold.log.api import Log
from onefold.shard.appender import Turn
from onefold.shard.over_log import ReplicatedShard
from onefold.shard.requirements import ReadRequirement
from onefold.shard.state_here import StateHere
from onefold.store.exactly_once import ClientRow
from onefold.store.paged_view import Version
from onefold.store.replica import Replica, agrees
from onefold.store.snapshot import Snapshot, create_store, load_snapshot, write_snapshot
from onefold.store.tables import Head, PastView, Tables, check_readable

T = TypeVar("T")
_CATCH_UP_BYTES = 16 << 20


class MemoryShard(ReplicatedShard, StateHere):
    """See ``onefold.shard.api.Shard``. Thread-safe. The store is in memory; its views read through the history."""

    mending = "Start again from it, or restore it"

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
        """``snapshot``: start from it instead of the log's beginning. ``replica``: the log is delivered with delay, so reads are
        not strong by themselves. Others: see ``ReplicatedShard``. With ``pause`` and ``turns`` of a simulator nothing here
        waits in real time.

        Raises LogCorrupt when the snapshot is of another log; Unavailable when the log is not delivered up to it in time.
        """
        super().__init__(log, env, url=url, read_only=read_only, pause=pause, replicates=replica, turns=turns)
        self._lock = threading.RLock()
        self._con = apsw.Connection(":memory:", statementcachesize=256)
        create_store(self._con)
        self._tables = Tables()
        self._replica = Replica(self._con, self._tables, folds, keep_all=True)
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
    def directory(self) -> Path | None:
        return None

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
        self._apart(self._close)

    def _close(self) -> None:
        self._closed = True
        self._log.close()
        with self._lock:
            self._con.close()

    # -- beyond the contract

    @property
    def history(self) -> frozenset[str]:
        return self._replica.history

    def outcome(self, request_id: str, need: ReadRequirement | None = None) -> bytes | None:
        self.catch_up()
        return super().outcome(request_id, need)

    def state_digest(self) -> str:
        self.catch_up()
        return super().state_digest()

    def _in_snapshot(self, read: Callable[[apsw.Connection], T]) -> T:
        with self._lock:
            self.check_open()
            return read(self._con)

    def snapshot(self, path: str | Path) -> Snapshot:
        """Write the state to a file that replicas can start from. Atomic."""
        self.catch_up()
        with self._lock:
            self.check_open()
            return write_snapshot(self._con, Path(path), self._replica.history, self.incarnation)

    # -- for the writer

    @property
    def fold_version(self) -> int:
        return self._replica.head.fold_version

    @property
    def fold_version_max(self) -> int:
        return self._replica.version_max

    def raise_here(self, version: int) -> None:
        """``raise_fold_version`` by a program that has the log alone. Raises SpaceError otherwise."""
        if not self.strong_reads:
            raise SpaceError(f"{self.url} is not this program's alone; a node raises its fold version")
        self.raise_fold_version(version)

    def missing(self, ops: Sequence[Op]) -> Op | None:
        with self._lock:
            self.check_open()
            return self._replica.missing(ops)

    def known(self, client: str) -> ClientRow | None:
        with self._lock:
            self.check_open()
            return self._replica.known(client)

    # -- applying

    def _position(self) -> int:
        return self._replica.head.applied

    def _look(self) -> int:
        return self.catch_up()

    def catch_up(self, own: tuple[int, bytes] | None = None, deadline: float | None = None) -> int:  # noqa: ARG002
        self.check_usable()
        last = self._log.last if own is None else max(own[0], self._log.last)
        if own is None and self._replica.head.applied >= last:
            return self._replica.head.applied
        return self._apart(lambda: self._apply_to(last, own))

    def _apply_to(self, last: int, own: tuple[int, bytes] | None) -> int:
        with self._lock:
            self.check_usable()
            if own is not None and own[0] <= self._replica.head.applied:
                self._verify_own(*own)  # another thread was faster
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
                    raise self._not_there(own[0])
                self._replica.apply(entry)
            self._replica.flush()
            self._con.execute("COMMIT")
            self._replica.commit()
        except BaseException as error:
            if self._con.in_transaction:
                self._con.execute("ROLLBACK")
            self._replica.rollback()
            self._replica.load()
            if isinstance(error, (LogCorrupt, SpaceError)):
                self._halt(error)
            raise

    # -- viewing

    @contextmanager
    def _viewing(self, at: int | None, seen: Callable[[int], None] | None) -> Iterator[PastView]:
        self.catch_up()
        with self._lock:
            self.check_open()
            head = self._replica.head
            check_readable(head, self._replica.version_max, at)
            view = _LockedView(self._con, self._tables, head.applied if at is None else at, self)
        if seen is not None and at is None:
            seen(head.applied)
        try:
            yield view
        finally:
            view.end()


class _LockedView(PastView):
    """Reads the past through a connection that others write to, one call at a time."""

    def __init__(self, con: apsw.Connection, tables: Tables, offset: int, shard: MemoryShard) -> None:
        super().__init__(con, tables, offset)
        self._lock = shard._lock
        self._space = weakref.proxy(shard)

    def get(self, table: str, key: bytes) -> bytes | None:
        with self._lock:
            self._space.check_open()
            return super().get(table, key)

    def get_many(self, table: str, keys: Iterable[bytes]) -> Mapping[bytes, bytes]:
        with self._lock:
            self._space.check_open()
            return super().get_many(table, keys)

    def get_at(self, table: str, key: bytes, offset: int) -> bytes | None:
        with self._lock:
            self._space.check_open()
            return super().get_at(table, key, offset)

    def count(self, table: str, start: bytes = b"", stop: bytes | None = None) -> int:
        with self._lock:
            self._space.check_open()
            return super().count(table, start, stop)

    def head(self) -> Head:
        with self._lock:
            self._space.check_open()
            return super().head()

    def _changes_page(
        self,
        table: str,
        after: int,
        within: tuple[int, bytes] | None,
        start: bytes,
        stop: bytes | None,
        rows: int,
    ) -> tuple[list[Version], bool]:
        with self._lock:
            self._space.check_open()
            return super()._changes_page(table, after, within, start, stop, rows)

    def changed_since(self, table: str, start: bytes, stop: bytes | None, offset: int) -> bool:
        with self._lock:
            self._space.check_open()
            return super().changed_since(table, start, stop, offset)

    def _id(self, table: str) -> int:
        with self._lock:
            return super()._id(table)

    def _page(
        self, table: str, start: bytes, stop: bytes | None, rows: int, reverse: bool
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        with self._lock:
            self._space.check_open()
            return super()._page(table, start, stop, rows, reverse)
