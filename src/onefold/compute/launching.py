"""From a job to a run on the log, where no signal handler can interrupt it, and to the work on it."""

from __future__ import annotations

import _thread
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec

from onefold import config
from onefold.compute import foreign
from onefold.compute.blobs.sweeping import Remembered
from onefold.compute.execution import lost_results, result_types
from onefold.compute.jobs import ops
from onefold.compute.tasks.failures import of_machine
from onefold.errors import Conflict, InvalidArgument, InvalidPlan, OnefoldError, Unavailable
from onefold.ids import new_id
from onefold.machine.undisturbed import undisturbed

if TYPE_CHECKING:
    from onefold.compute.engine import Engine
    from onefold.compute.plan.nodes import Job
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.runs import Run

_SUBMIT_TRIES = 5
_BEGINS_S = 1.0


class Overtaken(Conflict):
    """Another run has come first. Definite: nothing was begun. Programs catch it as ``Conflict``."""


def start(
    engine: Engine,
    job: Job,
    *,
    workers: int | None = None,
    seed: int = 7,
    target_splits: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    max_attempts: int = config.MAX_ATTEMPTS,
    submitting: Callable[[str], None] | None = None,
    behind: str | None = None,
) -> Run:
    """Submit a job and begin to work on it in the background; see ``PreparedJob.start`` for the arguments.

    ``submitting`` hears the id of each run before the log does. When a signal handler raises meanwhile, a run whose id
    was heard may be on the log, and worked on. ``behind``: only as the next run behind this one of the table (empty: as its
    first); Overtaken where another one is there.
    """
    from onefold.compute.execution.runner import worker_count
    from onefold.compute.runs import Run, leave_to_nodes

    engine.check_open()
    if engine.check_name is not None:
        engine.check_name(job.table)
    workers = 0 if leave_to_nodes else worker_count(workers)
    for _ in range(_SUBMIT_TRIES):
        blobs = Remembered(engine.blobs)
        operation, stored = undisturbed(
            partial(
                _prepared,
                engine,
                job,
                blobs,
                seed=seed,
                target_splits=target_splits,
                on_error=on_error,
                max_attempts=max_attempts,
            )
        )
        if behind not in (None, operation.expect or ""):
            raise Overtaken(f"run {operation.expect} of {job.table!r} came first")
        if submitting is not None:
            submitting(operation.run)
        outcome = _submitted(engine, operation, stored, blobs, workers)
        if isinstance(outcome, ops.Accepted):
            return Run(engine, outcome.run)
        if outcome.code == "reserved" and engine.free_name is not None:
            engine.free_name(job.table)
            continue
        if behind is not None and outcome.code in ("conflict", "busy"):
            raise Overtaken(outcome.message)
        if outcome.code in ("table_exists", "different_columns"):
            raise InvalidArgument(outcome.message)
        if outcome.code != "conflict":
            raise Conflict(outcome.message)
    raise Conflict(f"other programs keep starting jobs into {job.table!r}; try again when they are done")


def _prepared(
    engine: Engine,
    job: Job,
    blobs: Remembered,
    *,
    seed: int,
    target_splits: int | None,
    on_error: Literal["fail", "skip"],
    max_attempts: int,
) -> tuple[ops.Submit, StoredJob]:
    """What to submit for a job, with its blobs stored."""
    from onefold.compute.submission import submit as submission

    try:
        with foreign.translated(f"the job for {job.table!r} was not submitted", kind=InvalidPlan):
            return submission.prepare(
                job,
                shard=engine.shard,
                blobs=blobs,
                streams=engine.streams,
                run=new_id("run", engine.env),
                seed=seed,
                target_splits=target_splits,
                on_error=on_error,
                max_attempts=max_attempts,
            )
    except OSError as error:
        if isinstance(error, OnefoldError):
            raise
        raise Unavailable(f"the job was not submitted: {of_machine(error)} and run it again") from error


def _submitted(
    engine: Engine, operation: ops.Submit, stored: StoredJob, blobs: Remembered, workers: int
) -> ops.Outcome:
    """Submit what was prepared, and begin to work on the run when it is accepted.

    What a signal handler raises comes out when the outcome is on the log, so that the caller can look for it there.
    """
    begun: list[bool] = []
    over = _thread.allocate_lock()
    over.acquire()

    def work() -> ops.Outcome:
        begun.append(True)
        try:
            return _started(engine, operation, stored, blobs, workers)
        finally:
            over.release()

    try:
        return undisturbed(work)
    except BaseException:
        # A thread is given time to begin; a second interrupt ends this wait too.
        if not over.acquire(True, _BEGINS_S) and begun:
            over.acquire()
        raise


def _started(
    engine: Engine, operation: ops.Submit, stored: StoredJob, blobs: Remembered, workers: int
) -> ops.Outcome:
    result_types.check_taken_over(engine, operation, stored)
    (outcome,) = engine.submit(operation)
    left = (
        isinstance(outcome, ops.Accepted) and outcome.run != operation.run and engine.abandoned(outcome.run)
    )
    busy = isinstance(outcome, ops.Refused) and outcome.code == "busy"
    # An equal run whose processes are gone is taken over by a run of our own, which re-uses what it finished;
    # but one that recomputes everything is continued, or its finished tasks would be run again.
    if (left and operation.mode == "continue") or (busy and engine.nobody_works(operation.table)):
        operation = msgspec.structs.replace(operation, supersede=True)
        result_types.check_taken_over(engine, operation, stored)
        (outcome,) = engine.submit(operation)
    if isinstance(outcome, ops.Accepted):
        blobs.keep()
        engine.keep_stored(operation.plan, stored)
        lost_results.reopen(engine, outcome.run)
        engine.work(outcome.run, workers)
    return outcome
