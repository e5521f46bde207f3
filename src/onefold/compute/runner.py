"""The runner: the threads of one process that work on one run.

Each slot claims a task, has an executor run it and appends its result together with the next claim, so a task costs one
append. A thread keeps leases (see ``keeper``). All decisions are
the fold's: a runner that is killed anywhere leaves nothing that another one cannot go on from.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import msgspec

from onefold.compute import arguments, publishing
from onefold.compute.blobs import BlobMissing
from onefold.compute.failures import of_machine
from onefold.compute.jobs import ops, state
from onefold.compute.keeper import ClaimKey, Keeper
from onefold.compute.stages import Failure, PartialOutput, PublishOutput, Result, TaskInput
from onefold.compute.submission import decode_inputs
from onefold.errors import InvalidArgument, OnefoldError, Unavailable

if TYPE_CHECKING:
    from onefold.compute.engine import Engine
    from onefold.compute.executor import Executor
    from onefold.compute.submission import StoredJob

_INLINE_SLOTS = 2
"""Tasks at once where Polars' own threads do the work: while one waits for the disk, the other computes."""
_IDLE_WAIT_S = 0.5
_KEEP_EVERY_S = 1.0


def default_workers() -> int:
    """Cores that this process may use, or ONEFOLD_WORKERS."""
    asked = os.environ.get("ONEFOLD_WORKERS")
    if asked:
        if not (asked.isascii() and asked.isdigit() and int(asked)):
            raise InvalidArgument(f"ONEFOLD_WORKERS must be a whole number of 1 or more; it is {asked!r}")
        return int(asked)
    return cores()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def worker_count(asked: int | None) -> int:
    """The number asked for, else the default. Raises InvalidArgument."""
    if asked is None:
        return default_workers()
    arguments.whole("workers", asked, at_least=0)
    return asked


