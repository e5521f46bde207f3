"""From the runs of a live table to its rows.

Windows that are closed in a lane are in its result runs; what is open is in its state runs, as of that lane's last commit and
under that lane's watermark. A commit does not write state for windows that it closes, so the two are never to be mixed up: each
lane is read by its own watermark. Lanes hold different keys, so rows are never merged across them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import polars as pl

from onefold.compute.frames.columns import constant, only, with_column, without
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.plan import TableSink
from onefold.compute.live.runs.open_state import OpenState
from onefold.compute.live.runs.rows import LANE, OPERATION, side_by_side
from onefold.compute.live.tables.known import aside_schemas, row_types
from onefold.compute.plan.windows import END, START
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live.ops import WATERMARK_END_US

if TYPE_CHECKING:
    from onefold.compute.live.operators.sessions import SessionAggregate
    from onefold.compute.live.operators.windowed import WindowedAggregate
    from onefold.compute.live.plan import LivePart
    from onefold.compute.live.tables.contents import LiveContents
    from onefold.compute.live.tables.keyed import Frames

    WindowOperator = WindowedAggregate | SessionAggregate

OPEN: Final = "__onefold_open"
"""Whether a row is of a window that is still open."""


def key_columns(part: LivePart) -> tuple[str, ...]:
    """The columns that name a row: the window's start, then the keys."""
    operator = part.operator
    if operator is None:
        return ()
    return operator.key_names if isinstance(operator, RunningAggregate) else (START, *operator.key_names)


def shown_keys(part: LivePart) -> tuple[str, ...]:
    """The columns before the values. Without a window ``window_start`` and ``window_end`` are keys like others."""
    keys = key_columns(part)
    return (START, END, *keys[1:]) if part.windowed else keys


def value_columns(part: LivePart) -> tuple[str, ...]:
    """The names of the aggregates."""
    return () if part.operator is None else tuple(name for name, _ in part.operator.aggregates)


def table_rows(contents: LiveContents, reader: Frames, *, only_final: bool) -> pl.DataFrame:
    """The table. ``only_final``: windows that are closed in every lane, so each is there whole or not at all."""
    return without(marked_rows(contents, reader, only_final=only_final), OPEN)


def marked_rows(contents: LiveContents, reader: Frames, *, only_final: bool) -> pl.DataFrame:
    """The same, with the column ``OPEN``."""
    part = contents.part
    operator = part.operator
    results = [_load(contents, reader, run) for run in contents.runs if run.row.kind == "result"]
    closed = side_by_side(results) if results else None
    still: pl.DataFrame | None = None
    if isinstance(operator, RunningAggregate):
        closed = None
        still = None if only_final else operator.values(_merged(contents, reader))
    elif operator is not None:
        closed = None if closed is None else _kept(closed, contents)
        if only_final:
            closed = None if closed is None else _whole(closed, contents)
        else:
            still = _open_windows(contents, reader, operator)
    shown = [
        with_column(without(frame, LANE, OPERATION), constant(OPEN, is_open, pl.Boolean, frame.height))
        for frame, is_open in ((closed, False), (still, True))
        if frame is not None
    ]
    if not shown:
        return _empty(contents)
    rows = pl.concat(shown, how="diagonal_relaxed")
    if operator is None:
        return rows
    names = [*shown_keys(part), *value_columns(part)]
    return only(rows, [*names, OPEN]).sort(key_columns(part) or names)


def with_history(before: pl.DataFrame, rows: pl.DataFrame, part: LivePart) -> pl.DataFrame:
    """The windows before a seam, and those of the live job."""
    if rows.height:
        before = before.select(rows.columns)
        return pl.concat([before, rows], how="vertical_relaxed").sort(key_columns(part))
    return before.sort(key_columns(part))


def set_aside(contents: LiveContents, reader: Frames, kind: str) -> pl.DataFrame:
    """The late or the dead records: their columns, ``_partition``, ``_offset``, ``_time``, and the reason."""
    frames = [_load(contents, reader, run) for run in contents.runs if run.row.kind == kind]
    known = [
        pl.DataFrame(schema=one) for one in aside_schemas(contents.part, contents.schema, kind)
    ]  # so that the columns are the same with rows and without
    found = side_by_side([*known, *frames])
    own = [name for name in ("_partition", "_offset", "_time", "reason") if name in found.columns]
    others = [name for name in found.columns if name not in (*own, "_key")]
    return found.select([*others, *own]).sort([name for name in own[:2] if name != "reason"])


def together(found: list[pl.DataFrame]) -> pl.DataFrame:
    """What the parts of a job have set aside, in one frame."""
    held = [frame for frame in found if frame.height]
    return side_by_side(held) if held else found[-1]


def _open_windows(contents: LiveContents, reader: Frames, operator: WindowOperator) -> pl.DataFrame | None:
    """The windows that are open, of each lane by its own watermark."""
    frames = [_load(contents, reader, run) for run in contents.runs if run.row.kind == "state"]
    by_watermark = contents.by_watermark
    found: list[pl.DataFrame] = []
    for mark, lanes in by_watermark.items():
        if mark is not None and mark >= WATERMARK_END_US:
            continue
        mine = frames if len(by_watermark) == 1 else [_of_lanes(frame, lanes) for frame in frames]
        state = OpenState.of_runs(operator.layout, mine, contents.closed_us(mark))
        still = operator.open_windows(state, mark)
        if still is not None:
            found.append(still)
    return pl.concat(found, how="diagonal_relaxed") if found else None


def _merged(contents: LiveContents, reader: Frames) -> OpenState:
    operator = contents.part.operator
    assert operator is not None
    frames = (_load(contents, reader, run) for run in contents.runs if run.row.kind == "state")
    return OpenState.of_runs(operator.layout, frames)


def _whole(rows: pl.DataFrame, contents: LiveContents) -> pl.DataFrame:
    """Windows that are closed in every lane."""
    mark = contents.watermark_us
    closed = contents.closed_us(mark)
    if mark is None or closed is None:
        return rows.clear()
    return rows if mark >= WATERMARK_END_US else rows.filter(pl.col(END).dt.epoch("us") <= closed)


def _kept(rows: pl.DataFrame, contents: LiveContents) -> pl.DataFrame:
    """Without windows that are past their time. Lanes drop theirs at different moments, so what is left of them is not whole."""
    sink, mark = contents.part.sink, contents.watermark_us
    keep_us = sink.keep_us if isinstance(sink, TableSink) else None
    if keep_us is None or mark is None or not rows.height:
        return rows
    if mark >= WATERMARK_END_US:
        # The results say how far the job came, whichever of their rows these are.
        ends = [run.row.high_us for run in contents.runs if run.row.kind == "result"]
        mark = max((end for end in ends if end is not None), default=mark)
    return rows.filter(pl.col(END).dt.epoch("us") > mark - keep_us)


def _of_lanes(frame: pl.DataFrame, lanes: int) -> pl.DataFrame:
    return frame.filter(pl.col(LANE).is_in(list(lane_sets.numbers_of(lanes))))


def _load(contents: LiveContents, reader: Frames, run: object) -> pl.DataFrame:
    return reader.frame(contents.key, run, contents.inline)  # type: ignore[arg-type]


def _empty(contents: LiveContents) -> pl.DataFrame:
    part = contents.part
    types = dict.fromkeys((*shown_keys(part), *value_columns(part)), pl.Null())
    types |= {name: dtype for name, dtype in row_types(part, contents.schema).items() if name in types}
    return pl.DataFrame(schema={**types, OPEN: pl.Boolean()})
