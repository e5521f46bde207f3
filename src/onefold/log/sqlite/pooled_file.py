"""One SQLite file as several processes of a machine use it: a write transaction, pooled readers, forks, errors.

In write-ahead mode readers are never blocked. Writers of all processes queue on ``WriteLock``, so SQLite never sees two at once.
What the file is, and how it is opened, is left to its kinds: ``SqliteFile`` (a space) and ``ReplicaFile`` (a copy of one).
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import apsw

from onefold import config
from onefold.errors import OnefoldError, SpaceError
from onefold.log.sqlite import checksums
from onefold.log.sqlite.errors import BUSY_MS, FAILED, translate
from onefold.machine import forks, inherited, undisturbed
from onefold.machine.flock import Ask, WriteLock
from onefold.machine.undisturbed import Held

_IDLE_READERS_MAX = 8
_RESTART_WAIT_MS = 200
_FORK_LOOK_S = 0.0005
_UNUSED_REFERENCES = 4
_FRESH_NS = 100_000_000


def _in_uri(path: Path) -> str:
    """A path in a ``file:`` URI: what SQLite's documentation asks to be escaped (urllib costs 7 ms to import)."""
    return os.fspath(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


class Hold:
    """One use of the writing connection: what its locks are held by, and the ``with`` block of its transaction (``writing``).

    An interrupt can hit the entry of ``__exit__``, before anything could be called that ends the block: so its maker keeps track
    of it, and mends it. A class, since every commit has one, and a generator costs more.
    """

    __slots__ = ("_con", "_file", "ask", "main", "timeout")

    def __init__(self, file: PooledFile, timeout: float | Callable[[], float]) -> None:
        """``timeout``: seconds that it queues, or a function that gives them, called only when it has to queue."""
        self._file = file
        self.timeout = timeout
        self.ask: Ask | None = None
        self.main = _thread.get_ident() == forks.main_thread
        """Whether it can be interrupted, and is then ended by another thread only."""

    def mend(self) -> None:
        self._file.mend(self)

    def __enter__(self) -> apsw.Connection:
        file = self._file
        try:
            if file._closed or file._pid != forks.process:
                file.check_usable()
            con, lock = file._writer, file._lock
            if con is None or lock is None:
                raise SpaceError(f"{file.path} was opened read-only. Open it without read_only to write")
            lock.acquire(self.timeout, self)
            if not file._transacting.take(self):
                file._transacting.acquire(self)
            if file._closed or file._pid != forks.process:
                file.check_usable()
            file.check_place()
            file._execute("BEGIN IMMEDIATE")
            if con.data_version() != file._version:
                file.foreign += 1
            self._con = con
            return con
        except BaseException as error:
            # Nothing is called before this: a handler that runs now would leave everything as it is.
            if self.main:
                undisturbed.mend_later(self)
            else:
                file.mend(self)
            if isinstance(error, FAILED):
                raise file.translated(error) from error
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        file = self._file
        if kind is not None:
            if self.main:
                undisturbed.mend_later(self)
            else:
                file.mend(self)
            if isinstance(error, FAILED):
                raise file.translated(error) from error
            return
        try:
            con, lock = self._con, file._lock
            file._execute("COMMIT")
            file._version = con.data_version()
            if file._wal_pages >= file.checkpoint_pages:
                file._checkpoint(con)
            file._transacting.release(self)
            if lock is not None:
                lock.release(self)
        except BaseException as failure:
            if self.main:
                undisturbed.mend_later(self)
            else:
                file.mend(self)
            if isinstance(failure, FAILED):
                raise file.translated(failure, committing=True) from failure
            raise


class PooledFile:
    """An open file: one writing connection guarded by the write lock, and a pool of reading ones. Thread-safe."""

    checkpoint_pages = 2000
    """When the write-ahead log has so many pages, they are moved into the file."""

    def __init__(self, path: Path, *, read_only: bool, timeout: float | None) -> None:
        """``timeout``: seconds that a writer queues (default ``config.WRITE_LOCK_TIMEOUT_S``). The kinds open the connections."""
        self.directory = path.parent
        self.path = path
        self.read_only = read_only
        self.timeout = config.WRITE_LOCK_TIMEOUT_S if timeout is None else timeout
        self._pid = forks.process
        self._closed = False
        self._immutable = False
        self._wal_pages = 0
        self._version = -1
        self.foreign = 0
        """How often a write transaction began with what others (or this connection outside of one) had written since the last."""
        self._idle: deque[apsw.Connection] = deque()
        self._readers: set[apsw.Connection] = set()
        """All that are open, idle or lent out."""
        self._making = threading.Lock()
        """Held while connections are opened or closed, and during a fork."""
        self._transacting = Held()
        """Held during each use of the writing connection, and during a fork."""
        self._forking = False
        name = os.path.abspath(self.path)  # noqa: PTH100  # the program may change its directory
        self._place = (name, f"{name}-wal")
        self._inodes: list[tuple[int, int] | None] = [None, None]
        """Of the file and its write-ahead log as they were when they were first written to."""
        self._folder = os.path.dirname(name)  # noqa: PTH120
        self._is_link = os.path.islink(name)  # noqa: PTH114
        self._folder_seen: tuple[int, int, int] | None = None
        """What the folder was like when the two were last looked for: each change of a name in it changes its ctime."""
        self._fork_made = False
        self._fork_made_by = object()
        """Holds ``_transacting`` during a fork."""
        self._before_fork: tuple[inherited.Identity | None, bool] = (None, False)
        self._lock: WriteLock | None = None
        self._writer: apsw.Connection | None = None
        self._execute: Callable[[str], object] = _nothing
        """Of a cursor of it: with one for each statement it would take three times as long to begin a transaction."""
        self.end_statements: Callable[[], object] = _no_statements
        """Closes the cursors that a writer keeps from one transaction to the next. Called before one that was broken off is
        rolled back: an interrupted read would stay open, and keep the connection at what it has seen."""
        undisturbed.prepare()
        forks.track_resting(self)

    def translated(self, error: Exception, *, committing: bool = False) -> OnefoldError:
        """The error of Onefold for an error of SQLite on this file."""
        return translate(error, self.path, committing=committing)

    def _connect(self, flags: int) -> apsw.Connection:
        name = os.fspath(self.path)
        if self._immutable:
            name = f"file:{_in_uri(self.path)}?immutable=1"
            flags |= apsw.SQLITE_OPEN_URI
        con = apsw.Connection(
            name, flags=flags, vfs=checksums.VFS if checksums.available() else None, statementcachesize=256
        )
        try:
            con.set_busy_timeout(BUSY_MS)
            # Statements are planned without looking at bound values, so none is planned again because a value changed.
            con.config(apsw.SQLITE_DBCONFIG_ENABLE_QPSG, 1)
            con.execute("PRAGMA cache_size=-8000; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF")
            self._prepare(con)
        except BaseException:
            con.close()
            raise
        return con

    def _write_by(self, con: apsw.Connection) -> None:
        """Make it the writing connection."""
        self._writer = con
        self._execute = con.cursor().execute

    def _prepare(self, con: apsw.Connection) -> None:
        """What a kind of file does with each of its connections first."""

    # -- reading

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A connection for reading, without a transaction. Errors of SQLite come out translated."""
        con = self.take_reader()
        try:
            yield con
        except FAILED as error:
            raise self.translated(error) from error
        finally:
            self.give_reader(con)

    @contextlib.contextmanager
    def exporting(self) -> Iterator[apsw.Connection]:
        """A connection of one's own that cannot write here, but to files attached to it. Errors come out translated."""
        self.check_usable()
        options = "immutable=1" if self._immutable else "mode=ro"
        name = f"file:{_in_uri(self.path)}?{options}"
        con = None
        try:
            with self._making:
                con = apsw.Connection(
                    name,
                    flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI,
                    vfs=checksums.VFS if checksums.available() else None,
                )
                self._readers.add(con)
            con.set_busy_timeout(BUSY_MS)
            self._prepare(con)
            yield con
        except FAILED as error:
            raise self.translated(error) from error
        finally:
            if con is not None:
                self._close_reader(con)

    def take_reader(self) -> apsw.Connection:
        """A pooled connection; give it back. Raises SpaceError when closed or after a fork."""
        self.check_usable()
        while True:
            try:
                con = self._idle.pop()
            except IndexError:
                con = undisturbed.undisturbed(self._new_reader, self.give_reader)
            # Looked at afterwards: a fork that begins now waits for this connection, and one that had begun gets it back.
            if not self._forking:
                return con
            self._idle.append(con)
            time.sleep(_FORK_LOOK_S)

    def _new_reader(self) -> apsw.Connection:
        try:
            with self._making:
                self.check_usable()
                self._find_lost()
                with contextlib.suppress(IndexError):
                    return self._idle.pop()
                con = self._connect(apsw.SQLITE_OPEN_READONLY)
                con.execute("PRAGMA query_only=ON")
                self._readers.add(con)
        except apsw.Error as error:
            raise self.translated(error) from error
        return con

    def _find_lost(self) -> None:
        """Take back the connections that nobody has any more: their readers were interrupted before they gave them back."""
        for con in list(self._readers):
            # This loop's variable, the list, the set, and getrefcount's argument.
            if sys.getrefcount(con) == _UNUSED_REFERENCES and con not in self._idle:
                self.give_reader(con)

    def _close_reader(self, con: apsw.Connection) -> None:
        if self._pid != forks.process:
            _leak(con)
            return
        con.close()
        self._readers.discard(con)

    def give_reader(self, con: apsw.Connection) -> None:
        """Back into the pool; an open transaction of it ends."""
        if self._pid != forks.process:
            _leak(con)
            return
        if con.in_transaction:
            con.execute("ROLLBACK")
        if self._closed or len(self._idle) >= _IDLE_READERS_MAX:
            self._close_reader(con)
        else:
            self._idle.append(con)

    # -- writing

    def writing(
        self, timeout: float | None = None, hold: Hold | None = None
    ) -> AbstractContextManager[apsw.Connection]:
        """The write transaction: commits durably when the block ends, rolls back when it raises.

        ``timeout``: seconds that it queues. ``hold``: of a caller that keeps track of it, and mends it when it was interrupted
        outside of the block too; that is cheaper, and queues as long as it says itself.

        Raises Timeout (definite) when the queue of writers does not move, Unavailable when the disk is full (nothing
        was written), SpaceError when the file was removed or replaced, AppendUnknown when the commit itself failed in a way that
        may surface later.
        """
        return self._writing(self.timeout if timeout is None else timeout) if hold is None else hold

    @contextlib.contextmanager
    def _writing(self, timeout: float) -> Iterator[apsw.Connection]:
        hold = Hold(self, timeout)
        try:
            with hold as con:
                yield con
        except BaseException:
            if hold.main:
                undisturbed.mend_later(hold)
            else:
                self.mend(hold)
            raise

    @contextlib.contextmanager
    def maintaining(self, timeout: float | None = None) -> Iterator[apsw.Connection]:
        """The writing connection outside a transaction, with the write lock held: for what needs its own.

        Raises Timeout (definite) when the queue of writers does not move."""
        self.check_usable()
        if self._writer is None or self._lock is None:
            raise SpaceError(f"{self.path} was opened read-only. Open it without read_only to write")
        hold = Hold(self, self.timeout if timeout is None else timeout)
        try:
            self._lock.acquire(hold.timeout, hold)
            self._transacting.acquire(hold)
            self.check_place()
            try:
                yield self._writer
            except FAILED as error:
                raise self.translated(error) from error
            self._transacting.release(hold)
            self._lock.release(hold)
        except BaseException:
            if hold.main:
                undisturbed.mend_later(hold)
            else:
                self.mend(hold)
            raise

    def mend(self, hold: Hold) -> None:
        """End what was broken off: roll its transaction back, unless it is committed, and let the next writer in. By one thread
        at a time, which no signal interrupts. Without effect on what has ended already."""
        con, lock = self._writer, self._lock
        if self._transacting.held_by(hold):
            with contextlib.suppress(apsw.Error):
                self.end_statements()
            with contextlib.suppress(apsw.Error):
                if con is not None and con.in_transaction:
                    con.execute("ROLLBACK")
            self.foreign += 1  # how far it came is not known: look again
            self._transacting.release(hold)
        if lock is not None:
            lock.mend(hold)

    def check_place(self) -> None:
        """Raises SpaceError when the file is no longer where it was opened: what is written to it would be lost."""
        try:
            status = os.stat(self._folder)  # noqa: PTH116  # once per commit: a path costs twice as much
        except OSError:
            folder = None
        else:
            folder = (status.st_ino, status.st_dev, status.st_ctime_ns)
            if folder == self._folder_seen:
                return
        now_ns = time.time_ns()
        self._look_for_files()
        # Two changes within the clock's grain have one ctime, so a young one is not kept. The folder of a link says nothing.
        settled = folder is not None and now_ns - folder[2] > _FRESH_NS and not self._is_link
        self._folder_seen = folder if settled else None

    def _look_for_files(self) -> None:
        opened = self._inodes
        for at, name in enumerate(self._place):
            found = inherited.inode_at(name)
            if found != opened[at]:
                if opened[at] is not None:
                    raise self._gone(
                        name, "another file was put there" if found else "it was removed or moved"
                    )
                opened[at] = found

    def _gone(self, name: str, what: str) -> SpaceError:
        return SpaceError(
            f"{name} is not the file that was opened: {what}. Nothing was written. Close this connection and open the space "
            "again; if the folder was moved, open it where it is now"
        )

    def _note_wal(self, _con: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self, con: apsw.Connection) -> None:
        """Move the WAL's pages into the file. The commit is done already, so a failure here is only tried again later."""
        with contextlib.suppress(apsw.Error):
            if self._wal_pages * 4096 < config.WAL_BYTES_MAX:
                con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                return
            con.set_busy_timeout(_RESTART_WAIT_MS)
            try:
                con.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_RESTART)
            finally:
                con.set_busy_timeout(BUSY_MS)

    # -- the end

    def check_usable(self) -> None:
        """Raises SpaceError when closed, or in a process forked after opening."""
        if self._pid != forks.process:
            raise forks.opened_before(f"{self.directory}")
        if self._closed:
            raise SpaceError(f"{self.directory} is closed. Open it again")

    def close(self) -> None:
        """Close every connection; those lent out close when they come back. Waits for a running write of this process, but not
        for those of others, which have connections of their own (and may be stopped)."""
        if self._closed or self._pid != forks.process:
            return
        lock, writer = self._lock, self._writer
        self._closed = True
        if lock is not None and writer is not None:
            lock.wait_for_threads(self.timeout, Hold(self, self.timeout))
        with self._making:
            while self._idle:
                self._close_reader(self._idle.pop())
            with contextlib.suppress(apsw.Error):
                if writer is not None:
                    writer.close()
                    self._writer, self._execute = None, _nothing
        if lock is not None:
            lock.close()

    def rest_before_fork(self, deadline: float) -> None:
        """Let the transactions that are running end, and none begin."""
        self._forking = True
        self._fork_made = self._making.acquire(timeout=_left(deadline))
        rests = self._transacting.acquire(self._fork_made_by, _left(deadline)) and self._fork_made
        self._find_lost()
        while len(self._idle) < len(self._readers) and time.monotonic() < deadline:
            time.sleep(_FORK_LOOK_S)
            self._find_lost()
        opened = self._writer is not None or bool(self._readers) or not rests
        self._before_fork = (
            inherited.identity(self.path) if opened and not self._immutable else None,
            rests and len(self._idle) >= len(self._readers),
        )

    def go_on_after_fork(self) -> None:
        self._forking = False
        self._transacting.release(self._fork_made_by)
        if self._fork_made:
            self._fork_made = False
            self._making.release()

    def drop_after_fork(self) -> None:
        identity, at_rest = self._before_fork
        inherited.keep(self.path, identity, at_rest=at_rest)
        for con in (*self._readers, self._writer):
            _leak(con)
        self._idle = deque()
        self._readers = set()
        self._writer, self._execute = None, _nothing
        self._lock = None


def _nothing(_statement: str) -> None:
    """Where nothing is written."""


def _no_statements() -> None:
    """Where no cursor is kept."""


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _leak(con: object) -> None:
    """Keep an inherited connection for ever: closing it in a forked child could damage the parent's file."""
    if con is not None and sys.implementation.name == "cpython":
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(con))
