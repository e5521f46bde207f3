"""Session tokens: which offsets a client has seen, as opaque text that other processes can continue with.

``of1.`` and base64url of a CRC32C and msgpack of (incarnation, {shard: offset}, {shard: place within the next record}). Tokens
of one space are merged by the larger offset of each shard.
"""

from __future__ import annotations

import base64
import binascii
import struct
import threading
from collections.abc import Callable, Mapping

import msgspec

from onefold.codec import crc32c
from onefold.errors import TokenError

_PREFIX = "of1."
_CRC = struct.Struct(">I")


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What a token says."""

    incarnation: str
    offsets: dict[int, int]
    within: dict[int, tuple[int, bytes]] = {}
    """In the record after a shard's offset, changes up to (place, key) were seen too. Only in tokens of a watch."""


_decoder = msgspec.msgpack.Decoder(Token)


def encode_token(token: Token) -> str:
    """The token as text."""
    body = msgspec.msgpack.encode(token)
    return _PREFIX + base64.urlsafe_b64encode(_CRC.pack(crc32c(body)) + body).decode().rstrip("=")


def decode_token(text: str, incarnation: str | None = None, shards: int | None = None) -> Token:
    """The token in the text, checked against the space that it is used on.

    Raises TokenError (definite) for text that is not a token and for a token of another space, or of this one before it was
    restored.
    """
    token = _decode(text)
    if incarnation is not None and token.incarnation != incarnation:
        raise TokenError(
            "the session token belongs to another space, or to this one before it was restored. Start without a token"
        )
    if shards is not None and any(not 0 <= shard < shards for shard in token.offsets):
        raise TokenError(
            f"the session token names shards that this space does not have (it has {shards}). Start without it"
        )
    return token


def _decode(text: str) -> Token:
    wrong = TokenError(
        f"{_short(text)} is not a session token. Pass the text of `db.session.token` or of a change's `token`, unchanged"
    )
    if not isinstance(text, str) or not text.startswith(_PREFIX):
        raise wrong
    raw = text[len(_PREFIX) :]
    try:
        data = base64.b64decode(raw.encode() + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
        if len(data) < _CRC.size or _CRC.unpack_from(data)[0] != crc32c(data[_CRC.size :]):
            raise wrong
        token = _decoder.decode(data[_CRC.size :])
    except (binascii.Error, UnicodeError, msgspec.MsgspecError):
        raise wrong from None
    if any(offset < 0 for offset in token.offsets.values()):
        raise wrong
    return token


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else shown[:37] + "..."


class Session:
    """What one client has seen: for each shard the highest offset. Thread-safe."""

    def __init__(
        self,
        incarnation: str,
        shards: int,
        token: str | None = None,
        *,
        present: Callable[[], Mapping[int, int]] | None = None,
    ) -> None:
        """``token``: continue from there. ``present``: where every read is strong, nothing is noted read by read; this says, when
        the token is asked for, what can have been seen at most. Raises TokenError."""
        self._incarnation = incarnation
        self._shard_count = shards
        self._present = present
        self._lock = threading.Lock()
        self._offsets: dict[int, int] = {}
        self.given: Mapping[int, int] = {}
        """What the tokens that were handed in demand: the only part that can be ahead of a space of strong reads."""
        if token is not None:
            self.merge(token)

    @property
    def token(self) -> str:
        """The session as text, for ``connect(session=...)``, ``merge`` and ``watch(start=...)``, here or elsewhere."""
        if self._present is not None:
            for shard, offset in self._present().items():
                self.observe(shard, offset)
                self._offsets.setdefault(
                    shard, 0
                )  # "nothing so far" is said too: `db.at` asks for every shard
        with self._lock:
            return encode_token(Token(self._incarnation, dict(sorted(self._offsets.items()))))

    def merge(self, token: str) -> None:
        """Continue from that token too: later reads see what it saw. Raises TokenError."""
        decoded = decode_token(token, self._incarnation, self._shard_count)
        with self._lock:
            self.given = {
                shard: max(offset, self.given.get(shard, 0)) for shard, offset in decoded.offsets.items()
            } | {shard: offset for shard, offset in self.given.items() if shard not in decoded.offsets}
        for shard, offset in decoded.offsets.items():
            self.observe(shard, offset)

    def observe(self, shard: int, offset: int) -> None:
        """A read or write has seen this offset."""
        if offset > self._offsets.get(shard, 0):
            with self._lock:
                if offset > self._offsets.get(shard, 0):
                    self._offsets[shard] = offset

    def floor(self, shard: int) -> int:
        """The offset that a read must show at least."""
        return self._offsets.get(shard, 0)

    def __repr__(self) -> str:
        return f"<Session {self._offsets}>"
