"""Intervals for sums, counts and means of groups, from the moments of their split totals.

Sources: expansion estimator and its variance under simple random sampling without replacement, Cochran,
*Sampling Techniques* (1977), §2.5-2.9 and (clusters) §9A; combined ratio estimator over strata, Cochran
§6.11. Linearised variance, Särndal, Swensson and Wretman, *Model Assisted Survey Sampling* (1992), §5.5-5.6;
degrees of freedom by Kish's effective number of clusters. The widening on the side of a long tail is
Onefold's own: see ``rule``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from onefold.compute.frames.named import frame_of
from onefold.compute.statistics import rule
from onefold.compute.statistics.distributions import student_t
from onefold.compute.statistics.moments import PREFIX, STATE, Moments
from onefold.compute.statistics.rule import Floats
from onefold.errors import InvalidArgument

Kind = Literal["sum", "count", "mean"]
KNOWN = ("#known_s", "#known_c")
COLUMNS = ("value", "lo", "hi", "level", "kind", "n", "N", "reason")


@dataclass(frozen=True)
class Sums:
    """Arrays of one shape, one element per group: what ``Moments`` holds, as numbers. ``x`` = Σx over splits
    seen.
    """

    m: Floats
    s: tuple[Floats, Floats, Floats]
    c: tuple[Floats, Floats, Floats]
    sc: Floats
    ssc: Floats
    scc: Floats
    spread_s: Floats
    spread_c: Floats
    spread_r: Floats
    side: Floats
    """1 where all totals of s are positive, -1 where all are negative, 0 where both occur (or zeros)."""


@dataclass(frozen=True)
class Limits:
    """Value and limits per group; where ``why`` is not empty the limits are NaN."""

    value: Floats
    lo: Floats
    hi: Floats
    why: np.ndarray


def intervals(
    kind: Kind,
    sample: Moments | None,
    exact: Moments | None,
    *,
    total_splits: int,
    keys: Sequence[str],
    level: float = 0.95,
    nonnegative: bool = False,
) -> pl.DataFrame:
    """Estimates for every group seen, with confidence intervals where they can be trusted.

    ``sample``: moments of the *contiguous prefix* of dispatch order, out of ``total_splits`` new splits;
    None: none done. ``exact``: totals that are known whole (splits reused from an earlier run), or None.
    ``nonnegative``: the caller knows that no value is negative, so a sum cannot end below what was already
    seen (counts never do).

    Returns key columns (see ``output_keys``) + ``value, lo, hi, level`` (Float64), ``kind`` ("estimate" |
    "exact"), ``n``, ``N`` (splits done and all, of the new ones), ``reason`` (null, or why ``lo`` and ``hi``
    are null). Order of rows: groups of ``sample`` first, in its order. With all splits done every row is
    exact: ``lo == value == hi``. With none done ``value`` is null as well. A group that no finished split has
    seen has no row: nothing is known about it. Raises ``InvalidArgument``.
    """
    n = sample.splits if sample is not None else 0
    _check(kind, n, total_splits, level)
    frame = _joined(sample, exact, keys)
    if n == total_splits:
        return _exact(kind, frame, keys, level=level, total=total_splits)
    sums = _sums(frame)
    known_s = frame[KNOWN[0]].to_numpy()
    known_c = frame[KNOWN[1]].to_numpy()
    with np.errstate(
        invalid="ignore", over="ignore"
    ):  # infinities among the values end as "not a finite number"
        if n == 0:
            nothing = np.full(frame.height, np.nan)
            why = np.full(frame.height, f"none of the {total_splits} splits is done", dtype=object)
            limits = Limits(nothing, nothing, nothing, why)
        elif kind == "mean":
            limits = ratio_limits(sums, known_s, known_c, n=n, total=total_splits, level=level)
        else:
            known = known_s if kind == "sum" else known_c
            certain = nonnegative or kind == "count"
            limits = total_limits(
                sums, known, kind, n=n, total=total_splits, level=level, nonnegative=certain
            )
    return output(
        frame,
        keys,
        limits.value,
        limits.lo,
        limits.hi,
        level=level,
        kind="estimate",
        n=n,
        total=total_splits,
        why=limits.why,
    )


def output(
    frame: pl.DataFrame,
    keys: Sequence[str],
    value: Floats,
    lo: Floats,
    hi: Floats,
    *,
    level: float,
    kind: str,
    n: int,
    total: int,
    why: np.ndarray,
) -> pl.DataFrame:
    """The frame that ``intervals`` describes, from the groups of ``frame``; NaN becomes null, "" no
    reason.
    """
    rows = frame.height
    return frame_of(
        [
            *(frame[key].alias(name) for key, name in zip(keys, output_keys(keys), strict=True)),
            *(
                pl.Series(name, x, dtype=pl.Float64).fill_nan(None)
                for name, x in (("value", value), ("lo", lo), ("hi", hi))
            ),
            pl.repeat(level, rows, dtype=pl.Float64, eager=True).alias("level"),
            pl.repeat(kind, rows, dtype=pl.String, eager=True).alias("kind"),
            pl.repeat(n, rows, dtype=pl.UInt32, eager=True).alias("n"),
            pl.repeat(total, rows, dtype=pl.UInt32, eager=True).alias("N"),
            pl.Series("reason", why, dtype=pl.String).replace("", None),
        ]
    )


def output_keys(keys: Sequence[str]) -> list[str]:
    """Names of the key columns in addition to ``COLUMNS``: a key called ``value`` comes out as ``key_value``."""
    return [f"key_{key}" if key in COLUMNS else key for key in keys]


def total_limits(
    sums: Sums,
    known: Floats,
    kind: Literal["sum", "count"],
    *,
    n: int,
    total: int,
    level: float,
    nonnegative: bool,
) -> Limits:
    """N/n · Σs with its limits. ``known`` is added as it is."""
    y1, y2, y3 = sums.s if kind == "sum" else sums.c
    spread = sums.spread_s if kind == "sum" else sums.spread_c
    side = sums.side if kind == "sum" else np.ones_like(sums.side)
    mean = y1 / n
    e2 = y2 - mean * y1
    e3 = y3 - 3 * mean * y2 + 2 * mean * mean * y1
    flat = e2 <= rule.NO_VARIATION * y2
    e2 = np.where(flat, 0.0, e2)
    value = known + total * mean
    if n < 2:
        nothing = np.full_like(value, np.nan)
        return Limits(value, nothing, nothing, _why(sums, value, n, total))
    t = student_t(level, n - 1.0)
    down, up = rule.tail_factor(
        rule.skewness(e2, e3),
        spread,
        side,
        float(n),
        t,
        level=level,
        tail=rule.TAIL * (1 + rule.FEW_PRESENT / np.maximum(sums.m, 1.0)),
        ramp=rule.LOG_SPREAD_SUM if kind == "sum" else rule.LOG_SPREAD_COUNT,
    )
    error = total * np.sqrt((1 - n / total) / n * e2 / (n - 1))
    # Totals that are all alike are not certain ones: the last piece of a file is short, and was perhaps not drawn.
    unlike = np.where(flat, rule.unseen_unlike(n, total, level), 1.0) * np.abs(mean)
    lo, hi = value - np.hypot(down * error, unlike), value + np.hypot(up * error, unlike)
    least, most = rule.presence_limits(sums.m.astype(np.int64), n, total, level)
    per_split = y1 / np.maximum(sums.m, 1.0)
    a, b = known + least * per_split, known + most * per_split
    lo, hi = np.fmin(lo, np.fmin(a, b)), np.fmax(hi, np.fmax(a, b))
    if nonnegative:
        lo = np.maximum(lo, known + y1)
    why = _why(sums, value, n, total)
    why[(why == "") & flat & (mean == 0)] = "every split total seen is zero: nothing to tell its error by"
    return _shown(Limits(value, lo, hi, why))


def ratio_limits(
    sums: Sums,
    known_s: Floats,
    known_c: Floats,
    *,
    n: int,
    total: int,
    level: float,
    tail: float = rule.TAIL_MEAN,
    small: float = rule.TAIL_SMALL_SAMPLE,
    of: str = "mean",
) -> Limits:
    """(Σs) / (Σc), both expanded and with the known parts added, and its limits by linearisation."""
    s1, s2, s3 = sums.s
    c1, c2, c3 = sums.c
    all_c = known_c + total / n * c1
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (known_s + total / n * s1) / all_c
        clusters = np.minimum(c1 * c1 / c2, sums.m)
    if n < 2:
        nothing = np.full_like(value, np.nan)
        return Limits(value, nothing, nothing, _why(sums, value, n, total))
    r = np.nan_to_num(value)
    # Residuals e = s - r·c, centred: with a known part their mean need not be zero.
    e1 = s1 - r * c1
    raw2 = s2 - 2 * r * sums.sc + r * r * c2
    raw3 = s3 - 3 * r * sums.ssc + 3 * r * r * sums.scc - r**3 * c3
    mean = e1 / n
    e2 = raw2 - mean * e1
    e3 = raw3 - 3 * mean * raw2 + 2 * mean * mean * e1
    flat = e2 <= rule.NO_VARIATION * (s2 + r * r * c2)
    clusters = np.maximum(np.nan_to_num(clusters, nan=1.5), 1.5)
    t = student_t(level, np.maximum(clusters - 1, 1.0))
    present = np.maximum(sums.m, 2.0)
    down, up = rule.tail_factor(
        rule.skewness(e2, e3),
        sums.spread_r,
        sums.side,
        present,
        t,
        level=level,
        tail=tail,
        small=small,
        ramp=rule.LOG_SPREAD_MEAN,
    )
    few = 1 + rule.FEW_CLUSTERS / present
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.maximum(e2, 0.0) / n * clusters / (clusters - 1)
        error = few * total * np.sqrt((1 - n / total) / n * spread) / all_c
    why = _why(sums, value, n, total)
    why[(why == "") & flat] = f"the {of} is the same in every split seen: nothing to tell its error by"
    return _shown(Limits(value, value - down * error, value + up * error, why))


def _why(sums: Sums, value: Floats, n: int, total: int) -> np.ndarray:
    """Why the limits of each group are withheld; "" where they are not."""
    why = np.full(value.shape, "", dtype=object)
    least = rule.present_min(n, total)
    few = sums.m < least
    if np.any(few):
        why[few] = [
            f"only {int(m)} of the {n} splits done have this group; {least} are needed" for m in sums.m[few]
        ]
    why[~np.isfinite(value)] = "not a finite number"
    if early := rule.too_early(n, total):
        why[...] = early
    return why


def _shown(limits: Limits) -> Limits:
    hidden = limits.why != ""
    return Limits(
        limits.value, np.where(hidden, np.nan, limits.lo), np.where(hidden, np.nan, limits.hi), limits.why
    )


def _check(kind: str, n: int, total: int, level: float) -> None:
    if kind not in {"sum", "count", "mean"}:
        raise InvalidArgument(f"kind must be 'sum', 'count' or 'mean', not {kind!r}")
    if not 0 < level < 1:
        raise InvalidArgument(f"level must lie between 0 and 1, like 0.95; it is {level}")
    if n > total:
        raise InvalidArgument(f"the sample has {n} splits, more than total_splits={total}")


def _joined(sample: Moments | None, exact: Moments | None, keys: Sequence[str]) -> pl.DataFrame:
    """One row per group of either: the state columns of the sample, and ``KNOWN``; 0 where
    absent.
    """
    nothing = [pl.lit(0.0).alias(name) for name in KNOWN]
    if exact is None:
        if sample is None:
            raise InvalidArgument("give a sample, an exact part, or both")
        return sample.frame.with_columns(nothing)
    state = [PREFIX + name for name in STATE]
    known = exact.frame.select(
        *keys, *(pl.col(PREFIX + x).alias(y) for x, y in zip(("s1", "c1"), KNOWN, strict=True))
    )
    if sample is None:
        return known.with_columns(pl.lit(0.0).alias(name) for name in state)
    if not keys:
        return pl.concat([sample.frame, known], how="horizontal")
    rows = sample.frame.join(
        known, on=list(keys), how="full", coalesce=True, nulls_equal=True, maintain_order="left_right"
    )
    return rows.with_columns(pl.col(*state, *KNOWN).fill_null(0))


def _sums(frame: pl.DataFrame) -> Sums:
    a = {name: frame[PREFIX + name].cast(pl.Float64).to_numpy() for name in STATE}
    return Sums(
        m=a["m"],
        s=(a["s1"], a["s2"], a["s3"]),
        c=(a["c1"], a["c2"], a["c3"]),
        sc=a["sc"],
        ssc=a["ssc"],
        scc=a["scc"],
        spread_s=rule.log_spread(a["p"], a["ls1"], a["ls2"]),
        spread_c=rule.log_spread(a["m"], a["lc1"], a["lc2"]),
        spread_r=rule.log_spread(a["p"], a["lr1"], a["lr2"]),
        side=(a["p"] == a["m"]).astype(np.float64) - (a["q"] == a["m"]),
    )


def _exact(kind: Kind, frame: pl.DataFrame, keys: Sequence[str], *, level: float, total: int) -> pl.DataFrame:
    s = (frame[PREFIX + "s1"] + frame[KNOWN[0]]).to_numpy()
    c = (frame[PREFIX + "c1"] + frame[KNOWN[1]]).to_numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        value = {"sum": s, "count": c, "mean": s / c}[kind]
    none = np.full(len(value), "", dtype=object)
    return output(frame, keys, value, value, value, level=level, kind="exact", n=total, total=total, why=none)
