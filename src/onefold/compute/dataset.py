"""Datasets: the fluent way to write a plan.

Every method gives a new dataset and runs nothing. Arguments are checked at once, so a mistake shows at the
line that makes it; what needs the input's columns is checked when the job starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, Self, TypeVar

from onefold import config
from onefold.arguments import check_flag, check_whole
from onefold.compute import arguments
from onefold.compute.plan.nodes import (
    Explode,
    Filter,
    FlatMap,
    GroupAggregate,
    Into,
    Job,
    Join,
    Map,
    MapBatches,
    MapReduce,
    Node,
    Select,
    Union,
    Window,
    WithColumns,
    WriteParquet,
)
from onefold.compute.plan.windows import WindowSpec
from onefold.errors import InvalidArgument, InvalidPlan

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.aggregates import Aggregate
    from onefold.compute.arguments import IntoExpr, SchemaLike
    from onefold.compute.runs import Run
    from onefold.durations import Duration

SEED_DEFAULT = 7
"""The seed of the dispatch order and of the packing: fixed, so that a second run meets the same tasks."""


D = TypeVar("D", bound="Dataset")


class Starter(Protocol):
    """What turns a prepared job into a run; the database implements it."""

    def start(self, job: Job, **options: Any) -> Run:
        """Submit and begin in the background. ``options``: workers, seed, target_splits, on_error,
        max_attempts.
        """

    def run(self, job: Job, *, progress: bool = True, **options: Any) -> Run:
        """Start, wait, and raise JobFailed when it failed."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows that a job would make: a plan without a sink. Immutable; made by ``db.read_text`` and the like."""

    node: Node
    starter: Starter

    @property
    def unbounded(self) -> bool:
        """Whether its rows never end."""
        return False

    # -- columns ---------------------------------------------------------------------------------------------

    def select(self, *exprs: IntoExpr | Iterable[IntoExpr], **named: IntoExpr) -> Self:
        """Replace the columns by these row-local expressions, as in Polars; a str is a column.

        Raises:
            InvalidPlan: definite; an expression looks at more than one row.
        """
        given = arguments.row_local_exprs("select", exprs, named)
        from onefold.compute.plan.expressions import names_columns

        if not any(names_columns(expr) for expr in given):
            raise InvalidPlan(
                "select: these are only constants, which would give one row per task instead of one per row; "
                "use .with_columns(...) to add a constant"
            )
        return self._then(Select(self._rows("select"), given))

    def with_columns(self, *exprs: IntoExpr | Iterable[IntoExpr], **named: IntoExpr) -> Self:
        """Add or replace columns by row-local expressions, as in Polars: ``with_columns(total=pl.col("a") +
        pl.col("b"))``.

        Raises:
            InvalidPlan: definite; an expression looks at more than one row.
        """
        return self._then(
            WithColumns(self._rows("with_columns"), arguments.row_local_exprs("with_columns", exprs, named))
        )

    def filter(self, *predicates: IntoExpr | Iterable[IntoExpr], **equals: Any) -> Self:
        """Keep the rows for which all these row-local predicates are true (null is not);
        ``filter(city="Bern")`` compares.

        Raises:
            InvalidPlan: definite; a predicate looks at more than one row.
        """
        return self._then(Filter(self._rows("filter"), arguments.predicates(predicates, equals)))

    def explode(self, *columns: str | Sequence[str]) -> Self:
        """One row per element of these list columns; an empty list or null gives no row."""
        return self._then(Explode(self._rows("explode"), arguments.column_names("explode", columns)))

    # -- Python ----------------------------------------------------------------------------------------------

    def map(self, fn: Callable[..., Any], schema: SchemaLike | None = None) -> Self:
        """Call ``fn(record)`` for each row; a record is a dict of the row's columns.

        ``fn`` gives a dict (the new columns) or a bare value (kept in the one column ``value``; the next
        function gets it bare). It may be ``async``. It runs in worker processes and travels there whatever
        module it comes from.
        ``schema``: the new columns and their Polars types; without it they are found from the values.
        """
        arguments.record_function("map", fn)
        return self._then(Map(self._rows("map"), fn, arguments.schema("map", schema)))

    def flat_map(self, fn: Callable[..., Any], schema: SchemaLike | None = None) -> Self:
        """Call ``fn(record)`` for each row, which gives any number of dicts or bare values: a list, or by
        ``yield``.
        """
        arguments.record_function("flat_map", fn, many=True)
        return self._then(FlatMap(self._rows("flat_map"), fn, arguments.schema("flat_map", schema)))

    def map_batches(
        self, fn: Callable[..., Any], schema: SchemaLike | None = None, batch_rows: int | None = None
    ) -> Self:
        """Call ``fn(frame)`` with ``pl.DataFrame``s of at most ``batch_rows`` rows; it gives a
        ``pl.DataFrame``.

        Where batches are cut depends on the input's splits: the function must not carry anything from one to
        the next.
        """
        arguments.batch_function("map_batches", fn)
        check_whole("batch_rows", batch_rows, least=1, most=config.BATCH_ROWS_MAX, or_none=True)
        return self._then(
            MapBatches(self._rows("map_batches"), fn, arguments.schema("map_batches", schema), batch_rows)
        )

    def map_reduce(
        self,
        *,
        map: Callable[..., Any],
        reduce: Callable[..., Any],
        combine: Callable[..., Any] | None = None,
        partitions: int | None = None,
    ) -> Self:
        """The classic one: ``map(record)`` yields (key, value) pairs and ``reduce(key, values)`` gives the
        key's value.

        Gives the columns ``key`` and ``value``. ``combine(key, values)`` may shrink what a task sends on, and
        must agree with ``reduce``. ``partitions``: how many reduce tasks there are.
        """
        arguments.record_function("map_reduce", map, many=True)
        arguments.reduce_function("reduce", reduce)
        if combine is not None:
            arguments.reduce_function("combine", combine)
        check_whole("partitions", partitions, least=1, most=config.TASKS_PER_JOB_MAX, or_none=True)
        return self._then(MapReduce(self._rows("map_reduce"), map, reduce, combine, partitions))

    # -- groups and other datasets ---------------------------------------------------------------------------

    def group_by(self, *keys: str | pl.Expr | Iterable[str | pl.Expr], **named: IntoExpr) -> GroupBy[Self]:
        """Group by columns or row-local expressions; without keys all rows are one group."""
        return GroupBy(self, arguments.group_keys(keys, named))

    def window(self, spec: WindowSpec) -> Windowed[Self]:
        """Cut time into windows (``of.window``), by which the next ``group_by`` groups before its keys.

        Raises:
            InvalidArgument: definite; ``spec`` is not of ``of.window``.
            InvalidPlan: definite; this step cannot follow the one before.
        """
        if not isinstance(spec, WindowSpec):
            raise InvalidArgument(
                f'window takes of.window.tumbling("1m") and the like; got {arguments.shown(spec)}'
            )
        return Windowed(self._then(Window(self._rows("window"), spec)))

    def union(self, *others: Dataset) -> Self:
        """The rows of this dataset and the others, which have the same columns."""
        if not others:
            raise InvalidArgument("union needs another dataset")
        nodes = [self._rows("union")]
        for other in others:
            check_dataset("union", other)
            if self.unbounded != other.unbounded:
                raise InvalidPlan(
                    "union takes streams that are followed, or bounded data, and not both. "
                    "What was before a stream is put in front of it by db.concat(history, live, at=...)"
                )
            nodes.append(other._rows("union"))
        flat = [part for node in nodes for part in (node.inputs if isinstance(node, Union) else (node,))]
        return self._then(Union(tuple(flat)))

    def join(
        self,
        other: Dataset,
        on: str | Sequence[str],
        how: Literal["inner", "left"] = "inner",
        within: Duration | None = None,
    ) -> Self:
        """Join with another dataset on equal columns, as in Polars: null keys match nothing, and columns of
        ``other`` whose names are taken get the suffix ``_right``. Row order is not kept.

        ``within`` is for joining two streams.
        """
        check_dataset("join", other)
        if self.unbounded or other.unbounded:
            raise InvalidPlan(
                "join: a stream that is followed cannot be joined. Look values up in a function instead, as .map(fn) "
                "with a dict; or join bounded data, which read_stream gives without follow="
            )
        arguments.one_of("how", how, ("inner", "left"))
        if within is not None:
            raise InvalidArgument(
                "join: within= joins two streams by time; these datasets are bounded, so leave it out"
            )
        columns = arguments.column_names("join", (on,))
        return self._then(Join(self._rows("join"), other._rows("join"), columns, how))

    # -- sinks -----------------------------------------------------------------------------------------------

    def into(
        self,
        table: str,
        mode: Literal["continue", "replace", "error"] = "continue",
        version: str | None = None,
        keep: Duration | None = None,
    ) -> PreparedJob:
        """Make the result a table of the space, readable from the first finished task on.

        ``mode``: when the table exists, ``"continue"`` re-uses its finished tasks, ``"replace"`` computes all
        again,
        ``"error"`` refuses. ``version``: names the tasks instead of the plan's digest, so that a change of
        code computes nothing again while the version stays. ``keep``: for windowed tables.
        """
        from onefold.durations import seconds

        arguments.new_table(table)
        arguments.one_of("mode", mode, ("continue", "replace", "error"))
        arguments.version(version)
        return PreparedJob(
            Job(self.node, Into(table, mode, version, None if keep is None else seconds(keep, "keep"))),
            self.starter,
        )

    def write_parquet(
        self,
        path: str | os.PathLike[str],
        partition_by: str | Sequence[str] | None = None,
        mode: Literal["replace", "replace_partitions", "append"] = "replace",
        version: str | None = None,
    ) -> PreparedJob:
        """Publish the result as a folder of Parquet files: whole or not at all.

        ``partition_by``: columns that become folders ``column=value``. ``mode``: ``"replace"`` the folder's
        files,
        ``"replace_partitions"`` only of the partitions that the result has, or ``"append"``.
        """
        arguments.one_of("mode", mode, ("replace", "replace_partitions", "append"))
        arguments.version(version)
        given = () if partition_by is None or partition_by in ((), []) else (partition_by,)
        columns = arguments.column_names("partition_by", given) if given else ()
        if mode == "replace_partitions" and not columns:
            raise InvalidArgument('mode="replace_partitions" needs partition_by=')
        return PreparedJob(
            Job(self.node, WriteParquet(arguments.folder(path), columns, mode, version)), self.starter
        )

    # -- help ------------------------------------------------------------------------------------------------

    def explain(self) -> str:
        """The plan as text, one line per step."""
        from onefold.compute.plan.explain import plan_text

        return plan_text(self.node)

    def __repr__(self) -> str:
        return f"<Dataset\n{self.explain()}>"

    def _then(self, node: Node) -> Self:
        return replace(self, node=node)

    def _rows(self, step: str) -> Node:
        """This dataset's node as the input of another step: not after aggregating, whose groups live in
        partials.
        """
        if isinstance(self.node, GroupAggregate):
            raise InvalidPlan(
                f"{step} cannot follow .agg(...): aggregates are merged when they are read, so they end a "
                f"plan. Put {step} "
                f"before group_by, or do it on the result with db.table(...).scan()"
            )
        return self.node


