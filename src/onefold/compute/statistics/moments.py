"""The state that intervals are made of: power sums of per-split totals, one row per group, mergeable in any
grouping.

For group g and split i let s be the sum of the group's values in the split and c the number of its non-null
values; both are 0 when the group is not in the split, which is why zeros need no rows. A split that is cut in
two (bisected around a poison record) must be summed into one row of totals before it enters: its halves are
one cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from onefold.errors import InvalidArgument

STATE: Final = (
    "m",  # splits with the group (c > 0)
    *("s1", "s2", "s3"),  # Σs, Σs², Σs³
    *("c1", "c2", "c3"),  # Σc, Σc², Σc³
    *("sc", "ssc", "scc"),  # Σsc, Σs²c, Σsc²: with the above, the moments of s - R·c for any R
    *(
        "p",
        "q",
    ),  # splits with s > 0, and with s < 0: logarithms say something only when all totals have one sign
    *("ls1", "ls2"),  # Σlog|s|, Σlog²|s|   over splits with s != 0
    *("lc1", "lc2"),  # Σlog c, Σlog² c   over splits with c > 0
    *("lr1", "lr2"),  # Σlog|s/c|, Σlog²|s/c|   over splits with s != 0
)
BATCH: Final = 8
"""Splits that are added up at once: few enough that their rows stay in cache (16 was as fast, 64 five times
slower).
"""


@dataclass(frozen=True)
class Moments:
    """Power sums of one aggregate's split totals over ``splits`` splits.

    ``frame``: the key columns and the columns of ``STATE`` (``m``, ``p`` and ``q`` UInt32, the others Float64), one
    row per group that was seen, in no particular order.
    """

    frame: pl.DataFrame
    splits: int


def leaf(totals: pl.DataFrame, keys: Sequence[str]) -> Moments:
    """The moments of one split. ``totals``: key columns (a group once) + ``s`` (sum) + ``c`` (non-null
    values).

    For counts give ``s`` = ``c``, or leave ``s`` out. Raises ``InvalidArgument`` when a column is missing.
    """
    return Moments(_powers(totals, keys), 1)


def of_splits(frames: Sequence[pl.DataFrame], keys: Sequence[str]) -> Moments:
    """The moments of many splits at once: ``frames[i]`` is what ``leaf`` takes for split i (it may have no
    rows).
    """
    if not frames:
        raise InvalidArgument("of_splits needs at least one split; pass None where there is no sample")
    needed = [*keys, *(name for name in ("s", "c") if name in frames[0].columns)]
    sums = [
        _summed([_powers(pl.concat([f.select(needed) for f in batch], how="vertical_relaxed"), keys)], keys)
        for batch in _batches(frames)
    ]
    while len(sums) > 1:
        sums = [_summed(batch, keys) for batch in _batches(sums)]
    return Moments(sums[0], len(frames))


def merge(a: Moments, b: Moments, keys: Sequence[str]) -> Moments:
    """The moments of both sets of splits, which must be disjoint. Associative and commutative up to float
    rounding.
    """
    return Moments(_summed([a.frame, b.frame], keys), a.splits + b.splits)


def _batches(frames: Sequence[pl.DataFrame]) -> list[Sequence[pl.DataFrame]]:
    return [frames[i : i + BATCH] for i in range(0, len(frames), BATCH)]


def _powers(totals: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    needed = [*keys, "c"]
    if missing := [name for name in needed if name not in totals.columns]:
        raise InvalidArgument(f"totals of a split lack the columns {missing}; they have {totals.columns}")
    count = pl.col("c").cast(pl.Float64).fill_null(0.0)
    total = pl.col("s").cast(pl.Float64).fill_null(0.0) if "s" in totals.columns else count
    frame = totals.select(*keys, total.alias("s"), count.alias("c"))
    s, c = pl.col("s"), pl.col("c")
    some = (s != 0) & (c > 0)
    log_s = pl.when(some).then(s.abs().log()).otherwise(0.0)
    log_c = pl.when(c > 0).then(c.log()).otherwise(0.0)
    log_r = pl.when(some).then(s.abs().log() - c.log()).otherwise(0.0)
    return frame.with_columns(log_s.alias("_ls"), log_c.alias("_lc"), log_r.alias("_lr")).select(
        *keys,
        (c > 0).cast(pl.UInt32).alias("m"),
        *(s.alias("s1"), (s * s).alias("s2"), (s * s * s).alias("s3")),
        *(c.alias("c1"), (c * c).alias("c2"), (c * c * c).alias("c3")),
        *((s * c).alias("sc"), (s * s * c).alias("ssc"), (s * c * c).alias("scc")),
        *(((s > 0) & (c > 0)).cast(pl.UInt32).alias("p"), ((s < 0) & (c > 0)).cast(pl.UInt32).alias("q")),
        *(pl.col("_ls").alias("ls1"), (pl.col("_ls") ** 2).alias("ls2")),
        *(pl.col("_lc").alias("lc1"), (pl.col("_lc") ** 2).alias("lc2")),
        *(pl.col("_lr").alias("lr1"), (pl.col("_lr") ** 2).alias("lr2")),
    )


def _summed(frames: Sequence[pl.DataFrame], keys: Sequence[str]) -> pl.DataFrame:
    """Add up rows of the same group. Order of rows in equals order of frames, so equal input gives equal
    bits.
    """
    rows = pl.concat(frames, how="vertical")
    if not keys:
        return rows.select(pl.col(name).sum() for name in STATE)
    return rows.group_by(*keys, maintain_order=True).agg(pl.col(name).sum() for name in STATE)
