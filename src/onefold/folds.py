"""The folds of a space, by shard: what every program that opens one, and every node, applies.

Each is imported when its first operation is applied: connecting and reading need only its name, and are to be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from onefold.fold.api import Context, Fold, Store
    from onefold.state.fold.machine import StateFold


def folds(shard: int, shards: int) -> list[Fold]:
    """The folds of one of so many shards."""
    if shard > 0:
        return [_LazyStateFold(shards)]
    return [_LazyFold("jobs", _jobs_fold), _LazyStateFold(shards), _LazyFold("nodes", _nodes_fold)]


class _LazyFold:
    """A fold without history or time of its own."""

    version = 2
    history: frozenset[str] = frozenset()

    def __init__(self, name: str, load: Callable[[], Fold]) -> None:
        self.name = name
        self._load = load
        self._fold: Fold | None = None

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        if self._fold is None:
            self._fold = self._load()
        return self._fold.apply(store, context, body, fold_version)


def _jobs_fold() -> Fold:
    from onefold.compute.jobs.fold import JobsFold

    return JobsFold()


def _nodes_fold() -> Fold:
    from onefold.fold.nodes.fold import NodesFold

    return NodesFold()


class _LazyStateFold:
    """The fold of shared state."""

    name = "state"
    version = 2
    history = frozenset({"state/m/"})

    def __init__(self, shards: int) -> None:
        self._shard_count = shards
        self._fold: StateFold | None = None

    def _loaded(self) -> StateFold:
        from onefold.state.fold.machine import StateFold

        fold = self._fold = StateFold(self._shard_count)
        return fold

    def advance(self, store: Store, context: Context) -> None:
        (self._fold or self._loaded()).advance(store, context)

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        return (self._fold or self._loaded()).apply(store, context, body, fold_version)
