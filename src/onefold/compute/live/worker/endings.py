"""How a program ends a live job: first the record that ends it, then what that leaves to be done.

The record decides, and whatever comes later is done by others too if this program dies: what was committed reaches its sink
(``output.settling``), workers find that the job is over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.live.client import Ends, Found, NotRunning
from onefold.compute.live.history import cancel_history
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.output.settling import forward_until, settle
from onefold.compute.live.plan import TableSink
from onefold.machine.undisturbed import MayFail, let_pass
from onefold.state.core.afterwards import Afterwards
from onefold.state.core.time_limits import end_of, limited_call
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    from onefold.compute.live.job.stored import LiveJobs
    from onefold.compute.live.job.waits import Wait
    from onefold.compute.live.plan import LivePlan
    from onefold.compute.live.worker.local_workers import LocalWorkers


def stop(found: Found, state: str, workers: LocalWorkers, wait: Wait) -> None:
    """No more commits of a generation, which is in that state; its state is kept. Raises as ``Shard.submit``."""
    job, generation = found
    if state in live_rows.ACTIVE:
        with MayFail(NotRunning), wait.step():  # it has ended meanwhile
            job.stop(generation)
    workers.stop(job.name, generation, wait.left_s)
    forward_until(job, generation, wait.or_s(config.LIVE_GIVE_BACK_S))


def drain(found: Found, ends: Ends) -> None:
    """Have it read up to the ends, close its windows and be done. No effect where it is. Raises NotRunning where it has ended
    otherwise."""
    try:
        found.job.drain(found.generation, ends)
    except NotRunning as error:
        let_pass(error)
        row = found.job.generation(found.generation)
        if row is None or row.state != "done":  # another one has drained it meanwhile
            raise


def cancel(jobs: LiveJobs, found: Found, plan: LivePlan, workers: LocalWorkers) -> None:
    """End a generation for ever, and free its state. Raises as ``Shard.submit``; an error after the record is not definite."""
    job, generation = found
    kept = isinstance(plan.parts[0].sink, TableSink)
    parts = [
        part.name
        for part in plan.parts
        if not (kept and isinstance(part.operator, RunningAggregate))  # then the state is the table
    ]
    history = plan.parts[-1].history
    with limited_call(job.client):
        job.cancel(generation, parts)
        after = Afterwards(f"live job {found.id} was cancelled, but not all is done that follows")
        after.do(lambda: settle(job, generation))  # first: a program that dies here leaves no rows behind
        if history is not None:
            table = history[1].history_of(generation)
            after.do(lambda: cancel_history(jobs.batch(), table, end_of(job.client)))
        after.do(lambda: workers.end(job.name, generation))
        after.end()
