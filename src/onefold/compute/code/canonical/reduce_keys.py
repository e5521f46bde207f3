"""Keys of ``map_reduce``: any hashable plain value, compared as a column of them compares, in a form that is
stable.

Equal keys have equal bytes in every process and release. Those are whole numbers and floats by their exact ratio (so 1 and 1.0
are one key), text, bytes, None, dates and times (aware ones by their zone and instant; fixed offsets are UTC), and
tuples of these. What no one column can hold is never equal, though Python has it so: not 1, True and Decimal(1). NaN
equals itself here. The order of the bytes is the order of the keys in the files, and means nothing else.
"""

from __future__ import annotations

import datetime as dt
import math
import zlib
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import msgspec

from onefold.errors import InvalidKey, InvalidValue

VERSION: Final = 2
"""Of the bytes: part of the names of the tasks that write them. 1 had Python's equality."""
WHOLE_FLOATS_MAX: Final = 2**53
"""All whole numbers up to it are floats."""
_pack = msgspec.msgpack.Encoder().encode
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def encode_key(key: Any) -> bytes:
    """The key's canonical bytes. Raises InvalidKey for values of other types."""
    if type(key) is str:
        return b"s" + key.encode("utf-8", "surrogatepass")
    if key is None:
        return b"0"
    if isinstance(key, bool):
        return b"B%d" % key
    if isinstance(key, int | float):
        return _number(key)
    if isinstance(key, Decimal | Fraction):
        return (b"m" if isinstance(key, Decimal) else b"f") + _number(key)
    if isinstance(key, str):
        return b"s" + str.__str__(key).encode("utf-8", "surrogatepass")
    if isinstance(key, bytes):
        return b"b" + bytes(key)
    if isinstance(key, tuple):
        return b"t" + _pack([encode_key(part) for part in key])
    if isinstance(key, dt.datetime):
        if key.tzinfo is not None and key.utcoffset() is not None:
            zone = "" if isinstance(key.tzinfo, dt.timezone) or str(key.tzinfo) == "UTC" else f"{key.tzinfo}@"
            return b"i" + f"{zone}{(key - _EPOCH) // dt.timedelta(microseconds=1)}".encode()
        return b"d" + key.replace(fold=0, tzinfo=None).isoformat().encode()
    if isinstance(key, dt.date):
        return b"D" + key.isoformat().encode()
    if isinstance(key, dt.timedelta):
        return b"T" + str(key // dt.timedelta(microseconds=1)).encode()
    raise InvalidKey(
        f"a key of map_reduce must be text, a number, bytes, a bool, None, a date, a time or a tuple of these; "
        f"got {type(key).__name__}" + (" (make it a tuple)" if isinstance(key, list) else "")
    )


def check_key(key: Any) -> None:
    """Raise InvalidKey unless ``encode_key`` takes it."""
    if type(key) is not str and type(key) is not int:
        encode_key(key)


def has_float(key: Any) -> bool:
    """Whether the key is a float or has one inside: it then stands for the equal keys with whole numbers."""
    return isinstance(key, float) or (isinstance(key, tuple) and any(map(has_float, key)))


def widest(left: Any, right: Any) -> Any:
    """Of two keys with equal bytes, the one of the common type: a float where either has a float. Never -0.0."""
    if isinstance(left, tuple):
        return tuple(map(widest, left, right))
    either = right if isinstance(right, float) else left
    return either + 0.0 if isinstance(either, float) else either


class Columns:
    """What numbers keys hold, by their place in the key: of one place, floats and whole numbers become floats in a column."""

    def __init__(self) -> None:
        self.floats: set[tuple[int, ...]] = set()
        self.whole: dict[tuple[int, ...], int] = {}
        """A whole number that no float holds."""

    def add(self, key: Any, place: tuple[int, ...] = ()) -> None:
        """Take a key in. Raises InvalidValue where different numbers could become equal ones."""
        if isinstance(key, tuple):
            for number, part in enumerate(key):
                self.add(part, (*place, number))
            return
        if isinstance(key, float):
            self.floats.add(place)
        elif isinstance(key, int) and abs(key) > WHOLE_FLOATS_MAX and not is_float(key):
            self.whole[place] = key
        else:
            return
        if place in self.floats and place in self.whole:
            raise no_float_holds(self.whole[place])


def no_float_holds(number: int | None = None) -> InvalidValue:
    """The error for a key that would become another number; ``number``: which one, where it is known."""
    key = "a key" if number is None else f"the key {number}"
    return InvalidValue(
        f"{key} of map_reduce is a whole number that no float holds, and other keys are floats: "
        f"in one column with them it would become another number; give only whole numbers, or text"
    )


def is_float(number: int) -> bool:
    """Whether a float holds the whole number."""
    try:
        return int(float(number)) == number
    except OverflowError:
        return False


def partition_of(encoded: bytes, partitions: int) -> int:
    """The partition of a canonical key: stable, and well spread (CRC-32, then a multiplicative mix)."""
    return (zlib.crc32(encoded) * 0x9E3779B1 >> 7 & 0xFFFFFFFF) % partitions


def _number(key: int | float | Decimal | Fraction) -> bytes:
    if isinstance(key, int):
        return b"n%d" % key
    if isinstance(key, float | Decimal) and not math.isfinite(key):
        return b"nan" if math.isnan(key) else b"inf" if key > 0 else b"-inf"
    over, under = key.as_integer_ratio()
    return b"n%d" % over if under == 1 else b"n%d/%d" % (over, under)
