"""Keeps plain handles out of a transaction's block.

A plain ``m["k"] = 1`` between a transaction's reads and its commit would happen at once, outside it, and is nearly always a
mistake. So while a block is open, handles of the same database refuse to work in its thread or task.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING

from onefold.errors import TransactionError
from onefold.state.core.with_place import WithPlace, with_place

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient


class Block:
    """An open block of a transaction: of which database, and in which thread and task.

    That it is over is noted in the block itself. Every context that has inherited it sees this, so blocks may end in any order,
    and in other threads and tasks than those in which they began.
    """

    __slots__ = ("_ended", "_transaction", "database", "place", "task", "thread")

    def __init__(self, database: object, place: WithPlace | None, transaction: object) -> None:
        """``place``: of its ``with`` statement, when an interrupt may have left the block past its end. ``transaction``: is not
        kept; a block is over when nobody has its transaction any more, or its thread could never use plain handles again."""
        self.database = database
        self.place = place
        self.thread, self.task = here()
        # Not a finalizer: a signal handler may raise in one, and Python throws such an exception away.
        self._transaction = weakref.ref(transaction)
        self._ended = False

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._ended or self._transaction() is None

    def end(self) -> None:
        """It has ended."""
        self._ended = True

    def holds(self, database: object) -> bool:
        """Whether it is open, of that database, and of this thread and task. A task or thread that the block starts inherits
        its context, but is not the block."""
        if self.over or self.database is not database or (self.thread, self.task) != here():
            return False
        place = self.place  # another thread may end the block meanwhile
        if place is not None and place.is_over():
            self.end()
        return not self.over


_running_loop = asyncio._get_running_loop
_open: ContextVar[tuple[Block, ...]] = ContextVar("onefold_transaction", default=())


def enter(database: StateClient, transaction: object) -> Block:
    """A transaction's block begins. Raises TransactionError inside another one of the same database, SpaceError in a forked
    process."""
    database.check_process()
    if _open.get() and _is_inside(database):
        raise TransactionError(
            "a transaction inside a transaction: use the outer one (pass its `tx` on), or end it first"
        )
    block = Block(database, None if _task() else with_place(2), transaction)
    _open.set((*_still_open(), block))
    return block


def leave(block: Block) -> None:
    """The block has ended. From any thread and task; again, it does nothing."""
    block.end()
    block.place = None  # it refers to the frame, whose variables refer to the transaction: only the collector would free them
    _open.set(_still_open())


def check_plain(database: StateClient, what: str) -> None:
    """Raises TransactionError when a plain handle is used inside a transaction's block of this thread or task, SpaceError in a
    process that was forked after the database was opened."""
    database.check_process()
    if _open.get() and _is_inside(database):  # nearly always empty, and every use of a handle asks
        raise TransactionError(
            f"{what} was used inside a transaction's block, outside of the transaction. Use tx.{what} there; what a transaction "
            "does not have (taking messages, reading streams, watching, locks) goes before or after the block"
        )


def _is_inside(database: object) -> bool:
    return any(block.holds(database) for block in _open.get())


def _still_open() -> tuple[Block, ...]:
    blocks = _open.get()
    return blocks and tuple([block for block in blocks if not block.over])


def _task() -> object:
    loop = _running_loop()  # asking for the task where no loop runs raises an error, which costs much more
    return None if loop is None else asyncio.current_task(loop)


def here() -> tuple[int, object]:
    """This thread and task, to be compared with those of a block."""
    return threading.get_ident(), _task()