def check_dataset(step: str, other: Any) -> None:
    """Raise InvalidArgument when ``other`` is not a dataset."""
    if not isinstance(other, Dataset):
        raise InvalidArgument(
            f"{step} takes another dataset (as db.read_csv(...) gives); got {arguments.shown(other)}"
        )


@dataclass(frozen=True, eq=False)
class Windowed(Generic[D]):
    """Rows in windows of time, waiting for ``.group_by(...)``."""

    dataset: D

    def group_by(self, *keys: str | pl.Expr | Iterable[str | pl.Expr], **named: IntoExpr) -> GroupBy[D]:
        """Group by the window, then by columns or row-local expressions; without keys a window is one group.

        Raises:
            InvalidPlan: definite; keys that look at more than one row, or are called ``window_start`` or ``window_end``.
            InvalidArgument: definite; what cannot be a key.
        """
        import polars as pl

        from onefold.compute.plan.windows import END, START

        given = arguments.group_keys(keys, named)
        taken = [key.meta.output_name() for key in given if key.meta.output_name() in (START, END)]
        if taken:
            raise InvalidPlan(
                f"group_by: {taken[0]!r} is a key already, since the rows are in windows; leave it out"
            )
        return GroupBy(self.dataset, (pl.col(START), pl.col(END), *given))

    def __repr__(self) -> str:
        return f"<Windowed\n{self.dataset.explain()}call .group_by(...)>"


