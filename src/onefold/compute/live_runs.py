"""Live jobs as programs hold them: started, followed, stopped, from any process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, TypeVar

from onefold import config
from onefold.arguments import check_flag, check_whole
from onefold.compute.live.client import Ends, Found
from onefold.compute.live.inputs.reading import Inputs
from onefold.compute.live.job import letters, points
from onefold.compute.live.job.beginning import add_inputs
from onefold.compute.live.job.points import Point
from onefold.compute.live.job.status import LiveStatus, Moment, moment_of, rows_of, status_of
from onefold.compute.live.job.waits import Wait
from onefold.compute.live.plan import LivePart
from onefold.compute.live.tables import LiveTable
from onefold.compute.live.worker import endings
from onefold.compute.runs import Progress, Refusal, Run, RunError, RunErrors, RunState, about_to_wait
from onefold.errors import Conflict, InvalidArgument, JobFailed, OnefoldError, Timeout, Unavailable
from onefold.machine.undisturbed import if_possible, let_pass
from onefold.state.core.afterwards import Happened
from onefold.state.core.time_limits import limited_call
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    from datetime import datetime

    import polars as pl

    from onefold.compute.live.job.stored import LiveJobs
    from onefold.compute.live.plan import LivePlan
    from onefold.compute.live.worker.local_workers import LocalWorkers
    from onefold.compute.results.tables import Table
    from onefold.durations import Duration
    from onefold.state.fold.live.rows import GenerationRow

T = TypeVar("T")
_NOBODY_S: Final = 5.0
"""For how long nobody may work on a job before a wait for it is given up."""
_RATE_S: Final = 0.2
"""A rate is over at least so long."""


class LiveRun(Run):
    """A live job: one generation of it. Several processes may hold the same one; reading it never changes it."""

    def __init__(
        self,
        jobs: LiveJobs,
        found: Found,
        workers: LocalWorkers,
        before_resume: Callable[[Found, LivePlan, int | None], None],
    ) -> None:
        """``before_resume``: begins or continues what belongs to it, with so many workers.

        Programs call ``job.start`` and ``db.open_run``. One whose plan this process cannot load can be listed and stopped; what
        needs the plan raises InvalidValue. Raises InvalidArgument when it was dropped."""
        self.id = found.id
        self._jobs = jobs
        self._found = found
        self._job = found.job
        self._generation = found.generation
        self._workers = workers
        self._before_resume = before_resume
        self._rate = 0.0
        self._counted = self._job.client.env.boot_s(), rows_of(found)
        self._nobody_since: float | None = None

    @cached_property
    def _plan(self) -> LivePlan:
        return self._jobs.plan_of(self._found)

    @property
    def _part(self) -> LivePart:
        return self._plan.parts[0]

    @cached_property
    def _inputs(self) -> Inputs:
        return Inputs(self._job.client, self._part.inputs)

    # -- what there is ---------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The job's name: that of its table."""
        return self._job.name

    @property
    def state(self) -> RunState:
        """``running``, ``draining``, ``stopped`` (its state is kept), ``failed``, ``done`` or ``cancelled``."""
        found = self._generation_row().state
        return "cancelled" if found == "dropped" else found

    @property
    def role(self) -> Literal["current", "replay", "replaced"]:
        """Whether it is the job's present generation, a replay that is hidden until its swap, or one that a swap has replaced."""
        row = self._job.row()
        if row is None or row.current == self._generation:
            return "current"
        return "replay" if self._generation > row.current else "replaced"

    @property
    def exists(self) -> bool:
        """Whether it was not dropped."""
        return self._job.generation(self._generation) is not None

    @property
    def error(self) -> str:
        """Why it failed; empty otherwise."""
        return self._generation_row().error

    @property
    def table_name(self) -> str:
        """The name of its table; ``NAME/GENERATION`` for one that is not the job's present generation."""
        row = self._job.row()
        return self.name if row is not None and row.current == self._generation else self.id

    @property
    def table(self) -> Table:
        """Its table."""
        return self.result()

    @property
    def created_ms(self) -> int:
        """When it began, in ms since 1970."""
        return self._generation_row().created_ms

    @property
    def seed(self) -> int:
        """A live job has no dispatch order."""
        return 0

    @property
    def worker_pids(self) -> list[int]:
        """Worker processes of this process that work for it: none, its workers are threads."""
        return []

    @property
    def abandoned(self) -> bool:
        """Whether it runs, and every process that worked on it is gone: ``resume()`` it, or start the job again."""
        if self._generation_row(strong=False).state not in live_rows.ACTIVE:
            return False
        shard = self._job.client.shards[self._job.home]
        with self._job.local() as view:
            members = [row.member for row in live_rows.workers(view, self.name, self._generation).values()]
        return all(shard.member_alive(member) is False for member in members)

    @property
    def watermark(self) -> datetime | None:
        """Windows that end before it (and the lateness) are closed, in UTC; None: none yet, or the job is done."""
        return self.status().watermark

    def status(self) -> LiveStatus:
        """How it stands."""
        return self.look()[1]

    def look(self, *, strong: bool = True) -> tuple[RunState, LiveStatus]:
        """Its state and how it stands, from one view. ``strong=False``: as far as this process has seen, which costs a cluster
        nothing.

        Raises:
            InvalidArgument: definite; it was dropped.
            InvalidValue: definite; this process cannot load its functions (another Python).
        """
        moment = moment_of(self._found, self._plan.parts, sizes=True, strong=strong)
        state = moment.generation.state
        rate, busy_s = self._rate_of(moment), self._workers.busy_s(self._found)
        trouble = self._workers.trouble(self._found)
        found = status_of(
            self._found, self._plan.parts, self._inputs, moment, rate, busy_s=busy_s, trouble=trouble
        )
        return "cancelled" if state == "dropped" else state, found

    def progress(self) -> Progress:
        """Its counters: ``done`` of ``total`` records of its inputs are committed. It has no end, so ``eta`` is None."""
        moment = self._moment()
        lag = moment.lag(self._inputs, self._part)
        counters = moment.counters
        now_ms = self._job.client.env.wall_ms()
        return Progress(
            done=counters.rows,
            total=counters.rows + lag,
            rows=counters.rows,
            bytes=0,
            failed=0,
            retried=0,
            reused=0,
            workers=moment.workers,
            elapsed=max(0.0, (now_ms - moment.generation.created_ms) / 1000),
            eta=None,
            skipped=counters.dead,
        )

    def refusals(self) -> list[Refusal]:
        """Nodes that leave a live job to others say so in their logs."""
        return []

    def result(self) -> LiveTable:
        """Its table, as far as it is. Does not wait."""
        return LiveTable(self._jobs, self.id, self._workers.reader)

    def errors(self) -> RunErrors:
        """Why it failed, if it did; then the records that were set aside."""
        row = self._generation_row()
        found: list[RunError] = []
        if row.error:
            found.append(RunError(row.error, "", None, None, 0, 0, 0, False))
        for letter in letters.dead_letters(self._part, self.result().dead()).iter_rows(named=True):
            found.append(
                RunError(
                    letter["error"], letter["traceback"], letter["record"], letter["location"], 0, 0, 0, True
                )
            )
        return RunErrors(found)

    def dead_letters(self) -> pl.DataFrame:
        """Every record that was set aside by ``on_error="skip"``: ``location, record, error, traceback`` (all text)."""
        return letters.dead_letters(self._part, self.result().dead())

    def raise_if_failed(self) -> None:
        """Raise JobFailed with the reason when it has failed."""
        row = self._generation_row()
        if row.state == "failed":
            raise JobFailed(row.error, run_id=self.id)

    # -- waiting ---------------------------------------------------------------------------------------------

    def wait(self, timeout: Duration | None = None) -> LiveRun:
        """Wait until it takes no more commits: it was stopped, drained or cancelled, or it failed. It does not end by itself.

        Raises:
            Timeout: definite; it has not ended after so long; it continues.
            Unavailable: definite; nobody works on it.
        """
        about_to_wait(self)

        def ended() -> bool | None:
            return None if self._generation_row(strong=False).state in live_rows.ACTIVE else True

        self._until(ended, Wait(self._job.client, timeout), lambda: "has not ended")
        return self

    def catch_up(self, timeout: Duration | None = None) -> LiveRun:
        """Wait until everything that was in the inputs at the call is committed, and what of it goes to other shards is there.

        Raises:
            Timeout: definite; it is not, after so long.
            JobFailed: definite; the job failed, or was stopped.
            Unavailable: definite; nobody works on it.
        """
        wait = Wait(self._job.client, timeout)
        with wait.step():
            point = self.point()
        return self._caught_up(point, wait)

    def point(self) -> Point:
        """What ``caught_up`` waits for: where the inputs end now."""
        return self.ends(), {}, {}

    def caught_up(self, point: Point, timeout: Duration | None = None) -> LiveRun:
        """Wait until everything before a point is committed, and in other shards where it goes there.

        Raises:
            Timeout: definite; it is not, after so long.
            JobFailed: definite; the job failed, or was stopped.
            Unavailable: definite; nobody works on it.
        """
        return self._caught_up(point, Wait(self._job.client, timeout))

    def _caught_up(self, point: Point, wait: Wait) -> LiveRun:
        ends, sent, below = point

        def behind() -> int:
            return self._behind(ends, strong=False)

        def done() -> bool | None:
            if not behind() and self._is_done_after(below, sent):
                return True
            self._check_works()
            return None

        self._until(done, wait, lambda: f"still has {behind()} records to commit")
        return self

    def stop(self, drain: bool = False, timeout: Duration | None = None) -> LiveRun:
        """Have no more commits; its state is kept, and starting the job again continues it. No effect on one that has ended.
        This process's workers end, which takes ``timeout`` (5 s) at most: a function of ``for_each`` that takes longer may still
        be at work then, and gets its rows again. The limit is of the whole call, but for a second to write what is decided.

        ``drain``: read what is in the inputs now, close all windows, and end as ``done``. The first call says where it ends. When
        it is interrupted after a part of the windows was closed, starting the job again drains on, to the same end. One that is
        stopped is resumed for that, by this process.

        Raises:
            Timeout: indefinite; it is not drained after so long; it continues to drain.
            Conflict: definite; it is to be drained, and has failed or was cancelled.
            JobFailed: definite; it failed while it drained.
            Unavailable: definite; it is to be drained, and nobody works on it.
        """
        check_flag("drain", drain)
        if drain:
            return self._drain(Wait(self._job.client, timeout))
        wait = Wait(self._job.client, timeout)
        with wait.step():
            state = self._generation_row().state
        endings.stop(self._found, state, self._workers, wait)
        return self

    def _drain(self, wait: Wait) -> LiveRun:
        with wait.step():
            before = self._generation_row().state
        if before == "stopped":
            with wait.step():
                self.resume()
        if before not in ("draining", "done"):
            resumed = Happened(f"live job {self.id} runs again") if before == "stopped" else nullcontext()
            with wait.step(), resumed:
                endings.drain(self._found, self._drained_to())

        def drained() -> bool | None:
            return None if self._generation_row(strong=False).state == "draining" else True

        self._until(drained, wait, lambda: "is not drained", definite=False)
        self._workers.end(self.name, self._generation, wait.deadline)
        if self._generation_row(strong=False).state != "done":
            self._check_works()
        return self

    # -- its life --------------------------------------------------------------------------------------------

    def resume(self, workers: int | None = None) -> LiveRun:
        """Have workers of this process work on it, with the plan that it has: more of them if it runs, and if it was stopped or
        failed it continues where it was, and so does its history where nobody works on that. One that is done stays as it is.

        ``workers``: how many (default 1, which stands by while others are enough; several share the job at once; 0: others do).

        Raises:
            Conflict: definite; it was cancelled.
            InvalidValue: definite; this process cannot load its functions (another Python).
        """
        if workers is not None:
            check_whole("workers", workers, least=0, most=config.LIVE_WORKERS_HERE_MAX)
        row = self._generation_row()
        if row.state == "done":
            return self
        with limited_call(self._job.client):
            if (
                row.state not in live_rows.OVER
            ):  # before the job runs, which a failed history would fail again
                self._before_resume(self._found, self._plan, workers)
            if row.state not in live_rows.ACTIVE:
                self._job.restart(self._generation, row.plan)
        self._workers.work(self._found, 1 if workers is None else workers)
        self._nobody_since = None
        return self

    def cancel(self) -> None:
        """End it for ever, and free its state: windows that are open are never shown. What it has put out stays, until
        ``db.drop(name)``. What is committed reaches its sink first, also where the worker has died that did it. No effect on one
        that is done.

        Raises:
            Unavailable, Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have ended. Calling again
                does the rest; otherwise the next program that opens the folder does it, or a node.
        """
        endings.cancel(self._jobs, self._found, self._plan, self._workers)

    def swap(self, force: bool = False, point: Point | None = None) -> LiveRun:
        """Of a replay: make its table the job's, and stop the generation that was there, in one step. That one is kept as
        ``NAME/GENERATION`` until ``db.drop`` of it.

        ``force``: even if it has not caught up with the inputs. ``point``: what it must have caught up with (default: what is in
        the inputs at the call); with one that ``caught_up`` has waited for, inputs that never rest are not in the way.

        Raises:
            Conflict: definite; it lags behind that, or it does not replay.
        """
        check_flag("force", force)
        with limited_call(self._job.client):
            return self._swap(point, force=force)

    def _swap(self, point: Point | None, *, force: bool) -> LiveRun:
        ends, _, below = self.point() if point is None else point
        named = [(self._part.name, *place, end) for place, end in ends.items()]
        if len(self._plan.parts) > 1 and not force:
            behind = self._behind(ends)
            if behind:
                raise Conflict(
                    f"live job {self.id} has {behind} records to commit. Wait until it has caught up, or swap with force=True"
                )
            # What was in the hops when that was so is to be read too.
            points.is_below(self._job, self._generation, self._plan.parts, below)
            named += [(part, 0, 0, end) for part, end in below.items()]
            named += [
                (part.name, number, 0, 1)
                for part in self._plan.parts[1:]
                for number, one in enumerate(part.inputs)
                if one.history
            ]
        before = self._job.swap(self._generation, named, force=force)
        with Happened(f"live job {self.id} was swapped in"):
            self._workers.end(self.name, before)
        return self

    # -- inside ----------------------------------------------------------------------------------------------

    def _until(
        self, condition: Callable[[], T | None], wait: Wait, what: Callable[[], str], *, definite: bool = True
    ) -> T:
        """Wait for the condition. Raises Timeout with what is the matter, and Unavailable when nobody works."""

        def look() -> tuple[int, T | None]:
            return self._moment(strong=False).offset, condition()

        found = wait.until(self._job.home, look, self._check_somebody_works)
        if found is not None:
            return found
        said, held = "is not so far", ""
        with if_possible, wait.step():
            said, held = what(), self.look(strong=False)[1].held_by
        raise Timeout(
            f"live job {self.name!r} {said} after {wait.limit_s:g} s; it continues"
            + (f". What holds it back: {held}" if held else ""),
            definite=definite,
        )

    def _check_somebody_works(self) -> None:
        now = self._job.client.env.boot_s()
        here = self._job.client.shards[self._job.home].strong_reads
        if not here or self._workers.left_to_others(self._found) or not self.abandoned:
            self._nobody_since = None
            return
        self._nobody_since = now if self._nobody_since is None else self._nobody_since
        if now - self._nobody_since >= _NOBODY_S:
            raise Unavailable(
                f"nobody works on live job {self.name!r}: its processes are gone. What is committed is kept; continue with "
                f"db.open_run({self.id!r}).resume(), or start the job again"
            )

    def _generation_row(self, *, strong: bool = True) -> GenerationRow:
        found = self._job.generation(self._generation, strong=strong)
        if found is None:
            raise InvalidArgument(f"live job {self.id} was dropped")
        return found

    def _behind(self, ends: dict[tuple[int, int], int], *, strong: bool = True) -> int:
        """How many records before these ends are not committed."""
        now = {place: one.next for place, one in self._moment(strong=strong).positions.items()}
        return sum(max(0, end - now.get(place, 0)) for place, end in ends.items())

    def _is_done_after(self, below: dict[str, int], sent: dict[int, int]) -> bool:
        """Whether what the inputs gave is through the other parts and in other shards."""
        job, generation = self._job, self._generation
        return points.is_below(job, generation, self._plan.parts, below) and points.is_forwarded(
            job, generation, sent
        )

    def _moment(self, *, strong: bool = True) -> Moment:
        return moment_of(self._found, self._plan.parts, strong=strong)

    def _rate_of(self, moment: Moment) -> float:
        now, rows = self._job.client.env.boot_s(), moment.counters.rows
        since, before = self._counted
        if now - since >= _RATE_S:
            self._rate = max(0, rows - before) / (now - since)
            self._counted = now, rows
        return self._rate

    def _drained_to(self) -> Ends:
        """Where its inputs end now, all of which are inputs of the job then: no worker may have seen a stream that is new."""
        ends = self.ends()
        add_inputs(self._job, self._generation, self._part, {number for number, _ in ends})
        return [(self._part.name, *place, end) for place, end in ends.items()]

    def ends(self) -> dict[tuple[int, int], int]:
        """Where each partition of its inputs ends now, of the streams that are there: (input, partition) -> offset."""
        heads, _ = self._inputs.heads(self._inputs.places(), barrier=True)
        return heads

    def _check_works(self) -> None:
        row = self._generation_row(strong=False)
        if row.state == "failed":
            raise JobFailed(row.error, run_id=self.id)
        if row.state not in live_rows.ACTIVE:
            why = {
                "stopped": "; start it again to continue",
                "done": ": it was drained to an earlier end of its inputs",
            }
            raise JobFailed(f"live job {self.name!r} is {row.state}{why.get(row.state, '')}")

    def __repr__(self) -> str:
        try:
            return f"<LiveRun {self.id}: {self.state}>"
        except OnefoldError as error:
            let_pass(error)
            return f"<LiveRun {self.id}: {error}>"
