"""The jobs fold: every decision about a job, made by applying operations in log order.

The life of a task: a Submit makes it (open, or done when the table knows its result), a Claim hands it out
under an epoch, the first Done whose epoch is not below the task's fence finishes it. An expired or released
claim opens it again, a failed one opens it again with one attempt more; Lost reopens a finished one. See
``edit`` for what each move changes, ``submit`` for what a new run takes over, ``retention`` for what is kept,
``state`` for reading.
"""

from __future__ import annotations

import msgspec

from onefold import config
from onefold.codec import decode_anywhere
from onefold.compute.jobs import rows
from onefold.compute.jobs.edit import RunEdit
from onefold.compute.jobs.ops import (
    DROP_VERSION,
    NAMES_VERSION,
    Accepted,
    Assignment,
    Cancel,
    Claim,
    Done,
    DropTable,
    Expire,
    Failed,
    FreeName,
    Lost,
    Operation,
    Outcome,
    Refused,
    Release,
    Renew,
    Reserved,
    ReserveName,
    Resume,
    Submit,
    Swept,
    Unfit,
)
from onefold.compute.jobs.retention import Retention, letters_max
from onefold.compute.jobs.rows import (
    MemberState,
    RunError,
    RunState,
    TableState,
    TaskState,
    UnfitState,
    decode,
    encode,
    name_key,
    node_key,
)
from onefold.compute.jobs.submit import NAME_CHARS_MAX, NUMBER_MAX, submit
from onefold.compute.plan.stages import Failure, Result
from onefold.fold.api import NEWEST_VERSION, Context, Store, prefix_stop

_decoder: msgspec.msgpack.Decoder[Operation] = msgspec.msgpack.Decoder(Operation)


