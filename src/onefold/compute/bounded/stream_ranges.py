"""Streams of the space as input of batch jobs: the records that are there at a call, with the rules of live jobs.

The columns are those of ``schema=`` or of the first records. A column that is missing is null, another type is cast where no
value changes, and what does not fit, or has no event time where one was named, is a record that fails the job or is set aside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import polars as pl

from onefold import config
from onefold.compute.frames.values_as_text import safe_repr
from onefold.compute.live.inputs.preparing import OWN_TYPES, Schema, event_times
from onefold.compute.live.inputs.reading import UNREADABLE, Inputs
from onefold.compute.live.plan import StreamInput
from onefold.compute.plan.nodes import Source
from onefold.compute.plan.stages import DeadLetter, Unit
from onefold.compute.sources import ranges
from onefold.compute.sources.listing import FileInfo
from onefold.compute.sources.ranges import StreamsUnavailable, Taken
from onefold.compute.sources.resolving import Resolved
from onefold.errors import InvalidArgument, InvalidValue, TooOld, Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.state.core.consistency import STRONG
from onefold.state.streams.frames import OWN_COLUMNS
from onefold.state.streams.layout import Layout
from onefold.state.streams.reading import start_offsets

if TYPE_CHECKING:
    from onefold.compute.sources.ranges import Schema as Columns
    from onefold.state.core.client import StateClient

_BYTES_DEFAULT = 64.0
"""Taken as the size of a record where none could be looked at."""


class StreamRanges:
    """Reads streams for batch jobs. Thread-safe."""

    def __init__(self, client: Callable[[], StateClient]) -> None:
        self._client = client

    # -- at submission

    def resolve(self, source: Source) -> Resolved:
        """See ``sources.ranges.Streams``."""
        client, name = self._client(), source.paths[0]
        layout = Layout(client, name)
        row = layout.find(STRONG)
        if row is None:
            raise InvalidArgument(
                f"there is no stream {name!r}: append to it first, or follow it (follow=True) to wait for it"
            )
        chosen = source.option("partitions") or tuple(range(row.partitions))
        unknown = [number for number in chosen if number >= row.partitions]
        if unknown:
            raise InvalidArgument(
                f"stream {name!r} has {row.partitions} partitions, numbered from 0; partitions= names {unknown[0]}"
            )
        heads = layout.kept(row, chosen, STRONG)
        starts = start_offsets(layout, source.option("start", "earliest"), heads, row.partitions, whole=True)
        spans = {number: (starts[number], max(starts[number], heads[number].next)) for number in chosen}
        begun = any(first < stop for first, stop in spans.values())
        seen = spans if begun else {number: (head.first, head.next) for number, head in heads.items()}
        schema, each = self._columns(source, seen)
        files = tuple(
            FileInfo(
                ranges.partition_path(name, number), round((stop - first) * each), ranges.etag_of(first, stop)
            )
            for number, (first, stop) in sorted(spans.items())
        )
        return Resolved(files, schema)

    def _columns(
        self, source: Source, spans: dict[int, tuple[int, int]]
    ) -> tuple[tuple[tuple[str, pl.DataType], ...], float]:
        """(the columns of the rows, bytes of a record, roughly)."""
        given = source.option("schema")
        schema = Schema(dict(given) if given else None)
        inputs = _inputs(self._client(), source)
        rows, size = 0, 0
        for partition, (first, stop) in sorted(spans.items()):
            piece = inputs.read((0, partition), first, stop) if first < stop else None
            for frame in piece.frames if piece is not None else ():
                if UNREADABLE in frame.columns:
                    continue
                rows, size = rows + frame.height, size + int(frame.estimated_size())
                schema.fitted(frame)
            if rows and given:
                break
        if schema.columns is None:
            raise InvalidArgument(
                f"stream {source.paths[0]!r} has no records that tell its columns; say in schema= which there will be"
            )
        columns = {**schema.columns, **OWN_TYPES}
        _check_time(source, columns)
        return tuple(columns.items()), size / rows if rows else _BYTES_DEFAULT

    # -- for a task

    def take(self, source: Source, schema: Columns, units: Sequence[Unit], folder: Path) -> Taken:
        """See ``sources.ranges.Streams``."""
        client = self._client()
        made: list[Unit] = []
        dead: list[DeadLetter] = []
        try:
            partitions = sorted({ranges.place_of(unit.path)[1] for unit in units})
            Layout(client, source.paths[0]).heads(partitions, STRONG)  # all that the submitter saw is here
            for unit in units:
                made += self._taken(client, source, schema, unit, folder, dead)
        except BaseException as error:
            Taken(tuple(made), ()).remove()
            # Records that are lost, and not only away, fail the task: nobody else has them.
            if isinstance(error, Unavailable) and error.next_offset is None:
                raise StreamsUnavailable(str(error)) from error
            raise
        return Taken(tuple(made), tuple(dead))

    def _taken(
        self,
        client: StateClient,
        source: Source,
        schema: Columns,
        unit: Unit,
        folder: Path,
        dead: list[DeadLetter],
    ) -> Iterator[Unit]:
        """One range as files of a bounded size; at least one."""
        held: list[pl.DataFrame] = []
        start, size = unit.start, 0
        empty = pl.DataFrame(schema=dict(schema))
        for frame, after in _rows(client, source, schema, unit, dead):
            held.append(frame)
            size += int(frame.estimated_size())
            if size >= config.STREAM_SOURCE_FILE_BYTES and after < unit.stop:
                yield _written(held, unit, start, after, folder)
                held, start, size = [], after, 0
        yield _written(held or [empty], unit, start, unit.stop, folder)


def _written(held: list[pl.DataFrame], unit: Unit, start: int, stop: int, folder: Path) -> Unit:
    import os

    file = folder / f"{os.getpid()}-{uuid4().hex}"
    try:
        pl.concat(held).write_ipc(file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return ranges.taken_unit(unit, start, stop, file)


def _rows(
    client: StateClient, source: Source, schema: Columns, unit: Unit, dead: list[DeadLetter]
) -> Iterator[tuple[pl.DataFrame, int]]:
    """(rows of the source, the offset behind them); records that cannot be rows are added to ``dead``."""
    stream, partition = ranges.place_of(unit.path)
    inputs = _inputs(client, source)
    names = [name for name, _ in schema]
    offset = unit.start
    while offset < unit.stop:
        try:
            piece = inputs.read((0, partition), offset, unit.stop)
        except TooOld as error:
            raise TooOld(
                f"{ranges.place_text(stream, partition, offset)} has been removed by retention since the job was submitted: run "
                "it again, over what is there, or keep records longer with set_retention"
            ) from error
        if piece is None:
            raise Unavailable(
                f"{ranges.place_text(stream, partition, offset)} is not here yet; the task is tried again"
            )
        for frame in piece.frames:
            rows, letters = _fitted(frame, schema, source, stream, partition)
            dead += letters
            yield rows.select(names), int(frame["_offset"][-1]) + 1
        offset = piece.next


def _fitted(
    frame: pl.DataFrame, schema: Columns, source: Source, stream: str, partition: int
) -> tuple[pl.DataFrame, list[DeadLetter]]:
    columns = {name: dtype for name, dtype in schema if name not in OWN_COLUMNS}
    fitted, broken, _ = Schema(dict(columns)).fitted(frame)
    for name, dtype in columns.items():
        if fitted.schema[name] != dtype:  # null in all records that were looked at when the job was submitted
            for row in fitted[name].is_not_null().arg_true():
                broken.setdefault(
                    int(row),
                    f"column {name!r} was null in the first records, so it has no type: say it in schema= of read_stream",
                )
            fitted = fitted.with_columns(pl.lit(None, dtype=dtype).alias(name))
    column = source.option("event_time")
    if column is not None and UNREADABLE not in frame.columns:
        for row in event_times(fitted, column).is_null().arg_true():
            broken.setdefault(int(row), f"there is no time in column {column!r}")
    if not broken:
        return fitted, []
    letters = [
        DeadLetter(
            ranges.place_text(stream, partition, int(frame["_offset"][row])),
            safe_repr(frame.drop(UNREADABLE, strict=False).row(row, named=True)),
            reason,
        )
        for row, reason in sorted(broken.items())
    ]
    keep = ~pl.int_range(fitted.height).is_in(sorted(broken))
    return fitted.filter(keep), letters


def _inputs(client: StateClient, source: Source) -> Inputs:
    """Reads the partitions of the stream."""
    return Inputs(client, [StreamInput(source.paths[0], source.option("event_time"))])


def _check_time(source: Source, columns: dict[str, Any]) -> None:
    """Raise InvalidArgument when the event time is not among the columns, or not a time."""
    column = source.option("event_time")
    if column is None:
        return
    try:
        event_times(pl.DataFrame(schema=columns), column)
    except InvalidValue as error:
        let_pass(error)
        raise InvalidArgument(f"read_stream {source.paths[0]!r}: {error}") from None