@dataclass(frozen=True, eq=False)
class GroupBy(Generic[D]):
    """Groups of rows, waiting for ``.agg(...)``."""

    dataset: D
    keys: tuple[pl.Expr, ...]

    def agg(self, *aggregates: pl.Expr | Iterable[pl.Expr], **named: Aggregate | pl.Expr) -> D:
        """One row per group: its keys and these aggregates.

        ``named``: output column = ``onefold.agg.count()`` and the like. Plain ``pl.len()`` and
        ``pl.col("x").sum()``,
        ``mean``, ``min``, ``max`` are taken as well, by position under their own name.
        """
        import polars as pl

        from onefold.compute.aggregates import Aggregate

        if "ttl" in named and not isinstance(named["ttl"], Aggregate | pl.Expr):
            raise InvalidArgument(
                "agg: ttl= is for groups of a stream that have no window. Windows end by themselves, and bounded data does: "
                "leave it out"
            )
        aggs = arguments.aggregates(aggregates, named, self.keys)
        return self.dataset._then(GroupAggregate(self.dataset._rows("group_by"), self.keys, aggs))

    def __repr__(self) -> str:
        keys = ", ".join(map(str, self.keys))
        return f"<GroupBy {keys or 'all rows'}: call .agg(...)>"


@dataclass(frozen=True, eq=False)
class PreparedJob:
    """A plan with its sink. Nothing has run; ``run()`` or ``start()`` it."""

    job: Job
    starter: Starter

    def start(
        self,
        workers: int | None = None,
        seed: int = SEED_DEFAULT,
        target_splits: int | None = None,
        on_error: Literal["fail", "skip"] = "fail",
        max_attempts: int = config.MAX_ATTEMPTS,
    ) -> Run:
        """Submit the job and begin in the background; gives the run.

        ``workers``: processes and threads of this program that work on it (None: by the machine's cores; 0:
        none, other processes do). ``seed``: of the dispatch order. ``target_splits``: about how many tasks to
        cut the input into.
        ``on_error``: a record for which a function raises fails the job, or with ``"skip"`` it is kept aside in
        ``run.dead_letters()``.
        ``max_attempts``: how often a task is tried whose process dies, or that cannot read its input.

        Raises:
            InvalidPlan, InvalidArgument: definite; nothing was submitted.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return self.starter.start(self.job, **_options(workers, seed, target_splits, on_error, max_attempts))

    def run(
        self,
        progress: bool = True,
        *,
        workers: int | None = None,
        seed: int = SEED_DEFAULT,
        target_splits: int | None = None,
        on_error: Literal["fail", "skip"] = "fail",
        max_attempts: int = config.MAX_ATTEMPTS,
    ) -> Run:
        """Start and wait, showing progress on a terminal or in a notebook. Arguments as ``start``.

        Raises:
            JobFailed: a task has failed; finished tasks are kept.
            Unavailable: definite; the run was cancelled, or the space cannot be reached.
            InvalidPlan, InvalidArgument: definite; nothing was submitted.
        """
        check_flag("progress", progress)
        options = _options(workers, seed, target_splits, on_error, max_attempts)
        return self.starter.run(self.job, progress=progress, **options)

    def explain(self) -> str:
        """The plan and its sink as text, one line per step."""
        from onefold.compute.plan.explain import job_text

        return job_text(self.job)

    def __repr__(self) -> str:
        return f"<PreparedJob\n{self.explain()}>"


def _options(
    workers: int | None, seed: int, target_splits: int | None, on_error: str, max_attempts: int
) -> Mapping[str, Any]:
    check_whole("workers", workers, least=0, most=config.JOB_WORKERS_MAX, or_none=True)
    check_whole("seed", seed, least=0)
    check_whole("target_splits", target_splits, least=1, most=config.TARGET_SPLITS_MAX, or_none=True)
    arguments.one_of("on_error", on_error, ("fail", "skip"))
    check_whole("max_attempts", max_attempts, least=1, most=1000)
    return {
        "workers": workers,
        "seed": seed,
        "target_splits": target_splits,
        "on_error": on_error,
        "max_attempts": max_attempts,
    }
