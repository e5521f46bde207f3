"""Columns made of values, or of other types, only where every value stays what it is.

Polars makes text of a number next to text, a number of a boolean next to a number, and rounds where a type is too narrow.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import polars as pl
else:
    pl = LazyModule("polars")

_NEVER_CHANGED = (bool, int, float, str, bytes, dt.date, dt.time, dt.timedelta)
_DECIMAL_DIGITS_MAX: Final = 38
"""Digits of a column of decimals, before and after the point together."""


def exactly(column: pl.Series, dtype: Any) -> pl.Series | None:
    """The column in this type; None unless all its values mean the same there."""
    if column.dtype == dtype:
        return column
    if not _meets(column.dtype, dtype):
        return None
    try:
        if column.dtype.is_nested():  # a cast would take the fields of structs by their places
            values = column.to_list()
            wide = pl.Series(column.name, values, dtype=dtype, strict=False)
            return wide if _all_same(wide, values) else None
        wide = column.cast(dtype)
        return wide if wide.cast(column.dtype).eq_missing(column).all() else None
    except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
        return None


def _meets(left: Any, right: Any) -> bool:
    """Whether both are of one kind: numbers, text, times in one zone, lists or structs of such."""
    if left in (right, pl.Null):
        return True
    if isinstance(left, pl.List) and isinstance(right, pl.List):
        return _meets(left.inner, right.inner)
    if isinstance(left, pl.Array) and isinstance(right, pl.Array):
        return left.shape == right.shape and _meets(left.inner, right.inner)
    if isinstance(left, pl.Struct) and isinstance(right, pl.Struct):
        wide = {field.name: field.dtype for field in right.fields}
        return all(field.name in wide and _meets(field.dtype, wide[field.name]) for field in left.fields)
    if isinstance(left, pl.Datetime) and isinstance(right, pl.Datetime):
        return left.time_zone == right.time_zone
    texts = (pl.String, pl.Categorical, pl.Enum)
    if any(left == text for text in texts):
        return any(right == text for text in texts)
    if left.is_decimal() or right.is_decimal():
        return bool(left.is_decimal() and right.is_decimal())
    if left.is_numeric():
        return bool(right.is_numeric())
    return bool(left.base_type() == right.base_type())


def series_of(name: str, values: Sequence[Any]) -> pl.Series:
    """The values as a column; UUIDs as text, also inside of lists and dicts. Raises TypeError, or what Polars raises, for values
    that no column holds as they are."""
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) <= 1 and kinds <= set(_NEVER_CHANGED):
        return pl.Series(name, values, strict=True)
    held = [_held(name, value) for value in values]
    series = pl.Series(name, held, strict=True)
    if not _all_same(series, held):  # types were found from the first values alone
        rows = [{"v": value} for value in held]
        series = pl.from_dicts(rows, infer_schema_length=None)["v"].alias(name)
        if not _all_same(series, held):
            shown = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(f"column {name!r} holds {shown} that do not fit into one type")
    return series


def _held(name: str, value: Any) -> Any:
    """The value as Polars makes columns of it. Raises TypeError for what no column holds: Polars panics at some of it, and of an
    object it does not know a column of addresses may come out."""
    if value is None or isinstance(value, _NEVER_CHANGED):
        return value
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, Decimal):
        _, digits, exponent = value.as_tuple()
        if not isinstance(exponent, int):
            raise TypeError(f"column {name!r} holds {value!r}, which no column of decimals can hold")
        if max(len(digits) + exponent, 0) + max(-exponent, 0) > _DECIMAL_DIGITS_MAX:
            raise TypeError(
                f"column {name!r} holds {value!r}; a column of decimals has at most {_DECIMAL_DIGITS_MAX} digits, before and "
                "after the point together"
            )
        return value
    if isinstance(value, dict):
        for field in value:
            if not isinstance(field, str):
                raise TypeError(
                    f"column {name!r} holds a dict with the key {field!r}; fields of a column have text as their names"
                )
        return {field: _held(name, item) for field, item in value.items()}
    if isinstance(value, list | tuple):
        return [_held(name, item) for item in value]
    raise TypeError(f"column {name!r} holds {type(value).__name__}, which no column can hold")


def _all_same(series: pl.Series, values: Sequence[Any]) -> bool:
    return all(map(_same, series.to_list(), values))


def _same(stored: Any, value: Any) -> bool:
    if isinstance(value, dict):
        return (
            isinstance(stored, dict)
            and value.keys() <= stored.keys()
            and all(_same(stored[key], value.get(key)) for key in stored)
        )
    if isinstance(value, list | tuple):
        return isinstance(stored, list) and len(stored) == len(value) and all(map(_same, stored, value))
    if isinstance(value, bool) or isinstance(stored, bool):
        return stored is value
    if isinstance(value, dt.datetime):
        return (
            isinstance(stored, dt.datetime)
            and (stored.tzinfo is None) == (value.tzinfo is None)
            and stored == value
        )
    if isinstance(value, float) and math.isnan(value):
        return isinstance(stored, float) and math.isnan(stored)
    return bool(stored == value)
