"""A thread that does for the whole space what is due (``duties``), from time to time.

In a folder programs do (``database.sweeping``). On a cluster every node does, also where there never was a live job: large frames
of streams are blobs too. The first to come does the work, and the others find that it is done.

What fails keeps nothing else from being done. It is tried again, ever less often up to ``config.KEEPER_RETRY_S_MAX``, whatever it
was: room is made on a full disk, a folder gets its mode back. It is said when it begins to fail, when the reason changes, and
when that is over. The place that has the blobs is listed once in ``config.LIVE_UNNAMED_LOOK_S``; after a failure sooner, with
pauses that grow up to that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Final

from onefold import config
from onefold.backoff import Backoff, Deadline, jittered
from onefold.compute.upkeep.duties import DUTIES, Duty, Note, Space
from onefold.env import SYSTEM, Env
from onefold.errors import PASSING
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.state.core.client import StateClient

_LOOKING: Final = "looking"
"""What fails where no duty can even begin."""


class _Standing:
    """When a duty is done next, and whether it fails."""

    def __init__(self) -> None:
        self.at_s = float("-inf")
        """On the boot clock."""
        self.backoff: Backoff | None = None
        """Of a duty that fails."""
        self.said = ""
        """Why it fails, as it was said."""


class Keeper:
    """A thread, from ``start`` until ``close``."""

    def __init__(
        self,
        client: Callable[[], StateClient],
        blobs: Callable[[], BlobStore],
        note: Note = lambda *_: None,
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
        self._standing: dict[str, _Standing] = {}
        """By the name of the duty."""
        self._listing_s = config.LIVE_UNNAMED_LOOK_S
        """How often the place is listed."""
        self._hidden_s: float | None = None
        """When blobs were removed here last whose copies are to be settled, on the boot clock."""
        self.looks = 0
        """How often it has looked."""
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
        """Do what is due; how many blobs were removed. What fails is noted, and tried again by a later look."""
        removed = 0
        for duty, space in self._due(self._env.boot_s()):
            removed += self._do(duty, space)
        self.looks += 1
        if removed:
            self._note("live_blobs_swept", {"count": removed})
        return removed

    def _run(self) -> None:
        if self._soon:
            self.look()
        # Spread, so that of several processes one does what is due and the others find nothing.
        while not self._closed.wait(jittered(config.GARBAGE_SWEEP_S)):
            self.look()

    def _due(self, now_s: float) -> Iterator[tuple[Duty, Space | None]]:
        """The duties whose time has come, and what to do them on; None: it is known already that nothing waits."""
        try:
            # Once there was something, copies of what was swept are to be settled, also when the state names nothing any more.
            self._named = self._named or self._names_blobs()
            space = Space(self._client(), self._blobs, self._note) if self._named else None
        except Exception as error:
            if is_interrupt(error):
                raise
            self._failed(_LOOKING, error)
            return
        self._well(_LOOKING)
        for duty in DUTIES:
            if self._is_due(duty, now_s) and (space is not None or duty.lists_place):
                yield duty, space

    def _is_due(self, duty: Duty, now_s: float) -> bool:
        standing = self._of(duty.name)
        if now_s >= standing.at_s:
            return True
        return (
            duty.settles_copies
            and standing.backoff is None
            and self._hidden_s is not None
            and now_s >= self._hidden_s + config.SWEPT_KEPT_S
        )

    def _do(self, duty: Duty, space: Space | None) -> int:
        """How many blobs were removed."""
        standing, now_s = self._of(duty.name), self._env.boot_s()
        try:
            if duty.lists_place:
                self._listing_s = _listing_s(self._blobs())
                space = space or self._listed(duty)
            done = 0 if space is None else duty.do(space)
        except Exception as error:
            if is_interrupt(error):
                raise
            self._failed(duty.name, error)
            if standing.backoff is None:
                longest_s = self._listing_s if duty.lists_place else config.KEEPER_RETRY_S_MAX
                standing.backoff = Backoff(config.GARBAGE_SWEEP_S, longest_s)
            standing.at_s = now_s + standing.backoff.pause_s()
            return 0
        self._well(duty.name)
        standing.backoff = None
        standing.at_s = now_s + (self._listing_s if duty.lists_place else 0.0)
        if duty.settles_copies:  # what was back in its place is aside again
            self._hidden_s = now_s if done else self._younger(now_s)
        elif done and duty.removes_blobs:
            self._hidden_s = now_s
            return done
        return 0

    def _younger(self, now_s: float) -> float | None:
        """When what is still too young to be settled was hidden; None: nothing is."""
        if self._hidden_s is None or now_s >= self._hidden_s + config.SWEPT_KEPT_S:
            return None
        return self._hidden_s

    def _listed(self, duty: Duty) -> Space | None:
        """Where the state names no blob: of an append that never happened there is one, and of a sweeper that died a copy. None
        where there is nothing for the duty."""
        blobs = self._blobs()
        if duty.settles_copies:
            return Space(self._client(), self._blobs, self._note) if blobs.hidden() else None
        names = blobs.everywhere()
        first = next(names, None)
        if first is None:
            return None
        return Space(self._client(), self._blobs, self._note, chain([first], names))

    def _failed(self, what: str, error: Exception) -> None:
        standing, reason = self._of(what), f"{type(error).__name__}: {error}"
        if standing.said != reason and not self._closed.is_set():  # closing fails what is under way
            standing.said = reason
            passes = isinstance(error, PASSING)
            self._note("live_blobs_not_swept", {"duty": what, "error": reason, "passes": passes})

    def _well(self, what: str) -> None:
        standing = self._of(what)
        if standing.said:
            standing.said = ""
            self._note("live_blobs_not_swept_over", {"duty": what})

    def _of(self, what: str) -> _Standing:
        return self._standing.setdefault(what, _Standing())


def _listing_s(blobs: BlobStore) -> float:
    return config.LIVE_UNNAMED_SHARED_LOOK_S if blobs.shared else config.LIVE_UNNAMED_LOOK_S
