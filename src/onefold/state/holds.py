"""Grants of locks that nobody may know of: their holder was interrupted before or after the block that they were for.

A lock is taken and released in another thread when the main thread asks for it (``handover.apart``). What is taken for a caller
who was interrupted meanwhile is given up by the ``Hold``. An interrupt can also hit the entry of ``__exit__``, before anything
could note it. But a ``with`` statement refers to its lock while its block runs. So a lock that was taken by a ``with`` statement
and that nobody refers to any more is released at once. One that was taken by ``acquire()`` and forgotten is only renewed no
longer, and expires.
"""

from __future__ import annotations

import _thread
import contextlib
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from onefold.env import SystemEnv
from onefold.log import undisturbed

if TYPE_CHECKING:
    from onefold.state.client import StateClient
    from onefold.state.locks import Lock

_held: dict[int, Hold] = {}
"""Those that are held, by their identity. A weak reference must outlive its object to be called."""


class Hold(weakref.ref["Lock"]):
    """One wait for a lock and what it was granted. A weak reference, whose callback is of C: no signal can interrupt it, and
    whatever comes of it happens in a thread where no signal arrives."""

    def __new__(cls, lock: Lock, client: StateClient) -> Hold:
        undisturbed.prepare()
        if not isinstance(client.env, SystemEnv):  # a simulator has no signals, and its programs no threads
            return super().__new__(cls, lock, None)
        return super().__new__(cls, lock, undisturbed.mend_later)

    def __init__(self, lock: Lock, client: StateClient) -> None:
        self._mends = isinstance(client.env, SystemEnv)
        self._release: Callable[[int], object] = lock.releaser()
        self.in_block = False
        """A ``with`` statement took it."""
        self.token: int | None = None
        """The grant, while it is held."""
        self._mutex = _thread.allocate_lock()
        self._ends = False
        self._over = _thread.allocate_lock()
        self._over.acquire()
        self.unwanted = False
        """Its caller was interrupted."""

    def keep(self, token: int) -> None:
        """It was granted."""
        with self._mutex:
            self.token = token
            if self._mends:
                _held[id(self)] = self
        if self.unwanted:
            self.mend()

    def end(self) -> None:
        """It was released, or not granted."""
        with self._mutex:
            self.token = None
            _held.pop(id(self), None)
        with contextlib.suppress(RuntimeError):
            self._over.release()

    def wait_until_over(self, timeout_s: float) -> bool:
        """Wait until what the interrupted caller did not get, or did not give up, has been given up; whether it has."""
        over = self._over.acquire(True, timeout_s)
        if over:
            self._over.release()
        return over

    def mend(self) -> None:
        """The caller was interrupted, or nobody refers to the lock any more."""
        with self._mutex:
            begins = self._mends and self.token is not None and not self._ends
            self._ends = self._ends or begins
        if begins:  # which may take its time, and others wait to be mended
            _thread.start_new_thread(self._give_up, ())

    def _give_up(self) -> None:
        lock, token = self(), self.token
        try:
            if token is None:
                return
            with contextlib.suppress(Exception):  # what cannot be released expires
                if lock is not None:
                    lock.give_up(token)
                elif self.in_block or self.unwanted:
                    self._release(token)
        finally:
            self.end()
