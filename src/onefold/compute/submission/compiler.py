"""From a plan to stages: what runs where, what is shuffled, what is broadcast, and every check that needs the
columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onefold import config
from onefold.compute.frames.named import is_pattern
from onefold.compute.plan import schemas
from onefold.compute.plan.nodes import (
    Explode,
    GroupAggregate,
    Job,
    Join,
    MapReduce,
    Node,
    PythonNode,
    RowNode,
    Select,
    Source,
    Union,
    Window,
    WithColumns,
    WriteParquet,
)
from onefold.compute.plan.schemas import Names, Schema
from onefold.compute.plan.stages import (
    Branch,
    BroadcastJoin,
    JoinLeaf,
    MapOutput,
    Output,
    PartialOutput,
    PublishOutput,
    ReduceLeaf,
    RowsOutput,
    SessionLeaf,
    ShuffleOutput,
    SourceLeaf,
    Stage,
)
from onefold.compute.plan.windows import END, START, check_time, end_of, starts, window_starts
from onefold.compute.sources import partition_values
from onefold.compute.sources.ranges import PLACE, TIME
from onefold.compute.tasks import outputs
from onefold.errors import InvalidPlan

SchemaOf = Callable[[Source], Schema]
BytesOf = Callable[[Source], int]


@dataclass(frozen=True)
class Compiled:
    """The stages of a job, and what its result looks like as far as the plan tells."""

    stages: tuple[Stage, ...]
    sources: tuple[Source, ...]
    """The sources in the order in which the plan reads them, left to right."""
    columns: tuple[str, ...] | None
    """Names of the result's columns, or None when a Python function without ``schema=`` makes them."""
    schema: Schema | None
    """Their types too, or None when some are only known from values."""


def compile_job(job: Job, *, schema_of: SchemaOf, bytes_of: BytesOf) -> Compiled:
    """Cut the job into stages. ``bytes_of`` gives a source's input bytes, for choosing how to join.

    Raises InvalidPlan that names the step and the column when something does not fit together.
    """
    compiler = _Compiler(schema_of, bytes_of)
    rows, output = compiler.top(job.plan)
    final = compiler.stage(rows.branches, output)
    if isinstance(job.sink, WriteParquet):
        _check_partitions(job.sink, rows.names, rows.schema)
        _check_append(job.sink, rows.branches, output)
        sink = job.sink
        compiler.stage((), PublishOutput(sink.path, sink.partition_by, sink.mode), needs=(final,))
    return Compiled(tuple(compiler.stages), tuple(compiler.sources), rows.names, rows.schema)


def python_stages(stages: Sequence[Stage]) -> set[int]:
    """Indices of the stages that call Python functions of the user: their tasks run in worker processes."""
    return {stage.index for stage in stages if _calls_python(stage)}


def _calls_python(stage: Stage) -> bool:
    if isinstance(stage.output, MapOutput):
        return True
    if isinstance(stage.output, PartialOutput) and any(agg.functions() for _, agg in stage.output.aggs):
        return True
    return any(
        isinstance(branch.leaf, ReduceLeaf) or any(isinstance(step, PythonNode) for step in branch.steps)
        for branch in stage.branches
    )


@dataclass(frozen=True)
class _Rows:
    """Rows before their output is chosen."""

    branches: tuple[Branch, ...]
    schema: Schema | None
    names: Names | None
    bytes: int
    """Input bytes of all sources below."""
    time: str | None = None
    """The column that is the event time, where a stream is read."""

    def then(self, step: Any, schema: Schema | None, names: Names | None) -> _Rows:
        """The same with one more step."""
        branches = tuple(replace(branch, steps=(*branch.steps, step)) for branch in self.branches)
        return replace(self, branches=branches, schema=schema, names=names)


