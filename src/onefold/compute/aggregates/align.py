"""Merging two partial frames: groups of one side are kept, groups of both are combined.

Partial frames are merged in key order. Mostly two splits hold the same groups; then the key columns are
equal and states are combined as they stand, by vectorised arithmetic without hashing. Whatever path is taken,
a group's state is ``combine(left, right)``, so the result does not depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from onefold.compute.aggregates.base import ORDER_COLUMN, Aggregate, State, nulls
from onefold.compute.aggregates.fold import MergeRaised
from onefold.compute.frames.common_types import common_schema, fitted
from onefold.compute.frames.named import frame_of
from onefold.errors import InvalidPlan, InvalidValue
from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

_ROW = "__onefold_row"
ROW_TYPES = "__onefold_row_types"
"""A column of nulls whose type tells those of the rows: ``list[struct{column: type}]``."""
LEFT_UNSORTED_ROWS = 20_000
"""Partials of this height or more are left as the engine gives them (a sort costs a task a tenth of its time, and readers
that merge all at once do not need it); anyone who does need them in key order sorts them then."""


class MergeFailed(InvalidValue):
    """A merge function of the user's raised: no record is to blame, and none of the states can be left out."""


def merge_pair(
    a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str], aggs: Sequence[tuple[str, Aggregate]]
) -> pl.DataFrame:
    """The partial of both frames' rows, sorted by the keys. ``a`` is the lower side of the merge tree.

    Frames whose types differ (a function gave nulls only in one split, or whole numbers in one and floats in the other)
    are brought to their common types, which are those that all rows would have had together. Raises InvalidValue if
    there is none.
    """
    if a.schema != b.schema:
        a, b = _conformed(a, b, keys, aggs)
    if ROW_TYPES in a.columns:
        types = row_types(a.schema)
        return with_row_types(merge_pair(a.drop(ROW_TYPES), b.drop(ROW_TYPES), keys, aggs), types)
    a, b = _with_room(a, b, aggs)
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
        try:
            combined = agg.combine(state_of(a, name), state_of(b, name))
        except MergeRaised as error:
            raise MergeFailed(f"the merge function of aggregate {name!r} raised {error}") from error.__cause__
        except InvalidValue as error:
            raise InvalidValue(f"column {name!r}: {error}") from error
        for suffix, series in combined.items():
            columns[f"{name}:{suffix}"] = series.alias(f"{name}:{suffix}")
    return frame_of(columns[column] for column in a.columns)


def _with_room(
    a: pl.DataFrame, b: pl.DataFrame, aggs: Sequence[tuple[str, Aggregate]]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames, of one schema, with states that have room for their combinations."""
    for name, agg in aggs:
        if not agg.fits(state_of(a, name), state_of(b, name)):
            a, b = (
                frame.with_columns(
                    series.alias(f"{name}:{suffix}")
                    for suffix, series in agg.widened(state_of(frame, name)).items()
                )
                for frame in (a, b)
            )
    return a, b


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


# -- types ---------------------------------------------------------------------------------------------------


def with_row_types(partial: pl.DataFrame, rows: Mapping[str, pl.DataType]) -> pl.DataFrame:
    """The partial with the types of the rows that it was made of, as the type of a column without values.

    For rows whose types are found from values: a count, say, does not tell what it has counted.
    """
    types = {name: dtype for name, dtype in rows.items() if name != ORDER_COLUMN}
    return partial.with_columns(nulls(ROW_TYPES, pl.List(pl.Struct(types)), partial.height))


def row_types(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The types of the rows that a partial of this schema was made of; empty when it does not say."""
    held = schema.get(ROW_TYPES)
    if not isinstance(held, pl.List) or not isinstance(held.inner, pl.Struct):
        return {}
    return {field.name: field.dtype for field in held.inner.fields}


def _conformed(
    a: pl.DataFrame, b: pl.DataFrame, keys: Sequence[str], aggs: Sequence[tuple[str, Aggregate]]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Both frames with the same columns and their common types, with each group once still and in key order.

    Raises InvalidValue where the rows of the two could not have been in one frame, InvalidPlan for partials that say
    nothing of their rows and differ.
    """
    types = common_schema([row_types(a.schema), row_types(b.schema)])
    a, b = (frame.drop(ROW_TYPES, strict=False) for frame in (a, b))
    try:
        top = common_schema([_marked(a, b.schema), _marked(b, a.schema)])
    except InvalidValue as error:
        raise InvalidPlan(f"the partial results of two splits do not fit together: {error}") from error
    a, b = (_cast(frame, top, keys, aggs) for frame in (a, b))
    if a.schema != b.schema:  # sums of one needed room when groups of it became one
        top = common_schema([_marked(a, b.schema), _marked(b, a.schema)])
        a, b = fitted(a, top), fitted(b, top)
    return (with_row_types(a, types), with_row_types(b, types)) if types else (a, b)


def _marked(frame: pl.DataFrame, other: Mapping[str, pl.DataType]) -> dict[str, pl.DataType]:
    """The frame's schema, with the markers that only the other has: of what the sum itself tells of its input."""
    schema = dict(frame.schema)
    for name in other:
        stem, colon, suffix = name.rpartition(":")
        if name not in schema and colon and suffix == "t" and f"{stem}:s" in schema:
            schema[name] = schema[f"{stem}:s"]
    return schema


def _cast(
    frame: pl.DataFrame,
    schema: Mapping[str, pl.DataType],
    keys: Sequence[str],
    aggs: Sequence[tuple[str, Aggregate]],
) -> pl.DataFrame:
    changed = any(frame.schema[key] != schema[key] for key in keys)
    frame = fitted(frame, schema)
    if not changed:
        return frame
    return each_group_once(frame.sort(keys, maintain_order=True), keys, aggs)


def each_group_once(
    frame: pl.DataFrame, keys: Sequence[str], aggs: Sequence[tuple[str, Aggregate]]
) -> pl.DataFrame:
    """Whole numbers that no float tells apart are one group of floats.

    In rounds: neighbours in pairs, then what they gave in pairs, so that a group of n rows takes log2 n merges.
    """
    states = [column for column in frame.columns if column not in keys]
    if not states:
        return frame.unique(keys, keep="first", maintain_order=True)
    while True:
        place = frame.select(pl.int_range(pl.len()).over(keys)).to_series()
        if not place.max():
            return frame
        second = place % 2 == 1
        last = frame.select(pl.int_range(pl.len(), 0, -1).over(keys)).to_series() == 1
        alone = ~second & last
        left, right = frame.filter(~second & ~last), frame.filter(second)
        left, right = _with_room(left, right, aggs)
        if left.schema != frame.schema:
            frame, _ = _with_room(frame, frame, aggs)
            states = [column for column in frame.columns if column not in keys]
        both = left.select(keys).hstack(_combined(left.select(states), right.select(states), (), aggs))
        rows = pl.int_range(frame.height, eager=True)
        order = pl.concat([rows.filter(~second & ~last), rows.filter(alone)]).arg_sort()
        frame = pl.concat([both.select(frame.columns), frame.filter(alone)])[order]
