"""Windows of event time: what they are, and which windows an event belongs to.

A window is [start, end). Tumbling windows of one length follow each other without gaps; sliding windows begin every ``every``
and overlap; a session is as long as events of one key are at most a gap apart. Starts are multiples of the length (or of
``every``) since 1970-01-01T00:00:00 UTC, shifted by ``offset``: a window of a day begins at midnight UTC unless it is shifted.

Terms are those of Akidau et al., "The Dataflow Model", VLDB 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from onefold import config
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    Micros = TypeVar("Micros", int, pl.Expr, NDArray[np.int64])

START: Final = "window_start"
END: Final = "window_end"
_LONGEST_US: Final = 291 * 365 * 86_400_000_000
"""In nanoseconds, as durations of Polars count, it still is a number of 64 bits."""


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """How time is cut. All durations in microseconds."""

    kind: Literal["tumbling", "sliding", "session"]
    length_us: int
    """The length of a window; for sessions the gap."""
    every_us: int = 0
    """Sliding: how often a window begins."""
    offset_us: int = 0
    lateness_us: int = 0
    on: str | None = None
    """The column that is the time of bounded data; None: the event time of the stream."""

    @property
    def slice_us(self) -> int:
        """The length of the slices that windows are put together from."""
        return gcd(self.length_us, self.every_us) if self.kind == "sliding" else self.length_us

    def __str__(self) -> str:
        shown = [f"{self.kind}({_text(self.length_us)}"]
        shown += [f"every={_text(self.every_us)}"] if self.kind == "sliding" else []
        shown += [f"offset={_text(self.offset_us)}"] if self.offset_us else []
        shown += [f"allowed_lateness={_text(self.lateness_us)}"] if self.lateness_us else []
        return ", ".join(shown) + ")"


def check(spec: WindowSpec) -> None:
    """Raise InvalidPlan for windows that cannot be."""
    length = "gap" if spec.kind == "session" else "length"
    if spec.length_us <= 0:
        raise InvalidPlan(f"a {spec.kind} window needs a {length} of at least a microsecond; got zero")
    longest = max(spec.length_us, spec.every_us, spec.offset_us, spec.lateness_us)
    if longest > _LONGEST_US:
        raise InvalidPlan(
            f"a {spec.kind} window of {_text(longest)} is longer than times can be apart: choose less than {_text(_LONGEST_US)}"
        )
    step_us = spec.every_us if spec.kind == "sliding" else spec.length_us
    if spec.kind != "session" and 0 < step_us <= spec.offset_us:
        raise InvalidPlan(
            f"a {spec.kind} window that begins every {_text(step_us)} needs an offset= shorter than that; got "
            f"{_text(spec.offset_us)}: offset={_text(spec.offset_us % step_us)} means the same"
        )
    if spec.kind != "sliding":
        return
    if spec.every_us <= 0:
        raise InvalidPlan("a sliding window needs every= of at least a microsecond; got zero")
    if spec.every_us > spec.length_us:
        raise InvalidPlan(
            f"a sliding window of {_text(spec.length_us)} that begins every {_text(spec.every_us)} would leave out what lies "
            "between two windows: make every= at most the length, or filter the rest away before a tumbling window"
        )
    slices, most = spec.length_us // spec.slice_us, config.WINDOW_SLICES_MAX
    if slices > most:
        raise InvalidPlan(
            f"a sliding window of {_text(spec.length_us)} every {_text(spec.every_us)} is put together from {slices:,} slices of "
            f"{_text(spec.slice_us)}, and at most {most:,} are allowed: choose a larger every=, one that divides the length"
        )


def starts(column: str, spec: WindowSpec, dtype: object = None) -> pl.Expr:
    """The start of the tumbling window, or of the slice, that the time is in; of the column's own type, as ``floored``."""
    return floored(column, spec.slice_us, spec.offset_us, dtype)


