"""Intervals for quantiles by Woodruff's method: an interval for the *share* of values up to x, turned back
into values.

Source: R. S. Woodruff, "Confidence intervals for medians and other position measures", JASA 47 (1952);
Särndal, Swensson and Wretman (1992), §5.11. The share F(x) = (values <= x) / (values) is a ratio of split
totals, so its limits at the estimated quantile come from the same linearisation as those of a mean, and only
clusters, never rows, count as independent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl

from onefold.compute.statistics import rule
from onefold.compute.statistics.rule import Floats
from onefold.compute.statistics.totals import Sums, output, ratio_limits
from onefold.errors import InvalidArgument

BISECTIONS: Final = 60
"""Enough halvings to find a float64 between any two others."""

RankAt = Callable[[float], Floats]
QuantileAt = Callable[[float], float]


@dataclass(frozen=True)
class QuantileInterval:
    """An estimated quantile; ``lo`` and ``hi`` are None when withheld, and ``reason`` says why."""

    value: float | None
    lo: float | None
    hi: float | None
    reason: str | None


@dataclass(frozen=True)
class GroupQuantile:
    """What is known of one group, for ``quantile_intervals``; the fields are the arguments of
    ``woodruff``.
    """

    counts: Floats
    rank_at: RankAt
    quantile_at: QuantileAt
    exact_count: float = 0.0
    exact_rank_at: Callable[[float], float] | None = None


def quantile_shares(
    below: Floats,
    counts: Floats,
    q: float,
    *,
    splits: int,
    total_splits: int,
    level: float = 0.95,
    rank_error: float = 0.0,
    known_below: Floats | float = 0.0,
    known_count: Floats | float = 0.0,
) -> tuple[Floats, Floats, np.ndarray]:
    """The shares whose quantiles are the limits of the q-quantile, for many groups at once.

    ``below``, ``counts``: shape (..., k), the values up to the estimated quantile and all values of a group
    in each of k splits; splits without the group may be left out, ``splits`` says how many were done. The
    other arguments are those of ``woodruff``. Returns (down, up, reason), each of shape (...); NaN where
    ``reason`` is not "".
    """
    s = np.asarray(below, dtype=np.float64)
    c = np.asarray(counts, dtype=np.float64)
    zero = np.zeros(s.shape[:-1])
    sums = Sums(
        m=(c > 0).sum(-1).astype(np.float64),
        s=(s.sum(-1), (s * s).sum(-1), (s**3).sum(-1)),
        c=(c.sum(-1), (c * c).sum(-1), (c**3).sum(-1)),
        sc=(s * c).sum(-1),
        ssc=(s * s * c).sum(-1),
        scc=(s * c * c).sum(-1),
        spread_s=zero,
        spread_c=zero,
        spread_r=zero,
        side=zero,
    )
    limits = ratio_limits(
        sums,
        np.asarray(known_below, dtype=np.float64),
        np.asarray(known_count, dtype=np.float64),
        n=splits,
        total=total_splits,
        level=level,
        tail=rule.TAIL_SHARE,
        small=rule.TAIL_SMALL_SAMPLE_SHARE,
        of="share of values up to the quantile",
    )
    # The share at the estimate need not be q (ties, coarse sketches): its error is laid around q itself.
    down = q - (limits.value - limits.lo) - rank_error
    up = q + (limits.hi - limits.value) + rank_error
    why = limits.why.copy()
    few = sums.m * min(q, 1 - q) < rule.QUANTILE_SPLITS_MIN
    if rule.too_early(splits, total_splits) is None:
        why[few & (sums.m >= rule.present_min(splits, total_splits))] = (
            f"too few splits have this group for its {q:g}-quantile"
        )
    why[(why == "") & (down <= 0)] = "too few splits to tell the lower end of this quantile"
    why[(why == "") & (up >= 1)] = "too few splits to tell the upper end of this quantile"
    return np.where(why == "", down, np.nan), np.where(why == "", up, np.nan), why


def woodruff(
    counts: Floats,
    rank_at: RankAt,
    quantile_at: QuantileAt,
    q: float,
    *,
    splits: int,
    total_splits: int,
    level: float = 0.95,
    rank_error: float = 0.0,
    exact_count: float = 0.0,
    exact_rank_at: Callable[[float], float] | None = None,
) -> QuantileInterval:
    """One group's q-quantile from the prefix of dispatch order, with limits.

    ``counts``: shape (k,), the group's values in each split that has it; ``rank_at(x)``: shape (k,), how many
    of them are <= x, split by split; ``quantile_at(p)``: the p-quantile of all of the sample's values, p in
    [0, 1]. ``splits`` of ``total_splits`` are done. ``rank_error``: of the sketches behind these, as a share
    of all values; the limits widen by it. ``exact_count`` and ``exact_rank_at(x)`` are the same for a part
    that is known whole; then quantiles of the two together are found by bisection on the ranks, between
    ``quantile_at``'s ends.

    With every split done the value is the batch value and the limits equal it.
    """
    if not 0 <= q <= 1:
        raise InvalidArgument(f"q must lie in [0, 1]; it is {q}")
    if not 0 <= splits <= total_splits or len(counts) > splits:
        raise InvalidArgument(
            f"{len(counts)} splits with values, {splits} done, {total_splits} in all: not possible"
        )
    counts = np.asarray(counts, dtype=np.float64)
    if (splits == 0 and total_splits > 0) or not (counts.sum() or exact_count):
        return QuantileInterval(None, None, None, f"no value in the {splits} of {total_splits} splits done")
    if exact_rank_at is not None and exact_count > 0:
        invert = _combined(
            counts, rank_at, quantile_at, exact_count, exact_rank_at, weight=total_splits / max(splits, 1)
        )
    else:
        invert, exact_count = quantile_at, 0.0
    value = float(invert(q))
    if splits == total_splits:
        return QuantileInterval(value, value, value, None)
    known = float(exact_rank_at(value)) if exact_rank_at is not None and exact_count else 0.0
    down, up, why = quantile_shares(
        rank_at(value),
        counts,
        q,
        splits=splits,
        total_splits=total_splits,
        level=level,
        rank_error=rank_error,
        known_below=known,
        known_count=exact_count,
    )
    if reason := str(why):
        return QuantileInterval(value, None, None, reason)
    return QuantileInterval(
        value, min(value, float(invert(float(down)))), max(value, float(invert(float(up)))), None
    )


def quantile_intervals(
    groups: Iterable[GroupQuantile],
    q: float,
    *,
    frame: pl.DataFrame,
    keys: Sequence[str],
    splits: int,
    total_splits: int,
    level: float = 0.95,
    rank_error: float = 0.0,
) -> pl.DataFrame:
    """``woodruff`` for each group, as a frame of the form of ``intervals``. ``frame``: a row for each group, in
    their order, with its key columns: the keys' own values, of which Python may not tell two apart.
    """
    found = [
        woodruff(
            group.counts,
            group.rank_at,
            group.quantile_at,
            q,
            splits=splits,
            total_splits=total_splits,
            level=level,
            rank_error=rank_error,
            exact_count=group.exact_count,
            exact_rank_at=group.exact_rank_at,
        )
        for group in groups
    ]

    def numbers(name: str) -> Floats:
        return np.array(
            [np.nan if (x := getattr(one, name)) is None else x for one in found], dtype=np.float64
        )

    return output(
        frame,
        keys,
        *(numbers(name) for name in ("value", "lo", "hi")),
        level=level,
        kind="exact" if splits == total_splits else "estimate",
        n=splits,
        total=total_splits,
        why=np.array([one.reason or "" for one in found], dtype=object),
    )


def _combined(
    counts: Floats,
    rank_at: RankAt,
    quantile_at: QuantileAt,
    exact_count: float,
    exact_rank_at: Callable[[float], float],
    *,
    weight: float,
) -> QuantileAt:
    """Quantiles of the sample, expanded by ``weight``, and the exact part together."""
    everything = weight * float(counts.sum()) + exact_count

    def share(x: float) -> float:
        return (weight * float(np.sum(rank_at(x))) + float(exact_rank_at(x))) / everything

    def invert(p: float) -> float:
        low, high = float(quantile_at(0.0)), float(quantile_at(1.0))
        reach = max(high - low, abs(low), abs(high), 1.0)
        while share(low) > p and reach < 1e300:
            low, reach = low - reach, reach * 2
        reach = max(high - low, 1.0)
        while share(high) < p and reach < 1e300:
            high, reach = high + reach, reach * 2
        for _ in range(BISECTIONS):
            middle = low + (high - low) / 2
            if share(middle) >= p:
                high = middle
            else:
                low = middle
        return high

    return invert
