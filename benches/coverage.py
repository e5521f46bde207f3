"""Does a 95 % interval hold the truth 95 times in a hundred? Coverage of ``onefold.compute.statistics`` by simulation.

    python benches/coverage.py                 # the table of docs/statistics.md: workload x estimator x share done
    python benches/coverage.py --seeds 5000 --splits 20,64,500
    python benches/coverage.py --method rows   # the interval that takes rows as independent: falls through
    python benches/coverage.py --order file    # the first n splits in file order: falls through

For each seed a population is drawn (the rows of N splits, for two groups), its splits are put into a random order, and the
product's own code makes intervals from the first 5, 10, 25, 50 and 90 % of them. A (seed, group) pair is one group of one
frame, so that thousands of seeds are one call. ``tests/sim/test_coverage.py`` runs the same with fewer seeds.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from onefold.compute import statistics as st
from onefold.compute.statistics.rule import QUANTILE_RARE_SPLITS, RARE_SPLITS

Generator = np.random.Generator
Method = Literal["product", "t", "rows"]
Order = Literal["random", "file"]

LEVEL = 0.95
NOMINAL_MINUS = 0.02
SHOWN_BY_HALF = 0.80
FRACTIONS = (0.05, 0.10, 0.25, 0.50, 0.90)
ESTIMATORS = ("sum", "count", "mean", "median", "p90")
QUANTILES = {"median": 0.5, "p90": 0.9}
GROUPS = 2
VERDICT_MIN = 100
"""A cell with fewer intervals shown gets no verdict: it is unknown, not a pass."""
ALLOWANCE_ERRORS = 2.0
"""A cell fails when its coverage is below 93 % by more than this many standard errors of the simulation."""


@dataclass(frozen=True)
class Population:
    """Rows of many (seed, group) pairs in *file order*: ``rows`` (pairs, N, r), of which the first ``counts`` are real."""

    rows: np.ndarray
    counts: np.ndarray
    reused: np.ndarray | None = None
    """(pairs, 2): total and count of a part that is known whole, from splits reused of an earlier run."""

    @property
    def mask(self) -> np.ndarray:
        return np.arange(self.rows.shape[2]) < self.counts[..., None]


def sized(rng: Generator, pairs: int, n: int, mean: float, most: int) -> np.ndarray:
    return np.minimum(rng.poisson(mean, (pairs, n)), most)


def iid(rng: Generator, pairs: int, n: int) -> Population:
    """Normal rows, splits alike."""
    return Population(rng.normal(10, 3, (pairs, n, 48)), sized(rng, pairs, n, 30, 48))


def fewrows(rng: Generator, pairs: int, n: int) -> Population:
    """Exponential rows, about two in a split: a group that is small but everywhere."""
    return Population(rng.exponential(1, (pairs, n, 8)), sized(rng, pairs, n, 2, 8))


def ordered(rng: Generator, pairs: int, n: int) -> Population:
    """Exponential rows sorted over the whole input: every split another range of values."""
    rows = np.sort(rng.exponential(1, (pairs, n * 8)), axis=1).reshape(pairs, n, 8)
    return Population(rows, np.full((pairs, n), 8))


def lognormal(rng: Generator, pairs: int, n: int) -> Population:
    """Heavy-tailed rows: lognormal, sigma = 2."""
    return Population(rng.lognormal(0, 2, (pairs, n, 20)), sized(rng, pairs, n, 10, 20))


def pareto(rng: Generator, pairs: int, n: int) -> Population:
    """Heavy-tailed rows: Pareto, alpha = 1.5, of infinite variance."""
    return Population(rng.pareto(1.5, (pairs, n, 20)) + 1, sized(rng, pairs, n, 10, 20))


def signed(rng: Generator, pairs: int, n: int) -> Population:
    """Rows on both sides of zero with long tails: Student's t with 3 degrees of freedom."""
    return Population(rng.standard_t(3, (pairs, n, 16)) + 0.2, sized(rng, pairs, n, 8, 16))


def bursty(rng: Generator, pairs: int, n: int) -> Population:
    """A group in one run of 10 to 50 % of the splits; its rows there vary much in number, and in level by split."""
    run = np.maximum(1, (n * rng.uniform(0.1, 0.5, pairs)).astype(int))
    start = (rng.uniform(0, 1, pairs) * (n - run + 1)).astype(int)
    at = np.arange(n)
    inside = (at >= start[:, None]) & (at < (start + run)[:, None])
    counts = np.minimum(1 + rng.poisson(rng.lognormal(1.3, 1, (pairs, n))), 40) * inside
    level = rng.lognormal(0, 0.5, (pairs, n, 1))
    return Population(rng.exponential(1, (pairs, n, 40)) * level, counts)


