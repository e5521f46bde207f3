"""What aggregates by windows of any kind have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import polars as pl

from onefold.compute.aggregates import Aggregate
from onefold.compute.live.runs.rows import Layout
from onefold.compute.plan.windows import END, START, WindowSpec


@dataclass(frozen=True)
class OfWindows:
    """``dataset.window(spec).group_by(*keys).agg(**aggregates)`` over a column of event times."""

    spec: WindowSpec
    time: str
    """The column of event times."""
    keys: tuple[pl.Expr, ...]
    aggregates: tuple[tuple[str, Aggregate], ...]
    lanes: int

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        """The columns of the keys, without the window."""
        return tuple(key.meta.output_name() for key in self.keys)

    @cached_property
    def result_layout(self) -> Layout:
        """The rows of its results: values, by window and key."""
        return Layout((START, *self.key_names), (), window_end=END)
