"""What one view shows of a live table: its runs, its bundles, and how far they are."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onefold.compute.live.event_time import lowest
from onefold.errors import InvalidArgument
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.commit import total
from onefold.state.fold.live.ops import Counters

if TYPE_CHECKING:
    from onefold.compute.live.client import Found
    from onefold.compute.live.plan import LivePart
    from onefold.compute.live.runs.run_store import Inline, RunReader
    from onefold.state.fold.live.lanes import Lanes
    from onefold.state.fold.live.rows import BundleRow, Run


@dataclass(frozen=True)
class LiveContents:
    """What one view shows of a table."""

    generation: int
    part: LivePart
    key: bytes
    """Of the part's rows."""
    runs: tuple[Run, ...]
    inline: Inline
    bundles: tuple[BundleRow, ...]
    state: str
    offset: int
    schema: bytes = field(default=b"", repr=False)
    """What the part's commits have said of the columns of its inputs."""

    @property
    def moment(self) -> object:
        """Equal for contents that show the same rows, in columns of the same types."""
        covers = tuple((run.id, run.row.lanes) for run in self.runs)
        marks = tuple((row.lanes, row.watermark_us) for row in self.bundles)
        return self.generation, self.state == "done", covers, marks, self.schema

    @property
    def finished(self) -> bool:
        """Whether its job takes no more commits."""
        return self.state not in live_rows.ACTIVE

    @property
    def watermark_us(self) -> int | None:
        """The lowest of all bundles; None: below every time."""
        return lowest([row.watermark_us for row in self.bundles])

    @property
    def counters(self) -> Counters:
        """Of all bundles together."""
        found = Counters()
        for row in self.bundles:
            found = total(found, row.counters)
        return found

    @property
    def by_watermark(self) -> dict[int | None, Lanes]:
        """The lanes of all bundles that have the same watermark."""
        found: dict[int | None, Lanes] = {}
        for row in self.bundles:
            found[row.watermark_us] = found.get(row.watermark_us, 0) | lane_sets.unpack(row.lanes)
        return found

    def closed_us(self, watermark_us: int | None) -> int | None:
        """Windows that end at or before this are closed at a watermark; None: none is."""
        return self.part.closed_us(watermark_us)

    @property
    def windowed(self) -> bool:
        """Whether its rows are of windows, which close."""
        return self.part.windowed


def contents_of(found: Found, part: LivePart, reader: RunReader, kinds: tuple[str, ...]) -> LiveContents:
    """The runs of these kinds, and the bundles, in one view of what is here. Raises InvalidArgument when the
    job is gone."""
    key = live_rows.part_key(found.job.name, found.generation, part.name)
    with found.job.local() as view:
        generation = live_rows.generation_of(view, found.job.name, found.generation)
        if generation is None:
            raise InvalidArgument(f"live job {found.job.name}/{found.generation} was dropped, and its table")
        runs = tuple(run for run in live_rows.runs(view, key) if run.row.kind in kinds)
        inline = reader.inline(view, key, runs)
        bundles = tuple(one.row for one in live_rows.bundles(view, key))
        row = live_rows.part_of(view, key)
        return LiveContents(
            found.generation,
            part,
            key,
            runs,
            inline,
            bundles,
            generation.state,
            view.offset,
            b"" if row is None else row.schema,
        )
