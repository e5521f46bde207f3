"""Checksums on every page of a space's file, by SQLite's own ``cksumvfs`` extension, which comes with APSW's wheels.

The last 8 bytes of each page are its checksum, checked whenever the page is read from the disk: so a flipped bit in folded
state is found too, not only one in a record of the log. Measured: no difference in commits, less than 10 % in bulk writes.

Source: "The Checksum VFS Shim", SQLite documentation. What is in the write-ahead log has SQLite's frame checksums, which are
checked when an opener recovers it.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Final

import apsw

VFS: Final = "cksmvfs"
RESERVED_BYTES: Final = 8
_NAME: Final = "cksumvfs"
_SUFFIX: Final = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_lock = threading.Lock()
_available: bool | None = None


def available() -> bool:
    """Whether checksums can be kept here: the extension is there, and loaded now."""
    global _available
    if _available is None:
        with _lock:
            if _available is None:
                _available = _load()
    return _available


def _extension() -> str | None:
    """The extension's file; None where there is none."""
    # Where wheels have it. ``apsw.sqlite_extra`` finds it too, but that module's imports take as long as making a space.
    in_wheel = Path(apsw.__file__).parent / "sqlite_extra_binaries" / f"{_NAME}{_SUFFIX}"
    if in_wheel.exists():
        return str(in_wheel)
    try:
        from apsw import sqlite_extra

        return str(sqlite_extra.path(_NAME))
    except (
        Exception
    ):  # what there is of APSW's extras, and what it raises without them, depends on how it was built
        return None


def _load() -> bool:
    if VFS in apsw.vfs_names():
        return True
    default = apsw.vfs_names()[0]
    extension = _extension()
    if extension is None:
        return False  # an APSW that was built without it
    try:
        con = apsw.Connection(":memory:")
        try:
            con.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 1)
            con.load_extension(extension)
        finally:
            con.close()
    except apsw.Error:
        return False
    apsw.set_default_vfs(default)  # other users of APSW in this process keep what they had
    return VFS in apsw.vfs_names()
