"""The operations of the state fold.

Everything that changes shared state is one of these, travelling as the body of an operation for the fold ``state``. A
transaction is a single ``Commit``: what it read, and what it writes. Over several shards it is a ``Prepare`` in each of them,
then a ``Decide`` in one and a ``Resolve`` in each. Keys are encoded (``state.encoding.keys``), values are bytes that the fold
does not look into, except for increments. Writes and operations of each kind of collection are in ``state.fold.<kind>.ops``.
"""

from __future__ import annotations

import msgspec

from onefold.codec import Op, decode_anywhere
from onefold.state.fold.kinds import Operation, Write

STATE_FOLD = "state"
"""The name of the fold."""


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


class Decide(msgspec.Struct, frozen=True, array_like=True, tag="decide"):
    """In the home shard: commit or abort. The first one wins. Answer: ``Decided``."""

    transaction: str
    commit: bool
    keep: bool = False
    """Whether an abort is kept under the request id; a commit always is."""
    reason: str = ""
    """Of an abort: why; as in ``Rejected``."""
    detail: str = ""
    key: bytes = b""


class Resolve(msgspec.Struct, frozen=True, array_like=True, tag="resolve"):
    """In each participant: do the writes (commit) and give up the locks. Answer: of a commit ``Committed``, also when it was done
    before; of an abort ``Answer``: whether this operation gave up locks."""

    transaction: str
    commit: bool


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """In the home shard: every participant has resolved it, so the decision need not be kept. Answer: ``Answer`` of None."""

    transaction: str


StateOp = Commit | Prepare | Decide | Resolve | Forget | Operation

_ops: msgspec.msgpack.Decoder[StateOp] = msgspec.msgpack.Decoder(StateOp)
_encoder = msgspec.msgpack.Encoder()


def state_op(op: StateOp, request_id: str | None = None) -> Op:
    """The operation to submit."""
    return Op(STATE_FOLD, _encoder.encode(op), request_id)


def decode_op(body: bytes) -> StateOp | None:
    """The operation in these bytes, or None for garbage."""
    try:
        try:
            return _ops.decode(body)
        except RecursionError:
            return decode_anywhere(_ops.decode, body)
    except (msgspec.MsgspecError, ValueError):  # ValueError: text that is not UTF-8
        return None
