"""Floats as keys: NaN is a key like any other, and both zeros are one.

Polars 2.1's join does not find NaN where both sides have one row, and keeps whichever zero comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import polars as pl

_NAN = "__onefold_nan_"
Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def joinable(frame: Frame, keys: Sequence[str]) -> tuple[Frame, list[str]]:
    """The frame with keys that a join finds, and their names: of each float key what it is without NaN, and whether it is NaN."""
    schema = frame.collect_schema()
    on: list[str] = []
    shown: list[pl.Expr] = []
    for name in keys:
        if schema[name].is_float():
            number, is_nan = f"{_NAN}{len(on)}", f"{_NAN}{len(on) + 1}"
            shown += [
                pl.when(pl.col(name) == 0.0).then(0.0).otherwise(pl.col(name).fill_nan(0.0)).alias(number),
                pl.col(name).is_nan().alias(is_nan),
            ]
            on += [number, is_nan]
        else:
            on.append(name)
    return (frame.with_columns(shown), on) if shown else (frame, on)


def without_negative_zero(name: str, dtype: pl.DataType) -> pl.Expr:
    """The column with 0.0 for -0.0."""
    column = pl.col(name)
    return pl.when(column == 0.0).then(pl.lit(0.0, dtype=dtype)).otherwise(column).alias(name)
