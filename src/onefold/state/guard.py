"""Keeps plain handles out of a transaction's block.

A plain ``m["k"] = 1`` between a transaction's reads and its commit would happen at once, outside it, and is nearly always a
mistake. So while a block is open, handles of the same database refuse to work in its thread or task.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, NamedTuple

from onefold.errors import TransactionError
from onefold.state.with_place import WithPlace, with_place

if TYPE_CHECKING:
    from onefold.state.client import StateClient


class _Block(NamedTuple):
    database: object
    thread: int
    task: object
    place: WithPlace | None


_open: ContextVar[_Block | None] = ContextVar("onefold_transaction", default=None)


def enter(database: StateClient) -> Token[_Block | None]:
    """A transaction's block begins. Raises TransactionError inside another one of the same database, SpaceError in a forked
    process."""
    database.check_process()
    block = _open.get()
    if block is not None and block.database is database and _is_here(block):
        raise TransactionError(
            "a transaction inside a transaction: use the outer one (pass its `tx` on), or end it first"
        )
    task = _task()
    return _open.set(_Block(database, threading.get_ident(), task, None if task else with_place(2)))


def leave(token: Token[_Block | None]) -> None:
    """The block has ended."""
    _open.reset(token)


def check_plain(database: StateClient, what: str) -> None:
    """Raises TransactionError when a plain handle is used inside a transaction's block of this thread or task, SpaceError in a
    process that was forked after the database was opened."""
    database.check_process()
    block = _open.get()
    if block is not None and block.database is database and _is_here(block):
        raise TransactionError(
            f"{what} was used inside a transaction's block, outside of the transaction. Use tx.{what} there; what a transaction "
            "does not have (taking messages, reading streams, watching, locks) goes before or after the block"
        )


def _is_here(block: _Block) -> bool:
    # A task or thread that the block starts inherits its context, but is not the block.
    if block.thread != threading.get_ident() or block.task is not _task():
        return False
    if block.place is not None and block.place.is_over():
        _open.set(None)  # an interrupt has left the block past its end
        return False
    return True


def _task() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def here() -> tuple[int, object]:
    """This thread and task, to be compared with those of a block."""
    return threading.get_ident(), _task()
