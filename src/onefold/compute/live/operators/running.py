"""Aggregates without a window: one value for each key, which every commit may change.

With ``ttl`` a group is forgotten when its newest event is that far behind the watermark, as its bundle knew it before the batch.
The newest time is one more state of each group. Without it groups are kept for as long as the job lives.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

import polars as pl

from onefold.compute.aggregates import Aggregate, final, from_polars, partial
from onefold.compute.aggregates.frames import Engine
from onefold.compute.live.operators.result import STREAMING_ROWS_MIN, Batch
from onefold.compute.live.runs.open_state import OpenState, matching
from onefold.compute.live.runs.rows import (
    ADD,
    DELETE,
    LANE,
    OPERATION,
    PUT,
    Layout,
    by_lane,
    of_lanes,
    together,
    with_lanes,
    with_operation,
)

_SEEN: Final = "__onefold_seen"


class Forgotten(NamedTuple):
    """Groups past their time."""

    state: OpenState
    """Without them."""
    delta: pl.DataFrame
    """Their deletes."""
    values: pl.DataFrame
    """What they were."""


@dataclass(frozen=True)
class RunningAggregate:
    """``dataset.group_by(*keys).agg(**aggregates)`` over an input that never ends."""

    keys: tuple[pl.Expr, ...]
    aggregates: tuple[tuple[str, Aggregate], ...]
    lanes: int
    ttl_us: int | None = None
    time: str = ""
    """The column of event times; needed with ``ttl_us``."""

    @cached_property
    def key_names(self) -> tuple[str, ...]:
        """The columns of the keys."""
        return tuple(key.meta.output_name() for key in self.keys)

    @cached_property
    def kept(self) -> tuple[tuple[str, Aggregate], ...]:
        """The aggregates whose state is kept."""
        if self.ttl_us is None:
            return self.aggregates
        return (*self.aggregates, (_SEEN, from_polars(pl.col(self.time).max())[1]))

    @cached_property
    def layout(self) -> Layout:
        """The rows of its state: by key."""
        return Layout(self.key_names, self.kept)

    def batch(
        self,
        rows: pl.DataFrame,
        state: OpenState,
        watermark_us: int | None,
        mine: Collection[int] | None = None,
    ) -> Batch:
        """Take a batch in. ``watermark_us``: of the bundle before the batch. ``mine``: the bundle's lanes, None for all of
        them."""
        rows = of_lanes(rows, self.keys, self.lanes, mine)
        if not rows.height:
            return Batch(None, state, None, 0)
        engine: Engine = "streaming" if rows.height > STREAMING_ROWS_MIN else "in-memory"
        groups = partial(rows.lazy(), self.keys, self.kept, engine=engine)
        delta = by_lane(with_operation(with_lanes(groups, self.key_names, self.lanes), ADD))
        if self.ttl_us is not None and watermark_us is not None:
            delta = self._begun_again(delta, state, watermark_us)
        return Batch(delta, state.with_batch(delta), None, rows.height)

    def forget(self, state: OpenState, watermark_us: int) -> Forgotten | None:
        """Forget what is past its time at this watermark; None: nothing is."""
        over = self._over(state.values(), watermark_us)
        if over is None:
            return None
        delta = with_operation(over, DELETE).select(state.frames[0].columns).sort(LANE)
        return Forgotten(state.with_batch(delta), delta, self._finished(over))

    def changed(
        self,
        deltas: Sequence[pl.DataFrame],
        before: OpenState,  # noqa: ARG002
        after: OpenState,
        watermark_us: int | None,  # noqa: ARG002
    ) -> tuple[pl.DataFrame | None, None]:
        """(the groups that these deltas change, with their values after them; none goes)."""
        touched = together([delta.select(LANE, *self.key_names) for delta in deltas]).unique()
        held = after.lookup(touched, self.layout.group)
        return (None if held is None else self._finished(held)), None

    def with_history(self, groups: pl.DataFrame, state: OpenState) -> pl.DataFrame:  # noqa: ARG002
        """The delta of a history's partial by key, of the bundle's lanes."""
        return by_lane(with_operation(groups, ADD))

    def values(self, state: OpenState, groups: pl.DataFrame | None = None) -> pl.DataFrame | None:
        """The aggregates' values of all groups, or of these, by lane and key; None without any."""
        held = state.values() if groups is None else state.lookup(groups, self.layout.group)
        return None if held is None else self._finished(held)

    def _finished(self, held: pl.DataFrame) -> pl.DataFrame:
        values = final(held, self.layout.group, self.kept)
        return values if self.ttl_us is None else values.drop(_SEEN)

    def _over(self, held: pl.DataFrame | None, watermark_us: int) -> pl.DataFrame | None:
        """The groups that are past their time at this watermark; None without any."""
        if held is None or self.ttl_us is None:
            return None
        over = held.filter(pl.col(f"{_SEEN}:v").dt.epoch("us") + self.ttl_us <= watermark_us)
        return over if over.height else None

    def _begun_again(self, delta: pl.DataFrame, state: OpenState, watermark_us: int) -> pl.DataFrame:
        """The delta, in which groups that were past their time replace what they were."""
        group = self.layout.group
        over = self._over(state.lookup(delta.select(group), group), watermark_us)
        if over is None:
            return delta
        again = matching(delta, over.select(group), group, "semi").with_columns(
            pl.lit(PUT, dtype=pl.UInt8).alias(OPERATION)
        )
        return pl.concat([matching(delta, over.select(group), group, "anti"), again]).sort(LANE)
