"""Confidence intervals for results that are read while their job runs.

A job's splits are dispatched in a seeded random permutation, so the first n of N are a simple random sample
of *clusters*, drawn without replacement. All that is estimated here comes from per-split totals, never from
rows taken as independent:

* ``leaf`` / ``of_splits`` / ``merge`` -> ``Moments``: the mergeable state (power sums of split totals, per
  group).
* ``intervals``: sum, count, mean, per group, with an interval or with the reason why none is shown.
* ``woodruff`` / ``quantile_intervals``: quantiles.
* ``bound``: min, max and distinct counts, which have no interval but a one-sided bound.

``docs/statistics.md`` says what an interval promises, how it is made, and what was measured.

May import ``frames`` and ``errors`` only.
"""

from onefold.compute.statistics.bounds import bound
from onefold.compute.statistics.moments import Moments, leaf, merge, of_splits
from onefold.compute.statistics.quantiles import (
    GroupQuantile,
    QuantileInterval,
    quantile_intervals,
    quantile_shares,
    woodruff,
)
from onefold.compute.statistics.totals import intervals

__all__ = [
    "GroupQuantile",
    "Moments",
    "QuantileInterval",
    "bound",
    "intervals",
    "leaf",
    "merge",
    "of_splits",
    "quantile_intervals",
    "quantile_shares",
    "woodruff",
]
