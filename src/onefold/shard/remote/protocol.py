"""What programs without a replica ask the nodes of a shard, and what those answer: msgpack of the structs below.

A question names what is wanted (``what``) and what the answer must show: offset ``at`` exactly, or the newest that the node has
and at least ``after``, everything acknowledged before the question (``barrier``), or all that is older than ``fresh_s``. A node
that cannot yet waits, up to ``wait_s``. Questions change nothing, so they may be asked of several nodes, and twice.

The body of an answer is the msgpack of a result, which only the question makes meaningful; one that is longer than a message may
be is given in pieces: the same question again, with ``skip`` bytes left out. Fields are only ever added, at the end.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta

from onefold import config, errors
from onefold.codec import decode_anywhere
from onefold.errors import OnefoldError, SpaceError
from onefold.shard.requirements import Behind

PROTOCOL: Final = 1
"""Of this program. A node answers questions of every protocol up to its own."""
_DIGEST_BYTES: Final = 8

Offset = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Rows = Annotated[int, Meta(ge=1, le=config.ASK_ROWS_MAX)]
Name = Annotated[str, Meta(max_length=1000)]


class Applied(msgspec.Struct, frozen=True, array_like=True, tag="applied"):
    """Nothing but the offset. Result: None."""


class Beyond(msgspec.Struct, frozen=True, array_like=True, tag="beyond"):
    """The applied offset, once it is beyond this one or the time is over. Result: None."""

    offset: Offset


class Get(msgspec.Struct, frozen=True, array_like=True, tag="get"):
    """Values of keys. Result: those of as many of the first keys as fit, at least one; None for a key that is not there."""

    table: Name
    keys: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=config.ASK_KEYS_MAX)]


class Scan(msgspec.Struct, frozen=True, array_like=True, tag="scan"):
    """Pairs with ``start <= key < stop`` in key order, or from the end. Result: ``Page`` of (key, value)."""

    table: Name
    start: bytes
    stop: bytes | None
    limit: Rows
    reverse: bool = False


class Count(msgspec.Struct, frozen=True, array_like=True, tag="count"):
    """How many keys there are. Result: their number."""

    table: Name
    start: bytes
    stop: bytes | None


class Changes(msgspec.Struct, frozen=True, array_like=True, tag="changes"):
    """See ``SqlView.changes``; nothing beyond the view. Result: ``Page`` of (offset, place, key, value)."""

    table: Name
    after: Offset
    within: tuple[Annotated[int, Meta(ge=-(2**62), le=2**62)], bytes] | None
    start: bytes
    stop: bytes | None
    limit: Rows


class Tables(msgspec.Struct, frozen=True, array_like=True, tag="tables"):
    """Names that begin so and come after ``beyond``. Result: ``Page`` of them."""

    prefix: Name
    beyond: Name = ""


class HeadOf(msgspec.Struct, frozen=True, array_like=True, tag="head"):
    """Result: the fields of ``Head``."""


class Requested(msgspec.Struct, frozen=True, array_like=True, tag="requested"):
    """Result: the kept outcome of the operation with this request id, or None."""

    request_id: Annotated[str, Meta(max_length=config.REQUEST_ID_BYTES_MAX)]


class Known(msgspec.Struct, frozen=True, array_like=True, tag="known"):
    """What is known of a client that writes. ``offset``: where its last record was acknowledged, if it was. Result:
    ``Standing``."""

    client: Annotated[str, Meta(max_length=100)]
    offset: Offset | None = None


class Written(msgspec.Struct, frozen=True, array_like=True, tag="written"):
    """What became of a client's record, once the node has applied it. Asked while the record is being appended, and refused when
    the node does not know in time. Result: ``Standing``."""

    client: Annotated[str, Meta(max_length=100)]
    number: Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Exchange(msgspec.Struct, frozen=True, array_like=True, tag="exchange"):
    """What a region asks of another one. The fold of regions' logs decides what it means. Result: bytes, as soon as there is
    something to tell, at the latest when the time to wait is over."""

    question: Annotated[bytes, Meta(max_length=config.ASK_REQUEST_BYTES_MAX)]


What = (
    Applied | Beyond | Get | Scan | Count | Changes | Tables | HeadOf | Requested | Known | Written | Exchange
)  # a union of tagged structs


class Page(NamedTuple):
    """As many rows as fit, and whether there may be more."""

    rows: list[Any]
    more: bool


class Standing(NamedTuple):
    """A client's last applied record: its number (0: none is known), the offset and the outcomes. ``digest``: of the record at
    the asked offset, where that is not the client's last one; None also when that record was trimmed."""

    number: int
    offset: int
    outcomes: tuple[bytes, ...]
    digest: bytes | None


