"""Rows for which a key or an aggregate fails, found one by one, so that the others can be taken in without them."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import polars as pl

from onefold.compute.aggregates import MergeFailed
from onefold.compute.live.inputs.preparing import RECORD
from onefold.compute.live.runs.rows import of_lanes
from onefold.compute.tasks.failures import one_line, user_traceback
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    from onefold.compute.live.operators.result import Batch
    from onefold.compute.live.runs.open_state import OpenState

Take = Callable[[pl.DataFrame, "OpenState"], "Batch"]
_OF_THE_PLAN = (
    InvalidPlan,
    MergeFailed,
    pl.exceptions.ColumnNotFoundError,
    pl.exceptions.SchemaError,
    pl.exceptions.DuplicateError,
)
"""What no record is to blame for."""


def taken(rows: pl.DataFrame, state: OpenState, take: Take) -> tuple[list[Batch], dict[int, str]]:
    """What an operator makes of these rows: batches, each with the state of the one before; and the records that it fails for,
    with the reason. Of such a record no row is taken. Raises what no record is to blame for."""
    try:
        return [take(rows, state)], {}
    except _OF_THE_PLAN:
        raise
    except BaseException:  # sys.exit() in a function, or a panic of Polars
        broken = _broken(rows, state, take)
    sound = rows.filter(~pl.col(RECORD).is_in(sorted(broken)))
    return _in_pieces(sound, state, take), broken


def lanes_own(
    row: pl.DataFrame, keys: tuple[pl.Expr, ...], lanes: int, mine: Collection[int] | None
) -> bool | None:
    """Whether a row's group is of the lanes ``mine``; None: its key cannot be computed, so it has no group."""
    try:
        return of_lanes(row, keys, lanes, range(lanes) if mine is None else mine).height > 0
    except BaseException:  # sys.exit() in a function, or a panic of Polars
        return None


def _broken(rows: pl.DataFrame, state: OpenState, take: Take) -> dict[int, str]:
    try:
        take(rows, state)
    except _OF_THE_PLAN:
        raise
    except BaseException as error:
        if rows.height == 1:
            return {int(rows[RECORD][0]): f"{one_line(error)}\n{user_traceback(error)}".strip()}
    else:
        return {}
    half = rows.height // 2
    return _broken(rows[half:], state, take) | _broken(rows[:half], state, take)


def _in_pieces(rows: pl.DataFrame, state: OpenState, take: Take) -> list[Batch]:
    """Rows that are sound one by one, in as many batches as it takes."""
    try:
        return [take(rows, state)]
    except BaseException:  # sys.exit() in a function, or a panic of Polars
        if rows.height <= 1:
            raise
    half = rows.height // 2
    first = _in_pieces(rows[:half], state, take)
    return first + _in_pieces(rows[half:], first[-1].state, take)
