"""A new embedded space from a snapshot: the state is there, the log begins after it, and the incarnation is another."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from onefold.env import SYSTEM, Env
from onefold.errors import SpaceError
from onefold.fold.api import Fold
from onefold.log.sqlite.engine import LOG_SCHEMA
from onefold.log.sqlite.file import FILE_NAME, SqliteFile
from onefold.store.snapshot import Snapshot, load_snapshot
from onefold.store.tables import STORE_SCHEMA

_LOG_BEGINS_AFTER = (
    "UPDATE head SET log_first = applied + 1",
    "UPDATE log_first SET first = (SELECT applied + 1 FROM head)",
)


def restore_space(
    snapshot: str | Path, directory: str | Path, folds: Sequence[Fold], *, env: Env = SYSTEM
) -> Snapshot:
    """Make a space in ``directory``, which must have none, with the state of ``snapshot``; then ``open_shard`` it.

    Tokens of the old space are refused there, since what came after the snapshot is not in it. Raises SpaceError when
    there is a space already or the file is not a snapshot, and LogCorrupt when the snapshot is damaged; then nothing is left.
    """
    directory = Path(directory)
    if (directory / FILE_NAME).exists():
        raise SpaceError(f"there is a space in {directory} already. Restore into another directory")
    history = frozenset[str]().union(*(fold.history for fold in folds))
    file = SqliteFile(directory, (*LOG_SCHEMA, *STORE_SCHEMA), env)
    try:
        with file.maintaining() as con:
            restored = load_snapshot(con, Path(snapshot), history, also=_LOG_BEGINS_AFTER)
    except BaseException:
        file.close()
        for path in directory.glob(f"{FILE_NAME}*"):
            with contextlib.suppress(OSError):
                path.unlink()
        raise
    file.close()
    return restored
