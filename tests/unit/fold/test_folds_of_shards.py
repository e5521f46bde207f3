"""Folds that are imported when they are first used say of themselves what the folds behind them do."""

from __future__ import annotations

import pytest

from onefold.available.fold import AvailableFold
from onefold.compute.jobs.fold import JobsFold
from onefold.fold.api import Fold, TimedFold
from onefold.fold.nodes.fold import NodesFold
from onefold.folds import folds, region_folds
from onefold.state.fold.machine import StateFold

REAL: dict[str, Fold] = {fold.name: fold for fold in (AvailableFold(), JobsFold(), NodesFold(), StateFold(1))}


@pytest.mark.parametrize("fold", [*folds(0, 1), *region_folds(0, 1)], ids=lambda fold: fold.name)
def test_a_fold_says_what_the_one_behind_it_says(fold: Fold) -> None:
    """A table whose history one of the two does not name has none, and cannot be read at an earlier offset."""
    real = REAL[fold.name]
    assert (fold.history, fold.version) == (real.history, real.version)
    assert isinstance(fold, TimedFold) == isinstance(real, TimedFold)
