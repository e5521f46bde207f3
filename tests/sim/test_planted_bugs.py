"""The simulator finds what it is there to find: each planted bug is noticed by a workload within 200 seeds.

That a client's records are deduplicated by more than the highest number matters only with several appends in flight, which
no client of this version has; ``test_fold_sim.py`` plants that bug beneath one that does.
"""

import pytest

from onefold.testing.sim.bugs import BUGS
from onefold.testing.sim.faults import Faults
from onefold.testing.sim.workloads import run_workload

SEEDS = 200
STALE = Faults(lost_answer=0.15, hold_back=10.0, lasts_s=2.0, partition=0.0, crash=0.0)
CAUGHT_BY = [
    ("shared_stale_barrier", "register", "all"),
    ("no_barrier", "register", "all"),
    ("no_dedupe", "counter", "all"),
    ("ignored_token", "session", "all"),
    ("ignored_token", "session-transactions", "all"),
    ("write_only_validation", "list-append", "all"),
    ("ranges_not_validated", "list-append", "all"),
    ("prepare_without_locks", "bank-sharded", "all"),
    ("unresolved_reads", "session-transactions", STALE),
    ("moment_without_locks", "bank-sharded", "all"),
    ("lease_by_log_time", "queue", "all"),
    ("old_epochs_expire", "queue", "all"),
    ("fresh_by_the_answer", "bounded", STALE),
    ("impatient_observer", "queue", "all"),
    ("impatient_observer", "lock", "all"),
    ("reads_in_parts", "prefix", "all"),
    ("reads_in_parts", "long-fork", "all"),
    ("watch_token_without_place", "watch", "all"),
    ("offsets_prove_commits", "stream", "all"),
    ("lost_batch", "set", "all"),
    ("acknowledged_before_sync", "set", "all"),
]


@pytest.mark.parametrize(("bug", "workload", "faults"), CAUGHT_BY)
def test_planted_bugs_are_caught(bug, workload, faults):
    for seed in range(SEEDS):
        if not run_workload(workload, seed, bug=bug, faults=faults):
            return
    pytest.fail(f"{bug} was not noticed by {workload} in {SEEDS} seeds")


def test_every_planted_bug_is_tried():
    elsewhere = {"moment_after_release"}  # in unit/test_moments.py, where steps come in between more often
    assert {bug for bug, _, _ in CAUGHT_BY} | elsewhere == {*BUGS, "acknowledged_before_sync"}


@pytest.mark.parametrize("workload", ["bounded", "session-transactions"])
def test_the_faults_of_these_tests_are_no_bugs(workload):
    for seed in range(6):
        verdict = run_workload(workload, seed, faults=STALE)
        assert verdict, verdict.explanation
