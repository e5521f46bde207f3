"""The runner: the threads of one process that work on one run.

Each slot claims a task, has an executor run it and appends its result together with the next claim, so a task costs one
append. A thread keeps leases (see ``lease_keeper``). All decisions are the fold's: a runner that is killed anywhere leaves
nothing that another one cannot continue from.

A node works on several runs at a time: its runners share the slots of a ``Host``, and a slot is taken for one task.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold import config
from onefold.arguments import check_whole, shown
from onefold.backoff import Deadline
from onefold.compute.execution.attempts import Attempts
from onefold.compute.execution.lease_keeper import ClaimKey, LeaseKeeper
from onefold.compute.execution.slots import Host
from onefold.compute.jobs import ops, state
from onefold.compute.jobs.read_rows import RunRow
from onefold.compute.loading import load_for_tasks, load_numpy
from onefold.compute.plan.stages import PartialOutput
from onefold.compute.tasks.failures import failure_of, of_machine, one_line
from onefold.errors import InvalidArgument, OnefoldError, TooLarge, Unavailable

if TYPE_CHECKING:
    from onefold.compute.client import JobClient
    from onefold.compute.garbage import Garbage
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.results.reading import Results
    from onefold.compute.tasks.executor import Executor

_INLINE_SLOTS = 2
"""Tasks at once where Polars' own threads do the work: while one waits for the disk, the other computes."""
_IDLE_WAIT_S = 0.5
_KEEP_EVERY_S = 1.0


def default_workers() -> int:
    """Cores that this process may use, or ONEFOLD_WORKERS."""
    asked = os.environ.get("ONEFOLD_WORKERS")
    if asked:
        count = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0
        if not 1 <= count <= config.JOB_WORKERS_MAX:
            raise InvalidArgument(
                f"ONEFOLD_WORKERS must be a whole number from 1 to {config.JOB_WORKERS_MAX:,}; it is {shown(asked)}"
            )
        return count
    return cores()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(asked: int | None) -> int:
    """The number asked for, else the default. Raises InvalidArgument."""
    if asked is None:
        return default_workers()
    check_whole("workers", asked, least=0, most=config.JOB_WORKERS_MAX)
    return asked


