"""What a worker holds of a bundle's open groups: a list of immutable frames, the oldest first.

A batch adds one frame, and nothing that was there changes. So the state after a batch is a new list that shares all of its
frames with the one before. The worker takes the new one once the commit has happened, and if it is refused keeps the old one at
no cost. Frames are compacted geometrically, eight at a time, so a group is merged again a few times in its life and a list is
short.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final, Literal

import polars as pl

from onefold.compute.frames.columns import bounds_us
from onefold.compute.frames.float_keys import joinable
from onefold.compute.live.runs.merging import live, merged
from onefold.compute.live.runs.rows import DELETE, LANE, OPERATION, Layout, alike, together

FRAMES_PER_LEVEL: Final = 8
"""So many neighbours of one size are merged, with smaller ones between them. A level's frames are up to eight times as large as
those below. Smaller ones do not count: a few events after a restart would have all large frames merged."""
FRAMES_MAX: Final = 32
"""So many neighbours of one size, or smaller, are merged in any case."""


@dataclass(frozen=True)
class OpenState:
    """Open groups of some lanes. Immutable: each method that changes something gives another state."""

    layout: Layout
    frames: tuple[pl.DataFrame, ...] = ()

    @classmethod
    def of_runs(
        cls, layout: Layout, frames: Iterable[pl.DataFrame], alive_after_us: int | None = None
    ) -> OpenState:
        """The state that all runs of some lanes say, the oldest first, as they are: what is read or compacted first merges them.
        ``alive_after_us``: windows that ended by then are out."""
        held = [_alive(frame, layout, alive_after_us) for frame in frames]
        return cls(layout, tuple(frame for frame in held if frame.height))

    @cached_property
    def size_bytes(self) -> int:
        """Memory that the frames take, as Polars estimates it."""
        return int(sum(frame.estimated_size() for frame in self.frames))

    def with_batch(self, frame: pl.DataFrame) -> OpenState:
        """The state after a batch's delta, which has each group at most once."""
        if not frame.height:
            return self
        frames = [*self.frames, frame]
        level = _level(frame.height)
        while True:
            first = next(
                (at + 1 for at in reversed(range(len(frames))) if _level(frames[at].height) > level), 0
            )
            of_level = sum(_level(one.height) == level for one in frames[first:])
            if of_level >= FRAMES_PER_LEVEL or len(frames) - first >= FRAMES_MAX:
                frames[first:] = [merged(frames[first:], self.layout, complete=first == 0)]
            if not first:
                break
            level = _level(frames[first - 1].height)
        return replace(self, frames=tuple(frame for frame in frames if frame.height))

    def values(self) -> pl.DataFrame | None:
        """All open groups, merged, without the columns of a run's operations; None before the first."""
        if not self.frames:
            return None
        return live(merged(self.frames, self.layout, complete=True))

    def close(self, until_us: int) -> tuple[OpenState, pl.DataFrame | None]:
        """(what stays open, the groups whose window ended at or before ``until_us``: merged, or None)."""
        end = self.layout.window_end
        if end is None:
            return self, None
        ended = [frame.filter(_micros(end) <= until_us) for frame in self.frames]
        if not any(frame.height for frame in ended):
            return self, None
        if self.layout.merges:
            staying = [frame.filter(_micros(end) > until_us) for frame in self.frames]
            return self._with(staying), live(merged(ended, self.layout, complete=True))
        # An older row of a session has an earlier end than the newest, which alone counts.
        groups = together([frame.select(self.layout.group) for frame in ended])
        newest = self.lookup(groups, self.layout.group)
        closed = None if newest is None else newest.filter(_micros(end) <= until_us)
        if closed is None or not closed.height:
            return self, None
        return self._with(
            [matching(frame, closed, self.layout.group, "anti") for frame in self.frames]
        ), closed

    def lookup(self, groups: pl.DataFrame, by: Collection[str]) -> pl.DataFrame | None:
        """The open groups whose columns ``by`` have values that are in ``groups``; None without any."""
        names = list(by)
        held = [matching(frame, groups, names, "semi") for frame in self.frames]
        held = [frame for frame in held if frame.height]
        return live(merged(held, self.layout, complete=True)) if held else None

    def of_lanes(self, lanes: Collection[int]) -> OpenState:
        """The state of these lanes only: what a bundle keeps after it gave others away."""
        return self._with([frame.filter(pl.col(LANE).is_in(sorted(lanes))) for frame in self.frames])

    def _with(self, frames: Iterable[pl.DataFrame]) -> OpenState:
        return replace(self, frames=tuple(frame for frame in frames if frame.height))


def _level(rows: int) -> int:
    return max(rows.bit_length() - 1, 0) // 3


def matching(
    frame: pl.DataFrame, groups: pl.DataFrame, names: Sequence[str], how: Literal["semi", "anti"]
) -> pl.DataFrame:
    """The rows of the frame whose values of these columns are (not) among the groups; NaN and null are values like others."""
    rows, groups = alike([frame, groups.select(names)], names)
    rows, on = joinable(rows, names)
    wanted, _ = joinable(groups, names)
    found = rows.join(wanted.select(on).unique(), on=on, how=how, nulls_equal=True, maintain_order="left")
    return found.select(frame.columns)


def _alive(frame: pl.DataFrame, layout: Layout, after_us: int | None) -> pl.DataFrame:
    """A delete of a closed session still hides older rows, so deletes stay until all are merged."""
    if after_us is None or layout.window_end is None:
        return frame
    ends = bounds_us(frame[layout.window_end])
    if ends is not None and ends[0] > after_us and not frame[layout.window_end].null_count():
        return frame
    return frame.filter((_micros(layout.window_end) > after_us) | (pl.col(OPERATION) == DELETE))


def _micros(column: str) -> pl.Expr:
    return pl.col(column).dt.epoch("us")
