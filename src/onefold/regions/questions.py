"""What the nodes of one region ask those of another one, as bytes (``shard.remote.protocol.Exchange``). Pure.

The answer to a question waits until there is something to tell, if it may wait. What is longer than 1 KB is compressed.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from onefold.available import exchange
from onefold.available.exchange import EXCHANGE_BYTES_MAX, Ask, Reply
from onefold.errors import InvalidArgument, SpaceError
from onefold.fold.api import StoreView
from onefold.machine.first_use import first_use

PACKED_FROM_BYTES: Final = 1000
REPLY_BYTES_MAX: Final = 64 << 20
"""An answer is never longer than this when it is unpacked: one effect, at most, is longer than what was asked for."""
_LEVEL: Final = 1
_PLAIN: Final = b"\x00"
_PACKED: Final = b"\x01"


class Question(msgspec.Struct, frozen=True, array_like=True):
    """What a region knows, and how much it wants."""

    asked: Ask
    bytes_max: Annotated[int, msgspec.Meta(ge=1)] = EXCHANGE_BYTES_MAX
    waits: bool = True
    """Whether the answer may wait until there is something to tell."""


_encode: Final = msgspec.msgpack.Encoder().encode
_questions: Final = msgspec.msgpack.Decoder(Question)
_replies: Final = msgspec.msgpack.Decoder(Reply)


def encode_question(question: Question) -> bytes:
    """The question as it is sent."""
    return _encode(question)


def answer(view: StoreView, data: bytes, now_ms: int, *, late: bool) -> bytes | None:
    """The answer to a question, as of this view. ``now_ms``: the time here. ``late``: whether the question has waited for long
    enough. None: there is nothing to tell yet. Raises InvalidArgument for what is not a question."""
    try:
        question = _questions.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:
        raise InvalidArgument(f"the node does not understand what another region asks: {error}") from error
    reply = exchange.answer(view, question.asked, min(question.bytes_max, EXCHANGE_BYTES_MAX), now_ms)
    if reply.state == "same" and question.waits and not late:
        return None
    return pack(_encode(reply))


def decode_reply(data: bytes) -> Reply:
    """What was answered. Raises SpaceError for what is not an answer."""
    try:
        return _replies.decode(unpack(data))
    except (msgspec.MsgspecError, ValueError) as error:
        raise SpaceError(
            f"another region's node gave an answer that this one does not understand ({error}). Upgrade the older of the two"
        ) from error


def pack(body: bytes) -> bytes:
    """The bytes, compressed where that is worth it."""
    if len(body) <= PACKED_FROM_BYTES:
        return _PLAIN + body
    with first_use:
        import zstandard
    return _PACKED + zstandard.ZstdCompressor(level=_LEVEL).compress(body)


def unpack(data: bytes) -> bytes:
    """What ``pack`` was given. Raises ValueError for what it did not make."""
    if data[:1] == _PLAIN:
        return data[1:]
    if data[:1] != _PACKED:
        raise ValueError("neither plain nor compressed")
    with first_use:
        import zstandard
    try:
        size = zstandard.frame_content_size(data[1:])
        if not 0 <= size <= REPLY_BYTES_MAX:
            raise ValueError(f"{size} bytes when unpacked")
        return zstandard.ZstdDecompressor().decompress(data[1:], max_output_size=REPLY_BYTES_MAX)
    except zstandard.ZstdError as error:
        raise ValueError(f"damaged: {error}") from error
