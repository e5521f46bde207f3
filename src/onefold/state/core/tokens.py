"""Session tokens: which offsets a client has seen, as opaque text that other processes can continue with.

``of1.`` and base64url of a CRC32C and msgpack of (incarnation, {shard: offset}, {shard: place within the next record}). Tokens
of one space are merged by the larger offset of each shard. ``of2.`` and the same with what was seen of collections that every
region can write: offsets of one region's logs, which mean nothing in another, and vectors, which mean the same in all.
"""

from __future__ import annotations

import base64
import binascii
import struct
import threading
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from onefold.codec import crc32c
from onefold.errors import InvalidArgument, TokenError

_PREFIX = "of1."
_PREFIX_REGIONS = "of2."
_CRC = struct.Struct(">I")


class RegionPart(msgspec.Struct, frozen=True, array_like=True):
    """What a token says of collections that every region can write."""

    region: str
    """Where it was made."""
    incarnation: str
    """Of that region's logs, to which the offsets belong."""
    offsets: dict[int, int] = {}
    within: dict[int, tuple[int, bytes]] = {}
    """As of ``Token``: only in tokens of a watch."""
    vectors: dict[int, dict[int, int]] = {}
    """By shard, how far the effects of each region, by its number, were seen."""
    hlc: int = 0
    """The highest hybrid clock that was seen."""


class Token(msgspec.Struct, frozen=True, array_like=True):
    """What a token says."""

    incarnation: str
    offsets: dict[int, int]
    within: dict[int, tuple[int, bytes]] = {}
    """In the record after a shard's offset, changes up to (place, key) were seen too. Only in tokens of a watch."""
    region: RegionPart | None = None


_decoder = msgspec.msgpack.Decoder(Token)


def encode_token(token: Token) -> str:
    """The token as text."""
    if token.region is None:
        body, prefix = msgspec.msgpack.encode((token.incarnation, token.offsets, token.within)), _PREFIX
    else:
        body, prefix = msgspec.msgpack.encode(token), _PREFIX_REGIONS
    return prefix + base64.urlsafe_b64encode(_CRC.pack(crc32c(body)) + body).decode().rstrip("=")


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
    if not isinstance(text, str) or not text.startswith((_PREFIX, _PREFIX_REGIONS)):
        raise wrong
    raw = text[len(_PREFIX) :]
    try:
        data = base64.b64decode(raw.encode() + b"=" * (-len(raw) % 4), altchars=b"-_", validate=True)
        if len(data) < _CRC.size or _CRC.unpack_from(data)[0] != crc32c(data[_CRC.size :]):
            raise wrong
        token = _decoder.decode(data[_CRC.size :])
    except (binascii.Error, UnicodeError, msgspec.MsgspecError):
        raise wrong from None
    part = token.region
    if (part is not None) != text.startswith(_PREFIX_REGIONS):
        raise wrong
    numbers = [*token.offsets.values()]
    if part is not None:
        numbers += [
            part.hlc,
            *part.offsets.values(),
            *(n for one in part.vectors.values() for n in one.values()),
        ]
    if any(number < 0 for number in numbers):
        raise wrong
    return token


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else shown[:37] + "..."


class Seen:
    """What one client has seen of some logs: for each the highest offset. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._offsets: dict[int, int] = {}
        self.given: Mapping[int, int] = {}
        """What the tokens that were handed in demand: the only part that can be ahead of logs of strong reads."""

    def observe(self, shard: int, offset: int) -> None:
        """A read or write has seen this offset."""
        if offset > self._offsets.get(shard, 0):
            with self._lock:
                if offset > self._offsets.get(shard, 0):
                    self._offsets[shard] = offset

    def floor(self, shard: int) -> int:
        """The offset that a read must show at least."""
        return self._offsets.get(shard, 0)

    def demand(self, offsets: Mapping[int, int]) -> None:
        """A token has seen this: no read shows less."""
        with self._lock:
            self.given = {
                shard: max(offset, self.given.get(shard, 0)) for shard, offset in offsets.items()
            } | {shard: offset for shard, offset in self.given.items() if shard not in offsets}
        for shard, offset in offsets.items():
            self.observe(shard, offset)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._offsets}>"


class OpenRegion(Protocol):
    """The region in which collections are used, as far as sessions ask it."""

    def seen(self) -> RegionPart:
        """What was seen so far."""
        ...

    def demand(self, part: RegionPart) -> None:
        """Later reads and writes see what that token saw. Raises TokenError."""
        ...

    def forget(self, name: str) -> None:
        """Demand nothing of that region any more. Raises InvalidArgument for a region that is not there."""
        ...


class Session(Seen):
    """What one client has seen."""

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
        super().__init__()
        self._incarnation = incarnation
        self._shard_count = shards
        self._present = present
        self._parts: list[RegionPart] = []
        """Of tokens, for a region that was not opened yet."""
        self._region: OpenRegion | None = None
        self.open_region: Callable[[], OpenRegion] | None = None
        """Opens the region, for what cannot be answered without."""
        if token is not None:
            self.merge(token)

    @property
    def token(self) -> str:
        """The session as text, for ``connect(session=...)``, ``merge`` and ``watch(start=...)``, here or elsewhere.

        Raises:
            Unavailable: definite; what was seen of collections for every region cannot be determined now.
        """
        if self._present is not None:
            for shard, offset in self._present().items():
                self.observe(shard, offset)
                self._offsets.setdefault(
                    shard, 0
                )  # "nothing so far" is said too: `db.at` asks for every shard
        region = self._region
        if region is None and self._parts and self.open_region is not None:
            region = self.open_region()
        part = None if region is None else region.seen()
        with self._lock:
            return encode_token(Token(self._incarnation, dict(sorted(self._offsets.items())), {}, part))

    def merge(self, token: str) -> None:
        """Continue from that token too: later reads see what it saw. Raises TokenError."""
        decoded = decode_token(token, self._incarnation, self._shard_count)
        part = decoded.region
        if part is not None:
            with self._lock:
                region = self._region
                if region is None:
                    self._parts.append(part)
            if region is not None:
                region.demand(part)
        self.demand(decoded.offsets)

    def forget(self, region: str) -> None:
        """Continue without what this session saw of a region: reads and writes no longer wait for it.

        Raises:
            InvalidArgument: definite; the space has no such region.
        """
        if self._region is None and self.open_region is not None:
            self.open_region()
        if self._region is None:
            raise InvalidArgument(
                f"the space has no regions, so there is nothing of {region!r:.60} to forget"
            )
        self._region.forget(region)

    def in_region(self, region: OpenRegion) -> None:
        """The region is open: it gets what earlier tokens said, and is asked from now on. Raises TokenError."""
        with self._lock:
            parts, self._parts, self._region = self._parts, [], region
        for part in parts:
            region.demand(part)
