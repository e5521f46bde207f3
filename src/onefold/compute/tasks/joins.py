"""Hash joins of two bounded datasets, by broadcasting the small side or by shuffling both.

Both ways give the same columns: the left side's, then the right side's without the keys, with ``_right``
appended to names that the left side has. Keys are equal as numbers are (1 == 1.0); null keys match nothing,
and a left join keeps their rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from onefold.compute.plan.stages import BroadcastJoin
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl


def broadcast(step: BroadcastJoin, rows: pl.LazyFrame, small: pl.DataFrame) -> pl.LazyFrame:
    """Each row with the rows of the small side that have its key, in the order of ``rows``."""
    if step.small_is == "right":
        return _join(rows, small.lazy(), step.on, step.how, "left_right")
    if step.how != "inner":
        raise InvalidPlan("the left side of a left join cannot be broadcast")
    return _join(small.lazy(), rows, step.on, step.how, "right_left")


def join(
    left: pl.DataFrame, right: pl.DataFrame, on: Sequence[str], how: Literal["inner", "left"]
) -> pl.DataFrame:
    """One partition of both sides, joined; in the order of the left rows."""
    if left.width == 0 or (right.width == 0 and how == "inner"):
        return left.clear()
    if right.width == 0:
        return left
    return _join(left.lazy(), right.lazy(), on, how, "left_right").collect()


def _join(
    left: pl.LazyFrame,
    right: pl.LazyFrame,
    on: Sequence[str],
    how: Literal["inner", "left"],
    order: Literal["left_right", "right_left"],
) -> pl.LazyFrame:
    import polars as pl

    from onefold.compute.frames.float_keys import joinable

    casts_left, casts_right = [], []
    left_schema, right_schema = left.collect_schema(), right.collect_schema()
    for name in on:
        for side, schema in (("left", left_schema), ("right", right_schema)):
            if name not in schema:
                there = [column for column in schema if not column.startswith("__onefold")]
                raise InvalidPlan(f"the {side} side of the join has no column {name!r}; it has {there}")
        common = key_type(name, left_schema[name], right_schema[name])
        casts_left.append(pl.col(name).cast(common))
        casts_right.append(pl.col(name).cast(common))
    left, keys = joinable(left.with_columns(casts_left), on)
    right, _ = joinable(right.with_columns(casts_right), on)
    stand_ins = [key for key in keys if key not in on]
    if stand_ins:
        right = right.drop(name for name in on if name not in keys)
    joined = left.join(right, on=keys, how=how, suffix="_right", maintain_order=order, coalesce=True)
    return joined.drop(stand_ins) if stand_ins else joined


def key_type(name: str, left: pl.DataType, right: pl.DataType) -> pl.DataType:
    """The type in which both sides' keys are compared. Raises InvalidPlan when there is none."""
    import polars as pl

    if left == right:
        return left
    for kind in (pl.Datetime, pl.Duration):
        if isinstance(left, kind) and isinstance(right, kind):
            # Polars would take the coarser unit, in which keys meet that are not equal.
            unit = max(left.time_unit, right.time_unit, key=("ms", "us", "ns").index)
            finer = [
                pl.Datetime(unit, side.time_zone) if isinstance(side, pl.Datetime) else pl.Duration(unit)
                for side in (left, right)
            ]
            if finer[0] == finer[1]:
                return finer[0]
    text = (pl.String, pl.Categorical, pl.Enum)
    if left.base_type() in text and right.base_type() in text:
        return pl.String()
    meet = (
        pl.Null in (left, right)
        or (left.is_numeric() and right.is_numeric())
        or (left.is_temporal() and right.is_temporal())
    )
    if meet:
        try:
            both = pl.concat(
                [pl.Series(name, [], left).to_frame(), pl.Series(name, [], right).to_frame()],
                how="vertical_relaxed",
            )
            return both.schema[name]
        except pl.exceptions.PolarsError:
            pass
    raise InvalidPlan(
        f"the join key {name!r} is {left} on the left and {right} on the right; cast one of them first"
    )
