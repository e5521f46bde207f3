"""A stream's records as Polars frames, without a step of Python for each row of what was appended as a frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from onefold.errors import InvalidValue
from onefold.machine.lazy import LazyModule
from onefold.state.encoding.keys import decode_key
from onefold.state.encoding.values import decode_value
from onefold.state.fold.streams.rows import Run
from onefold.state.streams import frames as stream_frames
from onefold.state.streams.exact_columns import exactly, series_of
from onefold.state.streams.frames import RECORDS, own_types
from onefold.state.streams.layout import Layout
from onefold.state.streams.pages import Cursor, check_run

if TYPE_CHECKING:
    import polars as pl
else:
    pl = LazyModule("polars")

_ROWS_MAX = 65_536
_USE_READ = ". Use read"


def frames(layout: Layout, spans: Mapping[int, tuple[int, int]]) -> Iterator[pl.DataFrame]:
    """The records of each partition between two offsets; single records that follow one another share a frame."""
    for partition, (low, high) in sorted(spans.items()):
        yield from frames_of_runs(
            layout.name, partition, Cursor(layout, partition).runs(low, high), low, high
        )


def frames_of_runs(
    stream: str, partition: int, runs: Iterable[Run], low: int, high: int, *, joined: bool = False
) -> Iterator[pl.DataFrame]:
    """The same of runs of one partition that hold what is between the offsets. ``joined``: small frames that follow one another
    with the same columns come as one."""
    rows, parts = _Rows(stream, partition), _Parts(partition)
    for run in runs:
        start, stop = max(low - run.offset, 0), min(high - run.offset, run.count)
        if run.format == RECORDS:
            if parts.rows:
                yield parts.take()
            rows.add(run, start, stop)
            if len(rows) >= _ROWS_MAX:
                yield rows.take()
            continue
        if len(rows):
            yield rows.take()
        check_run(partition, run)
        name, frame = stream_frames.decode_frame(run.frame)
        check_run(partition, run, frame.height)
        part = frame.slice(start, stop - start)
        if parts.rows and not (joined and parts.takes(part, name)):
            yield parts.take()
        parts.add(part, name, run.offset + start, run.time_ms)
    if len(rows):
        yield rows.take()
    if parts.rows:
        yield parts.take()


def together(stream: str, found: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """One frame of all. Raises InvalidValue when a column's types do not go together without changing a value."""
    parts = list(found)
    if not parts:
        return pl.DataFrame(schema=own_types())
    try:
        schema = pl.concat([part.clear() for part in parts], how="diagonal_relaxed").schema
    except pl.exceptions.PolarsError as error:
        raise InvalidValue(
            f"the columns of stream {stream!r} do not fit together: {error}. "
            f"Use read_frames, or read, and bring them into one form"
        ) from None
    fitted = []
    for part in parts:
        columns = []
        for column in part:
            wide = exactly(column, schema[column.name])
            if wide is None:
                types = (frame.schema.get(column.name, column.dtype) for frame in parts)
                other = next(dtype for dtype in types if dtype != column.dtype)
                raise InvalidValue(
                    f"column {column.name!r} of stream {stream!r} is {column.dtype} in some records and {other} in others; "
                    f"no type holds the values of both. Use read_frames, or read, and bring them into one form"
                )
            columns.append(wide)
        fitted.append(part.with_columns(columns))
    whole = pl.concat(fitted, how="diagonal")
    return whole.select(pl.exclude(list(own_types())), *own_types())


def records_at(stream: str, partition: int, first: int, last: int) -> str:
    """The place of some records of a partition, for messages."""
    which = f"record {first}" if first == last else f"records {first} to {last}"
    return f"{which} of partition {partition} of {stream!r}"


def reason_alone(error: InvalidValue, stream: str, partition: int, offset: int) -> str:
    """Why one record cannot be a row, for a message that says where it is and what to do."""
    return (
        str(error).removeprefix(f"{records_at(stream, partition, offset, offset)}: ").removesuffix(_USE_READ)
    )


def unreadable_row(partition: int, offset: int, time_ms: int) -> pl.DataFrame:
    """The place of a record that cannot be a row."""
    row: dict[str, list[Any]] = {
        "_partition": [partition],
        "_offset": [offset],
        "_time": [time_ms],
        "_key": [None],
    }
    schema = own_types()
    return pl.DataFrame([pl.Series(name, values).cast(schema[name]) for name, values in row.items()])


