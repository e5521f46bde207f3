"""SQLite files that were open when this process was forked: how they can be opened again in the child.

SQLite notes for each file which locks its process holds, so that its connections share them. A forked child inherits the notes
but not the locks (POSIX locks belong to a process). A new connection in the child would take itself for protected. When the
parent then closes, it is the last one for the kernel, resets the write-ahead log, and what the child commits is lost.
("How To Corrupt An SQLite Database File", section 2.6, says not to use connections over a fork; this is why opening
again is not enough.) So the child takes at once the locks that the notes say it has. All connections in write-ahead mode hold
two shared ones as long as they are open, on ranges that are part of SQLite's file format: the shared range of the file, and
the "dead man's switch" of the -shm file. Others are held within transactions only, and no transaction is running during a fork
(see ``forks``); where one is, or a lock cannot be had, the child may not open that file any more.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final, NamedTuple

from onefold.errors import SpaceError

_SHARED: Final = (0x40000002, 510)
_SWITCH: Final = (128, 1)
_TRIES: Final = 100
_PAUSE_S: Final = 0.01


class Identity(NamedTuple):
    """The files behind the names, as (device, inode)."""

    database: tuple[int, int]
    shm: tuple[int, int] | None


_held: dict[tuple[int, int], list[tuple[int, tuple[int, int]]]] = {}
"""By database: the descriptors and ranges whose locks this process holds for SQLite. Never closed: closing any descriptor of a
file gives up all locks on it."""
_lost: set[tuple[int, int]] = set()
"""Databases that cannot be used in this process."""


def identity(path: Path) -> Identity | None:
    """What is there now; None when it is not."""
    try:
        return Identity(_inode(path), _inode(_shm(path)) if _shm(path).exists() else None)
    except OSError:
        return None


def keep(path: Path, before: Identity | None, *, at_rest: bool) -> None:
    """In a forked child: take the locks that SQLite believes to have on a file that was open. ``before``: its identity before the
    fork; ``at_rest``: no transaction was running. Never raises."""
    if before is None or before.shm is None:
        return  # never used in write-ahead mode, so SQLite holds nothing
    if not at_rest:
        _lost.add(before.database)
    if before.database in _lost or before.database in _held:
        return
    taken: list[tuple[int, tuple[int, int]]] = []
    wanted = ((path, before.database, _SHARED), (_shm(path), before.shm, _SWITCH))
    if all(_take(*one, taken) for one in wanted):
        _held[before.database] = taken
    else:
        _lost.add(before.database)


def check_openable(path: Path) -> None:
    """Raises SpaceError when SQLite cannot use the file in this process."""
    with contextlib.suppress(OSError):
        if _lost and _inode(path) in _lost:
            raise SpaceError(
                f"{path.parent} was in use at the moment when this process was forked, so it cannot be opened here. Fork when no "
                "thread uses it, or start the process with multiprocessing's 'spawn' or 'forkserver'"
            )


def _take(
    path: Path, inode: tuple[int, int], span: tuple[int, int], taken: list[tuple[int, tuple[int, int]]]
) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        taken.append((fd, span))
        status = os.fstat(fd)
        return (status.st_dev, status.st_ino) == inode and _lock(fd, span)
    except OSError:
        return False


def _lock(fd: int, span: tuple[int, int]) -> bool:
    start, length = span
    for _ in range(_TRIES):
        try:
            fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB, length, start)
        except OSError:
            time.sleep(_PAUSE_S)  # somebody opens or closes the file as the only one: a moment
        else:
            return True
    return False


def inode_at(name: str) -> tuple[int, int] | None:
    """Device and number of the file there; None when there is none."""
    try:
        status = os.stat(name)  # noqa: PTH116  # once per commit: a path costs twice as much
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _shm(path: Path) -> Path:
    return path.with_name(path.name + "-shm")


def _in_child() -> None:
    """What this process held by inheritance, its own children inherit again."""
    for database, locks in list(_held.items()):
        if not all(_lock(fd, span) for fd, span in locks):
            del _held[database]
            _lost.add(database)


os.register_at_fork(after_in_child=_in_child)
