"""From the records of an input to rows with an event time, after the plan's row-local steps.

Three columns of our own go with each row through all steps: its event time, the number of its record in the batch, and when it
was appended. So a step may drop the column that the time came from, and a row that is late or broken leads back to its record
with all of its columns.

A record that cannot be processed is *dead*: without a time, of a type that does not fit, or one that a step fails for. Dead
records fail the job, or are set aside with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np
import polars as pl

from onefold.compute.frames.columns import constant, micros, with_column
from onefold.compute.frames.named import frame_of, is_pattern
from onefold.compute.frames.shown_values import shown_value
from onefold.compute.live.inputs.fitting import cast_same, misfit
from onefold.compute.live.inputs.made_types import MadeTypes
from onefold.compute.live.inputs.reading import UNREADABLE
from onefold.compute.live.inputs.times import Times
from onefold.compute.plan.nodes import Select
from onefold.compute.tasks.failures import one_line
from onefold.compute.tasks.pipeline import apply_lazy
from onefold.compute.tasks.row_steps import no_stage
from onefold.errors import InvalidPlan, InvalidValue
from onefold.machine.undisturbed import let_pass
from onefold.state.streams.frames import OWN_COLUMNS, own_types

if TYPE_CHECKING:
    from onefold.compute.live.inputs.reading import Piece
    from onefold.compute.live.plan import StreamInput
    from onefold.compute.plan.windows import WindowSpec
    from onefold.compute.tasks.row_steps import RowStep

TIME: Final = "__onefold_time"
"""The event time, of the type of the column that it came from."""
RECORD: Final = "__onefold_record"
"""UInt32: the number of the record in its batch."""
OWN_TYPES: Final = own_types()
REASON: Final = "reason"
TRACEBACK: Final = "traceback"
AS_READ: Final = "_record"
RECORD_CHARS_MAX: Final = 2000
"""Of a dead record as text."""
_LOOKED_AT_ROWS: Final = 4096
"""Of a piece that is to be cut so many records are looked at together."""
_HIDDEN: Final = (TIME, RECORD)
HOP_NAMES: Final = {name: f"__onefold_of{name}" for name in OWN_COLUMNS}
"""On their way to the next part rows carry the place of the record that they came from under these names."""
_NOT_OF_USERS: Final = frozenset((*OWN_COLUMNS, TIME, *HOP_NAMES.values(), UNREADABLE))


@dataclass(frozen=True, slots=True)
class Dead:
    """A record that cannot be processed."""

    record: int
    """Its number in the batch."""
    reason: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch after its steps."""

    records: pl.DataFrame
    """All records of the batch as they were read, in order."""
    rows: pl.DataFrame
    """What the steps made of them, with ``TIME`` and ``RECORD``."""
    times_us: pl.Series
    """Int64: the event time of each record; null for one that has none."""
    dead: tuple[Dead, ...]
    left_out: int = 0
    """How many records have a value in a column that was left out."""
    frames: tuple[pl.DataFrame, ...] = ()
    """The records as they were read, in order, with the columns and types that they came with."""
    before_seam: int = 0
    """How many records are of the time of a history, and left out."""

    @property
    def highest_us(self) -> int | None:
        """The highest event time; None without any."""
        found = self.times_us.max()
        return None if found is None else int(found)  # type: ignore[arg-type]

    def of_records(self, numbers: pl.Series, reasons: str | Sequence[str]) -> pl.DataFrame:
        """These records with all their columns and the reason, each once."""
        unique = numbers.unique(maintain_order=True) if isinstance(reasons, str) else numbers
        found = self.records[unique.cast(pl.UInt32)] if len(unique) else self.records.clear()
        texts = [reasons] * found.height if isinstance(reasons, str) else list(reasons)
        return with_reasons(found, texts)

    def set_aside(self) -> pl.DataFrame:
        """The dead records with their reasons, and as text in ``AS_READ``: a value that fits no column is in no column."""
        numbers = [one.record for one in self.dead]
        found = self.of_records(pl.Series(numbers, dtype=pl.UInt32), [one.reason for one in self.dead])
        return found.with_columns(pl.Series(AS_READ, self._as_read(numbers), dtype=pl.String))

    def _as_read(self, numbers: Sequence[int]) -> list[str]:
        """Records as text. ``numbers``: ascending."""
        texts: list[str] = []
        base, frames = 0, iter(self.frames)
        frame = next(frames)
        for number in numbers:
            while number - base >= frame.height:
                base += frame.height
                frame = next(frames)
            columns = [column for column in frame if column.name not in _NOT_OF_USERS]
            values = {column.name: shown_value(column, number - base) for column in columns}
            texts.append(repr(values)[:RECORD_CHARS_MAX] if values else "")
        return texts


