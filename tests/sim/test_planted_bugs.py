"""The simulator finds what it is there to find: each planted bug is noticed by a workload with the seed that is known to.

A change of the product may move the seed; then the first ones are searched, up to ``ONEFOLD_PLANTED_SEEDS``. The nightly search
begins with the first seed, and prints the one that noticed it::

    ONEFOLD_PLANTED_SEEDS=200 pytest tests/sim/test_planted_bugs.py -s -n auto

That a client's records are deduplicated by more than the highest number matters only with several appends in flight, which
no client of this version has; ``test_fold_sim.py`` plants that bug beneath one that does.
"""

import os

import pytest

from kit.bugs import BUGS
from kit.workloads import run_workload
from onefold.testing.sim.faults import Faults

SEEDS = int(os.environ.get("ONEFOLD_PLANTED_SEEDS", "100"))
SEARCH = "ONEFOLD_PLANTED_SEEDS" in os.environ
STALE = Faults(lost_answer=0.15, hold_back=10.0, lasts_s=2.0, partition=0.0, crash=0.0)
CAUGHT_BY = [
    ("shared_stale_barrier", "register", "all", 50),
    ("no_barrier", "register", "all", 2),
    ("no_dedupe", "counter", "all", 5),
    ("ignored_token", "session", "all", 4),
    ("ignored_token", "session-transactions", "all", 0),
    ("write_only_validation", "list-append", "all", 0),
    ("ranges_not_validated", "list-append", "all", 0),
    ("prepare_without_locks", "bank-sharded", "all", 0),
    ("unresolved_reads", "session-transactions", STALE, 5),
    ("moment_without_locks", "bank-sharded", "all", 1),
    ("lease_by_log_time", "queue", "all", 0),
    ("old_epochs_expire", "queue", "all", 8),
    ("fresh_by_the_answer", "bounded", STALE, 13),
    ("impatient_observer", "queue", "all", 0),
    ("impatient_observer", "lock", "all", 0),
    ("reads_in_parts", "prefix", "all", 0),
    ("reads_in_parts", "long-fork", "all", 33),
    ("watch_token_without_place", "watch", "all", 0),
    ("offsets_prove_commits", "stream", "all", 25),
    ("lost_batch", "set", "all", 0),
    ("acknowledged_before_sync", "set", "all", 0),
]
"""The bug, the workload that notices it, under which faults, and the first seed with which it does."""


@pytest.mark.moving(1 if SEARCH else 3)
@pytest.mark.parametrize(("bug", "workload", "faults", "known"), CAUGHT_BY)
def test_planted_bugs_are_caught(bug, workload, faults, known):
    for seed in range(SEEDS) if SEARCH else (known, *range(SEEDS)):
        if not run_workload(workload, seed, bug=bug, faults=faults):
            print(f"{bug} is noticed by {workload} with seed {seed}")
            return
    pytest.fail(f"{bug} was not noticed by {workload} in {SEEDS} seeds")


def test_every_planted_bug_is_tried():
    elsewhere = {"moment_after_release"}  # in unit/test_moments.py, where steps come in between more often
    assert {bug for bug, *_ in CAUGHT_BY} | elsewhere == {*BUGS, "acknowledged_before_sync"}


@pytest.mark.parametrize("workload", ["bounded", "session-transactions"])
def test_the_faults_of_these_tests_are_no_bugs(workload):
    for seed in range(6):
        verdict = run_workload(workload, seed, faults=STALE)
        assert verdict, verdict.explanation