class Runner:
    """Works on one run in this process until the run has ended or ``stop`` is called."""

    def __init__(
        self,
        client: JobClient,
        results: Results,
        garbage: Garbage,
        run: str,
        workers: int | None,
        host: Host | None = None,
    ) -> None:
        """``host``: the node that works on it; then ``workers`` is how many slots it has at most."""
        self._client, self._results, self._garbage = client, results, garbage
        self.run = run
        self._workers = worker_count(workers)
        self._host = host
        self._stopping = threading.Event()
        self._leaving = threading.Event()
        self._threads: list[threading.Thread] = []
        self._executors: list[Executor] = []
        self._lock = threading.Lock()
        self._keeper = LeaseKeeper(client, run)
        self._attempts: Attempts | None = None
        self._rows: dict[int, int] = {}
        self._swept = threading.Event()
        self._over = threading.Event()
        """Set once no slot works any more: the keeper need not wait for its next round."""
        self._slots_left = 0
        self.error: BaseException | None = None
        self._began: tuple[float, int] | None = None

    # -- from outside -----------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether any of its threads is still at work."""
        return any(thread.is_alive() for thread in self._threads)

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of its worker processes."""
        with self._lock:
            return [executor.pid for executor in self._executors if executor.pid is not None]

    @property
    def rows_in_flight(self) -> int:
        """Records read by tasks that have not finished yet."""
        return sum(list(self._rows.values()))

    def seconds_per_task(self, done: int) -> float | None:
        """The run's pace since this process began to work on it, with ``done`` tasks finished now; None: not known yet."""
        if self._began is None or done <= self._began[1]:
            return None
        return (time.monotonic() - self._began[0]) / (done - self._began[1])

    @property
    def gave_up(self) -> bool:
        """Whether it is a node's runner that can do too few of the run's tasks to stay."""
        return self._attempts is not None and len(self._attempts.avoided) > config.TASKS_AVOIDED_MAX

    def start(self) -> None:
        """Begin; returns at once."""
        from onefold.compute.tasks.spec import has_python

        row, stored = self._load()
        node = self._host.node if self._host is not None else None
        self._attempts = Attempts(self._client, self._results, self.run, row, stored, node)
        self._began = time.monotonic(), row.done
        python = any(has_python(stage) for stage in stored.stages)
        slots = self._workers if python else min(_INLINE_SLOTS, self._workers)
        # Nobody else in this process works on the run: what an earlier runner of it was working on is nobody's.
        self._keeper.observe(lost_after_s=0)
        self._slots_left = slots
        if slots > 1:
            load_for_tasks()
        for number in range(slots):
            self._spawn(self._slot, number, row, stored, python)
        if any(isinstance(stage.output, PartialOutput) for stage in stored.stages):
            # Readers merge with numpy; its import hides behind the first tasks.
            threading.Thread(target=load_numpy, daemon=True).start()
        self._spawn(self._keep)

    def leave(self) -> None:
        """Finish the tasks in progress and claim no more. The run itself stays as it is."""
        self._leaving.set()

    def stop(self) -> None:
        """Give claims back and end the workers. The run itself stays as it is."""
        self._stopping.set()
        self._over.set()
        with self._lock:
            executors = list(self._executors)
        for executor in executors:
            executor.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait until its threads have ended, up to ``timeout`` seconds."""
        deadline = Deadline.after(timeout)
        for thread in self._threads:
            if thread is not threading.current_thread():
                left_s = deadline.left_s
                thread.join(None if left_s is None else max(0.0, left_s))

    # -- slots ------------------------------------------------------------------------------------------------------

    def _spawn(self, target: object, *args: object) -> None:
        thread = threading.Thread(
            target=self._guarded, args=(target, *args), daemon=True, name=f"onefold {self.run}"
        )
        self._threads.append(thread)
        thread.start()

    def _guarded(self, target: object, *args: object) -> None:
        try:
            target(*args)  # type: ignore[operator]
        except BaseException as error:  # kept for the callers that wait for the run
            if self.error is None and not self._stopping.is_set():
                self.error = self._as_ours(error)
            self._stopping.set()
            self._over.set()

    def _as_ours(self, error: BaseException) -> BaseException:
        """The error for callers that wait: it says that the work has stopped, and how to continue."""
        if isinstance(error, Unavailable):
            reason = str(error).rstrip(".")
        elif isinstance(error, OSError) and not isinstance(error, OnefoldError):
            reason = of_machine(error)
        elif isinstance(error, OnefoldError):
            return error
        else:  # of a library, or a defect of ours
            reason = one_line(error)
        ours = Unavailable(
            f"the work on run {self.run} has stopped: {reason}. "
            f"Then continue with db.open_run({self.run!r}).resume(), or run the program again; finished tasks are kept."
        )
        ours.__cause__ = error
        return ours

    def _load(self) -> tuple[RunRow, StoredJob]:
        with self._client.shard.view() as view:
            row = state.read_run(view, self.run)
        if row is None:
            raise InvalidArgument(f"there is no run {self.run!r}")
        return row, self._client.stored(row.plan)

    def _slot(self, number: int, row: RunRow, stored: StoredJob, python: bool) -> None:
        from onefold.compute.tasks.executor import InlineExecutor, ProcessExecutor

        client = self._client
        inline = InlineExecutor(stored.stages, client.blobs)
        process: ProcessExecutor | None = None
        if python:
            threads = max(1, cores() // self._workers)
            process = ProcessExecutor(
                client.blobs.get(row.plan), client.blobs, threads=threads, code=client.code
            )
            with self._lock:
                self._executors.append(process)
        report: list[ops.Operation] = []
        try:
            self._claim_and_perform(number, inline, process, report)
        finally:
            with self._lock:
                if process is not None:
                    self._executors.remove(process)
            if process is not None:
                process.close()
            if report:
                self._garbage.keep_named(report, client.submit(*report))
        self._finish()
        with self._lock:
            self._slots_left -= 1
            if self._slots_left == 0:
                self._over.set()

    def _claim_and_perform(
        self, number: int, inline: Executor, process: Executor | None, report: list[ops.Operation]
    ) -> None:
        """Work until the run has ended or is to be left. ``report``: what has not been reported to the log yet."""
        assert self._attempts is not None
        worker = f"{self._client.shard.member}/{number}"
        slow: ClaimKey | None = None
        while self._is_working:
            if not self._take_slot(report):
                continue
            try:
                claim = ops.Claim(
                    self.run, worker, 1, slow or self._keeper.prefix_holder(worker), self._attempts.avoided
                )
                outcomes = self._submit(report, claim)
                _check(report, outcomes)
                sent, report[:] = tuple(report), ()
                reopened = self._garbage.keep_named(sent, outcomes)
                answer = outcomes[-1]
                if isinstance(answer, ops.Accepted) and answer.assignments:
                    (assignment,) = answer.assignments
                    slow = None
                    report += self._perform(number, assignment, inline, process)
                    continue
            finally:
                self._give_slot_back()
            if reopened:
                continue  # the answer is older: the run may have been done before a task of it was reopened
            if isinstance(answer, ops.Refused):
                if claim.backup is None or answer.code not in ("fenced", "already_done", "busy"):
                    break
                self._keeper.refused(claim.backup)
            more, slow = self._wait_for_work(worker)
            if not more:
                break

    def _submit(self, report: list[ops.Operation], claim: ops.Claim) -> list[ops.Accepted | ops.Refused]:
        """Append what was done and the next claim; a result that no record can hold fails its task."""
        try:
            return self._client.submit(*report, claim)
        except TooLarge as error:
            if not any(isinstance(one, ops.Done) for one in report):
                raise
            report[:] = [
                ops.Failed(one.run, one.stage, one.index, one.epoch, failure_of(error, final=True))
                if isinstance(one, ops.Done)
                else one
                for one in report
            ]
            return self._client.submit(*report, claim)

    @property
    def _is_working(self) -> bool:
        return not (self._stopping.is_set() or self._leaving.is_set() or self.gave_up)

    def _take_slot(self, report: list[ops.Operation]) -> bool:
        """Take a slot of the node for one task; others of its runs may be first. What is finished is reported meanwhile."""
        if self._host is None or self._host.slots.take(0):
            return True
        if report:
            outcomes = self._client.submit(*report)
            _check(report, outcomes)
            sent, report[:] = tuple(report), ()
            self._garbage.keep_named(sent, outcomes)
        return self._host.slots.take(_IDLE_WAIT_S)

    def _give_slot_back(self) -> None:
        if self._host is not None:
            self._host.slots.give_back()

    def _perform(
        self, number: int, assignment: ops.Assignment, inline: Executor, process: Executor | None
    ) -> list[ops.Operation]:
        """Run one assigned task, and keep its lease meanwhile; what is to be reported to the log."""
        assert self._attempts is not None
        held = (assignment.stage, assignment.index, assignment.epoch)
        self._keeper.hold(held)
        started = time.monotonic()
        try:
            outcome = self._attempts.perform(
                assignment,
                inline,
                process,
                lambda rows: self._rows.__setitem__(number, rows),
                self._stopping.is_set,
            )
        finally:
            self._keeper.let_go(held)
            self._rows.pop(number, None)
        if isinstance(outcome[-1], ops.Done):
            self._keeper.took(assignment.stage, time.monotonic() - started)
        elif self._attempts.trouble.is_set():
            self._attempts.trouble.clear()
            self._over.wait(config.NODE_RETRY_S)
        return outcome

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _wait_for_work(self, worker: str) -> tuple[bool, ClaimKey | None]:
        """Wait until there may be something to claim, or a slow claim to back up; (False, None) when the run has ended
        or is to be left."""
        assert self._attempts is not None
        while self._is_working:
            avoided = self._attempts.avoided
            with self._client.shard.view() as view:
                row = state.read_run(view, self.run)
                claimed = {(claim.stage, claim.index) for claim in state.claims(view, self.run)}
                left = sum(
                    1 for task in avoided if task not in claimed and not state.is_done(view, self.run, *task)
                )
                offset = view.offset
            if row is None or row.state != "running":
                break
            ready = [stage for stage in row.stages if stage.state == "ready"]
            in_progress = sum(1 for stage, _ in claimed if row.stages[stage].state == "ready")
            if sum(stage.count - stage.done for stage in ready) > in_progress + left:
                return True, None
            slow = self._keeper.slow_claim(worker)
            if slow is not None:
                return True, slow
            self._client.shard.wait(offset, _IDLE_WAIT_S)
        return False, None

    def _keep(self) -> None:
        """Keep leases until the run has ended or no slot works any more."""
        while not self._over.wait(_KEEP_EVERY_S):
            with self._client.shard.view() as view:
                row = state.read_run(view, self.run)
            if row is None or row.state != "running":
                # A slot may still hang in a task that a backup has finished, in a worker that is stopped, say.
                with self._lock:
                    executors = list(self._executors)
                for executor in executors:
                    executor.close()
                return
            self._keeper.renew()
            self._keeper.observe()

    def _finish(self) -> None:
        """Once the run is done, delete blobs that nothing names any more."""
        with self._client.shard.view() as view:
            row = state.read_run(view, self.run)
        # Where machines share blobs a node does it, later: another one may be about to store what is garbage now.
        if self._client.blobs.shared:
            return
        if row is not None and row.state == "done" and not self._swept.is_set():
            self._swept.set()
            self._garbage.sweep()


def _check(report: Sequence[ops.Operation], outcomes: Sequence[ops.Outcome]) -> None:
    """Raise for a refusal that only a defect can cause; losing a race is none."""
    for operation, outcome in zip(report, outcomes, strict=False):
        if isinstance(outcome, ops.Refused) and outcome.code == "malformed":
            raise OnefoldError(f"the log refused {type(operation).__name__}: {outcome.message}")
