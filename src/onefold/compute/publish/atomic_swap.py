"""Putting a finished folder in the place of another in one step, and cleaning up after those who were killed
at it.

Where the system can exchange two names (Linux ``renameat2``, macOS ``renamex_np``), anyone who looks sees the
old folder or the new one. Elsewhere two renames under a journal do it: for a moment there is no folder, and
if the process is killed then, the next publisher (or ``recover``) puts the new one in place. Swaps in one
parent directory take turns by a lock on that directory, which ends with the process that holds it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from onefold.files import sync

_RENAME_EXCHANGE: Final = 2
_AT_FDCWD: Final = -100
_UNSUPPORTED: Final = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a directory; waits for others."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def swap_in(new: Path, target: Path) -> Path | None:
    """Put ``new`` in the place of ``target``, durably; returns where the old folder is now. Call it
    ``locked``.
    """
    if not target.exists():
        new.rename(target)
        sync(target.parent)
        return None
    if _exchange(new, target):
        sync(target.parent)
        return new
    return _swap_by_journal(new, target)


def recover(target: Path) -> None:
    """Finish a journalled swap whose process was killed. Call it ``locked``."""
    journal = _journal(target)
    try:
        plan = json.loads(journal.read_text())
        new = target.parent / plan["new"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # torn while it was written: no rename had been made
        journal.unlink(missing_ok=True)
        return
    if not target.exists() and new.exists():
        new.rename(target)
        sync(target.parent)
    journal.unlink(missing_ok=True)
    sync(target.parent)


class Staging:
    """A new folder next to the target, marked by a lock as being worked on: leftovers are those whose lock is free.

    Make it, and remove leftovers, ``locked``.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.parent / f".{target.name}.onefold-{os.urandom(6).hex()}"
        self.path.mkdir()
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def close(self) -> None:
        """Not worked on any more: whatever still has the staging name is a leftover."""
        os.close(self._fd)


def remove_leftovers(target: Path) -> None:
    """Remove what killed publishers of this target left next to it. Call it ``locked``."""
    prefix = f".{target.name}.onefold-"
    for entry in os.scandir(target.parent):
        if entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
            with contextlib.suppress(OSError):
                fd = os.open(entry.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path, ignore_errors=True)
                finally:
                    os.close(fd)


def _exchange(one: Path, other: Path) -> bool:
    library = ctypes.CDLL(None, use_errno=True)
    first, second = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        status = library.renameat2(_AT_FDCWD, first, _AT_FDCWD, second, _RENAME_EXCHANGE)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        status = library.renamex_np(first, second, _RENAME_EXCHANGE)
    else:
        return False
    if status == 0:
        return True
    code = ctypes.get_errno()
    if code in _UNSUPPORTED:
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _swap_by_journal(new: Path, target: Path) -> Path:
    old = target.parent / f"{new.name}-old"
    journal = _journal(target)
    journal.write_text(json.dumps({"new": new.name}))
    sync(journal)
    sync(target.parent)
    target.rename(old)
    try:
        new.rename(target)
    except OSError:
        old.rename(target)
        raise
    sync(target.parent)
    journal.unlink()
    return old


def _journal(target: Path) -> Path:
    return target.parent / f".{target.name}.onefold-swap"
