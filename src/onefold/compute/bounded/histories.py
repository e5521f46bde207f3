"""Live jobs with a history: its types are made to meet the stream's, and its batch job is begun or continued."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from onefold.compute import launching
from onefold.compute.jobs import state
from onefold.compute.live import seam as seams
from onefold.compute.live.client import SINK, LiveJob, live_of_history
from onefold.compute.live.history import cancel_history
from onefold.compute.live.job.beginning import offsets_of
from onefold.compute.live.plan import HistoryInput, StreamFrom
from onefold.compute.live_dataset import sources_of
from onefold.compute.plan.nodes import Into, Job, Node, Seam, Source, StreamSource, Union
from onefold.compute.runs import Run, leave_to_nodes
from onefold.compute.submission import compiler, output_overlap, submit
from onefold.errors import InvalidArgument, InvalidPlan, InvalidValue, TooLarge
from onefold.machine.undisturbed import let_pass
from onefold.state.fold.live import rows as live_rows
from onefold.state.streams.frames import OWN_COLUMNS

if TYPE_CHECKING:
    from onefold.compute.engine import Engine
    from onefold.compute.jobs.read_rows import RunRow
    from onefold.compute.live.client import Found
    from onefold.compute.live.plan import LivePlan, StreamInput
    from onefold.state.core.client import StateClient

_Columns = tuple[tuple[str, Any], ...]
FAULTS: Final = (InvalidPlan, InvalidArgument, InvalidValue, TooLarge)
"""What is wrong with a history that never can begin. Any other error is of the moment: a disk, a network, another program."""


def prepared(
    engine: Engine, client: StateClient, plan: LivePlan, node: Node, known: LivePlan | None
) -> LivePlan:
    """The live plan with the columns of its streams fixed, and with the batch job, whose time has the type of theirs.

    ``known``: the plan that the job has already. Raises InvalidPlan for columns of different types, InvalidArgument when nothing
    tells them, or for files that a batch job does not read; definite.
    """
    seam = seams.seam_of(node)
    assert seam is not None
    columns = _of_streams(engine, seam, known)
    first = plan.parts[0]
    inputs = tuple(
        one if one.history or one.schema is not None else replace(one, schema=columns[one.stream])
        for one in first.inputs
    )
    if seam.position:
        inputs = tuple(one if one.history else _from(client, one, seam.position, known) for one in inputs)
    plan = replace(plan, parts=(replace(first, inputs=inputs), *plan.parts[1:]))
    sources = submit.Sources(engine.streams)
    live = _rows(seam.live, columns, sources, "live side")
    history = _rows(seam.history, columns, sources, "history")
    time = next(one.schema for one in inputs if one.schema is not None)
    wanted = dict(time)[seam.time]
    if wanted == pl.Date:
        wanted = pl.Datetime("us")
    _check(live, history, seam.time)
    job = seams.history_job(node, plan.job, _fitting(history[seam.time], wanted, seam.time))
    compiled = compiler.compile_job(job, schema_of=sources.schema_of, bytes_of=sources.bytes_of)
    output_overlap.check(compiled, [file.path for file in sources.listed()], engine.shard.directory)
    return _with_job(plan, job, of_job=known is not None and not _has_generations(known))


def _has_generations(known: LivePlan) -> bool:
    """Whether each generation of a job has a history of its own."""
    found = known.parts[-1].history
    return found is None or (isinstance(found[1], HistoryInput) and not found[1].of_job)


def _with_job(plan: LivePlan, job: Job, *, of_job: bool) -> LivePlan:
    """The plan whose history is computed by that job."""
    last = plan.parts[-1]
    inputs = tuple(
        HistoryInput(
            **{field.name: getattr(one, field.name) for field in fields(one)}, job=job, of_job=of_job
        )
        if one.history
        else one
        for one in last.inputs
    )
    return replace(plan, parts=(*plan.parts[:-1], replace(last, inputs=inputs)))


def is_same(known: LivePlan, plan: LivePlan) -> bool:
    """Whether both make the same of the same history. Release 0.4.0 had no sinks in signatures."""
    facts = [
        [(part.name, {fact for fact in part.signature if fact[0] != SINK}) for part in one.parts]
        for one in (known, plan)
    ]
    return facts[0] == facts[1]


def begin(engine: Engine, live: Found, plan: LivePlan, workers: int | None) -> None:
    """Begin the batch job of a generation, or continue it where nobody works on it. One that is done stays as it is: what has
    entered the live job is of it. Of several processes that begin it at the same time, one does. ``workers=0``: others work on
    it."""
    job = _job_of(plan, live.generation)
    while job is not None:
        run = _last_run(engine, job.table)
        if run is not None and run.state == "done":
            return
        if run is not None and run.state == "running":
            if workers != 0 and not leave_to_nodes and _nobody_works(engine, run.id):
                engine.work(run.id)
            return
        try:
            launching.start(
                engine, job, workers=0 if workers == 0 else None, behind="" if run is None else run.id
            )
        except launching.Overtaken as error:
            let_pass(error)
            engine.catch_up()
            continue
        if is_over(live.job.client, live.id):
            # It was dropped meanwhile, by a process that has not seen this run.
            remove(engine, job.table)
        return


def has_begun(engine: Engine, live: Found, plan: LivePlan) -> bool:
    """Whether the batch job of a generation is worked on, or is done: by another process, perhaps."""
    found = plan.parts[-1].history
    run = None if found is None else _last_run(engine, found[1].history_of(live.generation))
    return run is not None and run.state in ("running", "done")


def resume(engine: Engine, live: Found, plan: LivePlan, workers: int | None) -> None:
    """Continue the batch job where nobody works on it, or begin it where that was not done. One that runs, or is done, stays as
    it is."""
    found = plan.parts[-1].history
    if found is None:
        return
    run = _last_run(engine, found[1].history_of(live.generation))
    if run is None:
        begin(engine, live, plan, workers)
    elif run.state in ("failed", "cancelled") or (run.state == "running" and _nobody_works(engine, run.id)):
        Run(engine, run.id).resume(0 if workers == 0 else None)


def _nobody_works(engine: Engine, run: str) -> bool:
    """Whether its processes are gone, or all of them leave it to others: what comes and works on it also is in nobody's way."""
    if engine.abandoned(run):
        return True
    with engine.shard.view() as view:
        return not state.claims(view, run)


