"""Merging all partials of a finished table at once, when their states only add up.

Pair by pair, groups have to be matched again at every node of the merge tree. Here they are matched once: each partial's
states are laid out over the groups of all partials, with zeros where it lacks a group, and the tree's additions become
additions of arrays. The sums are added in the tree's own order and zero changes no addition (-0.0 for floats, which is the
one neutral element), so the result is the tree's, bit for bit.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from onefold.compute.aggregates.align import ROW_TYPES
from onefold.compute.aggregates.base import Aggregate, nulls
from onefold.compute.aggregates.simple import Count, Mean, Sum
from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

_POSITION = "__onefold_position"
_SPREAD_MAX = 4
"""Whole-number keys are looked up in a table if that has at most this many places per group and partial."""
_ADDABLE = (pl.UInt64, pl.Int64, pl.Float64, pl.UInt32, pl.Int32)
_LARGEST: dict[Any, int] = {
    pl.UInt64: 2**64 - 1,
    pl.Int64: 2**63 - 1,
    pl.UInt32: 2**32 - 1,
    pl.Int32: 2**31 - 1,
}
_FEW_ROWS = 100_000
"""Partials with this many rows together are grouped by Polars when all states are whole numbers, whose sums do not depend on an
order: it takes less time than importing numpy.
"""


def adds_up(aggs: Sequence[tuple[str, Aggregate]]) -> bool:
    """Whether all states are sums, so that ``merge_all`` is worth asking."""
    return all(isinstance(agg, Count | Sum | Mean) for _, agg in aggs)


def merge_all(
    leaves: Mapping[int, pl.DataFrame], keys: Sequence[str], aggs: Sequence[tuple[str, Aggregate]]
) -> pl.DataFrame | None:
    """What ``merge_tree`` gives for these partials (dispatch index -> frame), or None when this is not the way."""
    indexes = sorted(leaves)
    frames = [leaves[index] for index in indexes]
    if len(frames) < 3 or not keys or any(frame.schema != frames[0].schema for frame in frames):
        return None
    if not adds_up(aggs):
        return None
    frames = [frame.drop(ROW_TYPES, strict=False) for frame in frames]  # which are those of all
    markers = [column for column in frames[0].columns if column not in keys and column.endswith(":t")]
    states = [column for column in frames[0].columns if column not in keys and column not in markers]
    if any(
        frame.schema[state] not in _ADDABLE or frame[state].null_count()
        for frame in frames
        for state in states
    ):
        return None
    if not all(_has_room([frame[state] for frame in frames]) for state in states):
        return None
    if any(frames[0].schema[key].is_float() for key in keys):
        return None  # Polars' join does not find NaN
    if sum(frame.height for frame in frames) <= _FEW_ROWS and all(
        frames[0].schema[state].is_integer() for state in states
    ):
        added = [pl.col(states).sum(), *(pl.col(marker).first() for marker in markers)]
        return pl.concat(frames).group_by(keys).agg(added).sort(keys).select(frames[0].columns)
    groups, positions = _positions(frames, keys)

    def spread(at: int) -> list[NDArray[Any]]:
        columns = [frames[at][state].to_numpy() for state in states]
        place = positions[at]
        if place is None:
            return columns
        return [_laid_out(column, place, groups.height) for column in columns]

    def node(low: int, high: int, first: int, last: int) -> list[NDArray[Any]]:
        if last - first == 1:
            return spread(first)
        middle = (low + high) // 2
        cut = bisect_left(indexes, middle, first, last)
        if cut == first:
            return node(middle, high, first, last)
        if cut == last:
            return node(low, middle, first, last)
        left, right = node(low, middle, first, cut), node(middle, high, cut, last)
        return [a + b for a, b in zip(left, right, strict=True)]

    sums = node(0, 1 << indexes[-1].bit_length(), 0, len(indexes))
    made = [
        pl.Series(state, column, dtype=frames[0].schema[state])
        for state, column in zip(states, sums, strict=True)
    ]
    made += [nulls(name, frames[0].schema[name], groups.height) for name in markers]
    return groups.hstack(made).select(frames[0].columns)


def _has_room(columns: Sequence[pl.Series]) -> bool:
    """Whether no sum of a value of each wraps around."""
    dtype = columns[0].dtype
    if not dtype.is_integer():
        return True
    largest = [max(abs(int(one.min() or 0)), int(one.max() or 0)) for one in columns]  # type: ignore[arg-type]
    return sum(largest) <= _LARGEST[dtype.base_type()]


def _laid_out(column: NDArray[Any], place: NDArray[Any], count: int) -> NDArray[Any]:
    full = np.full(count, -0.0 if column.dtype.kind == "f" else 0, dtype=column.dtype)
    full[place] = column
    return full


def _positions(
    frames: Sequence[pl.DataFrame], keys: Sequence[str]
) -> tuple[pl.DataFrame, list[NDArray[Any] | None]]:
    """All groups, sorted by the keys, and where each frame's rows are among them (None: they are the same)."""
    if len(keys) == 1 and frames[0].schema[keys[0]].is_integer():
        found = _by_number([frame[keys[0]] for frame in frames])
        if found is not None:
            return found
    rows = pl.concat([frame.select(keys) for frame in frames])
    groups = rows.unique().sort(keys)
    numbered = groups.with_row_index(_POSITION)
    # One join for the rows of all frames: its hash table is built once.
    joined = rows.join(numbered, on=keys, how="left", nulls_equal=True, maintain_order="left")
    place = joined[_POSITION].to_numpy()
    stops = np.cumsum([frame.height for frame in frames])
    return groups, [
        place[stop - frame.height : stop] for frame, stop in zip(frames, stops.tolist(), strict=True)
    ]


def _by_number(columns: Sequence[pl.Series]) -> tuple[pl.DataFrame, list[NDArray[Any] | None]] | None:
    """The same for one whole-number key whose values lie close enough together for a table; None when not."""
    if any(column.null_count() or column.dtype in (pl.Int128, pl.UInt128, pl.UInt64) for column in columns):
        return None
    some = [column for column in columns if len(column)]
    if not some:
        return None
    low = min(int(column.min()) for column in some)  # type: ignore[arg-type]
    high = max(int(column.max()) for column in some)  # type: ignore[arg-type]
    if high - low + 1 > _SPREAD_MAX * sum(len(column) for column in some):
        return None
    numbers = [column.to_numpy().astype(np.int64, copy=False) - low for column in columns]
    there = np.zeros(high - low + 1, dtype=np.bool_)
    for number in numbers:
        there[number] = True
    rank = np.cumsum(there) - 1
    values = np.flatnonzero(there) + low
    groups = pl.DataFrame({columns[0].name: pl.Series(values).cast(columns[0].dtype)})
    same = [len(column) == groups.height and column.is_sorted() for column in columns]
    return groups, [None if at_once else rank[number] for at_once, number in zip(same, numbers, strict=True)]
