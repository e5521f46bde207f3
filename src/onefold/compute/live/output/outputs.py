"""What a commit gives to its part's sink: rows, and rows that it takes back.

With ``emit="final"`` a window's rows go out once, when it closes. With ``emit="update"`` the groups that a commit changes go out
with the values that they have after it. Groups that are no more (a session that became part of another, a group past its
``ttl``) are taken back. A table shows all of that from its state, so nothing is written for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from onefold.compute.live.inputs.preparing import RECORD, TIME
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.plan import HopSink, LivePart, TableSink
from onefold.compute.live.runs.open_state import matching
from onefold.compute.live.runs.rows import LANE, OPERATION
from onefold.state.streams.frames import OWN_COLUMNS

if TYPE_CHECKING:
    from onefold.compute.live.runs.open_state import OpenState

_OURS = (LANE, OPERATION, TIME, RECORD, *OWN_COLUMNS)


@dataclass(frozen=True)
class Changes:
    """What the batches of a commit made, before anything closed by it is dropped."""

    plain: Sequence[pl.DataFrame] = ()
    """Rows of a part without an operator, with their lane."""
    deltas: Sequence[pl.DataFrame] = ()
    before: OpenState | None = None
    after: OpenState | None = None
    closed: pl.DataFrame | None = None
    """Final rows."""
    expired: pl.DataFrame | None = None
    """Groups that were forgotten, with their values."""
    watermark_us: int | None = None
    """Before the commit."""


@dataclass(frozen=True)
class Output:
    """What goes out with a commit."""

    result: pl.DataFrame | None = None
    """Rows of the table, sorted by lane."""
    rows: pl.DataFrame | None = None
    """Rows for another sink, as the user sees them."""
    gone: pl.DataFrame | None = None
    """Rows that went out before and are no more, with the values that they had."""


def output(part: LivePart, changes: Changes) -> Output:
    """What a commit with these changes gives to the part's sink."""
    sink, operator = part.sink, part.operator
    if operator is None:
        if not changes.plain:
            return Output()
        rows = (
            pl.concat(changes.plain, how="diagonal_relaxed") if len(changes.plain) > 1 else changes.plain[0]
        )
        if isinstance(sink, HopSink):
            return Output(rows=rows.drop(LANE))
        if isinstance(sink, TableSink):
            return Output(
                rows.drop([name for name in (TIME, RECORD, *OWN_COLUMNS) if name in rows.columns]).sort(LANE)
            )
        return Output(rows=_shown(rows))
    if isinstance(sink, TableSink):
        return Output(changes.closed)
    if getattr(sink, "emit", part.default_emit) == "final":
        return Output(rows=_shown(changes.closed))
    if changes.before is None or changes.after is None:
        return Output()
    changed: pl.DataFrame | None = None
    gone: pl.DataFrame | None = None
    if changes.deltas:
        changed, gone = operator.changed(changes.deltas, changes.before, changes.after, changes.watermark_us)
    if isinstance(operator, RunningAggregate) and changes.expired is not None:
        # A group that this commit changes and forgets goes; one that it begins and forgets was never there.
        if changed is not None:
            changed = matching(changed, changes.expired, operator.layout.group, "anti")
        gone = operator.values(changes.before, changes.expired)
    return Output(rows=_shown(changed), gone=_shown(gone))


def _shown(rows: pl.DataFrame | None) -> pl.DataFrame | None:
    if rows is None or not rows.height:
        return None
    return rows.drop([name for name in _OURS if name in rows.columns])
