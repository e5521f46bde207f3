"""One run while an operation is applied to it: how its tasks move, and what follows for its stages.

A task is *open* (in a queue), *claimed* (one or two claims in force) or *done* (it has a result). Whatever
moves it goes through here, so that queue, claims, counters and the change sequence always agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from onefold import config
from onefold.compute.jobs import rows
from onefold.compute.jobs.ops import Assignment
from onefold.compute.jobs.retention import Retention
from onefold.compute.jobs.rows import (
    ClaimState,
    ErrorState,
    Known,
    RunError,
    RunState,
    StageState,
    TableState,
    TaskState,
    Tries,
    decode,
    encode,
    name_key,
)
from onefold.compute.plan.stages import Failure, Result
from onefold.fold.api import Context, Store, prefix_stop
from onefold.invariants import invariant

_CONTENT_MASK = (1 << 128) - 1


def token_of(identity: bytes, result: Result) -> bytes:
    """Digest of what a task gave: differs when a second execution gave something else."""
    content = b"b" + result.blob.encode() if result.blob is not None else b"i" + (result.inline or b"")
    return hashlib.blake2b(identity + content, digest_size=16).digest()


def add_token(content: bytes, new: bytes, old: bytes = b"") -> bytes:
    """The stage content with ``new`` in it instead of ``old``."""
    total = int.from_bytes(content, "big") + int.from_bytes(new, "big") - int.from_bytes(old, "big")
    return (total & _CONTENT_MASK).to_bytes(16, "big")


class RunEdit:
    """A run's row in memory; ``save`` writes it back. Nothing here refuses: the fold has checked before."""

    def __init__(self, store: Store, context: Context, run: str, state: RunState) -> None:
        self.store = store
        self.context = context
        self.run = run
        self.state = state
        self.retention = Retention(store, context.offset)

    @classmethod
    def load(cls, store: Store, context: Context, run: str) -> RunEdit | None:
        """The run, or None when there is no such run."""
        data = store.get(rows.RUN, name_key(run))
        return cls(store, context, run, decode(data, RunState)) if data is not None else None

    def save(self) -> None:
        """Write the run's row."""
        self.state.updated_ms = self.context.now_ms
        self.store.put(rows.RUN, name_key(self.run), encode(self.state))

    def table(self) -> TableState:
        """The run's table."""
        return decode(self.store.get(rows.TABLE, name_key(self.state.table)) or b"", TableState)

    def save_table(self, table: TableState) -> None:
        """Write the table's row."""
        table.updated_ms = self.context.now_ms
        self.store.put(rows.TABLE, name_key(self.state.table), encode(table))

    # -- stages ----------------------------------------------------------------------------------------------

    def complete(self, stage: int) -> bool:
        """Whether all tasks of a stage are done."""
        row = self.state.stages[stage]
        return row.done == row.count

    def dependents(self, stage: int) -> list[int]:
        """The stages that read this one's results."""
        return [later for later, row in enumerate(self.state.stages) if stage in row.needs]

    def ready(self) -> list[int]:
        """Stages whose open tasks may be claimed: somebody needs them, and what they need is complete."""
        needed = needed_stages(self.state.stages)
        return [
            stage
            for stage, row in enumerate(self.state.stages)
            if needed[stage] and row.done < row.count and all(self.complete(need) for need in row.needs)
        ]

    def inputs_digest(self, stage: int) -> bytes:
        """Says which data the tasks of a stage read; empty for a stage that needs no other."""
        return inputs_digest(self.state.stages, stage)

    # -- tasks -----------------------------------------------------------------------------------------------

    def task(self, stage: int, index: int) -> TaskState | None:
        """A task, or None when the run has (or keeps) no such task."""
        if not (0 <= stage < len(self.state.stages) and 0 <= index < self.state.stages[stage].count):
            return None
        data = self.store.get(rows.TASK, rows.task_key(self.run, stage, index))
        return decode(data, TaskState) if data is not None else None

    def put_task(self, stage: int, index: int, task: TaskState) -> None:
        """Write a task's row."""
        self.store.put(rows.TASK, rows.task_key(self.run, stage, index), encode(task))

    def tries(self, stage: int, index: int) -> Tries:
        """A task's failed attempts."""
        data = self.store.get(rows.TRIES, rows.task_key(self.run, stage, index))
        return decode(data, Tries) if data is not None else Tries()

    def claim(self, stage: int, index: int, epoch: int) -> ClaimState | None:
        """A claim in force."""
        data = self.store.get(rows.CLAIM, rows.claim_key(self.run, stage, index, epoch))
        return decode(data, ClaimState) if data is not None else None

    def open_tasks(
        self, count: int, avoid: frozenset[tuple[int, int]] = frozenset()
    ) -> list[tuple[int, int]]:
        """Up to ``count`` claimable tasks that are not in ``avoid``: reopened ones first, each queue by stage and dispatch
        index."""
        found: list[tuple[int, int]] = []
        ready = self.ready()
        for queue in (rows.REOPENED, rows.WAITING):
            for stage in ready:
                first = rows.queue_key(self.run, queue, stage, 0)
                stop = rows.queue_key(self.run, queue, stage + 1, 0)
                keys = self.store.scan(rows.OPEN, first, stop, limit=count - len(found) + len(avoid))
                tasks = [task for task in (rows.task_of(key) for key, _ in keys) if task not in avoid]
                found.extend(tasks[: count - len(found)])
                if len(found) >= count:
                    return found
        return found

    def hand_out(self, stage: int, index: int, task: TaskState, worker: str, *, backup: bool) -> Assignment:
        """Put a claim in force under the task's next epoch."""
        tries = self.tries(stage, index)
        isolate = tries.errors >= self.state.max_attempts or tries.deaths >= config.PROCESS_DEATHS_MAX
        attempt = tries.total + 1
        if not backup:
            self.store.delete(rows.OPEN, rows.queue_key(self.run, task.queue, stage, index))
            if attempt > 1:
                self.state.retried += 1
        row = self.state.stages[stage]
        row.consumed = self.inputs_digest(stage)
        row.held = True
        task.epoch += 1
        task.claims = (*task.claims, task.epoch)
        claim = ClaimState(worker, attempt, isolate, backup, self.context.now_ms)
        self.store.put(rows.CLAIM, rows.claim_key(self.run, stage, index, task.epoch), encode(claim))
        self.put_task(stage, index, task)
        skip = isolate and self.state.on_error == "skip"
        return Assignment(stage, index, task.epoch, attempt, isolate, skip)

    def end_claim(self, stage: int, index: int, task: TaskState, epoch: int) -> None:
        """A claim is over without a result; without another one in force the task is open again."""
        self.store.delete(rows.CLAIM, rows.claim_key(self.run, stage, index, epoch))
        task.claims = tuple(other for other in task.claims if other != epoch)
        if not task.claims:
            self.store.put(rows.OPEN, rows.queue_key(self.run, task.queue, stage, index), b"")
        self.put_task(stage, index, task)

    def end_all_claims(self) -> None:
        """Nobody works on this run any more."""
        key = name_key(self.run)
        claims = [rows.claim_of(found) for found, _ in self.store.scan(rows.CLAIM, key, prefix_stop(key))]
        for stage, index, epoch in claims:
            task = self.task(stage, index)
            if task is not None:
                self.end_claim(stage, index, task, epoch)

    def finish(self, stage: int, index: int, task: TaskState, result: Result, letters_max: int) -> None:
        """The first result of an open task: it counts, and others that work on the task do so for nothing."""
        row = self.state.stages[stage]
        for epoch in task.claims:
            self.store.delete(rows.CLAIM, rows.claim_key(self.run, stage, index, epoch))
        if not task.claims:
            self.store.delete(rows.OPEN, rows.queue_key(self.run, task.queue, stage, index))
        before, token = task.token, token_of(task.identity, result)
        task.claims = ()
        task.queue = rows.WAITING
        task.result = rows.result_id(self.context.offset, self.context.index)
        task.token, task.reused = token, False
        task.rows_in, task.bytes_in, task.dead = result.rows_in, result.bytes_in, len(result.dead)
        self.retention.keep_result(task.result, result, letters_max)
        known = Known(task.result, token, row.consumed, task.dead)
        key = name_key(self.state.table) + rows.known_as(task.identity, row.upstream)
        self.store.put(rows.KNOWN, key, encode(known))
        if task.dead:
            self.store.put(rows.DEAD, rows.task_key(self.run, stage, index), task.result)
        row.done += 1
        invariant(
            row.done <= row.count, "no stage has more results than tasks", run=self.run, stage=stage, row=row
        )
        row.cost_done += task.cost
        row.rows_in += task.rows_in
        row.bytes_in += task.bytes_in
        row.content = add_token(row.content, token, before)
        self.state.dead += task.dead
        self.record_change(stage, index, task)
        self.put_task(stage, index, task)
        if before and before != token:
            for dependent in self.dependents(stage):
                self.restart_stage(dependent)
        self.check_dependents(stage)

    def reopen(self, stage: int, index: int, task: TaskState) -> None:
        """A done task has to run again. What was claimed before may not finish it, nor what reads its result.

        (A reader may have looked while the result was not there: its own result cannot be trusted.)
        """
        row = self.state.stages[stage]
        self.retention.drop_result(self.state.table, task, rows.known_as(task.identity, row.upstream))
        if task.dead:
            self.store.delete(rows.DEAD, rows.task_key(self.run, stage, index))
        row.done -= 1
        invariant(row.done >= 0, "no stage has fewer than no results", run=self.run, stage=stage, row=row)
        row.cost_done -= task.cost
        row.rows_in -= task.rows_in
        row.bytes_in -= task.bytes_in
        row.reused -= task.reused
        self.state.dead -= task.dead
        task.result, task.reused = b"", False
        task.rows_in = task.bytes_in = task.dead = 0
        task.fence = task.epoch + 1
        task.queue = rows.REOPENED
        self.store.put(rows.OPEN, rows.queue_key(self.run, task.queue, stage, index), b"")
        self.record_change(stage, index, task)
        self.put_task(stage, index, task)
        for dependent in self.dependents(stage):
            self.fence_stage(dependent)

    def record_change(self, stage: int, index: int, task: TaskState) -> None:
        """Move the task to the end of the change sequence, in which it stands once."""
        if task.sequence:
            self.store.delete(rows.CHANGE, rows.sequence_key(self.run, task.sequence))
        self.state.changes += 1
        task.sequence = self.state.changes
        self.store.put(rows.CHANGE, rows.sequence_key(self.run, task.sequence), encode((stage, index)))

    # -- inputs that changed ---------------------------------------------------------------------------------

    def check_dependents(self, stage: int) -> None:
        """When a stage is complete: who read something else before (in an earlier run, say) starts again."""
        for dependent in self.dependents(stage):
            row = self.state.stages[dependent]
            complete = all(self.complete(need) for need in row.needs)
            if complete and row.consumed not in (b"", self.inputs_digest(dependent)):
                self.restart_stage(dependent)

    def restart_stage(self, stage: int) -> None:
        """The inputs of a stage have changed: results of the old ones must not meet results of the new.

        Its finished tasks reopen and its running ones are fenced. Their dependents follow if and when the
        second execution gives something else.
        """
        row = self.state.stages[stage]
        if not row.consumed:
            return
        self.fence_stage(stage)
        for index, task in self._stage_tasks(stage):
            if task.result:
                self.reopen(stage, index, task)
        row.consumed = b""

    def fence_stage(self, stage: int) -> None:
        """Nothing that was handed out before may finish an open task of this stage, not even when its claim has
        expired: it reads inputs that are not in force any more."""
        row = self.state.stages[stage]
        if not row.held:
            return
        row.held = False
        for index, task in self._stage_tasks(stage):
            if not task.result and task.epoch >= task.fence:
                task.fence = task.epoch + 1
                for epoch in task.claims:
                    self.end_claim(stage, index, task, epoch)
                self.put_task(stage, index, task)

    def _stage_tasks(self, stage: int) -> Iterator[tuple[int, TaskState]]:
        first, stop = rows.stage_range(self.run, stage)
        for key, data in list(self.store.scan(rows.TASK, first, stop)):
            yield rows.task_of(key)[1], decode(data, TaskState)

    # -- the run's state -------------------------------------------------------------------------------------

    def record_failure(self, stage: int, index: int, epoch: int, claim: ClaimState, failure: Failure) -> None:
        """Keep a failed attempt among the latest ones."""
        self.state.errors += 1
        self.state.failed += 1
        error = ErrorState(stage, index, epoch, claim.attempt, claim.worker, self.context.now_ms, failure)
        self.store.put(rows.ERROR, rows.sequence_key(self.run, self.state.errors), encode(error))
        if self.state.errors > config.ERRORS_PER_RUN_KEPT:
            oldest = self.state.errors - config.ERRORS_PER_RUN_KEPT
            self.store.delete(rows.ERROR, rows.sequence_key(self.run, oldest))

    def stop(self, state: str, error: RunError) -> None:
        """The run fails or is cancelled. What is finished stays, what is claimed opens again."""
        self.state.state = state
        self.state.error = error
        self.end_all_claims()

    def settle(self) -> None:
        """Bring the run's state in line: it is done when every stage that nobody reads is complete."""
        last = [stage for stage in range(len(self.state.stages)) if not self.dependents(stage)]
        complete = all(self.complete(stage) for stage in last)
        if complete and self.state.state == "running":
            self.state.state = "done"
            self.end_all_claims()
            table = self.table()
            table.exact = True
            self.retention.retire_others(self.state.table, table)
            table.done = self.run
            self.save_table(table)
        elif not complete and self.state.state == "done":
            self.state.state = "running"
            table = self.table()
            table.exact = False
            table.done = None
            self.save_table(table)


def needed_stages(stages: list[StageState]) -> list[bool]:
    """Which stages have to be complete: those that nobody reads, and what such an incomplete one reads."""
    needed = [True] * len(stages)
    for stage in range(len(stages) - 1, -1, -1):
        readers = [later for later in range(stage + 1, len(stages)) if stage in stages[later].needs]
        if readers:
            needed[stage] = any(
                needed[later] and stages[later].done < stages[later].count for later in readers
            )
    return needed


def inputs_digest(stages: Sequence[StageState], stage: int) -> bytes:
    """Says which data the tasks of a stage read; empty for a stage that needs no other."""
    needs = stages[stage].needs
    if not needs:
        return b""
    return hashlib.blake2b(b"".join(stages[need].content for need in needs), digest_size=16).digest()
