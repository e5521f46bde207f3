"""Which intervals are shown, and how wide: the numbers were chosen by simulation (``benches/coverage.py``).

Student's t on split totals is right when totals are alike. When they are skewed, the large split that has not
been seen yet is missing from the estimate *and* from its variance, and the upper limit fails: coverage falls
to 76-90 %. Two signs give such totals away, and they are complementary because the first sees the outlier and
the second its absence:

* the sample's skewness, beyond what normal totals would show by chance;
* the spread of the *logarithms* of the totals: it comes from all splits, so it tells a long tail whose end is
  unseen.

By these the limit on the tail's side widens. Groups are **withheld only by n and m**, the numbers of splits
done and of splits with the group. Withholding on skewness would keep the lucky samples in which the large
split was not drawn, and coverage among what is shown would drop (it was measured: 30-60 %).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from onefold.compute.statistics.distributions import (
    hypergeometric_at_most,
    hypergeometric_more_than,
    student_t,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

SPLITS_MIN_EARLY: Final = 16
"""Before half-way, nothing is shown with fewer splits done than this."""
PRESENT_MIN_EARLY: Final = 5
"""Before half-way, a group is shown when this many splits have it."""
PRESENT_MIN: Final = 3
"""From half-way on, a group is shown when this many splits have it."""
RARE_SPLITS: Final = 8
"""A group that is in fewer splits than this, of all N, is *rare*: it may never be shown before the end."""
QUANTILE_SPLITS_MIN: Final = 2.0
"""A q-quantile is shown when min(q, 1 - q) of the splits that have the group are this many."""
QUANTILE_RARE_SPLITS: Final = 6.0
"""For a q-quantile a group is rare when min(q, 1 - q) of the splits that have it, of all N, are fewer than
this.
"""

TAIL: Final = 6.0
"""Limit on a long tail's side, in standard errors, when the sample's own skewness is nil (see
``tail_factor``).
"""
TAIL_MEAN: Final = 7.5
"""The same for means; and for shares, which lie in [0, 1] and have no long tail, below."""
TAIL_SHARE: Final = 3.0
TAIL_SMALL_SAMPLE: Final = 8.0
"""TAIL grows by the factor 1 + TAIL_SMALL_SAMPLE / n."""
TAIL_SMALL_SAMPLE_SHARE: Final = 3.0
"""The same for shares."""
TAIL_LOG_SLOPE: Final = 1.5
TAIL_LOG_FROM: Final = 0.7
"""TAIL grows by TAIL_LOG_SLOPE for each unit of log-spread above TAIL_LOG_FROM."""
LOG_SPREAD_SUM: Final = (0.20, 0.50)
LOG_SPREAD_COUNT: Final = (0.30, 0.80)
LOG_SPREAD_MEAN: Final = (0.12, 0.35)
"""Standard deviation of log totals (of log means) at which widening begins, and at which it is full. A mean
has the least, since it averages most and yet may hide one huge row; a count cannot, for no split is larger
than its file.
"""
SKEW_RAMP: Final = (1.0, 2.0)
"""The same for skewness, in units of its standard deviation for normal totals, sqrt(6 / n)."""
SKEW_HARM_SEEN: Final = (0.03, 0.12)
SKEW_HARM_EXPECTED: Final = (0.05, 0.15)
"""Skewness over sqrt(n) at which it begins to harm Student's t, and at which it harms fully: seen in the sample, and
expected of lognormal totals with the log-spread found. It falls with n, so with many splits the interval *is*
Student's (Cochran's rule, n > 25 skewness², is a value of 0.2).
"""
DAMPING: Final = 1.7
"""A sample of skewness g sqrt(n) has seen an outlier, and has a standard error to match: TAIL counts 1 - |g|^DAMPING."""
FEW_CLUSTERS: Final = 1.2
"""Limits of ratios widen by the factor 1 + FEW_CLUSTERS / m: linearisation understates the variance of few
clusters.
"""
FEW_PRESENT: Final = 2.0
"""A long tail's limit of a total widens by the factor 1 + FEW_PRESENT / m, m: splits with the group."""
PRESENCE_CHECK_MAX: Final = 60
"""Splits with the group up to which the exact distribution of that number is looked at."""
NO_VARIATION: Final = 1e-13
"""Σ(s - s̄)² up to this times Σs² is rounding, not variation."""


def skewness(e2: Floats, e3: Floats) -> Floats:
    """Σe³ / (Σe²)^1.5 of centred values: skewness over sqrt(n), within [-1, 1]; 1 is a single outlier."""
    with np.errstate(divide="ignore", invalid="ignore"):
        g = e3 / np.maximum(e2, 0.0) ** 1.5
    return np.clip(np.nan_to_num(g, nan=0.0, posinf=0.0, neginf=0.0), -1.0, 1.0)


def log_spread(count: Floats, log1: Floats, log2: Floats) -> Floats:
    """Sample standard deviation of logarithms from their sum and sum of squares; 0 for fewer than two."""
    k = np.maximum(count, 2.0)
    with np.errstate(invalid="ignore"):
        variance = (log2 - log1 * log1 / k) / (k - 1)
    return np.where(count >= 2, np.sqrt(np.maximum(variance, 0.0)), 0.0)


