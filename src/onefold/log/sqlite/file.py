"""The one SQLite file of an embedded space: opening, the write transaction, pooled readers, errors.

WAL with synchronous=FULL: a commit is on the disk when it returns. Writers of all processes queue on ``WriteLock``, so
SQLite never sees two at once; readers are never blocked. Layout of the directory::

    space.db (-wal, -shm)   log and state        write.lock   the writers' queue
    wake/                   FIFOs of who waits   members/     one locked file per process
    shards/<n>/             the same again for each shard after the first (``space.open_space``)
    tip                     the last acknowledged offset, as a witness
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import apsw

from onefold.env import Env
from onefold.errors import LogCorrupt, OnefoldError, SpaceError
from onefold.files import sync
from onefold.ids import new_id
from onefold.log.sqlite import checksums
from onefold.log.sqlite.errors import FAILED
from onefold.log.sqlite.pooled_file import PooledFile
from onefold.machine import inherited
from onefold.machine.flock import WriteLock

FILE_NAME = "space.db"
FORMAT = 4
"""The format of the file; ``PRAGMA user_version``. A program refuses a file with a higher one. 3: pages without checksums; such
files stay so. 4: with them. 1 and 2: the same with tables of an earlier shape, which anyone who opens them for writing brings
into the present one."""
FORMAT_UNCHECKED = 3
_EARLIER = {1: FORMAT_UNCHECKED, 2: FORMAT}
_WITH_CHECKSUMS = (2, 4)
TIP_NAME = "tip"
_TIP_DIGITS = 20
APPLICATION_ID = 0x4F4E4644
_META = "CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID"


class Earlier(NamedTuple):
    """What makes the tables of an earlier format those of this one."""

    upgrade: Callable[[apsw.Connection], None]
    """In place, in the transaction of the connection it gets."""
    views: Sequence[str]
    """Statements by which a connection that only reads sees them as if."""


class SqliteFile(PooledFile):
    """The file of an embedded space."""

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
        earlier: Earlier | None = None,
    ) -> None:
        """Open or make it. ``schema``: statements with IF NOT EXISTS. ``shards``: what the space is made with, if it is made now;
        the attribute of that name is what it was made with. ``earlier``: without it the tables of an earlier format are left
        alone. Raises SpaceError, LogCorrupt, Timeout, Unavailable."""
        super().__init__(directory / FILE_NAME, read_only=read_only, timeout=timeout)
        self._earlier = earlier
        self._views: Sequence[str] = ()
        self._tip: mmap.mmap | None = None
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
            self.shard_count = int(meta.get("shards", 1))  # absent in spaces of one
            self.shards_made = bool(meta.get("shards_made"))
        except OnefoldError:
            self.close()
            raise
        except FAILED as error:
            self.close()
            raise self.translated(error) from error
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
        self._check_not_emptied()
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
            self._write_by(writer)
            if (
                unfinished
                and checksums.available()
                and not writer.execute("SELECT count(*) FROM sqlite_schema").get
            ):
                writer.reserve_bytes("main", checksums.RESERVED_BYTES)
                if self.path.stat().st_size:  # its first page has been made without, by an opener that died
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
            else:
                self._upgrade(con)
            for statement in schema:
                con.execute(statement)
            con.execute("UPDATE meta SET value = value + 1 WHERE key = 'opened'")
        if made:
            for folder in (self.directory, self.directory.absolute().parent):
                sync(folder)

    def _upgrade(self, con: apsw.Connection) -> None:
        format_ = con.execute("PRAGMA user_version").get
        if self._earlier is not None and format_ in _EARLIER:
            self._earlier.upgrade(con)
            con.execute(f"PRAGMA user_version={_EARLIER[format_]}")

    def _prepare(self, con: apsw.Connection) -> None:
        for statement in self._views:
            con.execute(statement)

    def _is_unfinished(self) -> bool:
        """Whether the existing file was never completed. Raises SpaceError when it is not ours or too new."""
        if self.path.stat().st_size == 0:
            self._check_not_emptied()
            return True
        with contextlib.closing(self._connect(apsw.SQLITE_OPEN_READWRITE)) as con:
            return self._check_format(con)

    def _check_format(self, con: apsw.Connection) -> bool:
        if not con.execute("SELECT count(*) FROM sqlite_schema").get:
            self._check_not_emptied()
            return True
        if con.execute("PRAGMA application_id").get != APPLICATION_ID:
            raise SpaceError(f"{self.path} is a SQLite file of another program. Use another directory")
        version = con.execute("PRAGMA user_version").get
        if not isinstance(version, int) or version > FORMAT:
            raise SpaceError(
                f"{self.path} has format {version}, made by a newer Onefold (this one knows {FORMAT}). "
                "Upgrade: pip install -U onefold"
            )
        if version in _WITH_CHECKSUMS and not checksums.available():
            raise SpaceError(
                f"{self.path} has checksums, which this build of APSW cannot keep. Install APSW's wheel: pip install apsw"
            )
        return False

    def _open_reading(self) -> None:
        try:
            con = self._connect_reading()
        except (apsw.CantOpenError, apsw.ReadOnlyError):
            # The folder cannot be written and has no WAL: nobody is writing, so the file stands still.
            self._immutable = True
            con = self._connect_reading()
        self._readers.add(con)
        self._idle.append(con)
        with contextlib.suppress(OSError):
            sync(self.path.with_name(f"{self.path.name}-wal"))  # as the opening commit does for a writer

    def _connect_reading(self) -> apsw.Connection:
        con = self._connect(apsw.SQLITE_OPEN_READONLY)
        try:
            if self._check_format(con):
                raise SpaceError(f"there is no space in {self.directory} yet. Open it for writing once")
            if self._earlier is not None and con.execute("PRAGMA user_version").get in _EARLIER:
                self._views = self._earlier.views
                self._prepare(con)
        except BaseException:
            con.close()
            raise
        return con

    # -- the tip

    def note_tip(self, offset: int) -> None:
        """Note outside of the file how far it has been acknowledged, so an opener finds out when its end was cut off.

        Not synced: written after the commit was, so it can only be behind. Mapped, so it costs no system call.
        """
        try:
            if self._tip is None:
                self._tip = self._map_tip(b"%s %020d\n" % (self.incarnation.encode(), offset))
            else:
                self._tip[-_TIP_DIGITS - 1 : -1] = b"%020d" % offset
        except (OSError, ValueError):
            pass  # a witness only: without room for it, or while the file is being closed, do without

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
        incarnation, offset = self._witnessed()
        return offset if incarnation == self.incarnation else 0

    def _witnessed(self) -> tuple[str, int]:
        try:
            incarnation, offset = (self.directory / TIP_NAME).read_text().split()
            return incarnation, int(offset)
        except (OSError, ValueError):
            return "", 0

    def _check_not_emptied(self) -> None:
        """There is nothing in the file. A young space is in its WAL alone, and SQLite takes a WAL with a damaged beginning for
        leftovers: recreated, such a space would give out nothing for something."""
        _, acknowledged = self._witnessed()
        if acknowledged:
            raise LogCorrupt(
                f"{self.path} holds nothing, but offset {acknowledged} was acknowledged: it or its write-ahead log was removed, "
                f"or has lost its beginning. Restore it from a backup; or remove {self.directory / TIP_NAME} to start over "
                "without what is lost"
            )

    def close(self) -> None:
        super().close()
        if self._closed and self._tip is not None:
            self._tip.close()
            self._tip = None
