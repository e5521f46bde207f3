"""What is appended to a region's log for the fold ``ap``.

``Do`` is what programs append: requests, which the region's fold checks and turns into an effect. The others are for nodes: what
comes from other regions, and what is decided on regions. Keys and elements are encoded, values are bytes that the fold does not
look into.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import msgspec

from onefold.available.stamps import Hlc, Number, Seq, Vector
from onefold.codec import Op, decode_anywhere
from onefold.fold.authority import AVAILABLE_FOLD

INT_MAX: Final = (1 << 63) - 1
"""Counters are integers of 64 bit."""

NATURAL_MAX: Final = (1 << 53) - 1
Natural = Annotated[int, msgspec.Meta(ge=0, le=NATURAL_MAX)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=NATURAL_MAX)]
Amount = Annotated[int, msgspec.Meta(ge=-INT_MAX, le=INT_MAX)]
Floor = Annotated[int, msgspec.Meta(ge=-INT_MAX, le=0)]
MORE: Final = "more"
"""The answer to an operation that is to be appended again: it has done a part of its work."""
SYNC_ROWS_MAX: Final = 2000
"""One operation of a full sync brings at most so many rows."""
CellKind = Literal["r", "f", "k"]
"""Register (the last writer wins), fields, keep both: see ``kinds``."""


class Request(msgspec.Struct, frozen=True, array_like=True):
    """A part of a ``Do``: it happens together with the others."""


class Put(Request, frozen=True, array_like=True, tag="put"):
    """Set keys of a register or keep-both map. Result: None."""

    kind: Literal["r", "k"]
    name: str
    items: tuple[tuple[bytes, bytes], ...]
    ttl_ms: Natural | None = None


class Replace(Request, frozen=True, array_like=True, tag="rep"):
    """Set all fields of a key; others are removed. Result: None."""

    name: str
    key: bytes
    fields: tuple[tuple[str, bytes], ...]
    ttl_ms: Natural | None = None


class Patch(Request, frozen=True, array_like=True, tag="pat"):
    """Set and remove some fields. Those that are set end with the item, if that has an end. Result: None."""

    name: str
    key: bytes
    fields: tuple[tuple[str, bytes | None], ...]
    """None: removed."""


class Delete(Request, frozen=True, array_like=True, tag="del"):
    """Remove keys, also where this region holds nothing: another one may. Result: how many were held here."""

    kind: CellKind
    name: str
    keys: tuple[bytes, ...]


class Include(Request, frozen=True, array_like=True, tag="inc"):
    """Add elements to a set. Result: how many were not held here."""

    name: str
    key: bytes
    elements: tuple[bytes, ...]
    ttl_ms: Natural | None = None


class Exclude(Request, frozen=True, array_like=True, tag="exc"):
    """Remove those elements that are held here. Result: how many."""

    name: str
    key: bytes
    elements: tuple[bytes, ...]


class Empty(Request, frozen=True, array_like=True, tag="emp"):
    """Remove all elements that are held here. Result: how many."""

    name: str
    key: bytes


class Add(Request, frozen=True, array_like=True, tag="add"):
    """Add to a counter. Result: the new value, as far as it is known here."""

    name: str
    key: bytes
    by: Amount


class Reset(Request, frozen=True, array_like=True, tag="res"):
    """Delete a counter: what is known here is no longer counted. Result: whether anything was."""

    name: str
    key: bytes


class Change(Request, frozen=True, array_like=True, tag="chg"):
    """Add to a bounded counter. Refused (``below_floor``) beyond what this region may take. Result: the new value."""

    name: str
    floor: Floor
    key: bytes
    by: Amount


class Move(Request, frozen=True, array_like=True, tag="mov"):
    """Give rights to another region. Refused beyond those that this region has. Result: what is left here."""

    name: str
    floor: Floor
    key: bytes
    to: Number
    by: Annotated[int, msgspec.Meta(ge=1, le=INT_MAX)]


class Wish(Request, frozen=True, array_like=True, tag="wsh"):
    """Ask other regions for rights until there are so many here. 0: withdrawn. Result: the rights that are here."""

    name: str
    floor: Floor
    key: bytes
    need: Annotated[int, msgspec.Meta(ge=0, le=INT_MAX)]
    ttl_ms: Natural


AnyRequest = Put | Replace | Patch | Delete | Include | Exclude | Empty | Add | Reset | Change | Move | Wish


class Read(msgspec.Struct, frozen=True, array_like=True):
    """A row that was read: its ``reading.signature``; empty when nothing was there."""

    place: str
    key: bytes
    seen: bytes


class Span(msgspec.Struct, frozen=True, array_like=True):
    """A range of a collection's rows that was read at an offset of this log."""

    place: str
    start: bytes
    stop: bytes | None
    offset: Natural


