"""The columns of a run's frame: lane, operation, the key of a group, and its state."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from onefold.compute.frames.columns import constant, only, with_column
from onefold.compute.frames.common_types import common_schema, fitted
from onefold.compute.frames.named import frame_of
from onefold.compute.tasks.shuffle import partition_numbers
from onefold.errors import InvalidPlan, InvalidValue
from onefold.machine.undisturbed import let_pass
from onefold.state.fold.live.lanes import LANES_MAX

if TYPE_CHECKING:
    from onefold.compute.aggregates import Aggregate

LANE: Final = "__onefold_lane"
"""UInt16: the lane that the group belongs to."""
OPERATION: Final = "__onefold_op"
"""UInt8: ``ADD``, ``PUT`` or ``DELETE``."""
ADD: Final = 0
PUT: Final = 1
DELETE: Final = 2


@dataclass(frozen=True)
class Layout:
    """What the rows of a part's runs are: the columns that name a group, and the aggregates whose state they carry.

    ``keys``: all columns that name a group. Tumbling and sliding windows are named by their start and their end; a session only
    by its start, since its end moves, and then rows replace each other (``replaces``): nothing is ever added. Without
    ``aggregates`` the other columns are values as they are, and rows replace each other too.
    ``window_end``: the column after which (and the lateness) a group changes no more; None without windows.
    """

    keys: tuple[str, ...]
    aggregates: tuple[tuple[str, Aggregate], ...] = ()
    window_end: str | None = None
    replaces: bool = False

    @property
    def group(self) -> tuple[str, ...]:
        """The columns that name a group in a run, in the order of its rows: the lane first."""
        return (LANE, *self.keys)

    @property
    def merges(self) -> bool:
        """Whether two rows of a group can be combined."""
        return bool(self.aggregates) and not self.replaces


def with_lanes(frame: pl.DataFrame, keys: Sequence[str], lanes: int) -> pl.DataFrame:
    """The frame with each row's lane, which is a stable hash of its keys' values modulo ``lanes``.

    Hash groups, not events: text takes 0.3 µs a row. Raises InvalidPlan for key types that have no stable hash.
    """
    if not 1 <= lanes <= LANES_MAX:
        raise InvalidPlan(f"lanes must be 1 to {LANES_MAX}, not {lanes}")
    if not keys:
        return with_column(frame, constant(LANE, 0, pl.UInt16, frame.height))
    return with_column(frame, pl.Series(LANE, partition_numbers(frame, keys, lanes), dtype=pl.UInt16))


def of_lanes(
    rows: pl.DataFrame, keys: Sequence[pl.Expr], lanes: int, mine: Collection[int] | None
) -> pl.DataFrame:
    """The rows whose groups by these keys are of the lanes ``mine``; None: all rows. Without keys all are of lane 0."""
    if mine is None or not rows.height:
        return rows
    if not keys:
        return rows if 0 in mine else rows.clear()
    names = [key.meta.output_name() for key in keys]
    # A key may be a constant, which is one row if it is selected alone.
    found = with_lanes(only(rows.with_columns(keys), names), names, lanes)[LANE]
    return rows.filter(found.is_in(sorted(mine)))


def alike(frames: Sequence[pl.DataFrame], names: Sequence[str]) -> list[pl.DataFrame]:
    """The frames with one type for each of these columns: a key that is null in all records so far has no type yet.

    Raises InvalidValue for types that no one column can hold.
    """
    first = frames[0].schema
    if all(frame.schema[name] == first[name] for frame in frames[1:] for name in names):
        return list(frames)
    common = common_schema({name: frame.schema[name] for name in names} for frame in frames)
    return [fitted(frame, {**frame.schema, **common}) for frame in frames]


def together(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows of all frames, with all of their columns. Raises InvalidValue for types that no one column can hold."""
    if len(frames) == 1:
        return frames[0]
    if any(frame.schema != frames[0].schema for frame in frames):
        common = common_schema(frame.schema for frame in frames)
        frames = [fitted(frame, common) for frame in frames]
    return pl.concat(frames)


def side_by_side(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """The rows of all frames, with all of their columns, for people to read: records of different streams, which have their
    columns by chance. A column whose values no one type can hold is text."""
    texts: set[str] = set()
    if all(frame.schema == frames[0].schema for frame in frames):
        return together(frames)
    for name in dict.fromkeys(name for frame in frames for name in frame.columns):
        try:
            common_schema({name: frame.schema[name]} for frame in frames if name in frame.columns)
        except InvalidValue as error:
            let_pass(error)
            texts.add(name)
    if texts:
        frames = [
            frame_of(as_text(column) if column.name in texts else column for column in frame)
            for frame in frames
        ]
    return together(frames)


def as_text(column: pl.Series) -> pl.Series:
    """The values as text; null stays null."""
    if column.dtype.is_nested() or column.dtype in (pl.Binary, pl.Object):
        return pl.Series(
            column.name, [None if one is None else str(one) for one in column.to_list()], dtype=pl.String
        )
    return column.cast(pl.String)


def with_operation(frame: pl.DataFrame, operation: int) -> pl.DataFrame:
    """The frame with one operation for all of its rows."""
    return with_column(frame, constant(OPERATION, operation, pl.UInt8, frame.height))


def by_lane(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows sorted by lane, those of a lane in the order that they had."""
    lanes = frame[LANE]
    if lanes.is_sorted():
        return frame
    return frame[np.argsort(lanes.to_numpy(), kind="stable")]


def only_adds(frame: pl.DataFrame) -> bool:
    """Whether every row merges with what older runs say of its group."""
    return not frame.height or frame[OPERATION].max() == ADD
