"""Runs: the handle on one execution of a job, from the process that started it or from any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from onefold import config
from onefold.backoff import Deadline
from onefold.compute import arguments
from onefold.compute.jobs import ops, state
from onefold.compute.jobs.read_rows import ErrorRow, RunRow
from onefold.compute.plan.stages import DeadLetter
from onefold.errors import InvalidArgument, JobFailed, Timeout, Unavailable

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.engine import Engine
    from onefold.compute.results.tables import Table
    from onefold.durations import Duration

RunState = Literal["running", "done", "failed", "cancelled", "stopped", "draining"]
"""The last two are of live jobs only."""
leave_to_nodes: list[Callable[[Run], None]] = []
"""When there is any, this process works on no run and waits for none: each is called with a run instead of waiting for it, and
raises what ends the program. ``onefold run --detach`` uses it."""
run_started: list[Callable[[str, Run], None]] = []
"""Called with the space's URL and the run for each run that this process starts, live jobs included, at times twice. The command
line uses it."""
_ORPHAN_CHECK_S = 1.0


def about_to_wait(run: Run) -> None:
    """To be called before anything waits for a run, or shows it while it waits."""
    for leave in leave_to_nodes:
        leave(run)


@dataclass(frozen=True)
class Progress:
    """How far a run is. ``rows`` and ``bytes`` count what this run read, not what it took over."""

    done: int
    """Finished tasks, those taken over from earlier runs included."""
    total: int
    rows: int
    bytes: int
    failed: int
    """Attempts that raised or whose process died."""
    retried: int
    """Tasks that were handed out again, for whatever reason."""
    reused: int
    """Tasks taken over from earlier runs."""
    workers: int
    """Workers with a task in progress now."""
    elapsed: float
    """Seconds since the run was submitted (until it ended)."""
    eta: float | None
    """Seconds that are left at the pace so far; None when nothing can be said."""
    skipped: int = 0
    """Records in the dead-letter table of this run."""


@dataclass(frozen=True)
class RunError:
    """One failed attempt, or one record that was skipped."""

    message: str
    traceback: str
    record: str | None
    location: str | None
    stage: int
    index: int
    attempt: int
    skipped: bool
    """True for a dead letter: the run continued without this record."""


class RunErrors(list[RunError]):
    """Errors of a run."""

    def __init__(self, errors: Iterable[RunError] = (), *, complete: bool = True) -> None:
        super().__init__(errors)
        self.complete = complete
        """Whether these are all; False when some are not kept."""


def _run_error(row: ErrorRow) -> RunError:
    what = row.failure
    if what is not None:
        return RunError(
            what.message, what.traceback, what.record, what.location, row.stage, row.index, row.attempt, False
        )
    letter = row.letter or DeadLetter("", "", "")
    return RunError(
        letter.error, letter.traceback, letter.record, letter.location, row.stage, row.index, 0, True
    )


@dataclass(frozen=True)
class Refusal:
    """Why a node of the cluster does not work on a run, or not on some of its tasks."""

    node: str
    reason: str
    stage: int
    """Of the task that it is about; -1: all of the run."""
    index: int


class Run:
    """One execution of a job. Reading it never changes it; several processes may hold the same run."""

    def __init__(self, engine: Engine, run_id: str) -> None:
        self._engine = engine
        self.id = run_id
        self._next_orphan_check = time.monotonic() + _ORPHAN_CHECK_S
        self._idle_since: float | None = None
        """Since when nobody has had a task of it, as this handle has seen."""

    def _row(self) -> RunRow:
        with self._engine.shard.view() as view:
            row = state.read_run(view, self.id)
        if row is None:
            raise InvalidArgument(
                f"there is no run {self.id!r} in {self._engine.shard.url}; `onefold runs` lists them"
            )
        return row

    @property
    def exists(self) -> bool:
        """Whether the log has it."""
        with self._engine.shard.view() as view:
            return state.read_run(view, self.id) is not None

    @property
    def state(self) -> RunState:
        """ "running", "done", "failed" or "cancelled"."""
        return self._row().state

    @property
    def table_name(self) -> str:
        """The table (or ``parquet:PATH``) that the run makes."""
        return self._row().table

    @property
    def table(self) -> Table:
        """The table that the run makes, as far as it is: readable from the first finished task on."""
        from onefold.compute.results.tables import Table

        return Table(self._engine.results, self.table_name)

    @property
    def created_ms(self) -> int:
        """When it was submitted, in ms since 1970."""
        return self._row().created_ms

    @property
    def seed(self) -> int:
        """The seed of its dispatch order."""
        return self._row().seed

    @property
    def worker_pids(self) -> list[int]:
        """Worker processes of this process that work for the run."""
        runner = self._engine.runner(self.id)
        return runner.worker_pids if runner is not None else []

    @property
    def abandoned(self) -> bool:
        """Whether it is running but every process that worked on it is gone: ``resume()`` it, or run the job again."""
        return self._row().state == "running" and self._engine.abandoned(self.id)

    def progress(self) -> Progress:
        """The run's counters at this moment."""
        with self._engine.shard.view() as view:
            row = state.read_run(view, self.id)
            if row is None:
                raise InvalidArgument(f"there is no run {self.id!r}")
            workers = (
                {claim.worker for claim in state.claims(view, self.id)} if row.state == "running" else set()
            )
        runner = self._engine.runner(self.id)
        in_flight = runner.rows_in_flight if runner is not None and row.state == "running" else 0
        now_ms = self._engine.env.wall_ms() if row.state == "running" else row.updated_ms
        elapsed = max(0.0, (now_ms - row.created_ms) / 1000)
        made = row.done - row.reused
        left = row.total - row.done
        eta = None
        if row.state == "running":
            pace = runner.seconds_per_task(row.done) if runner is not None else None
            if pace is None and runner is None and made > 0:
                pace = elapsed / made  # of a run that others work on: counts the time that nobody did, too
            eta = pace * left if pace is not None else None
        elif row.state == "done":
            eta = 0.0
        return Progress(
            done=row.done,
            total=row.total,
            rows=row.rows + in_flight,
            bytes=row.bytes,
            failed=row.failed,
            retried=row.retried,
            reused=row.reused,
            workers=len(workers),
            elapsed=elapsed,
            eta=eta,
            skipped=row.dead,
        )

    def wait(self, timeout: Duration | None = None) -> Run:
        """Wait until the run has ended, one way or another; returns the run.

        Raises:
            Timeout: indefinite; the run has not ended in time, and continues.
            Unavailable: definite; no live process works on it (resume it).
            OSError: what stopped this process's own workers (a full disk, for example).
        """
        about_to_wait(self)
        longest = arguments.timeout(timeout)
        deadline = Deadline.after(longest)
        while True:
            with self._engine.shard.view() as view:
                row = state.read_run(view, self.id)
                offset = view.offset
            if row is None:
                raise InvalidArgument(f"there is no run {self.id!r}")
            runner = self._engine.runner(self.id)
            if row.state != "running":
                if runner is not None:
                    runner.join()
                return self
            # On a cluster others may continue where this process had to stop.
            here = self._engine.shard.strong_reads
            if here and runner is not None and runner.error is not None and not runner.alive:
                raise runner.error
            now = time.monotonic()
            if deadline.passed:
                raise Timeout(f"run {self.id} has not ended after {longest:g} s; it continues", definite=True)
            if now >= self._next_orphan_check:
                self._next_orphan_check = now + _ORPHAN_CHECK_S
                if not here:
                    self._check_not_stalled(now)
                elif self.abandoned:
                    raise Unavailable(
                        f"nobody works on run {self.id}: its processes are gone. "
                        f"Continue with db.open_run({self.id!r}).resume(); finished tasks are kept."
                    )
            self._engine.shard.wait(offset, deadline.within(_ORPHAN_CHECK_S))

    def _check_not_stalled(self, now: float) -> None:
        """Raise Unavailable when nobody of the cluster has had a task of the run for long, with what nodes say of it."""
        with self._engine.shard.view() as view:
            worked_on = bool(state.claims(view, self.id))
        runner = self._engine.runner(self.id)
        if worked_on or (runner is not None and runner.alive and not runner.gave_up):
            self._idle_since = None
            return
        self._idle_since = since = self._idle_since if self._idle_since is not None else now
        if now - since < config.RUN_STALLED_S:
            return
        if runner is not None and runner.error is not None:
            raise runner.error
        said = "".join(f"\n{one.node}: {one.reason}" for one in self.refusals())
        raise Unavailable(
            f"nobody has worked on run {self.id} for {config.RUN_STALLED_S:g} s; finished tasks are kept; it continues when a "
            f"node can do it, or with db.open_run({self.id!r}).resume(). "
            + (
                f"Nodes say:{said}"
                if said
                else "There is no node with workers, or none that has found it: `onefold status`"
            )
        )

    def refusals(self) -> list[Refusal]:
        """Why nodes of the cluster do not work on this run, or not on some of its tasks; by node, the latest reason of each."""
        with self._engine.shard.view() as view:
            return [Refusal(one.node, one.reason, one.stage, one.index) for one in state.unfit(view, self.id)]

    def result(self) -> Table:
        """The run's table, once the run is done (waits for it).

        To read while it runs: ``run.table``.

        Raises:
            JobFailed: the run has failed.
            Unavailable: definite; it was cancelled, or no live process works on it.
        """
        self.wait()
        self.raise_if_failed()
        row = self._row()
        if row.state == "cancelled":
            raise Unavailable(f"run {self.id} was cancelled; continue with db.open_run({self.id!r}).resume()")
        from onefold.compute.results.tables import Table

        return Table(self._engine.results, row.table)

    def raise_if_failed(self) -> None:
        """Raise JobFailed with the record, its place and the traceback when the run has failed.

        Raises:
            JobFailed: the run has failed. It names the record, its place and the traceback.
        """
        row = self._row()
        if row.state != "failed":
            return
        failure = row.error.failure if row.error is not None else None
        if failure is None:
            reason = row.error.reason if row.error is not None else "no reason was kept"
            raise JobFailed(f"run {self.id} of {row.table!r} failed: {reason}", run_id=self.id)
        parts = [f"run {self.id} of {row.table!r} failed: {failure.message}"]
        if failure.location:
            parts.append(f"at {failure.location}")
        if failure.record:
            parts.append(f"record: {failure.record}")
        if failure.traceback:
            parts.append(failure.traceback.rstrip())
        advice = (
            "Fix the function and run it again, or skip such records with on_error='skip'."
            if failure.record is not None
            else "Fix that and run the job again."
        )
        parts.append(f"Finished tasks are kept. {advice}")
        raise JobFailed(
            "\n".join(parts),
            run_id=self.id,
            record=failure.record,
            location=failure.location,
            traceback=failure.traceback,
        )

    def cancel(self) -> None:
        """Stop the run; what was finished stays and ``resume()`` continues from there. No effect on a run that has ended."""
        self._engine.submit(ops.Cancel(self.id, "cancelled by the user"))
        runner = self._engine.runner(self.id)
        if runner is not None:
            runner.stop()
            runner.join()

    def resume(self, workers: int | None = None) -> Run:
        """Continue with a run whose processes died, that was cancelled or that failed; finished tasks are not run again.

        Works in the background, in this process (``workers=0``: leaves it to others). A run that is done stays as it is, but
        for tasks whose results are lost, which are run again.

        Raises:
            InvalidValue: definite, before anything is written; this process cannot load the job's functions (another
                Python).
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        from onefold.compute.execution import lost_results
        from onefold.compute.execution.runner import worker_count

        workers = 0 if leave_to_nodes else worker_count(workers)
        row = self._row()
        if workers != 0 and row.state != "done" and row.kept:
            self._engine.stored(row.plan)
        (outcome,) = self._engine.submit(ops.Resume(self.id, self._engine.shard.member))
        if isinstance(outcome, ops.Refused):
            raise InvalidArgument(outcome.message)
        if workers != 0 and row.kept and lost_results.reopen(self._engine, self.id) and row.state == "done":
            self._engine.submit(ops.Resume(self.id, self._engine.shard.member))
        self._engine.work(self.id, workers)
        return self

    def errors(self) -> RunErrors:
        """Failed attempts, oldest first, then the records that were skipped, by task.

        Of failed attempts the latest ``config.ERRORS_PER_RUN_KEPT`` are kept; ``.complete`` of the list tells whether that is
        all of them. Skipped records are all there, except in a space that a program of an earlier release has open too: it keeps
        the first 1,000 of a task, and ``.complete`` is False when there were more.
        """
        with self._engine.shard.view() as view:
            row = state.read_run(view, self.id)
            rows = state.errors(view, self.id, all_letters=True)
        found = [_run_error(one) for one in rows]
        failed = sum(1 for one in found if not one.skipped)
        return RunErrors(
            found,
            complete=row is not None and failed == row.failed and len(found) - failed == row.dead,
        )

    def dead_letters(self) -> pl.DataFrame:
        """Every record that was set aside by ``on_error="skip"``, by task: ``location, record, error, traceback`` (all text).

        Records are their ``repr``, cut to 2,000 characters. Of a task with very many, later ones have an empty traceback.
        """
        import polars as pl

        columns = ("location", "record", "error", "traceback")
        with self._engine.shard.view() as view:
            letters = [
                one.letter
                for one in state.errors(view, self.id, limit=0, all_letters=True)
                if one.letter is not None
            ]
        return pl.DataFrame(
            {name: [getattr(letter, name) for letter in letters] for name in columns},
            schema=dict.fromkeys(columns, pl.String),
        )

    def __repr__(self) -> str:
        row = self._row()
        return f"<Run {self.id} of {row.table!r}: {row.state}>"

    def _repr_html_(self) -> str:
        from onefold.display import run_html

        return run_html(self)
