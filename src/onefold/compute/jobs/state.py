"""The read side of the jobs fold: runs, tables, tasks and results (see ``read_rows``), from any view of its store.

A reader that follows a run remembers ``RunRow.changes`` and asks ``changes`` for what moved since: each task
stands in the change sequence once, at its latest change, so a task that comes again *replaces* what it gave
before.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Iterator
from typing import Final, Literal, cast

import msgspec

from onefold import config
from onefold.compute.jobs import rows
from onefold.compute.jobs.edit import needed_stages
from onefold.compute.jobs.read_rows import (
    Change,
    ClaimRow,
    ErrorRow,
    MemberRow,
    RunRow,
    StageRow,
    StageStatus,
    State,
    TableRow,
    TaskResult,
    TaskRow,
    UnfitRow,
)
from onefold.compute.jobs.rows import (
    ClaimState,
    ErrorState,
    MemberState,
    RunSpec,
    RunState,
    StageState,
    TableState,
    TaskState,
    Tries,
    UnfitState,
    decode,
    name_key,
)
from onefold.compute.plan.stages import DeadLetter, Result
from onefold.fold.api import StoreView, prefix_stop

_letters = msgspec.msgpack.Decoder(tuple[DeadLetter, ...])
_place = msgspec.msgpack.Decoder(tuple[int, int])


# -- runs ----------------------------------------------------------------------------------------------------


def read_run(view: StoreView, run_id: str) -> RunRow | None:
    """The run, or None."""
    key = name_key(run_id)
    state_data, spec_data = view.get(rows.RUN, key), view.get(rows.SPEC, key)
    if state_data is None or spec_data is None:
        return None
    return _run_row(run_id, decode(state_data, RunState), decode(spec_data, RunSpec))


def list_runs(view: StoreView, state: str | None = None, table: str | None = None) -> list[RunRow]:
    """All runs that are listed still, in the order in which they were submitted."""
    found: list[RunRow] = []
    for key, data in view.scan(rows.RUN):
        row = decode(data, RunState)
        if (state is None or row.state == state) and (table is None or row.table == table):
            spec = view.get(rows.SPEC, key)
            if spec is not None:
                found.append(_run_row(rows.name_of(key), row, decode(spec, RunSpec)))
    return sorted(found, key=lambda run: (run.created_offset, run.id))


class _RunHead(msgspec.Struct, array_like=True):
    """The first fields of ``RunState``, so that a look at many runs is cheap."""

    table: str
    state: str


def running(view: StoreView) -> list[str]:
    """Ids of the runs that are running."""
    return [
        rows.name_of(key) for key, data in view.scan(rows.RUN) if decode(data, _RunHead).state == "running"
    ]


def _stage_row(index: int, status: StageStatus, stage: StageState, inputs: str) -> StageRow:
    return StageRow(
        index=index,
        state=status,
        count=stage.count,
        done=stage.done,
        reused=stage.reused,
        needs=stage.needs,
        inputs=inputs,
        cost=stage.cost,
        cost_done=stage.cost_done,
        rows=stage.rows_in,
        bytes=stage.bytes_in,
    )


def _run_row(run_id: str, state: RunState, spec: RunSpec) -> RunRow:
    needed = needed_stages(state.stages)
    stages: list[StageRow] = []
    total = cost = 0
    for index, stage in enumerate(state.stages):
        complete = stage.done == stage.count
        status: StageStatus
        if complete:
            status = "done"
        elif not needed[index]:
            status = "skipped"
        elif all(state.stages[need].done == state.stages[need].count for need in stage.needs):
            status = "ready"
        else:
            status = "waiting"
        total += stage.done if status == "skipped" else stage.count
        cost += stage.cost_done if status == "skipped" else stage.cost
        stages.append(_stage_row(index, status, stage, spec.inputs[index]))
    return RunRow(
        id=run_id,
        table=state.table,
        state=cast(State, state.state),
        sink=cast(Literal["table", "parquet"], spec.sink),
        mode=cast(Literal["continue", "replace", "error"], spec.mode),
        version=spec.version,
        digest=spec.digest,
        columns=spec.columns,
        plan=spec.plan,
        explain=spec.explain,
        seed=spec.seed,
        on_error=cast(Literal["fail", "skip"], state.on_error),
        max_attempts=state.max_attempts,
        member=state.member,
        previous=spec.previous,
        kept=state.kept,
        stages=tuple(stages),
        changes=state.changes,
        done=sum(stage.done for stage in stages),
        total=total,
        rows=sum(stage.rows for stage in stages),
        bytes=sum(stage.bytes for stage in stages),
        cost=cost,
        cost_done=sum(stage.cost_done for stage in stages),
        failed=state.failed,
        retried=state.retried,
        reused=sum(stage.reused for stage in stages),
        dead=state.dead,
        created_ms=spec.created_ms,
        updated_ms=state.updated_ms,
        created_offset=spec.created_offset,
        error=state.error,
    )


# -- tables --------------------------------------------------------------------------------------------------


def read_table(view: StoreView, name: str) -> TableRow | None:
    """The table, or None."""
    data = view.get(rows.TABLE, name_key(name))
    return _table_row(name, data) if data is not None else None


def last_run(view: StoreView, table: str) -> RunRow | None:
    """The latest run of a table; None: there is no such table, or no run."""
    row = read_table(view, table)
    return None if row is None else read_run(view, row.head)


def reservation(view: StoreView, name: str) -> int:
    """The reservation of a table's name for a live job; 0: there is none."""
    data = view.get(rows.RESERVED, name_key(name))
    return 0 if data is None else decode(data, int)