class Do(msgspec.Struct, frozen=True, array_like=True, tag="do"):
    """All requests, as one effect, if nothing that was read has changed. Answer: ``Committed`` or ``Rejected``."""

    requests: tuple[AnyRequest, ...]
    reads: tuple[Read, ...] = ()
    spans: tuple[Span, ...] = ()
    session: Vector = msgspec.field(default_factory=dict)
    """What the session has seen: refused (``behind``) by a region that does not know it yet."""
    hlc: Hlc = 0
    """The highest hybrid clock that the session has seen."""
    last_try: bool = True
    """Whether a rejection is kept under the request id."""


class Import(msgspec.Struct, frozen=True, array_like=True, tag="imp"):
    """Effects of other regions, as bytes, in causal order. Answer: ``Imported``."""

    source: Number
    """The region that has passed them on. An evicted one is refused (``evicted``)."""
    effects: tuple[bytes, ...]
    chains: dict[Number, bytes] = msgspec.field(default_factory=dict)
    """By origin, the chain digest before the first of its effects here."""


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """An effect without writes, if this region owes one. Answer: ``Answer``: whether there is one."""


class Admit(msgspec.Struct, frozen=True, array_like=True, tag="adm"):
    """A region that the space has. Answer: ``Answer``: whether it is new here."""

    number: Number
    name: str
    here: bool = False
    """The region of this log. In that of a region that comes again: after all others. In one that was restored: its new number,
    before anything else is appended, since effects under the old one would have numbers that others know already. Not for a
    region that is evicted: it begins again with an empty log."""
    founder: bool = False
    """Begun together with the region of this log, before anything was written: neither has to be asked."""


class Evict(msgspec.Struct, frozen=True, array_like=True, tag="evi"):
    """A region is gone. Remaining regions vote how far its effects count. Answer: ``Answer``: whether this was new here."""

    number: Number
    round: Positive
    """Evictions are counted from 1. All regions have them in this order."""


class Retire(msgspec.Struct, frozen=True, array_like=True, tag="ret"):
    """In the log of an evicted region: nothing is written here any more. Answer: ``Answer``: how many effects nobody has."""

    final: Seq


class Reclaim(msgspec.Struct, frozen=True, array_like=True, tag="rec"):
    """Rights of an evicted region belong to another one from now on. Answer: ``Answer``: whether it is so."""

    number: Number
    heir: Number


class Accept(msgspec.Struct, frozen=True, array_like=True, tag="acc"):
    """Effects of a region are taken up to this clock, although it is ahead. Answer: ``Answer`` of None."""

    number: Number
    hlc: Hlc


class Cap(msgspec.Struct, frozen=True, array_like=True, tag="cap"):
    """Own clock readings above ``limit_ms`` do not count before fold time ``until_ms``. Answer: ``Answer`` of None."""

    limit_ms: Natural
    until_ms: Natural


class SyncBegin(msgspec.Struct, frozen=True, array_like=True, tag="sb"):
    """Rows of another region follow, as of one offset of its log. Answer: ``Answer``: whether they are needed."""

    id: str
    source: Number
    """That region. It must not be evicted: it could know effects that do not count."""
    hlc: Hlc
    origins: bytes
    """What that region knows of each origin: ``regions.Origin`` by number, encoded."""


