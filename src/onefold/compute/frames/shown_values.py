"""Values of frames that Python has no value for: times outside of the years 1 to 9999.

Reading a row with one raises, or panics within Polars, and a job that meets it must tell that row from the others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from onefold.compute.frames.columns import micros
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    import polars as pl

EARLIEST_US: Final = -62_135_596_800_000_000
"""The year 1 begins."""
LATEST_US: Final = 253_402_300_799_999_999
"""The year 9999 ends: no ``datetime`` is outside of these."""
_NANOS_US: Final = 2**63 // 1000 - 1
"""A column of nanoseconds holds no time further from 1970."""
_DAY_US: Final = 86_400_000_000


def limits_us(dtype: object) -> tuple[int, int]:
    """The earliest and the latest time that a column of this type and a ``datetime`` both hold."""
    if getattr(dtype, "time_unit", None) == "ns":
        return -_NANOS_US, _NANOS_US
    return EARLIEST_US, LATEST_US


def shown_value(column: pl.Series, row: int) -> Any:
    """A value as Python has it; where it has none, what is in the column, as text."""
    import polars as pl

    alone = column.slice(row, 1)
    if unreadable(alone) is None:
        return alone.to_list()[0]
    if column.dtype == pl.Date:
        return f"{column.cast(pl.Int32)[row]} days since 1970"
    if isinstance(column.dtype, pl.Datetime):
        return f"{column.cast(pl.Int64)[row]} {column.dtype.time_unit} since 1970"
    return f"a value of type {column.dtype}"


def unreadable(column: pl.Series) -> pl.Series | None:
    """Which values Python has no value for; None: it has one for all of them."""
    import polars as pl

    dtype = column.dtype
    if dtype == pl.Date:
        days = column.cast(pl.Int64)
        return _outside(days, EARLIEST_US // _DAY_US, LATEST_US // _DAY_US)
    if isinstance(dtype, pl.Datetime):
        if dtype.time_unit == "ns":
            return None  # all of them are years that a datetime has
        found = _outside(micros(column), EARLIEST_US, LATEST_US)
        overflown = micros(column).is_null() & column.is_not_null()
        if not overflown.any():
            return found
        return overflown if found is None else found | overflown
    if not dtype.is_nested() and not isinstance(dtype, pl.Duration):
        return None
    if _readable(column):
        return None
    return pl.Series([not _readable(column.slice(row, 1)) for row in range(len(column))])


def unreadable_rows(frame: pl.DataFrame) -> dict[int, str]:
    """Rows that cannot be read as values of Python, with the reason."""
    found: dict[int, str] = {}
    for column in frame:
        wrong = unreadable(column)
        for row in () if wrong is None else wrong.arg_true():
            shown = shown_value(column, row)
            found.setdefault(row, f"column {column.name!r} holds {shown}, which Python has no value for")
    return found


def _outside(values: pl.Series, low: int, high: int) -> pl.Series | None:
    least, most = values.min(), values.max()
    if least is None or (low <= int(least) and int(most) <= high):  # type: ignore[arg-type]
        return None
    return ((values < low) | (values > high)).fill_null(False)


def _readable(column: pl.Series) -> bool:
    try:
        column.to_list()
    except BaseException as error:  # a panic of Polars is not an Exception
        if is_interrupt(error):
            raise
        return False
    return True
