"""Merging two partial frames: groups of one side are kept, groups of both are combined.

Partial frames are merged in key order. Mostly two splits hold the same groups; then the key columns are
equal and states are combined as they stand, by vectorised arithmetic without hashing. Whatever path is taken,
a group's state is ``combine(left, right)``, so the result does not depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from onefold.compute.aggregates.base import Aggregate, State
from onefold.compute.lazy import LazyModule
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

_ROW = "__onefold_row"
LEFT_UNSORTED_ROWS = 20_000
"""Partials of this height or more are left as the engine gives them (a sort costs a task a tenth of its time, and readers
that merge all at once do not need it); whoever does need them in key order sorts them then."""


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
    a, b = in_key_order(a, keys), in_key_order(b, keys)
    if a.height == 0 or b.height == 0:
        return b if a.height == 0 else a
    if a.height == b.height and all(a[key].equals(b[key]) for key in keys):
        return _combined(a, b, keys, aggs)
    order, twice = _aligned(a, b, keys)
    first, second = order[twice], order[twice + 1]
    keep = np.ones(len(order), dtype=np.bool_)
    keep[twice + 1] = False
    groups = _rows(pl.concat([a.select(keys), b.select(keys)], rechunk=True), order[keep])
    states = [column for column in a.columns if column not in keys]
    left, right = a.select(states), b.select(states)
    in_a, in_b = np.minimum(first, second), np.maximum(first, second) - a.height
    both = _combined(_rows(left, in_a), _rows(right, in_b), (), aggs)
    order[twice] = len(order) + np.arange(len(twice))
    return (
        groups.hstack(_rows(pl.concat([left, right, both], rechunk=True), order[keep])) if states else groups
    )


def in_key_order(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The frame sorted by its keys, which only large ones may not be already."""
    if not keys or frame.height < LEFT_UNSORTED_ROWS:
        return frame
    if len(keys) == 1 and frame[keys[0]].is_sorted():
        return frame
    return frame.sort(keys)


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


def _aligned(a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Rows of (a, b) in the order of their keys, and the places in it whose row is the same group as the next.

    Both sides are sorted and have each group once, so in one sorted run the two rows of a group stand side by side.
    """
    if len(keys) == 1 and _numeric(a[keys[0]]) and _numeric(b[keys[0]]):
        runs = np.concatenate([a[keys[0]].to_physical().to_numpy(), b[keys[0]].to_physical().to_numpy()])
        order = np.argsort(runs, kind="stable")
        ordered = runs[order]
        same = ordered[1:] == ordered[:-1]
    elif len(keys) == 1:
        key = pl.concat([a[keys[0]], b[keys[0]]])
        index = key.arg_sort()
        order = index.to_numpy().astype(np.int64)
        same = _same_as_next(key.gather(index).to_frame())
    else:
        left = a.select(keys).with_columns(pl.int_range(a.height).alias(_ROW))
        right = b.select(keys).with_columns(pl.int_range(a.height, a.height + b.height).alias(_ROW))
        run = left.merge_sorted(right, keys, maintain_order=True)
        order = run[_ROW].to_numpy().copy()
        same = _same_as_next(run.select(keys))
    return order, np.flatnonzero(same)


def _numeric(key: pl.Series) -> bool:
    """Keys that numpy orders and compares as Polars does."""
    dtype = key.dtype
    whole = dtype.is_integer() and dtype not in (pl.Int128, pl.UInt128)
    return (whole or dtype.is_temporal()) and key.null_count() == 0


def _same_as_next(keys: pl.DataFrame) -> NDArray[Any]:
    """For each row but the last: its keys equal the next row's, null and NaN being equal to themselves."""
    equal = pl.all_horizontal(pl.col(name).eq_missing(pl.col(name).shift(-1)) for name in keys.columns)
    return keys.select(equal).to_series().head(-1).to_numpy()


def _conformed(a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames with the same columns and common supertypes, each sorted again if a key's dtype changed."""
    try:
        top = pl.concat([a.clear(), b.clear()], how="diagonal_relaxed").schema
        return _cast(a, top, keys), _cast(b, top, keys)
    except pl.exceptions.PolarsError as error:
        raise InvalidPlan(f"the partial results of two splits do not fit together: {error}") from error


def _cast(frame: pl.DataFrame, schema: pl.Schema, keys: Sequence[str]) -> pl.DataFrame:
    columns = [
        pl.col(name).cast(dtype) if name in frame.columns else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in schema.items()
    ]
    changed = any(frame.schema[key] != schema[key] for key in keys)
    frame = frame.select(columns)
    return frame.sort(keys) if changed else frame