def located(dead: Dead, prepared: Prepared, stream: str) -> str:
    """A dead record with its place and the reason, for messages."""
    offset, partition = (prepared.records[name][dead.record] for name in ("_offset", "_partition"))
    return f"record {offset} of partition {partition} of {stream!r}: {dead.reason}"


def with_reasons(rows: pl.DataFrame, reasons: Sequence[str]) -> pl.DataFrame:
    """Rows with why each was set aside: what is behind the first line is a traceback, in a column of its own if there is any."""
    lines = [reason.partition("\n") for reason in reasons]
    made = rows.with_columns(pl.Series(REASON, [line for line, _, _ in lines], dtype=pl.String))
    traces = [trace or None for _, _, trace in lines]
    return made.with_columns(pl.Series(TRACEBACK, traces, dtype=pl.String)) if any(traces) else made


@dataclass
class Schema:
    """The columns of an input: fixed at first sight, or by ``schema=``. A column that comes later is left out.

    A column that was null in all records so far has no type yet, and gets that of its first value.
    """

    columns: dict[str, pl.DataType] | None = None
    needs: frozenset[str] = frozenset()
    """Columns that the plan names."""
    times: Times = field(default_factory=Times)
    """Of all inputs of the part."""

    def fitted(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, dict[int, str], int]:
        """The frame with these columns; rows of it with a value that does not fit, with the reason; how many of its records
        have a value in a column that was left out. Raises InvalidPlan when the plan names a column that is not there."""
        own = [name for name in OWN_COLUMNS if name in frame.columns]
        if UNREADABLE in frame.columns:
            return self._empty(frame, own), dict(enumerate(frame[UNREADABLE])), 0
        if self.columns is None:
            self._see(frame, own)
        assert self.columns is not None
        extra = [name for name in frame.columns if name not in self.columns and name not in own]
        left_out = 0
        if extra:
            values = (frame.get_column(name).alias("") for name in extra)  # a name may read as a pattern
            left_out = int(reduce(or_, (column.is_not_null() for column in values)).sum())
        made: list[pl.Series] = []
        broken: dict[int, str] = {}
        for name, dtype in self.columns.items():
            if name not in frame.columns:
                made.append(pl.Series(name, [None], dtype=dtype).new_from_index(0, frame.height))
                continue
            if dtype == pl.Null and frame[name].dtype != pl.Null:
                self.columns[name] = dtype = frame[name].dtype
            column, wrong = cast_same(frame[name], dtype)
            made.append(column)
            for row in wrong:
                broken.setdefault(row, misfit(name, frame[name], row, dtype))
        return frame_of([*made, *(frame[name] for name in own)]), broken, left_out

    def _empty(self, frame: pl.DataFrame, own: Sequence[str]) -> pl.DataFrame:
        """The rows without any values."""
        columns = self.columns or {}
        nulls = [pl.Series(name, [None] * frame.height, dtype=dtype) for name, dtype in columns.items()]
        return frame_of([*nulls, *(frame[name] for name in own)])

    def _see(self, frame: pl.DataFrame, own: Sequence[str]) -> None:
        unknown = sorted(self.needs - set(frame.columns))
        if unknown:
            names = ", ".join(repr(name) for name in frame.columns if name not in own)
            raise InvalidPlan(
                f"the plan names column {unknown[0]!r}; the records have {names}. Correct the plan, or say in schema= of "
                "read_stream which columns there will be"
            )
        for name in frame.columns:
            if is_pattern(name):
                raise InvalidPlan(
                    f"a column cannot be called {name!r}, which means a pattern of names: rename it where it is appended, or say "
                    "in schema= of read_stream which other columns there are"
                )
        self.columns = {name: dtype for name, dtype in frame.schema.items() if name not in own}


