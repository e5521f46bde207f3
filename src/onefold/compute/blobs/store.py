"""Blobs: immutable files named by the hash of their content, durable before any record names them.

``BlobStore`` is a local directory, which is all that the processes of one machine need. On a cluster it is the cache of a
shared place: see ``compute.blobs.shared``.

A blob's name is the hex BLAKE2b-256 of its bytes. The same content is stored once. Reading checks the size only;
``verify`` checks the hash. Layout: ``blobs/ab/abcdef…``; temporary files live in ``blobs/tmp`` and belong to a process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar

from onefold.compute.blobs.sweeping import TASKS, new_ticket
from onefold.errors import OnefoldError, Unavailable
from onefold.files import process_began, process_lives, sync

_ABANDONED_AFTER_S = 3600.0
_BEGAN_SLACK_S = 60.0
"""So exactly it is known when a process began."""
_HIDDEN = "hidden"
"""Folder of blobs that are being swept. (Folders of blobs have names of two characters.)"""


class BlobMissing(Unavailable):
    """A blob that the log names cannot be had here."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"blob {name[:16]}… is missing; the task that made it has to run again (resume the run)"
        )
        self.name = name


class BlobsUnavailable(Unavailable):
    """The shared blob store does not answer: nothing is known of the blob. The task is to be tried later."""


@contextlib.contextmanager
def had_later(name: str) -> Iterator[None]:
    """Reading a blob: what the machine refuses (a folder that cannot be read, a disk that fails) is BlobsUnavailable."""
    try:
        yield
    except OSError as error:
        if isinstance(error, OnefoldError):
            raise
        why = f"{error.strerror or error} ({error.filename})" if error.filename else str(error)
        raise BlobsUnavailable(f"blob {name[:16]}… cannot be read: {why}") from error


def blob_name(data: bytes | memoryview) -> str:
    """The content hash under which these bytes are stored."""
    return hashlib.blake2b(data, digest_size=32).hexdigest()


