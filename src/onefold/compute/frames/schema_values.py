"""Values for a column whose type ``schema=`` gives: each is held exactly, or is an error that names it.

Only floats for Float32 are rounded, since that is what the type asks for.
"""

from __future__ import annotations

import datetime
import decimal
import math
import struct
from collections.abc import Sequence
from typing import Any, Final

from onefold.compute.frames.value_types import decimal_digits, plain
from onefold.compute.frames.values_as_text import safe_repr
from onefold.errors import InvalidValue

_VALUE_CHARS_MAX: Final = 200
_EXACT_MAX: Final = 2**53
"""Whole numbers up to it are floats."""
_KINDS: Final[dict[str, type]] = {
    "String": str,
    "Categorical": str,
    "Enum": str,
    "Binary": bytes,
    "Boolean": bool,
}
_EPOCH: Final = datetime.datetime(1970, 1, 1)
_NANOSECONDS_MAX: Final = datetime.timedelta(microseconds=2**63 // 1_000)


def conforming(name: str, values: Sequence[Any], dtype: Any) -> Sequence[Any]:
    """The values as Polars makes a column of this type of them without changing any. Raises InvalidValue."""
    kinds = set(map(type, values))
    kinds.discard(type(None))
    if not kinds or _always_exact(kinds, values, dtype):
        return values
    return [None if value is None else _one(name, plain(value), dtype) for value in values]


def _always_exact(kinds: set[type], values: Sequence[Any], dtype: Any) -> bool:
    """Whether Polars holds all values exactly, or refuses them by itself: the usual columns, without a look at each value."""
    import polars as pl

    if dtype == pl.Float64 and kinds <= {int, float}:
        return int not in kinds or all(
            -_EXACT_MAX <= value <= _EXACT_MAX for value in values if type(value) is int
        )
    if len(kinds) > 1:
        return False
    (kind,) = kinds
    if kind is datetime.datetime:
        return dtype == pl.Datetime("us") and all(value is None or value.tzinfo is None for value in values)
    return (
        (kind is int and dtype.is_integer())
        or (kind is str and dtype in (pl.String, pl.Categorical))
        or (kind is bool and dtype == pl.Boolean)
        or (kind is bytes and dtype == pl.Binary)
        or (kind is datetime.date and dtype == pl.Date)
        or (kind is datetime.timedelta and dtype == pl.Duration("us"))
    )


def _one(name: str, value: Any, dtype: Any) -> Any:
    import polars as pl

    if value is None:
        return None
    if dtype == pl.Null:
        raise refused(name, value, dtype, "only None fits")
    if dtype.is_float():
        return _float(name, value, dtype)
    if dtype.is_decimal():
        return _decimal(name, value, dtype)
    if dtype.is_temporal() or isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return _time(name, value, dtype)
    if isinstance(dtype, pl.List | pl.Array):
        if not isinstance(value, list) or (isinstance(dtype, pl.Array) and len(value) != dtype.size):
            raise refused(name, value, dtype, "it is not such a list")
        return [_one(f"{name}[]", item, dtype.inner) for item in value]
    if isinstance(dtype, pl.Struct):
        if not isinstance(value, dict):
            raise refused(name, value, dtype, "it is not a dict")
        types = {field.name: field.dtype for field in dtype.fields}
        for field in value:
            if field not in types:
                raise refused(name, value, dtype, f"it has a field {field!r} more")
        return {field: _one(f"{name}.{field}", item, types[field]) for field, item in value.items()}
    # Polars is lenient inside structs, so nothing is left to it.
    if dtype.is_integer():
        bits = int(str(dtype).lstrip("UInt"))
        low, high = (0, 2**bits) if dtype.is_unsigned_integer() else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        if not isinstance(value, int) or not low <= value < high:
            raise refused(name, value, dtype, "it is not a whole number of this width")
        return value
    wanted = _KINDS.get(str(dtype.base_type()))
    if wanted is not None and not isinstance(value, wanted):
        raise refused(name, value, dtype, f"it is not {wanted.__name__}")
    if isinstance(dtype, pl.Enum) and value not in dtype.categories:
        raise refused(name, value, dtype, "it is not one of the categories")
    return value


def _float(name: str, value: Any, dtype: Any) -> Any:
    import polars as pl

    if isinstance(value, decimal.Decimal) and value.is_finite():
        held = float(value)
        if decimal.Decimal(repr(held)) != value:
            raise refused(name, value, dtype, "it has more digits than a float")
        value = held
    if not isinstance(value, int | float | decimal.Decimal):
        raise refused(name, value, dtype, "it is not a number")
    try:
        narrow = value = float(value) if not isinstance(value, int) else value
        if dtype != pl.Float64 and math.isfinite(value):
            code = "<f" if dtype == pl.Float32 else "<e"
            (narrow,) = struct.unpack(code, struct.pack(code, float(value)))
        else:
            narrow = float(value)
    except OverflowError:
        raise refused(name, value, dtype, "it is too large") from None
    if isinstance(value, int) and narrow != value:
        raise refused(name, value, dtype, "no float of this width is this number")
    return narrow if isinstance(value, int) else value


def _decimal(name: str, value: Any, dtype: Any) -> Any:
    if isinstance(value, str | float):
        try:
            value = decimal.Decimal(value if isinstance(value, str) else repr(value))
        except decimal.InvalidOperation:
            raise refused(name, value, dtype, "it is not a number") from None
    if isinstance(value, int):
        value = decimal.Decimal(int(value))
    if not isinstance(value, decimal.Decimal):
        raise refused(name, value, dtype, "it is not a number")
    # Trailing zeros need no digits.
    before, after = decimal_digits(name, [_without_zeros(value)])
    if after > dtype.scale:
        raise refused(name, value, dtype, f"it has {after} digits after the point")
    if before > (dtype.precision or 38) - dtype.scale:
        raise refused(name, value, dtype, f"it has {before} digits before the point")
    return value


def _without_zeros(value: decimal.Decimal) -> decimal.Decimal:
    sign, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return value
    if not value:
        return decimal.Decimal(0)
    while exponent < 0 and digits[-1] == 0:
        digits, exponent = digits[:-1], exponent + 1
    return decimal.Decimal((sign, digits, exponent))


def _time(name: str, value: Any, dtype: Any) -> Any:
    import polars as pl

    if isinstance(value, str) and dtype.is_temporal():
        value = _read(name, value, dtype)
    if type(value) is int and dtype.is_temporal():
        return value  # as Polars counts: days, or the unit
    if getattr(value, "nanosecond", 0) or getattr(value, "nanoseconds", 0):
        raise refused(name, value, dtype, "it has nanoseconds")
    if isinstance(value, datetime.timedelta):
        if not isinstance(dtype, pl.Duration):
            raise refused(name, value, dtype, "it is a duration")
        _check_unit(name, value, value, dtype)
        return value
    if isinstance(value, datetime.time):
        if dtype != pl.Time:
            raise refused(name, value, dtype, "it is a time of day")
        if value.tzinfo is not None:
            raise refused(name, value, dtype, "it has a zone")
        return value
    if not isinstance(value, datetime.date):
        raise refused(name, value, dtype, "it is not a date or time")
    if isinstance(dtype, pl.Datetime):
        if not isinstance(value, datetime.datetime):
            value = datetime.datetime(value.year, value.month, value.day)
        if (value.tzinfo is None) != (dtype.time_zone is None):
            why = "it has no zone" if value.tzinfo is None else "it has a zone, and the type has none"
            raise refused(name, value, dtype, why)
        moment = value if value.tzinfo is None else value.astimezone(datetime.UTC)
        _check_unit(name, value, moment.replace(tzinfo=None) - _EPOCH, dtype)
        return moment
    if dtype != pl.Date:
        raise refused(name, value, dtype, "it is a date")
    if not isinstance(value, datetime.datetime):
        return value
    if value.tzinfo is not None:
        raise refused(name, value, dtype, "it has a zone")
    if value.time() != datetime.time():
        raise refused(name, value, dtype, "it has a time of day")
    return value.date()


def _read(name: str, value: str, dtype: Any) -> Any:
    """Text as ISO 8601 has it. Polars would guess the format from the first value."""
    import polars as pl

    try:
        if dtype == pl.Date:
            return datetime.date.fromisoformat(value)
        if dtype == pl.Time:
            return datetime.time.fromisoformat(value)
        if isinstance(dtype, pl.Datetime):
            return datetime.datetime.fromisoformat(value)
    except ValueError:
        pass
    raise refused(name, value, dtype, "it is not such a date or time as ISO 8601 writes it")


def _check_unit(name: str, value: Any, since: datetime.timedelta, dtype: Any) -> None:
    if dtype.time_unit == "ms" and since.microseconds % 1_000:
        raise refused(name, value, dtype, "it is finer than the unit")
    if dtype.time_unit == "ns" and abs(since) >= _NANOSECONDS_MAX:
        raise refused(name, value, dtype, "it is out of range")


def refused(name: str, value: Any, dtype: Any, why: str) -> InvalidValue:
    """The error for a value that the type of ``schema=`` does not hold."""
    return InvalidValue(
        f"column {name!r} cannot be held in a column of the type {dtype} that schema= gives it: "
        f"{safe_repr(value, _VALUE_CHARS_MAX)} does not fit exactly: {why}; convert it in the function, or give "
        f"schema= another type"
    )
