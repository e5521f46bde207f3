"""Files and folders that are durable when a call returns, or appear whole or not at all; and whether a process lives."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path


def sync(path: Path) -> None:
    """Make a file's content, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_tree(folder: Path) -> None:
    """Sync every file and folder below, and the folder itself."""
    for path in folder.rglob("*"):
        if path.is_dir() or path.is_file():
            sync(path)
    sync(folder)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path next to ``path`` where the block makes a file, which takes the place of ``path`` in one step when it ends, durably.
    Nothing is left of it when the block raises."""
    half_made = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}.half")
    half_made.unlink(missing_ok=True)
    try:
        yield half_made
        sync(half_made)
        half_made.rename(path)
        sync(path.absolute().parent)
    finally:
        with contextlib.suppress(OSError):
            half_made.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file so that others see it whole or not at all, with ``mode`` from its first byte on."""
    with whole_file(path) as half_made:
        fd = os.open(half_made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(content)


def process_lives(pid: int) -> bool:
    """Whether there is a process of this id on this machine, of any user. It may be another one than the id was noted for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def process_began(pid: int) -> float | None:
    """When the process of this id began, in seconds since 1970, to about a second; None where the system does not say so."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        ticks = int(stat[stat.rindex(")") + 2 :].split()[19])  # the name before may hold anything
        booted = next(
            line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime ")
        )
        return int(booted.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, StopIteration):
        return None
