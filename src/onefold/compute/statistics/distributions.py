"""Quantiles of Student's t and tails of the hypergeometric distribution, on NumPy arrays.

Two functions of the field that intervals need; a whole library of statistics for them would be a quarter of what is
installed. Both are within 1e-9 (relative) of SciPy's over the grid in ``tests/unit/compute/statistics/test_distributions.py``.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_EXPANSION_DF: Final = 2000.0
"""From this many degrees of freedom on, the expansion around the normal quantile is exact to the last digits."""
_EXPANSION_LEVEL: Final = 0.99999
_STEPS_MAX: Final = 100
_FRACTION_TERMS_MAX: Final = 5_000
_TINY: Final = 1e-300


def student_t(level: float, df: Floats | float) -> Any:
    """The x with P(-x <= T <= x) = ``level``, 0 < level < 1, for ``df`` > 0 degrees of freedom; of the shape of ``df``.

    Newton's method on the tail (below the median of |T|: on the centre), both as logarithms of the logarithm of x: a tail that
    falls as a power of x is a straight line there, so the steps neither overshoot nor creep. Many degrees of freedom: the
    expansion of Cornish and Fisher (Abramowitz and Stegun 26.7.5).
    """
    shape = np.shape(df)
    n = np.atleast_1d(np.asarray(df, dtype=np.float64))
    out = np.full(n.shape, np.nan)
    z = NormalDist().inv_cdf(0.5 + level / 2) if level < 0.5 else -NormalDist().inv_cdf(0.5 - level / 2)
    many = (n >= _EXPANSION_DF) & (level <= _EXPANSION_LEVEL)
    if many.any():
        out[many] = _expanded(z, n[many])
    few = (n > 0) & ~many
    if few.any():
        # Splits repeat their numbers: solve each number of degrees once.
        different, where = np.unique(n[few], return_inverse=True)
        out[few] = _solved(level, z, different)[where]
    return out.reshape(shape)[()]


def _expanded(z: float, n: Floats) -> Floats:
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return np.asarray(z + (g1 + (g2 + (g3 + g4 / n) / n) / n) / n)


def _solved(level: float, z: float, n: Floats) -> Floats:
    central = level < 0.5
    target = math.log(level if central else (1 - level) / 2)
    log_density_0 = _log_gamma_ratio(n / 2) - 0.5 * np.log(n * math.pi)
    log_x = np.full(n.shape, math.log(z))
    for _ in range(_STEPS_MAX):
        x = np.exp(log_x)
        centre, tail = _central_and_tail(x, n)
        density = np.exp(log_density_0 - (n + 1) / 2 * np.log1p(x * x / n))
        if central:
            step = (target - np.log(centre)) * centre / (2 * x * density)
        else:
            step = (np.log(tail) - target) * tail / (x * density)
        log_x = log_x + step
        if np.all(np.abs(step) < 1e-14):
            break
    return np.asarray(np.exp(log_x))


def _log_gamma_ratio(a: Floats) -> Floats:
    """log(Γ(a + 1/2) / Γ(a)). By its asymptotic series for large a, where the difference of two logarithms loses digits."""
    small = np.array([math.lgamma(v + 0.5) - math.lgamma(v) for v in np.minimum(a, 20.0)])
    r = 1 / np.maximum(a, 20.0)
    series = 1 / 8 - r * r * (1 / 192 - r * r * (1 / 640 - r * r * (17 / 14336 - r * r * 31 / 18432)))
    large = 0.5 * np.log(np.maximum(a, 20.0)) - r * series
    return np.where(a < 20, small, large)


def _central_and_tail(x: Floats, n: Floats) -> tuple[Floats, Floats]:
    """(P(|T| <= x), P(T > x)), by the incomplete beta function I of x² / (n + x²)."""
    a, y = n / 2, n / (n + x * x)
    rest = x * x / (n + x * x)
    # Each by the side on which the continued fraction converges quickly.
    by_tail = y < (a + 1) / (a + 2.5)
    first = np.where(by_tail, a, 0.5)
    second = np.where(by_tail, 0.5, a)
    at = np.where(by_tail, y, rest)
    log_beta = 0.5 * math.log(math.pi) - _log_gamma_ratio(a)
    front = np.exp(a * np.log(y) + 0.5 * np.log(rest) - log_beta) / first
    part = front * _fraction(at, first, second)
    return np.where(by_tail, 1 - part, part), np.where(by_tail, part, 1 - part) / 2


def _fraction(x: Floats, a: Floats, b: Floats) -> Floats:
    """The continued fraction of the incomplete beta function, by Lentz's method (Numerical Recipes, §6.4)."""
    c = np.ones(x.shape)
    d = _away_from_zero(1 - (a + b) * x / (a + 1))
    d = 1 / d
    h = d
    for m in range(1, _FRACTION_TERMS_MAX):
        term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / _away_from_zero(1 + term * d)
        c = _away_from_zero(1 + term / c)
        h = h * d * c
        term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1 / _away_from_zero(1 + term * d)
        c = _away_from_zero(1 + term / c)
        h = h * d * c
        if np.all(np.abs(d * c - 1) < 1e-15):
            break
    return h


