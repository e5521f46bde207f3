"""What wakes those who watch a map, and what is read once for all of them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import NamedTuple

from onefold import config
from onefold.shard.api import View
from onefold.shard.waiters import ALL, NOTHING, Notice
from onefold.state.fold import rows
from onefold.state.maps.reading import Bounds
from onefold.store.paged_view import Version


class Known(NamedTuple):
    """What is known of a shard behind what was found."""

    end: int
    """There is nothing more up to this offset."""
    due_ms: int | None
    """When the next lifetime ends there."""


class Read(NamedTuple):
    """What a check has read of a part of a map, for those who stand anywhere from ``after`` to ``end``."""

    shard: int
    after: int
    changes: Sequence[Version]
    """All beyond ``after``, up to ``end``."""
    end: int
    due_ms: int | None


class MapChanges:
    """What wakes those who watch the same part of a map. It reads what has changed once, for all of them."""

    def __init__(self, table: str, bounds: Bounds, shard: int) -> None:
        self._table = table
        self._bounds = bounds
        self._shard = shard
        self._looked_at: int | None = None
        """All have looked since this offset, or been given what there was."""
        self._unchanged_from = 0
        """Nothing has changed from here to where it was checked last."""
        self.read: Read | None = None
        """The latest changes, if they are few."""

    @property
    def key(self) -> Hashable:
        return self._table, self._bounds.start, self._bounds.stop

    @property
    def members(self) -> Collection[str]:
        return ()

    def changes(self, view: View, after: int, bounds: Bounds, limit: int) -> Sequence[Version]:
        """What changed beyond an offset."""
        return view.changes(self._table, after, start=bounds.start, stop=bounds.stop, limit=limit)

    def check(self, view: View, after: int) -> Notice:
        """See ``Interest``."""
        if self._looked_at is None:
            self._looked_at = self._unchanged_from = after
        # A watch reads the history from where it has looked last, so it looks before that is too old, whatever was written.
        lags = view.offset - self._looked_at >= config.HISTORY_WINDOW_OFFSETS // 4
        bounds, limit = self._bounds, config.WATCH_SHARED_CHANGES + 1
        changes = self.changes(view, after, bounds, limit)
        if not changes and not lags:
            return NOTHING
        size = sum(len(change.key) + len(change.value or b"") for change in changes)
        few = len(changes) < limit and size <= config.WATCH_SHARED_BYTES
        self.read = (
            Read(self._shard, self._unchanged_from, changes, view.offset, first_due(view)) if few else None
        )
        self._looked_at = self._unchanged_from = view.offset
        return ALL


def first_due(view: View) -> int | None:
    """When the next lifetime in the shard ends; None: none does."""
    first = next(view.scan(rows.DUE, limit=1), None)
    return None if first is None else rows.read_due_key(first[0])[0]
