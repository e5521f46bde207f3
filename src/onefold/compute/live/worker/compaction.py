"""What a commit compacts and drops besides its own rows.

Runs are merged by a thread of their own, off the path of the commits, and the next commit after that publishes the merged run. It
may: nobody but the bundle's owner changes the runs of its lanes, and what is being merged is not dropped meanwhile.

That commit may come long after the merge, when the next event does. Until then nothing names the blob of the merged run, and what
nothing names for a day is removed (``garbage``). So a merge that is old, or whose blobs are gone, is done again instead.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from onefold import config
from onefold.compute.live.event_time import lowest
from onefold.compute.live.runs.merging import merged
from onefold.compute.live.runs.rows import LANE, side_by_side
from onefold.compute.live.runs.run_store import new_run
from onefold.compute.live.runs.tiers import RunPlace, next_compaction
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import WATERMARK_END_US, Cover

if TYPE_CHECKING:
    from onefold.compute.live.runs.run_store import Inline
    from onefold.compute.live.worker.bundle_fold import BundleFold
    from onefold.fold.api import StoreView
    from onefold.state.fold.live.ops import NewRun, RunId
    from onefold.state.fold.live.rows import Run

EVERY_COMMITS = 8
"""Runs are looked at once in so many commits that add some, and after a compaction: it may have filled the next tier."""


@dataclass(frozen=True)
class Plan:
    """Compacted runs, and covers of those that expire."""

    runs: tuple[NewRun, ...] = ()
    dropped: tuple[Cover, ...] = ()
    made_by: Merging | None = None
    """To be given to ``Compactor.published`` once the commit has happened."""


NO_PLAN: Final = Plan()


_KEYED: Final = ("state", "result")
"""Kinds of runs whose rows are of one lane each."""
_SET_ASIDE: Final = ("late", "dead")
"""The others: the rows of such a run are of all of its lanes together."""


class _Chosen(NamedTuple):
    runs: list[Run]
    complete: bool


class Merging:
    """Runs that are being merged. The thread reads no view: what it needs is read before."""

    def __init__(self, bundle: BundleFold, chosen: Sequence[_Chosen], inline: Inline) -> None:
        self.replaced = frozenset(run.id for one in chosen for run in one.runs)
        self._bundle = bundle
        self._chosen = chosen
        self._inline = inline
        self._made: tuple[NewRun, ...] = ()
        self._env = bundle.held.worker.job.client.env
        self._began_s = self._env.boot_s()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="onefold-live-compaction", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it has ended."""
        self._thread.join()

    @property
    def has_ended(self) -> bool:
        """Whether its runs, or its error, are there."""
        return not self._thread.is_alive()

    def runs(self) -> tuple[NewRun, ...]:
        """The merged runs. Raises what merging raised: BlobMissing, BlobsUnavailable, OSError."""
        if self._error is not None:
            raise self._error
        return self._made

    def may_be_gone(self) -> bool:
        """Whether its blobs were unnamed for so long that they are removed, or soon may be. Raises as ``BlobStore.keeps``."""
        if self._env.boot_s() - self._began_s > config.LIVE_MERGED_KEPT_S:
            return True
        return not all(self._bundle.blobs.keeps(run.blob) for run in self._made if run.blob)

    def still_holds(self, runs: Sequence[Run], lanes: int) -> bool:
        """Whether the runs that it replaces are as they were."""
        there = {run.id: run.row.lanes for run in runs}
        return all(
            lane_sets.unpack(there.get(run.id, b"")) & lanes == lane_sets.unpack(run.row.lanes) & lanes
            for one in self._chosen
            for run in one.runs
        )

    def _run(self) -> None:
        try:
            self._made = tuple(_compacted(self._bundle, *one, self._inline) for one in self._chosen)
        except BaseException as error:
            self._error = error


