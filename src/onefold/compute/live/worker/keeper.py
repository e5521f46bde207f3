"""What a process does periodically for the whole space: it removes blobs that nothing names, and what was kept of streams for
jobs that are over.

In a folder programs do (``database.sweeping``). On a cluster every node does, also where there never was a live job: large frames
of streams are blobs too. The first to come does the work, and the others find that it is done.

What it needs is imported in its thread, and only where there may be something to remove: neither a program that appends a large
frame waits for that, nor does a node without blobs pay for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onefold import config
from onefold.backoff import Deadline, jittered
from onefold.env import SYSTEM, Env
from onefold.errors import OnefoldError
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.state.core.client import StateClient


class Keeper:
    """A thread, from ``start`` until ``close``."""

    def __init__(
        self,
        client: Callable[[], StateClient],
        blobs: Callable[[], BlobStore],
        note: Callable[[str, dict[str, Any]], None] = lambda *_: None,
        *,
        env: Env = SYSTEM,
        names_blobs: Callable[[], bool] = lambda: True,
    ) -> None:
        """``names_blobs``: whether the state of the space names blobs, or has to sweep any, as far as is known here: asked before
        anything is imported."""
        self._client = client
        self._blobs = blobs
        self._note = note
        self._env = env
        self._names_blobs = names_blobs
        self._named = False
        """Whether the state has named blobs."""
        self._soon = False
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._unnamed_s: float | None = None
        """When blobs of commits that never happened were looked for last, on the boot clock."""
        self._thread = threading.Thread(target=self._run, name="onefold-live-keeper", daemon=True)

    @property
    def is_running(self) -> bool:
        """Whether it has begun, and has not ended."""
        return self._thread.is_alive()

    def start(self, *, soon: bool = False) -> None:
        """Begin, unless it has begun. ``soon``: look at once, also when it is closed at once, and then from time to time."""
        with self._lock:
            if self._thread.ident is None and not self._closed.is_set():
                self._soon = soon
                self._thread.start()

    def close(self, deadline: Deadline) -> None:
        """End. What is being removed is removed first, if the store that has it answers until then."""
        with self._lock:
            self._closed.set()
        if self._thread.ident is not None:
            self._thread.join(deadline.within(config.LIVE_END_WAIT_S))

    def look(self) -> int:
        """Remove what is due; how many blobs that were. Raises as ``LiveGarbage.sweep``."""
        blobs, now = self._blobs(), self._env.boot_s()
        every_s = config.LIVE_UNNAMED_SHARED_LOOK_S if blobs.shared else config.LIVE_UNNAMED_LOOK_S
        lists = self._unnamed_s is None or now - self._unnamed_s >= every_s
        # Once there was something, copies of what was swept are to be settled, also when the state names nothing any more.
        self._named = self._named or self._names_blobs()
        removed = 0
        if self._named or (lists and _has_any(blobs)):
            removed = self._remove(blobs, unnamed=lists)
        if lists:
            self._unnamed_s = now
        return removed

    def _remove(self, blobs: BlobStore, *, unnamed: bool) -> int:
        with first_use:
            from onefold.compute.live.garbage import LiveGarbage
            from onefold.compute.live.holds import release
        client = self._client()
        release(client)
        if _has_had_jobs(client):
            with first_use:  # with Polars
                from onefold.compute.live.output.settling import drop_cursors, settle_left

            settle_left(client)
            drop_cursors(client)
        garbage = LiveGarbage(client, blobs)
        removed = garbage.sweep()
        if unnamed:
            removed += garbage.remove_unnamed()
        return removed

    def _run(self) -> None:
        if self._soon:
            self._look_and_say()
        # Spread, so that of several processes one does what is due and the others find nothing.
        while not self._closed.wait(jittered(config.GARBAGE_SWEEP_S)):
            self._look_and_say()

    def _look_and_say(self) -> None:
        try:
            removed = self.look()
        except (OnefoldError, OSError) as error:
            self._note("live_blobs_not_swept", {"error": str(error)})
            return
        if removed:
            self._note("live_blobs_swept", {"count": removed})


def _has_had_jobs(client: StateClient) -> bool:
    from onefold.state.core.consistency import SESSION
    from onefold.state.fold.live.rows import JOBS

    for shard in range(client.shard_count):
        with client.view(shard, SESSION) as view:
            if next(iter(view.scan(JOBS, limit=1)), None) is not None:
                return True
    return False


def _has_any(blobs: BlobStore) -> bool:
    """Of an append that never happened there is a blob, and of a sweeper that died a copy, and nothing in the state."""
    return next(blobs.everywhere(), None) is not None or bool(blobs.hidden())
