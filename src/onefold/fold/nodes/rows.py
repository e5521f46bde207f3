"""What the nodes fold keeps: its tables, their keys and their rows.

All rows are msgpack arrays, so a later version may append fields with defaults. Numbers in keys are big endian, so keys are in
order of shard and offset; names come last.

===============  =======================  =====================================================================
table            key                      value
===============  =======================  =====================================================================
nodes/node       name                     NodeState
nodes/digest     shard, offset, name      the log's digest there, as that node says (the latest offsets)
nodes/hash       shard, offset, name      HashState (the latest offsets)
nodes/agreed     shard, offset            AgreedState: two nodes say the same hash
nodes/archive    shard, start             ArchiveState
nodes/garbage    blob                     offset at which the last name of the blob went
nodes/untrusted  kind of operation        authority.Untrusted: what was refused of who is not a node
nodes/region     number of the decision   regions.Decision: who is a region, from 0 on
===============  =======================  =====================================================================
"""

from __future__ import annotations

import struct
from typing import Final, TypeVar

import msgspec

NODE: Final = "nodes/node"
DIGEST: Final = "nodes/digest"
HASH: Final = "nodes/hash"
AGREED: Final = "nodes/agreed"
ARCHIVE: Final = "nodes/archive"
GARBAGE: Final = "nodes/garbage"
REGION: Final = "nodes/region"

LIVE: Final = "live"
DRAINING: Final = "draining"
LEFT: Final = "left"
EXPIRED: Final = "expired"
MEMBERS: Final = (LIVE, DRAINING)
"""States of nodes whose epoch is in force."""

NUMBER_MAX: Final = 1 << 62
"""Offsets and sizes in operations are below this."""


class NodeState(msgspec.Struct, array_like=True):
    """A node: what it said when it joined, and what it said last."""

    epoch: int
    """The offset of its Join."""
    instance: str
    state: str
    """``live``, ``draining``, ``left`` or ``expired``."""
    region: str
    zone: str
    program: str
    python: str
    fold_version_max: int
    slots: int
    joined_ms: int
    """In fold time, as below: for people, not for decisions."""
    beats: int = 0
    changed: int = 0
    """The offset of what was last said by it or about it."""
    changed_ms: int = 0
    hosted: tuple[tuple[int, int], ...] = ()
    halted: tuple[tuple[int, str], ...] = ()
    busy: int = 0


class HashState(msgspec.Struct, array_like=True, frozen=True):
    """What a node says about the state at an offset."""

    hash: str
    blob: str = ""
    bytes: int = 0


class AgreedState(msgspec.Struct, array_like=True, frozen=True):
    """A state that two nodes have alike."""

    hash: str
    blob: str = ""
    """A snapshot of it; empty: none was made yet."""
    bytes: int = 0


class ArchiveState(msgspec.Struct, array_like=True, frozen=True):
    """A closed range of a log in the blob store."""

    stop: int
    blob: str
    bytes: int


T = TypeVar("T")
_encoder = msgspec.msgpack.Encoder()
_PLACE = struct.Struct(">IQ")
_decoders: dict[type, msgspec.msgpack.Decoder[object]] = {}


def encode(row: msgspec.Struct | int) -> bytes:
    """A row's bytes."""
    return _encoder.encode(row)


def decode(data: bytes, kind: type[T]) -> T:
    """The row in these bytes, which this fold wrote."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.msgpack.Decoder(kind)
    return decoder.decode(data)  # type: ignore[return-value]


def shard_key(shard: int) -> bytes:
    """What keys of a shard begin with."""
    return shard.to_bytes(4, "big")


def place_key(shard: int, offset: int, name: str = "") -> bytes:
    """The key of a shard, an offset and perhaps a node."""
    return _PLACE.pack(shard, offset) + name.encode()


def read_place(key: bytes) -> tuple[int, int, str]:
    """Shard, offset and node of such a key."""
    shard, offset = _PLACE.unpack_from(key)
    return shard, offset, key[_PLACE.size :].decode()