class JobsFold:
    """The state machine of runs, tasks and tables (implements ``onefold.fold.api.Fold``).

    Bodies are msgpack of one of ``onefold.compute.jobs.ops``, outcomes msgpack of ``Accepted | Reserved | Refused``. A
    refused operation writes nothing. An operation costs time in proportion to the tasks that it touches.
    """

    @property
    def name(self) -> str:
        return "jobs"

    @property
    def version(self) -> int:
        return NEWEST_VERSION

    @property
    def history(self) -> frozenset[str]:
        return frozenset()

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        """Apply one operation; see ``onefold.fold.api.Fold.apply``."""
        try:
            operation = decode_anywhere(_decoder.decode, body)
        except (msgspec.MsgspecError, ValueError, OverflowError) as error:
            return encode(Refused("malformed", f"not an operation of the jobs fold: {error}"))
        return encode(self._apply(store, context, operation, body, fold_version))

    def _apply(
        self, store: Store, context: Context, operation: Operation, body: bytes, fold_version: int
    ) -> Outcome:
        match operation:
            case Submit():
                return submit(store, context, operation, body)
            case Renew():
                return self._renew(store, context, operation)
            case DropTable():
                if fold_version < DROP_VERSION:
                    return Refused("malformed", "tables are dropped from a later fold version on")
                return self._drop(store, context, operation)
            case ReserveName() | FreeName():
                if fold_version < NAMES_VERSION:
                    return Refused("malformed", "names are reserved from a later fold version on")
                return self._reserve(store, context, operation)
            case Swept():
                return Accepted(blobs=Retention(store, context.offset).sweep(operation.blobs))
        edit = RunEdit.load(store, context, operation.run)
        if edit is None:
            return Refused("no_such_run", f"there is no run {operation.run[:NAME_CHARS_MAX]!r}")
        match operation:
            case Claim():
                return self._claim(edit, operation)
            case Done():
                return self._done(edit, operation, fold_version)
            case Failed():
                return self._failed(edit, operation)
            case Release() | Expire():
                return self._end(edit, operation)
            case Unfit():
                return self._unfit(edit, operation)
            case Lost():
                return self._lost(edit, operation)
            case Cancel():
                return self._cancel(edit, operation)
            case Resume():
                return self._resume(edit, operation)

    # -- working ---------------------------------------------------------------------------------------------

    def _claim(self, edit: RunEdit, op: Claim) -> Outcome:
        if not op.worker or len(op.worker) > NAME_CHARS_MAX or op.count < 1:
            return Refused("malformed", "a claim names its worker and asks for at least one task")
        if len(op.avoid) > config.TASKS_AVOIDED_MAX:
            return Refused("malformed", f"a worker avoids at most {config.TASKS_AVOIDED_MAX} tasks of a run")
        if edit.state.state != "running":
            return _not_running(edit)
        if op.backup is not None:
            return self._claim_backup(edit, op, op.backup)
        assignments: list[Assignment] = []
        count = min(op.count, config.CLAIMS_PER_OPERATION_MAX)
        for stage, index in edit.open_tasks(count, frozenset(op.avoid)):
            task = edit.task(stage, index)
            if task is not None:
                assignments.append(edit.hand_out(stage, index, task, op.worker, backup=False))
        if assignments:
            edit.save()
        return Accepted(state="running", assignments=tuple(assignments), run=edit.run)

    def _claim_backup(self, edit: RunEdit, op: Claim, backup: tuple[int, int, int]) -> Outcome:
        stage, index, epoch = backup
        task = edit.task(stage, index)
        if task is None:
            return _no_such_task(stage, index)
        if task.result:
            return _already_done(stage, index)
        claim = edit.claim(stage, index, epoch) if epoch in task.claims else None
        if claim is None:
            return _fenced(stage, index, epoch, "that claim is over")
        if len(task.claims) > 1:
            return _fenced(stage, index, epoch, "the task has a backup already")
        if claim.worker == op.worker:
            return _fenced(stage, index, epoch, "a worker is no backup for itself")
        if stage not in edit.ready():
            return _fenced(stage, index, epoch, "its inputs are being made again")
        assignment = edit.hand_out(stage, index, task, op.worker, backup=True)
        edit.save()
        return Accepted(state="running", assignments=(assignment,), run=edit.run)

    def _done(self, edit: RunEdit, op: Done, fold_version: int) -> Outcome:
        wrong = _malformed_result(op.result)
        if wrong is not None:
            return Refused("malformed", wrong)
        task = edit.task(op.stage, op.index)
        if task is None:
            return _no_such_task(op.stage, op.index)
        refusal = self._refuse_done(edit, op, task)
        if refusal is not None:
            return refusal
        edit.finish(op.stage, op.index, task, op.result, letters_max(fold_version))
        edit.settle()
        edit.save()
        return Accepted(state=edit.state.state, run=edit.run)

    def _refuse_done(self, edit: RunEdit, op: Done, task: TaskState) -> Refused | None:
        """Only the first result of an open task counts, and none that was begun before its fence.

        A failed run still takes the results of tasks that were running when it failed: resuming it finds
        them.
        """
        if task.result:
            return _already_done(op.stage, op.index)
        if edit.state.state != "running" and not (
            edit.state.state == "failed" and edit.table().head == edit.run
        ):
            return _not_running(edit)
        if not task.fence <= op.epoch <= task.epoch:
            return _fenced(op.stage, op.index, op.epoch, "the task has been reopened since")
        return None

    def _failed(self, edit: RunEdit, op: Failed) -> Outcome:
        task = edit.task(op.stage, op.index)
        if task is None:
            return _no_such_task(op.stage, op.index)
        claim = edit.claim(op.stage, op.index, op.epoch) if op.epoch in task.claims else None
        if claim is None:
            return _over(edit, task, op.stage, op.index, op.epoch)
        failure = _clipped(op.failure)
        edit.record_failure(op.stage, op.index, op.epoch, claim, failure)
        edit.end_claim(op.stage, op.index, task, op.epoch)
        tries = edit.tries(op.stage, op.index)
        if claim.isolate:
            tries.isolated += 1
        elif failure.died:
            tries.deaths += 1
        else:
            tries.errors += 1
        edit.store.put(rows.TRIES, rows.task_key(edit.run, op.stage, op.index), encode(tries))
        if failure.final or tries.isolated >= edit.state.max_attempts:
            reason = f"task {op.index} of stage {op.stage} failed {tries.total} times: {failure.message}"
            edit.stop("failed", RunError(reason, op.stage, op.index, failure))
        edit.save()
        return Accepted(state=edit.state.state, run=edit.run)

    def _end(self, edit: RunEdit, op: Release | Expire) -> Outcome:
        task = edit.task(op.stage, op.index)
        if task is None:
            return _no_such_task(op.stage, op.index)
        if op.epoch not in task.claims:
            return _over(edit, task, op.stage, op.index, op.epoch)
        edit.end_claim(op.stage, op.index, task, op.epoch)
        edit.save()
        return Accepted(state=edit.state.state, run=edit.run)

    def _lost(self, edit: RunEdit, op: Lost) -> Outcome:
        head = edit.table().head
        if head != edit.run:
            return Refused(
                "conflict", f"run {edit.run} is not the last one of its table any more, run {head} is"
            )
        task = edit.task(op.stage, op.index)
        if task is None:
            return _no_such_task(op.stage, op.index)
        data = edit.store.get(rows.RESULT, task.result) if task.result else None
        if data is None or not op.blob or decode(data, Result).blob != op.blob:
            return _fenced(op.stage, op.index, task.epoch, "its result is not that blob (any more)")
        upstream = edit.state.stages[op.stage].upstream
        edit.retention.forget(edit.state.table, task.result, rows.known_as(task.identity, upstream))
        edit.reopen(op.stage, op.index, task)
        edit.settle()
        edit.save()
        return Accepted(state=edit.state.state, run=edit.run)

    def _unfit(self, edit: RunEdit, op: Unfit) -> Outcome:
        if not op.node or len(op.node) > NAME_CHARS_MAX or "\0" in op.node:
            return Refused("malformed", "a node says its name")
        if not edit.state.kept:
            return _not_running(edit)
        key = node_key(edit.run, op.node)
        if not op.reason:
            edit.store.delete(rows.UNFIT, key)
            return Accepted(state=edit.state.state, run=edit.run)
        prefix = name_key(edit.run)
        if (
            edit.store.get(rows.UNFIT, key) is None
            and edit.store.count(rows.UNFIT, prefix, prefix_stop(prefix)) >= config.MEMBERS_KEPT
        ):
            return Refused("busy", f"what {config.MEMBERS_KEPT} nodes said of run {edit.run} is kept already")
        reason = op.reason[: config.FAILURE_TEXT_CHARS_MAX]
        at_ms = edit.context.now_ms
        edit.store.put(rows.UNFIT, key, encode(UnfitState(reason, op.stage, op.index, at_ms)))
        return Accepted(state=edit.state.state, run=edit.run)

    # -- runs and members ------------------------------------------------------------------------------------

    def _cancel(self, edit: RunEdit, op: Cancel) -> Outcome:
        if edit.state.state == "cancelled":
            return Accepted(state="cancelled", run=edit.run)
        if edit.state.state != "running":
            return _not_running(edit)
        edit.stop("cancelled", RunError(op.reason[: config.FAILURE_TEXT_CHARS_MAX]))
        edit.save()
        return Accepted(state="cancelled", run=edit.run)

    def _drop(self, store: Store, context: Context, op: DropTable) -> Outcome:
        data = store.get(rows.TABLE, name_key(op.table))
        if data is None:
            return Refused("no_table", f"there is no table {op.table[:NAME_CHARS_MAX]!r}")
        table = decode(data, TableState)
        head = decode(store.get(rows.RUN, name_key(table.head)) or b"", RunState)
        if head.state == "running":
            return Refused(
                "running", f"run {table.head} of table {op.table!r} is running: cancel it, or wait for it"
            )
        Retention(store, context.offset).drop_table(op.table, table)
        store.delete(rows.TABLE, name_key(op.table))
        return Accepted()

    def _reserve(self, store: Store, context: Context, op: ReserveName | FreeName) -> Outcome:
        if not op.table or len(op.table) > NAME_CHARS_MAX or "\0" in op.table:
            return Refused("malformed", "a reservation has a table's name")
        key = name_key(op.table)
        data = store.get(rows.RESERVED, key)
        before = None if data is None else decode(data, int)
        if isinstance(op, FreeName):
            if before == op.token:
                store.delete(rows.RESERVED, key)
            return Accepted()
        if store.get(rows.TABLE, key) is not None:
            return Refused("table_exists", f"table {op.table!r} is made by a batch job")
        token = context.offset if before is None else max(context.offset, before + 1)
        store.put(rows.RESERVED, key, encode(token))
        return Reserved(token=token)

    def _resume(self, edit: RunEdit, op: Resume) -> Outcome:
        if not op.member or len(op.member) > NAME_CHARS_MAX:
            return Refused("malformed", "a resume names its member")
        head = edit.table().head
        if head != edit.run:
            return Refused(
                "conflict",
                f"run {edit.run} cannot go on: run {head} has taken over table {edit.state.table!r} since; "
                f"start the job again",
            )
        if edit.state.state == "done":
            return Accepted(state="done", run=edit.run)
        edit.state.member = op.member
        if edit.state.state != "running":
            edit.state.state, edit.state.error = "running", None
            key = name_key(edit.run)
            for table in (rows.TRIES, rows.UNFIT):
                edit.store.delete_range(table, key, prefix_stop(key))
            edit.settle()
        edit.save()
        return Accepted(state=edit.state.state, run=edit.run)

    def _renew(self, store: Store, context: Context, op: Renew) -> Outcome:
        if not op.member or len(op.member) > NAME_CHARS_MAX:
            return Refused("malformed", "a renewal names its member")
        key = op.member.encode()
        before = store.get(rows.MEMBER, key)
        if before is None:
            members = [(decode(data, MemberState).offset, name) for name, data in store.scan(rows.MEMBER)]
            if len(members) >= config.MEMBERS_KEPT:
                store.delete(rows.MEMBER, min(members)[1])
        renewals = decode(before, MemberState).renewals if before is not None else 0
        store.put(rows.MEMBER, key, encode(MemberState(renewals + 1, context.offset, context.now_ms)))
        return Accepted()