@dataclass
class _Compiler:
    schema_of: SchemaOf
    bytes_of: BytesOf
    stages: list[Stage] = field(default_factory=list)
    sources: list[Source] = field(default_factory=list)

    def stage(self, branches: tuple[Branch, ...], output: Output, needs: Iterable[int] = ()) -> int:
        """Append a stage; its needs are what its branches read, and ``needs``."""
        index = len(self.stages)
        reads = {*needs, *(need for branch in branches for need in _needs(branch))}
        self.stages.append(Stage(index, branches, output, tuple(sorted(reads))))
        return index

    def top(self, node: Node) -> tuple[_Rows, Output]:
        """The plan's root: aggregates stand only there."""
        if not isinstance(node, GroupAggregate):
            return _without_places(self.rows(node)), RowsOutput()
        below = node.input
        if isinstance(below, Window) and below.spec.kind == "session":
            rows = self.sessions(below, node.keys[2:])
        else:
            rows = self.rows(below)
        keys = tuple(key.meta.output_name() for key in node.keys)
        names = (*keys, *(name for name, _ in node.aggs))
        _check_doubles("group_by", names)
        _check_patterns("group_by", names)
        if rows.schema is not None:
            if node.keys:
                schemas.evaluate(rows.schema, node.keys, "group_by")
            for name, agg in node.aggs:
                if exprs := agg.expressions():
                    numbered = [expr.alias(str(number)) for number, expr in enumerate(exprs)]
                    schemas.evaluate(rows.schema, numbered, f"agg {name!r}")
        schema = None if rows.schema is None else _aggregated(rows.schema, node)
        return replace(rows, schema=schema, names=names), PartialOutput(node.keys, node.aggs)

    def rows(self, node: Node) -> _Rows:
        steps: list[RowNode | Window] = []
        while isinstance(node, RowNode | Window):
            steps.append(node)
            node = node.input
        match node:
            case Source():
                rows = self.source(node)
            case Union():
                rows = self.union(node)
            case Join():
                rows = self.join(node)
            case MapReduce():
                rows = self.map_reduce(node)
            case GroupAggregate():
                raise InvalidPlan(
                    "an aggregated dataset ends a plan, since aggregates are merged when they are read; put "
                    "further steps "
                    "before group_by, or do them on the result with db.table(...).scan()"
                )
            case _:
                raise InvalidPlan(f"{type(node).__name__} is not a step that can be run")
        for step in reversed(steps):
            if isinstance(step, Window):
                rows = self.windows(rows, step)
                continue
            rows = self.step(rows, step)
        return rows

    def step(self, rows: _Rows, step: RowNode) -> _Rows:
        schema = schemas.schema_after(rows.schema, [step])
        names = (
            schemas.names_after(rows.names, [step]) if schema is None else tuple(name for name, _ in schema)
        )
        _check_patterns(schemas.describe(step), names or ())
        return rows.then(_detached(step), schema, names)

    def windows(self, rows: _Rows, node: Window) -> _Rows:
        """Rows with the start and the end of their windows: one row for each window that a row is in."""
        spec = node.spec
        if spec.on is None and rows.time is not None:
            spec = replace(spec, on=rows.time)
        check_time(None if rows.schema is None else dict(rows.schema), spec)
        assert spec.on is not None
        if spec.kind == "session":
            raise InvalidPlan("window: group the sessions: .window(...).group_by(...).agg(...)")
        import polars as pl

        dtype = dict(rows.schema or ()).get(spec.on)
        if spec.kind == "tumbling":
            rows = self.step(rows, WithColumns(Node(), (starts(spec.on, spec, dtype).alias(START),)))
        else:
            rows = self.step(rows, WithColumns(Node(), (window_starts(spec.on, spec, dtype).alias(START),)))
            rows = self.step(rows, Explode(Node(), (START,)))
        return self.step(rows, WithColumns(Node(), (end_of(pl.col(START), spec).alias(END),)))

    def sessions(self, node: Window, keys: Sequence[Any]) -> _Rows:
        """Rows with the start and the end of their sessions: those of one key meet in one task, by a shuffle."""
        import polars as pl

        rows, spec = self.rows(node.input), node.spec
        if spec.on is None and rows.time is not None:
            spec = replace(spec, on=rows.time)
        check_time(None if rows.schema is None else dict(rows.schema), spec)
        assert spec.on is not None
        if rows.schema is not None and keys:
            schemas.evaluate(rows.schema, keys, "group_by")
        names = tuple(f"__onefold_key_{number}" for number in range(max(1, len(keys))))
        by = [key.alias(name) for key, name in zip(keys, names, strict=False)] or [pl.lit(0).alias(names[0])]
        keyed = self.step(rows, WithColumns(Node(), tuple(by)))
        partitions = config.SHUFFLE_PARTITIONS_DEFAULT if keys else 1
        stage = self.stage(keyed.branches, ShuffleOutput(names, partitions))
        leaf = Branch(SessionLeaf(stage, names, spec.on, spec.length_us, partitions))
        schema = None
        if rows.schema is not None:
            time = dict(rows.schema)[spec.on]
            schema = (*rows.schema, (START, time), (END, time))
        made = None if rows.names is None else (*rows.names, START, END)
        return _Rows((leaf,), schema, made, rows.bytes)

    def source(self, source: Source) -> _Rows:
        schema = tuple(self.schema_of(source))
        _check_patterns(f"read_{source.kind}", (name for name, _ in schema))
        self.sources.append(source)
        leaf = Branch(SourceLeaf(source, schema))
        time = (source.option("event_time") or TIME) if source.kind == "stream" else None
        return _Rows((leaf,), schema, tuple(name for name, _ in schema), self.bytes_of(source), time)

    def union(self, node: Union) -> _Rows:
        parts = [self.rows(part) for part in node.inputs]
        first = parts[0]
        aligned = [first]
        aligned += [_aligned(part, first, number) for number, part in enumerate(parts[1:], 2)]
        known = all(part.schema is not None for part in aligned)
        named = all(part.names is not None for part in aligned)
        return _Rows(
            tuple(branch for part in aligned for branch in part.branches),
            first.schema if known else None,
            first.names if named else None,
            sum(part.bytes for part in parts),
            first.time if all(part.time == first.time for part in parts) else None,
        )

    def join(self, node: Join) -> _Rows:
        left, right = (_without_places(self.rows(side)) for side in (node.left, node.right))
        schema = _joined(left, right, node)
        names = tuple(name for name, _ in schema) if schema is not None else _joined_names(left, right, node)
        total = left.bytes + right.bytes
        limit = config.BROADCAST_BYTES_MAX
        if right.bytes <= limit:
            small = self.stage(right.branches, RowsOutput())
            step = BroadcastJoin(small, node.on, node.how)
            return replace(left.then(step, schema, names), bytes=total, time=None)
        if left.bytes <= limit and node.how == "inner":
            small = self.stage(left.branches, RowsOutput())
            step = BroadcastJoin(small, node.on, node.how, small_is="left")
            return replace(right.then(step, schema, names), bytes=total, time=None)
        partitions = config.SHUFFLE_PARTITIONS_DEFAULT
        sides = [self.stage(side.branches, ShuffleOutput(node.on, partitions)) for side in (left, right)]
        leaf = JoinLeaf(sides[0], sides[1], node.on, node.how, partitions)
        return _Rows((Branch(leaf),), schema, names, total)

    def map_reduce(self, node: MapReduce) -> _Rows:
        rows = self.rows(node.input)
        partitions = node.partitions or config.SHUFFLE_PARTITIONS_DEFAULT
        mapped = self.stage(rows.branches, MapOutput(node.map, node.combine, partitions))
        return _Rows(
            (Branch(ReduceLeaf(mapped, node.reduce, partitions)),), None, ("key", "value"), rows.bytes
        )


