"""How records are written: a version byte, a CRC32C over everything else, and msgpack.

``[format u8][crc32c u32 big endian][msgpack of Record]``. The checksum covers the format byte too, so a flipped bit
anywhere is found. Formats are only ever added; a reader that meets an unknown one says so and stops.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import TypeVar

import google_crc32c
import msgspec

T = TypeVar("T")

RECORD_FORMAT = 1
_HEADER = struct.Struct(">BI")
_FORMAT_CRC = google_crc32c.value(bytes((RECORD_FORMAT,)))
"""Of the format byte, from which that of a record continues."""


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
    return _HEADER.pack(RECORD_FORMAT, google_crc32c.extend(_FORMAT_CRC, body)) + body


def is_intact(data: bytes) -> bool:
    """Whether the checksum in front of these bytes is theirs, whatever their format."""
    return (
        len(data) >= _HEADER.size and crc32c(data[:1] + data[_HEADER.size :]) == _HEADER.unpack_from(data)[1]
    )


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
        return decode_anywhere(_decoder.decode, body)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise CorruptRecord(str(error)) from error


def decode_anywhere(decode: Callable[[bytes], T], data: bytes) -> T:
    """What ``decode`` makes of the bytes, however deep the caller's stack is: that must not decide what a record means.

    Raises what ``decode`` raises, and ValueError for what is nested too deeply for any stack. RecursionError says
    nothing about the bytes: there was no room to look.
    """
    try:
        return decode(data)
    except RecursionError:
        pass
    found: list[T | Exception] = []

    def run() -> None:
        try:
            found.append(decode(data))
        except RecursionError:
            found.append(ValueError("it is nested too deeply"))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run, name="onefold-decode")
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
