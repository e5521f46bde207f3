"""One attempt of a task in this process: gather its input, have an executor run it, and say what is to be reported to the log."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from onefold import config
from onefold.compute.blobs.store import BlobMissing, BlobsUnavailable
from onefold.compute.execution import from_streams, reachable
from onefold.compute.execution.result_types import ResultTypes
from onefold.compute.jobs import ops, state
from onefold.compute.jobs.read_rows import RunRow
from onefold.compute.jobs.retention import ALL_LETTERS_VERSION
from onefold.compute.plan.stages import Failure, PublishOutput, Result, Stage, TaskInput
from onefold.compute.sources.ranges import StreamsUnavailable
from onefold.compute.submission.submit import decode_inputs
from onefold.compute.tasks.failures import failure_of, is_passing, of_machine
from onefold.errors import OnefoldError
from onefold.shard.fold_version import reach_version

if TYPE_CHECKING:
    from onefold.compute.client import JobClient
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.results.reading import Results
    from onefold.compute.tasks.executor import Executor


class Attempts:
    """Attempts of one run's tasks. Thread-safe.

    ``node``: the name of the node that works on the run, if one does. A node may lack what the submitter has (files, disk,
    the blob store for a while): then it gives the claim back for others and says so, rather than fail the job.
    """

    def __init__(
        self,
        client: JobClient,
        results: Results,
        run: str,
        row: RunRow,
        stored: StoredJob,
        node: str | None,
    ) -> None:
        self._client = client
        self._frames = results
        self._run = run
        self._row = row
        self._stored = stored
        self._node = node
        self._inputs: dict[int, list[TaskInput]] = {}
        self._avoided: set[tuple[int, int]] = set()
        self._lock = threading.Lock()
        self._types = ResultTypes(client, run, stored)
        self.trouble = threading.Event()
        """Set when this machine could not do what others may: wait before the next claim."""

    @property
    def avoided(self) -> tuple[tuple[int, int], ...]:
        """(stage, index) of tasks that this node cannot do."""
        with self._lock:
            return tuple(sorted(self._avoided))

    def perform(
        self,
        assignment: ops.Assignment,
        inline: Executor,
        process: Executor | None,
        on_rows: Callable[[int], None],
        stopping: Callable[[], bool],
    ) -> list[ops.Operation]:
        """Run one assigned task and return what is to be reported to the log."""
        from onefold.compute.tasks.spec import TaskError

        at = (self._run, assignment.stage, assignment.index, assignment.epoch)
        stage = self._stored.stages[assignment.stage]
        try:
            inputs = {need: self._results(need) for need in stage.needs}
            if any(len(inputs[need]) != self._row.stages[need].count for need in stage.needs):
                # An input was lost between the claim and now; the fold has fenced this attempt.
                return [ops.Release(*at)]
            item = self._input(assignment)
            why = reachable.why_not(stage, item) if self._node is not None else None
            if why is not None:
                return self._left_to_others(at, why)
            lost = self._lost(inputs)
            if lost:
                return [*lost, ops.Release(*at)]
            execute = partial(self._execute, stage, item, assignment, inputs, inline, process, on_rows)
            result = self._result(stage, execute, assignment.stage)
        except TaskError as error:
            if stopping():
                return [ops.Release(*at)]
            return [ops.Failed(*at, self._judged(error.failure, assignment))]
        except BlobMissing as error:
            reopened = self._lost_by_name(error.name)
            return [*reopened, ops.Release(*at)] if reopened else self._in_trouble(at, str(error))
        except (BlobsUnavailable, StreamsUnavailable) as error:
            return self._in_trouble(at, str(error))
        except OnefoldError as error:
            if stopping():  # it is closing that the task met, nothing of its own
                return [ops.Release(*at)]
            final = not is_passing(error)
            return [ops.Failed(*at, Failure(message=str(error), kind=type(error).__name__, final=final))]
        except OSError as error:
            if stopping():
                return [ops.Release(*at)]
            if self._node is not None:
                return self._left_to_others(at, of_machine(error))
            return [
                ops.Failed(*at, Failure(message=of_machine(error), kind=type(error).__name__, final=True))
            ]
        except (
            BaseException
        ) as error:  # of Polars, of a library, of ours: the run ends with it, and says what it was
            if stopping():
                return [ops.Release(*at)]
            return [ops.Failed(*at, failure_of(error, final=not is_passing(error)))]
        if len(result.dead) > config.DEAD_LETTERS_KEPT_BEFORE_MAX:
            # Where programs of an earlier release have the space open, the first ones alone are kept, as they fold it.
            with suppress(OnefoldError):
                reach_version(self._client.shard, ALL_LETTERS_VERSION)
        return [ops.Done(*at, result)]

    def _result(self, stage: Stage, execute: Callable[[], Result], index: int) -> Result:
        """What a task of the stage gives, checked. A publication is made here; everything else by ``execute``."""
        publishes = isinstance(self._stored.stages[-1].output, PublishOutput)
        if publishes:
            from onefold.compute.execution import publishing
        if isinstance(stage.output, PublishOutput):
            return publishing.publish_result(
                self._client, self._frames, self._run, stage.output, self._stored
            )
        result = execute()
        self._types.check(index, result)
        if publishes:
            publishing.check_partitions(self._frames, index, result, self._stored)
        return result

    def _execute(
        self,
        stage: Stage,
        item: TaskInput,
        assignment: ops.Assignment,
        inputs: Mapping[int, Sequence[Result]],
        inline: Executor,
        process: Executor | None,
        on_rows: Callable[[int], None],
    ) -> Result:
        from onefold.compute.tasks.spec import TaskSpec, has_python

        self._client.blobs.prefetch(
            result.blob for results in inputs.values() for result in results if result.blob is not None
        )
        spec = TaskSpec(
            stage=stage,
            input=item,
            seed=task_seed(self._row.seed, self._identity(assignment)),
            inputs=inputs,
            isolate=assignment.isolate,
            skip_errors=assignment.skip_errors or self._row.on_error == "skip",
        )
        executor = process if process is not None and (has_python(stage) or assignment.isolate) else inline
        result = from_streams.run(executor, spec, self._client, on_rows)
        if spec.input.partition is not None:  # these rows were counted when they were read from files
            result = msgspec.structs.replace(result, rows_in=0)
        return result

    def _judged(self, failure: Failure, assignment: ops.Assignment) -> Failure:
        """The failure, final with the last attempt when its record is known: there is nothing to isolate any more."""
        if assignment.attempt < self._row.max_attempts or failure.died or failure.location is None:
            return failure
        return msgspec.structs.replace(failure, final=True)

    # -- what this node cannot do

    def _left_to_others(self, at: tuple[str, int, int, int], why: str) -> list[ops.Operation]:
        with self._lock:
            self._avoided.add(at[1:3])
        return [ops.Release(*at), *self._report(why, at[1], at[2])]

    def _in_trouble(self, at: tuple[str, int, int, int], why: str) -> list[ops.Operation]:
        self.trouble.set()
        return [ops.Release(*at), *self._report(why, at[1], at[2])]

    def _report(self, why: str, stage: int, index: int) -> list[ops.Operation]:
        return [] if self._node is None else [ops.Unfit(self._run, self._node, why, stage, index)]

    # -- input

    def _input(self, assignment: ops.Assignment) -> TaskInput:
        with self._lock:
            known = self._inputs.get(assignment.stage)
            if known is None:
                known = decode_inputs(self._client.blobs.get(self._row.stages[assignment.stage].inputs))
                self._inputs[assignment.stage] = known
        return known[assignment.index]

    def _identity(self, assignment: ops.Assignment) -> bytes:
        with self._client.shard.view() as view:
            (task,) = state.read_tasks(
                view, self._run, assignment.stage, assignment.index, assignment.index + 1
            )
        return task.identity

    def _results(self, stage: int) -> list[Result]:
        with self._client.shard.view() as view:
            finished = state.results(view, self._run, stage)
        return [finished[index].result for index in sorted(finished)]

    def _lost(self, inputs: Mapping[int, Sequence[Result]]) -> list[ops.Operation]:
        held = [
            (stage, index, result.blob)
            for stage, results in inputs.items()
            if not isinstance(self._stored.stages[stage].output, PublishOutput)
            for index, result in enumerate(results)
            if result.blob is not None
        ]
        missing = self._client.blobs.missing(blob for _, _, blob in held)
        return [ops.Lost(self._run, stage, index, blob) for stage, index, blob in held if blob in missing]

    def _lost_by_name(self, blob: str) -> list[ops.Operation]:
        return [
            ops.Lost(self._run, stage.index, index, blob)
            for stage in self._stored.stages
            for index, result in enumerate(self._results(stage.index))
            if result.blob == blob
        ]


def task_seed(run_seed: int, identity: bytes) -> int:
    """64 bits that a task's functions get their randomness from: the same for every attempt."""
    digest = hashlib.blake2b(identity + run_seed.to_bytes(16, "big", signed=True), digest_size=8).digest()
    return int.from_bytes(digest, "big")
