"""Tasks that wait for something in the space: each costs a future, and no thread.

A task looks, in a thread of the pool, and finds nothing. It joins the groups of what it waits for (``onefold.shard.waiters``) and
sleeps until one of them wakes it, its time is over, or it is cancelled. Then it looks again.

A group wakes as many as the news is enough for: all watchers of a map that has changed, one taker for each message that is ready
(those who are looking count, and look again). One that was chosen and leaves without having looked passes the wake-up on. When
something will happen without a record (a lifetime or a lease ends, a delay is over), one member of the group looks, at the
earliest such moment that any of them has seen.

Everything here runs in the event loop, except ``notify`` and ``tend`` of a group.
"""

from __future__ import annotations

import asyncio
import math
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Final, Self

from onefold.shard.waiters import EVERYONE, Group, Interest, Notice, Waiters
from onefold.state.core.shards_client import ShardsClient
from onefold.state.core.waiting import Awaited, Pause

_LATE_S: Final = 0.5
"""A timer that is this late was broken off, or the loop is busy."""
_BUSY_S: Final = 1.0
"""One that has been looking for longer is not relied on: another one is woken."""


class Waits:
    """Those who wait in one event loop for one open database."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiters: dict[int, Waiters] = {}
        self._groups: dict[tuple[int, Hashable], _LoopGroup] = {}
        self._closed = False

    def waiter(self) -> Waiter:
        """For one who waits, as a context manager."""
        return Waiter(self, self._loop)

    def group(self, client: ShardsClient, awaited: Awaited) -> tuple[_LoopGroup, bool]:
        """The group of those who wait for that, and whether a new member has to look again."""
        shard = client.shards[awaited.shard]
        log = id(shard)  # a space and a region of it have shards of the same numbers
        waiters = self._waiters.get(log)
        if waiters is None:
            waiters = self._waiters[log] = Waiters(shard)
        key = (log, awaited.interest.key)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _LoopGroup(self._loop, self, key, waiters, awaited)
            waiters.add(group)
        return group, max(group.checked, waiters.seen) > awaited.offset

    def forget(self, key: tuple[int, Hashable], group: _LoopGroup) -> None:
        """Nobody is in the group any more."""
        if self._groups.get(key) is group:
            del self._groups[key]

    def wake_all(self) -> None:
        """Have all look again: the connection is being closed."""
        for group in list(self._groups.values()):
            group.notice(Notice(EVERYONE))


class Waiter:
    """One who waits. It looks before it waits, and again after each time that it was woken."""

    __slots__ = (
        "__weakref__",
        "_chosen",
        "_future",
        "_groups",
        "_home",
        "_loop",
        "looks",
        "place",
        "since_s",
        "woken",
    )

    def __init__(self, waits: Waits, loop: asyncio.AbstractEventLoop) -> None:
        """See ``Waits.waiter``."""
        self._home = waits
        self._loop = loop
        self._groups: list[_LoopGroup] | None = None
        self._future: asyncio.Future[None] | None = None
        self._chosen: _LoopGroup | None = None
        """The group that has woken this one and not all."""
        self.place = 0
        """In the line, if there is one."""
        self.looks = True
        """Whether it is looking. News that comes meanwhile it may have missed."""
        self.since_s = loop.time()
        """When it began to look."""
        self.woken = False

    @property
    def left(self) -> bool:
        """Whether it waits no longer."""
        return self._groups is not None and not self._groups

    @property
    def interests(self) -> list[Interest]:
        """Of those groups that it is in."""
        return [group.interest for group in self._groups or ()]

    @property
    def waiting(self) -> bool:
        """Whether it sleeps."""
        return not self.looks and not self.woken

    def begin_look(self) -> None:
        """It is about to look."""
        self.looks, self.woken, self.since_s = True, False, self._loop.time()

    def satisfied(self) -> None:
        """It has found what it waited for."""
        if not self.woken:  # else there was news while it looked, and what it found may be older
            self._chosen = None

    async def wait(self, client: ShardsClient, pause: Pause, left_s: float | None) -> None:
        """Return when it is time to look again, at the latest after ``left_s`` seconds. ``pause``: what the look has said."""
        if not self.woken:
            self._chosen = None  # it has looked
        if self._groups is None:
            groups = self._groups = []
            for one in pause.awaited:
                group, again = self._home.group(client, one)
                groups.append(group)
                self.place = one.place
                group.join(self)
                self.woken = self.woken or again
        self.looks = False
        if self.woken:
            return
        if self._groups:
            self._groups[0].look_in(pause.one_in_s)
        in_s = pause.in_s if left_s is None else min(pause.in_s, left_s)
        self._future = future = self._loop.create_future()
        timer = None if in_s == math.inf else self._loop.call_later(max(0.0, in_s), self.wake)
        try:
            await future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()

    def wake(self, chosen_by: _LoopGroup | None = None) -> None:
        """It has to look."""
        if chosen_by is not None:
            self._chosen = chosen_by
        if self._future is not None and not self._future.done():
            self._future.set_result(None)
        self.woken = True  # last: if this is interrupted, it is woken again

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        groups, self._groups = self._groups, []
        for group in groups or ():
            group.leave(self)
        chosen, self._chosen = self._chosen, None
        if chosen is not None:
            chosen.wake_one()


class _LoopGroup(Group):
    """Those of one event loop who wait for the same thing."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        waits: Waits,
        key: tuple[int, Hashable],
        waiters: Waiters,
        awaited: Awaited,
    ) -> None:
        super().__init__(awaited.interest, awaited.offset)
        self._loop = loop
        self._waits = waits
        self._key = key
        self._waiters = waiters
        self._members: dict[weakref.ref[Waiter], None] = {}
        """In the order of their coming. Weakly: an interrupt between any two lines leaves no dead member behind."""
        self._timer: asyncio.TimerHandle | None = None
        self._notices: deque[Notice] = deque()

    def join(self, waiter: Waiter) -> None:
        """One more."""
        self._members[weakref.ref(waiter)] = None

    def leave(self, waiter: Waiter) -> None:
        """One less."""
        self._members.pop(weakref.ref(waiter), None)
        if not self._members:
            self._end()

    def _end(self) -> None:
        self._waits.forget(self._key, self)
        self._waiters.remove(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def notify(self, notice: Notice) -> bool:
        self._notices.append(notice)
        return self._soon(self._deliver)

    def tend(self) -> None:
        timer = self._timer
        late = timer is not None and timer.when() + _LATE_S < self._loop.time()
        if late or self._notices or any(_has_left(reference()) for reference in list(self._members)):
            self._soon(self._repair)

    def _soon(self, callback: Callable[[], None]) -> bool:
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            return False  # the loop is closed
        return True

    def _deliver(self) -> None:
        while self._notices:
            self.notice(self._notices[0])
            self._notices.popleft()  # not before: a signal handler may have raised in between

    def _repair(self) -> None:
        self._deliver()
        self.wake_one()  # one that was interrupted while it left may have been chosen
        if self._timer is not None and self._timer.when() < self._loop.time():
            self._timer = None

    def notice(self, notice: Notice) -> None:
        """There is news."""
        sleeping, busy = [], 0
        for reference in list(self._members):
            waiter = reference()
            if waiter is None or waiter.left:  # interrupted while it left
                self._members.pop(reference, None)
            elif waiter.waiting:
                if notice.below is None or waiter.place < notice.below:
                    sleeping.append(waiter)
            else:
                busy += waiter.since_s + _BUSY_S > self._loop.time()
                if waiter.looks:
                    waiter.wake(self)  # it looks again
        if notice.wakes == EVERYONE:
            chosen, chosen_by = sleeping, None
        else:
            chosen, chosen_by = sleeping[: max(0, notice.wakes - busy)], self
            if busy and notice.wakes > len(chosen):
                self.look_in(_BUSY_S)
        for waiter in chosen:
            waiter.wake(chosen_by)
        if not self._members:
            self._end()
        elif notice.look_s is not None:
            self.look_in(notice.look_s)

    def wake_one(self) -> None:
        """Have one of those who sleep look."""
        self.notice(Notice(1))

    def look_in(self, look_s: float) -> None:
        """Have one look after so many seconds at the latest."""
        if look_s == math.inf:
            return
        at_s = self._loop.time() + look_s
        if self._timer is not None:
            if self._timer.when() <= at_s:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(at_s, self._look_now)

    def _look_now(self) -> None:
        self.wake_one()
        self._timer = None


def _has_left(waiter: Waiter | None) -> bool:
    return waiter is None or waiter.left
