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

from onefold.compute.frames.values import concat
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
PREFIX: Final = "#"
"""Of the state's column names, so that a group key may be called ``m`` or ``c1``."""
BATCH: Final = 8
"""Splits that are added up at once: few enough that their rows stay in cache (16 was as fast, 64 five times
slower).
"""


@dataclass(frozen=True)
class Moments:
    """Power sums of one aggregate's split totals over ``splits`` splits.

    ``frame``: the key columns and the columns of ``STATE``, prefixed with ``#`` (``m``, ``p`` and ``q``
    UInt32, the others Float64), one row per group that was seen, in no particular order.
    """

    frame: pl.DataFrame
    splits: int


def leaf(totals: pl.DataFrame, keys: Sequence[str], *, s: str = "s", c: str = "c") -> Moments:
    """The moments of one split. ``totals``: key columns (a group once) + ``s`` (sum) + ``c`` (non-null
    values).

    For counts give ``s`` = ``c``, or leave ``s`` out. ``s=`` and ``c=`` name other columns for them. Raises
    ``InvalidArgument`` when a column is missing.
    """
    return Moments(_powers(totals, keys, s, c), 1)


def of_splits(frames: Sequence[pl.DataFrame], keys: Sequence[str], *, s: str = "s", c: str = "c") -> Moments:
    """The moments of many splits at once: ``frames[i]`` is what ``leaf`` takes for split i (it can have no
    rows).
    """
    if not frames:
        raise InvalidArgument("of_splits needs at least one split; pass None where there is no sample")
    needed = [*keys, *(name for name in (s, c) if name in frames[0].columns)]
    sums = []
    for batch in _batches(frames):
        totals = concat(frame.select(needed) for frame in batch)
        sums.append(_summed([_powers(totals, keys, s, c)], keys))
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


def _powers(totals: pl.DataFrame, keys: Sequence[str], sums: str, counts: str) -> pl.DataFrame:
    if missing := [name for name in (*keys, counts) if name not in totals.columns]:
        raise InvalidArgument(f"totals of a split lack the columns {missing}; they have {totals.columns}")
    if clash := {sums, counts} & set(keys):
        raise InvalidArgument(f"{sorted(clash)} is a group key; give the totals other names with s= and c=")
    c = pl.col("#c")
    s = pl.col("#s")
    total = pl.col(sums if sums in totals.columns else counts)
    frame = totals.select(
        *keys,
        total.cast(pl.Float64).fill_null(0.0).alias("#s"),
        pl.col(counts).cast(pl.Float64).fill_null(0.0).alias("#c"),
    )
    some = (s != 0) & (c > 0)
    logs = {
        "#l_s": pl.when(some).then(s.abs().log()).otherwise(0.0),
        "#l_c": pl.when(c > 0).then(c.log()).otherwise(0.0),
        "#l_r": pl.when(some).then(s.abs().log() - c.log()).otherwise(0.0),
    }
    powers = {
        "m": (c > 0).cast(pl.UInt32),
        **{"s1": s, "s2": s * s, "s3": s * s * s, "c1": c, "c2": c * c, "c3": c * c * c},
        **{"sc": s * c, "ssc": s * s * c, "scc": s * c * c},
        "p": ((s > 0) & (c > 0)).cast(pl.UInt32),
        "q": ((s < 0) & (c > 0)).cast(pl.UInt32),
        **{f"l{x}{k}": pl.col(f"#l_{x}") ** k for x in "scr" for k in (1, 2)},
    }
    return frame.with_columns(**logs).select(*keys, *(powers[name].alias(PREFIX + name) for name in STATE))


def _summed(frames: Sequence[pl.DataFrame], keys: Sequence[str]) -> pl.DataFrame:
    """Add up rows of the same group. Order of rows in equals order of frames, so equal input gives equal
    bits.
    """
    rows = concat(frames)
    if not keys:
        return rows.select(pl.col(PREFIX + name).sum() for name in STATE)
    return rows.group_by(*keys, maintain_order=True).agg(pl.col(PREFIX + name).sum() for name in STATE)
