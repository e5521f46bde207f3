"""The msgpack extension types of stored values: what msgpack itself has no type for.

Codes are only ever added. The numbers in them are big endian; wall clock times are counted from 1970-01-01T00:00.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec

from onefold.errors import InvalidValue

BIG_INT: Final = 1
"""An int beyond 64 bits: two's complement."""
DATETIME_NAIVE: Final = 2
"""Wall clock microseconds (i64)."""
DATETIME_AWARE: Final = 3
"""Wall clock microseconds (i64), then the offset from UTC in microseconds (i64), left out when it is zero."""
DATE: Final = 4
"""The proleptic Gregorian ordinal (u32); day 1 is 0001-01-01."""
TIME: Final = 5
"""Microseconds since midnight (i64), then the offset as in DATETIME_AWARE, which is never left out of an aware time."""
TIMEDELTA: Final = 6
"""Days (i32), seconds (u32) and microseconds (u32)."""
DECIMAL: Final = 7
"""Its digits as text."""
UUID_BYTES: Final = 8
"""Its 16 bytes."""

SPECIAL_TYPES: Final = (datetime, date, time, timedelta, Decimal, UUID)
"""The types, besides big ints, that travel as extensions."""

_EPOCH: Final = datetime(1970, 1, 1)
_MICROSECOND: Final = timedelta(microseconds=1)
_I64: Final = struct.Struct(">q")
_I64_PAIR: Final = struct.Struct(">qq")
_DATE: Final = struct.Struct(">I")
_TIMEDELTA: Final = struct.Struct(">iII")


def pack_big_int(value: int) -> msgspec.msgpack.Ext:
    """The int as an extension."""
    return msgspec.msgpack.Ext(BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def pack_special(value: object) -> msgspec.msgpack.Ext | None:
    """The value as an extension, or None when its type is not one of SPECIAL_TYPES (or a subclass).

    Of a time zone the offset at that time is kept, not the name. ``fold`` of a naive time is not kept.
    Raises ValueError for a time that has a zone but no offset.
    """
    if isinstance(value, datetime):
        return _pack_datetime(value)
    if isinstance(value, date):
        return msgspec.msgpack.Ext(DATE, _DATE.pack(value.toordinal()))
    if isinstance(value, time):
        return _pack_time(value)
    if isinstance(value, timedelta):
        return msgspec.msgpack.Ext(TIMEDELTA, _TIMEDELTA.pack(value.days, value.seconds, value.microseconds))
    if isinstance(value, Decimal):
        return msgspec.msgpack.Ext(DECIMAL, Decimal.__str__(value).encode("ascii"))
    if isinstance(value, UUID):
        return msgspec.msgpack.Ext(UUID_BYTES, value.bytes)
    return None


def unpack_extension(code: int, data: memoryview) -> Any:
    """What an extension stands for. Raises InvalidValue for unknown codes and for bytes that do not fit theirs."""
    unpack = _UNPACK.get(code)
    if unpack is None:
        raise InvalidValue(
            f"the value holds the unknown extension type {code}; a newer program may have written it"
        )
    try:
        return unpack(bytes(data))
    except (ValueError, ArithmeticError, struct.error) as error:
        raise InvalidValue(
            f"extension type {code} with {len(data)} bytes that do not fit it: {error}"
        ) from None


def _pack_datetime(value: datetime) -> msgspec.msgpack.Ext:
    # The wall clock, not the instant: near year 1 and 9999 the instant may lack a representation in UTC.
    wall = (datetime.combine(value.date(), value.time()) - _EPOCH) // _MICROSECOND
    offset = value.utcoffset()
    if offset is None:
        return msgspec.msgpack.Ext(DATETIME_NAIVE, _I64.pack(wall))
    if not offset:
        return msgspec.msgpack.Ext(DATETIME_AWARE, _I64.pack(wall))
    return msgspec.msgpack.Ext(DATETIME_AWARE, _I64_PAIR.pack(wall, offset // _MICROSECOND))


def _pack_time(value: time) -> msgspec.msgpack.Ext:
    offset = value.utcoffset()
    if value.tzinfo is not None and offset is None:
        raise ValueError("the offset of its zone depends on the day; use a datetime")
    micros = ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
    if offset is None:
        return msgspec.msgpack.Ext(TIME, _I64.pack(micros))
    return msgspec.msgpack.Ext(TIME, _I64_PAIR.pack(micros, offset // _MICROSECOND))


def _zone(offset_us: int) -> tzinfo:
    return timezone.utc if offset_us == 0 else timezone(timedelta(microseconds=offset_us))  # noqa: UP017


def _big_int(data: bytes) -> int:
    if not data:
        raise ValueError("no bytes")
    return int.from_bytes(data, "big", signed=True)


def _naive(data: bytes) -> datetime:
    return _EPOCH + timedelta(microseconds=_I64.unpack(data)[0])


def _aware(data: bytes) -> datetime:
    wall, offset = _I64_PAIR.unpack(data) if len(data) == _I64_PAIR.size else (*_I64.unpack(data), 0)
    return (_EPOCH + timedelta(microseconds=wall)).replace(tzinfo=_zone(offset))


def _time(data: bytes) -> time:
    if len(data) == _I64_PAIR.size:
        micros, offset = _I64_PAIR.unpack(data)
        zone: tzinfo | None = _zone(offset)
    else:
        (micros,) = _I64.unpack(data)
        zone = None
    seconds, microsecond = divmod(micros, 1_000_000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return time(hour, minute, second, microsecond, tzinfo=zone)


def _timedelta(data: bytes) -> timedelta:
    days, seconds, micros = _TIMEDELTA.unpack(data)
    return timedelta(days, seconds, micros)


def _decimal(data: bytes) -> Decimal:
    text = data.decode("ascii")
    value = Decimal(text)
    # Python reads more than it writes (spaces, underscores), and with some contexts it reads garbage as NaN.
    if Decimal.__str__(value).lower() != text.lower():
        raise ValueError("not the text of a Decimal")
    return value


_UNPACK: Final[dict[int, Callable[[bytes], Any]]] = {
    BIG_INT: _big_int,
    DATETIME_NAIVE: _naive,
    DATETIME_AWARE: _aware,
    DATE: lambda data: date.fromordinal(_DATE.unpack(data)[0]),
    TIME: _time,
    TIMEDELTA: _timedelta,
    DECIMAL: _decimal,
    UUID_BYTES: lambda data: UUID(bytes=data),
}
