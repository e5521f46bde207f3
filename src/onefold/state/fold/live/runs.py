"""The runs of a part in the fold: adding them, and taking lanes from their cover.

A run is there while it covers a lane. A compaction is one new run at the place of the newest run that it replaces; what it
replaces loses the new run's lanes, so readers find each row of a lane in one run. A compaction must name *every* run of its kind
and lanes from the oldest to the newest that it replaces: a merge over a run left out would change the order of puts and adds.
"""

from __future__ import annotations

from typing import Final

from onefold import config
from onefold.fold.api import Context, Store, StoreView
from onefold.invariants import invariant
from onefold.state.fold import blobs
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.lanes import Lanes
from onefold.state.fold.live.ops import Cover, LaneCommit, NewRun, RunId
from onefold.state.fold.live.rows import RunRow

_ORDINALS: Final = 1 << 16
"""Ordinals of one operation; more runs than this are refused."""


def why_refused(store: StoreView, part: bytes, lanes: Lanes, write: LaneCommit) -> str:
    """What is wrong with the runs of a commit of these lanes; empty: nothing."""
    if len(write.runs) > min(config.LIVE_RUNS_PER_COMMIT_MAX, _ORDINALS):
        return f"{len(write.runs)} runs are more than {config.LIVE_RUNS_PER_COMMIT_MAX}"
    taken: dict[RunId, Lanes] = {}
    for run in write.runs:
        why = _why_run(run, lanes) or (_why_compaction(store, part, run, taken) if run.replaces else "")
        if why:
            return why
    for cover in write.dropped:
        why = _why_cover(store, part, cover, lanes, taken)
        if why:
            return why
    return ""


def _why_run(run: NewRun, lanes: Lanes) -> str:
    covered = lane_sets.unpack(run.lanes)
    if not covered or not lane_sets.covers(lanes, covered):
        return "a run has lanes that are not the bundle's"
    if bool(run.blob) == bool(run.inline) or len(run.blob) > blobs.BLOB_CHARS_MAX:
        return "a run has its bytes either in a blob or with it"
    if len(run.inline) > config.LIVE_INLINE_BYTES_MAX:
        return f"{len(run.inline)} bytes of a run are more than {config.LIVE_INLINE_BYTES_MAX}: they belong in a blob"
    if run.low_us is not None and (run.high_us is None or run.high_us < run.low_us):
        return "the window ends of a run are not in order"
    return ""


def _why_compaction(store: StoreView, part: bytes, run: NewRun, taken: dict[RunId, Lanes]) -> str:
    lanes = lane_sets.unpack(run.lanes)
    ids = [cover.run for cover in run.replaces]
    if ids != sorted(set(ids)):
        return "a compaction names its runs in order, each once"
    named = {cover.run: cover for cover in run.replaces}
    seen = 0
    for found in live_rows.runs(store, part, ids[0], ids[-1]):
        covered = lane_sets.unpack(found.row.lanes) & lanes
        if found.row.kind != run.kind or not covered:
            continue
        cover = named.get(found.id)
        if cover is None:
            return f"a compaction leaves out the run at offset {found.id.offset}"
        if lane_sets.unpack(cover.lanes) != covered:
            return "a compaction takes all of its lanes from each run"
        seen += 1
    if seen != len(ids):
        return "a compaction names a run that is gone, or is not of its kind and lanes"
    for cover in run.replaces:
        why = _why_cover(store, part, cover, lanes, taken)
        if why:
            return why
    return ""


def _why_cover(store: StoreView, part: bytes, cover: Cover, lanes: Lanes, taken: dict[RunId, Lanes]) -> str:
    found = live_rows.run_of(store, part, cover.run)
    given = lane_sets.unpack(cover.lanes)
    if found is None or not given or not lane_sets.covers(lane_sets.unpack(found.lanes), given):
        return "a run to be replaced or dropped does not cover those lanes"
    if not lane_sets.covers(lanes, given):
        return "a run to be replaced or dropped covers lanes that are not the bundle's"
    before = taken.get(cover.run, 0)
    if before & given:
        return "a run loses a lane twice"
    taken[cover.run] = before | given
    return ""


def apply(store: Store, context: Context, part: bytes, write: LaneCommit) -> None:
    """Add and take away what was not refused."""
    for number, run in enumerate(write.runs):
        ordinal = context.index * _ORDINALS + number
        at = (context.offset, context.index)
        if run.replaces:
            newest = run.replaces[-1].run
            at = (newest.offset, newest.index)
        key = live_rows.run_key(part, RunId(*at, context.offset, ordinal))
        lanes = lane_sets.pack(lane_sets.unpack(run.lanes))  # without zeros in front, however many there are
        row = RunRow(run.kind, lanes, run.rows, run.size, run.blob, run.low_us, run.high_us)
        store.put(live_rows.RUNS, key, live_rows.encode(row))
        if run.blob:
            blobs.name(store, run.blob)
        else:
            store.put(live_rows.INLINE, key, run.inline)
    for run in write.runs:
        for cover in run.replaces:
            _uncover(store, context, part, cover)
    for cover in write.dropped:
        _uncover(store, context, part, cover)


def _uncover(store: Store, context: Context, part: bytes, cover: Cover) -> None:
    row = live_rows.run_of(store, part, cover.run)
    invariant(row is not None, "a run that loses lanes is there", run=cover.run)
    if row is None:
        return
    left = lane_sets.unpack(row.lanes) & ~lane_sets.unpack(cover.lanes)
    if left:
        kept = RunRow(row.kind, lane_sets.pack(left), row.rows, row.size, row.blob, row.low_us, row.high_us)
        store.put(live_rows.RUNS, live_rows.run_key(part, cover.run), live_rows.encode(kept))
    else:
        remove(store, context, part, cover.run, row)


def remove(store: Store, context: Context, part: bytes, run: RunId, row: RunRow) -> None:
    """Forget a run; its blob is garbage unless something else names it."""
    key = live_rows.run_key(part, run)
    store.delete(live_rows.RUNS, key)
    store.delete(live_rows.INLINE, key)
    if row.blob:
        blobs.unname(store, context, row.blob)