def _malformed_result(result: Result) -> str | None:
    numbers = (result.rows_in, result.bytes_in, result.rows_out, result.elapsed_ms)
    if any(not 0 <= number < NUMBER_MAX for number in numbers):
        return "a result's counts are negative or absurd"
    if result.blob == "" or (result.blob is not None and result.inline is not None):
        return "a result is inline or a named blob, not both"
    return None


def _clipped(failure: Failure) -> Failure:
    limit = config.FAILURE_TEXT_CHARS_MAX
    return msgspec.structs.replace(
        failure,
        message=failure.message[:limit],
        traceback=failure.traceback[-limit:],
        record=failure.record[:limit] if failure.record is not None else None,
        location=failure.location[:limit] if failure.location is not None else None,
        kind=failure.kind[:limit],
    )


def _not_running(edit: RunEdit) -> Refused:
    return Refused("not_running", f"run {edit.run} is {edit.state.state}")


def _no_such_task(stage: int, index: int) -> Refused:
    return Refused("no_such_task", f"the run has (or keeps) no task {index} in stage {stage}")


def _already_done(stage: int, index: int) -> Refused:
    return Refused("already_done", f"task {index} of stage {stage} is done")


def _fenced(stage: int, index: int, epoch: int, why: str) -> Refused:
    return Refused("fenced", f"task {index} of stage {stage}, epoch {epoch}: {why}")


def _over(edit: RunEdit, task: TaskState, stage: int, index: int, epoch: int) -> Refused:
    """Why a claim that is not in force can do nothing."""
    if task.result:
        return _already_done(stage, index)
    if edit.state.state != "running":
        return _not_running(edit)
    return _fenced(stage, index, epoch, "that claim is over")
