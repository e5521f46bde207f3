"""Running one task: the rows of its leaf, the steps on them, its output.

A split of a source without Python functions is one lazy Polars query over the whole split. Everything else,
and every task that looks for the record that breaks it, goes chunk by chunk: memory is bounded by a chunk,
the output, and what one unit of input takes. Which rows make a chunk depends on the input alone, so a re-run
gives the same bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from onefold import config
from onefold.compute.blobs.store import BlobMissing, BlobStore, BlobsUnavailable
from onefold.compute.frames import values as frames
from onefold.compute.frames.values_as_text import safe_repr
from onefold.compute.plan.nodes import PythonNode
from onefold.compute.plan.stages import (
    Branch,
    DeadLetter,
    Failure,
    JoinLeaf,
    MapOutput,
    PartialOutput,
    ReduceLeaf,
    Result,
    SessionLeaf,
    SourceLeaf,
    Unit,
)
from onefold.compute.plan.type_sensitive import LEAF, needs_of
from onefold.compute.plan.windows import with_sessions
from onefold.compute.tasks import joins, outputs, shuffle
from onefold.compute.tasks.failures import (
    LocatedError,
    RecordError,
    cause_of,
    failure_of,
    is_passing,
    letter_of,
)
from onefold.compute.tasks.found_types import Found
from onefold.compute.tasks.pipeline import Pipeline, apply_lazy, raise_letter
from onefold.compute.tasks.python_steps import MAP_BATCH_ROWS, Values, records_of
from onefold.compute.tasks.spec import TaskError, TaskSpec, has_python

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.sources import Places
    from onefold.compute.tasks.reduce import Reducer

__all__ = ["TaskError", "TaskSpec", "count_rows", "execute", "has_python", "peek"]

CHUNK_BYTES_MAX: Final = 16 * 1024 * 1024
"""A chunk with more bytes is cut, for the sake of the Python objects made of it."""
_RANGE_ORDER_SHIFT: Final = 24
"""Rows of a range of a task are numbered from lo << 24: in order with those of the ranges before, unless a
record
explodes into 16 million rows."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive input rows of a task."""

    frame: pl.DataFrame
    first: int
    """Number of its first row in the task's input."""
    unit: Unit | None = None
    unit_first: int = 0
    """Number of its first row in the unit."""


def execute(
    spec: TaskSpec,
    blobs: BlobStore,
    *,
    rows: tuple[int, int] | None = None,
    on_rows: Callable[[int], None] | None = None,
    mark: Callable[[int, int], None] | None = None,
) -> Result:
    """Run a task in this process.

    ``rows=(lo, hi)`` does only those of its input records. ``on_rows`` receives how many records have been
    read so far. ``mark(lo, hi)`` receives which records are about to be worked on, in isolating runs.

    Raises TaskError for what a later attempt or a person has to see to, BlobMissing when the output of an
    earlier task cannot be had, and BlobsUnavailable.
    """
    began = time.monotonic()
    run = _Run(spec, blobs, rows, on_rows or (lambda _: None), mark or (lambda _lo, _hi: None))
    try:
        stored = run.stored()
    except (BlobMissing, BlobsUnavailable, TaskError):
        raise
    except BaseException as error:
        raise TaskError(failure_of(error, final=spec.isolate)) from cause_of(error)
    inline, blob, rows_out = stored
    return Result(
        inline=inline,
        blob=blob,
        rows_in=run.rows_in,
        bytes_in=spec.bytes_in,
        rows_out=rows_out,
        elapsed_ms=int((time.monotonic() - began) * 1000),
        dead=tuple(run.dead),
    )


def count_rows(spec: TaskSpec, blobs: BlobStore) -> int:
    """How many input records the task has. Raises as ``execute`` does."""
    try:
        run = _Run(spec, blobs, None, None, None)
        if isinstance(run.branch.leaf, ReduceLeaf):
            return run.reducer().count()
        return sum(chunk.frame.height for chunk in run.chunks())
    except (BlobMissing, BlobsUnavailable):
        raise
    except BaseException as error:
        raise TaskError(failure_of(error, final=not is_passing(error))) from error


def peek(spec: TaskSpec, blobs: BlobStore, row: int) -> tuple[str, str]:
    """(repr, location) of one input record."""
    run = _Run(spec, blobs, (row, row + 1), None, None)
    if isinstance(run.branch.leaf, ReduceLeaf):
        return run.reducer().peek()
    for chunk in run.chunks():
        return safe_repr(records_of(chunk.frame)[0]), run.locator(chunk)(chunk.first)
    return "", ""