class Ask(msgspec.Struct, frozen=True, array_like=True):
    """A question."""

    protocol: int
    incarnation: str
    what: What
    at: Offset | None = None
    after: Offset = 0
    barrier: bool = False
    fresh_s: Seconds | None = None
    wait_s: Seconds = 0.0
    skip: Offset = 0
    """So many bytes of the body are known already."""


class Answer(msgspec.Struct, frozen=True, array_like=True, tag="answer"):
    """A piece of a result. ``offset``: what it shows."""

    incarnation: str
    offset: int
    fold_version: int
    body: bytes
    total: int
    """Bytes of the whole body."""
    digest: bytes = b""
    """Of the whole body, when this is a piece: all pieces must be of one."""


class Refusal(msgspec.Struct, frozen=True, array_like=True, tag="refusal"):
    """An error, definite since questions change nothing. ``elsewhere``: another node may be able to answer."""

    incarnation: str
    applied: int
    kind: str
    message: str
    elsewhere: bool

    def error(self) -> OnefoldError:
        """The error as the node raised it."""
        if self.kind == Behind.__name__:
            return Behind(self.message, self.applied, definite=True)
        made = getattr(errors, self.kind, None)
        if not (isinstance(made, type) and issubclass(made, OnefoldError)):
            made = SpaceError
        return made(self.message, definite=True)


class Garbled(Exception):
    """Bytes that are no message of this protocol."""


_encode = msgspec.msgpack.Encoder().encode
_ask = msgspec.msgpack.Decoder(Ask)
Reply = Answer | Refusal
_reply: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_protocol = msgspec.msgpack.Decoder(tuple[Any, ...])
_pairs = msgspec.msgpack.Decoder(tuple[list[tuple[bytes, bytes]], bool])
_changed = msgspec.msgpack.Decoder(tuple[list[tuple[int, int, bytes, bytes | None]], bool])
_names = msgspec.msgpack.Decoder(tuple[list[str], bool])
_values = msgspec.msgpack.Decoder(list[bytes | None])
_counted = msgspec.msgpack.Decoder(int)
_head = msgspec.msgpack.Decoder(tuple[int, int, int, int, int, bytes, int])
_bytes = msgspec.msgpack.Decoder(bytes | None)
_standing = msgspec.msgpack.Decoder(tuple[int, int, tuple[bytes, ...], bytes | None])
_none = msgspec.msgpack.Decoder(None)
_RESULTS: dict[type, msgspec.msgpack.Decoder[Any]] = {
    Applied: _none,
    Beyond: _none,
    Get: _values,
    Scan: _pairs,
    Count: _counted,
    Changes: _changed,
    Tables: _names,
    HeadOf: _head,
    Requested: _bytes,
    Known: _standing,
    Written: _standing,
    Exchange: _bytes,
}


def encode(message: Ask | Reply) -> bytes:
    """The message as it is sent."""
    return _encode(message)


def encode_body(result: object) -> bytes:
    """The body of an answer."""
    return _encode(result)


def digest_of(data: bytes) -> bytes:
    """What tells one body, or one record, from another."""
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()


def decode_ask(data: bytes) -> Ask:
    """The question in these bytes. Raises Garbled, which says what is wrong with them."""
    if len(data) > config.ASK_REQUEST_BYTES_MAX:
        raise Garbled(f"{len(data)} bytes; the limit is {config.ASK_REQUEST_BYTES_MAX}")
    try:
        return decode_anywhere(_ask.decode, data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Garbled(_newer(data) or str(error)) from error


def decode_reply(data: bytes) -> Reply:
    """The reply in these bytes. Raises Garbled."""
    try:
        return decode_anywhere(_reply.decode, data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Garbled(str(error)) from error


def decode_body(what: What, body: bytes) -> Any:
    """The result in the body of an answer to that question. Raises Garbled."""
    try:
        return decode_anywhere(_RESULTS[type(what)].decode, body)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Garbled(str(error)) from error


def _newer(data: bytes) -> str | None:
    try:
        fields = decode_anywhere(_protocol.decode, data)
    except (msgspec.MsgspecError, ValueError):
        return None
    if fields and isinstance(fields[0], int) and fields[0] > PROTOCOL:
        return f"it is of protocol {fields[0]}, and this node knows {PROTOCOL}. Upgrade the node"
    return None