def list_tables(view: StoreView) -> list[TableRow]:
    """All tables, by name."""
    return [_table_row(rows.name_of(key), data) for key, data in view.scan(rows.TABLE)]


def _table_row(name: str, data: bytes) -> TableRow:
    table = decode(data, TableState)
    return TableRow(
        name=name,
        head=table.head,
        exact=table.exact,
        done=table.done,
        sink=cast(Literal["table", "parquet"], table.sink),
        columns=table.columns,
        live=tuple(table.live),
        past=tuple(table.past),
        updated_ms=table.updated_ms,
    )


# -- tasks and results ---------------------------------------------------------------------------------------


def read_tasks(
    view: StoreView, run: str, stage: int, start: int = 0, stop: int | None = None
) -> list[TaskRow]:
    """Tasks ``start <= index < stop`` of a stage, by index; none when the run keeps no tasks."""
    return [
        TaskRow(
            stage=stage,
            index=index,
            identity=task.identity,
            state="done" if task.result else "claimed" if task.claims else "open",
            epoch=task.epoch,
            fence=task.fence,
            claims=task.claims,
            reused=task.reused,
            cost=task.cost,
            rows=task.rows_in,
            dead=task.dead,
            sequence=task.sequence,
        )
        for index, task in _tasks(view, run, stage, start, stop)
    ]


def is_done(view: StoreView, run: str, stage: int, index: int) -> bool:
    """Whether a task has a result now."""
    return any(task.result for _, task in _tasks(view, run, stage, index, index + 1))


def results(view: StoreView, run: str, stage: int) -> dict[int, TaskResult]:
    """The finished tasks of a stage, by dispatch index. Reads all of them; ``changes`` reads what is new."""
    finished = [(index, task) for index, task in _tasks(view, run, stage) if task.result]
    stored = view.get_many(rows.RESULT, {task.result for _, task in finished})
    return {
        index: TaskResult(decode(stored[task.result], Result), task.reused, task.sequence)
        for index, task in finished
    }


def results_by_id(view: StoreView, names: Iterable[bytes]) -> dict[bytes, Result]:
    """Results by their ids; those that are kept."""
    return {name: decode(data, Result) for name, data in view.get_many(rows.RESULT, names).items()}


def changes(view: StoreView, run: str, after: int = 0, limit: int | None = None) -> list[Change]:
    """What became of tasks after sequence number ``after``, in order; at most ``limit`` of it.

    Remember the last ``sequence`` and continue from there. A task stands here once, at its latest change.
    """
    key = name_key(run)
    after = max(after, 0)
    places = [
        (rows.sequence_of(found), _place.decode(data))
        for found, data in view.scan(
            rows.CHANGE, rows.sequence_key(run, after + 1), prefix_stop(key), limit=limit
        )
    ]
    task_keys = {rows.task_key(run, *place): place for _, place in places}
    tasks = {
        task_keys[found]: decode(data, TaskState)
        for found, data in view.get_many(rows.TASK, task_keys).items()
    }
    stored = view.get_many(rows.RESULT, {task.result for task in tasks.values() if task.result})
    return [
        Change(
            sequence=sequence,
            stage=place[0],
            index=place[1],
            result=decode(stored[tasks[place].result], Result) if tasks[place].result else None,
            reused=tasks[place].reused,
        )
        for sequence, place in places
    ]


def _tasks(
    view: StoreView, run: str, stage: int, start: int = 0, stop: int | None = None
) -> Iterator[tuple[int, TaskState]]:
    first, last = rows.stage_range(run, stage, start, stop)
    for key, data in view.scan(rows.TASK, first, last):
        yield rows.task_of(key)[1], decode(data, TaskState)


