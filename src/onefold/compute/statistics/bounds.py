"""One-sided bounds: what a minimum, maximum or distinct count so far says about the final one.

No interval is given for these: what has not been seen can lie beyond anything seen, so no sample bounds an
extreme on its other side without a model of the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import polars as pl

from onefold.compute.statistics.totals import output_keys
from onefold.errors import InvalidArgument


def bound(
    kind: Literal["min", "max", "n_unique"],
    values: pl.DataFrame,
    *,
    keys: Sequence[str],
    n: int,
    total_splits: int,
    value: str = "value",
    relative_error: float = 0.0,
) -> pl.DataFrame:
    """Bounds from the values over the splits done.

    ``values``: key columns + the column named by ``value`` (any orderable type). A minimum so far is an upper
    bound of the final one (``hi`` = value, ``lo`` null); a maximum and a distinct count are lower bounds
    (``lo`` = value, ``hi`` null). ``relative_error``: of a sketch that counts distinct values approximately;
    its bounds are moved outwards by it, and with every split done ``lo`` and ``hi`` are that far from the
    value rather than equal to it.

    Returns key columns + ``value, lo, hi, level`` (null), ``kind`` ("bound" | "exact"), ``n``, ``N``,
    ``reason`` (null, or "none of the splits is done" when n == 0, where ``lo`` and ``hi`` are null).
    """
    if kind not in {"min", "max", "n_unique"}:
        raise InvalidArgument(f"kind must be 'min', 'max' or 'n_unique', not {kind!r}")
    if not 0 <= n <= total_splits:
        raise InvalidArgument(f"n={n} does not lie between 0 and total_splits={total_splits}")
    if relative_error and kind != "n_unique":
        raise InvalidArgument("relative_error is for n_unique only")
    done = n == total_splits
    seen = pl.col(value)
    low = seen / (1 + relative_error) if relative_error else seen
    high = seen / (1 - relative_error) if relative_error else seen
    null = pl.lit(None, values.schema[value])
    return values.select(
        *(pl.col(key).alias(name) for key, name in zip(keys, output_keys(keys), strict=True)),
        seen.alias("value"),
        (low if done or (n and kind != "min") else null).alias("lo"),
        (high if done or (n and kind == "min") else null).alias("hi"),
        pl.lit(None, pl.Float64).alias("level"),
        pl.lit("exact" if done and not relative_error else "bound").alias("kind"),
        pl.lit(n, pl.UInt32).alias("n"),
        pl.lit(total_splits, pl.UInt32).alias("N"),
        pl.lit(None if n or done else f"none of the {total_splits} splits is done", pl.String).alias(
            "reason"
        ),
    )
