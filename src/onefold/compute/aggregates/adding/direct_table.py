"""Counts and sums by one whole-number key, added up in arrays that the key indexes (direct addressing).

Where the keys of a batch lie close together, an addition per row into an array takes a fraction of what a hash table takes.
Batches that do not fit (keys far apart, nulls, sums that a double might round, few rows) are left to the engine, row for row;
the two partials are merged like those of two splits.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from onefold.compute.aggregates.base import Aggregate, nulls
from onefold.compute.aggregates.simple import Count, Mean, Sum
from onefold.compute.frames.named import frame_of
from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")

ROWS_MIN: Final = 10_000
"""Smaller batches are left to the engine: it takes next to nothing for them, and numpy need not be imported."""
SPREAD_MAX: Final = 4
"""A batch may have keys over at most this many places per row, and the table per row that it holds."""
PLACES_MAX: Final = 1 << 21
_EXACT: Final = 2**53
"""Whole numbers up to this add up exactly in doubles."""
_ROOM: Final = 2**62
_NARROW: Final = (pl.Int8, pl.Int16, pl.Int32, pl.UInt8, pl.UInt16, pl.UInt32)
_WHOLE: Final = (*_NARROW, pl.Int64)
_FLOATS: Final = (pl.Float32, pl.Float64)


def table_for(
    keys: Sequence[str],
    aggs: Sequence[tuple[str, Aggregate]],
    inputs: Sequence[Sequence[str]],
    schema: Mapping[str, pl.DataType],
) -> DirectTable | None:
    """A table for these aggregates over rows of this schema; None when their states are not counts and sums by a whole number."""
    if len(keys) != 1 or schema[keys[0]] not in _WHOLE:
        return None
    summed: dict[str, str] = {}
    counted: list[str] = []
    for (name, agg), columns in zip(aggs, inputs, strict=True):
        if type(agg) is Count:
            counted.extend(columns)
        elif type(agg) in (Sum, Mean) and schema[columns[0]] in (*_WHOLE, *_FLOATS):
            summed[name] = columns[0]
        else:
            return None
    return DirectTable(keys[0], summed, counted)


class DirectTable:
    """The groups of all batches that it took. Thread-safe."""

    def __init__(self, key: str, summed: Mapping[str, str], counted: Sequence[str]) -> None:
        """``summed``: the input column of each aggregate with a sum; ``counted``: columns that must not have nulls either."""
        self._key = key
        self._summed = dict(summed)
        self._columns = [*summed.values(), *counted]
        self._lock = threading.Lock()
        self._low = 0
        self._rows = 0
        self._counts: NDArray[Any] | None = None
        self._sums: dict[str, NDArray[Any]] = {}
        self._largest: dict[str, int] = {}
        """By aggregate: what the absolute value of its largest sum is below, for whole numbers."""

    def take(self, frame: pl.DataFrame) -> bool:
        """Add the rows, all of them or none; whether it did."""
        if frame.height < ROWS_MIN or frame[self._key].null_count():
            return False
        if any(frame[column].null_count() for column in self._columns):
            return False
        keys = frame[self._key].to_numpy()
        low, high = int(keys.min()), int(keys.max())
        if high - low >= min(PLACES_MAX, SPREAD_MAX * frame.height):
            return False
        whole = {name: column for name, column in self._summed.items() if frame.schema[column] in _WHOLE}
        bounds = {name: _largest(frame[column]) * frame.height for name, column in whole.items()}
        if any(bound > _EXACT for bound in bounds.values()):
            return False
        places = np.subtract(keys, low, dtype=np.int64)
        counts = np.bincount(places)
        sums: dict[str, NDArray[Any]] = {}
        for name, column in self._summed.items():
            added = np.bincount(places, weights=frame[column].to_numpy())
            sums[name] = added.astype(np.int64) if name in whole else added
        with self._lock:
            return self._add(low, counts, sums, bounds, frame.height)

    def _add(
        self,
        low: int,
        counts: NDArray[Any],
        sums: Mapping[str, NDArray[Any]],
        bounds: Mapping[str, int],
        rows: int,
    ) -> bool:
        largest = {name: self._largest.get(name, 0) + bound for name, bound in bounds.items()}
        if any(bound > _ROOM for bound in largest.values()):
            return False
        if self._counts is None:
            self._low, self._counts, self._sums = low, counts, dict(sums)
        else:
            if not self._reach(low, low + len(counts), rows):
                return False
            place = slice(low - self._low, low - self._low + len(counts))
            self._counts[place] += counts
            for name, added in sums.items():
                self._sums[name][place] += added
        self._largest = largest
        self._rows += rows
        return True

    def _reach(self, start: int, stop: int, rows: int) -> bool:
        """Make the table hold these keys, and some more so that it need not grow for each batch; False when it may not."""
        assert self._counts is not None
        width = len(self._counts)
        below, above = max(0, self._low - start), max(0, stop - self._low - width)
        if not (below or above):
            return True
        if width + below + above > min(PLACES_MAX, SPREAD_MAX * (self._rows + rows)):
            return False
        # Below the lowest integer there is no key, and none can be made for a place.
        below = min(max(below, width // 2), self._low + 2**63) if below else 0
        around = (below, max(above, width // 2) if above else 0)
        self._counts = np.pad(self._counts, around)
        self._sums = {name: np.pad(held, around) for name, held in self._sums.items()}
        self._low -= around[0]
        return True

    def forget(self) -> None:
        """Drop all groups."""
        with self._lock:
            self._counts, self._sums, self._largest, self._rows = None, {}, {}, 0

    def partial(self, like: pl.DataFrame) -> pl.DataFrame | None:
        """The partial of the rows taken, with the columns and types of ``like``, in the order of the key; None without rows."""
        if self._counts is None:
            return None
        there = np.flatnonzero(self._counts)
        count = pl.Series(self._counts[there])
        columns = []
        for name, dtype in like.schema.items():
            aggregate, _, suffix = name.rpartition(":")
            if name == self._key:
                held = pl.Series(there + self._low)
            elif suffix == "s":
                held = pl.Series(self._sums[aggregate][there])
            elif suffix == "t":
                held = nulls(name, dtype, len(there))
            else:
                held = count
            columns.append(held.cast(dtype).alias(name))
        return frame_of(columns)


def _largest(values: pl.Series) -> int:
    low: Any = values.min()
    high: Any = values.max()
    return int(max(-low, high))
