"""Which programs remove what nothing names any more, and when they begin to.

In a folder every program that may write does, once it has stored a large frame, worked on a live job, or found something that a
process left that is gone. On a cluster nodes do (``node.job_workers``): programs may remove nothing there, and ask nobody for it.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from onefold import config
from onefold.backoff import Deadline
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.live.worker.keeper import Keeper
    from onefold.shard.api import Shard
    from onefold.state.core.client import StateClient


class Sweeping:
    """That of one connection. Thread-safe. What it needs is imported in a thread of its own."""

    def __init__(
        self, shards: Sequence[Shard], client: Callable[[], StateClient], blobs: Callable[[], BlobStore]
    ) -> None:
        self._shards = shards
        self._client = client
        self._blobs = blobs
        self._keeper: Keeper | None = None
        self._lock = threading.Lock()

    @property
    def is_for_programs(self) -> bool:
        """Whether this program removes anything: log and state are on this machine alone, and it may write."""
        first = self._shards[0]
        return first.strong_reads and not getattr(first, "read_only", True)

    def look(self) -> None:
        """Begin at once if something is left by a process that is gone: blobs that were dropped, rows of live jobs that are over
        which are not in their sinks yet, or what was kept of streams for such jobs. Raises as ``Shard.view``."""
        if self.is_for_programs and (self._has_garbage() or self._has_rows() or self._has_holds()):
            self.keep(soon=True)

    def keep(self, *, soon: bool = False) -> None:
        """Have this process remove what nothing names any more, until ``close``. ``soon``: also at once."""
        if not self.is_for_programs:
            return
        with self._lock:
            if self._keeper is None:
                with first_use:
                    from onefold.compute.live.worker.keeper import Keeper

                self._keeper = Keeper(self._client, self._blobs, env=self._shards[0].env)
                atexit.register(_close_at_exit, weakref.ref(self._keeper), os.getpid())
            keeper = self._keeper
        keeper.start(soon=soon)

    def close(self, deadline: Deadline) -> None:
        """End; see ``Keeper.close``."""
        with self._lock:
            keeper = self._keeper
        if keeper is not None:
            keeper.close(deadline)

    def _has_garbage(self) -> bool:
        from onefold.state.fold.blobs import GARBAGE_SINCE, garbage_key

        due = garbage_key(self._shards[0].env.wall_ms() - round(config.LIVE_GARBAGE_S * 1000), "")
        for shard in self._shards:
            with shard.view() as view:
                if next(iter(view.scan(GARBAGE_SINCE, b"", due, limit=1)), None) is not None:
                    return True
        return False

    def _has_rows(self) -> bool:
        """Whether rows wait for other shards that a live job has committed which was cancelled or dropped."""
        if len(self._shards) == 1:
            return False
        from onefold.state.fold.live import outbox

        for shard in self._shards:
            with shard.view() as view:
                if outbox.left(view):
                    return True
        return False

    def _has_holds(self) -> bool:
        """Whether records of streams are kept for live jobs that are over. Where none are kept at all, that costs a look."""
        from onefold.state.fold.streams.rows import holders

        for shard in self._shards:
            with shard.view() as view:
                if next(iter(holders(view)), None) is not None:
                    break
        else:
            return False
        with first_use:
            from onefold.compute.live.holds import left_over

        return bool(left_over(self._client()))


def _close_at_exit(found: weakref.ref[Keeper], pid: int) -> None:
    keeper = found()
    if keeper is not None and os.getpid() == pid:  # a forked child has no thread to end
        keeper.close(Deadline.after(config.LIVE_END_WAIT_S))