def runs(rng: Generator, pairs: int, n: int) -> Population:
    """A group that fills 10 to 50 % of the splits, one after another, and is in no other: totals nearly all or nothing."""
    run = np.maximum(1, (n * rng.uniform(0.1, 0.5, pairs)).astype(int))
    counts = np.where(np.arange(n) < run[:, None], 12, 0)
    return Population(rng.exponential(1, (pairs, n, 12)), counts)


def unequal(rng: Generator, pairs: int, n: int) -> Population:
    """Splits of very unequal size (lognormal, sigma = 1) and of different level."""
    counts = np.minimum(1 + rng.poisson(rng.lognormal(1.8, 1, (pairs, n))), 50)
    level = np.abs(1 + 0.3 * rng.normal(size=(pairs, n, 1)))
    return Population(rng.exponential(1, (pairs, n, 50)) * level, counts)


def rare(rng: Generator, pairs: int, n: int) -> Population:
    """A group in 1 split to 12 % of them, with one or two rows in each."""
    present = rng.integers(1, max(3, int(0.12 * n)), pairs)
    inside = np.argsort(rng.random((pairs, n)), axis=1) < present[:, None]
    return Population(
        rng.exponential(1, (pairs, n, 4)), np.minimum(1 + rng.poisson(0.5, (pairs, n)), 4) * inside
    )


def spiked(rng: Generator, pairs: int, n: int) -> Population:
    """Exponential rows of which one in fifty is fifty times as large."""
    rows = rng.exponential(1, (pairs, n, 20)) * np.where(rng.random((pairs, n, 20)) < 0.02, 50, 1)
    return Population(rows, sized(rng, pairs, n, 10, 20))


def negative(rng: Generator, pairs: int, n: int) -> Population:
    """Long tails below zero: minus lognormal, sigma = 1.5, six rows a split."""
    return Population(-rng.lognormal(0, 1.5, (pairs, n, 12)), sized(rng, pairs, n, 6, 12))


def shortlast(rng: Generator, pairs: int, n: int) -> Population:
    """Splits all alike but the last piece of the file, which is a quarter of one."""
    counts = np.full((pairs, n), 20)
    counts[:, -1] = 5
    return Population(rng.normal(5, 1, (pairs, n, 20)), counts)


def rerun(rng: Generator, pairs: int, n: int) -> Population:
    """Uneven new splits next to a larger part that was reused and is known whole."""
    counts = np.minimum(1 + rng.poisson(rng.lognormal(1.8, 0.7, (pairs, n))), 40)
    known_count = rng.integers(1, 20 * n, pairs).astype(float)
    reused = np.stack([known_count * rng.uniform(0.5, 3, pairs), known_count], axis=1)
    return Population(rng.exponential(1, (pairs, n, 40)), counts, reused)


WORKLOADS: dict[str, Callable[[Generator, int, int], Population]] = {
    f.__name__: f
    for f in (
        *(iid, fewrows, ordered, lognormal, pareto, spiked, signed, negative),
        *(bursty, runs, unequal, shortlast, rare, rerun),
    )
}


def one_giant(rng: Generator, pairs: int, n: int) -> Population:
    """Beyond what an interval can promise: one split holds about half of everything."""
    rows = rng.normal(10, 3, (pairs, n, 8))
    rows[np.arange(pairs), rng.integers(0, n, pairs)] *= n
    return Population(rows, np.full((pairs, n), 8))


def heavy_bursts(rng: Generator, pairs: int, n: int) -> Population:
    """At the edge of what an interval can promise: bursts whose sizes are themselves Pareto, alpha = 1.5."""
    inside = rng.random((pairs, n)) < rng.uniform(0.2, 0.6, (pairs, 1))
    counts = np.minimum(1 + rng.poisson(3 * rng.pareto(1.5, (pairs, n))), 120) * inside
    return Population(rng.exponential(1, (pairs, n, 120)), counts)


LIMITS: dict[str, Callable[[Generator, int, int], Population]] = {
    f.__name__: f for f in (one_giant, heavy_bursts)
}


