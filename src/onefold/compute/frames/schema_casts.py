"""Columns that have a type already, brought to the one that ``schema=`` gives: by the rules for values (``schema_values``).

Which types meet is decided by the types, and only then whether each value is held exactly. So a cast that works for some
values of a type, such as "1" as a whole number, is refused for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from onefold.compute import foreign
from onefold.compute.frames.common_types import cast_expr
from onefold.compute.frames.schema_values import refused
from onefold.compute.frames.values import column_of, has_inexact_values

if TYPE_CHECKING:
    import polars as pl


def cast_exactly(series: pl.Series, dtype: Any) -> pl.Series:
    """The column with this type. Raises InvalidValue where that would change a value."""
    import polars as pl

    dtype = pl.Series([], dtype=dtype).dtype  # an instance, where a class was given
    if series.dtype == dtype:
        return series
    reads_text = False
    for part, wanted in _leaves(series, dtype):
        _check(part, wanted)
        reads_text = reads_text or _is_read(part.dtype, wanted)
    if reads_text:
        if has_inexact_values(series.dtype):
            first = series.drop_nulls().first()
            raise refused(
                series.name, first, dtype, "it is text next to times that Python does not hold exactly"
            )
        return column_of(series.name, series.to_list(), dtype)
    with foreign.translated(f"column {series.name!r} cannot be brought to the type {dtype} of schema="):
        expr = cast_expr(pl.col(series.name), series.dtype, dtype)
        return series.to_frame().select(expr.alias(series.name)).to_series()


def _leaves(series: pl.Series, dtype: Any) -> Iterator[tuple[pl.Series, Any]]:
    """The columns of other types that a column is or holds, and what they are to become. Raises InvalidValue."""
    import polars as pl

    if series.dtype in (dtype, pl.Null) or not len(series):
        return
    if isinstance(series.dtype, pl.List | pl.Array) and isinstance(dtype, pl.List | pl.Array):
        yield from _leaves(series.explode().alias(f"{series.name}[]"), dtype.inner)
    elif isinstance(series.dtype, pl.Struct) and isinstance(dtype, pl.Struct):
        types = {field.name: field.dtype for field in dtype.fields}
        for field in series.dtype.fields:
            if field.name not in types:
                _refuse_all(series, dtype, f"it has a field {field.name!r} more")
            else:
                part = series.struct.field(field.name).alias(f"{series.name}.{field.name}")
                yield from _leaves(part, types[field.name])
    else:
        yield series, dtype


def _check(series: pl.Series, dtype: Any) -> None:
    """Raise InvalidValue for a column, not of lists or structs, that the type does not hold exactly."""
    why = _why_not(series.dtype, dtype)
    if why is not None:
        _refuse_all(series, dtype, why)
    if why is not None or _is_read(series.dtype, dtype):
        return
    try:
        made = series.cast(dtype, strict=True)
        if series.dtype.is_float() and dtype.is_float():
            wrong = series.is_finite() & made.is_infinite()  # rounding is what the type asks for
        else:
            wrong = made.cast(series.dtype, strict=False).ne_missing(series)
    except BaseException as error:
        if not foreign.is_foreign(error):
            raise
        raise refused(series.name, series.drop_nulls().first(), dtype, foreign.why(error)) from error
    if wrong.any():
        raise refused(series.name, series[wrong.arg_true()[0]], dtype, "it would be changed")


def _why_not(held: Any, dtype: Any) -> str | None:
    """Why no value of one type is one of another, whatever it is."""
    import polars as pl

    texts = (pl.String, pl.Categorical, pl.Enum)
    if isinstance(held, pl.Datetime) and isinstance(dtype, pl.Datetime):
        if (held.time_zone is None) != (dtype.time_zone is None):
            return "it has no zone" if held.time_zone is None else "it has a zone, and the type has none"
        return None
    if isinstance(held, texts):
        fits = isinstance(dtype, (*texts, pl.Binary)) or _is_read(held, dtype)
        return None if fits else "it is text"
    if isinstance(dtype, texts) and held != pl.Binary:
        return "it is not text"
    if held == pl.Date and isinstance(dtype, pl.Datetime):
        return "it has no zone" if dtype.time_zone is not None else None
    if isinstance(held, pl.Datetime) and dtype == pl.Date:
        return "it has a zone" if held.time_zone is not None else None
    if held.is_temporal() and dtype.is_temporal() and held.base_type() != dtype.base_type():
        return "it is another kind of date or time"
    return None


def _is_read(held: Any, dtype: Any) -> bool:
    """Whether values are text that is read, as the text of a function's values is."""
    import polars as pl

    return isinstance(held, pl.String | pl.Categorical | pl.Enum) and (
        dtype.is_decimal() or isinstance(dtype, pl.Date | pl.Time | pl.Datetime)
    )


def _refuse_all(series: pl.Series, dtype: Any, why: str) -> None:
    """Raise InvalidValue, unless there is no value."""
    held = series.drop_nulls()
    if len(held):
        raise refused(series.name, held.first(), dtype, why)
