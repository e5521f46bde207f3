"""Waiting for one's turn, for a while."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from onefold.backoff import Backoff, Deadline
from onefold.errors import SpaceError, Timeout
from onefold.machine.turn import Turn

_PAUSE_S: Final = (0.005, 0.1)


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
