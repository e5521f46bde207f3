"""Running a function in a transaction, again when it loses."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

from onefold import config
from onefold.errors import Conflict, InvalidArgument, TransactionError
from onefold.machine.undisturbed import let_pass
from onefold.state.core.time_limits import limited
from onefold.state.transaction import Transaction
from onefold.state.transactions.retries import Retries

if TYPE_CHECKING:
    from onefold.state.core.client import StateClient

R = TypeVar("R")


def run_transaction(
    client: StateClient,
    fn: Callable[[Transaction], R],
    *,
    attempts: int = config.TRANSACTION_ATTEMPTS,
    request_id: str | None = None,
    read_only: bool = False,
) -> R:
    """Run ``fn(tx)`` in a transaction, commit, and return what ``fn`` returned; see ``Database.run_transaction``.

    When it loses it is tried again, with exponential backoff and jitter, up to ``attempts`` times, and then Conflict is raised.
    Nothing else is tried again, nor is an ``if_version`` or ``if_absent`` that did not hold. With a ``request_id`` only the last
    try's rejection is kept under it. If the id was committed by an earlier call, ``fn`` runs on the present state and its result
    is returned, without effect; ask ``db.outcome`` first when that matters.
    """
    _check_fn(fn)
    with limited(client) if client.limited else nullcontext():
        return _run(client, fn, attempts, request_id, read_only)


def _run(
    client: StateClient,
    fn: Callable[[Transaction], R],
    attempts: int,
    request_id: str | None,
    read_only: bool,
) -> R:
    retries = Retries(client, attempts, request_id)
    while True:
        last = retries.begin()
        try:
            with Transaction(client, request_id=request_id, read_only=read_only, last_try=last) as tx:
                result = _call(fn, tx)
            return result  # noqa: RET504 - not inside: the commit comes first
        except Conflict as error:
            let_pass(error)
            if retries.ended_by(error):
                raise
            retries.check_request(error, tx.kept)
        client.shards[0].pause(retries.pause_s())


def _call(fn: Callable[[Transaction], R], tx: Transaction) -> R:
    result = fn(tx)
    if inspect.isawaitable(result):
        _drop(result)
        raise TransactionError(
            "fn returned an awaitable: its reads and writes would come too late. Use onefold.aio for async functions"
        )
    return result


def _check_fn(fn: object) -> None:
    if not callable(fn):
        raise InvalidArgument(f"run_transaction takes a function of the transaction; got {fn!r}")
    if inspect.iscoroutinefunction(fn):
        raise TransactionError("run_transaction takes a plain function; for async functions use onefold.aio")
    if inspect.isgeneratorfunction(fn):
        raise TransactionError("run_transaction takes a plain function; a generator would never be run")


def _drop(awaitable: object) -> None:
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()  # or Python warns of a coroutine that was never awaited
