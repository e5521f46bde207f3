"""What becomes of a task's rows: collectors for each kind of output, and merging the outputs of parts of a
task.

A task without any row whose columns are unknown (functions without ``schema=`` gave nothing) leaves a Result
with neither inline bytes nor blob: the neutral element of every merge.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from onefold import config
from onefold.compute.blobs.store import BlobStore
from onefold.compute.frames import values as frames
from onefold.compute.plan.stages import (
    MapOutput,
    Output,
    PartialOutput,
    Result,
    RowsOutput,
    ShuffleOutput,
    Unit,
)
from onefold.compute.tasks import shuffle
from onefold.compute.tasks.python_steps import Values
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    import polars as pl

PENDING_ROWS_MAX: Final = 1_000_000
PENDING_BYTES_MAX: Final = 64 * 1024 * 1024
"""Rows wait for being aggregated up to these sizes, or until they are as many as the groups so far."""
Stored: TypeAlias = tuple[bytes | None, str | None, int]
"""(inline, blob, rows)"""


def needs_order(output: Output) -> bool:
    """Whether an aggregate asks where each row stands."""
    return isinstance(output, PartialOutput) and any(aggregate.needs_order for _, aggregate in output.aggs)


def order_struct(unit: Unit | None, partition: int | None, row: pl.Expr) -> pl.Expr:
    """The column that says where a row stands: file, start of the unit, row after the steps in that unit."""
    import polars as pl

    from onefold.compute.aggregates import ORDER_COLUMN

    path, start = (unit.path, unit.start) if unit is not None else ("", partition or 0)
    return pl.struct(
        pl.lit(path, dtype=pl.String).alias("path"),
        pl.lit(start, dtype=pl.Int64).alias("start"),
        row.cast(pl.Int64).alias("row"),
    ).alias(ORDER_COLUMN)


class Collector(Protocol):
    """Takes a task's rows in order and stores what becomes of them."""

    def add(self, rows: pl.DataFrame | Values, unit: Unit | None) -> None:
        """Rows that come next, of this unit."""

    def finish(self, notes: Sequence[str] = ()) -> Stored:
        """Store the output, with the notes of the task (see ``compute.tasks.found_types``)."""


class RowsCollector:
    """Collects rows for ``RowsOutput`` and ``ShuffleOutput``."""

    def __init__(self, output: RowsOutput | ShuffleOutput, blobs: BlobStore) -> None:
        self._output = output
        self._blobs = blobs
        self._frames: list[pl.DataFrame] = []

    def add(self, rows: pl.DataFrame | Values, unit: Unit | None) -> None:  # noqa: ARG002
        """Rows that come next."""
        frame = rows.to_frame() if isinstance(rows, Values) else rows
        if frame.height or not self._frames:
            self._frames.append(frame)

    def finish(self, notes: Sequence[str] = ()) -> Stored:
        """Store all rows."""
        frame = frames.concat(self._frames)
        self._frames = []
        if isinstance(self._output, RowsOutput):
            return store_frame(frame, self._blobs, notes)
        if not frame.width:
            return None, None, 0
        return (
            None,
            shuffle.write_frame(frame, self._output.keys, self._output.partitions, self._blobs, notes),
            frame.height,
        )


class PartialCollector:
    """Aggregates rows as they come: memory is bounded by the groups and a bounded number of waiting rows."""

    def __init__(
        self,
        output: PartialOutput,
        blobs: BlobStore,
        partition: int | None,
        first_row: int,
        typed: bool = False,
    ) -> None:
        """``typed``: the partial says of what types its rows were, since only values told them."""
        self._output = output
        self._typed = typed
        self._blobs = blobs
        self._partition = partition
        self._ordered = needs_order(output)
        self._next_row: dict[Unit | None, int] = {}
        self._first_row = first_row
        self._pending: list[pl.DataFrame] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._partial: pl.DataFrame | None = None

    def add(self, rows: pl.DataFrame | Values, unit: Unit | None) -> None:
        """Rows that come next, of this unit."""
        frame = rows.to_frame() if isinstance(rows, Values) else rows
        if self._ordered:
            frame = self._with_order(frame, unit)
        if frame.height or (not self._pending and self._partial is None):
            self._pending.append(frame)
            self._pending_rows += frame.height
            self._pending_bytes += int(frame.estimated_size())
        groups = self._partial.height if self._partial is not None else 0
        if self._pending_rows > max(PENDING_ROWS_MAX, groups) or self._pending_bytes > PENDING_BYTES_MAX:
            self._aggregate()

    def finish(self, notes: Sequence[str] = ()) -> Stored:
        """Store the partial."""
        self._aggregate()
        if self._partial is None:
            return None, None, 0
        return store_frame(self._partial, self._blobs, notes)

    def _aggregate(self) -> None:
        from onefold.compute import aggregates

        frame = frames.concat(self._pending)
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        if not frame.width:
            return
        partial = aggregates.partial(frame.lazy(), self._output.keys, self._output.aggs)
        self.merge(aggregates.with_row_types(partial, frame.schema) if self._typed else partial)

    def merge(self, partial: pl.DataFrame) -> None:
        """Take in the partial of rows that come after all so far."""
        from onefold.compute import aggregates

        if self._partial is None:
            self._partial = partial
        else:
            keys = [key.meta.output_name() for key in self._output.keys]
            self._partial = aggregates.merge_pair(self._partial, partial, keys, self._output.aggs)

    def _with_order(self, frame: pl.DataFrame, unit: Unit | None) -> pl.DataFrame:
        import polars as pl

        first = self._next_row.get(unit, self._first_row)
        self._next_row[unit] = first + frame.height
        row = pl.int_range(first, first + frame.height, dtype=pl.Int64)
        return frame.with_columns(order_struct(unit, self._partition, row))


