"""Approximate quantiles, exact for groups with few values."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from onefold.compute.aggregates import kll
from onefold.compute.aggregates.base import ColumnAggregate, State, replaced, scattered
from onefold.compute.frames.named import frame_of
from onefold.errors import InvalidPlan
from onefold.machine.lazy import LazyModule

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
else:
    np = LazyModule("numpy")


@dataclass(frozen=True, eq=False)
class ApproxQuantile(ColumnAggregate):
    """The value at quantile ``q`` of the non-null values, null without any; NaN is the largest value.

    Exactly Polars' ``quantile(q, interpolation="nearest")`` for groups of up to ``k`` values. The state is a
    list of the values themselves (``v``) while there are no more, made and merged by Polars without a Python
    loop, and a KLL sketch (levels one after the other in ``v``, their sizes in ``l``) once there are.
    """

    kind: ClassVar[str] = "approx_quantile"
    native: ClassVar[bool] = False
    q: float = 0.5
    k: int = kll.K

    def options(self) -> tuple[Hashable, ...]:
        return (self.q, self.k)

    def collect(self, groups: pl.Series, inputs: Sequence[pl.Series], count: int) -> State:
        rows = (
            pl.DataFrame([groups.alias("g"), _measurable(inputs[0]).alias("v")])
            .drop_nulls("v")
            .sort("g", "v")
        )
        lists = rows.group_by("g", maintain_order=True).agg(pl.col("v").implode())
        values = scattered(lists["g"], lists["v"], count)
        values = replaced(
            values, values.is_null().arg_true(), _empty_lists(values.null_count(), values.dtype)
        )
        lengths = values.list.len().cast(pl.UInt64)
        state = {"v": values, "l": _no_levels(count), "n": lengths}
        large = (lengths > self.k).arg_true()
        sketches = [kll.compressed([_numbers(values[row])], self.k) for row in large.to_list()]
        return self._with_sketches(state, large, sketches)

    def combine(self, left: State, right: State) -> State:
        total = left["n"] + right["n"]
        small = total <= self.k
        frame = pl.DataFrame([left["v"].alias("a"), right["v"].alias("b"), small.alias("small")])
        values = frame.select(
            pl.when("small").then(pl.col("a").list.concat("b")).otherwise(pl.col("a"))
        ).to_series()
        state = {"v": values, "l": left["l"], "n": total}
        large = (~small).arg_true()
        sketches = [kll.merged(_levels(left, row), _levels(right, row), self.k) for row in large.to_list()]
        return self._with_sketches(state, large, sketches)

    def _with_sketches(self, state: State, rows: pl.Series, sketches: Sequence[Any]) -> State:
        if not len(rows):
            return state
        dtype = state["v"].dtype
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        flat = [np.concatenate(levels) for levels in sketches]
        physical = pl.Int64() if pl.Series(dtype=inner).dtype.is_temporal() else inner
        values = pl.Series(flat, dtype=pl.List(physical)).cast(dtype)
        sizes = pl.Series([[len(level) for level in levels] for levels in sketches], dtype=pl.List(pl.UInt32))
        return state | {"v": replaced(state["v"], rows, values), "l": replaced(state["l"], rows, sizes)}

    def finish(self, state: State) -> pl.Series:
        counts = state["n"].to_numpy().astype(np.int64)
        if state["v"].dtype == pl.List(pl.Null):
            return pl.repeat(None, len(counts), dtype=pl.Float64, eager=True)
        single = pl.DataFrame([state["v"].alias("v"), state["l"].alias("l")]).with_row_index("g")
        single = single.filter(pl.col("l").is_null() & (pl.col("v").list.len() > 0))
        values = single.select("g", "v").explode("v").sort("g", "v")
        # One sort of all values is a hundred times faster than sorting list by list.
        lengths = counts[single["g"].to_numpy()]
        rank = np.floor((lengths - 1) * self.q + 0.5).astype(np.int64)
        chosen = values["v"].gather(np.cumsum(lengths) - lengths + rank)
        found = scattered(single["g"], chosen, len(counts))
        large = state["l"].is_not_null().arg_true()
        if not len(large):
            return found
        estimates = [kll.value_at(_levels(state, row), self.q) for row in large.to_list()]
        physical = pl.Int64() if found.dtype.is_temporal() else found.dtype
        return replaced(found, large, pl.Series(estimates, dtype=physical).cast(found.dtype))

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).quantile(self.q, interpolation="nearest")


def quantile_states(partial: pl.DataFrame, keys: Sequence[str], name: str) -> pl.DataFrame:
    """Key columns, ``state`` (Binary) and ``n`` (UInt64, non-null values) of one ``approx_quantile`` column."""
    state = {suffix: partial[f"{name}:{suffix}"] for suffix in ("v", "l", "n")}
    packed = [kll.to_bytes(_levels(state, row)) for row in range(partial.height)]
    columns = [
        *(partial[key] for key in keys),
        pl.Series("state", packed, dtype=pl.Binary),
        state["n"].alias("n"),
    ]
    return frame_of(columns)


def quantile_rank(state: bytes, x: float) -> float:
    """The share of a state's values that are at most ``x`` (for dates and times: its physical number); NaN
    without values.
    """
    return kll.rank_of(kll.from_bytes(state), x)


def quantile_value(state: bytes, q: float) -> float | None:
    """The value at quantile ``q``, nearest rank (dates and times as their physical number); None without
    values.
    """
    value = kll.value_at(kll.from_bytes(state), q)
    return None if value is None else value.item()


def quantile_count(state: bytes) -> int:
    """How many values a state stands for."""
    return sum(len(level) << height for height, level in enumerate(kll.from_bytes(state)))


def _measurable(values: pl.Series) -> pl.Series:
    """Values in the dtype in which Polars gives quantiles."""
    dtype = values.dtype
    if dtype == pl.Date:
        return values.cast(pl.Datetime("us"))
    if dtype.is_temporal() or dtype.is_float() or dtype == pl.Null:
        return values  # a split without values says nothing of the type: others' may be dates
    if dtype.is_integer() or dtype.is_decimal():
        return values.cast(pl.Float64)
    raise InvalidPlan(f"agg.approx_quantile takes numbers, dates and times, not {dtype}")


def _levels(state: State, row: int) -> Any:
    values = _numbers(state["v"][row])
    sizes = state["l"][row]
    return [np.sort(values)] if sizes is None else kll.split(values, sizes.to_numpy())


def _numbers(values: pl.Series) -> NDArray[Any]:
    return values.to_physical().to_numpy()


def _no_levels(count: int) -> pl.Series:
    return pl.repeat(None, count, dtype=pl.List(pl.UInt32), eager=True)


def _empty_lists(count: int, dtype: pl.DataType) -> pl.Series:
    return pl.Series([[]] * count, dtype=dtype)
