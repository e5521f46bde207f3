"""Student's t and the hypergeometric tails, held against SciPy's and against exact numbers."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from onefold.compute.statistics.distributions import (
    hypergeometric_at_most,
    hypergeometric_more_than,
    student_t,
)

CLOSE = 1e-9
LEVELS = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999]
DEGREES = np.unique(np.concatenate([np.arange(1, 200), np.geomspace(200, 1e6, 200).round(), [1.5, 2.5, 7.3]]))


@pytest.mark.moving(3)
@pytest.mark.parametrize("level", LEVELS)
def test_student_t_is_that_of_scipy(level: float) -> None:
    from scipy.special import stdtrit

    assert np.max(np.abs(student_t(level, DEGREES) / stdtrit(DEGREES, 0.5 + level / 2) - 1)) < CLOSE


@pytest.mark.parametrize("level", [1e-6, 0.01, 0.3, 0.5, 0.9, 0.9999, 0.9999999])
def test_student_t_of_one_and_two_degrees_is_their_formula(level: float) -> None:
    rest = (1 - level) / 2
    one = math.tan(math.pi * level / 2) if level < 0.5 else 1 / math.tan(math.pi * rest)
    assert student_t(level, 1) == pytest.approx(one, rel=CLOSE)
    two = level * math.sqrt(2 / ((1 - level) * (1 + level)))
    assert student_t(level, 2) == pytest.approx(two, rel=CLOSE)


def test_student_t_has_the_shape_of_its_degrees() -> None:
    assert np.ndim(student_t(0.95, 7.0)) == 0
    assert student_t(0.95, np.ones((2, 3))).shape == (2, 3)
    assert np.isnan(student_t(0.95, np.array([0.0, -1.0]))).all()
    assert len(student_t(0.95, np.array([]))) == 0


def test_student_t_has_no_step_where_the_expansion_takes_over() -> None:
    degrees = np.array([1999.0, 1999.999, 2000.0, 2000.001, 2001.0])
    for level in (0.5, 0.95, 0.9999):
        values = student_t(level, degrees)
        assert np.all(np.diff(values) < 0)
        assert values[2] == pytest.approx(values[1], rel=1e-8)


@pytest.mark.moving(2)
@pytest.mark.parametrize("seed", range(4))
def test_hypergeometric_tails_are_those_of_scipy(seed: int) -> None:
    from scipy.stats import hypergeom

    rng = np.random.default_rng(seed)
    total = np.floor(10 ** rng.uniform(0.3, 6, 150))
    marked = np.floor(rng.uniform(0, 1, 150) ** 2 * (total + 1))
    drawn = np.floor(rng.uniform(0, 1, 150) * (total + 1))
    mean = drawn * marked / total
    m = np.floor(np.clip(mean + 3 * rng.normal(size=150) * (np.sqrt(mean) + 1), -1, total))
    for mine, scipys in (
        (hypergeometric_at_most, hypergeom.cdf),
        (hypergeometric_more_than, hypergeom.sf),
    ):
        expected = scipys(m, total, marked, drawn)
        seen = expected > 1e-250
        assert np.max(np.abs(mine(m, total, marked, drawn)[seen] / expected[seen] - 1)) < CLOSE


def test_hypergeometric_tails_are_exact_in_every_small_case() -> None:
    cases, lower, upper = [], [], []
    for total, marked, drawn in itertools.product(range(1, 12), range(12), range(12)):
        if max(marked, drawn) > total:
            continue
        chances = [math.comb(marked, x) * math.comb(total - marked, drawn - x) for x in range(drawn + 1)]
        for m in range(-1, total + 1):
            cases.append((m, total, marked, drawn))
            lower.append(sum(chances[: m + 1]) / sum(chances))
            upper.append(sum(chances[m + 1 :]) / sum(chances))
    arguments = np.array(cases).T
    np.testing.assert_allclose(hypergeometric_at_most(*arguments), lower, rtol=1e-12, atol=0)
    np.testing.assert_allclose(hypergeometric_more_than(*arguments), upper, rtol=1e-12, atol=0)


def test_intervals_need_no_library_of_statistics() -> None:
    code = (
        "import sys\n"
        "sys.modules['scipy'] = None  # importing it raises\n"
        "from onefold.compute.statistics import rule\n"
        "import numpy as np\n"
        "assert rule.student_t(0.95, 10.0) > 2.2\n"
        "assert rule.presence_limits(np.array([6]), 20, 80, 0.95)[0] > 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
