"""Shared state under everything that can go wrong, from seeds: every level keeps what it promises, and all replicas agree.

Each seed is a run of one workload: about 300 operations of several clients on replicas of their own, while messages are lost
and late, machines are cut off, held back, suspended and crashed, logs go down and clocks jump. By default a fortieth of the
first thousand seeds is run, another one each day (``support.parts``), spread over the workloads. The nightly run::

    ONEFOLD_SIM_SEEDS=10000 pytest tests/sim/test_state_sim.py -n auto

``ONEFOLD_SIM_FIRST`` moves the seeds, so that another night sees other runs. A failure names the workload and the
seed; ``run_workload(name, seed)`` of ``kit.workloads`` is that run again.
"""

import os

import pytest

from kit.workloads import WORKLOADS, run_workload
from onefold.testing.sim import Simulation
from support import parts

PARTS = 40
TOTAL = int(os.environ.get("ONEFOLD_SIM_SEEDS", "1000" if parts.takes_all() else "25"))
FIRST = os.environ.get("ONEFOLD_SIM_FIRST")
SHARES = {
    # Of 1000 seeds; those that take longer to run have fewer.
    "register": 110,
    "bank": 50,
    "list-append": 50,
    "set": 60,
    "long-fork": 70,
    "counter": 70,
    "queue": 40,
    "lock": 25,
    "session": 120,
    "prefix": 105,
    "bounded": 100,
    "watch": 40,
    "stream": 30,
    "register-sharded": 30,
    "set-sharded": 20,
    "bank-sharded": 15,
    "list-append-sharded": 15,
    "stream-sharded": 10,
    "session-sharded": 25,
    "session-transactions": 15,
}
CHUNK = 5
FAILED_ONCE = [
    ("session", 700296),  # a late append surfaced while replicas were compared
    ("stream-sharded", 8),  # a commit of the partition's earlier owner was taken for the member's own
    ("stream-sharded", 700020),  # a consumer that had not heard of a failed transaction went on
]


def chunks():
    for name, share in SHARES.items():
        count = max(1, share * TOTAL // 1000)
        first = parts.part_of_day(PARTS) * count if FIRST is None else int(FIRST)
        for start in range(first, first + count, CHUNK):
            yield pytest.param(name, range(start, min(start + CHUNK, first + count)), id=f"{name}-{start}")


@pytest.mark.parametrize(("name", "seeds"), list(chunks()))
def test_what_is_promised_is_kept(name, seeds):
    for seed in seeds:
        verdict = run_workload(name, seed)
        assert verdict, (
            f"{name}, seed {seed}: {verdict.validity.value} {verdict.anomalies}\n{verdict.explanation}"
        )


@pytest.mark.parametrize(("name", "seed"), FAILED_ONCE)
def test_seeds_that_failed_once(name, seed):
    verdict = run_workload(name, seed)
    assert verdict, verdict.explanation


def test_every_workload_is_run_and_the_seeds_are_a_thousand():
    assert SHARES.keys() == WORKLOADS.keys()
    assert sum(SHARES.values()) == 1000


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize(("faults", "least"), [("none", 0.8), ("all", 0.7)])
@pytest.mark.moving(4)
def test_most_operations_succeed_so_the_checkers_have_something_to_look_at(name, faults, least):
    kind, shards = WORKLOADS[name]
    with Simulation(1, shards=shards) as simulation:
        workload = kind(simulation, 150)
        simulation.setup(workload.setup)
        workload.start()
        simulation.run(faults)
        done = workload.operations()
    if name == "session-transactions":  # its transactions are recorded apart
        done = [op for op in done if op.kind == "read"]
    assert sum(op.status == "ok" for op in done) >= least * len(done)
    assert len(done) >= 75
    if faults == "none":
        assert all(op.status != "info" for op in done)
