"""Which processes of this machine have the space open: one file per process, locked while it lives.

The kernel releases the lock when the process dies, however it dies. So a lock that can be taken belongs to a dead process,
and no clock is involved.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from onefold.machine import forks

_PREFIX = "m_"
_HALF_MADE_S = 60.0


class Member:
    """This process's own file in ``<space>/members``."""

    def __init__(self, folder: Path, member: str, note: str) -> None:
        """``note`` is text for people and for ``notes``; ``member`` starts with ``m_``."""
        folder.mkdir(exist_ok=True)
        self.id = member
        self._path = folder / member
        # Locked before it gets its name: anyone who sees the name without a lock may take it for dead.
        half_made = folder / f".{member}"
        self._fd = os.open(half_made, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.write(self._fd, note.encode())
        half_made.rename(self._path)
        forks.track(self)

    def close(self) -> None:
        """Leave the space."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            os.close(fd)

    def drop_after_fork(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def alive(folder: Path, member: str) -> bool | None:
    """Whether that process lives; None when it cannot be known (it opened the space read-only)."""
    if not member.startswith(_PREFIX):
        return None
    try:
        return not _is_dead(folder / member)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def sweep(folder: Path) -> list[str]:
    """Remove the files of dead processes and return their ids. Never raises: it is housekeeping."""
    dead = []
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for item in found:
            with contextlib.suppress(OSError):
                if item.name.startswith("."):
                    if time.time() - item.stat().st_mtime > _HALF_MADE_S and _is_dead(Path(item.path)):
                        dead.append(item.name)
                elif _is_dead(Path(item.path)):
                    dead.append(item.name)
    return dead


def notes(folder: Path) -> dict[str, str]:
    """The notes of the processes that live now."""
    sweep(folder)
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if not path.name.startswith("."):
                with contextlib.suppress(OSError):
                    found[path.name] = path.read_text()
    return found


def _is_dead(path: Path) -> bool:
    """Whether nobody holds the file's lock; a dead one's file is removed. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        with contextlib.suppress(OSError):
            path.unlink()
        return True
    finally:
        os.close(fd)