@dataclass(frozen=True)
class Cell:
    """One workload, estimator, number of splits and share done, over all seeds."""

    workload: str
    estimator: str
    splits: int
    fraction: float
    shown: int
    coverage: float
    """Share of the intervals shown that hold the truth."""
    error: float
    """Standard error of ``coverage`` by the simulation; groups of a seed are not taken as independent."""
    shown_share: float
    """Share of the groups that are not rare for which an interval is shown; NaN when there are none."""
    width: float
    """Median width relative to Student's plain t interval."""

    @property
    def verdict(self) -> Literal["pass", "fail", "unknown"]:
        """Coverage only."""
        if self.shown < VERDICT_MIN:
            return "unknown"
        return "fail" if self.coverage + ALLOWANCE_ERRORS * self.error < LEVEL - NOMINAL_MINUS else "pass"

    @property
    def shown_enough(self) -> bool:
        """By half-way, groups that are not rare must have an interval."""
        return self.fraction < 0.5 or not self.shown_share < SHOWN_BY_HALF


def simulate(
    workload: str,
    splits: int,
    seeds: int,
    *,
    method: Method = "product",
    order: Order = "random",
    estimators: Sequence[str] = ESTIMATORS,
    fractions: Sequence[float] = FRACTIONS,
) -> list[Cell]:
    """Coverage of one workload at one number of splits, over ``seeds`` populations and permutations."""
    make = (WORKLOADS | LIMITS)[workload]
    cells: list[dict[tuple[str, float], list[np.ndarray]]] = []
    batch = max(1, min(seeds, int(1.2e7 / (splits * 30 * GROUPS))))
    for first in range(0, seeds, batch):
        rng = np.random.default_rng([zlib.crc32(workload.encode()), splits, first])
        population = make(rng, min(batch, seeds - first) * GROUPS, splits)
        if order == "random":
            population = permuted(rng, population)
        cells.append(dict(_judged(population, method, estimators, fractions)))
    return [
        _cell(workload, estimator, splits, fraction, [part[estimator, fraction] for part in cells])
        for estimator in estimators
        for fraction in fractions
        if (estimator, fraction) in cells[0]
    ]


