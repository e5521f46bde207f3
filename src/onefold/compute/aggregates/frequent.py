"""The most frequent values of a group: Misra-Gries counters in Polars."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from onefold.compute.aggregates.base import ColumnAggregate, State, scattered

COUNTERS_MIN = 1024


@dataclass(frozen=True, eq=False)
class MostFrequent(ColumnAggregate):
    """The ``k`` most frequent non-null values, as a list of structs {value, count (UInt64)}: largest count
        first, then value.
     Exact while a group has no more than ``counters`` different values. Beyond, the counters are a mergeable
    summary (Misra and Gries 1982; Agarwal et al., "Mergeable summaries", 2012): the count of the first value that
    has no counter is taken off all, and kept as ``e``. A count is then never too low and too high by at most n /
    (counters + 1).
    """

    kind: ClassVar[str] = "most_frequent"
    native: ClassVar[bool] = False
    k: int = 10

    @property
    def counters(self) -> int:
        """How many values of a group are counted."""
        return max(COUNTERS_MIN, 16 * self.k)

    def options(self) -> tuple[Hashable, ...]:
        return (self.k,)

    def collect(self, groups: pl.Series, inputs: Sequence[pl.Series], count: int) -> State:
        rows = pl.DataFrame([groups.alias("g"), inputs[0].alias("value")]).lazy().drop_nulls("value")
        counted = rows.group_by("g", "value").agg(pl.len().cast(pl.UInt64).alias("count"))
        return self._summary(counted.collect(engine="streaming"), count)

    def combine(self, left: State, right: State) -> State:
        rows = pl.concat([_counters(left["f"]), _counters(right["f"])])
        counted = rows.group_by("g", "value").agg(pl.col("count").sum())
        merged = self._summary(counted, len(left["f"]))
        return merged | {"e": left["e"] + right["e"] + merged["e"]}

    def _summary(self, counted: pl.DataFrame, groups: int) -> State:
        widths = counted.group_by("g").len()
        error = pl.repeat(0, groups, dtype=pl.UInt64, eager=True)
        if (widths["len"] > self.counters).any():
            cut = counted.group_by("g").agg(
                pl.col("count")
                .sort(descending=True)
                .get(self.counters, null_on_oob=True)
                .fill_null(0)
                .alias("cut")
            )
            counted = counted.join(cut, on="g").filter(pl.col("count") > pl.col("cut"))
            counted = counted.select("g", "value", pl.col("count") - pl.col("cut"))
            error = scattered(cut["g"], cut["cut"], groups).fill_null(0).cast(pl.UInt64)
        lists = (
            counted.sort("g", "value")
            .group_by("g", maintain_order=True)
            .agg(pl.struct("value", "count").implode().alias("f"))
        )
        return {"f": scattered(lists["g"], lists["f"], groups), "e": error}

    def finish(self, state: State) -> pl.Series:
        error = pl.DataFrame([state["e"].alias("e")]).with_row_index("g")
        # Counted again: whole numbers that no float tells apart are one value where they met floats.
        counted = _counters(state["f"]).group_by("g", "value").agg(pl.col("count").sum())
        rows = counted.join(error, on="g").with_columns(pl.col("count") + pl.col("e"))
        top = (
            rows.sort(["g", "count", "value"], descending=[False, True, False])
            .group_by("g", maintain_order=True)
            .agg(pl.struct("value", "count").head(self.k).implode().alias("f"))
        )
        found = scattered(top["g"], top["f"], len(state["f"]))
        empty = pl.Series([[]], dtype=found.dtype).new_from_index(0, len(found))
        return found.zip_with(found.is_not_null(), empty)

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        return pl.struct(
            pl.col(inputs[0]).alias("value"), pl.lit(0, dtype=pl.UInt64).alias("count")
        ).implode()


def _counters(lists: pl.Series) -> pl.DataFrame:
    """One row per counter: ``g`` (row of the list), ``value``, ``count``."""
    frame = pl.DataFrame([lists.alias("f")]).with_row_index("g").drop_nulls("f")
    return frame.explode("f", empty_as_null=False).unnest("f")
