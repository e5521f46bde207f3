"""A column in another type, where no value of it changes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import polars as pl

from onefold.compute.frames.shown_values import shown_value

_VALUE_CHARS_MAX: Final = 60
"""Of a value in a reason."""


def cast_same(column: pl.Series, dtype: pl.DataType) -> tuple[pl.Series, Iterable[int]]:
    """The column in another type, where no value changes; and the rows whose value would."""
    if column.dtype == dtype:
        return column, ()
    if column.dtype == pl.Null:
        return column.cast(dtype), ()
    if column.dtype.is_temporal() != dtype.is_temporal() and pl.String not in (column.dtype, dtype):
        # 5 as a time is five microseconds after 1970, which nobody has said.
        return pl.Series(column.name, [None], dtype=dtype).new_from_index(
            0, len(column)
        ), column.is_not_null().arg_true()
    try:
        made = column.cast(dtype, strict=False)
        back = made.cast(column.dtype, strict=False)
    except pl.exceptions.PolarsError:
        return pl.Series(column.name, [None], dtype=dtype).new_from_index(
            0, len(column)
        ), column.is_not_null().arg_true()
    same = back.eq_missing(column)
    if same.all():
        return made, ()
    return made.zip_with(same, pl.Series([None], dtype=dtype).new_from_index(0, len(made))), (
        ~same
    ).arg_true()


def misfit(name: str, column: pl.Series, row: int, dtype: pl.DataType) -> str:
    """Why a value does not fit."""
    value = repr(shown_value(column, row))
    shown = value if len(value) <= _VALUE_CHARS_MAX else f"{value[:_VALUE_CHARS_MAX]}…"
    return f"column {name!r} holds {shown} of type {column.dtype}, which does not fit into {dtype}"
