"""Workloads: what the simulator proves Onefold with. ``run_workload`` runs one of them from a seed."""

from __future__ import annotations

import traceback

from kit.workloads.bank import Bank
from kit.workloads.base import Workload
from kit.workloads.counter import Counter
from kit.workloads.elements import LongFork, Set
from kit.workloads.list_append import ListAppend
from kit.workloads.lock import Lock
from kit.workloads.queue import Queue
from kit.workloads.register import Bounded, Register
from kit.workloads.sessions import Prefix, Session, SessionTransactions
from kit.workloads.stream import Stream
from kit.workloads.watch import Watch
from onefold.testing.history import Validity, Verdict
from onefold.testing.sim.faults import Faults
from onefold.testing.sim.scheduler import Stalled
from onefold.testing.sim.world import Simulation

WORKLOADS: dict[str, tuple[type[Workload], int]] = {
    **{kind.name: (kind, 1) for kind in (Register, Bank, ListAppend, Set, LongFork, Counter, Queue, Lock)},
    **{kind.name: (kind, 1) for kind in (Session, Prefix, Bounded, Watch, Stream)},
    "register-sharded": (Register, 3),
    "set-sharded": (Set, 3),
    "bank-sharded": (Bank, 3),
    "list-append-sharded": (ListAppend, 3),
    "stream-sharded": (Stream, 3),
    "session-sharded": (Session, 3),
    "session-transactions": (SessionTransactions, 3),
}
"""By name: the workload, and the shards of its space."""


def run_workload(
    name: str,
    seed: int,
    *,
    operations: int = 300,
    faults: str | Faults | None = "all",
    bug: str | None = None,
    seconds: float = 30.0,
    nodes: int = 0,
) -> Verdict:
    """Run the workload from the seed and check what its clients saw.

    ``faults``: as for ``Simulation.run``. ``bug``: plant this one first (see ``kit.bugs``). ``nodes``: as
    for ``Simulation``. A simulation that
    fails by itself (a replica halts, differs from another, or makes no progress) is INVALID too. The explanation of a verdict
    that is not VALID ends with the seed and the trace.
    """
    from kit.bugs import planted

    with planted(bug) as options:
        return _run(name, seed, operations, faults, seconds, nodes, **options)


def _run(
    name: str,
    seed: int,
    operations: int,
    faults: str | Faults | None,
    seconds: float,
    nodes: int = 0,
    *,
    syncs: bool = True,
) -> Verdict:
    kind, shards = WORKLOADS[name]
    rerun = f"run_workload({name!r}, {seed}, operations={operations}" + (
        f", nodes={nodes})" if nodes else ")"
    )
    with Simulation(seed, shards=shards, nodes=nodes, syncs=syncs, rerun=rerun) as simulation:
        workload = kind(simulation, operations)
        try:
            simulation.setup(workload.setup)
            workload.start()
            simulation.run(faults, seconds)
            with simulation.healed() as db:
                workload.finish(db)
        except Stalled:
            raise
        except Exception:
            return Verdict(Validity.INVALID, traceback.format_exc(), ("failed",))
        verdict = workload.check()
        if verdict:
            return verdict
        return Verdict(verdict.validity, f"{verdict.explanation}\n{simulation.report()}", verdict.anomalies)


__all__ = ["WORKLOADS", "Workload", "run_workload"]