def permuted(rng: Generator, population: Population) -> Population:
    """Dispatch in a random permutation, the same for the groups of a seed."""
    pairs, n = population.counts.shape
    order = np.repeat(np.argsort(rng.random((pairs // GROUPS, n)), axis=1), GROUPS, axis=0)
    return Population(
        np.take_along_axis(population.rows, order[..., None], axis=1),
        np.take_along_axis(population.counts, order, axis=1),
        population.reused,
    )


def _judged(
    population: Population, method: Method, estimators: Sequence[str], fractions: Sequence[float]
) -> Iterator[tuple[tuple[str, float], list[np.ndarray]]]:
    """Per estimator and fraction: (shown, covered, not rare, relative width) for every pair."""
    counts = population.counts.astype(np.float64)
    totals = np.where(population.mask, population.rows, 0.0).sum(2)
    total = counts.shape[1]
    present = (counts > 0).sum(1)
    known = population.reused if population.reused is not None else np.zeros((len(counts), 2))
    s, c = totals.sum(1) + known[:, 0], counts.sum(1) + known[:, 1]
    truths = {"sum": s, "count": c, "mean": s / np.maximum(c, 1)}
    exact = st.leaf(frame(known[:, 0], known[:, 1]), ["id"]) if population.reused is not None else None
    sample: st.Moments | None = None
    before = 0
    for fraction in sorted(fractions):
        n = int(fraction * total)
        if n < 1:
            continue
        if n > before:
            new = st.of_splits([frame(totals[:, i], counts[:, i]) for i in range(before, n)], ["id"])
            sample, before = (st.merge(sample, new, ["id"]) if sample is not None else new), n
        for estimator in estimators:
            common = present >= RARE_SPLITS
            if estimator in QUANTILES:
                if population.reused is not None:
                    continue
                q = QUANTILES[estimator]
                common = present * min(q, 1 - q) >= QUANTILE_RARE_SPLITS
                truth = pooled_quantile(*pooled(population, total), q)
                lo, hi = quantile_limits(population, n, q, method)
                plain = np.full(len(lo), np.nan)
            else:
                truth = truths[estimator]
                plain_lo, plain_hi = plain_limits(estimator, totals[:, :n], counts[:, :n], known, total)
                plain = plain_hi - plain_lo
                if method == "product":
                    assert sample is not None
                    lo, hi = product_limits(estimator, sample, exact, total, len(counts))
                elif method == "t":
                    lo, hi = plain_lo, plain_hi
                else:
                    lo, hi = row_limits(estimator, population, known, n)
            shown = ~np.isnan(lo)
            slack = 1e-9 * np.abs(truth)
            covered = shown & (lo <= truth + slack) & (truth <= hi + slack)
            with np.errstate(divide="ignore", invalid="ignore"):
                width = (hi - lo) / plain
            yield (estimator, fraction), [shown, covered, common, width]


def frame(s: np.ndarray, c: np.ndarray) -> pl.DataFrame:
    """Totals of one split; a pair that is not in it has no row."""
    present = np.flatnonzero(c > 0)
    return pl.DataFrame({"id": present, "s": s[present], "c": c[present]})


def product_limits(
    kind: str, sample: st.Moments, exact: st.Moments | None, total: int, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """What Onefold shows."""
    found = st.intervals(kind, sample, exact, total_splits=total, keys=["id"], level=LEVEL)  # type: ignore[arg-type]
    lo, hi = np.full(pairs, np.nan), np.full(pairs, np.nan)
    at = found["id"].to_numpy()
    lo[at] = found["lo"].fill_null(np.nan).to_numpy()
    hi[at] = found["hi"].fill_null(np.nan).to_numpy()
    return lo, hi


def plain_limits(
    kind: str, s: np.ndarray, c: np.ndarray, known: np.ndarray, total: int
) -> tuple[np.ndarray, np.ndarray]:
    """Student's t on split totals, for any group seen at all: what the widths are compared with."""
    from scipy.stats import t

    n = s.shape[1]
    if n < 2:
        return np.full(len(s), np.nan), np.full(len(s), np.nan)
    reach = t.ppf(0.5 + LEVEL / 2, n - 1) * total * np.sqrt((1 - n / total) / n)
    seen = c.sum(1) > 0
    if kind == "mean":
        bottom = np.maximum(known[:, 1] + total * c.mean(1), 1e-9)
        value = (known[:, 0] + total * s.mean(1)) / bottom
        half = reach * (s - value[:, None] * c).std(1, ddof=1) / bottom
    else:
        y, extra = (s, known[:, 0]) if kind == "sum" else (c, known[:, 1])
        value, half = extra + total * y.mean(1), reach * y.std(1, ddof=1)
    return np.where(seen, value - half, np.nan), np.where(seen, value + half, np.nan)


def row_limits(kind: str, population: Population, known: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The planted bug: rows taken as an independent sample."""
    total = population.counts.shape[1]
    mask = population.mask[:, :n]
    rows = np.where(mask, population.rows[:, :n], 0.0)
    count, s, squares = mask.sum((1, 2)), rows.sum((1, 2)), (rows**2).sum((1, 2))
    scale, left = total / n, 1 - n / total
    with np.errstate(divide="ignore", invalid="ignore"):
        if kind == "mean":
            bottom = known[:, 1] + scale * count
            value = (known[:, 0] + scale * s) / bottom
            spread = np.sqrt(np.maximum(squares - s * s / count, 0) / np.maximum(count - 1, 1) / count)
            half = 1.96 * np.sqrt(left) * spread * scale * count / bottom
        elif kind == "sum":
            value, half = known[:, 0] + scale * s, 1.96 * scale * np.sqrt(left * squares)
        else:
            value, half = known[:, 1] + scale * count, 1.96 * scale * np.sqrt(left * count)
    seen = count > 1
    return np.where(seen, value - half, np.nan), np.where(seen, value + half, np.nan)


def pooled(population: Population, n: int) -> tuple[np.ndarray, np.ndarray]:
    """All rows of the first n splits, sorted, and how many they are."""
    mask = population.mask[:, :n]
    rows = np.where(mask, population.rows[:, :n], np.inf).reshape(len(mask), -1)
    return np.sort(rows, axis=1), mask.sum((1, 2))


def pooled_quantile(ranked: np.ndarray, size: np.ndarray, q: np.ndarray | float) -> np.ndarray:
    """The smallest row with at least a share q of all rows up to it."""
    at = np.clip(np.ceil(np.nan_to_num(q * size) - 1e-9).astype(int) - 1, 0, np.maximum(size - 1, 0))
    return np.take_along_axis(ranked, at[:, None], axis=1)[:, 0]


def quantile_limits(
    population: Population, n: int, q: float, method: Method
) -> tuple[np.ndarray, np.ndarray]:
    """Woodruff's limits, with exact ranks in place of sketches."""
    total = population.counts.shape[1]
    ranked, size = pooled(population, n)
    if method == "rows":
        half = 1.96 * np.sqrt(q * (1 - q) * (1 - n / total) / np.maximum(size, 1))
        down, up = np.where(size > 1, q - half, np.nan), np.where(size > 1, q + half, np.nan)
    else:
        value = pooled_quantile(ranked, size, q)
        below = ((population.rows[:, :n] <= value[:, None, None]) & population.mask[:, :n]).sum(2)
        down, up, _ = st.quantile_shares(
            below, population.counts[:, :n], q, splits=n, total_splits=total, level=LEVEL
        )
    hidden = np.isnan(down)
    lo, hi = pooled_quantile(ranked, size, down), pooled_quantile(ranked, size, np.minimum(up, 1))
    return np.where(hidden, np.nan, lo), np.where(hidden, np.nan, hi)


def _cell(workload: str, estimator: str, splits: int, fraction: float, parts: list[list[np.ndarray]]) -> Cell:
    shown, covered, common, width = (np.concatenate(column) for column in zip(*parts, strict=True))
    k = int(shown.sum())
    coverage = covered.sum() / k if k else float("nan")
    # Groups of a seed share its permutation: the seed is the unit of the simulation's own error.
    target = LEVEL - NOMINAL_MINUS
    by_seed = (covered - target * shown).reshape(-1, GROUPS).sum(1)
    spread = target * (1 - target) * k if k else 0.0
    error = (
        float(np.sqrt(max(float(np.sum((by_seed - by_seed.mean()) ** 2)), spread)) / k) if k else float("nan")
    )
    return Cell(
        workload,
        estimator,
        splits,
        fraction,
        k,
        float(coverage),
        error,
        float(shown[common].mean()) if common.any() else float("nan"),
        float(np.nanmedian(width[shown])) if k and np.isfinite(width[shown]).any() else float("nan"),
    )


def table(cells: Sequence[Cell], *, markdown: bool = False) -> str:
    """Rows of workload, N, estimator; per fraction ``coverage (shown) xwidth``, with ! where a cell fails."""
    head = ["workload", "N", "estimator", *(f"{f:.0%}" for f in FRACTIONS)]
    lines = [head]
    keys = list(dict.fromkeys((c.workload, c.splits, c.estimator) for c in cells))
    by = {(c.workload, c.splits, c.estimator, c.fraction): c for c in cells}
    for workload, splits, estimator in keys:
        line = [workload, str(splits), estimator]
        for fraction in FRACTIONS:
            cell = by.get((workload, splits, estimator, fraction))
            line.append(_text(cell))
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    bar = " | " if markdown else "  "
    out = [bar.join(text.ljust(w) for text, w in zip(line, widths, strict=True)) for line in lines]
    if markdown:
        out = [f"| {line} |" for line in out]
        out.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(out)


def _text(cell: Cell | None) -> str:
    if cell is None or not cell.shown:
        return "-" if cell is None or cell.shown_enough else "-<"
    mark = {"pass": "", "fail": "!", "unknown": "?"}[cell.verdict] + ("" if cell.shown_enough else "<")
    share = "" if np.isnan(cell.shown_share) else f" ({100 * cell.shown_share:.0f})"
    width = "" if np.isnan(cell.width) else f" x{cell.width:.1f}"
    return f"{100 * cell.coverage:.1f}{mark}{share}{width}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--splits", default="20,64,200,500", help="numbers of splits N, comma-separated")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="also: " + ", ".join(LIMITS))
    parser.add_argument("--method", default="product", choices=["product", "t", "rows"])
    parser.add_argument("--order", default="random", choices=["random", "file"])
    parser.add_argument("--markdown", action="store_true")
    asked = parser.parse_args()
    print(
        "coverage in % of the intervals shown (share of groups that are not rare with one) xwidth over plain t;"
    )
    print("! fails, < too few shown by half-way, ? under 100 intervals, - none\n")
    cells = [
        cell
        for name in asked.workloads.split(",")
        for splits in asked.splits.split(",")
        for cell in simulate(name, int(splits), asked.seeds, method=asked.method, order=asked.order)
    ]
    print(table(cells, markdown=asked.markdown))
    bad = [c for c in cells if c.verdict == "fail" or not c.shown_enough]
    print(f"\n{len(bad)} of {len(cells)} cells fail; {sum(c.verdict == 'unknown' for c in cells)} unknown")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
