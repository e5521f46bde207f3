"""Which copy of a replica is in use, among the processes of a machine that share it.

A copy that is wrong, damaged or held up is never repaired in place: a new one is made under a new name, and the pointer to it
is moved, while the users of the old one continue with it or follow. Layout of a replica's folder::

    current         the name of the copy in use           deciding.lock   held by who looks at it and moves it
    copy_<id>/      replica.db (-wal, -shm)               members/        one locked file per process
                    apply.lock   who applies              wake/           FIFOs of who waits
                    users.lock   shared by who uses it    place           the id of this folder on this machine
                    condemned    why it must not be used
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from onefold.env import Env
from onefold.errors import SpaceError, Timeout
from onefold.ids import new_id
from onefold.machine import forks
from onefold.machine.flock import WriteLock

_PREFIX = "copy"
_CURRENT = "current"
_CONDEMNED = "condemned"
_PLACE = "place"


class Use:
    """Says to other processes that this one uses a copy: as long as it lives, nobody removes it."""

    def __init__(self, copy: Path) -> None:
        self._fd = os.open(copy / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_SH)
        forks.track(self)

    def close(self) -> None:
        """This process uses it no more."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def drop_after_fork(self) -> None:
        self.close()


class Copies:
    """The copies in one folder."""

    def __init__(self, directory: Path, env: Env) -> None:
        """Make the folder if it is not there. Raises SpaceError."""
        self.directory = directory
        self._env = env
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / "wake").mkdir(exist_ok=True)
            self._lock = WriteLock(directory / "deciding.lock")
            self.place = self._read_place()
        except OSError as error:
            raise SpaceError(
                f"{directory} cannot be used ({error.strerror}): local copies of cluster spaces are kept there. "
                "Set ONEFOLD_CACHE to a folder that you may write to"
            ) from error
        self._seen = self._stamp()

    @contextlib.contextmanager
    def deciding(self, timeout: float) -> Iterator[bool]:
        """One process at a time. False when another one stayed in there for ``timeout`` seconds: then nothing may be decided."""
        try:
            self._lock.acquire(timeout)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            self._lock.release()

    def current(self) -> Path | None:
        """The copy in use; None when there is none."""
        self._seen = self._stamp()
        try:
            name = (self.directory / _CURRENT).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return self.directory / name if name.startswith(_PREFIX) and "/" not in name else None

    def moved(self) -> bool:
        """Whether the pointer was moved since it was read. As cheap as a look at a file's date."""
        return self._stamp() != self._seen

    def new(self) -> Path:
        """The folder of a new copy, which nobody knows of yet."""
        copy = self.directory / new_id(_PREFIX, self._env)
        copy.mkdir()
        return copy

    def publish(self, copy: Path) -> None:
        """From now on this copy is in use. While ``deciding``."""
        half_made = self.directory / f".{_CURRENT}"
        half_made.write_text(copy.name)
        half_made.replace(self.directory / _CURRENT)
        self._seen = self._stamp()

    def condemn(self, copy: Path, reason: str) -> None:
        """Nobody may use this copy any more: it disagrees with the log. Never raises."""
        with contextlib.suppress(OSError):
            (copy / _CONDEMNED).write_text(reason)

    def condemned(self, copy: Path) -> str | None:
        """Why it must not be used; None when it may."""
        try:
            return (copy / _CONDEMNED).read_text()
        except OSError:
            return None

    def sweep(self) -> None:
        """Remove the copies that nobody uses. While ``deciding``, which nobody comes by who begins to use one. Never raises."""
        current = self.current()
        with contextlib.suppress(OSError):
            for copy in self.directory.glob(f"{_PREFIX}_*"):
                if copy != current and not _is_used(copy):
                    shutil.rmtree(copy, ignore_errors=True)

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = os.stat(f"{self.directory}/{_CURRENT}")  # noqa: PTH116 - before every batch
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns

    def _read_place(self) -> str:
        path = self.directory / _PLACE
        for _ in range(2):
            with contextlib.suppress(FileNotFoundError):
                if place := path.read_text().strip():
                    return place
            half_made = self.directory / f".{new_id(_PLACE, self._env)}"
            half_made.write_text(new_id("p", self._env).removeprefix("p_"))
            with contextlib.suppress(FileExistsError):
                os.link(half_made, path)  # of two, one decides
            half_made.unlink()
        return path.read_text().strip()


def _is_used(copy: Path) -> bool:
    """Whether a living process uses the copy. Raises OSError."""
    fd = os.open(copy / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)
