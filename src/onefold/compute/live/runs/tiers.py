"""Compaction: which runs are merged next.

Runs of one lane set are merged in tiers: once ``RUNS_PER_TIER`` neighbours of about one size are there, one run takes their
place. So a row is written again once per tier, and a bundle has few runs however long the job lives. The new run stands at the
offset of the newest that it replaces: what was committed later stays above it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

RUNS_PER_TIER: Final = 8
"""So many neighbouring runs of one tier are merged into one run."""
TIER_BYTES_MIN: Final = 4 * 1024
"""Runs up to this size are of the lowest tier."""


@dataclass(frozen=True, slots=True, order=True)
class RunPlace:
    """One run, as far as compaction looks at it. The order of runs is that of their offsets."""

    offset: int
    size_bytes: int
    lanes: frozenset[int]
    """The lanes that it still covers."""


@dataclass(frozen=True, slots=True)
class Compaction:
    """Runs that one run replaces, the oldest first. Neighbours: no run that stays has an offset between theirs."""

    runs: tuple[RunPlace, ...]
    complete: bool
    """No older run covers one of the lanes: deletes need not be kept."""


def tier(size_bytes: int) -> int:
    """The tier of a run of this size: each holds runs ``RUNS_PER_TIER`` times larger than the one below."""
    level, bound = 0, TIER_BYTES_MIN
    while size_bytes > bound:
        level, bound = level + 1, bound * RUNS_PER_TIER
    return level


def next_compaction(runs: Iterable[RunPlace], lanes: frozenset[int]) -> Compaction | None:
    """The runs to merge next among those that cover some of a bundle's lanes, or None while no tier is full.

    Only neighbours are merged, since a run between two others must keep its place. A smaller run between larger ones belongs to
    their tier: otherwise it would keep them apart for as long as the job lives.
    """
    ordered = sorted(run for run in runs if run.lanes & lanes)
    levels = _levels(ordered)
    for level in sorted(set(levels)):
        found = _longest_stretch(levels, level)
        if found is not None:
            first, last = found
            chosen = tuple(ordered[first:last])
            return Compaction(chosen, complete=first == 0)
    return None


def _levels(ordered: Sequence[RunPlace]) -> list[int]:
    """Each run's tier, raised to that of the smaller one of its larger neighbours on both sides."""
    own = [tier(run.size_bytes) for run in ordered]
    after = list(own)
    for at in range(len(own) - 2, -1, -1):
        after[at] = max(own[at], after[at + 1])
    levels: list[int] = []
    before = -1
    for level, later in zip(own, after, strict=True):
        before = max(before, level)
        levels.append(min(before, later))
    return levels


def _longest_stretch(levels: Sequence[int], level: int) -> tuple[int, int] | None:
    """The last stretch of at least ``RUNS_PER_TIER`` neighbours of this tier, as (first, after the last)."""
    stop = len(levels)
    while stop:
        start = stop
        while start and levels[start - 1] == level:
            start -= 1
        if stop - start >= RUNS_PER_TIER:
            return start, stop
        stop = start if start < stop else stop - 1
    return None
