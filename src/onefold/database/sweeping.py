"""Which programs remove what nothing names any more, and when they begin to.

In a folder every program that may write does, once it has stored a large frame, worked on a live job, or found something that a
process left that is gone. On a cluster nodes do (``node.job_workers``): programs may remove nothing there, and ask nobody for it.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from onefold import config
from onefold.backoff import Deadline
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.upkeep.keeper import Keeper
    from onefold.shard.api import Shard
    from onefold.state.core.client import StateClient

NOT_DONE: Final = (
    "onefold: what nothing names any more cannot be removed ({duty}): {error}. It is tried again from time to time; "
    "`onefold doctor` says what waits"
)


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
        self.is_left = False
        """Whether this connection leaves it to others."""

    def leave_to_others(self) -> None:
        """Remove nothing with this connection: it was opened to read."""
        self.is_left = True

    @property
    def is_for_programs(self) -> bool:
        """Whether this program removes anything: log and state are on this machine alone, and it may write."""
        first = self._shards[0]
        return not self.is_left and first.strong_reads and not getattr(first, "read_only", True)

    def look(self) -> None:
        """Begin at once if something is due that a process has left which is gone (``duties``): blobs that were dropped, or what
        was kept of streams for live jobs that are over. What it costs to list all blobs is not looked for. Raises as
        ``Shard.view``."""
        if not self.is_for_programs:
            return
        with first_use:
            from onefold.compute.upkeep.duties import DUTIES, Space

        space = Space(self._client(), self._blobs, _say)
        if any(duty.waits(space) for duty in DUTIES if not duty.lists_place):
            self.keep(soon=True)

    def keep(self, *, soon: bool = False) -> None:
        """Have this process remove what nothing names any more, until ``close``. ``soon``: also at once."""
        if not self.is_for_programs:
            return
        with self._lock:
            if self._keeper is None:
                with first_use:
                    from onefold.compute.upkeep.keeper import Keeper

                self._keeper = Keeper(self._client, self._blobs, _say, env=self._shards[0].env)
                atexit.register(_close_at_exit, weakref.ref(self._keeper), os.getpid())
            keeper = self._keeper
        keeper.start(soon=soon)

    def close(self, deadline: Deadline) -> None:
        """End; see ``Keeper.close``."""
        with self._lock:
            keeper = self._keeper
        if keeper is not None:
            keeper.close(deadline)


def _say(event: str, fields: dict[str, Any]) -> None:
    """What a program says of it, on stderr: what will not pass by itself."""
    if event == "live_rows_given_up":
        with first_use:
            from onefold.compute.live.output.left import say_given_up

        say_given_up(fields["why"])
    elif event == "live_blobs_not_swept" and not fields["passes"]:
        print(NOT_DONE.format(**fields), file=sys.stderr)


def _close_at_exit(found: weakref.ref[Keeper], pid: int) -> None:
    keeper = found()
    if keeper is not None and os.getpid() == pid:  # a forked child has no thread to end
        keeper.close(Deadline.after(config.LIVE_END_WAIT_S))