def window_starts(column: str, spec: WindowSpec, dtype: object = None) -> pl.Expr:
    """Sliding windows: the starts of all windows that the time is in, as a list, the earliest first."""
    import polars as pl

    last = floored(column, spec.every_us, spec.offset_us, dtype)
    age = _age(column, spec.every_us, spec.offset_us)
    most = -(-spec.length_us // spec.every_us)
    inside = [
        pl.when(age + number * spec.every_us < spec.length_us).then(last - span(number * spec.every_us))
        for number in reversed(range(most))
    ]
    return pl.concat_list(inside).list.drop_nulls()


def end_of(start: pl.Expr, spec: WindowSpec) -> pl.Expr:
    """The end of the window that begins there."""
    return start + span(spec.length_us)


def closing_us(time_us: Micros, spec: WindowSpec) -> Micros:
    """When the last window that an event of this time is in closes: the event is late once the watermark is there.

    Of a session that is when the event alone would be one: what else is open does not matter, so the verdict does not depend on
    where commits fell. A session's end is its last event plus the gap, and an event exactly then is still part of it.
    """
    if spec.kind == "session":
        return time_us + spec.length_us + spec.lateness_us + 1
    step, offset = spec.every_us if spec.kind == "sliding" else spec.length_us, spec.offset_us
    return (time_us - offset) // step * step + (offset + spec.length_us + spec.lateness_us)


def reach_us(time_us: Micros, spec: WindowSpec) -> tuple[Micros, Micros]:
    """(the start of the first window that an event of this time is in, the end of the last one)."""
    if spec.kind == "session":
        return time_us, time_us + spec.length_us
    step, offset = spec.every_us if spec.kind == "sliding" else spec.length_us, spec.offset_us
    last = (time_us - offset) // step * step + offset
    return last - (spec.length_us - 1 - (time_us - last)) // step * step, last + spec.length_us


def last_closed_us(watermark_us: int, spec: WindowSpec) -> int:
    """Windows that end then, or earlier, are closed at the watermark; later ones are open."""
    return watermark_us - spec.lateness_us - (spec.kind == "session")


def floored(column: str, step_us: int, offset_us: int, dtype: object = None) -> pl.Expr:
    """The last multiple of the step, shifted by the offset, at or before the time; of the column's own type.

    ``dtype``: the column's, where it is known, which saves looking for nanoseconds.
    """
    import polars as pl

    rest = _age(column, step_us, offset_us)
    if getattr(dtype, "time_unit", None) in ("us", "ms"):
        return pl.col(column) - pl.duration(microseconds=rest)
    # Nanoseconds of times that are no nanoseconds are null beyond 1677 and 2262, and 0 otherwise. Subtracting whole nanoseconds
    # keeps every unit.
    nanos = (pl.col(column).dt.epoch("ns") % 1000).fill_null(0)
    return pl.col(column) - pl.duration(nanoseconds=rest * 1000 + nanos)


def _age(column: str, step_us: int, offset_us: int) -> pl.Expr:
    """How far the time is behind the last multiple of the step, in microseconds, rounded down."""
    import polars as pl

    return (pl.col(column).dt.epoch("us") - offset_us) % step_us


def span(micros: int) -> pl.Expr:
    """A duration that keeps the unit of a time that it is added to."""
    import polars as pl

    return pl.duration(nanoseconds=micros * 1000)


def with_sessions(rows: pl.DataFrame, keys: tuple[str, ...], on: str, gap_us: int) -> pl.DataFrame:
    """The rows of whole keys, sorted by key and time, with the start and the end of the session that each is in: its first event,
    and the gap after its last. A row without a time is in none: both are null."""
    import polars as pl

    ordered = rows.sort([*keys, on], maintain_order=True)
    time = pl.col(on)
    since = time.diff()  # of nanoseconds that are farther apart than 64 bits can say, it is negative
    apart = ((since > span(gap_us)) | (since < span(0))).fill_null(True)
    other = [pl.col(name).ne_missing(pl.col(name).shift()) for name in keys]
    first = pl.any_horizontal(apart, *other).fill_null(True)
    begins = ordered.select(first.alias("first")).to_series()
    number = begins.cum_sum().cast(pl.Int64) - 1
    at = begins.arg_true()
    lasts = pl.concat([at.slice(1).cast(pl.Int64) - 1, pl.Series([ordered.height - 1], dtype=pl.Int64)])
    times = ordered[on]
    if not ordered.height:
        return ordered.with_columns(time.alias(START), time.alias(END))
    starts = times.gather(at).gather(number).alias(START)
    ends = times.gather(lasts).to_frame(END).select(pl.col(END) + span(gap_us)).to_series().gather(number)
    return ordered.with_columns(starts, ends.alias(END))


def check_time(schema: dict[str, Any] | None, spec: WindowSpec) -> None:
    """Raise InvalidPlan where bounded rows with these columns and types have no such time."""
    import polars as pl

    if spec.on is None:
        raise InvalidPlan(
            f'window: these rows are bounded, so name the column that is their time: of.window.{spec.kind}(…, on="at")'
        )
    if schema is None:
        return
    if spec.on not in schema:
        raise InvalidPlan(f"window: there is no column {spec.on!r}; there are {', '.join(map(repr, schema))}")
    dtype = schema[spec.on]
    if not isinstance(dtype, pl.Datetime):
        hint = (
            " Cast it: pl.col(...).cast(pl.Datetime), or .str.to_datetime() for text"
            if dtype in (pl.Date, pl.String)
            else ""
        )
        raise InvalidPlan(
            f"window: column {spec.on!r} is {dtype}, and the time of a window is a Datetime.{hint}"
        )
    unit_us = 1000 if dtype.time_unit == "ms" else 1
    if any(value % unit_us for value in (spec.length_us, spec.every_us, spec.offset_us)):
        raise InvalidPlan(
            f"window: column {spec.on!r} counts milliseconds, so windows must be whole milliseconds"
        )
    taken = [name for name in (START, END) if name in schema]
    if taken:
        raise InvalidPlan(
            f"window: the rows have a column {taken[0]!r} already; rename it, since windows make one of that name"
        )


def _text(micros: int) -> str:
    for unit, size in (
        ("d", 86_400_000_000),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1000),
    ):
        if micros and micros % size == 0:
            return f"{micros // size}{unit}"
    return f"{micros}us"
