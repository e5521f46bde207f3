"""Programs without a replica under everything that can go wrong, from seeds: nodes answer, and every level keeps its promise.

As ``test_state_sim.py``, with three simulated nodes: questions and answers are lost, late and come twice, nodes are cut off, held
back, suspended and crash. By default a sixteenth of a hundred seeds, another one each day; ``ONEFOLD_SIM_SEEDS`` (a tenth of
them) and ``ONEFOLD_SIM_FIRST`` as there. Bugs are planted with the seed that is known to show them, as in
``test_planted_bugs.py``.
"""

import os

import pytest

from kit.remote_bugs import REMOTE_BUGS
from kit.workloads import WORKLOADS, run_workload
from onefold.testing.sim import Simulation
from onefold.testing.sim.faults import Faults

SEEDS = os.environ.get("ONEFOLD_SIM_SEEDS")
PARTS = 16 if SEEDS is None else 1
FIRST = int(os.environ.get("ONEFOLD_SIM_FIRST", "0"))
SEARCH = "ONEFOLD_PLANTED_SEEDS" in os.environ
SEARCHED = int(os.environ.get("ONEFOLD_PLANTED_SEEDS", "200"))
NODES = 3
SHARES = {
    # Of 100 seeds; those that take longer to run have fewer.
    "register": 13,
    "bank": 6,
    "list-append": 6,
    "set": 7,
    "long-fork": 6,
    "counter": 7,
    "queue": 4,
    "lock": 1,
    "session": 11,
    "prefix": 11,
    "bounded": 10,
    "watch": 4,
    "stream": 3,
    "register-sharded": 3,
    "set-sharded": 2,
    "bank-sharded": 1,
    "list-append-sharded": 1,
    "stream-sharded": 1,
    "session-sharded": 2,
    "session-transactions": 1,
}
STALE = Faults(lost_answer=0.15, hold_back=10.0, lasts_s=2.0, partition=0.0, crash=0.0)
CAUGHT_BY = [
    ("ignored_after", "session", "all", 0),
    ("ignored_barrier", "register", "all", 0),
    ("shared_stale_barrier", "register", "all", 0),
    ("outcome_of_another_number", "register", "all", 0),
    ("outcome_of_another_number", "set", "all", 0),
    ("unpinned_view", "bank", "all", 0),
    ("no_floor", "prefix", "all", 0),
    ("no_floor", "watch", "all", 0),
    ("fresh_when_answered", "bounded", STALE, 19),
    ("no_dedupe", "counter", "all", 2),
]
"""The bug, the workload that notices it, under which faults, and the first seed with which it does."""


def runs():
    total = 100 if SEEDS is None else int(SEEDS) // 10
    return [
        (name, FIRST + number)
        for name, share in SHARES.items()
        for number in range(max(1, share * total // 100))
    ]


@pytest.mark.moving(PARTS)
@pytest.mark.parametrize(("name", "seed"), runs())
def test_what_is_promised_is_kept(name, seed):
    verdict = run_workload(name, seed, nodes=NODES)
    assert verdict, f"{verdict.validity.value} {verdict.anomalies}\n{verdict.explanation}"


def test_every_workload_is_run_and_the_seeds_are_a_hundred():
    assert SHARES.keys() == WORKLOADS.keys()
    assert sum(SHARES.values()) == 100


@pytest.mark.moving(1 if SEARCH else 3)
@pytest.mark.parametrize(("bug", "workload", "faults", "known"), CAUGHT_BY)
def test_planted_bugs_are_caught(bug, workload, faults, known):
    for seed in range(SEARCHED) if SEARCH else (known, *range(SEARCHED)):
        if not run_workload(workload, seed, nodes=NODES, bug=bug, faults=faults):
            print(f"{bug} is noticed by {workload} with seed {seed}")
            return
    pytest.fail(f"{bug} was not noticed by {workload} in {SEARCHED} seeds")


def test_every_planted_bug_is_tried():
    assert REMOTE_BUGS.keys() <= {bug for bug, *_ in CAUGHT_BY}


def test_the_faults_of_these_tests_are_no_bugs():
    for seed in range(3):
        verdict = run_workload("bounded", seed, nodes=NODES, faults=STALE)
        assert verdict, verdict.explanation


@pytest.mark.parametrize("name", ["register", "queue", "watch", "bank-sharded"])
@pytest.mark.parametrize(("faults", "least"), [("none", 0.8), ("all", 0.6)])
@pytest.mark.moving(4)
def test_most_operations_succeed_so_the_checkers_have_something_to_look_at(name, faults, least):
    kind, shards = WORKLOADS[name]
    with Simulation(1, shards=shards, nodes=NODES) as simulation:
        workload = kind(simulation, 150)
        simulation.setup(workload.setup)
        workload.start()
        simulation.run(faults)
        done = workload.operations()
    assert sum(op.status == "ok" for op in done) >= least * len(done)
    assert len(done) >= 75
