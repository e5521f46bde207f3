"""What became of a submission whose caller was interrupted before it had the answer.

A submission of the main thread can be broken off by a signal handler between any two instructions: when it was appended already,
or while another thread appends it along with its own. A ``Receipt`` that is handed in with the operations tells afterwards. So
what an operation has taken can be given back, without handing every operation to a thread that no signal interrupts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from onefold import config
from onefold.backoff import wait_until

_LOOK_S = 0.002


class Submitted(Protocol):
    """One submission, as its appender keeps it."""

    outcomes: Sequence[bytes] | None
    look_up: Callable[[], Sequence[bytes] | None] | None
    gone: bool

    @property
    def answered(self) -> bool:
        """Whether what became of it is known."""
        ...

    def give_up(self) -> bool:
        """It will never be appended. False when that was begun before."""
        ...


class Receipt:
    """For one operation at a time: the latest submission that it was handed in with counts."""

    __slots__ = ("submission",)

    def __init__(self) -> None:
        self.submission: Submitted | None = None

    def outcomes(self) -> Sequence[bytes] | None:
        """What was appended; None when nothing was, nor will be (or nobody can tell). Waits for an append that is under way, and
        may read the space, so not in the thread that mends, but after it has mended the submission. Raises what reading does."""
        mine = self.submission
        if mine is None:
            return None
        mine.gone = True
        if not mine.answered and mine.look_up is not None:
            return mine.look_up()
        # An append that fails for now puts it back, and nobody takes one that is gone: then it can be given up.
        wait_until(lambda: mine.answered or mine.give_up(), config.APPEND_RETRY_S, _LOOK_S)
        return mine.outcomes
