"""The write lock: writers of all processes of a machine queue in the kernel.

SQLite's own busy handler polls, so with several writers some starve (530 ms against 8 ms measured with six). ``flock``
queues, and the kernel releases it when its holder dies. It has no timeout, so a thread does the waiting when the lock is not
free at once.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path

from onefold.errors import Timeout
from onefold.log import forks


class WriteLock:
    """An exclusive lock over threads and processes. Not reentrant. Released by the kernel when the process dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._mutex = threading.Lock()
        self._helper: _Helper | None = None
        forks.track(self)

    def acquire(self, timeout: float) -> None:
        """Take the lock. Raises Timeout (definite) after ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        if not self._mutex.acquire(timeout=max(timeout, 0.0)):
            raise self._too_long(timeout)
        try:
            if self._helper is None or not self._helper.waiting:
                try:
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                except BlockingIOError:
                    pass
            if self._helper is None:
                self._helper = _Helper(self._fd)
            if not self._helper.wait(deadline - time.monotonic()):
                raise self._too_long(timeout)
        except BaseException:
            self._mutex.release()
            raise

    def release(self) -> None:
        """Give the lock to the next in the queue."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)
        self._mutex.release()

    def _too_long(self, timeout: float) -> Timeout:
        return Timeout(
            f"another writer held {self._path} for {timeout:g} s; nothing was written. "
            "Look for a stopped process that uses this space, then try again",
            definite=True,
        )

    def close(self) -> None:
        """Close the lock's file. Not while it is held."""
        helper, self._helper = self._helper, None
        blocked = helper is not None and helper.stop()
        # Forgotten in any case: once closed, the number may be anybody's when this process forks.
        fd, self._fd = self._fd, -1
        if fd >= 0 and not blocked:  # else the helper closes it when it returns
            os.close(fd)

    def drop_after_fork(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class _Helper:
    """A thread that blocks in ``flock`` so that its caller can give up after a timeout.

    One wait at a time. When a caller gave up, the wait goes on; the next caller joins it, and if the lock comes
    while nobody waits it is released at once.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._state = threading.Lock()
        self._asked = threading.Semaphore(0)
        self._granted = threading.Event()
        self._wanted = False
        self._stopping = False
        self.waiting = False
        threading.Thread(target=self._run, name="onefold-write-lock", daemon=True).start()

    def wait(self, timeout: float) -> bool:
        """True once the lock is held; False when it is not after ``timeout`` seconds."""
        with self._state:
            self._wanted = True
            if not self.waiting:
                self.waiting = True
                self._granted.clear()
                self._asked.release()
        try:
            self._granted.wait(max(timeout, 0.0))
        finally:
            with self._state:
                self._wanted = False
                held = self._granted.is_set()
                self._granted.clear()
                if held:
                    self.waiting = False
        return held

    def stop(self) -> bool:
        """End the thread. True when it is blocked: it then closes the descriptor itself, later."""
        with self._state:
            self._stopping = True
            self._asked.release()
            return self.waiting

    def _run(self) -> None:
        while True:
            self._asked.acquire()
            if self._stopping and not self.waiting:
                return
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            with self._state:
                if self._stopping:
                    # A child that was forked meanwhile has the descriptor too.
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
                    os.close(self._fd)
                    return
                if self._wanted:
                    self._granted.set()
                else:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
                    self.waiting = False
