"""The write lock: writers of all processes of a machine queue in the kernel.

SQLite's own busy handler polls, so with several writers some starve (530 ms against 8 ms measured with six). ``flock``
queues, and the kernel releases it when its holder dies. It has no timeout, so a thread does the waiting when the lock is not
free at once.

A holder that is interrupted at any point leaves the lock in a state from which ``mend`` releases it (see ``undisturbed``).
"""

from __future__ import annotations

import _thread
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

from onefold.errors import Timeout
from onefold.machine import forks, undisturbed
from onefold.machine.undisturbed import Held

_UNLOCK = fcntl.LOCK_UN
_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB
_GRANTED, _GIVEN_UP = "granted", "given up"


class Holder(Protocol):
    """Who takes the lock."""

    ask: Ask | None
    """What it asked the waiting thread for."""
    main: bool
    """Whether it belongs to the main thread, and can be interrupted."""

    def mend(self) -> None:
        """Release what it holds, after it was interrupted."""
        ...


class Ask:
    """What one holder asks the waiting thread for."""

    __slots__ = ("_decided", "_turn", "settled")

    def __init__(self) -> None:
        self._decided: dict[int, str] = {}
        self._turn = _thread.allocate_lock()
        self._turn.acquire()
        self.settled = False
        """The waiting thread has done with it."""

    def wait(self, timeout: float) -> bool:
        """True once the lock is held; False when it is not after ``timeout`` seconds."""
        return self._turn.acquire(True, max(timeout, 0.0)) or not self.give_up()

    def give_up(self) -> bool:
        """No longer want it. False when it is held already."""
        return self._decided.setdefault(0, _GIVEN_UP) is _GIVEN_UP

    def grant(self) -> bool:
        """The lock is held. False when nobody wants it any more."""
        return self._decided.setdefault(0, _GRANTED) is _GRANTED

    def settle(self, *, granted: bool) -> None:
        """The waiting thread has done with it."""
        self.settled = True
        if granted:
            self._turn.release()


class _Stop:
    """The waiting thread is to end."""

    __slots__ = ("closes",)

    def __init__(self, *, closes: bool) -> None:
        self.closes = closes
        """Whether it closes the descriptor."""


class _Plain:
    """A holder that only the lock knows."""

    __slots__ = ("_lock", "ask", "main")

    def __init__(self, lock: WriteLock) -> None:
        self._lock = lock
        self.ask: Ask | None = None
        self.main = undisturbed.in_main_thread()

    def mend(self) -> None:
        self._lock.mend(self)


class WriteLock:
    """An exclusive lock over threads and processes. Not reentrant. Released by the kernel when the process dies."""

    def __init__(self, path: Path) -> None:
        undisturbed.prepare()
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._mutex = Held()
        self._asked: Ask | None = None
        """The last one. Until it is settled, the waiting thread may take the lock or give it back at any moment."""
        self._asks: SimpleQueue[Ask | _Stop] | None = None
        forks.track(self)

    def acquire(self, timeout: float | Callable[[], float], holder: Holder | None = None) -> None:
        """Take the lock. Raises Timeout (definite) after ``timeout`` seconds; a function is asked for them when it has to wait.

        ``holder``: gives it back by ``release``; ``mend`` does when it was interrupted here or later. In the main thread ``mend``
        is called for it when this raises.
        """
        holder = holder or _Plain(self)
        try:
            if self._mutex.take(holder) and self._try():
                return
            timeout_s = timeout if isinstance(timeout, (int, float)) else timeout()
            deadline = time.monotonic() + timeout_s
            if not self._mutex.held_by(holder):
                if not self._mutex.acquire(holder, timeout_s):
                    raise self._too_long(timeout_s)
                if self._try():
                    return
            if not self._ask(holder).wait(deadline - time.monotonic()):
                raise self._too_long(timeout_s)
        except BaseException:
            if holder.main:
                undisturbed.mend_later(holder)
            else:
                self.mend(holder)
            raise

    def wait_for_threads(self, timeout_s: float, holder: Holder) -> None:
        """Wait until no thread of this process has the lock, for at most so long; other processes may have it meanwhile."""
        try:
            self._mutex.acquire(holder, timeout_s)
            self._mutex.release(holder)
        except BaseException:
            if holder.main:
                undisturbed.mend_later(holder)
            else:
                self._mutex.release(holder)
            raise

    def _try(self) -> bool:
        """Take the lock between processes if it is free."""
        if self._asked is not None and not self._asked.settled:
            return False
        try:
            fcntl.flock(self._fd, _TRY)
        except BlockingIOError:
            return False
        return True

    def _ask(self, holder: Holder) -> Ask:
        """Have the waiting thread take the lock for the holder."""
        if self._asks is None:
            asks: SimpleQueue[Ask | _Stop] = SimpleQueue()
            _thread.start_new_thread(_wait_for_grants, (self._fd, asks))
            self._asks = asks
        ask = self._asked = holder.ask = Ask()
        self._asks.put(ask)
        return ask

    def release(self, holder: Holder | None = None) -> None:
        """Give the lock to the next in the queue."""
        mutex = self._mutex
        held = mutex.holder() if holder is None else holder
        if mutex.holder() is held:
            fcntl.flock(self._fd, _UNLOCK)
            mutex.release(held)

    def mend(self, holder: Holder) -> None:
        """Release what an interrupted holder has of it. Not by an interrupted thread."""
        if self._mutex.held_by(holder):
            if self._fd >= 0 and (holder.ask is None or not holder.ask.give_up()):
                fcntl.flock(self._fd, fcntl.LOCK_UN)
            self._mutex.release(holder)

    def _too_long(self, timeout: float) -> Timeout:
        return Timeout(
            f"another writer held {self._path} for {timeout:g} s; nothing was written. "
            "Look for a stopped process that uses this space, then try again",
            definite=True,
        )

    def close(self) -> None:
        """Close the lock's file. Not while it is held."""
        asks, self._asks = self._asks, None
        blocked = self._asked is not None and not self._asked.settled
        # Forgotten in any case: once closed, the number may be anybody's when this process forks.
        fd, self._fd = self._fd, -1
        if asks is not None:
            asks.put(_Stop(closes=blocked and fd >= 0))
        if fd >= 0 and not blocked:  # else the waiting thread closes it when it returns
            os.close(fd)

    def drop_after_fork(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _wait_for_grants(fd: int, asks: SimpleQueue[Ask | _Stop]) -> None:
    """What the waiting thread does: it blocks in ``flock`` so that its caller can give up after a timeout.

    When a caller has given up, the wait continues for the next one; if the lock comes while nobody wants it, it is released at
    once.
    """
    held = False
    while True:
        ask = asks.get()
        if isinstance(ask, _Stop):
            if ask.closes:
                # A child that was forked meanwhile has the descriptor too.
                fcntl.flock(fd, fcntl.LOCK_UN)
                os.close(fd)
            return
        if not held:
            fcntl.flock(fd, fcntl.LOCK_EX)
        granted = ask.grant()
        held = not granted
        if held and asks.empty():
            fcntl.flock(fd, fcntl.LOCK_UN)
            held = False
        ask.settle(granted=granted)
