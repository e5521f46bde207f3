"""Columns made of values, or of other types, only where every value stays what it is.

Polars makes text of a number next to text, a number of a boolean next to a number, and rounds where a type is too narrow.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import polars as pl
else:
    pl = LazyModule("polars")

_NEVER_CHANGED = (bool, int, float, str, bytes, dt.date, dt.time, dt.timedelta)


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
    """The values as a column. Raises TypeError, or what Polars raises, for values that no column holds as they are."""
    series = pl.Series(name, values, strict=True)
    kinds = set(map(type, values)) - {type(None)}
    if len(kinds) <= 1 and kinds <= set(_NEVER_CHANGED):
        return series
    if not _all_same(series, values):  # types were found from the first values alone
        rows = [{"v": value} for value in values]
        series = pl.from_dicts(rows, infer_schema_length=None)["v"].alias(name)
        if not _all_same(series, values):
            shown = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(f"column {name!r} holds {shown} that do not fit into one type")
    return series


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
