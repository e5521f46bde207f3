"""Locks in the state fold.

A lock that somebody has is a row; who waits is in a list, in the order of asking, and gets it without asking again. The fencing
token is the offset of the grant, so tokens grow from grant to grant. (Two grants at one offset happen only when the first of
them was withdrawn in the same record, by one who never saw its token.) See ``leases`` for how a dead holder loses it.
"""

from __future__ import annotations

import struct
from typing import get_args

import msgspec

from onefold import config
from onefold.fold.api import Context, Store, StoreView
from onefold.invariants import invariant
from onefold.state.fold.kind import Kind
from onefold.state.fold.locks.ops import Acquire, ExpireLock, LockOp, Release, Renew, Withdraw
from onefold.state.fold.outcomes import Answer, Outcome, Rejected

LOCKS = "state/locks"
"""Name -> ``Row``; not there: free."""
WAITERS = "state/lockwait"
"""(length of the name, name, ticket) -> ``Waiter``."""
LOST = "lost"
CROWDED = "crowded"

_LENGTH = struct.Struct(">H")
_TICKET = struct.Struct(">Q")
_PLACES = 1 << 14
"""Above the number of operations in a record, so that tickets of one record differ."""


class Waiter(msgspec.Struct, frozen=True, array_like=True):
    """Who asks for a lock."""

    member: str
    holder: str
    ttl_ms: int


class Row(msgspec.Struct, frozen=True, array_like=True):
    """A lock that somebody has."""

    token: int
    renewals: int
    by: Waiter
    waiting: int
    """How many wait: as many as there are rows of waiters, so never below zero."""


_encoder = msgspec.msgpack.Encoder()
_rows: msgspec.msgpack.Decoder[Row] = msgspec.msgpack.Decoder(Row)
_waiters: msgspec.msgpack.Decoder[Waiter] = msgspec.msgpack.Decoder(Waiter)


def read_row(view: StoreView, name: str) -> Row | None:
    """The lock, or None when it is free."""
    found = view.get(LOCKS, name.encode())
    return None if found is None else _rows.decode(found)


def is_waiting(view: StoreView, name: str, ticket: int) -> bool:
    """Whether the one with that ticket still waits."""
    return view.get(WAITERS, _prefix(name) + _TICKET.pack(ticket)) is not None


def first_waiting(view: StoreView, name: str) -> int | None:
    """The ticket of the first one who waits; None when nobody does."""
    first = next(view.scan(WAITERS, *_range(name), limit=1), None)
    return None if first is None else int(_TICKET.unpack(first[0][-_TICKET.size :])[0])


def apply_op(store: Store, context: Context, op: LockOp, fold_version: int) -> Outcome:  # noqa: ARG001
    """Apply an operation of a lock."""
    if not 0 < len(op.lock.encode()) <= config.NAME_BYTES_MAX:
        return Rejected("malformed", op.lock[:100])
    row = read_row(store, op.lock)
    match op:
        case Acquire():
            return _acquire(store, context, op, row)
        case Withdraw():
            return Answer(_withdraw(store, context, op, row))
    if row is None or row.token != op.token or (isinstance(op, ExpireLock) and row.renewals != op.renewals):
        return Rejected(LOST, op.lock)
    match op:
        case Renew():
            _write(store, op.lock, Row(row.token, row.renewals + 1, row.by, row.waiting))
        case Release() | ExpireLock():
            _pass_on(store, context, op.lock, row)
    return Answer(None)


def _acquire(store: Store, context: Context, op: Acquire, row: Row | None) -> Outcome:
    asks = Waiter(op.member, op.holder, op.ttl_ms)
    if row is None:
        _write(store, op.lock, Row(context.offset, 0, asks, 0))
        return Answer((context.offset, 0))
    if not op.wait:
        return Answer((0, 0))
    if row.waiting >= config.LOCK_WAITERS_MAX:
        return Rejected(CROWDED, op.lock)
    ticket = context.offset * _PLACES + context.index
    store.put(WAITERS, _prefix(op.lock) + _TICKET.pack(ticket), _encoder.encode(asks))
    _write(store, op.lock, Row(row.token, row.renewals, row.by, row.waiting + 1))
    return Answer((0, ticket))


def _withdraw(store: Store, context: Context, op: Withdraw, row: Row | None) -> bool:
    if row is None:
        return False
    if row.by.holder == op.holder:
        _pass_on(store, context, op.lock, row)
        return True
    start, stop = _range(op.lock)
    for key, waiter in store.scan(WAITERS, start, stop):
        if _waiters.decode(waiter).holder == op.holder:
            store.delete(WAITERS, key)
            _write(store, op.lock, Row(row.token, row.renewals, row.by, row.waiting - 1))
            return True
    return False


def _pass_on(store: Store, context: Context, name: str, row: Row) -> None:
    """The holder is done: the lock goes to the first who waits, or is free."""
    first = next(store.scan(WAITERS, *_range(name), limit=1), None)
    if first is None:
        store.delete(LOCKS, name.encode())
        return
    store.delete(WAITERS, first[0])
    _write(store, name, Row(context.offset, 0, _waiters.decode(first[1]), row.waiting - 1))


def _write(store: Store, name: str, row: Row) -> None:
    invariant(row.waiting >= 0, "no fewer than none wait for a lock", lock=name, row=row)
    store.put(LOCKS, name.encode(), _encoder.encode(row))


def _prefix(name: str) -> bytes:
    encoded = name.encode()
    return _LENGTH.pack(len(encoded)) + encoded


def _range(name: str) -> tuple[bytes, bytes]:
    prefix = _prefix(name)
    return prefix, prefix + b"\xff" * 9


KIND = Kind(operations=get_args(LockOp), apply_op=apply_op)
