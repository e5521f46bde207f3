"""Intervals hold the truth as often as they say: at least nominal - 2 points, over those that are shown.

``benches/coverage.py`` is the simulator. Every cell is one workload, one number of splits, one estimator and one share
done, over ONEFOLD_COVERAGE_SEEDS seeds (1000 unless set) of two groups each. A cell fails when its coverage is below 93 %
by more than two standard errors of the simulation itself (at 1000 seeds: about 1 point), and when by half-way fewer than
80 % of the groups that are not rare show an interval. Cells with under 100 intervals have no verdict. A sixth of the
workloads is simulated by default, another one each day; planted errors are so coarse that 300 seeds show them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

SEEDS = int(os.environ.get("ONEFOLD_COVERAGE_SEEDS", "1000"))
PLANTED_SEEDS = 300
PARTS = 6


def _simulator() -> ModuleType:
    path = Path(__file__).parents[2] / "benches" / "coverage.py"
    spec = importlib.util.spec_from_file_location("onefold_bench_coverage", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


coverage = _simulator()
TOTALS = ("sum", "count", "mean")
LARGE = ("lognormal", "fewrows", "runs", "rare")


def _report(cells: list) -> str:
    return coverage.table(cells)


def _check(cells: list) -> None:
    print(_report(cells))
    failed = [cell for cell in cells if cell.verdict == "fail"]
    assert not failed, f"coverage below nominal - 2 points:\n{_report(failed)}"
    hidden = [cell for cell in cells if not cell.shown_enough]
    assert not hidden, f"too few intervals shown by half-way:\n{_report(hidden)}"


@pytest.mark.moving(PARTS)
@pytest.mark.parametrize(("workload", "splits"), [*product(coverage.WORKLOADS, [20, 60])])
def test_intervals_cover_the_truth(workload: str, splits: int) -> None:
    cells = coverage.simulate(workload, splits, SEEDS)
    _check(cells)
    if (workload, splits) != ("rare", 20):  # in under 3 of 20 splits: nothing is ever shown, as it should be
        judged = {cell.estimator for cell in cells if cell.fraction >= 0.5 and cell.verdict == "pass"}
        assert judged >= set(TOTALS), f"no verdict by half-way, only for {judged}:\n{_report(cells)}"


@pytest.mark.moving(PARTS)
@pytest.mark.parametrize("workload", LARGE)
def test_intervals_cover_the_truth_with_many_splits(workload: str) -> None:
    cells = coverage.simulate(workload, 500, SEEDS, estimators=TOTALS)
    _check(cells)
    assert sum(cell.verdict == "pass" for cell in cells) >= 9


@pytest.mark.parametrize(
    ("workload", "wrong"),
    [
        ("ordered", {"sum", "mean", "median", "p90"}),
        ("bursty", {"sum", "count", "mean", "median"}),
        ("unequal", {"sum", "count", "mean", "median"}),
        ("runs", {"sum", "count"}),  # rows *are* independent within its runs, so its mean holds
    ],
)
def test_planted_rows_taken_as_independent_are_caught(workload: str, wrong: set[str]) -> None:
    """Splits are clusters: an interval made from rows alone is far too narrow, and the check must say so."""
    cells = coverage.simulate(workload, 60, PLANTED_SEEDS, method="rows", fractions=(0.25, 0.5))
    failed = {cell.estimator for cell in cells if cell.verdict == "fail"}
    assert failed >= wrong, _report(cells)


@pytest.mark.parametrize("workload", ["ordered", "bursty", "runs"])
def test_planted_file_order_is_caught(workload: str) -> None:
    """The first n splits of a file in its own order are no random sample of it."""
    cells = coverage.simulate(
        workload, 60, PLANTED_SEEDS, order="file", fractions=(0.25, 0.5), estimators=TOTALS
    )
    assert any(cell.verdict == "fail" and cell.estimator == "sum" for cell in cells), _report(cells)


@pytest.mark.parametrize("workload", ["lognormal", "pareto", "bursty", "unequal"])
def test_plain_student_intervals_are_caught(workload: str) -> None:
    """What is widened here is widened for a reason: without it the same check fails."""
    cells = coverage.simulate(
        workload, 60, PLANTED_SEEDS, method="t", fractions=(0.1, 0.25, 0.5), estimators=("sum", "mean")
    )
    assert {cell.estimator for cell in cells if cell.verdict == "fail"} == {"sum", "mean"}, _report(cells)
