"""Aggregates by tumbling and sliding windows of event time.

The state is kept by *slices*. A tumbling window is one slice; a sliding window is put together from slices as long as the
greatest common divisor of its length and its step, so an event changes one group however many windows it is in (panes: Li et
al., "No pane, no gain", SIGMOD Record 2005). A slice's row carries in ``window_end`` the end of the last window that it belongs
to, after which (and the lateness) it is dropped.

An event is late when the last of its windows is closed, judged by the watermark before its batch. So each event is either in a
window or among the late rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import polars as pl

from onefold.compute.aggregates import each_group_once, final, partial
from onefold.compute.aggregates.frames import Engine
from onefold.compute.frames.columns import bounds_us
from onefold.compute.frames.named import frame_of
from onefold.compute.live.operators.of_windows import OfWindows
from onefold.compute.live.operators.result import STREAMING_ROWS_MIN, Batch, Closed
from onefold.compute.live.runs.open_state import OpenState, matching
from onefold.compute.live.runs.rows import (
    ADD,
    LANE,
    PUT,
    Layout,
    by_lane,
    of_lanes,
    together,
    with_lanes,
    with_operation,
)
from onefold.compute.plan import windows
from onefold.compute.plan.windows import END, START

_LATE: Final = "__onefold_late"


@dataclass(frozen=True)
class WindowedAggregate(OfWindows):
    """``dataset.window(spec).group_by(*keys).agg(**aggregates)`` by tumbling or sliding windows."""

    @cached_property
    def layout(self) -> Layout:
        """The rows of its state: by slice and key."""
        return Layout((START, END, *self.key_names), self.aggregates, window_end=END)

    def batch(
        self,
        rows: pl.DataFrame,
        state: OpenState,
        watermark_us: int | None,
        mine: Collection[int] | None = None,
    ) -> Batch:
        """Take a batch in. ``watermark_us``: of the bundle before the batch; None: none yet. ``mine``: the bundle's lanes, None
        for all of them."""
        if not rows.height:
            return Batch(None, state, None, 0)
        late, timely = self._judged(rows, watermark_us)
        late = None if late is None else of_lanes(late, self.keys, self.lanes, mine)
        late = late if late is not None and late.height else None
        if not timely.height:
            return Batch(None, state, late, 0)
        if mine is not None and self._cheap_to_hash(timely):
            timely = of_lanes(timely, self.keys, self.lanes, mine)
            if not timely.height:
                return Batch(None, state, late, 0)
        groups, rows_taken = self._grouped(timely, mine)
        if not groups.height:
            return Batch(None, state, late, 0)
        return Batch(groups, state.with_batch(groups), late, rows_taken)

    def close(self, state: OpenState, before_us: int | None, watermark_us: int) -> Closed:
        """Move the watermark from ``before_us`` to ``watermark_us``: windows that end in between, and the lateness, are final."""
        until = windows.last_closed_us(watermark_us, self.spec)
        since = None if before_us is None else windows.last_closed_us(before_us, self.spec)
        if since is not None and until <= since:
            return Closed(state, None)
        found = self._ending(state, since, until)
        remaining = self._without(state, until)
        if found is None or not found.height:
            return Closed(remaining, None)
        return Closed(remaining, by_lane(with_operation(self._finished(found), PUT)))

    def open_windows(self, state: OpenState, watermark_us: int | None) -> pl.DataFrame | None:
        """The windows that are not closed yet, with their values so far; None without any."""
        since = None if watermark_us is None else windows.last_closed_us(watermark_us, self.spec)
        found = self._ending(state, since, None)
        return None if found is None or not found.height else self._finished(found)

    def changed(
        self,
        deltas: Sequence[pl.DataFrame],
        before: OpenState,  # noqa: ARG002
        after: OpenState,
        watermark_us: int | None,
    ) -> tuple[pl.DataFrame | None, None]:
        """(the windows that these deltas change, with their values after them; no window ever goes). ``watermark_us``: of the
        bundle before the deltas."""
        touched = together([delta.select(self.layout.group) for delta in deltas]).unique()
        if self.spec.kind == "tumbling":
            found = after.lookup(touched, self.layout.group)
            return (None if found is None else self._finished(found)), None
        since = None if watermark_us is None else windows.last_closed_us(watermark_us, self.spec)
        slices = after.lookup(touched, (LANE, *self.key_names))
        windows_of_keys = None if slices is None else self._windows(slices, since, None)
        names = self._spread(touched, since, None)
        if windows_of_keys is None or names is None:
            return None, None
        group = self.layout.group
        return self._finished(matching(windows_of_keys, names.select(group).unique(), group, "semi")), None

    def with_history(self, groups: pl.DataFrame, state: OpenState) -> pl.DataFrame:  # noqa: ARG002
        """The delta of a history's partial by slice and key, of the bundle's lanes."""
        if self.spec.kind == "sliding":
            last = replace(self, time=START)._last_end(groups.schema[START])
            groups = groups.with_columns(last.alias(END))
        return by_lane(with_operation(groups, ADD))

    # -- a batch ---------------------------------------------------------------------------------------------

    def _judged(
        self, rows: pl.DataFrame, watermark_us: int | None
    ) -> tuple[pl.DataFrame | None, pl.DataFrame]:
        """(late rows, the others)."""
        if watermark_us is None:
            return None, rows
        times = bounds_us(rows[self.time])
        if times is None or windows.closing_us(times[0], self.spec) > watermark_us:
            return None, rows
        late = windows.closing_us(_micros(pl.col(self.time)), self.spec) <= watermark_us
        judged = rows.select(late.alias(_LATE))[_LATE]
        if not judged.any():
            return None, rows
        return rows.filter(judged), rows.filter(~judged)

    def _last_end(self, dtype: pl.DataType) -> pl.Expr:
        """The end of the last window that a row is in. ``dtype``: of its time."""
        step = self.spec.every_us if self.spec.kind == "sliding" else self.spec.length_us
        return windows.end_of(windows.floored(self.time, step, self.spec.offset_us, dtype), self.spec)

    def _cheap_to_hash(self, rows: pl.DataFrame) -> bool:
        """Whether every row's lane costs less than its group: text is hashed by group only."""
        schema = rows.clear().select(self.keys).schema if self.keys else {}
        return all(dtype.is_numeric() or dtype.is_temporal() for dtype in schema.values())

    def _grouped(self, rows: pl.DataFrame, mine: Collection[int] | None) -> tuple[pl.DataFrame, int]:
        """The partial of the rows by slice and key, of the bundle's lanes; and how many rows those are."""
        dtype = rows.schema[self.time]
        window = [
            windows.starts(self.time, self.spec, dtype).alias(START),
            self._last_end(dtype).alias(END),
        ]
        engine: Engine = "streaming" if rows.height > STREAMING_ROWS_MIN else "in-memory"
        if self._is_one_slice(rows):
            # One key column less to hash, and whole numbers are added up in a table.
            groups = partial(rows.lazy(), self.keys, self.aggregates, engine=engine)
            place = [column.new_from_index(0, groups.height) for column in rows.head(1).select(window)]
            groups = frame_of([*place, *groups])
        else:
            groups = partial(rows.lazy(), [*window, *self.keys], self.aggregates, engine=engine)
        groups = with_lanes(groups, self.key_names, self.lanes)
        count = rows.height
        if mine is not None:
            inside = groups[LANE].is_in(sorted(mine))
            if not inside.all():
                count = of_lanes(rows, self.keys, self.lanes, mine).height
                groups = groups.filter(inside)
        return by_lane(with_operation(groups, ADD)), count

    def _is_one_slice(self, rows: pl.DataFrame) -> bool:
        """Whether all rows are in one slice."""
        times = bounds_us(rows[self.time])
        if times is None or rows[self.time].null_count():
            return False
        first, last = ((time - self.spec.offset_us) // self.spec.slice_us for time in times)
        return first == last

    # -- windows ---------------------------------------------------------------------------------------------

    def _ending(self, state: OpenState, since_us: int | None, until_us: int | None) -> pl.DataFrame | None:
        """The partial of windows with ``since < end <= until``, by lane, window and key; None without any."""
        last = until_us if self.spec.kind == "tumbling" else None
        held = [_ending(frame, since_us, last) for frame in state.frames]
        values = OpenState(self.layout, tuple(frame for frame in held if frame.height)).values()
        if values is None or self.spec.kind == "tumbling":
            return values
        return self._windows(values, since_us, until_us)

    def _windows(
        self, slices: pl.DataFrame, since_us: int | None, until_us: int | None
    ) -> pl.DataFrame | None:
        """The windows that these slices are in and that end in the range, put together."""
        shown = self._spread(slices, since_us, until_us)
        if shown is None:
            return None
        group = self.layout.group
        return each_group_once(shown.sort(group, maintain_order=True), group, self.aggregates)

    def _spread(
        self, slices: pl.DataFrame, since_us: int | None, until_us: int | None
    ) -> pl.DataFrame | None:
        """Slices, each once for each of its windows that end in the range."""
        spec = self.spec
        most = -(-spec.length_us // spec.every_us)
        shown: list[pl.DataFrame] = []
        for number in reversed(range(most)):  # the windows of one distance: each slice once
            back = windows.span(number * spec.every_us)
            moved = slices.with_columns((pl.col(END) - back).alias(END)).filter(
                (pl.col(END) > pl.col(START)) & _between(END, since_us, until_us)
            )
            if moved.height:
                shown.append(moved.with_columns((pl.col(END) - windows.span(spec.length_us)).alias(START)))
        return pl.concat(shown) if shown else None

    def _without(self, state: OpenState, until_us: int) -> OpenState:
        kept = [_ending(frame, until_us, None) for frame in state.frames]
        return OpenState(self.layout, tuple(frame for frame in kept if frame.height))

    def _finished(self, groups: pl.DataFrame) -> pl.DataFrame:
        return final(groups, self.layout.group, self.aggregates, in_order=False)


def _micros(time: pl.Expr) -> pl.Expr:
    return time.dt.epoch("us")


def _ending(frame: pl.DataFrame, after_us: int | None, until_us: int | None) -> pl.DataFrame:
    """The rows with ``after < end <= until``. Mostly all or none: that is looked at first."""
    ends = bounds_us(frame[END])
    if ends is None or frame[END].null_count():
        return frame.filter(_between(END, after_us, until_us))
    low, high = ends
    if (after_us is not None and high <= after_us) or (until_us is not None and low > until_us):
        return frame.clear()
    if (after_us is None or low > after_us) and (until_us is None or high <= until_us):
        return frame
    return frame.filter(_between(END, after_us, until_us))


def _between(column: str, after_us: int | None, until_us: int | None) -> pl.Expr:
    """``after < column <= until``."""
    time = _micros(pl.col(column))
    tests = [pl.lit(True)] if after_us is None and until_us is None else []
    tests += [] if after_us is None else [time > after_us]
    tests += [] if until_us is None else [time <= until_us]
    return pl.all_horizontal(tests)
