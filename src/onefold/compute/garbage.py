"""Blobs that nothing names any more, and blobs that were removed before something named them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence, Set
from typing import TYPE_CHECKING

from onefold.compute.blobs import sweeping
from onefold.compute.blobs.store import BlobsUnavailable
from onefold.compute.jobs import ops, state

if TYPE_CHECKING:
    from onefold.compute.client import JobClient

_SWEEP_BATCH = 1000


class Garbage:
    """What becomes of the blobs of a space's jobs. Thread-safe."""

    def __init__(self, client: JobClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._unchecked: list[ops.Done] = []
        """Recorded results whose blobs could not be looked for."""

    def names(self) -> set[str]:
        """Blobs that nothing names any more."""
        with self._client.shard.view() as view:
            return set(state.garbage(view))

    def sweep(self, only: Set[str] | None = None, *, settles: bool = True) -> int:
        """Hide blobs that nothing names any more (``only``: of these), and settle what was hidden before; how many were hidden.
        ``settles=False``: leave out the second. See ``sweeping``."""
        blobs = self._client.blobs
        garbage = self.names()
        names = tuple(sorted(garbage if only is None else garbage & only))
        removed = 0
        for start in range(0, len(names), _SWEEP_BATCH):
            batch = names[start : start + _SWEEP_BATCH]
            removed += sweeping.sweep(blobs, batch, self._swept, self._named)
        if settles:
            sweeping.tidy(blobs, garbage, self._named)
        return removed

    def hidden(self) -> int:
        """How many hidden copies ``settle`` would look at now."""
        return len(sweeping.settleable(self._client.blobs))

    def settle(self) -> int:
        """Settle what was hidden long enough ago (``sweeping.tidy``); how many copies."""
        return sweeping.tidy(self._client.blobs, self.names(), self._named)

    def _swept(self, names: Sequence[str]) -> tuple[str, ...]:
        (outcome,) = self._client.submit(ops.Swept(tuple(names)))
        return outcome.blobs if isinstance(outcome, ops.Accepted) else ()

    def _named(self, names: Iterable[str]) -> frozenset[str]:
        with self._client.shard.view() as view:
            return state.named(view, names)

    def keep_named(self, report: Sequence[ops.Operation], outcomes: Sequence[ops.Outcome]) -> bool:
        """Reopen the tasks of results just recorded whose blobs were swept before the record; whether one was reopened.

        To be called after every record with ``Done``.
        """
        with self._lock:
            waiting, self._unchecked = self._unchecked, []
        waiting += [
            operation
            for operation, outcome in zip(report, outcomes, strict=False)
            if isinstance(operation, ops.Done) and isinstance(outcome, ops.Accepted)
        ]
        lost: list[ops.Operation] = []
        for done in waiting:
            blob = done.result.blob
            try:
                if blob is not None and not self._client.blobs.keeps(blob):
                    lost.append(ops.Lost(done.run, done.stage, done.index, blob))
            except BlobsUnavailable:  # nothing is known of it: looked for again after the next record
                with self._lock:
                    self._unchecked.append(done)
        return bool(lost) and any(isinstance(one, ops.Accepted) for one in self._client.submit(*lost))
