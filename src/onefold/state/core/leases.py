"""Leases: who observes that one is over, and who renews one.

No lease ends by the time of the log: stamps come from many machines. Instead an *observer*, any process that waits for what is
leased, notes on its own boot clock when it first saw a lease in its present state (its *epoch*). If it still sees that epoch
one lease length later, nobody has renewed it meanwhile, and it appends an operation that ends the lease of that epoch; the fold
accepts this for the present epoch only. So a renewal that comes first wins, a clock that is wrong about the date harms nothing,
and a machine that was suspended knows that time has passed. A process that is known to be dead need not be waited for.

Source of the idea: C. Gray, D. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache
consistency", SOSP 1989.
"""

from __future__ import annotations

import contextlib
import math
import threading
import weakref
from collections import deque
from collections.abc import Hashable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from onefold import config
from onefold.env import Env, SystemEnv
from onefold.errors import Conflict, OnefoldError, SpaceError
from onefold.machine.undisturbed import undisturbed
from onefold.shard.api import Shard
from onefold.state.core.client import StateClient

_CLOSED_CHECK_S = 1.0


class Lease(NamedTuple):
    """A lease as it is seen now."""

    what: int
    """A message's number, a lock's token."""
    epoch: int
    lease_s: float
    member: str
    """The process that has it."""


class Ended(NamedTuple):
    """A lease that is over."""

    lease: Lease
    died: bool
    """Its process is known to be dead (else: it was silent)."""


class Observer:
    """What this process has seen of leases. Remembers those of the last look only. Thread-safe."""

    def __init__(self, env: Env) -> None:
        self._env = env
        self._mutex = threading.Lock()
        self._seen: dict[Hashable, dict[int, tuple[int, float, float]]] = {}
        """For each subject: what -> (epoch, when it was first seen, when it is over without a renewal)."""
        self._looked: dict[Hashable, float] = {}

    def due(self, subject: Hashable) -> bool:
        """Whether it is time to look at that subject's leases; the caller is then the one who looks."""
        now = self._env.boot_s()
        with self._mutex:
            last = self._looked.get(subject)
            if last is not None and now - last < config.LEASE_LOOK_S:
                return False
            self._looked[subject] = now
            return True

    def look(self, shard: Shard, subject: Hashable, leases: Iterable[Lease]) -> list[Ended]:
        """Which of the subject's leases are over. ``leases``: all of them, in their present state."""
        now = self._env.boot_s()
        alive: dict[str, bool | None] = {}
        ended: list[Ended] = []
        with self._mutex:
            before = self._seen.get(subject, {})
            seen: dict[int, tuple[int, float, float]] = {}
            for lease in leases:
                if lease.member not in alive:
                    alive[lease.member] = shard.member_alive(lease.member)
                epoch, since, _ = before.get(lease.what, (lease.epoch, now, now))
                if epoch < lease.epoch:
                    since = now
                elif epoch > lease.epoch:
                    seen[lease.what] = before[lease.what]  # an old view: another thread has seen it renewed
                    continue
                seen[lease.what] = (lease.epoch, since, since + lease.lease_s)
                if alive[lease.member] is False:
                    ended.append(Ended(lease, True))
                elif now - since >= lease.lease_s:
                    ended.append(Ended(lease, False))
            if seen:
                self._seen[subject] = seen
            else:
                self._seen.pop(subject, None)
        return ended

    def left_s(self, subject: Hashable, what: int) -> float | None:
        """Seconds until that lease of the subject, as it was last seen, would be over without a renewal. None: it was not
        seen, and has to be looked at soon: anyone who is about to look may not come to it."""
        now = self._env.boot_s()
        with self._mutex:
            seen = self._seen.get(subject, {}).get(what)
            return None if seen is None else seen[2] - now


class Renewable(Protocol):
    """Something held whose lease can be renewed."""

    @property
    def renew_every_s(self) -> float:
        """How long after one renewal the next one comes."""
        ...

    def renew(self) -> bool:
        """Renew it; False when it is over. May raise: then it is tried again soon."""
        ...


class _Turn:
    """When something held is renewed next. A new one each time that it is held."""

    __slots__ = ("at_s",)

    def __init__(self, at_s: float) -> None:
        self.at_s = at_s


