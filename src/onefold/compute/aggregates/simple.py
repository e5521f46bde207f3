"""Counts, sums, means and extremes: states that add up, all in Polars expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

from onefold.compute.aggregates import whole_sums
from onefold.compute.aggregates.base import (
    Aggregate,
    ColumnAggregate,
    State,
    as_index,
    nulls,
    zero_filled,
)


def marker(dtype: pl.DataType | type[pl.DataType]) -> pl.Expr:
    """A column of nulls that remembers a dtype which the state itself does not have (Float32 sums are kept as
    Float64).
    """
    return pl.lit(None, dtype=dtype).first()


@dataclass(frozen=True, eq=False)
class Count(Aggregate):
    """Rows, or the non-null values of a column."""

    kind: ClassVar[str] = "count"
    column: pl.Expr | None = None

    def expressions(self) -> tuple[pl.Expr, ...]:
        return () if self.column is None else (self.column,)

    def states(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:  # noqa: ARG002
        return {"n": self.reference(inputs).cast(pl.UInt64)}

    def combine(self, left: State, right: State) -> State:
        return {"n": left["n"] + right["n"]}

    def finish(self, state: State) -> pl.Series:
        return as_index(state["n"])

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).count() if inputs else pl.len()

    def totals(self, state: State) -> tuple[pl.Series, pl.Series] | None:
        count = state["n"].cast(pl.Float64)
        return count, count


@dataclass(frozen=True, eq=False)
class Sum(ColumnAggregate):
    """The sum of non-null values, 0 without any, and never a number that has wrapped around: a sum of whole numbers that
    its type does not hold comes as Int128 (see ``aggregates.whole_sums``). Float32 is summed in Float64.
    """

    kind: ClassVar[str] = "sum"

    def states(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:
        column, dtype = pl.col(inputs[0]), dtypes[0]
        count = column.count().cast(pl.UInt64)
        if dtype in (pl.Float16, pl.Float32):
            return {"s": column.cast(pl.Float64).sum(), "c": count, "t": marker(dtype)}
        if dtype == pl.Boolean:
            return {"s": column.sum().cast(pl.UInt64), "c": count, "t": marker(dtype)}
        if dtype in (pl.Int32, pl.UInt32):
            return {"s": column.cast(pl.Int64).sum(), "c": count, "t": marker(dtype)}
        return {"s": column.sum(), "c": count}

    def bounds(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:
        return whole_sums.bounds(pl.col(inputs[0]), dtypes[0])

    def is_exact(self, state: State, bounds: Mapping[str, Any]) -> bool:
        return whole_sums.is_exact(state, bounds)

    def witness(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:
        return whole_sums.witness(pl.col(inputs[0]), dtypes[0])

    def settled(self, state: State) -> State:
        return whole_sums.settled(state)

    def fits(self, left: State, right: State) -> bool:
        return whole_sums.fit(left["s"], right["s"])

    def widened(self, state: State) -> State:
        marked = state if "t" in state else {**state, "t": nulls("t", state["s"].dtype, len(state["s"]))}
        return {**marked, "s": state["s"].cast(pl.Int128)}

    def combine(self, left: State, right: State) -> State:
        merged = {"s": whole_sums.added(left["s"], right["s"]), "c": left["c"] + right["c"]}
        return merged | {"t": left["t"]} if "t" in left else merged

    def finish(self, state: State) -> pl.Series:
        total = zero_filled(state["s"])
        if "t" not in state or total.dtype == pl.Null:
            return total
        wanted = state["t"].dtype
        if wanted == pl.Boolean:
            return as_index(total)
        return whole_sums.narrowed(total, wanted) if wanted.is_integer() else total.cast(wanted)

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).sum()

    def totals(self, state: State) -> tuple[pl.Series, pl.Series] | None:
        return as_total(state["s"]), state["c"].cast(pl.Float64)


@dataclass(frozen=True, eq=False)
class Mean(ColumnAggregate):
    """The mean of non-null values, null without any. Integers (but UInt128), dates and times are summed exactly; a mean date or
    time is rounded towards zero.
    """

    kind: ClassVar[str] = "mean"

    def states(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:
        column, dtype = pl.col(inputs[0]), dtypes[0]
        count = column.count().cast(pl.UInt64)
        if dtype.is_temporal():
            dtype = pl.Datetime("us") if dtype == pl.Date else dtype
            total = column.cast(dtype).to_physical().cast(pl.Int128).sum()
            return {"s": total, "c": count, "t": marker(dtype)}
        if dtype in (pl.Float16, pl.Float32):
            return {"s": column.cast(pl.Float64).sum(), "c": count, "t": marker(dtype)}
        if dtype == pl.UInt128:  # no type of whole numbers holds its sums
            return {"s": column.cast(pl.Float64).sum(), "c": count}
        if dtype.is_integer() or dtype == pl.Boolean:
            wide = pl.Int128 if dtype in (pl.Int64, pl.UInt64, pl.Int128) else pl.Int64
            return {"s": column.cast(wide).sum(), "c": count}
        return {"s": column.sum(), "c": count}

    def bounds(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:
        return whole_sums.bounds(pl.col(inputs[0]), dtypes[0]) if dtypes[0] == pl.Int128 else {}

    def is_exact(self, state: State, bounds: Mapping[str, Any]) -> bool:
        return whole_sums.is_exact(state, bounds)

    def witness(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:
        return whole_sums.witness(pl.col(inputs[0]), dtypes[0])

    def settled(self, state: State) -> State:
        return whole_sums.settled(state)

    def combine(self, left: State, right: State) -> State:
        merged = {"s": whole_sums.added(left["s"], right["s"]), "c": left["c"] + right["c"]}
        return merged | {"t": left["t"]} if "t" in left else merged

    def finish(self, state: State) -> pl.Series:
        total, count = zero_filled(state["s"]), state["c"]
        if total.dtype == pl.Null:
            return total
        some = pl.select(pl.when(count > 0).then(count)).to_series()
        if "t" in state and state["t"].dtype.is_temporal():
            mean = (total.abs() // some.cast(pl.Int128)) * total.sign()
            return mean.cast(pl.Int64).cast(state["t"].dtype)
        mean = total.cast(pl.Float64) / some.cast(pl.Float64)
        return mean.cast(state["t"].dtype) if "t" in state else mean

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).mean()

    def totals(self, state: State) -> tuple[pl.Series, pl.Series] | None:
        return as_total(state["s"]), state["c"].cast(pl.Float64)


@dataclass(frozen=True, eq=False)
class Extreme(ColumnAggregate):
    """Common to min and max: nulls are ignored, and NaN unless there is nothing else, as in Polars."""

    def states(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:  # noqa: ARG002
        return {"v": self.reference(inputs)}

    def finish(self, state: State) -> pl.Series:
        return state["v"]


@dataclass(frozen=True, eq=False)
class Min(Extreme):
    """The smallest non-null value."""

    kind: ClassVar[str] = "min"

    def combine(self, left: State, right: State) -> State:
        return {"v": _pairwise(pl.min_horizontal, left["v"], right["v"])}

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).min()


@dataclass(frozen=True, eq=False)
class Max(Extreme):
    """The largest non-null value."""

    kind: ClassVar[str] = "max"

    def combine(self, left: State, right: State) -> State:
        return {"v": _pairwise(pl.max_horizontal, left["v"], right["v"])}

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).max()


def _pairwise(choose: Callable[..., pl.Expr], left: pl.Series, right: pl.Series) -> pl.Series:
    dtype = left.dtype
    if isinstance(dtype, pl.Categorical):
        # Their horizontal minimum goes by physical number, the aggregation by text.
        left, right = left.cast(pl.String), right.cast(pl.String)
    return pl.select(choose(left, right)).to_series().cast(dtype)


def as_total(values: pl.Series) -> pl.Series:
    """A split total as Float64; durations and times in the units of their dtype."""
    values = zero_filled(values)
    if values.dtype.is_temporal():
        values = values.to_physical()
    return values.cast(pl.Float64).fill_null(0.0)
