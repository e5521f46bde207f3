"""First and last values, by file and row or by another column."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from onefold.compute.aggregates.base import ColumnAggregate, State, scattered


@dataclass(frozen=True, eq=False)
class First(ColumnAggregate):
    """The value of the first row, null if it is null there.

    Without ``by`` rows are ordered by file, start of their unit, and row. With ``by`` rows where it is null do
    not count, NaN is the largest, and of rows with equal ``by`` the smallest non-null value is first (the largest
    is last), so that the result does not depend on how the input is split. Lists and structs are in Polars' order.
    """

    kind: ClassVar[str] = "first"
    native: ClassVar[bool] = False
    last: ClassVar[bool] = False
    by: pl.Expr | None = None

    def expressions(self) -> tuple[pl.Expr, ...]:
        return (self.column,) if self.by is None else (self.column, self.by)

    def options(self) -> tuple[Hashable, ...]:
        return ("rows" if self.by is None else "by",)

    @property
    def needs_order(self) -> bool:
        return self.by is None

    def collect(self, groups: pl.Series, inputs: Sequence[pl.Series], count: int) -> State:
        values, order = inputs
        if self.by is None:
            return self._collect_by_row(groups, values, order, count)
        rows = pl.DataFrame([groups.alias("g"), values.alias("v"), order.alias("b")]).drop_nulls("b")
        best = rows.sort(["b", "v"], descending=self.last, nulls_last=True, maintain_order=True)
        best = best.unique("g", keep="first", maintain_order=True)
        return {name: scattered(best["g"], best[name], count) for name in ("v", "b")}

    def _collect_by_row(self, groups: pl.Series, values: pl.Series, order: pl.Series, count: int) -> State:
        place = order.struct.unnest()
        units = place.select("path", "start").unique().sort("path", "start").with_row_index("unit")
        rows_per_unit = (place["row"].max() or 0) + 1  # type: ignore[operator]
        unit = place.join(units, on=["path", "start"], how="left", nulls_equal=True, maintain_order="left")
        position = unit["unit"].cast(pl.Int64) * rows_per_unit + place["row"]
        rows = pl.DataFrame([groups.alias("g"), values.alias("v"), position.alias("at")])
        chosen = pl.col("v").max_by("at") if self.last else pl.col("v").min_by("at")
        at = pl.col("at").max() if self.last else pl.col("at").min()
        best = rows.lazy().group_by("g").agg(chosen, at).collect(engine="streaming")
        where = units.select(pl.all().gather(best["at"] // rows_per_unit))
        found = {
            "v": best["v"],
            "p": where["path"],
            "s": where["start"],
            "r": best["at"] % rows_per_unit,
        }
        return {name: scattered(best["g"], series, count) for name, series in found.items()}

    def combine(self, left: State, right: State) -> State:
        ranked: list[str] = [name for name in ("b", "p", "s", "r") if name in left]
        if self.by is not None:
            ranked.append("v")
        names = list(left)
        ranks = {name: _comparable(left[name], right[name]) for name in ranked}
        frame = pl.DataFrame(
            [left[n].alias(f"l{n}") for n in names]
            + [right[n].alias(f"r{n}") for n in names]
            + [ranks[n][0].alias(f"lrank {n}") for n in ranked]
            + [ranks[n][1].alias(f"rrank {n}") for n in ranked]
        )
        better, same = pl.lit(False), pl.lit(True)
        for name in ranked:
            mine, other = pl.col(f"lrank {name}"), pl.col(f"rrank {name}")
            ahead = other > mine if self.last else other < mine
            ahead = pl.when(mine.is_null()).then(other.is_not_null()).otherwise(ahead.fill_null(False))
            better, same = better | (same & ahead), same & mine.eq_missing(other)
        merged = frame.with_columns(better.alias("better")).select(
            pl.when("better").then(pl.col(f"r{name}")).otherwise(pl.col(f"l{name}")).alias(name)
            for name in names
        )
        return {name: merged[name] for name in names}

    def finish(self, state: State) -> pl.Series:
        return state["v"]

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.col(inputs[0]).first()


def _comparable(left: pl.Series, right: pl.Series) -> tuple[pl.Series, pl.Series]:
    """The values of both sides, as they are or as numbers in the same order: only sorting orders lists and structs."""
    if not left.dtype.is_nested():
        return left, right
    values = pl.concat([left, right]).alias("v")
    ordered = values.to_frame().with_row_index("at").sort("v", maintain_order=True)
    changed = pl.col("v").ne_missing(pl.col("v").shift()).fill_null(True)
    ranks = ordered.select("at", "v", rank=changed.cast(pl.UInt32).cum_sum()).sort("at")
    found = ranks.select(pl.when(pl.col("v").is_not_null()).then("rank")).to_series()
    return found.head(len(left)), found.slice(len(left))


@dataclass(frozen=True, eq=False)
class Last(First):
    """The value of the last row: as ``First``, from the other end."""

    kind: ClassVar[str] = "last"
    last: ClassVar[bool] = True