class Renewer:
    """One thread that renews whatever this process holds, and ends when that is nothing or the space is closed. Thread-safe.

    What nobody refers to any more is not renewed, so a lock that was forgotten while it was held becomes free.

    The thread alone has the list of what is held; ``add`` and ``remove`` only leave it a note, by one step of C. So an interrupt
    leaves no lock behind, and what is held for a moment only does not wake the thread.
    """

    def __init__(self, client: StateClient) -> None:
        self._client = weakref.ref(client)
        self._env = client.env
        self._notes: deque[tuple[weakref.ref[Renewable], _Turn | None]] = deque()
        """What is held from now on, and until when it need not be renewed; None: no longer."""
        self._next: weakref.WeakKeyDictionary[Renewable, _Turn] = weakref.WeakKeyDictionary()
        self._woken: SimpleQueue[None] = SimpleQueue()
        """Wakes the thread. Of C, so that an interrupt cannot leave it locked, as it could an event."""
        self._wakes_s = math.inf
        """When the thread looks at its notes without being woken."""
        self._threads: dict[int, object] = {}
        """The thread that is there."""

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return bool(self._threads)

    def add(self, held: Renewable) -> None:
        """Renew it from now on. Does nothing under a simulator, which has no threads: there ``renew`` is called otherwise."""
        if not isinstance(self._env, SystemEnv):
            return
        at_s = self._env.boot_s() + held.renew_every_s
        self._notes.append((weakref.ref(held), _Turn(at_s)))
        if not self._threads:
            undisturbed(self._start)
        elif at_s < self._wakes_s:
            self._woken.put(None)

    def remove(self, held: Renewable) -> None:
        """Renew it no longer. A renewal that is under way may still happen."""
        if self._threads:
            self._notes.append((weakref.ref(held), None))

    def _start(self) -> None:
        me = object()
        if self._threads.setdefault(0, me) is me:
            threading.Thread(target=self._run, args=(me,), name="onefold-renewer", daemon=True).start()

    def _run(self, me: object) -> None:
        while True:
            self._wakes_s = math.inf  # a note that comes now wakes the next wait
            idle = not self._read_notes()
            if self._is_closed():
                self._next.clear()
                idle = True
            due = min((turn.at_s for turn in self._next.values()), default=math.inf)
            if idle and not self._next:  # else something was held lately, and may be held again soon
                del self._threads[0]
                if not self._notes or self._threads.setdefault(0, me) is not me:
                    return
                continue
            wait_s = min(max(0.0, due - self._env.boot_s()), _CLOSED_CHECK_S)
            self._wakes_s = self._env.boot_s() + wait_s
            with contextlib.suppress(Empty):
                self._woken.get(timeout=wait_s)
                continue
            self._read_notes()
            now = self._env.boot_s()
            held = [(one, turn) for one, turn in self._next.items() if turn.at_s <= now]
            while held:
                self._renew(*held.pop())

    def _read_notes(self) -> bool:
        """Whether there were any."""
        while not self._woken.empty():
            self._woken.get()
        found = bool(self._notes)
        while self._notes:
            reference, turn = self._notes.popleft()
            held = reference()
            if held is not None and turn is not None:
                self._next[held] = turn
            elif held is not None:
                self._next.pop(held, None)
        return found

    def _renew(self, held: Renewable, turn: _Turn) -> None:
        wait_s = held.renew_every_s
        try:
            going_on = held.renew()
        except (Conflict, SpaceError):
            going_on = False
        except OnefoldError:
            going_on, wait_s = True, wait_s / 4
        turn.at_s = self._env.boot_s() + wait_s
        if not going_on:
            self._next.pop(held, None)  # one that was got again meanwhile has left a note

    def _is_closed(self) -> bool:
        client = self._client()
        if client is None:
            return True
        try:
            client.shards[0].member_alive(client.shards[0].member)
        except SpaceError:
            return True
        return False


class Keeper(NamedTuple):
    """The leases of one open database, seen from this process."""

    observer: Observer
    renewer: Renewer


_keepers: weakref.WeakKeyDictionary[StateClient, Keeper] = weakref.WeakKeyDictionary()
_making = threading.Lock()


def keeper(client: StateClient) -> Keeper:
    """The observer and the renewer that all handles of the client share."""
    found = _keepers.get(client)
    return undisturbed(partial(_made, client)) if found is None else found


def _made(client: StateClient) -> Keeper:
    with _making:
        found = _keepers.get(client)
        if found is None:
            found = _keepers[client] = Keeper(Observer(client.env), Renewer(client))
        return found