class Runner:
    """Works on one run in this process until the run has ended or ``stop`` is called."""

    def __init__(self, engine: Engine, run: str, workers: int | None) -> None:
        self._engine = engine
        self.run = run
        self._workers = worker_count(workers)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._executors: list[Executor] = []
        self._lock = threading.Lock()
        self._inputs: dict[int, list[TaskInput]] = {}
        self._keeper = Keeper(engine, run)
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

    def start(self) -> None:
        """Begin; returns at once."""
        from onefold.compute.tasks import has_python

        row, stored = self._load()
        self._began = time.monotonic(), row.done
        python = any(has_python(stage) for stage in stored.stages)
        slots = self._workers if python else min(_INLINE_SLOTS, self._workers)
        # Nobody else in this process works on the run: what an earlier runner of it had in hand is nobody's.
        self._keeper.observe(lost_after_s=0)
        self._slots_left = slots
        for number in range(slots):
            self._spawn(self._slot, number, stored, python)
        if any(isinstance(stage.output, PartialOutput) for stage in stored.stages):
            # Readers merge with numpy; its import hides behind the first tasks.
            threading.Thread(target=import_module, args=("numpy",), daemon=True).start()
        self._spawn(self._keep)

    def stop(self) -> None:
        """Give claims back and end the workers. The run itself stays as it is."""
        self._stopping.set()
        self._over.set()
        with self._lock:
            executors = list(self._executors)
        for executor in executors:
            executor.close()

    def join(self) -> None:
        """Wait until its threads have ended."""
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

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
        except BaseException as error:  # kept for whoever waits for the run
            if self.error is None and not self._stopping.is_set():
                self.error = self._told(error)
            self._stopping.set()
            self._over.set()

    def _told(self, error: BaseException) -> BaseException:
        if isinstance(error, Unavailable):
            reason = str(error).rstrip(".")
        elif isinstance(error, OSError) and not isinstance(error, OnefoldError):
            reason = of_machine(error)
        else:
            return error
        told = Unavailable(
            f"the work on run {self.run} has stopped: {reason}. "
            f"Then go on with db.open_run({self.run!r}).resume(), or run the program again; finished tasks are kept."
        )
        told.__cause__ = error
        return told

    def _load(self) -> tuple[state.RunRow, StoredJob]:
        with self._engine.space.view() as view:
            row = state.read_run(view, self.run)
        if row is None:
            raise InvalidArgument(f"there is no run {self.run!r}")
        return row, self._engine.stored(row.plan)

    def _slot(self, number: int, stored: StoredJob, python: bool) -> None:
        from onefold.compute.executor import InlineExecutor, ProcessExecutor

        row, _ = self._load()
        worker = f"{self._engine.space.member}/{number}"
        inline = InlineExecutor(stored.stages, self._engine.blobs)
        process: Executor | None = None
        if python:
            process = ProcessExecutor(
                self._engine.blobs.get(row.plan),
                self._engine.blobs.directory,
                threads=max(1, cores() // self._workers),
            )
            with self._lock:
                self._executors.append(process)
        report: list[ops.Operation] = []
        slow: ClaimKey | None = None
        try:
            while not self._stopping.is_set():
                claim = ops.Claim(self.run, worker, 1, slow or self._keeper.prefix_holder(worker))
                outcomes = self._engine.submit(*report, claim)
                _check(report, outcomes)
                report = []
                answer = outcomes[-1]
                if isinstance(answer, ops.Accepted) and answer.assignments:
                    (assignment,) = answer.assignments
                    slow = None
                    report = self._perform(number, assignment, row, stored, inline, process)
                    continue
                if isinstance(answer, ops.Refused):
                    if claim.backup is None or answer.code not in ("fenced", "already_done", "busy"):
                        break
                    self._keeper.refused(claim.backup)
                more, slow = self._wait_for_work(worker)
                if not more:
                    break
        finally:
            with self._lock:
                if process is not None:
                    self._executors.remove(process)
            if process is not None:
                process.close()
            if report:
                self._engine.submit(*report)
        self._finish()
        with self._lock:
            self._slots_left -= 1
            if self._slots_left == 0:
                self._over.set()

    def _perform(
        self,
        number: int,
        assignment: ops.Assignment,
        row: state.RunRow,
        stored: StoredJob,
        inline: Executor,
        process: Executor | None,
    ) -> list[ops.Operation]:
        """Run one assigned task and return what the log is to be told."""
        from onefold.compute.tasks import TaskError, TaskSpec, has_python

        at = (self.run, assignment.stage, assignment.index, assignment.epoch)
        held = at[1:]
        stage = stored.stages[assignment.stage]
        self._keeper.hold(held)
        started = time.monotonic()
        try:
            inputs = {need: self._results(need) for need in stage.needs}
            if any(len(inputs[need]) != row.stages[need].count for need in stage.needs):
                # An input was lost between the claim and now; the fold has fenced this attempt.
                return [ops.Release(*at)]
            lost = self._lost(stored, inputs)
            if lost:
                return [*lost, ops.Release(*at)]
            if isinstance(stage.output, PublishOutput):
                result = publishing.publish_result(self._engine, self.run, stage.output, stored)
            else:
                spec = TaskSpec(
                    stage=stage,
                    input=self._input(row, assignment),
                    seed=task_seed(row.seed, self._identity(assignment)),
                    inputs=inputs,
                    isolate=assignment.isolate,
                    skip_errors=assignment.skip_errors,
                )
                executor = (
                    process if process is not None and (has_python(stage) or assignment.isolate) else inline
                )
                result = executor.run(spec, lambda rows: self._rows.__setitem__(number, rows))
                if spec.input.partition is not None:  # these rows were counted when they were read from files
                    result = msgspec.structs.replace(result, rows_in=0)
        except TaskError as error:
            if self._stopping.is_set():
                return [ops.Release(*at)]
            return [ops.Failed(*at, error.failure)]
        except BlobMissing as error:
            return [*self._lost_by_name(stored, error.name), ops.Release(*at)]
        except OnefoldError as error:
            if self._stopping.is_set():  # it is closing that the task met, nothing of its own
                return [ops.Release(*at)]
            return [ops.Failed(*at, Failure(message=str(error), kind=type(error).__name__, final=True))]
        except OSError as error:
            if self._stopping.is_set():
                return [ops.Release(*at)]
            return [
                ops.Failed(*at, Failure(message=of_machine(error), kind=type(error).__name__, final=True))
            ]
        finally:
            self._keeper.let_go(held)
            self._rows.pop(number, None)
        self._keeper.took(assignment.stage, time.monotonic() - started)
        return [ops.Done(*at, result)]

    def _input(self, row: state.RunRow, assignment: ops.Assignment) -> TaskInput:
        with self._lock:
            known = self._inputs.get(assignment.stage)
            if known is None:
                known = decode_inputs(self._engine.blobs.get(row.stages[assignment.stage].inputs))
                self._inputs[assignment.stage] = known
        return known[assignment.index]

    def _identity(self, assignment: ops.Assignment) -> bytes:
        with self._engine.space.view() as view:
            (task,) = state.read_tasks(
                view, self.run, assignment.stage, assignment.index, assignment.index + 1
            )
        return task.identity

    def _results(self, stage: int) -> list[Result]:
        with self._engine.space.view() as view:
            finished = state.results(view, self.run, stage)
        return [finished[index].result for index in sorted(finished)]

    def _lost(self, stored: StoredJob, inputs: dict[int, list[Result]]) -> list[ops.Operation]:
        exists = self._engine.blobs.exists
        return [
            ops.Lost(self.run, stage, index, result.blob)
            for stage, results in inputs.items()
            if not isinstance(stored.stages[stage].output, PublishOutput)
            for index, result in enumerate(results)
            if result.blob is not None and not exists(result.blob)
        ]

    def _lost_by_name(self, stored: StoredJob, blob: str) -> list[ops.Operation]:
        return [
            ops.Lost(self.run, stage.index, index, blob)
            for stage in stored.stages
            for index, result in enumerate(self._results(stage.index))
            if result.blob == blob
        ]

    # -- waiting ----------------------------------------------------------------------------------------------------

    def _wait_for_work(self, worker: str) -> tuple[bool, ClaimKey | None]:
        """Wait until there may be something to claim, or a slow claim to back up; (False, None) when the run has ended
        or is to be left."""
        while not self._stopping.is_set():
            with self._engine.space.view() as view:
                row = state.read_run(view, self.run)
                claimed = {(claim.stage, claim.index) for claim in state.claims(view, self.run)}
                offset = view.offset
            if row is None or row.state != "running":
                break
            ready = [stage for stage in row.stages if stage.state == "ready"]
            in_hand = sum(1 for stage, _ in claimed if row.stages[stage].state == "ready")
            if sum(stage.count - stage.done for stage in ready) > in_hand:
                return True, None
            slow = self._keeper.slow_claim(worker)
            if slow is not None:
                return True, slow
            self._engine.space.wait(offset, _IDLE_WAIT_S)
        return False, None

    def _keep(self) -> None:
        """Keep leases until the run has ended or no slot works any more."""
        while not self._over.wait(_KEEP_EVERY_S):
            with self._engine.space.view() as view:
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
        with self._engine.space.view() as view:
            row = state.read_run(view, self.run)
        if row is not None and row.state == "done" and not self._swept.is_set():
            self._swept.set()
            self._engine.sweep()


def _check(report: Sequence[ops.Operation], outcomes: Sequence[ops.Outcome]) -> None:
    """Raise for a refusal that only a defect can cause; losing a race is none."""
    for operation, outcome in zip(report, outcomes, strict=False):
        if isinstance(outcome, ops.Refused) and outcome.code == "malformed":
            raise OnefoldError(f"the log refused {type(operation).__name__}: {outcome.message}")


def task_seed(run_seed: int, identity: bytes) -> int:
    """64 bits that a task's functions get their randomness from: the same for every attempt."""
    digest = hashlib.blake2b(identity + run_seed.to_bytes(16, "big", signed=True), digest_size=8).digest()
    return int.from_bytes(digest, "big")
