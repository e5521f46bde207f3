"""What SQLite raises, as errors of Onefold."""

from __future__ import annotations

from pathlib import Path

import apsw

from onefold.errors import (
    ASK_LATER,
    AppendUnknown,
    LogCorrupt,
    OnefoldError,
    SpaceError,
    Timeout,
    TooLarge,
    Unavailable,
)

BUSY_MS = 5000
"""How long SQLite waits for a lock of its own. Never needed between writers; covers recovery by an opener and a checkpoint that
restarts the write-ahead log."""
FAILED = (apsw.Error, UnicodeDecodeError)
"""What SQLite raises."""


def translate(error: Exception, path: Path, *, committing: bool = False) -> OnefoldError:
    """The error of Onefold for an error of SQLite, with what to do."""
    if isinstance(error, apsw.FullError):
        return Unavailable(
            f"the disk with {path} is full; nothing was written. Free some space and try again"
        )
    if isinstance(error, (apsw.BusyError, apsw.LockedError)):
        return Timeout(f"{path} stayed locked for {BUSY_MS} ms; nothing was done. Try again", definite=True)
    if isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA:
        return LogCorrupt(
            f"{path} is damaged: the checksum of a page does not match. Restore it from a snapshot or a backup"
        )
    if isinstance(error, apsw.IOError) and committing:
        return AppendUnknown(
            f"committing to {path} failed ({error}): the record may surface after a restart. {ASK_LATER}"
        )
    if isinstance(error, apsw.IOError):
        return Unavailable(f"the disk failed under {path}: {error}")
    if isinstance(error, apsw.NotADBError):
        return SpaceError(f"{path} is not a space's file. Use another directory")
    if isinstance(error, (apsw.CorruptError, UnicodeDecodeError)):
        return LogCorrupt(f"{path} is damaged ({error}). Restore it from a snapshot or a backup")
    if isinstance(error, (apsw.ReadOnlyError, apsw.CantOpenError, apsw.PermissionsError)):
        return SpaceError(
            f"{path} cannot be opened for writing. Check its owner and mode, or use another place"
        )
    if isinstance(error, apsw.TooBigError):
        return TooLarge(f"a value is too large for {path}")
    return SpaceError(f"SQLite failed on {path}: {type(error).__name__}: {error}")
