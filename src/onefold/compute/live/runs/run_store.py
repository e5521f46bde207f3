"""Runs as frames: written for a commit, read from the row that names them, and kept in memory for a while."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.aggregates import decode, encode
from onefold.compute.blobs.store import had_later
from onefold.compute.frames.columns import bounds_us
from onefold.compute.live.run_bytes import unseal
from onefold.compute.live.runs.rows import LANE
from onefold.compute.live.runs.run_file import decode_run, encode_run
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.live.bundles import HeldBundle, Puts
    from onefold.fold.api import StoreView
    from onefold.state.fold.live.lanes import Lanes
    from onefold.state.fold.live.ops import Cover, NewRun, RunId, RunKind
    from onefold.state.fold.live.rows import Run

    Inline = dict[RunId, bytes | tuple[pl.DataFrame, Lanes]]
    """Runs that are in no blob: their bytes, or their rows with the lanes that these are in."""

KEPT_BYTES_MAX: Final = 256 * 1024 * 1024
"""Frames of runs that a process keeps for the next read of a table."""
_BY_LANE: Final[tuple[RunKind, ...]] = ("state", "result")


def new_run(
    held: HeldBundle,
    kind: RunKind,
    frame: pl.DataFrame,
    blobs: Puts,
    *,
    window_end: str | None = None,
    lanes: Lanes | None = None,
    replaces: tuple[Cover, ...] = (),
    ends_us: tuple[int, int] | None = None,
) -> NewRun:
    """A run of this frame for the bundle's next commit. Of the kinds ``state`` and ``result`` it is sorted by lane.

    ``lanes``: those it covers, by default all of the bundle. ``ends_us``: the lowest and the highest end, of one without
    windows.
    """
    ends = ends_us
    if window_end is not None and frame.height:
        ends = bounds_us(frame[window_end])
    data = encode_run(frame) if kind in _BY_LANE else encode(frame)
    return held.run(kind, data, frame.height, blobs, lanes=lanes, ends_us=ends, replaces=replaces)


class RunReader:
    """Reads runs of a part. Thread-safe. A run never changes, so what was read once is kept."""

    def __init__(self, blobs: BlobStore, kept_bytes_max: int = KEPT_BYTES_MAX) -> None:
        self._blobs = blobs
        self._kept_bytes_max = kept_bytes_max
        self._kept: OrderedDict[tuple[bytes, RunId], tuple[pl.DataFrame, Lanes, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def inline(self, view: StoreView, part: bytes, runs: Iterable[Run]) -> Inline:
        """Those runs that are not in blobs, to be read in the view that lists them: their bytes, or what is kept of them, which
        may be kept no more when it is wanted."""
        found: Inline = {}
        for run in runs:
            if run.row.blob:
                continue
            with self._lock:
                kept = self._kept.get((part, run.id))
            data = kept[:2] if kept is not None else live_rows.inline_of(view, part, run.id)
            if data is not None:
                found[run.id] = data
        return found

    def frame(self, part: bytes, run: Run, inline: Inline) -> pl.DataFrame:
        """All rows of a run that it still covers.

        Raises BlobMissing (then the list of runs is old: take it again), BlobsUnavailable and InvalidValue; all definite.
        """
        import polars as pl

        whole, there = self._whole(part, run, inline)
        if run.row.kind not in _BY_LANE or not whole.height:
            return whole
        covered = lane_sets.unpack(run.row.lanes)
        if not there & ~covered:
            return whole
        return whole.filter(pl.col(LANE).is_in(list(lane_sets.numbers_of(there & covered))))

    def _whole(self, part: bytes, run: Run, inline: Inline) -> tuple[pl.DataFrame, Lanes]:
        """All of its rows, and the lanes that these are in, if they are sorted by lane."""
        place = (part, run.id)
        with self._lock:
            kept = self._kept.get(place)
            if kept is not None:
                self._kept.move_to_end(place)
                return kept[:2]
        if run.row.blob:
            with had_later(run.row.blob):
                data: Any = self._blobs.get(run.row.blob)
        else:
            data = inline[run.id]
        if isinstance(data, tuple):
            return data
        _, content = unseal(data)
        by_lane = run.row.kind in _BY_LANE
        frame, there = decode_run(bytes(content)) if by_lane else (decode(bytes(content)), 0)
        self._keep(place, frame, there)
        return frame, there

    def _keep(self, place: tuple[bytes, RunId], frame: pl.DataFrame, there: Lanes) -> None:
        size = int(frame.estimated_size())
        with self._lock:
            if size > self._kept_bytes_max or place in self._kept:
                return
            self._kept[place] = (frame, there, size)
            self._bytes += size
            while self._bytes > self._kept_bytes_max:
                _, (_, _, dropped) = self._kept.popitem(last=False)
                self._bytes -= dropped