class _Parts:
    """Frames that follow one another on the way to one: its own columns are made once, and none by a query, whose threads are
    waited for longer than a small frame takes."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._clear()

    def _clear(self) -> None:
        self._frames: list[pl.DataFrame] = []
        self._times: list[tuple[int, int]] = []
        self._key: str | None = None
        self._first = 0
        self.rows = 0

    def takes(self, frame: pl.DataFrame, key: str | None) -> bool:
        """Whether it goes with those that are there."""
        fits = self.rows + frame.height <= _ROWS_MAX and key == self._key
        return fits and frame.schema == self._frames[0].schema

    def add(self, frame: pl.DataFrame, key: str | None, first: int, time_ms: int) -> None:
        """Rows of one append, from the offset ``first`` on."""
        if not self._frames:
            self._key, self._first = key, first
        self._frames.append(frame)
        self._times.append((time_ms, frame.height))
        self.rows += frame.height

    def take(self) -> pl.DataFrame:
        """The frame of what was added."""
        whole = pl.concat(self._frames, rechunk=True) if len(self._frames) > 1 else self._frames[0]
        schema, stop = own_types(), self._first + self.rows
        times = [
            pl.Series("_time", [time_ms], dtype=pl.Int64).new_from_index(0, rows)
            for time_ms, rows in self._times
        ]
        marked = whole.hstack(
            [
                pl.Series("_partition", [self._partition], dtype=schema["_partition"]).new_from_index(
                    0, self.rows
                ),
                pl.Series("_offset", range(self._first, stop), dtype=pl.Int64),
                (pl.concat(times, rechunk=True) if len(times) > 1 else times[0]).cast(schema["_time"]),
                stream_frames.key_column(whole, self._key),
            ]
        )
        self._clear()
        return marked


class _Rows:
    """Single records on the way to a frame."""

    def __init__(self, stream: str, partition: int) -> None:
        self._stream = stream
        self._partition = partition
        self._clear()

    def _clear(self) -> None:
        self._values: list[dict[str, Any]] = []
        self._offsets: list[int] = []
        self._times: list[int] = []
        self._keys: list[str | None] = []

    def __len__(self) -> int:
        return len(self._values)

    def add(self, run: Run, start: int, stop: int) -> None:
        pairs = stream_frames.decode_records(run.frame)
        check_run(self._partition, run, len(pairs))
        for at in range(start, stop):
            key, raw = pairs[at]
            value = decode_value(bytes(raw))
            row = value if isinstance(value, dict) else {"value": value}
            self._values.append(row)
            self._offsets.append(run.offset + at)
            self._times.append(run.time_ms)
            self._keys.append(None if key is None else stream_frames.key_text(decode_key(key)))

    def take(self) -> pl.DataFrame:
        """The frame of what was added."""
        own = own_types()
        where = records_at(self._stream, self._partition, self._offsets[0], self._offsets[-1])
        columns: dict[str, list[Any]] = {}
        for at, row in enumerate(self._values):
            for name in row:
                if not isinstance(name, str) or name in own:
                    raise InvalidValue(f"{where}: the field {name!r} cannot be a column{_USE_READ}")
                if name not in columns:
                    columns[name] = [None] * at
            for name, values in columns.items():
                values.append(row.get(name))
        try:
            series = [series_of(name, values) for name, values in columns.items()]
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError) as error:
            reason = str(error).partition("\n")[0].rstrip(". ")  # Polars adds hints for its own callers
            raise InvalidValue(f"{where}: no column can hold their values: {reason}{_USE_READ}") from None
        series += [
            pl.Series("_partition", [self._partition] * len(self._values), dtype=own["_partition"]),
            pl.Series("_offset", self._offsets, dtype=pl.Int64),
            pl.Series("_time", self._times, dtype=pl.Int64).cast(own["_time"]),
            pl.Series("_key", self._keys, dtype=pl.String),
        ]
        self._clear()
        # By number first: a column without a name would be given one.
        frame = pl.DataFrame([column.alias(str(number)) for number, column in enumerate(series)])
        frame.columns = [column.name for column in series]
        return frame
