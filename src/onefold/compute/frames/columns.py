"""Columns of a frame added, chosen and looked at without a query.

Polars runs ``with_columns``, ``select``, ``drop``, ``filter`` and what a series does by an expression as queries in a pool of
threads. With small frames, and other programs on the processors, waiting for those threads takes longer than all the work: a live
job that commits fifty times a second would spend most of its time so. What is here is done by the calling thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from onefold.compute.frames.named import frame_of

if TYPE_CHECKING:
    import polars as pl

_MILLIS_MAX = 2**63 // 1000 - 1


def constant(name: str, value: object, dtype: Any, rows: int) -> pl.Series:
    """A column of one value."""
    import polars as pl

    return pl.Series(name, [value], dtype=dtype).new_from_index(0, rows)


def with_column(frame: pl.DataFrame, column: pl.Series) -> pl.DataFrame:
    """The frame with this column, at the end or instead of the one of that name."""
    if column.name in frame.columns:
        return frame_of(column if old.name == column.name else old for old in frame)
    return frame.hstack([column])


def only(frame: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    """These columns, in this order. At least one."""
    return frame_of(frame.get_column(name) for name in names)


def without(frame: pl.DataFrame, *names: str) -> pl.DataFrame:
    """The other columns. At least one must be left; those that are not there do not matter."""
    kept = [name for name in frame.columns if name not in names]
    return frame if len(kept) == frame.width else only(frame, kept)


def micros(times: pl.Series) -> pl.Series:
    """Microseconds since 1970, as Int64, of a column of datetimes; naive times are UTC. Milliseconds may be more than it holds:
    null."""
    import polars as pl

    unit = getattr(times.dtype, "time_unit", None)
    if not isinstance(times.dtype, pl.Datetime) or unit not in ("us", "ms"):
        return times.dt.epoch("us").cast(pl.Int64)
    found = times.cast(pl.Int64)
    if unit == "us":
        return found
    low, high = found.min(), found.max()
    if low is None or max(abs(int(low)), abs(int(high))) > _MILLIS_MAX:  # type: ignore[arg-type]
        return times.dt.epoch("us").cast(pl.Int64)
    return found * 1000


def bounds_us(times: pl.Series) -> tuple[int, int] | None:
    """The earliest and the latest of these datetimes, in microseconds since 1970; None without any."""
    found = micros(times)
    low, high = found.min(), found.max()
    return None if low is None or high is None else (int(low), int(high))  # type: ignore[arg-type]
