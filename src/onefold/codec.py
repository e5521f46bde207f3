"""How records are written: a version byte, a CRC32C over everything else, and msgpack.

``[format u8][crc32c u32 big endian][msgpack of Record]``. The checksum covers the format byte too, so a flipped bit
anywhere is found. Formats are only ever added; a reader that meets an unknown one says so and stops.
"""

from __future__ import annotations

import struct

import google_crc32c
import msgspec

RECORD_FORMAT = 1
_HEADER = struct.Struct(">BI")


class CorruptRecord(Exception):
    """Bytes that are not a record: bad checksum, bad format or bad content."""


class UnknownFormat(CorruptRecord):
    """A record written by a newer program (its checksum is good)."""


class Op(msgspec.Struct, frozen=True, array_like=True):
    """One operation: which fold takes it, and its bytes."""

    fold: str
    body: bytes
    request_id: str | None = None


class Record(msgspec.Struct, frozen=True, array_like=True):
    """What is appended: a batch of operations of one client. ``number`` is contiguous per (client, shard), from 1."""

    client: str
    number: int
    stamp_ms: int
    ops: tuple[Op, ...]
    fold_version: int = 1


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


def crc32c(data: bytes) -> int:
    """CRC32C (Castagnoli) of the bytes."""
    return int(google_crc32c.value(data))


def encode_record(record: Record) -> bytes:
    """The record as it is stored."""
    body = _encoder.encode(record)
    crc = crc32c(bytes((RECORD_FORMAT,)) + body)
    return _HEADER.pack(RECORD_FORMAT, crc) + body


def decode_record(data: bytes) -> Record:
    """The record in these bytes. Raises UnknownFormat or CorruptRecord."""
    if len(data) < _HEADER.size:
        raise CorruptRecord(f"{len(data)} bytes are too few for a record")
    fmt, crc = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if crc32c(bytes((fmt,)) + body) != crc:
        raise CorruptRecord("checksum does not match")
    if fmt != RECORD_FORMAT:
        raise UnknownFormat(f"record format {fmt}; this program knows {RECORD_FORMAT}")
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise CorruptRecord(str(error)) from error
