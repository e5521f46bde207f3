"""Effects: what one accepted ``Do`` did, as it travels to other regions.

An effect says what to do, not what was asked for: lifetimes are moments, and what it replaces follows from its *past*, all dots
that were known where it was made. Applied in causal order, it does the same in every region. An effect is never split.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

import msgspec

from onefold.available.ops import Amount, Natural
from onefold.available.stamps import Hlc, Number, Seq, Vector

Ends = Annotated[int, msgspec.Meta(ge=0, le=(1 << 62) - 1)] | None
CHAIN_BYTES = 16


class Write(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A part of an effect."""


class SetCell(Write, frozen=True, array_like=True, tag="c", gc=False):
    """A register or keep-both value; None: deleted."""

    place: str
    key: bytes
    value: bytes | None
    ends_ms: Ends = None


class SetFields(Write, frozen=True, array_like=True, tag="f", gc=False):
    """Fields of a key; None: removed. ``base``: 0 of what is there, 1 all that there is, 2 the key is deleted."""

    place: str
    key: bytes
    base: Literal[0, 1, 2]
    fields: tuple[tuple[str, bytes | None], ...] = ()
    ends_ms: Ends = None


class Mark(Write, frozen=True, array_like=True, tag="m", gc=False):
    """An element of a set is in it, or not."""

    place: str
    key: bytes
    element: bytes
    present: bool
    ends_ms: Ends = None


class MarkNone(Write, frozen=True, array_like=True, tag="e", gc=False):
    """None of the elements of the past is in the set."""

    place: str
    key: bytes


class Count(Write, frozen=True, array_like=True, tag="n", gc=False):
    """Adds to the origin's part of a counter."""

    place: str
    key: bytes
    birth: Seq
    """The seq with which that part began."""
    by: Amount


class Uncount(Write, frozen=True, array_like=True, tag="u", gc=False):
    """What a deleted counter had counted: by region (birth, seq, total). That is no longer counted."""

    place: str
    key: bytes
    seen: dict[Number, tuple[Seq, Seq, int]]


class Spend(Write, frozen=True, array_like=True, tag="b", gc=False):
    """Adds to the origin's share of a bounded counter."""

    place: str
    key: bytes
    by: Amount


class Send(Write, frozen=True, array_like=True, tag="s", gc=False):
    """Rights of the origin become those of another region. That they arrive is the receipt."""

    place: str
    key: bytes
    to: Number
    by: Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]


class Want(Write, frozen=True, array_like=True, tag="w", gc=False):
    """The origin wishes to have so many rights, until then. 0: no longer."""

    place: str
    key: bytes
    need: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    until_ms: Natural


class Admitted(Write, frozen=True, array_like=True, tag="a", gc=False):
    """The origin counts this region among those that it waits for."""

    number: Number


class Votes(Write, frozen=True, array_like=True, tag="v", gc=False):
    """How far the origin knows each evicted region. From here on it takes nothing from them."""

    round: Natural
    seen: Vector


AnyWrite = SetCell | SetFields | Mark | MarkNone | Count | Uncount | Spend | Send | Want | Admitted | Votes
CONTROL = (Admitted, Votes)
"""Writes that change no collection."""


class Effect(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """See above."""

    origin: Number
    seq: Annotated[int, msgspec.Meta(ge=1, le=(1 << 53) - 1)]
    """Of this origin, contiguous from 1."""
    deps: Vector
    """The effects of other regions that were known there."""
    hlc: Hlc
    writes: tuple[AnyWrite, ...] = ()
    request_id: str | None = None
    results: tuple[Any, ...] = ()
    """For a retry in another region; empty without a request id."""

    def past(self) -> dict[int, int]:
        """All dots that it replaces where it meets them; with its own, for what it writes twice."""
        return {**self.deps, self.origin: self.seq}


_effects: msgspec.msgpack.Decoder[Effect] = msgspec.msgpack.Decoder(Effect)
_writes: msgspec.msgpack.Decoder[AnyWrite] = msgspec.msgpack.Decoder(AnyWrite)
_encode = msgspec.msgpack.Encoder().encode


def encode_effect(effect: Effect) -> bytes:
    """Its bytes, which are the same in all regions."""
    return _encode(effect)


def decode_effect(data: bytes) -> Effect | None:
    """The effect in these bytes, or None for garbage."""
    try:
        return _effects.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


def encode_write(write: AnyWrite) -> bytes:
    """Its bytes, as a conflict has them."""
    return _encode(write)


def decode_write(data: bytes) -> AnyWrite:
    """The write in these bytes. Raises msgspec.MsgspecError for others."""
    return _writes.decode(data)


def next_chain(chain: bytes, data: bytes) -> bytes:
    """The digest of an origin's effects with one more."""
    return hashlib.blake2b(data, key=chain, digest_size=CHAIN_BYTES).digest()
