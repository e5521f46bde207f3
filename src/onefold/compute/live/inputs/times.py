"""The event times of a part's rows: of one type, and none that no window can show.

With one input they are of the type of its column. The columns of several inputs may differ (with a zone and without one, in
milliseconds and microseconds, and the time of an append has its own type), and rows of all of them meet in one window. So their
times are microseconds, with a zone if those of the first records have one, which a commit writes down with the inputs' columns.

A time outside of the years 1 to 9999, or one whose window would be, cannot be shown by any ``datetime``: it is wrong, and comes
from a mistaken unit or a default value. In a column of nanoseconds the same holds for what is before 1678 or after 2261.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from onefold.compute.frames.columns import micros
from onefold.compute.frames.shown_values import limits_us
from onefold.compute.plan import windows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onefold.compute.plan.windows import WindowSpec


class Times:
    """Of one part. ``shared``: it has several inputs. ``spec``: its windows. ``later``: those of the part that takes its rows: a
    time that these cannot show must not move the watermark on the way there."""

    def __init__(
        self, *, shared: bool = False, spec: WindowSpec | None = None, later: WindowSpec | None = None
    ) -> None:
        self.shared = shared
        self._spec = spec or later
        durations = () if spec is None else (spec.length_us, spec.every_us, spec.offset_us)
        self._fine = any(value % 1000 for value in durations)
        self.dtype: pl.DataType | None = None
        """Of several inputs: the type of their times, once there was one."""

    def fitted(self, time: pl.Series) -> tuple[pl.Series, dict[int, str]]:
        """The times in the type of the part; those that cannot be are null, with the reason."""
        wrong = self._wrong(time)
        reasons: dict[int, str] = {}
        if wrong is not None:
            numbers = time.cast(pl.Int64)
            unit = getattr(time.dtype, "time_unit", "us")
            for row in wrong.nonzero()[0].tolist():
                reasons[row] = (
                    f"its time, {numbers[row]} {unit} since 1970, or the window that it is in is outside of what a datetime can "
                    "be; is it in another unit?"
                )
            time = pl.select(
                pl.when(pl.lit(pl.Series(~wrong))).then(pl.lit(time)).otherwise(None)
            ).to_series()
        return self._cast(time), reasons

    def _cast(self, time: pl.Series) -> pl.Series:
        if not isinstance(time.dtype, pl.Datetime):
            return time
        if not self.shared:
            return time.cast(pl.Datetime("us", time.dtype.time_zone)) if self._is_coarse(time.dtype) else time
        if self.dtype is None:
            if time.null_count() == len(time):
                return time
            self.dtype = pl.Datetime("us", time.dtype.time_zone)
        return time if time.dtype == self.dtype else time.cast(self.dtype)

    def _is_coarse(self, dtype: pl.Datetime) -> bool:
        """Whether windows begin and end between two times of this type."""
        return self._fine and dtype.time_unit == "ms"

    def _wrong(self, time: pl.Series) -> NDArray[np.bool_] | None:
        """Which of the times cannot be; None: none of them, which mostly two of them say."""
        found = micros(time)
        low, high = limits_us(time.dtype)
        margin = 0 if self._spec is None else self._spec.length_us
        least, most = found.min(), found.max()
        too_large = found.null_count() - time.null_count()
        inside = least is None or (low + margin <= int(least) and int(most) <= high - margin)  # type: ignore[arg-type]
        if inside and not too_large:
            return None
        there = found.is_not_null().to_numpy()
        values = found.fill_null(0).to_numpy()
        outside = (values < low) | (values > high)
        if self._spec is not None:
            first, last = windows.reach_us(np.where(outside, 0, values), self._spec)
            outside |= (first < low) | (last > high)
        wrong: NDArray[np.bool_] = (outside & there) | (time.is_not_null().to_numpy() & ~there)
        return wrong if wrong.any() else None
