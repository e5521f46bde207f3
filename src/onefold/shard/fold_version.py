"""Getting a space to the fold version that an operation's present meaning takes."""

from __future__ import annotations

from onefold.machine.undisturbed import if_possible
from onefold.shard.api import Shard


def reach_version(shard: Shard, version: int) -> bool:
    """Whether folds apply by this version in the space; raises it where it is this program's to raise (embedded, and every
    program that has the space open knows it)."""
    raising = getattr(shard, "raise_here", None)
    if not _is_at(shard, version) and raising is not None:
        with if_possible:  # an older program has it open, or another thread was faster
            raising(version)
    return _is_at(shard, version)


def _is_at(shard: Shard, version: int) -> bool:
    with shard.view() as view:
        return view.head().fold_version >= version
