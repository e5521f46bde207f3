"""Leases: who observes that one is over, and who renews one.

No lease ends by the time of the log: stamps come from many machines. Instead an *observer*, any process that waits for what is
leased, notes on its own boot clock when it first saw a lease in its present state (its *epoch*). Sees it the same epoch a
lease's length later, nobody has renewed it meanwhile, and it appends an operation that ends the lease of that epoch; the fold
accepts this for the present epoch only. So a renewal that comes first wins, a clock that is wrong about the date harms nothing,
and a suspended machine has not the impression that no time went by. A process that is known to be dead need not be waited for.

Source of the idea: C. Gray, D. Cheriton, "Leases: an efficient fault-tolerant mechanism for distributed file cache
consistency", SOSP 1989.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Hashable, Iterable
from functools import partial
from queue import Empty, SimpleQueue
from typing import NamedTuple, Protocol

from onefold import config
from onefold.env import Env, SystemEnv
from onefold.errors import Conflict, OnefoldError, SpaceError
from onefold.fold.space import Space
from onefold.log.undisturbed import undisturbed
from onefold.state.client import StateClient

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
        self._seen: dict[Hashable, dict[int, tuple[int, float]]] = {}
        """For each subject: what -> (epoch, when it was first seen)."""
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

    def look(self, space: Space, subject: Hashable, leases: Iterable[Lease]) -> list[Ended]:
        """Which of the subject's leases are over. ``leases``: all of them, in their present state."""
        now = self._env.boot_s()
        alive: dict[str, bool | None] = {}
        ended: list[Ended] = []
        with self._mutex:
            before = self._seen.get(subject, {})
            seen: dict[int, tuple[int, float]] = {}
            for lease in leases:
                if lease.member not in alive:
                    alive[lease.member] = space.member_alive(lease.member)
                epoch, since = before.get(lease.what, (lease.epoch, now))
                if epoch < lease.epoch:
                    since = now
                elif epoch > lease.epoch:
                    continue  # an old view: another thread has seen it renewed
                seen[lease.what] = (lease.epoch, since)
                if alive[lease.member] is False:
                    ended.append(Ended(lease, True))
                elif now - since >= lease.lease_s:
                    ended.append(Ended(lease, False))
            if seen:
                self._seen[subject] = seen
            else:
                self._seen.pop(subject, None)
        return ended


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
    """

    def __init__(self, client: StateClient) -> None:
        self._client = weakref.ref(client)
        self._env = client.env
        self._mutex = threading.Lock()
        self._changed: SimpleQueue[None] = SimpleQueue()
        """Wakes the thread. Of C, so that an interrupt cannot leave it locked, as it could an event."""
        self._next: weakref.WeakKeyDictionary[Renewable, _Turn] = weakref.WeakKeyDictionary()
        self._thread: threading.Thread | None = None

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None

    def add(self, held: Renewable) -> None:
        """Renew it from now on. Does nothing under a simulator, which has no threads: there ``renew`` is called otherwise."""
        if not isinstance(self._env, SystemEnv):
            return
        undisturbed(partial(self._add, held))

    def _add(self, held: Renewable) -> None:
        with self._mutex:
            self._next[held] = _Turn(self._env.boot_s() + held.renew_every_s)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="onefold-renewer", daemon=True)
                self._thread.start()
        self._changed.put(None)

    def remove(self, held: Renewable) -> None:
        """Renew it no longer. A renewal that is under way may still happen."""
        undisturbed(partial(self._remove, held))

    def _remove(self, held: Renewable) -> None:
        with self._mutex:
            self._next.pop(held, None)
        self._changed.put(None)

    def _run(self) -> None:
        while True:
            with self._mutex:
                while not self._changed.empty():
                    self._changed.get()
                if self._is_closed():
                    self._next.clear()
                due = min((turn.at_s for turn in self._next.values()), default=None)
                if due is None:
                    self._thread = None
                    return
            with contextlib.suppress(Empty):
                self._changed.get(timeout=min(max(0.0, due - self._env.boot_s()), _CLOSED_CHECK_S))
                continue
            now = self._env.boot_s()
            with self._mutex:
                held = [(one, turn) for one, turn in self._next.items() if turn.at_s <= now]
            while held:
                self._renew(*held.pop())

    def _renew(self, held: Renewable, turn: _Turn) -> None:
        wait_s = held.renew_every_s
        try:
            going_on = held.renew()
        except (Conflict, SpaceError):
            going_on = False
        except OnefoldError:
            going_on, wait_s = True, wait_s / 4
        with self._mutex:
            turn.at_s = self._env.boot_s() + wait_s
            if (
                not going_on and self._next.get(held) is turn
            ):  # else it was given up, and perhaps got again, meanwhile
                del self._next[held]

    def _is_closed(self) -> bool:
        client = self._client()
        if client is None:
            return True
        try:
            client.spaces[0].member_alive(client.spaces[0].member)
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