def _job_of(plan: LivePlan, generation: int) -> Job | None:
    """The batch job of a generation; None: its plan has none."""
    found = plan.parts[-1].history
    job = found[1].job if found is not None and isinstance(found[1], HistoryInput) else None
    if found is None or job is None or not isinstance(job.sink, Into):
        return None
    return replace(job, sink=replace(job.sink, table=found[1].history_of(generation)))


def is_over(client: StateClient, name: str) -> bool:
    """Whether no live job, and no generation of one, has this name any more."""
    above, _, number = name.rpartition("/")
    if not _is_gone(client, name, 0):
        return False
    return not (above and number.isdecimal()) or _is_gone(client, above, int(number))


def _is_gone(client: StateClient, name: str, generation: int) -> bool:
    if not live_rows.is_name(name):
        return True
    with LiveJob(
        client, name
    ).view() as view:  # where this replica is behind, one that is new would look gone
        if generation:
            return live_rows.generation_of(view, name, generation) is None
        return live_rows.job_of(view, name) is None


def remove_left(engine: Engine, job: LiveJob) -> bool:
    """Remove the histories of a job's generations that are not there any more. Whether there were any.

    A generation that has a history was there before it, and its number is not given twice: so one whose generation is not there
    is nobody's, whatever other processes do at the same time.
    """
    engine.catch_up()
    with engine.shard.view() as view:
        tables = [row.name for row in state.list_tables(view)]
    left = [
        table
        for table in tables
        if (name := live_of_history(table)) is not None
        and (name == job.name or name.rpartition("/")[0] == job.name)
        and is_over(job.client, name)
    ]
    for table in left:
        remove(engine, table)
    return bool(left)


def remove(engine: Engine, table: str) -> None:
    """End the batch job of a history, and forget it."""
    cancel(engine, table)
    engine.drop_table(table)


def cancel(engine: Engine, table: str) -> None:
    """End the batch job, if it runs, and this process's work on it."""
    run = cancel_history(engine, table)
    runner = None if run is None else engine.runner(run)
    if runner is not None:
        runner.stop()
        runner.join()


def _last_run(engine: Engine, table: str) -> RunRow | None:
    with engine.shard.view() as view:
        return state.last_run(view, table)


