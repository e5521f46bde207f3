"""Merging two partial frames: groups of one side are kept, groups of both are combined.

Partial frames are sorted by their keys. Mostly two splits hold the same groups; then the key columns are equal and states
are combined as they stand, by vectorised arithmetic without hashing. Whatever path is taken, a group's state is
``combine(left, right)``, so the result does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from onefold.compute.aggregates.base import Aggregate, State
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEFT, _RIGHT, _KEY = "__onefold_left", "__onefold_right", "__onefold_key"


def merge_pair(
    a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str], aggs: Sequence[tuple[str, Aggregate]]
) -> pl.DataFrame:
    """The partial of both frames' rows, sorted by the keys. ``a`` is the lower side of the merge tree.

    Frames whose dtypes differ (a column that was all null in one split) are brought to common supertypes. Raises
    InvalidPlan if there is none.
    """
    if a.schema != b.schema:
        a, b = _conformed(a, b, keys)
    if not keys:
        return _combined(a, b, keys, aggs)
    if a.height == 0 or b.height == 0:
        return b if a.height == 0 else a
    if a.height == b.height and all(a[key].equals(b[key]) for key in keys):
        return _combined(a, b, keys, aggs)
    in_a, in_b, order = _aligned(a, b, keys)
    both = _combined(_rows(a, in_a), _rows(b, in_b), keys, aggs)
    return _rows(pl.concat([a, b, both], rechunk=True), order)


def state_of(frame: pl.DataFrame, name: str) -> State:
    """The state columns of one aggregate, by suffix."""
    prefix = name + ":"
    return {
        column[len(prefix) :]: frame[column]
        for column in frame.columns
        if column.startswith(prefix) and ":" not in column[len(prefix) :]
    }


def _combined(
    a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str], aggs: Sequence[tuple[str, Aggregate]]
) -> pl.DataFrame:
    columns: dict[str, pl.Series] = {key: a[key] for key in keys}
    for name, agg in aggs:
        for suffix, series in agg.combine(state_of(a, name), state_of(b, name)).items():
            columns[f"{name}:{suffix}"] = series.alias(f"{name}:{suffix}")
    return pl.DataFrame([columns[column] for column in a.columns])


def _rows(frame: pl.DataFrame, index: NDArray[Any]) -> pl.DataFrame:
    return frame.select(pl.all().gather(pl.Series(index)))


def _aligned(
    a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Rows of ``a`` and of ``b`` that are the same group, and the order in which rows of (a, b, both) are the result."""
    if len(keys) == 1 and _numeric(a[keys[0]]) and _numeric(b[keys[0]]):
        return _aligned_numbers(a[keys[0]].to_physical().to_numpy(), b[keys[0]].to_physical().to_numpy())
    left = a.select(keys).with_row_index(_LEFT)
    right = b.select(keys).with_row_index(_RIGHT)
    union = left.join(right, on=keys, how="full", coalesce=True, nulls_equal=True).sort(keys)
    both = union.select(_LEFT, _RIGHT).drop_nulls()
    total = a.height + b.height
    has_both = pl.col(_LEFT).is_not_null() & pl.col(_RIGHT).is_not_null()
    order = union.select(
        pl.when(has_both)
        .then(total - 1 + has_both.cast(pl.Int64).cum_sum())
        .otherwise(pl.coalesce(pl.col(_LEFT).cast(pl.Int64), pl.col(_RIGHT).cast(pl.Int64) + a.height))
    ).to_series()
    return both[_LEFT].to_numpy(), both[_RIGHT].to_numpy(), order.to_numpy()


def _numeric(key: pl.Series) -> bool:
    dtype = key.dtype
    whole = dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128)
    return (whole or dtype.is_temporal()) and key.null_count() == 0


def _aligned_numbers(a: NDArray[Any], b: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The same for one sorted integer key: a stable sort of two runs is one linear merge."""
    keys = np.concatenate([a, b])
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    in_a, in_b = order[twice], order[twice + 1] - len(a)
    order[twice] = len(keys) + np.arange(len(twice))
    return in_a, in_b, np.delete(order, twice + 1)


def _conformed(a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames with the same columns and common supertypes, each sorted again if a key's dtype changed."""
    try:
        top = pl.concat([a.clear(), b.clear()], how="diagonal_relaxed").schema
    except pl.exceptions.PolarsError as error:
        raise InvalidPlan(f"the partial results of two splits do not fit together: {error}") from error

    def conform(frame: pl.DataFrame) -> pl.DataFrame:
        columns = [
            pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name)
            for name, dtype in top.items()
        ]
        changed = any(frame.schema[key] != top[key] for key in keys)
        frame = frame.select(columns)
        return frame.sort(keys) if changed else frame

    return conform(a), conform(b)
