"""Approximate distinct counts: HyperLogLog sketches of Apache DataSketches."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from onefold.compute.aggregates.base import Aggregate, ColumnAggregate, State, scattered
from onefold.compute.frames.named import frame_of
from onefold.errors import InvalidPlan
from onefold.machine.lazy import LazyModule

ds = LazyModule("datasketches")

_WHOLE_LIMIT = 2**63
LOG2_BUCKETS = 12
"""4096 buckets: a relative standard error of 1.6 %, exact up to some 380 values, at most 2 KB a group."""
DISTINCT_ERROR = 2 * 1.04 / 2 ** (LOG2_BUCKETS / 2)
"""Two relative standard errors (Flajolet et al., HyperLogLog, 2007): what bounds are moved outwards by."""


@dataclass(frozen=True, eq=False)
class ApproxNUnique(ColumnAggregate):
    """About how many different values; null counts as one value, as in Polars."""

    kind: ClassVar[str] = "approx_n_unique"
    native: ClassVar[bool] = False
    log2_buckets: int = LOG2_BUCKETS

    def options(self) -> tuple[Hashable, ...]:
        return (self.log2_buckets,)

    def collect(self, groups: pl.Series, inputs: Sequence[pl.Series], count: int) -> State:
        rows = pl.DataFrame([groups.alias("g"), hashable(inputs[0]).alias("v")]).unique().sort("g", "v")
        nulls = rows.filter(pl.col("v").is_null())["g"]
        with_null = scattered(nulls, pl.repeat(True, len(nulls), eager=True), count).fill_null(False)
        runs = rows.drop_nulls("v").group_by("g", maintain_order=True).agg(pl.len())
        values: list[Any] = by_value(rows.drop_nulls("v")["v"])
        states, start = [], 0
        for length in runs["len"].to_list():
            sketch = self._empty()
            update = sketch.update
            for value in values[start : start + length]:
                update(value)
            states.append(sketch.serialize_compact())
            start += length
        sketches = pl.Series(states, dtype=pl.Binary)
        return {"h": scattered(runs["g"], sketches, count).fill_null(b""), "z": with_null}

    def combine(self, left: State, right: State) -> State:
        merged = []
        for a, b in zip(left["h"].to_list(), right["h"].to_list(), strict=True):
            if not a or not b or a == b:
                merged.append(a or b)
                continue
            union = ds.hll_union(self.log2_buckets)
            union.update(ds.hll_sketch.deserialize(a))
            union.update(ds.hll_sketch.deserialize(b))
            merged.append(union.get_result(ds.tgt_hll_type.HLL_4).serialize_compact())
        return {"h": pl.Series(merged, dtype=pl.Binary), "z": left["z"] | right["z"]}

    def finish(self, state: State) -> pl.Series:
        sketches = state["h"].to_list()
        estimates = [
            round(ds.hll_sketch.deserialize(data).get_estimate()) if data else 0 for data in sketches
        ]
        total = pl.Series(estimates, dtype=pl.UInt64) + state["z"].cast(pl.UInt64)
        return total.cast(pl.get_index_type())

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).approx_n_unique()

    def _empty(self) -> Any:
        return ds.hll_sketch(self.log2_buckets, ds.tgt_hll_type.HLL_4)


def by_value(values: pl.Series) -> list[Any]:
    """What a sketch hashes of these values, none of them null: numbers by their value, whatever the type of the column.

    A column may be of whole numbers in one split and of floats in another, and 9 and 9.0 are one value.
    """
    dtype = values.dtype
    items = values.to_list()
    if dtype.is_float():
        items = [int(item) if item.is_integer() else item for item in items]
    if not dtype.is_float() and dtype not in (pl.UInt64, pl.Int128, pl.UInt128):
        return items
    # A sketch takes whole numbers of 64 bits, with a sign.
    return [
        item if isinstance(item, float) or -_WHOLE_LIMIT <= item < _WHOLE_LIMIT else f"={item}"
        for item in items
    ]


def hashable(values: pl.Series) -> pl.Series:
    """Values as numbers or texts that ``by_value`` takes: equal values give equal ones in every split."""
    dtype = values.dtype
    if dtype.is_temporal() or dtype == pl.Boolean:
        return values.cast(pl.Int64) if dtype == pl.Boolean else values.to_physical().cast(pl.Int64)
    if dtype in (pl.UInt64, pl.Int128, pl.UInt128):
        return values
    if dtype.is_decimal():
        texts = values.cast(pl.String)  # 1.50 of one scale is 1.5 of another
        whole = texts.str.strip_chars_end("0").str.strip_chars_end(".")
        return _texts(whole.zip_with(texts.str.contains(".", literal=True), texts))
    if dtype in (pl.String, pl.Null):
        return _texts(values.cast(pl.String))
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return _texts(values.cast(pl.String))
    if dtype.is_integer():
        return values.cast(pl.Int64)
    if dtype.is_float():
        return values.cast(pl.Float64)
    if dtype == pl.Binary:
        return _texts(values.bin.encode("hex"))
    raise InvalidPlan(
        f"agg.approx_n_unique takes no {dtype}: give it one field, or a text made of the fields"
    )


def _texts(values: pl.Series) -> pl.Series:
    # A sketch ignores the empty text, which is a value like any other.
    return "=" + values


def distinct_bounds(
    partial: pl.DataFrame,
    keys: Sequence[str],
    aggs: Sequence[tuple[str, Aggregate]],
    name: str,
    deviations: int = 2,
) -> pl.DataFrame:
    """Key columns, ``lo`` and ``hi``: the sketch's own bounds at 1, 2 or 3 standard deviations (68, 95, 99.7
        %).
     They bound the number of distinct values among the rows of this partial, which says nothing of rows not yet
    read.
    """
    if not isinstance(dict(aggs)[name], ApproxNUnique):
        raise InvalidPlan(f"column {name!r} is not an agg.approx_n_unique")
    low, high = [], []
    for data in partial[f"{name}:h"].to_list():
        sketch = ds.hll_sketch.deserialize(data) if data else None
        low.append(float(sketch.get_lower_bound(deviations)) if sketch else 0.0)
        high.append(float(sketch.get_upper_bound(deviations)) if sketch else 0.0)
    with_null = partial[f"{name}:z"].cast(pl.Float64)
    bounds = [
        (pl.Series("lo", low, dtype=pl.Float64) + with_null),
        (pl.Series("hi", high, dtype=pl.Float64) + with_null),
    ]
    return frame_of([*(partial[key] for key in keys), bounds[0].alias("lo"), bounds[1].alias("hi")])
