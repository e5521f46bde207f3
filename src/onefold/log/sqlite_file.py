"""The one SQLite file of an embedded space: opening, the write transaction, pooled readers, errors.

WAL with synchronous=FULL: a commit is on the disk when it returns. Writers of all processes queue on ``WriteLock``, so
SQLite never sees two at once; readers are never blocked. Layout of the directory::

    space.db (-wal, -shm)   log and state        write.lock   the writers' queue
    wake/                   FIFOs of who waits   members/     one locked file per process
    shards/<n>/             the same again for each shard after the first (``fold.shards``)
    tip                     the last acknowledged offset, as a witness
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from onefold import config
from onefold.env import Env
from onefold.errors import AppendUnknown, LogCorrupt, OnefoldError, SpaceError, Timeout, TooLarge, Unavailable
from onefold.ids import new_id
from onefold.log import checksums, forks, inherited
from onefold.log.flock import WriteLock

FILE_NAME = "space.db"
FORMAT = 2
"""The format of the file; ``PRAGMA user_version``. A program refuses a file with a higher one. 1: pages without checksums; such
files stay as they are. 2: with them."""
FORMAT_UNCHECKED = 1
TIP_NAME = "tip"
APPLICATION_ID = 0x4F4E4644
_META = "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID"
_CHECKPOINT_PAGES = 2000
_IDLE_READERS_MAX = 8
_BUSY_MS = (
    5000  # never needed between writers; covers recovery by an opener and a checkpoint that restarts the WAL
)
_RESTART_WAIT_MS = 200
_FORK_LOOK_S = 0.0005
_FAILED = (apsw.Error, UnicodeDecodeError)


def translate(error: Exception, path: Path, *, committing: bool = False) -> OnefoldError:
    """The error of Onefold for an error of SQLite, with what to do."""
    if isinstance(error, apsw.FullError):
        return Unavailable(
            f"the disk with {path} is full; nothing was written. Free some space and try again"
        )
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Timeout(f"{path} stayed locked for {_BUSY_MS} ms; nothing was done. Try again", definite=True)
    if isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA:
        return LogCorrupt(
            f"{path} is damaged: the checksum of a page does not match. Restore it from a snapshot or a backup"
        )
    if isinstance(error, apsw.IOError) and committing:
        return AppendUnknown(f"committing to {path} failed ({error}): the record may surface after a restart")
    if isinstance(error, apsw.IOError):
        return Unavailable(f"the disk failed under {path}: {error}")
    if isinstance(error, apsw.NotADBError):
        return SpaceError(f"{path} is not a space's file. Use another directory")
    if isinstance(error, (apsw.CorruptError, UnicodeDecodeError)):
        return LogCorrupt(f"{path} is damaged ({error}). Restore it from a snapshot or a backup")
    if isinstance(error, (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError)):
        return SpaceError(
            f"{path} cannot be opened for writing. Check its owner and mode, or use another place"
        )
    if isinstance(error, apsw.TooBigError):
        return TooLarge(f"a value is too large for {path}")
    return SpaceError(f"SQLite failed on {path}: {type(error).__name__}: {error}")


def _in_uri(path: Path) -> str:
    """A path in a ``file:`` URI: what SQLite's documentation asks to be escaped (urllib costs 7 ms to import)."""
    return os.fspath(path.absolute()).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


