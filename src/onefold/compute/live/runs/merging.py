"""Several frames of runs as one: newest puts, and the adds above them.

Merged rows come sorted by lane, as the rows of a run file are; within a lane they are in no order.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import polars as pl

from onefold.compute.aggregates import merge_pair
from onefold.compute.frames.columns import only as columns_of
from onefold.compute.frames.columns import without
from onefold.compute.frames.float_keys import joinable
from onefold.compute.live.runs.resumming import regrouped
from onefold.compute.live.runs.rows import (
    ADD,
    DELETE,
    LANE,
    OPERATION,
    PUT,
    Layout,
    alike,
    by_lane,
    only_adds,
    together,
    with_operation,
)

_PLACE = "__onefold_place"
"""Which of the merged frames a row is from; also where a group was last put or deleted."""


def merged(frames: Sequence[pl.DataFrame], layout: Layout, *, complete: bool) -> pl.DataFrame:
    """One run's frame that says what these say together. ``frames``: the oldest first, each with every group at most once.

    ``complete``: no older run has anything of these lanes, so a delete need not be kept and a put is an add. Rows are sorted by
    lane. The order of float additions is that of the frames.
    """
    frames = [frame for frame in frames if frame.height] or list(frames[:1])
    if not frames:
        raise ValueError("nothing to merge")
    if len(frames) == 1:
        only = frames[0]
        found = _as_adds(_undeleted(only)) if complete else only
        return by_lane(found)
    columns = frames[0].columns
    frames = alike(frames, layout.group)
    if all(only_adds(frame) for frame in frames):
        added = _added([without(frame, OPERATION) for frame in frames], layout)
        return columns_of(_as_adds(added), columns)
    floors, newest = _last_replacements(frames, layout)
    standing = [_above(frame, place, floors, layout) for place, frame in enumerate(frames)]
    held = [frame for frame in standing if frame.height]
    values = _added(held, layout) if held else standing[0]
    if complete:
        return columns_of(_as_adds(values), columns)
    return _with_operations(values, newest, frames[0].schema, layout)


def live(frame: pl.DataFrame) -> pl.DataFrame:
    """A merged frame without the columns of a run: the groups that are there."""
    return without(_undeleted(frame), OPERATION)


def _as_adds(frame: pl.DataFrame) -> pl.DataFrame:
    return with_operation(frame, ADD)


def _undeleted(frame: pl.DataFrame) -> pl.DataFrame:
    return frame if only_adds(frame) else frame.filter(pl.col(OPERATION) != DELETE)


def _added(frames: Sequence[pl.DataFrame], layout: Layout) -> pl.DataFrame:
    """All frames' groups, combined in the order of the frames."""
    group, aggregates = layout.group, layout.aggregates
    if len(frames) == 1 or not layout.merges:
        return together(frames).sort(LANE)  # where nothing merges, a group stands in one of them
    found = regrouped(frames, group, aggregates)
    if found is not None:
        return by_lane(found)
    ordered = [frame.sort(group) for frame in frames]
    return reduce(lambda older, newer: merge_pair(older, newer, group, aggregates), ordered).sort(LANE)


def _last_replacements(
    frames: Sequence[pl.DataFrame], layout: Layout
) -> tuple[tuple[pl.DataFrame, list[str]], pl.DataFrame]:
    """Of each group that was put or deleted: where last (ready to be joined with), and the rows of those groups once."""
    replaced = pl.concat(
        frame.filter(pl.col(OPERATION) != ADD)
        .select(layout.group)
        .with_columns(pl.lit(place, dtype=pl.UInt32).alias(_PLACE))
        for place, frame in enumerate(frames)
    )
    newest = replaced.group_by(layout.group).agg(pl.col(_PLACE).max())
    keyed, on = joinable(newest, layout.group)
    return (keyed.select([*on, _PLACE]), on), newest


def _above(
    frame: pl.DataFrame, place: int, floors: tuple[pl.DataFrame, list[str]], layout: Layout
) -> pl.DataFrame:
    """The rows of one frame that no later frame replaces, without deletes and without their operation."""
    keyed, on = joinable(frame, layout.group)
    found = keyed.join(floors[0], on=on, how="left", nulls_equal=True, maintain_order="left")
    stands = (found[_PLACE].fill_null(0) <= place) & (frame[OPERATION] != DELETE)
    return frame.filter(stands).drop(OPERATION)


def _with_operations(
    values: pl.DataFrame, newest: pl.DataFrame, schema: pl.Schema, layout: Layout
) -> pl.DataFrame:
    """Values of groups that were replaced are puts; replaced groups without a value are deletes."""
    keyed, on = joinable(newest, layout.group)
    rows, _ = joinable(values, layout.group)
    put = rows.join(keyed.select([*on, _PLACE]), on=on, how="left", nulls_equal=True, maintain_order="left")
    operation = pl.select(
        pl.when(pl.lit(put[_PLACE].is_not_null())).then(pl.lit(PUT, dtype=pl.UInt8)).otherwise(ADD)
    ).to_series()
    gone = keyed.join(rows.select(on), on=on, how="anti", nulls_equal=True).select(layout.group)
    deletes = gone.with_columns(pl.lit(DELETE, dtype=pl.UInt8).alias(OPERATION))
    known = values.with_columns(operation.cast(pl.UInt8).alias(OPERATION))
    both = pl.concat([known, deletes], how="diagonal_relaxed")
    return both.select(known.columns).select(schema.names()).sort(LANE)