class SyncRows(msgspec.Struct, frozen=True, array_like=True, tag="sr"):
    """Some of the rows: (place, key, row); without a place, a request: its id, and ``rows.Requested``.

    Answer: ``Answer``: whether they belong to the sync that has begun."""

    id: str
    rows: tuple[tuple[str, bytes, bytes], ...]


class SyncEnd(msgspec.Struct, frozen=True, array_like=True, tag="se"):
    """All rows are here: some of them are joined with those that this region has. To be appended again until it is done.

    Answer: ``Answer``: ``MORE`` while it is not done; then whether it is: not if rows are missing, or another one has begun."""

    id: str
    rows: Natural
    """How many there are."""


class Unseen(msgspec.Struct, frozen=True, array_like=True, tag="uns"):
    """Effects of an evicted region beyond the last one that counts, which nobody takes: each of their writes is listed as a
    conflict, once. Answer: ``Answer``: how many are new in the list; ``Rejected`` (``not_final``) while votes are missing.

    Before what of them can be done again is (``exchange.again``): a conflict has what is here at that moment."""

    origin: Number
    effects: tuple[bytes, ...]
    """In their order. What is not kept any more is left out."""


AvailableOp = (
    Do
    | Import
    | Beat
    | Admit
    | Evict
    | Retire
    | Reclaim
    | Accept
    | Cap
    | SyncBegin
    | SyncRows
    | SyncEnd
    | Unseen
)


class Committed(msgspec.Struct, frozen=True, array_like=True, tag="ok"):
    """It happened, as this effect; one result for each request, in order."""

    region: int
    seq: int
    hlc: int
    results: tuple[Any, ...] = ()


class Rejected(msgspec.Struct, frozen=True, array_like=True, tag="no"):
    """It did not happen and nothing was written."""

    reason: str
    """``malformed``, ``untrusted``, ``no_region``, ``evicted``, ``not_admitted``, ``behind``, ``conflict``, ``too_old``,
    ``other_kind``, ``too_large``, ``below_floor``, ``diverged``, ``held``, ``not_final`` or ``unknown_region``."""
    detail: str = ""
    """Of a conflict: the place."""
    key: bytes = b""
    value: int = 0
    """Of ``below_floor``: the value as it is known here."""
    here: int = 0
    """Of ``below_floor``: what this region may take. Of ``behind``: the region that is missing."""


class Imported(msgspec.Struct, frozen=True, array_like=True, tag="imp"):
    """What is known after an import."""

    have: Vector
    taken: int
    waiting: dict[int, str] = msgspec.field(default_factory=dict)
    """By origin, why its first effect that was not taken was not: ``gap``, ``deps``, ``held``, ``evicted`` or ``unknown``."""


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """What other operations answer."""

    value: Any


Outcome = Committed | Rejected | Imported | Answer

_ops: msgspec.msgpack.Decoder[AvailableOp] = msgspec.msgpack.Decoder(AvailableOp)
_outcomes: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Outcome)
_encoder = msgspec.msgpack.Encoder()


def available_op(op: AvailableOp, request_id: str | None = None) -> Op:
    """The operation to submit."""
    return Op(AVAILABLE_FOLD, _encoder.encode(op), request_id)


def decode_op(body: bytes) -> AvailableOp | None:
    """The operation in these bytes, or None for garbage."""
    try:
        try:
            return _ops.decode(body)
        except RecursionError:
            return decode_anywhere(_ops.decode, body)
    except (msgspec.MsgspecError, ValueError):  # ValueError: text that is not UTF-8
        return None


def encode_outcome(outcome: Outcome) -> bytes:
    """The outcome's bytes."""
    return _encoder.encode(outcome)


def decode_outcome(data: bytes) -> Outcome:
    """The outcome in these bytes."""
    return _outcomes.decode(data.removeprefix(b"\x00"))
