"""Telling whether a local file is still the one that was listed, without reading it.

Size, inode and time of modification do not tell: a file that is rewritten in place may have its old time set back, which
``cp -p``, ``tar`` and ``rsync -t`` do. The inode's time of change (ctime) cannot be set, so an etag holds it too:
``mtime_ns-size-inode-cCTIME_NS``.

Files that Onefold publishes are the exception. Publishing into their folder again gives them another hard link, which
changes that time, and they are never rewritten: a later run gives its files other names. Their etag has a digest of the
Parquet footer in its place: ``mtime_ns-size-inode-fDIGEST``.

Etags of earlier releases end with the inode. Runs that were submitted by these are finished with what they have.

A file system's clock moves in ticks. A file that was changed within the current tick might be changed again without any of
its times moving, so a listing waits until the tick is over (see ``settles_in_s``).
"""

from __future__ import annotations

import hashlib
import os
import re

_OWN_NAME = re.compile(r"/run_[0-9a-z]{16}-\d{5,}\.parquet$")
_FOOTER_BYTES = 64 * 1024
_TICK_NS = 20_000_000
"""Two ticks of the slowest kernel clock (100 Hz)."""
_COARSE_TICK_NS = 2_000_000_000
"""Of file systems that keep whole seconds, or even ones (FAT)."""
_SECOND_NS = 1_000_000_000


def etag(path: str, status: os.stat_result, fd: int | None = None) -> str:
    """The etag of a local file. Raises ``OSError`` when a published file cannot be read."""
    base = _base(status)
    if _OWN_NAME.search(path):
        return f"{base}-f{_footer(path, status.st_size, fd)}"
    return f"{base}-c{status.st_ctime_ns}"


def is_same(listed: str, path: str, status: os.stat_result, fd: int | None = None) -> bool:
    """Whether a file with this status is the one that had the etag ``listed``."""
    if listed == _base(status):  # of an earlier release
        return True
    return listed.startswith(_base(status) + "-") and listed == etag(path, status, fd)


def settles_in_s(status: os.stat_result, now_ns: int) -> float:
    """How long to wait until any further change of the file is sure to show in its times; 0 if it is now.

    Times in the future are another machine's; waiting would not help there for longer than a tick.
    """
    tick = _COARSE_TICK_NS if status.st_ctime_ns % _SECOND_NS == 0 else _TICK_NS
    return min(max(0, status.st_ctime_ns + tick - now_ns), tick) / 1e9


def _base(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns}-{status.st_size}-{status.st_ino}"


def _footer(path: str, size: int, fd: int | None) -> str:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC) if fd is None else fd
    try:
        tail = os.pread(opened, _FOOTER_BYTES, max(0, size - _FOOTER_BYTES))
    finally:
        if fd is None:
            os.close(opened)
    return hashlib.blake2b(tail, digest_size=8).hexdigest()
