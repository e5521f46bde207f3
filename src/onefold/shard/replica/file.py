"""The SQLite file of one copy of a replica: state only, the log is elsewhere.

So it need not survive everything: synchronous=NORMAL, and whatever is wrong with it, another one is made from the log.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import apsw

from onefold.errors import AppendUnknown, LogCorrupt, OnefoldError, SpaceError, Unavailable
from onefold.log.sqlite import checksums
from onefold.log.sqlite.errors import FAILED
from onefold.log.sqlite.pooled_file import Hold, PooledFile
from onefold.machine import inherited, undisturbed
from onefold.machine.flock import WriteLock
from onefold.store.tables import STORE_SCHEMA, read_head

FILE_NAME = "replica.db"
LOCK_NAME = "apply.lock"
DAMAGED = "damaged"
"""A file of this name next to it: somebody has met damage in it."""
FORMAT = 2
APPLICATION_ID = 0x4F4E4652
_META = "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID"


class Unusable(Exception):
    """A copy that is to be replaced by another one; the message says why."""


class Damaged(LogCorrupt):
    """A copy was found damaged while it was used. Nothing is wrong with the log, so another one will do."""


class ReplicaFile(PooledFile):
    """The file of one copy, open."""

    checkpoint_pages = 8000
    damaged = False
    """Whether this process has met damage in it."""

    def __init__(self, copy: Path, about: Mapping[str, str], *, make: bool = False) -> None:
        """Open the file in the folder ``copy``. ``about``: what it is a replica of. ``make``: make it; otherwise it must be there
        and be of just that.

        Raises Unusable when it is not, or of another format; Damaged; Unavailable (disk full); SpaceError.
        """
        super().__init__(copy / FILE_NAME, read_only=False, timeout=1.0)
        try:
            with self._making:
                inherited.check_openable(self.path)
                if make:
                    self._make(about)
                else:
                    self._open(about)
        except OSError as error:
            self.close()
            raise SpaceError(
                f"{copy} cannot be used ({error.strerror}). Check its owner and mode, or set ONEFOLD_CACHE to another place"
            ) from error
        except FAILED as error:
            self.close()
            raise self.translated(error) from error
        except BaseException:
            self.close()
            raise

    def translated(self, error: Exception, *, committing: bool = False) -> OnefoldError:
        told = super().translated(error, committing=committing)
        if isinstance(error, apsw.NotADBError) or isinstance(told, LogCorrupt):
            self.damaged = True
            with contextlib.suppress(OSError):
                (self.directory / DAMAGED).touch()
            return Damaged(
                f"the local copy {self.path} is damaged ({error}). It is being recreated from the log: try again"
            )
        if isinstance(told, AppendUnknown):
            return Unavailable(f"the disk failed under {self.path}: {error}")
        return told

    @contextlib.contextmanager
    def resting_writer(self) -> Iterator[apsw.Connection]:
        """The writing connection, for reading outside of its transactions. Waits for this process's only."""
        self.check_usable()
        if self._writer is None:
            raise SpaceError(f"{self.path} is closed. Open it again")
        hold = Hold(self, self.timeout)
        try:
            self._transacting.acquire(hold)
            self.check_usable()
            try:
                yield self._writer
            except FAILED as error:
                raise self.translated(error) from error
            self._transacting.release(hold)
        except BaseException:
            if hold.main:
                undisturbed.mend_later(hold)
            else:
                self.mend(hold)
            raise

    def copy_to(self, copy: Path) -> None:
        """Copy the newest committed state into the folder, no matter who is writing meanwhile. Raises as reading does."""
        with self.reading() as source:
            try:
                target = self._at(copy / FILE_NAME, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
                try:
                    with target.backup("main", source, "main") as backup:
                        backup.step()
                finally:
                    target.close()
            except apsw.FullError as error:
                raise Unavailable(f"the disk with {copy} is full. Free some space") from error

    def _make(self, about: Mapping[str, str]) -> None:
        writer = self._begin(apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE)
        if checksums.available():
            writer.reserve_bytes("main", checksums.RESERVED_BYTES)
            writer.execute("VACUUM")
        self._settings(writer)
        with writer:
            writer.execute(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version={FORMAT}")
            writer.execute(_META)
            writer.executemany("INSERT INTO meta VALUES(?, ?)", list(about.items()))
            for statement in STORE_SCHEMA:
                writer.execute(statement)

    def _open(self, about: Mapping[str, str]) -> None:
        if not self.path.exists() or (self.directory / DAMAGED).exists():
            raise Unusable(f"{self.path} is not there, or was found damaged")
        writer = self._begin(apsw.SQLITE_OPEN_READWRITE)
        made_as = (writer.execute("PRAGMA application_id").get, writer.execute("PRAGMA user_version").get)
        if made_as != (APPLICATION_ID, FORMAT):
            raise Unusable(f"{self.path} has another format")
        self._settings(writer)
        found = {str(key): str(value) for key, value in writer.execute("SELECT key, value FROM meta")}
        if found != dict(about):
            raise Unusable(f"{self.path} is a copy of {found}, not of {dict(about)}")
        try:
            read_head(writer)
        except LogCorrupt as error:
            raise Unusable(str(error)) from error

    def _begin(self, flags: int) -> apsw.Connection:
        self._lock = WriteLock(self.directory / LOCK_NAME)
        writer = self._connect(flags)
        self._write_by(writer)
        return writer

    def _settings(self, writer: apsw.Connection) -> None:
        if str(writer.execute("PRAGMA journal_mode=WAL").get) != "wal":
            raise SpaceError(
                f"{self.path} is on a file system without shared memory. Set ONEFOLD_CACHE to a folder on a local disk"
            )
        writer.execute("PRAGMA synchronous=NORMAL; PRAGMA journal_size_limit=8388608")
        writer.set_wal_hook(self._note_wal)

    def _at(self, path: Path, flags: int) -> apsw.Connection:
        return apsw.Connection(str(path), flags=flags, vfs=checksums.VFS if checksums.available() else None)
