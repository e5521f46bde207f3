"""What operations of the state fold answer."""

from __future__ import annotations

from typing import Any

import msgspec

from onefold.fold.api import PASSING


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

_outcomes: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Outcome)
_encoder = msgspec.msgpack.Encoder()


def encode_outcome(outcome: Outcome, *, passing: bool = False) -> bytes:
    """The outcome's bytes. ``passing``: it is not kept under the request id."""
    return PASSING + _encoder.encode(outcome) if passing else _encoder.encode(outcome)


def decode_outcome(data: bytes) -> Outcome:
    """The outcome in these bytes."""
    return _outcomes.decode(data[1:] if data.startswith(PASSING) else data)
