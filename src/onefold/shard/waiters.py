"""Waiting without a thread: what is written to a shard is looked at once, and only those whom it concerns are woken.

Those who wait for the same thing are a ``Group``. While there is any, one thread waits for records. It takes one view of what has
come, asks each group's ``Interest`` whether that is news for it, and notifies the group. So an unrelated record costs one check
for each group, not a look by each of those who wait.

No news is lost. A group is checked from the offset ``checked`` on. One who joins has looked at the state as of an offset, and
looks again if anything beyond that offset may have been checked before (``add`` and ``Group.checked`` say so). Anything later
is found by the thread, since it notes how far it is (``seen``) before it lists the groups.

What ends with the life of a process (a lock, say) is news when that process is dead: each process is asked after once, however
many groups depend on it.

Adding and removing are single operations on a dict, so a signal handler that raises leaves nothing half done. What one may break
off in the event loop is noticed by ``Group.tend``.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Hashable
from typing import Final, NamedTuple, Protocol

from onefold import config
from onefold.backoff import Backoff
from onefold.errors import OnefoldError
from onefold.machine.undisturbed import undisturbed
from onefold.shard.api import Shard, View

EVERYONE: Final = sys.maxsize
_TURN_S: Final = 1.0
"""How long the thread stays at most after the last group has left."""
_RETRY_S: Final = (0.05, 2.0)
_QUICK_S: Final = 0.002
"""Checks that take longer are not made all the time: three times as long is left between them ..."""
_REST_S_MAX: Final = 0.05
"""... but no more than this."""


class Notice(NamedTuple):
    """What new records mean for a group."""

    wakes: int
    """How many of it have to look."""
    look_s: float | None = None
    """Seconds after which one of it has to look, though nothing is written."""
    below: int | None = None
    """Only those who have a place below this one, where they stand in a line."""


NOTHING: Final = Notice(0)
ONE: Final = Notice(1)
ALL: Final = Notice(EVERYONE)


class Interest(Protocol):
    """What a group waits for. Used by one thread at a time, so it may remember what it has seen."""

    @property
    def key(self) -> Hashable:
        """Equal for all that wait for the same thing."""
        ...

    @property
    def members(self) -> Collection[str]:
        """Processes whose death is news: one of the group has to look then."""
        ...

    def check(self, view: View, after: int) -> Notice:
        """What was written beyond offset ``after``, for this group. Whatever it raises wakes everyone: they meet it when they
        look."""
        ...


class Group(ABC):
    """Those who wait for the same thing in one shard."""

    def __init__(self, interest: Interest, offset: int) -> None:
        """``offset``: how far its first member has looked."""
        self.interest = interest
        self.checked = offset
        """Records up to this offset are no news any more. One who has looked no further has to look again."""

    @abstractmethod
    def notify(self, notice: Notice) -> bool:
        """Called by the thread, which must not wait; False when the group is not there any more."""

    @abstractmethod
    def tend(self) -> None:
        """Called by the thread periodically: what an interrupt has broken off is done now."""


class Waiters:
    """The groups that wait for one shard, and the thread that looks for them. Thread-safe."""

    def __init__(self, shard: Shard) -> None:
        """Starts nothing yet."""
        self._shard = shard
        self._groups: dict[int, Group] = {}
        self._threads: dict[int, object] = {}
        """The thread that is there."""
        self.seen = 0
        """Groups that were there are notified, or about to be, of what was written up to this offset."""
        self._members: set[str] = set()
        """Processes whose death matters to anyone, as of ``_asked_s``."""
        self._asked_s = -math.inf

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return bool(self._threads)

    def add(self, group: Group) -> None:
        """From now on the group is notified of what is written beyond ``max(self.seen, group.checked)``, or of more."""
        self._groups[id(group)] = group
        if not self._threads:
            undisturbed(self._start)

    def remove(self, group: Group) -> None:
        """Notify it no longer."""
        self._groups.pop(id(group), None)

    def _start(self) -> None:
        me = object()
        if self._threads.setdefault(0, me) is me:
            threading.Thread(target=self._run, args=(me,), name="onefold-waiters", daemon=True).start()

    def _run(self, me: object) -> None:
        backoff = Backoff(*_RETRY_S)
        tended_s = 0.0
        while True:
            if not self._groups:
                del self._threads[0]
                if not self._groups or self._threads.setdefault(0, me) is not me:
                    return
            try:
                self._look_for_dead()
                applied = self._shard.wait(self.seen, config.LEASE_LOOK_S if self._members else _TURN_S)
            except OnefoldError:
                self._notify_all()  # closed, halted or out of reach: each learns it from its own look
                time.sleep(backoff.pause_s())
                continue
            backoff.reset()
            if time.monotonic() >= tended_s + _TURN_S:
                tended_s = time.monotonic()
                for group in list(self._groups.values()):
                    group.tend()
            if applied > self.seen:
                self.seen = applied
                began_s = time.monotonic()
                self._check()
                took_s = time.monotonic() - began_s
                if took_s > _QUICK_S:
                    time.sleep(min(3 * took_s, _REST_S_MAX))

    def _look_for_dead(self) -> None:
        """Ask after each process once, however many groups depend on it."""
        now_s = time.monotonic()
        if now_s < self._asked_s + config.LEASE_LOOK_S:
            return
        self._asked_s = now_s
        groups = [(group, group.interest.members) for group in list(self._groups.values())]
        self._members = {member for _, members in groups for member in members}
        dead = {member for member in self._members if self._shard.member_alive(member) is False}
        for group, members in groups if dead else ():
            if not dead.isdisjoint(members):
                self._notify(group, ONE)

    def _check(self) -> None:
        groups = list(self._groups.values())
        try:
            with self._shard.view() as view:
                offset = view.offset
                while groups:
                    group = groups[-1]
                    if group.checked < offset:
                        notice = group.interest.check(view, group.checked)
                        group.checked = offset  # before it is notified: one who joins then looks again
                        self._notify(group, notice)
                    groups.pop()
        except Exception:
            for group in groups:
                self._notify(group, ALL)

    def _notify_all(self) -> None:
        for group in list(self._groups.values()):
            self._notify(group, ALL)

    def _notify(self, group: Group, notice: Notice) -> None:
        if notice != NOTHING and not group.notify(notice):
            self.remove(group)
