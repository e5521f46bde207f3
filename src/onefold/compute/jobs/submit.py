"""A new run: whether its table takes it, and which of its tasks have been done before."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from onefold import config
from onefold.compute.jobs import rows
from onefold.compute.jobs.edit import RunEdit, inputs_digest
from onefold.compute.jobs.ops import Accepted, Outcome, Refused, Submit
from onefold.compute.jobs.retention import Retention
from onefold.compute.jobs.rows import (
    Known,
    RunError,
    RunSpec,
    RunState,
    StageState,
    TableState,
    TaskState,
    decode,
    encode,
    name_key,
)
from onefold.fold.api import Context, Store, StoreView, prefix_stop

NAME_CHARS_MAX = 512
NUMBER_MAX = 1 << 45
"""Sizes, costs and counts of one task stay below this, so that no sum of them leaves 64 bits."""
IDENTITY_BYTES = 16


def malformed(op: Submit) -> str | None:
    """What is wrong with a submission in itself, or None."""
    for name, value in (("run", op.run), ("table", op.table), ("member", op.member)):
        if not value or len(value) > NAME_CHARS_MAX or "\0" in value:
            return (
                f"{name} {value[:40]!r} has to be 1 to {NAME_CHARS_MAX} characters without a zero character"
            )
    if not 1 <= len(op.stages) <= config.JOB_STAGES_MAX:
        return f"a run has 1 to {config.JOB_STAGES_MAX} stages; this one has {len(op.stages)}"
    if not 1 <= op.max_attempts <= 1000:
        return f"max_attempts has to be 1 to 1000; it is {op.max_attempts}"
    if sum(len(stage.tasks) for stage in op.stages) > config.TASKS_PER_JOB_MAX:
        return f"a run has at most {config.TASKS_PER_JOB_MAX} tasks"
    for number, stage in enumerate(op.stages):
        if any(len(identity) != IDENTITY_BYTES for identity in stage.tasks):
            return f"stage {number}: a task identity has {IDENTITY_BYTES} bytes"
        if list(stage.needs) != sorted(set(stage.needs)) or any(
            not 0 <= need < number for need in stage.needs
        ):
            return f"stage {number}: needs {stage.needs} has to be sorted and to name earlier stages"
        if stage.costs and len(stage.costs) != len(stage.tasks):
            return f"stage {number}: {len(stage.costs)} costs for {len(stage.tasks)} tasks"
        if any(not 0 <= cost < NUMBER_MAX for cost in stage.costs):
            return f"stage {number}: a cost is negative or absurd"
    return None


def submit(store: Store, context: Context, op: Submit, body: bytes) -> Outcome:
    """Make the run, join an equal one that is running, or refuse."""
    wrong = malformed(op)
    if wrong is not None:
        return Refused("malformed", wrong)
    submission = hashlib.blake2b(body, digest_size=16).digest()
    known_run = store.get(rows.SPEC, name_key(op.run))
    if known_run is not None:
        if decode(known_run, RunSpec).submission == submission:
            state = decode(store.get(rows.RUN, name_key(op.run)) or b"", RunState)
            return Accepted(state=state.state, run=op.run)
        return Refused("exists", f"there is another run {op.run!r}; choose a new run id")
    lineages = _lineages(op)
    stored = store.get(rows.TABLE, name_key(op.table))
    if stored is None and store.get(rows.RESERVED, name_key(op.table)) is not None:
        return Refused("reserved", f"table {op.table!r} is made by a live job")
    table = decode(stored, TableState) if stored is not None else None
    if table is not None:
        answer = _check(store, context, op, table, lineages)
        if answer is not None:
            return answer
        table = decode(store.get(rows.TABLE, name_key(op.table)) or b"", TableState)
    return _make(store, context, op, table, lineages, submission)


def _check(
    store: Store, context: Context, op: Submit, table: TableState, lineages: tuple[bytes, ...]
) -> Outcome | None:
    """Refuse, join, or None to continue (with the running head cancelled when it is to be superseded)."""
    if op.mode == "error":
        return Refused(
            "table_exists",
            f'table {op.table!r} exists; use mode="continue" to add to it or mode="replace" to make it anew',
        )
    head = RunEdit.load(store, context, table.head)
    running = head is not None and head.state.state == "running"
    if running and not op.supersede and _equal(store, op, table.head, lineages):
        return Accepted(state="running", run=table.head)
    different = op.columns is not None and table.columns is not None and op.columns != table.columns
    if op.mode == "continue" and different:
        return Refused(
            "different_columns",
            f"table {op.table!r} has the columns {_names(table.columns)}, "
            f"this job gives {_names(op.columns)}; "
            f'use mode="replace" to make the table anew, or another table name',
        )
    if op.expect != table.head and not (op.mode == "replace" and op.expect is None):
        return Refused(
            "conflict",
            f"table {op.table!r} was last submitted by run {table.head}, not by {op.expect}; "
            f"prepare the run again",
        )
    if running and head is not None:
        if not op.supersede:
            return Refused(
                "busy",
                f"table {op.table!r} is being made by run {table.head}; wait for it, cancel it, "
                f"or use another table name",
            )
        head.stop("cancelled", RunError(f"superseded by run {op.run}"))
        head.save()
    return None


def _equal(store: Store, op: Submit, run: str, lineages: tuple[bytes, ...]) -> bool:
    """Whether a running run computes exactly what is submitted (in whatever order)."""
    spec = decode(store.get(rows.SPEC, name_key(run)) or b"", RunSpec)
    return (
        (spec.version, spec.digest, spec.sink, spec.lineages) == (op.version, op.digest, op.sink, lineages)
        and op.mode in (spec.mode, "continue")
    )  # fmt: skip


def _make(
    store: Store,
    context: Context,
    op: Submit,
    table: TableState | None,
    lineages: tuple[bytes, ...],
    submission: bytes,
) -> Outcome:
    retention = Retention(store, context.offset)
    spec = RunSpec(
        table=op.table,
        sink=op.sink,
        mode=op.mode,
        version=op.version,
        digest=op.digest,
        columns=op.columns,
        plan=op.plan,
        seed=op.seed,
        explain=op.explain,
        inputs=tuple(stage.inputs for stage in op.stages),
        lineages=lineages,
        previous=table.head if table is not None else None,
        submission=submission,
        created_ms=context.now_ms,
        created_offset=context.offset,
    )
    retention.name_run(spec)
    if op.mode == "replace":
        key = name_key(op.table)
        store.delete_range(rows.KNOWN, key, prefix_stop(key))
    if table is None:
        table = TableState(head=op.run, sink=op.sink, columns=op.columns)
    table.head, table.sink, table.exact = op.run, op.sink, False
    if op.columns is not None or op.mode == "replace":
        table.columns = op.columns
    table.live = [*table.live, op.run]
    if len(table.live) > config.LIVE_RUNS_PER_TABLE_MAX:
        retention.retire_oldest(op.table, table)
    state = RunState(op.table, "running", op.on_error, op.max_attempts, op.member, [])
    edit = RunEdit(store, context, op.run, state)
    for number in range(len(op.stages)):
        _make_stage(edit, op, number, lineages)
    store.put(rows.SPEC, name_key(op.run), encode(spec))
    edit.save_table(table)
    edit.settle()
    edit.save()
    return Accepted(state=state.state, run=op.run)


def _make_stage(edit: RunEdit, op: Submit, number: int, lineages: tuple[bytes, ...]) -> None:
    """The rows of one stage; needs its upstream stages to be there."""
    spec, store, state = op.stages[number], edit.store, edit.state
    stage = _stage(op, number, lineages)
    state.stages.append(stage)
    reuse = _reusable(store, op, number, state.stages)
    tasks: list[tuple[bytes, bytes]] = []
    changes: list[tuple[bytes, bytes]] = []
    queued: list[tuple[bytes, bytes]] = []
    for index, identity in enumerate(spec.tasks):
        task = TaskState(identity, cost=spec.costs[index] if spec.costs else 0)
        known = reuse.get(index)
        if known is None:
            queued.append((rows.queue_key(op.run, rows.WAITING, number, index), b""))
        else:
            state.changes += 1
            task.result, task.token, task.dead = known.result, known.token, known.dead
            task.reused, task.sequence = True, state.changes
            changes.append((rows.sequence_key(op.run, task.sequence), encode((number, index))))
            stage.cost_done += task.cost
            if known.dead:
                state.dead += known.dead
                store.put(rows.DEAD, rows.task_key(op.run, number, index), known.result)
        tasks.append((rows.task_key(op.run, number, index), encode(task)))
    _count(stage, reuse)
    store.put_many(rows.TASK, tasks)
    store.put_many(rows.OPEN, queued)
    store.put_many(rows.CHANGE, changes)
    edit.retention.share_results([known.result for known in reuse.values()])


def taken_over(store: StoreView, op: Submit) -> list[dict[int, bytes]]:
    """What the run of this submission would take over as things are: for each stage the result ids, by index."""
    lineages = _lineages(op)
    stages: list[StageState] = []
    found: list[dict[int, bytes]] = []
    for number in range(len(op.stages)):
        stages.append(_stage(op, number, lineages))
        reuse = _reusable(store, op, number, stages)
        _count(stages[number], reuse)
        found.append({index: known.result for index, known in reuse.items()})
    return found


def _stage(op: Submit, number: int, lineages: tuple[bytes, ...]) -> StageState:
    """A stage of which nothing is done."""
    spec = op.stages[number]
    stage = StageState(len(spec.tasks), spec.needs, cost=sum(spec.costs))
    if spec.needs:
        stage.upstream = _digest([lineages[need] for need in spec.needs])
    return stage


def _reusable(store: StoreView, op: Submit, number: int, stages: Sequence[StageState]) -> dict[int, Known]:
    """Which tasks of a stage the table has done, by index.

    All of them have read the same data: what the upstream stages give now when those are complete, else what
    the first one has read (should the upstream stages run again and give something else, the stage starts
    again).
    """
    if op.mode == "replace":
        return {}
    spec, stage = op.stages[number], stages[number]
    prefix = name_key(op.table)
    keys = [prefix + rows.known_as(identity, stage.upstream) for identity in spec.tasks]
    found = store.get_many(rows.KNOWN, keys)
    reuse = {index: decode(found[key], Known) for index, key in enumerate(keys) if key in found}
    if not reuse or not spec.needs:
        return reuse
    if all(stages[need].done == stages[need].count for need in spec.needs):
        consumed = inputs_digest(stages, number)
    else:
        consumed = reuse[min(reuse)].consumed
    return {index: known for index, known in reuse.items() if known.consumed == consumed}


def _count(stage: StageState, reuse: Mapping[int, Known]) -> None:
    """Count what a new stage takes over."""
    stage.done = stage.reused = len(reuse)
    content = int.from_bytes(stage.content, "big")
    for known in reuse.values():
        content += int.from_bytes(known.token, "big")
        stage.consumed = known.consumed
    stage.content = (content & ((1 << 128) - 1)).to_bytes(16, "big")


def _lineages(op: Submit) -> tuple[bytes, ...]:
    lineages: list[bytes] = []
    for stage in op.stages:
        lineages.append(_digest([*(lineages[need] for need in stage.needs), b"", *sorted(stage.tasks)]))
    return tuple(lineages)


def _digest(parts: Sequence[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(1, "big") + part)
    return digest.digest()


def _names(columns: tuple[str, ...] | None) -> str:
    return ", ".join(columns or ()) or "(none)"