def tail_factor(
    g: Floats,
    spread: Floats,
    side: Floats,
    n: Floats | float,
    t: Floats | float,
    *,
    level: float,
    tail: Floats | float,
    ramp: tuple[float, float],
    small: float = TAIL_SMALL_SAMPLE,
) -> tuple[Floats, Floats]:
    """How many standard errors the interval reaches down and up.

    ``g``: ``skewness``; ``side``: 1 where all totals are positive, -1 where all are negative, 0 where both
    occur; ``spread``: ``log_spread``, without meaning where ``side`` is 0; ``n``: clusters behind ``g``;
    ``t``: Student's critical value, which the result never goes below; ``tail``, ``ramp`` and ``small``: TAIL,
    LOG_SPREAD and TAIL_SMALL_SAMPLE of the estimator. Where totals have both signs an outlier on one side warns
    of one on the other.
    """
    both = side == 0
    g = np.where(side < 0, -g, g)
    spread = np.where(both, 0.0, spread)
    reach = tail * (1.0 + small / n) + TAIL_LOG_SLOPE * np.maximum(spread - TAIL_LOG_FROM, 0.0)
    # TAIL was found for 95 %; tails are longer than Student's, so other levels move by more than t does.
    reach = reach * (student_t(level, 1e6) / student_t(0.95, 1e6)) ** 1.5
    seen = _ramp(np.abs(g) * n / np.sqrt(6.0), *SKEW_RAMP) * _ramp(np.abs(g), *SKEW_HARM_SEEN)
    v = np.expm1(np.minimum(spread, 3.0) ** 2)
    lognormal_g = (v + 3.0) * np.sqrt(v) / np.sqrt(n)
    expected = _ramp(spread, *ramp) * _ramp(lognormal_g, *SKEW_HARM_EXPECTED)
    damped = reach * (1.0 - np.abs(g) ** DAMPING)
    outward = np.maximum(np.where((g > 0) | both, seen, 0.0), expected)
    inward = np.where((g < 0) | both, seen, 0.0)
    far = np.maximum(t, t + outward * (np.where((g > 0) | both, damped, reach) - t))
    near = np.maximum(t, t + inward * (damped - t))
    return np.where(side < 0, far, near), np.where(side < 0, near, far)


def _ramp(x: Floats, start: float, full: float) -> Floats:
    return np.clip((x - start) / (full - start), 0.0, 1.0)


def present_min(n: int, total: int) -> int:
    """In how many of the n splits done (of ``total``) a group must be to be shown."""
    return PRESENT_MIN if 2 * n >= total else PRESENT_MIN_EARLY


def too_early(n: int, total: int) -> str | None:
    """Why nothing at all can be shown yet, or None."""
    if n < 2:
        return "one split says nothing about how splits differ"
    if 2 * n < total and n < SPLITS_MIN_EARLY:
        return f"only {n} of {total} splits are done; shown from {SPLITS_MIN_EARLY} splits or half-way on"
    return None


def presence_limits(m: Ints, n: int, total: int, level: float) -> tuple[Floats, Floats]:
    """Limits for the number of all ``total`` splits that have a group, when m of the n done have it.

    The lower limit is conditional on m having reached ``present_min``: of groups in few splits only the lucky
    samples are shown. Exact hypergeometric tails (Clopper and Pearson 1934; Cochran 1977, §3.6). Returned for
    m <= min(n / 2, PRESENCE_CHECK_MAX); NaN elsewhere, where Student's t does as well.
    """
    last = min(n // 2, PRESENCE_CHECK_MAX)
    least = present_min(n, total)
    low = np.full(n + 1, np.nan)
    high = np.full(n + 1, np.nan)
    if last >= least:
        ms = np.arange(least, last + 1)

        def lower_ok(k: Ints) -> NDArray[np.bool_]:
            reached = hypergeometric_more_than(ms - 1, total, k, n)
            shown = np.maximum(hypergeometric_more_than(least - 1, total, k, n), 1e-300)
            return np.asarray(reached >= (1 - level) * shown)

        def upper_ok(k: Ints) -> NDArray[np.bool_]:
            return np.asarray(hypergeometric_at_most(ms, total, k, n) >= (1 - level) / 2)

        low[ms] = _first(lower_ok, ms, np.full_like(ms, total - n) + ms)
        high[ms] = _first(lambda k: ~upper_ok(k), ms + 1, np.full_like(ms, total - n) + ms + 1) - 1
    inside = np.clip(m, 0, n)
    return low[inside], high[inside]


def _first(condition: Any, low: Ints, high: Ints) -> Ints:
    """Per element the first k in [low, high] where a monotone condition holds (``high`` when it holds nowhere
    before).
    """
    while np.any(low < high):
        middle = (low + high) // 2
        holds = condition(middle)
        high = np.where(holds, middle, high)
        low = np.where(holds, low, np.minimum(middle + 1, high))
    return high


def unseen_unlike(n: int, total: int, level: float) -> float:
    """How many of the splits not yet seen may be unlike all those seen, which are all alike.

    About the largest K for which a sample of n of ``total`` misses K given splits with probability 1 -
    ``level``: the "rule of three" without replacement.
    """
    missed: float = (total - (n - 1) / 2) * (1.0 - (1.0 - level) ** (1.0 / n))
    return min(float(total - n), missed)
