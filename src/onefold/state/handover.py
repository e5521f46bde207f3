"""Taking something from the space in the main thread, where a signal handler may raise between any two instructions.

What is taken (a message, a lock, a membership) is somebody's in the space before the program has it in a variable. An exception
in between would leave it to nobody until its lease ends. So it is taken in another thread, which no signal interrupts, and noted
in a ``Handover``; the functions through which it goes to the program are short, and each gives the handover up when it raises:

    handover = Handover(client, give_back)
    try:
        apart(client, lambda: handover.keep(take()))
        return handover.result
    except BaseException:
        handover.unwanted = True
        undisturbed.mend_later(handover)
        raise

There is no moment between the return and the caller's assignment, or the block of its ``with`` statement: CPython looks for
signals at the entry of functions, after calls of C and at the ends of loops.
"""

from __future__ import annotations

import _thread
import contextlib
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from onefold.env import SystemEnv
from onefold.log import forks, undisturbed

if TYPE_CHECKING:
    from onefold.state.client import StateClient

T = TypeVar("T")


def apart(client: StateClient, work: Callable[[], T]) -> T:
    """Do it to its end, also when the caller is interrupted meanwhile. The deadline of the call around it holds."""
    if _thread.get_ident() != forks.main_thread or not isinstance(client.env, SystemEnv):
        return work()
    return undisturbed.undisturbed(partial(copy_context().run, work))


class Handover(Generic[T]):
    """Something that was taken and that the caller may not get. Then it is undone, in a thread of its own, once."""

    __slots__ = ("_interruptible", "_kept", "_mutex", "_undo", "result", "unwanted")

    def __init__(self, client: StateClient, undo: Callable[[T], object]) -> None:
        self._undo = undo
        self._mutex = _thread.allocate_lock()
        self._kept = False
        self._interruptible = _thread.get_ident() == forks.main_thread and isinstance(client.env, SystemEnv)
        self.result: T | None = None
        self.unwanted = False
        """The caller was interrupted: there is no need to begin."""
        undisturbed.prepare()

    def keep(self, result: T) -> None:
        """It has been taken."""
        with self._mutex:
            self.result, self._kept = result, True
        if self.unwanted:
            self.mend()

    def mend(self) -> None:
        """The caller was interrupted."""
        with self._mutex:
            undoes, self._kept = self._kept and self._interruptible, False
        if undoes:  # which may take its time, and others wait to be mended
            _thread.start_new_thread(self._undone, ())

    def _undone(self) -> None:
        with contextlib.suppress(Exception):  # what cannot be undone ends with its lease
            self._undo(self.result)  # type: ignore[arg-type]