def _away_from_zero(x: Floats) -> Floats:
    return np.where(np.abs(x) < _TINY, _TINY, x)


# --- hypergeometric --------------------------------------------------------------------------------------------


def hypergeometric_at_most(m: Any, total: Any, marked: Any, drawn: Any) -> Floats:
    """P(X <= m): X of the ``drawn`` are marked when ``marked`` of ``total`` are. Arrays of whole numbers, broadcast."""
    lower, _ = _tails(m, total, marked, drawn)
    return lower


def hypergeometric_more_than(m: Any, total: Any, marked: Any, drawn: Any) -> Floats:
    """P(X > m); see ``hypergeometric_at_most``. Small tails keep their digits: they are not 1 minus the other one."""
    _, upper = _tails(m, total, marked, drawn)
    return upper


def _tails(m: Any, total: Any, marked: Any, drawn: Any) -> tuple[Floats, Floats]:
    """(P(X <= m), P(X > m)): the terms of the side that lies away from the mean are summed outwards, where they fall."""
    arrays = np.broadcast_arrays(
        *(np.asarray(value, dtype=np.float64) for value in (m, total, marked, drawn))
    )
    x, t, k, n = (array.copy() for array in arrays)
    least, most = np.maximum(0.0, n - (t - k)), np.minimum(k, n)
    below = x < least  # nothing is at most x
    above = x >= most  # everything is
    down = x < n * k / np.maximum(t, 1.0)
    start = np.clip(np.where(down, x, x + 1), least, most)
    term = _probability(start, t, k, n)
    part = term.copy()
    at = start
    while True:
        with np.errstate(divide="ignore", invalid="ignore"):
            falling = at * (t - k - n + at) / ((k - at + 1) * (n - at + 1))
            rising = (k - at) * (n - at) / ((at + 1) * (t - k - n + at + 1))
        term = term * np.where(down, np.where(at > least, falling, 0.0), np.where(at < most, rising, 0.0))
        part = part + term
        if not np.any(term > part * 1e-17):
            break
        at = np.where(down, at - 1, at + 1)
    part = np.minimum(part, 1.0)
    lower = np.where(below, 0.0, np.where(above, 1.0, np.where(down, part, 1 - part)))
    upper = np.where(below, 1.0, np.where(above, 0.0, np.where(down, 1 - part, part)))
    return lower, upper


def _probability(x: Floats, t: Floats, k: Floats, n: Floats) -> Floats:
    """P(X = x), as a quotient of binomial probabilities in their saddle-point form, which keeps its digits for large
    numbers (Loader 2000, Fast and accurate computation of binomial probabilities).
    """
    p = np.where(t > 0, n / np.maximum(t, 1.0), 0.0)
    q = np.where(t > 0, (t - n) / np.maximum(t, 1.0), 1.0)
    return np.exp(_log_binomial(x, k, p, q) + _log_binomial(n - x, t - k, p, q) - _log_binomial(n, t, p, q))


def _log_binomial(x: Floats, n: Floats, p: Floats, q: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        inner = (
            _stirling_error(n)
            - _stirling_error(x)
            - _stirling_error(n - x)
            - _deviance(x, n * p)
            - _deviance(n - x, n * q)
            + 0.5 * np.log(n / (2 * math.pi * x * (n - x)))
        )
        none = np.where(n > 0, n * np.where(p < 0.5, np.log1p(-p), np.log(q)), 0.0)
        all_of_them = np.where(n > 0, n * np.where(q < 0.5, np.log1p(-q), np.log(p)), 0.0)
    return np.where(x == 0, none, np.where(x == n, all_of_them, inner))


_STIRLING_SMALL: Final = np.array(
    [
        0.0,
        *(
            math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - 0.5 * math.log(2 * math.pi)
            for n in range(1, 16)
        ),
    ]
)


def _stirling_error(n: Floats) -> Floats:
    """log n! minus Stirling's formula."""
    r2 = 1 / np.maximum(n, 1.0) ** 2
    series = (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - r2 / 1188) * r2) * r2) * r2) / np.maximum(n, 1.0)
    return np.where(n < 16, _STIRLING_SMALL[np.clip(n, 0, 15).astype(np.int64)], series)


def _deviance(x: Floats, mean: Floats) -> Floats:
    """x log(x / mean) + mean - x, by a series where the two nearly cancel."""
    with np.errstate(divide="ignore", invalid="ignore"):
        v = (x - mean) / (x + mean)
        plain = x * np.log(x / mean) + mean - x
    v = np.where(np.abs(v) < 0.1, v, 0.0)
    total = (x - mean) * v
    term = 2 * x * v
    for j in range(1, 12):
        term = term * v * v
        total = total + term / (2 * j + 1)
    return np.where(np.abs(x - mean) < 0.1 * (x + mean), total, plain)
