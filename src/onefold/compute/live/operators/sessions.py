"""Aggregates by sessions: events of one key that are at most a gap apart.

A session's row is named by its start and its key. It may grow at both ends and join two others, so rows replace each other: a
commit puts each session that changed and deletes those that became part of another, or begin earlier now.

``window_end`` is the last event's time plus the gap. An event exactly then still belongs to the session, so a session is final
once the watermark is beyond its end and the lateness. An event is late when a session of it alone would be final, whatever
sessions are open; so whether it is late does not depend on other events of its key.

Sessions of a batch are found by one sort. They are merged with the open sessions of the same keys by a running maximum of ends
over all keys at once: the number of the key and the rank of the end, packed into one integer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import polars as pl

from onefold.compute.aggregates import each_group_once, final, partial
from onefold.compute.live.operators.of_windows import OfWindows
from onefold.compute.live.operators.result import Batch, Closed
from onefold.compute.live.runs.merging import merged
from onefold.compute.live.runs.open_state import OpenState
from onefold.compute.live.runs.rows import (
    DELETE,
    LANE,
    OPERATION,
    PUT,
    Layout,
    of_lanes,
    together,
    with_lanes,
    with_operation,
)
from onefold.compute.plan import windows
from onefold.compute.plan.windows import END, START

_SESSION: Final = "__onefold_session"
_KEY: Final = "__onefold_key"
_NEW: Final = "__onefold_new"


@dataclass(frozen=True)
class SessionAggregate(OfWindows):
    """``dataset.window(of.window.session(gap)).group_by(*keys).agg(**aggregates)`` over a column of event times."""

    @cached_property
    def layout(self) -> Layout:
        """The rows of its state: by start and key, each replacing the one before."""
        return Layout((START, *self.key_names), self.aggregates, window_end=END, replaces=True)

    def batch(
        self,
        rows: pl.DataFrame,
        state: OpenState,
        watermark_us: int | None,
        mine: Collection[int] | None = None,
    ) -> Batch:
        """Take a batch in. ``watermark_us``: of the bundle before the batch; None: none yet. ``mine``: the bundle's lanes, None
        for all of them."""
        rows = of_lanes(rows, self.keys, self.lanes, mine)
        late: pl.DataFrame | None = None
        if watermark_us is not None and rows.height:
            closing = windows.closing_us(pl.col(self.time).dt.epoch("us"), self.spec)
            judged = rows.select((closing <= watermark_us).alias(_NEW))[_NEW]
            if judged.any():
                late, rows = rows.filter(judged), rows.filter(~judged)
        if not rows.height:
            return Batch(None, state, late, 0)
        delta = self._merged(self._sessions(rows), state)
        return Batch(delta, state.with_batch(delta), late, rows.height)

    def close(self, state: OpenState, before_us: int | None, watermark_us: int) -> Closed:
        """Move the watermark from ``before_us`` to ``watermark_us``: sessions that end before it, and the lateness, are final."""
        if before_us is not None and watermark_us <= before_us:
            return Closed(state, None)
        remaining, found = state.close(windows.last_closed_us(watermark_us, self.spec))
        if found is None or not found.height:
            return Closed(remaining, None)
        return Closed(remaining, with_operation(self._finished(found), PUT).sort(LANE))

    def open_windows(self, state: OpenState, watermark_us: int | None) -> pl.DataFrame | None:  # noqa: ARG002
        """The sessions that are not final yet, with their values so far; None without any."""
        found = state.values()
        return None if found is None or not found.height else self._finished(found)

    def changed(
        self,
        deltas: Sequence[pl.DataFrame],
        before: OpenState,
        after: OpenState,  # noqa: ARG002
        watermark_us: int | None,  # noqa: ARG002
    ) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
        """(the sessions that these deltas change, those of ``before`` that became part of others or begin earlier now)."""
        newest = merged(deltas, self.layout, complete=False)
        puts = newest.filter(pl.col(OPERATION) != DELETE).drop(OPERATION)
        deletes = newest.filter(pl.col(OPERATION) == DELETE)
        gone = before.lookup(deletes, self.layout.group) if deletes.height else None
        return (
            self._finished(puts) if puts.height else None,
            None if gone is None or not gone.height else self._finished(gone),
        )

    def with_history(self, groups: pl.DataFrame, state: OpenState) -> pl.DataFrame:
        """The delta of a history's sessions, of the bundle's lanes: they may join those that are open."""
        return self._merged(groups, state)

    def _finished(self, sessions: pl.DataFrame) -> pl.DataFrame:
        group = (LANE, START, END, *self.key_names)
        return final(sessions.sort(self.layout.group), group, self.aggregates)

    def _sessions(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The sessions of a batch by itself: lane, start, end, keys, states."""
        keyed = rows.with_columns(self.keys) if self.keys else rows
        placed = windows.with_sessions(keyed, self.key_names, self.time, self.spec.length_us)
        keys = [pl.col(START), pl.col(END), *(pl.col(name) for name in self.key_names)]
        groups = partial(placed.lazy(), keys, self.aggregates, engine="in-memory")
        return with_lanes(groups, self.key_names, self.lanes)

    def _merged(self, fresh: pl.DataFrame, state: OpenState) -> pl.DataFrame:
        """The delta: sessions that the batch's sessions change, and those that are part of others now."""
        held = state.lookup(fresh, self.key_names) if self.key_names else state.values()
        columns = fresh.columns
        both = [fresh.with_columns(pl.lit(True).alias(_NEW))]
        if held is not None and held.height:
            both.insert(0, held.select(columns).with_columns(pl.lit(False).alias(_NEW)))
        numbered = _numbered(together(both), self.key_names)
        states = [name for name in columns if name not in (LANE, START, END, *self.key_names)]
        by_number = each_group_once(numbered.select(_SESSION, *states), (_SESSION,), self.aggregates)
        bounds = numbered.group_by(_SESSION, maintain_order=True).agg(
            pl.col(LANE, START, *self.key_names).first(), pl.col(END).max(), pl.col(_NEW).any()
        )
        changed = bounds[_NEW]
        puts = bounds.drop(_NEW, _SESSION).hstack(by_number.drop(_SESSION)).filter(changed)
        heads = numbered[START] == bounds[START].gather(numbered[_SESSION])
        touched = changed.gather(numbered[_SESSION])
        gone = numbered.filter(~numbered[_NEW] & ~heads & touched).select(LANE, START, END, *self.key_names)
        deletes = gone.with_columns(pl.lit(DELETE, dtype=pl.UInt8).alias(OPERATION))
        known = with_operation(puts, PUT)
        return pl.concat([known, deletes], how="diagonal_relaxed").sort(LANE)


def _numbered(sessions: pl.DataFrame, keys: Collection[str]) -> pl.DataFrame:
    """The sessions ordered by key and start, with the number of the session that each is part of, from 0 on."""
    ordered = sessions.sort([LANE, *keys, START], maintain_order=True)
    other = [pl.col(name).ne_missing(pl.col(name).shift()) for name in (LANE, *keys)]
    new_key = ordered.select(pl.any_horizontal(*other).fill_null(True)).to_series()
    key_number = new_key.cum_sum().cast(pl.Int64)
    rank = ordered[END].rank("dense").cast(pl.Int64)
    most = int(rank.to_numpy().max()) + 1
    reach = (key_number * most + rank).cum_max()
    before = reach.shift()
    # Where the end of that reach is, as the time it stands for; of another key it is below every start of this one.
    unique_ends = ordered[END].unique().sort()
    reached = unique_ends.gather((before.fill_null(most + 1) % most - 1).clip(0))
    apart = ordered[START] > reached
    first = new_key | apart | before.is_null()
    return ordered.with_columns((first.cum_sum() - 1).alias(_SESSION))
