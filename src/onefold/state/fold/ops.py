"""The operations of the state fold, and their results.

Everything that changes shared state is one of these, travelling as the body of an operation for the fold ``state``. A
transaction is a single ``Commit``: what it read, and what it writes. Keys are encoded (``state.encoding.keys``), values are
bytes that the fold does not look into, except for increments.

Writes are grouped by collection kind: here those of maps; those of queues, locks and streams are in ``state.fold.queues.ops``,
``state.fold.locks.ops`` and ``state.fold.streams.ops``; the steps of a transaction over several shards in
``state.fold.shards.ops``.
"""

from __future__ import annotations

from typing import Any

import msgspec

from onefold.codec import Op, decode_anywhere
from onefold.fold.api import PASSING
from onefold.state.fold.locks.ops import LockOp
from onefold.state.fold.queues.ops import QueueOp, QueueWrite
from onefold.state.fold.shards.ops import Decide, Forget, Resolve
from onefold.state.fold.streams.ops import StreamOp, StreamWrite

STATE_FOLD = "state"
"""The name of the fold."""


class Put(msgspec.Struct, frozen=True, array_like=True, tag="put"):
    """Set keys of a map. Blind: never conflicts. Result: None."""

    map: str
    items: tuple[tuple[bytes, bytes], ...]
    ttl_ms: int | None = None
    """They end at the first record whose fold time is this much later than that of this record."""


class Delete(msgspec.Struct, frozen=True, array_like=True, tag="del"):
    """Remove keys of a map. Blind. Result: how many of them were there."""

    map: str
    keys: tuple[bytes, ...]


class Clear(msgspec.Struct, frozen=True, array_like=True, tag="clr"):
    """Remove all keys with ``start <= key < stop``. Blind. Result: None."""

    map: str
    start: bytes
    stop: bytes


class Increment(msgspec.Struct, frozen=True, array_like=True, tag="inc"):
    """Add to a number; a key that is not there counts as 0. Blind. Result: the new value's bytes.

    Rejected when what is there is no number.
    """

    map: str
    key: bytes
    by: bytes
    """An encoded int or float."""
    ttl_ms: int | None = None
    """The lifetime of the key when this makes it."""


MapWrite = Put | Delete | Clear | Increment
Write = MapWrite | QueueWrite | StreamWrite


class Read(msgspec.Struct, frozen=True, array_like=True):
    """A key that was read and the version that was seen; offset 0: it was not there."""

    map: str
    key: bytes
    offset: int
    index: int


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A range of a map, ``start <= key < stop``, that was read at ``offset``."""

    map: str
    start: bytes
    stop: bytes
    offset: int


class Commit(msgspec.Struct, frozen=True, array_like=True, tag="commit"):
    """All writes, iff nothing that was read has changed. Answer: ``Committed`` or ``Rejected``."""

    reads: tuple[Read, ...]
    spans: tuple[Span, ...]
    writes: tuple[Write, ...]
    last_try: bool = True
    """Whether a rejection is kept under the request id. A rejected try that will be followed by another is not kept."""


class Prepare(msgspec.Struct, frozen=True, array_like=True, tag="prep"):
    """One shard's part of a transaction over several: vote, and lock what it reads and writes. Answer: ``Voted``."""

    transaction: str
    home: int
    """The shard that decides."""
    participants: tuple[int, ...]
    reads: tuple[Read, ...]
    """One whose offset is ``UNREAD`` is locked, and not compared with what is there."""
    spans: tuple[Span, ...]
    """Likewise."""
    writes: tuple[Write, ...]
    member: str = ""
    """The coordinator's process, as ``Shard.member_alive`` of the home shard knows it."""


UNREAD = -1
"""In place of an offset: nothing was read yet."""

StateOp = Commit | Prepare | Decide | Resolve | Forget | QueueOp | LockOp | StreamOp


class Committed(msgspec.Struct, frozen=True, array_like=True, tag="ok"):
    """It happened, at (offset, index); one result for each write, in order."""

    offset: int
    index: int
    results: tuple[Any, ...] = ()


class Rejected(msgspec.Struct, frozen=True, array_like=True, tag="no"):
    """It did not happen and nothing was written."""

    reason: str
    """``conflict``, ``too_old``, ``not_a_number``, ``malformed``, or a word of the operation's own."""
    detail: str = ""
    """Of a conflict: the collection."""
    key: bytes = b""
    """Of a conflict: the key that changed."""


class Blocked(msgspec.Struct, frozen=True, array_like=True, tag="blocked"):
    """It met locks of transactions over several shards, and did nothing. Resolve them and try again under a new number."""

    transactions: tuple[tuple[str, int], ...]
    """Each with its home shard."""


class Voted(msgspec.Struct, frozen=True, array_like=True, tag="vote"):
    """A shard's vote on a transaction."""

    yes: bool
    offset: int
    """Of the Prepare."""
    reason: str = ""
    """Of a no: ``locked``, ``busy``, ``resolved``, or that of a ``Rejected``."""
    detail: str = ""
    key: bytes = b""
    blockers: tuple[tuple[str, int], ...] = ()
    """Of ``locked``: the transactions that hold the locks, each with its home shard."""


class Decided(msgspec.Struct, frozen=True, array_like=True, tag="decided"):
    """What the home shard has decided: the first ``Decide`` wins, later callers get that decision."""

    transaction: str
    """With a request id this may be an earlier one: the request was decided before."""
    commit: bool
    offset: int
    index: int
    known: bool = True
    """False: this shard does not know the transaction (any more); nothing will commit it from now on, and it may have been
    committed so long ago that this was forgotten."""
    reason: str = ""
    """Of an abort: why; as in ``Rejected``."""
    detail: str = ""
    key: bytes = b""
    participants: tuple[int, ...] = ()


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """What queues, locks and streams answer; see their operations."""

    value: Any


Outcome = Committed | Rejected | Blocked | Voted | Decided | Answer

_ops: msgspec.msgpack.Decoder[StateOp] = msgspec.msgpack.Decoder(StateOp)
_outcomes: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Outcome)
_encoder = msgspec.msgpack.Encoder()


def state_op(op: StateOp, request_id: str | None = None) -> Op:
    """The operation to submit."""
    return Op(STATE_FOLD, _encoder.encode(op), request_id)


def decode_op(body: bytes) -> StateOp | None:
    """The operation in these bytes, or None for garbage."""
    try:
        return decode_anywhere(_ops.decode, body)
    except (msgspec.MsgspecError, ValueError):  # ValueError: text that is not UTF-8
        return None


def encode_outcome(outcome: Outcome, *, passing: bool = False) -> bytes:
    """The outcome's bytes. ``passing``: it is not kept under the request id."""
    return PASSING + _encoder.encode(outcome) if passing else _encoder.encode(outcome)


def decode_outcome(data: bytes) -> Outcome:
    """The outcome in these bytes."""
    return _outcomes.decode(data[1:] if data.startswith(PASSING) else data)