class Compactor:
    """Compacts the runs of one bundle. For the bundle's thread."""

    def __init__(self, bundle: BundleFold) -> None:
        self._bundle = bundle
        self._merging: Merging | None = None
        self._look_again = True
        """A new owner looks at once: the ones before may have had few commits each."""
        self._commits = 0

    def planned(self, watermark_us: int | None) -> Plan:
        """What the bundle's next commit compacts and drops; mostly nothing. Begins to merge what is to be merged next."""
        bundle, merging = self._bundle, self._merging
        self._commits += 1  # of those that add runs: others, which may come in turn with them, do not ask
        due = self._commits >= EVERY_COMMITS
        if not (due or self._look_again or (merging is not None and merging.has_ended)):
            return NO_PLAN
        self._commits = 0
        lanes = bundle.held.lanes
        with bundle.held.worker.job.local() as view:
            runs = [
                run
                for run in live_rows.runs(view, bundle.held.part_key)
                if lane_sets.unpack(run.row.lanes) & lanes
            ]
            busy = frozenset[object]() if merging is None else merging.replaced
            past_us = _past_us(view, bundle, runs, watermark_us)
            dropped = [
                run for run in runs if run.id not in busy and _is_over(bundle, run, watermark_us, past_us)
            ]
            if merging is None:
                self._begin(view, runs, {run.id for run in dropped}, lanes)
        covers = tuple(
            Cover(run.id, lane_sets.pack(lane_sets.unpack(run.row.lanes) & lanes)) for run in dropped
        )
        if merging is None:
            return Plan((), covers)
        if sum(run.row.kind in _KEYED for run in runs) > config.LIVE_RUNS_BEHIND_MAX:
            merging.wait()
        if not merging.has_ended:
            return Plan((), covers)
        if not merging.still_holds(runs, lanes):
            self._merging = None
            return Plan((), covers)
        try:
            made = merging.runs()
            if merging.may_be_gone():
                self._merging, self._look_again = None, True
                return Plan((), covers)
            return Plan(made, covers, merging)
        except BaseException:
            self._merging = None
            raise

    def published(self, plan: Plan) -> None:
        """The commit with this plan has happened."""
        if plan.made_by is not None and plan.made_by is self._merging:
            self._merging, self._look_again = None, True

    def wait(self) -> None:
        """Until nothing is being merged."""
        if self._merging is not None:
            self._merging.wait()

    def _begin(self, view: StoreView, runs: Sequence[Run], without: set[RunId], lanes: int) -> None:
        self._look_again = False
        left = [run for run in runs if run.id not in without]
        chosen = [chosen for kind in (*_KEYED, *_SET_ASIDE) if (chosen := _chosen(left, kind, lanes))]
        if chosen:
            bundle = self._bundle
            every = [run for one in chosen for run in one.runs]
            inline = bundle.reader.inline(view, bundle.held.part_key, every)
            self._merging = Merging(bundle, chosen, inline)


def _past_us(
    view: StoreView, bundle: BundleFold, runs: Sequence[Run], watermark_us: int | None
) -> int | None:
    """Results of windows that end then or earlier are past their time; None: none are.

    By the lowest watermark of all bundles, as readers have it: a window leaves the table whole, though each bundle drops its
    runs when it commits. And never beyond what the results themselves say: at the end of a job they are all that does.
    """
    keep_us = bundle.keep_us
    ends = [run.row.high_us for run in runs if run.row.kind == "result" and run.row.high_us is not None]
    if keep_us is None or not ends:
        return None
    others = live_rows.bundles(view, bundle.held.part_key)
    mark = lowest([watermark_us, *(one.row.watermark_us for one in others if one.id != bundle.held.id)])
    return None if mark is None else min(mark, max(ends)) - keep_us


def _is_over(bundle: BundleFold, run: Run, watermark_us: int | None, past_us: int | None) -> bool:
    """Whether all of its windows are closed (state) or past their time (results), or it was set aside as long ago as that."""
    if run.row.high_us is None or watermark_us is None:
        return False
    bound = past_us
    if run.row.kind == "state":
        bound = bundle.closed_us(watermark_us)
    elif run.row.kind in _SET_ASIDE:
        is_end = bundle.keep_us is None or watermark_us >= WATERMARK_END_US
        bound = None if is_end else watermark_us - (bundle.keep_us or 0)
    return bound is not None and run.row.high_us <= bound


def _chosen(runs: list[Run], kind: str, lanes: int) -> _Chosen | None:
    of_kind = [run for run in runs if run.row.kind == kind]
    if kind in _SET_ASIDE and any(lane_sets.unpack(run.row.lanes) & ~lanes for run in of_kind):
        return None  # some of it is another bundle's: its rows would be there twice
    places = [
        RunPlace(
            place,
            run.row.size,
            frozenset(lane_sets.numbers_of(lane_sets.unpack(run.row.lanes) & lanes)),
        )
        for place, run in enumerate(of_kind)
    ]
    found = next_compaction(places, frozenset(lane_sets.numbers_of(lanes)))
    if found is None:
        return None
    return _Chosen([of_kind[place.offset] for place in found.runs], found.complete)


def _compacted(bundle: BundleFold, runs: Sequence[Run], complete: bool, inline: Inline) -> NewRun:
    lanes = bundle.held.lanes
    kind = runs[0].row.kind
    covers = tuple(Cover(run.id, lane_sets.pack(lane_sets.unpack(run.row.lanes) & lanes)) for run in runs)
    if kind in _SET_ASIDE:
        aside = side_by_side([bundle.reader.frame(bundle.held.part_key, run, inline) for run in runs])
        marks = [run.row.high_us for run in runs if run.row.high_us is not None]
        ends = (min(marks), max(marks)) if len(marks) == len(runs) else None
        return new_run(bundle.held, kind, aside, bundle.blobs, lanes=lanes, replaces=covers, ends_us=ends)
    layout = bundle.layout if kind == "state" else bundle.result_layout
    frames = [bundle.of_lanes(bundle.reader.frame(bundle.held.part_key, run, inline)) for run in runs]
    # Rows of results stand for themselves: none of them replaces another.
    state = kind == "state"
    frame = (
        merged(frames, layout, complete=complete)
        if state
        else pl.concat(frames, how="diagonal_relaxed").sort(LANE)
    )
    end = layout.window_end
    return new_run(bundle.held, kind, frame, bundle.blobs, window_end=end, lanes=lanes, replaces=covers)