def file_blob_name(path: Path) -> str:
    """The same of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()


class BlobStore:
    """A local directory of content-addressed files."""

    shared: ClassVar[bool] = False
    """Whether other machines have the blobs too, and the directory is a cache."""

    def __init__(self, directory: Path, *, read_only: bool = False) -> None:
        """``read_only``: what a sweeper has hidden is read where it is, and not put back."""
        self.directory = directory
        self._read_only = read_only
        self._made: set[str] = set()

    def path(self, name: str) -> Path:
        """Where the blob is (or would be)."""
        return self.directory / name[:2] / name

    def put(self, data: bytes | memoryview) -> str:
        """Store bytes; returns their name after they and their directory entry are synced to disk."""
        name = blob_name(data)
        target = self.path(name)
        if target.exists():
            return name
        temporary = self._temporary()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            self._publish(temporary, target)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = str(self.directory)  # a write does not tell where the disk is full
            raise
        return name

    def temporary(self) -> Path:
        """A fresh path for a file that will be given to ``put_file``."""
        return self._temporary()

    def put_file(self, path: Path) -> str:
        """Move a finished file (made at ``temporary()``) into the store; returns its name once it is durable."""
        name = file_blob_name(path)
        sync(path)
        target = self.path(name)
        if target.exists():
            path.unlink()
        else:
            self._publish(path, target)
        return name

    def get(self, name: str) -> bytes:
        """The blob's bytes; raises BlobMissing."""
        try:
            return self.open_path(name).read_bytes()
        except FileNotFoundError:
            raise BlobMissing(name) from None

    def open_path(self, name: str) -> Path:
        """The blob's path, to be memory-mapped or scanned; raises BlobMissing. Never write to it."""
        if self._read_only and not self.path(name).exists():
            for copy in self._copies(name):
                return copy
        if not self.exists(name):
            raise BlobMissing(name)
        return self.path(name)

    def exists(self, name: str) -> bool:
        """Whether the blob is here. One that a sweeper has hidden is put back."""
        if self._read_only:
            return self.path(name).exists() or bool(self._copies(name)) or self.path(name).exists()
        return self.path(name).exists() or self.unhide(name) or self.path(name).exists()

    def keeps(self, name: str) -> bool:
        """Whether the blob is there for everybody: to be asked after the record that names it (see ``sweeping``)."""
        return self.exists(name)

    def missing(self, names: Iterable[str]) -> set[str]:
        """Which of these blobs cannot be had."""
        return {name for name in set(names) if not self.exists(name)}

    def prefetch(self, names: Iterable[str]) -> None:
        """Bring blobs here that will be read soon, several at a time. Those that cannot be had raise when they are read."""

    @property
    def scratch(self) -> BlobStore:
        """Where a task keeps what only it reads: the same directory, shared with no other machine."""
        return self

    def share(self, name: str) -> str:
        """Give a blob of ``scratch`` to everybody; returns its name once it is durable for them."""
        return name

    def close(self) -> None:
        """Release what belongs to this process. The blobs stay."""

    def verify(self, name: str) -> bool:
        """Whether the blob is here and its content still has its hash."""
        try:
            return blob_name(self.get(name)) == name
        except BlobMissing:
            return False

    def delete(self, name: str) -> None:
        """Remove a blob that no other process stores or reads. Others are swept (see ``sweeping``)."""
        self.path(name).unlink(missing_ok=True)

    def hide(self, name: str, kind: str = TASKS) -> str:
        """Take a blob away, but keep a copy, whose ticket is returned (see ``sweeping``)."""
        ticket = new_ticket(kind)
        self.move_aside(name, ticket)
        return ticket

    def unhide(self, name: str, ticket: str | None = None) -> bool:
        """Put a hidden blob back; whether there was one.

        Without a ticket: from any copy, which stays aside where the file system has links. Whether something names the
        blob is not known then, so ``tidy`` settles later whether it stays.
        """
        target = self.path(name)
        if ticket is not None:
            copy = self._aside(name, ticket)
            try:
                copy.replace(target)
            except FileNotFoundError:
                return False
            copy.unlink(missing_ok=True)  # renaming one link of a file to another one leaves both
            return True
        for copy in self._copies(name):
            with contextlib.suppress(FileNotFoundError):
                try:
                    os.link(copy, target)
                except FileExistsError:
                    return True
                except FileNotFoundError:
                    raise
                except OSError:  # a file system without links
                    copy.replace(target)
                return True
        return False

    def drop(self, name: str, ticket: str) -> None:
        """Remove the copy of a hidden blob."""
        self._aside(name, ticket).unlink(missing_ok=True)

    def hidden(self) -> set[tuple[str, str]]:
        """(name, ticket) of what is hidden: being swept now, or not long ago, or left by a process that died over it."""
        found = set()
        with contextlib.suppress(FileNotFoundError):
            for file in (self.directory / _HIDDEN).iterdir():
                name, dot, ticket = file.name.partition(".")
                if dot:
                    found.add((name, ticket))
        return found

    def move_aside(self, name: str, ticket: str) -> None:
        """Hide a blob under this ticket."""
        with contextlib.suppress(FileNotFoundError):
            try:
                self.path(name).replace(self._aside(name, ticket))
            except FileNotFoundError:  # the blob, or the folder for hidden ones
                (self.directory / _HIDDEN).mkdir(parents=True, exist_ok=True)
                self.path(name).replace(self._aside(name, ticket))

    def _copies(self, name: str) -> list[Path]:
        return [self._aside(name, ticket) for blob, ticket in self.hidden() if blob == name]

    def _aside(self, name: str, ticket: str) -> Path:
        return self.directory / _HIDDEN / f"{name}.{ticket}"

    def names(self) -> Iterator[str]:
        """All blobs here."""
        if self.directory.exists():
            for folder in sorted(self.directory.iterdir()):
                if len(folder.name) == 2:
                    for file in sorted(folder.iterdir()):
                        yield file.name

    def everywhere(self) -> Iterator[str]:
        """All blobs in the place that has them. Raises BlobsUnavailable."""
        return self.names()

    def stored_at(self, name: str) -> float | None:
        """When a blob was stored in that place, in seconds since 1970; None: it is not there. Raises BlobsUnavailable."""
        try:
            return self.path(name).stat().st_mtime
        except FileNotFoundError:
            return None

    def begins(self, name: str, size: int) -> bytes:
        """The first bytes of a blob in that place; empty when it is not there. Raises BlobsUnavailable."""
        try:
            with self.path(name).open("rb") as file:
                return file.read(size)
        except FileNotFoundError:
            return b""

    @property
    def is_of_one_space(self) -> bool:
        """Whether no other space can have blobs in that place."""
        return True

    def other_spaces(self) -> frozenset[str]:
        """Other spaces that have blobs in that place: they may name what this one does not. Raises BlobsUnavailable."""
        return frozenset()

    def sweep_temporary(self) -> None:
        """Remove unfinished files of processes that are gone.

        Only such as nobody has written to for an hour: a process of another container on this folder looks gone from here. One
        that began after that has only the id of the process that wrote the file: in a container they are the same each time.
        """
        folder = self.directory / "tmp"
        oldest = time.time() - _ABANDONED_AFTER_S
        for file in folder.iterdir() if folder.exists() else ():
            pid = file.name.partition("-")[0]
            with contextlib.suppress(FileNotFoundError):
                if not pid.isdigit():
                    continue
                written = file.stat().st_mtime
                if written < oldest and not _may_write(int(pid), written):
                    file.unlink()

    def _temporary(self) -> Path:
        folder = self.directory / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{os.getpid()}-{os.urandom(8).hex()}"

    def _publish(self, temporary: Path, target: Path) -> None:
        folder = target.parent
        if folder.name not in self._made:
            folder.mkdir(parents=True, exist_ok=True)
            sync(self.directory)
            self._made.add(folder.name)
        temporary.replace(target)
        sync(folder)


def _may_write(pid: int, written: float) -> bool:
    """Whether the process of this id may be the one that wrote a file then."""
    if not process_lives(pid):
        return False
    began = process_began(pid)
    return began is None or began - _BEGAN_SLACK_S <= written