def _aggregated(schema: Schema, node: GroupAggregate) -> Schema | None:
    """Keys and values by type, or None when a fold does not say what it gives."""
    import polars as pl

    from onefold.compute.aggregates import ORDER_COLUMN, result_schema

    rows = dict(schema)
    if any(aggregate.needs_order for _, aggregate in node.aggs):  # tasks add it as they read
        order = outputs.order_struct(None, None, pl.lit(0))
        rows[ORDER_COLUMN] = pl.select(order).schema[ORDER_COLUMN]
    made = tuple(result_schema(pl.Schema(rows), node.keys, node.aggs).items())
    return None if any(dtype == pl.Unknown for _, dtype in made) else made


def _needs(branch: Branch) -> set[int]:
    needs = {step.stage for step in branch.steps if isinstance(step, BroadcastJoin)}
    match branch.leaf:
        case JoinLeaf(left=left, right=right):
            needs |= {left, right}
        case ReduceLeaf(stage=stage) | SessionLeaf(stage=stage):
            needs.add(stage)
    return needs


def _detached(step: RowNode) -> RowNode:
    """The step without its input: a branch holds its steps in a row, and each would carry the whole plan
    below it.
    """
    return replace(step, input=Node())


def _without_places(rows: _Rows) -> _Rows:
    """The rows without the columns that say where the records of a stream stand: a sink or a join has those that were selected
    under other names."""
    if rows.time is None or rows.names is None or not set(PLACE) & set(rows.names):
        return rows
    import polars as pl

    names = tuple(name for name in rows.names if name not in PLACE)
    if not names:
        return rows
    schema = None if rows.schema is None else tuple(one for one in rows.schema if one[0] in names)
    return rows.then(Select(Node(), tuple(pl.col(name) for name in names)), schema, names)


