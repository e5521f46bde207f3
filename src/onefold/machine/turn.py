"""Turns between processes: who has the lock of a file does what only one is to do. The kernel gives it back when its holder dies.

Nobody queues: who does not get it looks again later, or a few times (``waited_turn``). Writers queue, by ``flock``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from onefold.backoff import Backoff, Deadline
from onefold.errors import SpaceError, Timeout
from onefold.machine import forks

_PAUSE_S: Final = (0.005, 0.1)


class Turn:
    """The lock of one file. For one thread at a time; several of one process exclude each other as processes do."""

    def __init__(self, path: Path) -> None:
        """Raises OSError when the file cannot be made or opened."""
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self.held = False
        """Whether it is this one's turn."""
        forks.track(self)

    def take(self) -> bool:
        """Take it if it is free; whether it is held now."""
        if not self.held and self._fd >= 0:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.held = True
        return self.held

    def close(self) -> None:
        """Give it back."""
        fd, self._fd, self.held = self._fd, -1, False
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_UN)  # a child that was forked meanwhile may have the descriptor too
            os.close(fd)

    def drop_after_fork(self) -> None:
        fd, self._fd, self.held = self._fd, -1, False
        if fd >= 0:
            os.close(fd)


@contextlib.contextmanager
def waited_turn(path: Path, timeout_s: float, what: str) -> Iterator[None]:
    """Have the turn of this lock inside the block. ``what`` its holders do. Raises Timeout (definite), SpaceError."""
    try:
        turn = Turn(path)
    except OSError as error:
        raise SpaceError(
            f"{path} cannot be made: {error.strerror}. Choose a place you may write to"
        ) from error
    deadline, backoff = Deadline.after(timeout_s), Backoff(*_PAUSE_S)
    try:
        while not turn.take():
            if deadline.passed:
                raise Timeout(
                    f"another process has been {what} for more than {timeout_s:g} s ({path}); nothing was written. Look for a "
                    "stopped process that uses this space, then try again",
                    definite=True,
                )
            time.sleep(deadline.within(backoff.pause_s()))
        yield
    finally:
        turn.close()
