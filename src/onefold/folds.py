"""The folds of a space, by shard: what every program that opens one, and every node, applies.

Each is imported when its first operation is applied: connecting and reading need only its name, and are to be quick.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from onefold.fold.api import NEWEST_VERSION
from onefold.fold.authority import AVAILABLE_FOLD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onefold.available.fold import AvailableFold
    from onefold.fold.api import Context, Fold, Store
    from onefold.shard.api import Shard
    from onefold.state.fold.machine import StateFold

    _TimedFold = StateFold | AvailableFold

_LIVE_JOBS: Final = "state/l/jobs"
"""The table of ``state.fold.live.rows``, which a job over files that has nothing to do is not to import."""


def folds(shard: int, shards: int) -> list[Fold]:
    """The folds of one of so many shards."""
    if shard > 0:
        return [_state_fold(shards)]
    return [_LazyFold("jobs", _jobs_fold), _state_fold(shards), _LazyFold("nodes", _nodes_fold)]


def region_folds(shard: int, shards: int) -> list[Fold]:  # noqa: ARG001 - as ``folds``
    """The folds of one of the logs of a region, in which everything arrives that is merged later."""
    if shard > 0:
        return [_available_fold()]
    return [_available_fold(), _LazyFold("nodes", _nodes_fold)]


class BlobTable(NamedTuple):
    """A table, in any shard, whose keys are the names of blobs."""

    name: str
    live: bool
    """What live jobs and streams keep is in no other place, while a task of a batch job runs again."""
    garbage: bool
    """They are only to be swept."""


def all_blob_tables() -> tuple[BlobTable, ...]:
    """All of them."""
    from onefold.compute.jobs import rows
    from onefold.state.fold import blobs

    return (
        BlobTable(rows.BLOB, live=False, garbage=False),
        BlobTable(blobs.BLOBS, live=True, garbage=False),
        BlobTable(rows.GARBAGE, live=False, garbage=True),
        BlobTable(blobs.GARBAGE, live=True, garbage=True),
    )


def blob_tables(*, garbage: bool = False) -> tuple[str, ...]:
    """The names of those whose blobs the state needs. ``garbage``: or is to sweep."""
    return tuple(one.name for one in all_blob_tables() if garbage or not one.garbage)


def is_named(shards: Sequence[Shard], blob: str) -> bool:
    """Whether the state of any of these shards needs a blob. Raises as ``Shard.view``."""
    for shard in shards:
        with shard.view() as view:
            if any(view.get(table, blob.encode()) is not None for table in blob_tables()):
                return True
    return False


def has_live_jobs(shard: Shard) -> bool:
    """Whether a shard has, or had, a live job, as far as it is known here. Asked before what they are made of is imported.

    Raises as ``Shard.view``."""
    with shard.view() as view:
        return next(view.scan(_LIVE_JOBS), None) is not None


def names_blobs(shard: Shard) -> bool:
    """Whether a shard has, or had, a live job, or large frames of streams, or has to sweep what is left of them, as far as it is
    known here.

    Raises as ``Shard.view``."""
    from onefold.state.fold.blobs import BLOBS, GARBAGE_SINCE

    with shard.view() as view:
        return any(
            next(iter(view.scan(table, limit=1)), None) is not None
            for table in (_LIVE_JOBS, BLOBS, GARBAGE_SINCE)
        )


class _LazyFold:
    """A fold without history or time of its own."""

    version = NEWEST_VERSION
    history: frozenset[str] = frozenset()

    def __init__(self, name: str, load: Callable[[], Fold]) -> None:
        self.name = name
        self._load = load
        self._fold: Fold | None = None

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        if self._fold is None:
            self._fold = self._load()
        return self._fold.apply(store, context, body, fold_version)


class _LazyTimedFold:
    """A fold with history and time of its own."""

    version = NEWEST_VERSION

    def __init__(self, name: str, history: frozenset[str], load: Callable[[], _TimedFold]) -> None:
        self.name = name
        self.history = history
        self._load = load
        self._fold: _TimedFold | None = None

    def _loaded(self) -> _TimedFold:
        fold = self._fold = self._load()
        return fold

    def advance(self, store: Store, context: Context) -> int:
        return (self._fold or self._loaded()).advance(store, context)

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        return (self._fold or self._loaded()).apply(store, context, body, fold_version)


def _jobs_fold() -> Fold:
    from onefold.compute.jobs.fold import JobsFold

    return JobsFold()


def _nodes_fold() -> Fold:
    from onefold.fold.nodes.fold import NodesFold

    return NodesFold()


def _state_fold(shards: int) -> _LazyTimedFold:
    def load() -> StateFold:
        from onefold.state.fold.machine import StateFold

        return StateFold(shards)

    return _LazyTimedFold("state", frozenset({"state/m/"}), load)


def _available_fold() -> _LazyTimedFold:
    def load() -> AvailableFold:
        from onefold.available.fold import AvailableFold

        return AvailableFold()

    return _LazyTimedFold(AVAILABLE_FOLD, frozenset({"ap/c/", "ap/names/", "ap/shown"}), load)
