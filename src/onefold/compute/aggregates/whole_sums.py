"""Sums of whole numbers, durations and decimals that are right or an error, never a number that has wrapped around.

Polars adds in the column's own type and wraps around silently. The extremes of a split's values mostly show that none of its
sums can have wrapped. Otherwise the split is added a second time, as floats, which are far less than half a turn off: they tell
how often the exact sum has wrapped. Sums that 64 bits do not hold are kept as Int128; the result's column is
Int128 then, and else what Polars gives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import polars as pl

from onefold.compute.aggregates.base import State, nulls, zero_filled
from onefold.errors import InvalidValue

_BITS: Final = {"Int64": 64, "UInt64": 64, "Int128": 128, "UInt128": 128, "Duration": 64}
_WIDEST: Final = ("Int128", "UInt128", "Duration")
"""Types whose sums have no wider one."""
_DOUBT: Final = 0.25
"""Turns that the float may be off: its relative error is below 2**-53 for each of the rows."""


def bounds(column: pl.Expr, dtype: pl.DataType) -> dict[str, pl.Expr]:
    """The extremes of a column whose sums may wrap around."""
    if str(dtype.base_type()) not in _BITS:
        return {}
    numbers = column.to_physical()
    return {"lo": numbers.min(), "hi": numbers.max()}


def is_exact(state: State, bounds: Mapping[str, Any]) -> bool:
    """Whether no sum of so many values between these extremes has wrapped around."""
    if not bounds:
        return True
    largest = max(-(bounds["lo"] or 0), bounds["hi"] or 0)
    most: Any = state["c"].max()
    return bool(largest * (most or 0) < 2 ** (_BITS[str(state["s"].dtype.base_type())] - 1))


def witness(column: pl.Expr, dtype: pl.DataType) -> dict[str, pl.Expr]:
    """The second sum of a column."""
    if str(dtype.base_type()) not in _BITS:
        return {}
    return {"f": column.to_physical().cast(pl.Float64).sum()}


def settled(state: State) -> State:
    """The state without the second sum: its sum as it is, or exact as Int128. Raises InvalidValue."""
    if "f" not in state:
        return state
    kept = {name: series for name, series in state.items() if name != "f"}
    total = kept["s"]
    dtype = total.dtype
    numbers = total.to_physical()
    name = str(dtype.base_type())
    turns = (state["f"] - numbers.cast(pl.Float64)) / 2.0 ** _BITS[name]
    whole = turns.round()
    if ((turns - whole).abs() > _DOUBT).any():
        raise _too_large(dtype)
    if not (whole != 0).any():
        return kept
    if name in _WIDEST:
        raise _too_large(dtype)
    exact = numbers.cast(pl.Int128) + whole.cast(pl.Int128) * _series(2**64, len(numbers))
    return {
        **kept,
        "s": exact.alias(total.name),
        "t": nulls("t", dtype, len(total)),
    }


def fit(left: pl.Series, right: pl.Series) -> bool:
    """Whether no sum of a value of each needs more than the 64 bits that they have."""
    if left.dtype != right.dtype or left.dtype not in (pl.Int64, pl.UInt64):
        return True
    return _largest(left) + _largest(right) < 2**63


def added(left: pl.Series, right: pl.Series) -> pl.Series:
    """``left + right`` row by row, nulls as zero. Raises InvalidValue where a sum needs more than the type holds; for 64 bits
    ``fit`` has to be asked before.
    """
    left, right = zero_filled(left), zero_filled(right)
    if left.dtype == right.dtype and isinstance(left.dtype, pl.Decimal):
        try:
            return left + right
        except pl.exceptions.ComputeError as error:
            raise _too_large(left.dtype) from error
    total = left + right
    if str(left.dtype.base_type()) in _WIDEST and left.dtype == right.dtype:
        one, other, both = (series.to_physical() for series in (left, right, total))
        wrapped = (
            both < one if left.dtype == pl.UInt128 else ((one < 0) == (other < 0)) & ((both < 0) != (one < 0))
        )
        if wrapped.any():
            raise _too_large(left.dtype)
    return total


def narrowed(total: pl.Series, wanted: pl.DataType) -> pl.Series:
    """The sums in the type that Polars gives them, or in a wider one where one of them does not fit."""
    if total.dtype == wanted:
        return total
    tried = total.cast(wanted, strict=False)
    return tried if tried.null_count() == total.null_count() else total


def decimals_too_large() -> InvalidValue:
    """The error for a sum of decimals within a split."""
    return _too_large(pl.Decimal(38, 0))


def _largest(values: pl.Series) -> int:
    low: Any = values.min()
    high: Any = values.max()
    return max(-(low or 0), high or 0)


def _series(value: int, rows: int) -> pl.Series:
    return pl.Series([value], dtype=pl.Int128).new_from_index(0, rows)


def _too_large(dtype: pl.DataType) -> InvalidValue:
    name = "Decimal" if isinstance(dtype, pl.Decimal) else str(dtype)
    return InvalidValue(
        f"a sum is more than {name} holds; cast the column to Float64 before it is summed, or sum smaller units"
    )