def store_frame(frame: pl.DataFrame, blobs: BlobStore, notes: Sequence[str] = ()) -> Stored:
    """A small frame inline, a larger one as a blob."""
    from onefold.compute import aggregates

    if not frame.width:
        return None, None, 0
    return (*store_bytes(aggregates.encode(frame, notes), blobs), frame.height)


def store_bytes(data: bytes, blobs: BlobStore) -> tuple[bytes | None, str | None]:
    """(inline, blob) for these bytes."""
    if len(data) <= config.PARTIAL_INLINE_BYTES_MAX:
        return data, None
    return None, blobs.put(data)


def load_frame(
    result: Result, blobs: BlobStore, columns: Collection[str] | None = None
) -> pl.DataFrame | None:
    """A task's partial or rows, or these columns of it; None when it left nothing. Raises BlobMissing."""
    from onefold.compute import aggregates

    if result.blob is not None:
        return aggregates.decode(blobs.open_path(result.blob), columns)
    return aggregates.decode(result.inline, columns) if result.inline is not None else None


def head(result: Result, output: Output, blobs: BlobStore) -> tuple[dict[str, Any], list[str]]:
    """(types of the rows behind a task's result, where it says them, what the task noted). Raises BlobMissing.

    ``compute.tasks.found_types`` says what notes are.
    """
    from onefold.compute import aggregates

    if isinstance(output, PartialOutput | RowsOutput):
        stored = blobs.open_path(result.blob) if result.blob is not None else result.inline
        if stored is None:
            return {}, []
        schema, notes = aggregates.read_head(stored)
        return (aggregates.row_types(schema) if isinstance(output, PartialOutput) else dict(schema)), notes
    if result.blob is None or not isinstance(output, ShuffleOutput | MapOutput):
        return {}, []
    with shuffle.open_file(blobs, result.blob) as file:
        return {}, list(file.notes)


def collector(
    output: Output, blobs: BlobStore, partition: int | None, first_row: int, typed: bool = False
) -> Collector:
    """The collector for an output. ``typed``: see ``PartialCollector``."""
    match output:
        case PartialOutput():
            return PartialCollector(output, blobs, partition, first_row, typed)
        case RowsOutput() | ShuffleOutput():
            return RowsCollector(output, blobs)
        case MapOutput():
            from onefold.compute.tasks.reduce import PairCollector

            return PairCollector(output, blobs)
    raise InvalidPlan("publishing a folder is not a task that reads rows; see onefold.compute.publish.folder")


def merge_parts(output: Output, parts: Sequence[Result], blobs: BlobStore) -> Stored:
    """The output of a task out of those of consecutive ranges of its input, in order."""
    held = [part for part in parts if part.blob is not None or part.inline is not None]
    rows = sum(part.rows_out for part in held)
    if not held:
        return None, None, 0
    if len(held) == 1:
        return held[0].inline, held[0].blob, rows
    noted = sorted({note for part in held for note in head(part, output, blobs)[1]})
    match output:
        case PartialOutput():
            merger = PartialCollector(output, blobs, None, 0)
            for part in held:
                frame = load_frame(part, blobs)
                if frame is not None:
                    merger.merge(frame)
            return merger.finish(noted)
        case RowsOutput():
            loaded = [load_frame(part, blobs) for part in held]
            return store_frame(frames.concat(frame for frame in loaded if frame is not None), blobs, noted)
        case ShuffleOutput():
            return None, shuffle.concat_files([part.blob for part in held if part.blob], blobs, noted), rows
        case MapOutput():
            from onefold.compute.tasks.reduce import merge_runs

            names = [part.blob for part in held if part.blob]
            return None, merge_runs(names, output.partitions, blobs, noted), rows
    raise InvalidPlan("this output is not made of parts")
