"""What a keyed operator makes of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.live.runs.open_state import OpenState


STREAMING_ROWS_MIN: Final = 100_000
"""From this many rows on Polars' streaming engine is faster than the one in memory."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The outcome of a batch for one bundle. Nothing of it is visible before the bundle's commit."""

    delta: pl.DataFrame | None
    """A state run's frame, sorted by lane and key; None when the batch changes no group."""
    state: OpenState
    """The state with the delta."""
    late: pl.DataFrame | None
    """Rows of the bundle's lanes that were too late, with all of their columns; None without any."""
    rows: int
    """Rows of the bundle's lanes that are in the delta."""


@dataclass(frozen=True, slots=True)
class Closed:
    """What a watermark closes."""

    state: OpenState
    """What stays open."""
    final: pl.DataFrame | None
    """Final rows: lane, operation, the window and the keys, then the aggregates' values. None without any."""