def _from(client: StateClient, source: StreamInput, position: str, known: LivePlan | None) -> StreamFrom:
    """The stream from a position on. A job that is there already has its offsets, also once those are not kept any more."""
    before = [] if known is None else [one for one in known.parts[0].inputs if isinstance(one, StreamFrom)]
    first = before[0].first if before else None
    if first is None:
        first = offsets_of(client, source.stream, position)
    given = {field.name: getattr(source, field.name) for field in fields(source)}
    return StreamFrom(**given, first=first)


def _of_streams(engine: Engine, seam: Seam, known: LivePlan | None) -> dict[str, _Columns]:
    """The columns of each stream: as given, as the job has them, or of the first records."""
    before = {} if known is None else {one.stream: one.schema for one in known.parts[0].inputs}
    found: dict[str, _Columns] = {}
    for source in sources_of(seam.live):
        given = source.schema or before.get(source.stream)
        if given is None:
            assert engine.streams is not None
            try:
                resolved = engine.streams().resolve(Source("stream", (source.stream,)))
            except InvalidArgument as error:
                let_pass(error)
                raise InvalidArgument(
                    f"concat has to know the columns of stream {source.stream!r}, which nothing tells yet: append to it first, "
                    "or say schema= in read_stream"
                ) from error
            given = tuple((name, dtype) for name, dtype in resolved.schema if name not in OWN_COLUMNS)
        found[source.stream] = given
        dtype = dict(given).get(seam.time)
        if not isinstance(dtype, pl.Datetime | pl.Date) and dtype != pl.Date:
            raise InvalidPlan(
                f"concat: column {seam.time!r} of stream {source.stream!r} is {dtype}, and an event time is a Datetime"
            )
    return found


def _rows(
    node: Node, columns: dict[str, _Columns], sources: submit.Sources, which: str
) -> dict[str, pl.DataType]:
    """The columns of a side at the seam."""

    def schema_of(source: Source) -> _Columns:
        if source.kind == "stream" and source.option("live"):
            return columns[source.paths[0]]
        return sources.schema_of(source)

    job = Job(_bounded(node), Into("concat"))
    made = compiler.compile_job(job, schema_of=schema_of, bytes_of=lambda _: 0).schema
    if made is None:
        raise InvalidPlan(
            f"concat: say schema= in the functions of its {which}, so that the columns of both can meet"
        )
    return dict(made)


def _bounded(node: Node) -> Node:
    """A plan over streams as one over bounded rows with their columns."""
    if isinstance(node, StreamSource):
        return Source("stream", (node.stream,), (("live", True),))
    if isinstance(node, Union):
        return Union(tuple(_bounded(one) for one in node.inputs))
    if any(field.name == "input" for field in fields(node)):
        return replace(node, input=_bounded(node.input))  # type: ignore[attr-defined, call-arg]
    return node


def _check(live: dict[str, pl.DataType], history: dict[str, pl.DataType], time: str) -> None:
    if time not in history:
        raise InvalidPlan(
            f"concat: the history has no column {time!r}, which is the event time of the stream; it has "
            f"{', '.join(map(repr, history))}. Rename one with with_columns"
        )
    for name, dtype in live.items():
        if name != time and name in history and history[name] != dtype:
            raise InvalidPlan(
                f"concat: column {name!r} is {history[name]} in the history and {dtype} in the stream; cast one of them"
            )


def _fitting(has: pl.DataType, wanted: pl.DataType, time: str) -> pl.Expr | None:
    """The history's times in the type of the stream's; None: they have it. Naive times are UTC."""
    if has == wanted:
        return None
    if has == pl.Date:
        has, found = pl.Datetime("us"), pl.col(time).cast(pl.Datetime("us"))
    else:
        found = pl.col(time)
    if not isinstance(has, pl.Datetime) or not isinstance(wanted, pl.Datetime):
        raise InvalidPlan(
            f"concat: column {time!r} is {has} in the history, and an event time is a Datetime: cast it with with_columns"
        )
    if has.time_zone is None and wanted.time_zone is not None:
        found = found.dt.replace_time_zone("UTC").dt.convert_time_zone(wanted.time_zone)
    elif has.time_zone is not None and wanted.time_zone is None:
        found = found.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    elif has.time_zone is not None and wanted.time_zone is not None:
        found = found.dt.convert_time_zone(wanted.time_zone)
    return found.dt.cast_time_unit(wanted.time_unit).alias(time)