# -- work in progress ----------------------------------------------------------------------------------------


def claims(view: StoreView, run: str) -> list[ClaimRow]:
    """The claims in force, by stage, index and epoch. A task has at most two: the second one is a backup."""
    key = name_key(run)
    found: list[ClaimRow] = []
    for claim_key, data in view.scan(rows.CLAIM, key, prefix_stop(key)):
        stage, index, epoch = rows.claim_of(claim_key)
        claim = decode(data, ClaimState)
        found.append(
            ClaimRow(
                stage, index, epoch, claim.worker, claim.attempt, claim.isolate, claim.backup, claim.since_ms
            )
        )
    return found


def tries(view: StoreView, run: str) -> dict[tuple[int, int], int]:
    """Failed attempts of each (stage, index) that had one since the submission or the last resume."""
    key = name_key(run)
    return {
        rows.task_of(found): decode(data, Tries).total
        for found, data in view.scan(rows.TRIES, key, prefix_stop(key))
    }


def errors(
    view: StoreView, run: str, limit: int = config.ERRORS_PER_RUN_KEPT, *, all_letters: bool = False
) -> list[ErrorRow]:
    """The latest failed attempts, oldest first, then the dead letters of finished tasks by stage and index;
    at most ``limit`` of each, or all letters."""
    key = name_key(run)
    stop = prefix_stop(key)
    latest = view.scan(rows.ERROR, key, stop, limit=limit, reverse=True) if limit else ()
    failed = [decode(data, ErrorState) for _, data in latest]
    found = [
        ErrorRow("failed", one.stage, one.index, one.attempt, one.worker, one.at_ms, one.failure, None)
        for one in reversed(failed)
    ]
    left = sys.maxsize if all_letters else limit
    for dead_key, result_id in view.scan(rows.DEAD, key, stop):
        if left <= 0:
            break
        stage, index = rows.task_of(dead_key)
        data = view.get(rows.LETTERS, result_id)
        letters = _letters.decode(data)[:left] if data is not None else ()
        left -= len(letters)
        found.extend(ErrorRow("dead", stage, index, 0, "", 0, None, letter) for letter in letters)
    return found


ANNOUNCED: Final = "\x01types "
"""What the names of announcements (see ``compute.execution.result_types``) begin with; no node has such a name."""


def unfit(view: StoreView, run: str) -> list[UnfitRow]:
    """What nodes said of why they do not work on the run, by node."""
    prefix = name_key(run)
    return [
        _unfit_row(key[len(prefix) :].decode(), data)
        for key, data in view.scan(rows.UNFIT, prefix, prefix_stop(prefix))
        if not key.startswith(prefix + ANNOUNCED.encode())
    ]


def announced(view: StoreView, run: str, but: Container[str] = ()) -> tuple[frozenset[str], list[UnfitRow]]:
    """(names of the announcements of a run's result types, those whose names are not in ``but``)."""
    prefix = name_key(run)
    begin = prefix + ANNOUNCED.encode()
    names: list[str] = []
    new: list[UnfitRow] = []
    for key, data in view.scan(rows.UNFIT, begin, prefix_stop(begin)):
        names.append(key[len(prefix) :].decode())
        if names[-1] not in but:
            new.append(_unfit_row(names[-1], data))
    return frozenset(names), new


def _unfit_row(name: str, data: bytes) -> UnfitRow:
    row = decode(data, UnfitState)
    return UnfitRow(name, row.reason, row.stage, row.index, row.at_ms)


def members(view: StoreView) -> dict[str, MemberRow]:
    """The processes that renewed, by name."""
    found: dict[str, MemberRow] = {}
    for key, data in view.scan(rows.MEMBER):
        row = decode(data, MemberState)
        found[key.decode()] = MemberRow(key.decode(), row.renewals, row.offset, row.at_ms)
    return found


def named(view: StoreView, blobs: Iterable[str]) -> frozenset[str]:
    """Those of the blobs that results or runs name."""
    return frozenset(blob for blob in blobs if view.get(rows.BLOB, blob.encode()) is not None)


def garbage(view: StoreView, before: int | None = None) -> dict[str, int]:
    """Blobs that nothing names -> the offset since which that is so (only those below offset ``before``).

    ``compute.blobs.sweeping`` says how they are removed.
    """
    found = {key.decode(): decode(data, int) for key, data in view.scan(rows.GARBAGE)}
    return found if before is None else {blob: at for blob, at in found.items() if at < before}
