"""Grants of locks that nobody may know of: their holder was interrupted before or after the block that they were for.

What becomes of an interrupted wait, or of an interrupted release, is a matter for the ``Hold``. In a thread of its own it waits
until the operation that was broken off is decided, and has the space forget the holder's name (which every wait makes before it
asks), whether that stands in the line or has the lock. Where the main thread has another thread ask (``carried_out``), that one
notices.

An interrupt can also hit the entry of ``__exit__``, before anything could note it. But a ``with`` statement refers to its lock
while its block runs. So a lock that was taken by a ``with`` statement and that nobody refers to any more is released at once. One
that was taken by ``acquire()`` and forgotten is only renewed no longer, and expires.

Nothing here takes a lock of threads: anyone who had it could be interrupted.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Protocol

from onefold.env import SystemEnv
from onefold.machine import undisturbed
from onefold.machine.undisturbed import Waiters
from onefold.shard.receipts import Receipt
from onefold.state.core.cancelling import GivenUp, never
from onefold.state.core.handover import HERE

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient
    from onefold.state.locks.lock import Lock

_held: dict[int, Hold] = {}
"""Those that are held, by their identity. A weak reference must outlive its object to be called."""


class Withdraw(Protocol):
    """Has the space forget a holder, without a reference to the lock object."""

    def __call__(self, holder: str) -> object: ...


class Hold(weakref.ref["Lock"]):
    """One wait for a lock and what it was granted. A weak reference, whose callback is of C: no signal can interrupt it, and
    whatever comes of it happens in a thread where no signal arrives."""

    def __new__(cls, lock: Lock, client: StateClient, withdraw: Withdraw, receipt: Receipt | None) -> Hold:  # noqa: ARG004
        undisturbed.prepare()
        if not isinstance(client.env, SystemEnv):  # a simulator has no signals, and its programs no threads
            return super().__new__(cls, lock, None)
        return super().__new__(cls, lock, undisturbed.mend_later)

    def __init__(self, lock: Lock, client: StateClient, withdraw: Withdraw, receipt: Receipt | None) -> None:  # noqa: ARG002
        """``receipt``: where a caller asks by itself also where it can be interrupted."""
        self._mends = isinstance(client.env, SystemEnv)
        self._withdraw = withdraw
        self.holder = client.env.token(12).hex()
        """The name of this wait."""
        self.receipt = receipt
        """Of the operation that asks for it or releases it."""
        self.asked = False
        """The space may know the name. Until then nothing has to be forgotten there."""
        self.in_block = False
        """A ``with`` statement took it."""
        self.token: int | None = None
        """The grant, until it has been released."""
        self.over = False
        """It was released, or not granted."""
        self.unwanted = False
        """Its caller was interrupted."""
        self.given_up: GivenUp = never
        """Whether its caller does not want it any more: it ends soon."""
        self._ends: dict[int, object] = {}
        """Who releases it."""
        self._waiters = Waiters()

    def keep(self, token: int) -> None:
        """It was granted."""
        self.token = token
        if self._mends:
            _held[id(self)] = self
        if self.unwanted:
            self.mend()

    def end(self) -> None:
        """It was released, or not granted."""
        self.token = None
        self.over = True
        _held.pop(id(self), None)
        self._waiters.notify()

    def wait_until_over(self, timeout_s: float) -> bool:
        """Wait until what the interrupted caller did not get, or did not give up, has been given up; whether it has."""
        return self._waiters.wait_for(lambda: self.over, timeout_s)

    def ends(self, by: object) -> bool:
        """Whether that is what releases it: the first that asks."""
        return self._ends.setdefault(0, by) is by

    def mend(self) -> None:
        """The caller was interrupted, or nobody refers to the lock any more."""
        if (
            not self._mends
            or self.over
            or (self.token is None and (self.receipt is None or not self.unwanted))
        ):
            return
        if self.ends(HERE):  # which may take its time, and others wait to be mended
            undisturbed.mend_apart(self.give_up)

    def give_up(self) -> None:
        """Have it released, where no signal arrives and others need not wait for it. By who ``ends`` it."""
        try:
            lock = self()
            if lock is not None:
                lock.lose(self)
            del lock
            if self.receipt is not None:
                self.receipt.outcomes()  # what was broken off is decided now
            if self.asked and (self.unwanted or self.in_block or self() is not None):
                self._withdraw(self.holder)  # what cannot be released expires
        finally:
            lock = self()
            if lock is not None:
                lock.forget(self)
            self.end()