@dataclass
class _Run:
    """The state of one execution."""

    spec: TaskSpec
    blobs: BlobStore
    rows: tuple[int, int] | None
    on_rows: Callable[[int], None] | None
    mark: Callable[[int, int], None] | None
    rows_in: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    _small: dict[int, pl.DataFrame] = field(default_factory=dict)
    _places: Places | None = None
    _traced_chars: int = 0
    _dead_chars: int = 0

    @property
    def branch(self) -> Branch:
        """The branch that the task's input belongs to."""
        return self.spec.stage.branches[self.spec.input.branch]

    @property
    def is_lazy(self) -> bool:
        """Whether the whole split can be one Polars query."""
        functions = any(isinstance(step, PythonNode) for step in self.branch.steps)
        mapped = isinstance(self.spec.stage.output, MapOutput)
        return isinstance(self.branch.leaf, SourceLeaf) and not (self.spec.isolate or functions or mapped)

    @property
    def careful(self) -> bool:
        """Whether records that break the task are looked for one by one."""
        return self.spec.isolate or self.spec.skip_errors

    def small(self, stage: int) -> pl.DataFrame:
        """The whole output of an earlier stage, for a broadcast join."""
        if stage not in self._small:
            loaded = [outputs.load_frame(result, self.blobs) for result in self.spec.inputs[stage]]
            self._small[stage] = frames.concat(frame for frame in loaded if frame is not None)
        return self._small[stage]

    def stored(self) -> outputs.Stored:
        """Do the work and store what comes of it."""
        if self.rows is None and self.is_lazy:
            try:
                return self.whole()
            except (BlobMissing, BlobsUnavailable):
                raise
            except BaseException:
                if not self.spec.skip_errors:
                    raise
            self.rows_in = 0  # a record breaks the query: look for it chunk by chunk
        return self.chunked()

    # -- one query -------------------------------------------------------------------------------------------

    def whole(self) -> outputs.Stored:
        """Run the split as one lazy query."""
        try:
            return self._whole()
        except BaseException as error:
            from onefold.compute import sources

            leaf = self.branch.leaf
            assert isinstance(leaf, SourceLeaf)
            named = sources.with_file(leaf.source, leaf.schema, self.spec.input.units, error)
            if named is error:
                raise
            raise named from error

    def _whole(self) -> outputs.Stored:
        import polars as pl

        output = self.spec.stage.output
        counts: list[int] = []
        if outputs.needs_order(output):
            rows = pl.concat(
                [
                    self._query((unit,), counts)
                    .with_row_index("__onefold_row")
                    .with_columns(outputs.order_struct(unit, None, pl.col("__onefold_row")))
                    .drop("__onefold_row")
                    for unit in self.spec.input.units
                ],
                how="vertical_relaxed",
            )
        else:
            rows = self._query(self.spec.input.units, counts)
        if isinstance(output, PartialOutput):
            from onefold.compute import aggregates

            known = len(
                counts
            )  # those that the files' own metadata tells; others are counted as they are read

            def uncount() -> None:
                del counts[known:]

            partial = aggregates.partial(rows, output.keys, output.aggs, again=uncount)
            if has_python(
                self.spec.stage
            ):  # another branch's types are known from values, which have to meet these
                partial = aggregates.with_row_types(partial, rows.collect_schema())
            stored = outputs.store_frame(partial, self.blobs)
        else:
            collector = outputs.collector(output, self.blobs, None, 0)
            collector.add(rows.collect(engine="streaming"), None)
            stored = collector.finish()
        self._read(sum(counts))
        return stored

    def _query(self, units: tuple[Unit, ...], counts: list[int]) -> pl.LazyFrame:
        from onefold.compute import sources

        leaf = self.branch.leaf
        assert isinstance(leaf, SourceLeaf)
        rows = sources.scan(leaf.source, leaf.schema, units)
        if leaf.source.kind == "parquet":  # without a counting node, Polars skips row groups and columns
            counts.append(sum(unit.stop - unit.start for unit in units))
        elif leaf.source.kind == "files":
            counts.append(len(units))
        else:

            def count(frame: pl.DataFrame) -> pl.DataFrame:
                counts.append(frame.height)
                return frame

            rows = rows.map_batches(
                count, projection_pushdown=True, streamable=True, validate_output_schema=False
            )
        for step in self.branch.steps:
            rows = apply_lazy(step, rows, self.small)  # type: ignore[arg-type]
        return rows

    # -- chunk by chunk --------------------------------------------------------------------------------------

    def chunked(self) -> outputs.Stored:
        """Run the steps on one chunk of rows after another."""
        output = self.spec.stage.output
        found = Found(self.spec.input.branch, needs_of(self.branch, output))
        pipeline = Pipeline(
            self.branch.steps, self.small, output.map if isinstance(output, MapOutput) else None, found
        )
        first_row = self.rows[0] << _RANGE_ORDER_SHIFT if self.rows is not None else 0
        typed = has_python(self.spec.stage)
        collector = outputs.collector(output, self.blobs, self.spec.input.partition, first_row, typed)
        if isinstance(self.branch.leaf, ReduceLeaf):
            self._reduced(pipeline, collector, found)
        else:
            for chunk in self.chunks(pipeline.batch_rows):
                self._work(chunk, pipeline, collector)
                self._read(chunk.frame.height)
        if not self.rows_in:
            self._nothing(pipeline, collector)
        return collector.finish(found.names())

    def _read(self, rows: int) -> None:
        self.rows_in += rows
        if self.on_rows is not None:
            self.on_rows(self.rows_in)

    def _work(self, chunk: Chunk, pipeline: Pipeline, collector: outputs.Collector) -> None:
        failed: BaseException | None = None
        if not self.spec.isolate:
            try:
                made = pipeline.run(chunk.frame)
            except BaseException as error:
                failed = error
            else:
                if made is not None:
                    self._add(made, chunk, pipeline, collector)
                return
        if failed is not None and not self.spec.skip_errors:
            self._explain(chunk, pipeline, failed)
        for rows in pipeline.run_tracked(
            chunk.frame,
            chunk.first,
            self.locator(chunk),
            self.on_letter,
            self.mark or _ignore,
            stop_at_first=not self.spec.skip_errors,
        ):
            collector.add(rows, chunk.unit)

    def _add(
        self, rows: pl.DataFrame | Values, chunk: Chunk, pipeline: Pipeline, collector: outputs.Collector
    ) -> None:
        try:
            collector.add(rows, chunk.unit)
            return
        except BaseException as error:
            if self.spec.skip_errors:
                raise  # some of the rows may have been taken in
            failed = error
        self._explain(chunk, pipeline, failed)

    def _explain(self, chunk: Chunk, pipeline: Pipeline, error: BaseException) -> NoReturn:
        """Raise LocatedError for a chunk that failed; runs it again when that is what it takes to name the
        record.
        """
        locate = self.locator(chunk)
        if isinstance(error, RecordError) and error.row is not None:
            raise LocatedError(
                letter_of(error, locate(chunk.first + error.row)),
                type(cause_of(error)).__name__,
                passing=is_passing(error),
            )
        try:
            for _ in pipeline.run_tracked(
                chunk.frame, chunk.first, locate, raise_letter, _ignore, stop_at_first=True
            ):
                pass
        except LocatedError as located:
            located.passing = is_passing(error)
            raise
        several = (
            f" (or one of the {chunk.frame.height - 1} records after it)" if chunk.frame.height > 1 else ""
        )
        raise LocatedError(
            letter_of(error, locate(chunk.first) + several),
            type(cause_of(error)).__name__,
            passing=is_passing(error),
        )

    def _nothing(self, pipeline: Pipeline, collector: outputs.Collector) -> None:
        """An input without a record: its columns still say what the output's are."""
        import polars as pl

        leaf = self.branch.leaf
        if isinstance(leaf, SourceLeaf):
            rows = pipeline.run(pl.DataFrame(schema=dict(leaf.schema)))
            if rows is not None:
                collector.add(rows, None)

    def reducer(self) -> Reducer:
        """What reduces the task's partition."""
        from onefold.compute.tasks.reduce import Reducer

        leaf = self.branch.leaf
        assert isinstance(leaf, ReduceLeaf)
        return Reducer(
            leaf, self.spec.input.partition or 0, self.spec.inputs[leaf.stage], self.blobs, self.rows
        )

    def _reduced(self, pipeline: Pipeline, collector: outputs.Collector, found: Found) -> None:
        on_letter = self.on_letter if self.careful else raise_letter
        reducer = self.reducer()
        for first, keys, frame in reducer.run(on_letter, self.mark or _ignore):
            if frame is not None:
                found.take(LEAF, frame)
                found.through()
                self._work(Chunk(frame, first), pipeline, collector)
            self._read(keys)
        found.keys(reducer.columns)

    def chunks(self, batch_rows: int = 0) -> Iterator[Chunk]:
        """The task's input rows in order, in pieces that depend on the input alone."""
        batch_rows = max(batch_rows, MAP_BATCH_ROWS)
        first = 0
        lo, hi = self.rows if self.rows is not None else (0, None)
        for unit, unit_first, frame in self._frames(batch_rows):
            if hi is not None and first >= hi:
                return
            start = max(0, lo - first)
            stop = frame.height if hi is None else min(frame.height, hi - first)
            while start < stop:
                whole = frame.slice(start, stop - start)
                rows = min(whole.height, batch_rows, _rows_per_chunk(frame))
                yield Chunk(whole.slice(0, rows), first + start, unit, unit_first + start)
                start += rows
            first += frame.height

    def _frames(self, batch_rows: int) -> Iterator[tuple[Unit | None, int, pl.DataFrame]]:
        leaf = self.branch.leaf
        if isinstance(leaf, SourceLeaf):
            from onefold.compute import sources

            for unit in self.spec.input.units:
                unit_first = 0
                for frame in sources.batches(leaf.source, leaf.schema, unit, batch_rows):
                    yield unit, unit_first, frame
                    unit_first += frame.height
        elif isinstance(leaf, SessionLeaf):
            rows = shuffle.read_partition(
                self.spec.inputs[leaf.stage], self.spec.input.partition or 0, self.blobs
            )
            if rows.width:
                yield None, 0, with_sessions(rows, leaf.keys, leaf.on, leaf.gap_us).drop(leaf.keys)
        elif isinstance(leaf, JoinLeaf):
            partition = self.spec.input.partition or 0
            sides = [
                shuffle.read_partition(self.spec.inputs[side], partition, self.blobs)
                for side in (leaf.left, leaf.right)
            ]
            yield None, 0, joins.join(sides[0], sides[1], leaf.on, leaf.how)

    # -- records that break it -------------------------------------------------------------------------------

    def on_letter(self, letter: DeadLetter, kind: str) -> None:
        """A record that breaks the task: the end of it, or a dead letter."""
        if not self.spec.skip_errors:
            raise LocatedError(letter, kind)
        self._traced_chars += len(letter.traceback)
        if self._traced_chars > config.DEAD_LETTER_TRACEBACKS_CHARS_MAX:
            letter = msgspec.structs.replace(letter, traceback="")
        self.dead.append(letter)
        self._dead_chars += len(letter.location) + len(letter.record) + len(letter.error)
        too_long = self._dead_chars > config.DEAD_LETTERS_CHARS_PER_TASK_MAX
        if len(self.dead) > self.spec.dead_letters_max or too_long:
            raise TaskError(too_many_dead(self.spec, letter, kind, too_long=too_long))

    def locator(self, chunk: Chunk) -> Callable[[int], str]:
        """Row number in the task -> where that is, for people."""
        leaf, partition = self.branch.leaf, self.spec.input.partition

        def locate(row: int) -> str:
            if not isinstance(leaf, SourceLeaf) or chunk.unit is None:
                return f"row {row} of partition {partition}"
            from onefold.compute import sources

            in_unit = chunk.unit_first + row - chunk.first
            try:
                if self._places is None:
                    self._places = sources.Places(leaf.source)
                return self._places.locate(chunk.unit, in_unit)
            except Exception:  # the file may be gone by now; the failure itself matters more
                return f"{chunk.unit.path}: row {in_unit} from {chunk.unit.start}"

        return locate


def too_many_dead(spec: TaskSpec, letter: DeadLetter, kind: str, *, too_long: bool = False) -> Failure:
    """A task that has more dead letters than it may, or longer ones."""
    chars = config.DEAD_LETTERS_CHARS_PER_TASK_MAX
    many = (
        f"the records of one task that failed take more than {chars} characters"
        if too_long
        else f"more than {spec.dead_letters_max} records of one task failed"
    )
    return Failure(
        message=f"{many}, the last one with {letter.error}",
        traceback=letter.traceback,
        record=letter.record,
        location=letter.location,
        final=True,
        kind=kind,
    )


def _ignore(_lo: int, _hi: int) -> None:
    pass


def _rows_per_chunk(frame: pl.DataFrame) -> int:
    return max(1, frame.height * CHUNK_BYTES_MAX // max(1, int(frame.estimated_size())))
