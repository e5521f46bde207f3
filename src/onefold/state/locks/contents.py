"""All locks of a space that somebody has: see ``state.core.contents``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onefold.shard.api import View
from onefold.state.core.contents import Collection, Contents
from onefold.state.fold.locks import fold as lock_fold


def _collections(views: Sequence[View]) -> Iterator[Collection]:
    for shard, view in enumerate(views):
        for name, row in _held(view):
            yield Collection("lock", name, row.waiting, (shard,))


def _holders(view: View) -> Iterator[tuple[str, str]]:
    for name, row in _held(view):
        yield f"the lock {name!r}", row.by.member


def _held(view: View) -> Iterator[tuple[str, lock_fold.Row]]:
    for key, _ in view.scan(lock_fold.LOCKS):
        row = lock_fold.read_row(view, key.decode())
        if row is not None:
            yield key.decode(), row


CONTENTS = Contents(_collections, holders=_holders)
