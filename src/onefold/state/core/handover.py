"""Taking something from the space in the main thread, where a signal handler may raise between any two instructions.

What is taken (a message, a lock) is somebody's in the space before the program has it in a variable. An exception in between
would leave it to nobody until its lease ends. There are two ways out:

An embedded space commits in the thread that submits, and what became of an interrupted submission is known by its ``Receipt``
(``StateClient.receipt``). So it is taken here, and given back by the mending thread when the receipt says that it was taken.

Any other space hands its appends to another thread anyway. So it is taken there, where no signal interrupts, and noted in a
``Handover``. ``carried_out`` is both; the functions through which what was taken goes to the program are short, and each gives
the handover up when it raises:

    handover = Handover(client, give_back)
    try:
        carried_out(client, shard, lambda by: handover.keep(take()))
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
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from onefold.env import SystemEnv
from onefold.machine import forks, undisturbed
from onefold.shard.receipts import Receipt

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient

T = TypeVar("T")
HERE = "here"
"""Who does something in the main thread, and who ends that when it was interrupted. No object, which would be a cycle."""


def carried_out(client: StateClient, shard: int, work: Callable[[object], T]) -> T:
    """Do what submits to the shard, as if no signal could leave it half done. The deadline of the call around it holds.

    ``work`` is called with who does it. That is ``HERE`` where a signal handler may raise in the middle: then it leaves
    everything as it is, and its caller has it mended (``undisturbed.mend_later``). It is another object where it comes to its
    end, also when the caller is interrupted meanwhile.
    """
    if _thread.get_ident() != forks.main_thread:
        return work(object())
    if client.mends_here[shard]:
        return work(HERE)
    if not isinstance(client.env, SystemEnv):
        return work(object())
    return undisturbed.undisturbed(partial(copy_context().run, work, object()))


def is_broken_off(by: object, error: BaseException) -> bool:
    """Whether a signal handler raised this in what ``by`` does, so that it is mended by another. Any other error is its end."""
    return by is HERE and undisturbed.is_interrupt(error)


class Handover(Generic[T]):
    """Something that was taken and that the caller may not get. Then it is undone, in a thread of its own, once."""

    __slots__ = ("_found", "_interruptible", "_kept", "_undo", "receipt", "result", "taken", "unwanted")

    def __init__(
        self,
        client: StateClient,
        undo: Callable[[T], object],
        receipt: Receipt | None = None,
        found: Callable[[Receipt], T | None] | None = None,
    ) -> None:
        """``receipt``: for a caller that takes it here. ``found``: what was taken by that."""
        self._undo = undo
        self._kept: dict[int, T] = {}
        self._found = found
        self._interruptible = _thread.get_ident() == forks.main_thread and isinstance(client.env, SystemEnv)
        self.receipt = receipt
        self.taken: T | None = None
        """It may turn out to be of no use to the caller."""
        self.result: T | None = None
        self.unwanted = False
        """The caller was interrupted: there is no need to begin."""
        if receipt is None:
            undisturbed.prepare()  # a space that gives receipts did, when it was opened

    def keep(self, result: T) -> None:
        """It has been taken."""
        self._kept[0] = result
        self.result = result
        if self.unwanted:
            self.mend()

    def mend(self) -> None:
        """The caller was interrupted."""
        kept = self._kept.pop(0, None)  # by one of two who come at the same time
        if self._interruptible and (kept is not None or self.receipt is not None):
            # This may take its time, and others wait to be mended.
            undisturbed.mend_apart(partial(self._undone, kept))

    def _undone(self, kept: T | None) -> None:
        """What cannot be undone ends with its lease."""
        kept = self.taken if kept is None else kept
        if kept is None and self.receipt is not None and self._found is not None:
            kept = self._found(self.receipt)
        if kept is not None:
            self._undo(kept)