class Schemas:
    """The columns of all inputs of a part, as its commits have said and as this worker has seen since."""

    def __init__(
        self, inputs: Sequence[StreamInput], spec: WindowSpec | None = None, later: WindowSpec | None = None
    ) -> None:
        """``spec``: the windows that rows get into. ``later``: those of the part that takes its rows."""
        self._inputs = tuple(inputs)
        self._spec, self._later = spec, later
        self._committed = b""
        self._changes = 0
        self.of: list[Schema] = []
        """By input."""
        self.made: list[MadeTypes] = []
        """By input: of what its functions give."""
        self.load(0, b"")

    def load(self, changes: int, data: bytes) -> None:
        """Take what commits have said: so many changes, of which this is the last."""
        self._changes, self._committed = changes, data
        self._encoded: tuple[dict[int, dict[str, pl.DataType]], bytes] = ({}, b"")
        known: dict[int, bytes] = msgspec.msgpack.decode(data, type=dict[int, bytes]) if data else {}
        several = sum(not one.history for one in self._inputs) > 1
        times = Times(shared=several, spec=self._spec, later=self._later)
        if _OF_ALL in known:
            times.dtype = pl.read_ipc_stream(known[_OF_ALL]).schema[TIME]
        self.of = [
            Schema(self._columns(one, known.get(number)), one.needs, times)
            for number, one in enumerate(self._inputs)
        ]
        self.made = [
            MadeTypes(
                dict(pl.read_ipc_stream(known[_MADE - number]).schema) if _MADE - number in known else {}
            )
            for number in range(len(self._inputs))
        ]

    def change(self) -> tuple[int, bytes] | None:
        """What a commit has to say of them, if anything changed."""
        seen = {
            number: dict(schema.columns)
            for number, schema in enumerate(self.of)
            if schema.columns is not None and self._inputs[number].schema is None
        }
        if (times := self.of[0].times.dtype) is not None:
            seen[_OF_ALL] = {TIME: times}
        seen |= {_MADE - number: dict(one.columns) for number, one in enumerate(self.made) if one.columns}
        if seen != self._encoded[0]:
            self._encoded = (seen, _encoded(seen))
        data = self._encoded[1]
        return (self._changes, data) if seen and data != self._committed else None

    def accepted(self, change: tuple[int, bytes] | None) -> None:
        """The change is committed."""
        if change is not None:
            self._changes, self._committed = change[0] + 1, change[1]

    @staticmethod
    def _columns(source: StreamInput, known: bytes | None) -> dict[str, pl.DataType] | None:
        if source.schema is not None:
            return {name: pl.DataFrame(schema={name: dtype}).schema[name] for name, dtype in source.schema}
        return None if known is None else dict(pl.read_ipc_stream(known).schema)


def _encoded(seen: Mapping[int, Mapping[str, pl.DataType]]) -> bytes:
    return msgspec.msgpack.encode(
        {
            number: pl.DataFrame(schema=columns).write_ipc_stream(None).getvalue()
            for number, columns in seen.items()
        }
    )


_OF_ALL: Final = -1
"""The number under which commits say the type of the event times, if there are several inputs."""
_MADE: Final = -2
"""The number under which commits say the types of what the functions of the first input give; less by one for each next one."""
RunSteps = Callable[[pl.DataFrame], tuple[pl.DataFrame, dict[int, str]]]
"""Rows with ``TIME`` and ``RECORD`` -> (what the steps make of them, records that broke with the reason)."""


def prepare(
    piece: Piece,
    source: StreamInput,
    schema: Schema,
    until_us: int | None = None,
    run_python: RunSteps | None = None,
) -> tuple[Piece, Prepared]:
    """A piece of one partition, prepared. ``until_us``: only up to the first record with a later time. ``run_python``: runs the
    steps, when one of them calls a function.

    Raises InvalidPlan for columns that are not there, and what ``run_python`` raises.
    """
    if until_us is not None:
        piece = _until(piece, source, schema, until_us)
    records, time, dead, left_out = _records(piece, source, schema)
    numbers = pl.Series(RECORD, np.arange(records.height, dtype=np.uint32))
    marked = with_column(with_column(records, time.alias(TIME)), numbers)
    if dead:
        marked = marked.filter(~pl.col(RECORD).is_in(sorted(dead)))
    whole = marked.height
    if source.since_us is not None:
        marked = marked.filter(pl.col(TIME).dt.epoch("us") >= source.since_us)
    elif piece.place[1] in source.first_offsets:
        marked = marked.filter(pl.col("_offset") >= source.first_offsets[piece.place[1]])
    before_seam = whole - marked.height
    if run_python is not None:
        rows, broken_rows = run_python(marked)
    else:
        rows, broken_rows = _after_steps(marked, source.steps)
    dead |= broken_rows
    found = tuple(Dead(number, dead[number]) for number in sorted(dead))
    return piece, Prepared(records, rows, micros(time), found, left_out, piece.frames, before_seam)


def _until(piece: Piece, source: StreamInput, schema: Schema, until_us: int) -> Piece:
    """The piece up to its first record with a later time. It is cut before anything else is done with it: a partition that is far
    ahead is read in many slices, and each must cost what is in it."""
    base = piece.first
    for frame in piece.frames:
        for some in frame.iter_slices(_LOOKED_AT_ROWS):
            beyond = (micros(_times(some, source, schema)) > until_us).arg_true()
            if len(beyond):
                return piece.between(piece.first, base + int(beyond[0]) + 1) or piece
            base += some.height
    return piece