class SqliteFile:
    """An open file: one writing connection guarded by the write lock, and a pool of reading ones."""

    def __init__(
        self,
        directory: Path,
        schema: Sequence[str],
        env: Env,
        *,
        create: bool = True,
        read_only: bool = False,
        timeout: float | None = None,
        shards: int = 1,
    ) -> None:
        """Open or make it. ``schema``: statements with IF NOT EXISTS. ``shards``: what the space is made with, if it is made now;
        the attribute of that name is what it was made with. Raises SpaceError, LogCorrupt, Timeout, Unavailable."""
        self.directory = directory
        self.path = directory / FILE_NAME
        self.read_only = read_only
        self.timeout = config.WRITE_LOCK_TIMEOUT_S if timeout is None else timeout
        self._pid = forks.process
        self._closed = False
        self._immutable = False
        self._wal_pages = 0
        self._tip: mmap.mmap | None = None
        self._idle: deque[apsw.Connection] = deque()
        self._readers: set[apsw.Connection] = set()
        """All that are open, idle or lent out."""
        self._making = threading.Lock()
        """Held while connections are opened or closed, and during a fork."""
        self._transacting = threading.Lock()
        """Held during each use of the writing connection, and during a fork."""
        self._forking = False
        self._forked = threading.Event()
        self._fork_locks: list[threading.Lock] = []
        self._before_fork: tuple[inherited.Identity | None, bool] = (None, False)
        self._lock: WriteLock | None = None
        self._writer: apsw.Connection | None = None
        forks.track_resting(self)
        try:
            with self._making:
                inherited.check_openable(self.path)
                new = self._check_place(create)
                if read_only:
                    self._open_reading()
                else:
                    self._open_writing(schema, env, new, shards)
            with self.reading() as con:
                meta: dict[Any, Any] = dict(con.execute("SELECT key, value FROM meta").fetchall())  # type: ignore[arg-type]
            self.incarnation = str(meta.get("incarnation"))
            self.shards = int(meta.get("shards", 1))  # absent in spaces of one
            self.shards_made = bool(meta.get("shards_made"))
        except OnefoldError:
            self.close()
            raise
        except _FAILED as error:
            self.close()
            raise translate(error, self.path) from error
        except OSError as error:
            self.close()
            raise SpaceError(
                f"{directory} cannot be used ({error.strerror}). Check its owner and mode, or use another place"
            ) from error

    # -- opening

    def _check_place(self, create: bool) -> bool:
        """True when the file has to be made."""
        if self.directory.exists() and not self.directory.is_dir():
            raise SpaceError(f"{self.directory} is a file; a space is a directory. Choose another place")
        if self.path.exists():
            return False
        if self.read_only or not create:
            raise SpaceError(
                f"there is no space in {self.directory}. Check the path (--url and ONEFOLD_URL on the command line); "
                "onefold.connect(path) makes one"
            )
        try:
            self.directory.mkdir(exist_ok=True)
        except FileNotFoundError as error:
            raise SpaceError(
                f"{self.directory} cannot be made: {self.directory.parent} does not exist. Make that directory first"
            ) from error
        except OSError as error:
            raise SpaceError(
                f"{self.directory} cannot be made: {error.strerror}. Choose a place you may write to"
            ) from error
        return True

    def _open_writing(self, schema: Sequence[str], env: Env, new: bool, shards: int) -> None:
        # Checked before the first write (the journal mode): a foreign file is left as it is.
        unfinished = new or self._is_unfinished()
        self._lock = WriteLock(self.directory / "write.lock")
        if unfinished:
            # One at a time: two who both set the journal mode of a new file would lock each other out.
            self._lock.acquire(self.timeout)
        try:
            writer = self._connect(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
            self._writer = writer
            if (
                unfinished
                and checksums.available()
                and not writer.execute("SELECT count(*) FROM sqlite_schema").get
            ):
                writer.reserve_bytes("main", checksums.RESERVED_BYTES)
                writer.execute("VACUUM")
            if str(writer.execute("PRAGMA journal_mode=WAL").get) != "wal":
                raise SpaceError(
                    f"{self.path} is on a file system without shared memory. Put the space on a local disk"
                )
        finally:
            if unfinished:
                self._lock.release()
        writer.execute("PRAGMA synchronous=FULL; PRAGMA journal_size_limit=8388608")
        writer.set_wal_hook(self._note_wal)
        keep = ctypes.c_int(
            1
        )  # a reader in a folder that it cannot write needs the files that SQLite would remove
        writer.file_control("main", apsw.SQLITE_FCNTL_PERSIST_WAL, ctypes.addressof(keep))
        with self.writing() as con:
            # This commit syncs the WAL before anything is served: what a killed writer left in it need not have been.
            made = not con.execute("SELECT count(*) FROM sqlite_schema").get
            if made:
                con.execute(_META)
                made_as = (
                    FORMAT if con.reserve_bytes("main") == checksums.RESERVED_BYTES else FORMAT_UNCHECKED
                )
                con.execute(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={made_as}")
                con.execute("INSERT INTO meta VALUES('incarnation', ?), ('opened', 0)", (new_id("i", env),))
                if shards > 1:
                    con.execute("INSERT INTO meta VALUES('shards', ?)", (shards,))
            for statement in schema:
                con.execute(statement)
            con.execute("UPDATE meta SET value = value + 1 WHERE key = 'opened'")
        if made:
            for folder in (self.directory, self.directory.absolute().parent):
                _sync_directory(folder)

    def _is_unfinished(self) -> bool:
        """Whether the existing file was never completed. Raises SpaceError when it is not ours or too new."""
        if self.path.stat().st_size == 0:
            return True
        with contextlib.closing(self._connect(apsw.SQLITE_OPEN_READWRITE)) as con:
            return self._check_format(con)

    def _check_format(self, con: apsw.Connection) -> bool:
        if not con.execute("SELECT count(*) FROM sqlite_schema").get:
            return True
        if con.execute("PRAGMA application_id").get != APPLICATION_ID:
            raise SpaceError(f"{self.path} is a SQLite file of another program. Use another directory")
        version = con.execute("PRAGMA user_version").get
        if not isinstance(version, int) or version > FORMAT:
            raise SpaceError(
                f"{self.path} has format {version}, made by a newer Onefold (this one knows {FORMAT}). "
                "Upgrade: pip install -U onefold"
            )
        if version > FORMAT_UNCHECKED and not checksums.available():
            raise SpaceError(
                f"{self.path} has checksums, which this build of APSW cannot keep. Install APSW's wheel: pip install apsw"
            )
        return False

    def _open_reading(self) -> None:
        try:
            con = self._connect(apsw.SQLITE_OPEN_READONLY)
            unfinished = self._check_format(con)
        except (apsw.CantOpenError, apsw.ReadOnlyError):
            # The folder cannot be written and has no WAL: nobody is writing, so the file stands still.
            self._immutable = True
            con = self._connect(apsw.SQLITE_OPEN_READONLY)
            unfinished = self._check_format(con)
        if unfinished:
            con.close()
            raise SpaceError(f"there is no space in {self.directory} yet. Open it for writing once")
        with contextlib.suppress(OSError):
            wal = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(wal)  # as the opening commit does for a writer
            finally:
                os.close(wal)
        self._readers.add(con)
        self._idle.append(con)

    def _connect(self, flags: int) -> apsw.Connection:
        name = os.fspath(self.path)
        if self._immutable:
            name = f"file:{_in_uri(self.path)}?immutable=1"
            flags |= apsw.SQLITE_OPEN_URI
        con = apsw.Connection(
            name, flags=flags, vfs=checksums.VFS if checksums.available() else None, statementcachesize=256
        )
        con.set_busy_timeout(_BUSY_MS)
        con.execute("PRAGMA cache_size=-8000; PRAGMA temp_store=MEMORY; PRAGMA trusted_schema=OFF")
        return con

    # -- reading

    @contextlib.contextmanager
    def reading(self) -> Iterator[apsw.Connection]:
        """A connection for reading, without a transaction. Errors of SQLite come out translated."""
        con = self.take_reader()
        try:
            yield con
        except _FAILED as error:
            raise translate(error, self.path) from error
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
            con.set_busy_timeout(_BUSY_MS)
            yield con
        except _FAILED as error:
            raise translate(error, self.path) from error
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
                con = self._new_reader()
            # Looked at afterwards: a fork that begins now waits for this connection, and one that had begun gets it back.
            if not self._forking:
                return con
            self._idle.append(con)
            self._forked.wait(config.FORK_WAIT_S)

    def _new_reader(self) -> apsw.Connection:
        try:
            with self._making:
                self.check_usable()
                con = self._connect(apsw.SQLITE_OPEN_READONLY)
                con.execute("PRAGMA query_only=ON")
                self._readers.add(con)
        except apsw.Error as error:
            raise translate(error, self.path) from error
        return con

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

    @contextlib.contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[apsw.Connection]:
        """The write transaction: commits durably when the block ends, rolls back when it raises.

        Raises Timeout (definite) when the queue of writers does not move, Unavailable when the disk is full (nothing
        was written), AppendUnknown when the commit itself failed in a way that may surface later.
        """
        self.check_usable()
        con, lock = self._writer, self._lock
        if con is None or lock is None:
            raise SpaceError(f"{self.path} was opened read-only. Open it without read_only to write")
        lock.acquire(self.timeout if timeout is None else timeout)
        committing = False
        try:
            with self._transacting:
                self.check_usable()
                con.execute("BEGIN IMMEDIATE")
                try:
                    yield con
                    committing = True
                    con.execute("COMMIT")
                    if self._wal_pages >= _CHECKPOINT_PAGES:
                        self._checkpoint(con)
                except BaseException:
                    with contextlib.suppress(apsw.Error):
                        if con.in_transaction:
                            con.execute("ROLLBACK")
                    raise
        except _FAILED as error:
            raise translate(error, self.path, committing=committing) from error
        finally:
            lock.release()

    @contextlib.contextmanager
    def maintaining(self) -> Iterator[apsw.Connection]:
        """The writing connection outside a transaction, with the write lock held: for what needs its own."""
        self.check_usable()
        if self._writer is None or self._lock is None:
            raise SpaceError(f"{self.path} was opened read-only. Open it without read_only to write")
        self._lock.acquire(self.timeout)
        try:
            with self._transacting:
                yield self._writer
        except _FAILED as error:
            raise translate(error, self.path) from error
        finally:
            self._lock.release()

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
                con.set_busy_timeout(_BUSY_MS)

    # -- the tip

    def note_tip(self, offset: int) -> None:
        """Note outside of the file how far it has been acknowledged, so an opener finds out when its end was cut off.

        Not synced: written after the commit was, so it can only be behind. Mapped, so it costs no system call.
        """
        line = b"%s %020d\n" % (self.incarnation.encode(), offset)
        # It is a witness only: without room for it (OSError), or while the file is being closed (ValueError), do without.
        with contextlib.suppress(OSError, ValueError):
            if self._tip is None:
                self._tip = self._map_tip(line)
            else:
                self._tip[:] = line

    def _map_tip(self, line: bytes) -> mmap.mmap:
        fd = os.open(self.directory / TIP_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # Written, not truncated to its length: a page without a block on a full disk would be a SIGBUS.
            if os.pwrite(fd, line, 0) != len(line):
                raise OSError("no room")
            return mmap.mmap(fd, len(line))
        finally:
            os.close(fd)

    def read_tip(self) -> int:
        """How far this file was acknowledged, as far as is known; 0 when nothing is."""
        try:
            incarnation, offset = (self.directory / TIP_NAME).read_text().split()
            return int(offset) if incarnation == self.incarnation else 0
        except (OSError, ValueError):
            return 0

    # -- the end

    def check_usable(self) -> None:
        """Raises SpaceError when closed, or in a process forked after opening."""
        if self._pid != forks.process:
            raise SpaceError(
                f"{self.directory} was opened before this process was forked. Open it again in the child"
            )
        if self._closed:
            raise SpaceError(f"{self.directory} is closed. Open it again")

    def close(self) -> None:
        """Close every connection; those lent out close when they come back. Waits for a running write."""
        if self._closed or self._pid != forks.process:
            return
        lock, writer = self._lock, self._writer
        self._closed = True
        if lock is not None and writer is not None:
            with contextlib.suppress(Timeout):
                lock.acquire(self.timeout)
                lock.release()
        with self._making:
            while self._idle:
                self._close_reader(self._idle.pop())
            with contextlib.suppress(apsw.Error):
                if writer is not None:
                    writer.close()
                    self._writer = None
        if lock is not None:
            lock.close()
        if self._tip is not None:
            self._tip.close()
            self._tip = None

    def rest_before_fork(self, deadline: float) -> None:
        """Let the transactions that are running end, and none begin."""
        self._forked.clear()
        self._forking = True
        for lock in (self._making, self._transacting):
            if lock.acquire(timeout=_left(deadline)):
                self._fork_locks.append(lock)
        rests = len(self._fork_locks) == 2
        while len(self._idle) < len(self._readers) and time.monotonic() < deadline:
            time.sleep(_FORK_LOOK_S)
        opened = self._writer is not None or bool(self._readers) or not rests
        self._before_fork = (
            inherited.identity(self.path) if opened and not self._immutable else None,
            rests and len(self._idle) >= len(self._readers),
        )

    def go_on_after_fork(self) -> None:
        self._forking = False
        while self._fork_locks:
            self._fork_locks.pop().release()
        self._forked.set()

    def drop_after_fork(self) -> None:
        identity, at_rest = self._before_fork
        inherited.keep(self.path, identity, at_rest=at_rest)
        for con in (*self._readers, self._writer):
            _leak(con)
        self._idle = deque()
        self._readers = set()
        self._writer = None
        self._lock = None


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())


def _leak(con: object) -> None:
    """Keep an inherited connection for ever: closing it in a forked child could damage the parent's file."""
    if con is not None and sys.implementation.name == "cpython":
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(con))


def _sync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
