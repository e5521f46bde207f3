"""What a live table says of the final value of each row.

A closed window is exact. Of an open one only what more events cannot undo is a bound: a count, a sum of a column that holds no
negative numbers, a maximum and a number of distinct values only grow, a minimum only shrinks. Of everything else nothing is
known, and the reason says until when the window is open. There is no number of splits, so ``N`` is null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from onefold.compute.live.event_time import time_of
from onefold.compute.live.tables.rows import OPEN, shown_keys
from onefold.compute.plan.windows import END
from onefold.compute.results.estimates import COLUMNS

if TYPE_CHECKING:
    from onefold.compute.live.tables.contents import LiveContents

GROWING: Final = ("count", "max", "approx_n_unique", "n_unique")
SHRINKING: Final = ("min",)


def estimate(contents: LiveContents, rows: pl.DataFrame, name: str) -> pl.DataFrame:
    """The estimate of aggregate ``name``: the window and key columns, and ``value, lo, hi, level, kind, n, N, reason``.

    ``rows``: as ``rows.marked_rows`` gives them, open windows included.
    """
    operator = contents.part.operator
    assert operator is not None
    kind = dict(operator.aggregates)[name].kind
    dtype = rows.schema[name]
    growing = kind in GROWING or (kind == "sum" and dtype.is_unsigned_integer())
    value = pl.col(name)
    nothing = pl.lit(None, dtype)
    is_open = pl.col(OPEN) & pl.lit(contents.state != "done")
    low = value if growing else nothing
    high = value if kind in SHRINKING else nothing
    keys = shown_keys(contents.part)
    return rows.select(
        *(pl.col(column).alias(f"key_{column}" if column in COLUMNS else column) for column in keys),
        value.alias("value"),
        pl.when(is_open).then(low).otherwise(value).alias("lo"),
        pl.when(is_open).then(high).otherwise(value).alias("hi"),
        pl.when(is_open).then(None).otherwise(1.0).cast(pl.Float64).alias("level"),
        pl.when(is_open).then(pl.lit("bound")).otherwise(pl.lit("exact")).alias("kind"),
        pl.lit(contents.counters.commits, pl.UInt64).alias("n"),
        pl.lit(None, pl.UInt32).alias("N"),
        pl.when(is_open).then(_reason(contents, kind)).otherwise(None).alias("reason"),
    )


def _reason(contents: LiveContents, kind: str) -> pl.Expr:
    """Why the value is not final."""
    if not contents.windowed:
        return pl.lit("it has no window, so every event may change it")
    mark = time_of(contents.watermark_us)
    said = "no watermark yet" if mark is None else f"watermark {mark:%Y-%m-%d %H:%M:%S}"
    until = pl.col(END).dt.offset_by(f"{contents.part.lateness_us}us").dt.to_string("%Y-%m-%d %H:%M:%S%.f")
    what = "" if kind in (*GROWING, *SHRINKING) else f"; agg.{kind} may still rise or fall"
    return pl.format("open until {}, {}", until, pl.lit(said + what))