def _times(read: pl.DataFrame, source: StreamInput, schema: Schema) -> pl.Series:
    """The times of records as they were read; null where there is none."""
    if source.hop_of:
        return read[TIME]
    name = source.event_time
    dtype = (schema.columns or {}).get(name or "")
    if name in read.columns and dtype is not None and dtype != pl.Null:
        read = read.select(cast_same(read[name], dtype)[0])
    try:
        return event_times(read, name)
    except InvalidValue as error:
        let_pass(error)
        return constant(TIME, None, pl.Datetime("us"), read.height)


def _records(
    piece: Piece, source: StreamInput, schema: Schema
) -> tuple[pl.DataFrame, pl.Series, dict[int, str], int]:
    """(the records with the columns of their input, their times, those that do not fit with the reason, how many have more
    columns)."""
    frames: list[pl.DataFrame] = []
    times: list[pl.Series] = []
    dead: dict[int, str] = {}
    left_out = 0
    base = 0
    for read in piece.frames:
        frame = read
        if source.hop_of:
            frame, time = as_read(read)
            times.append(time)
        fitted, broken, more = schema.fitted(frame)
        dead |= {base + row: reason for row, reason in broken.items()}
        frames.append(fitted)
        left_out += more
        base += fitted.height
    records = pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else frames[0]
    reason = f"there is no time in column {source.event_time!r}"
    if times:
        time = pl.concat(times)
    else:
        try:
            time = event_times(records, source.event_time)
        except InvalidValue as error:
            let_pass(error)
            time, reason = pl.Series(TIME, [None] * records.height, dtype=pl.Datetime("us")), str(error)
    fitted_times, wrong = schema.times.fitted(time)
    if wrong and source.event_time in records.columns:
        # A value that cannot be is in no column: who reads the records that were set aside must be able to.
        records = with_column(records, time.set(fitted_times.is_null(), None).alias(source.event_time))
    for row in fitted_times.is_null().arg_true() if fitted_times.null_count() else ():
        dead.setdefault(row, wrong.get(row, reason))
    return records, fitted_times, dead, left_out


def with_origins(rows: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """Rows (with ``RECORD``) for the next part. ``records``: what was read, in order."""
    at = rows[RECORD]
    origins = [records[name].gather(at).alias(hidden) for name, hidden in HOP_NAMES.items()]
    return rows.drop([name for name in (RECORD, *OWN_COLUMNS) if name in rows.columns]).with_columns(origins)


def as_read(rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
    """Rows of a hop as they were read there: (the rows with the columns of their records, their event times)."""
    kept = rows.drop([TIME, *(name for name in OWN_COLUMNS if name in rows.columns)])
    return kept.rename({hidden: name for name, hidden in HOP_NAMES.items()}), rows[TIME]


def event_times(records: pl.DataFrame, column: str | None) -> pl.Series:
    """The event time of each record. Raises InvalidValue when the column is not there or holds no times."""
    if column is None:
        return records["_time"]
    if column not in records.columns:
        names = ", ".join(repr(name) for name in records.columns if name not in OWN_COLUMNS)
        raise InvalidValue(f"there is no column {column!r} for event_time=; the records have {names}")
    found = records[column]
    if found.dtype == pl.Date:
        return found.cast(pl.Datetime("us"))
    if found.dtype == pl.Null:
        return found.cast(pl.Datetime("us"))
    if not isinstance(found.dtype, pl.Datetime):
        raise InvalidValue(
            f"column {column!r} holds {found.dtype} and cannot be an event time: append datetimes, or name another column as "
            "event_time="
        )
    return found


def _after_steps(rows: pl.DataFrame, steps: Sequence[RowStep]) -> tuple[pl.DataFrame, dict[int, str]]:
    """The rows after the steps; and the records for which a step fails, found one by one, with the reason."""
    if not steps:
        return rows, {}
    try:
        return _query(rows, steps), {}
    except pl.exceptions.PolarsError as error:
        if rows.height <= 1:
            number = int(rows[RECORD][0]) if rows.height else 0
            return _query(rows.clear(), steps), ({number: one_line(error)} if rows.height else {})
    half = rows.height // 2
    first, broken = _after_steps(rows.slice(0, half), steps)
    second, more = _after_steps(rows.slice(half), steps)
    return pl.concat([first, second]), broken | more


def _query(rows: pl.DataFrame, steps: Sequence[RowStep]) -> pl.DataFrame:
    lazy = rows.lazy()
    for step in steps:
        lazy = apply_lazy(_carrying(step), lazy, no_stage)  # type: ignore[arg-type]
    return lazy.collect()


def _carrying(step: RowStep) -> RowStep:
    """The step with our own columns kept."""
    if isinstance(step, Select):
        return Select(step.input, (*step.exprs, *(pl.col(name) for name in _HIDDEN)))
    return step