def _aligned(part: _Rows, first: _Rows, number: int) -> _Rows:
    """An input of a union with its columns in the order of the first; raises InvalidPlan when they are not
    the same.
    """
    if part.names is None or first.names is None:
        return part
    absent = [name for name in first.names if name not in part.names]
    extra = [name for name in part.names if name not in first.names]
    if absent or extra:
        differences = [f"lacks {', '.join(map(repr, absent))}"] if absent else []
        differences += [f"has {', '.join(map(repr, extra))} more"] if extra else []
        raise InvalidPlan(
            f"union: input {number} {' and '.join(differences)} than input 1; give all inputs the same "
            f"columns with select"
        )
    if part.schema is not None and first.schema is not None:
        types = dict(part.schema)
        for name, dtype in first.schema:
            if types[name] != dtype:
                raise InvalidPlan(
                    f"union: column {name!r} is {dtype} in input 1 but {types[name]} in input {number}; "
                    f"cast one of them"
                )
    if part.names == first.names:
        return part
    import polars as pl

    order = Select(Node(), tuple(pl.col(name) for name in first.names))
    schema = None if part.schema is None else tuple((name, dict(part.schema)[name]) for name in first.names)
    return part.then(order, schema, first.names)


def _joined(left: _Rows, right: _Rows, node: Join) -> Schema | None:
    """The schema of the join, as Polars names the columns; checks the columns that it is on."""
    import polars as pl

    for side, rows in (("left", left), ("right", right)):
        for column in node.on:
            if rows.names is not None and column not in rows.names:
                raise InvalidPlan(f"join: on the {side} side {schemas.missing(column, rows.names)}")
    if left.schema is None or right.schema is None:
        return None
    left_types, right_types = dict(left.schema), dict(right.schema)
    for column in node.on:
        if left_types[column] != right_types[column]:
            raise InvalidPlan(
                f"join: column {column!r} is {left_types[column]} on the left and {right_types[column]} on "
                f"the right; "
                f"cast one of them"
            )
    frames = [pl.LazyFrame(schema=types) for types in (left_types, right_types)]
    try:
        return tuple(frames[0].join(frames[1], on=list(node.on), how=node.how).collect().schema.items())
    except pl.exceptions.PolarsError as error:
        raise InvalidPlan(
            f"join on {', '.join(node.on)}: {str(error).splitlines()[0]}; left: "
            f"{schemas.listed(left.schema)}; "
            f"right: {schemas.listed(right.schema)}"
        ) from error


def _joined_names(left: _Rows, right: _Rows, node: Join) -> Names | None:
    if left.names is None or right.names is None:
        return None
    taken = set(left.names)
    added = [name for name in right.names if name not in node.on]
    return (*left.names, *(f"{name}_right" if name in taken else name for name in added))


def _check_patterns(step: str, names: Iterable[str]) -> None:
    """Raise InvalidPlan for a column that Polars' expressions cannot name: they would mean others, or all."""
    for name in names:
        if is_pattern(name):
            raise InvalidPlan(
                f"{step}: a column cannot be called {name!r}, which means a pattern of names; rename it in its file "
                f"or where it is made"
            )


def _check_doubles(step: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise InvalidPlan(f"{step}: the column {name!r} is made twice; give one of them another name")


def _check_append(sink: WriteParquet, branches: Sequence[Branch], output: Output) -> None:
    """Raise InvalidPlan for a result of which no task's rows stay as they are when input is added."""
    if any(isinstance(each.leaf, SourceLeaf) and each.leaf.source.kind == "stream" for each in branches):
        raise InvalidPlan(
            'write_parquet: mode="append" cannot be used over a stream, whose ranges are cut in another way once retention has '
            'removed records; use mode="replace"'
        )
    made = {
        ReduceLeaf: "the result of map_reduce",
        JoinLeaf: "a join of two large sides",
        SessionLeaf: "sessions",
    }
    what = "a grouped result" if isinstance(output, PartialOutput) else None
    what = what or next((made[type(each.leaf)] for each in branches if type(each.leaf) in made), None)
    if sink.mode == "append" and what is not None:
        raise InvalidPlan(
            f'write_parquet: mode="append" cannot be used for {what}, since new input changes rows that were published '
            f'before, which would stay next to them and be counted twice; use mode="replace"'
        )


def _check_partitions(sink: WriteParquet, names: Names | None, schema: Schema | None) -> None:
    from onefold.compute.publish import folder_writer

    known = dict(schema or ())
    partition_values.check_types(sink.partition_by, known)
    folder_writer.check_columns({name: known[name] for name in known if name not in sink.partition_by})
    if names is None:
        return
    for column in sink.partition_by:
        if column not in names:
            raise InvalidPlan(f"write_parquet: partition_by: {schemas.missing(column, names)}")
    if sink.partition_by and len(sink.partition_by) == len(names):
        raise InvalidPlan(
            "write_parquet: partition_by takes all columns, so the files would be empty; leave one out"
        )
