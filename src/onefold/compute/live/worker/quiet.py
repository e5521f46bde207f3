"""What moves a bundle's watermark when no row does: partitions that fall idle, time that passes, the part above.

- *Idle*: a partition that was silent for a while. Only a barriered view may say that it is read to its head.
- *Processing time* (``event_time=None``): whatever comes to a partition that is read to its head is appended later than the fold
  time of that view. A window that is due by this process's clock is closed so, after a record that carries the clock into the
  log: without one, time stands still in a quiet log. With nothing open nothing is appended.
- *A hop*: the part that reads may go as far as the positions of the part above say, once it has read the hop to its head, all in
  one view. Nothing is guessed from the times of rows. Processing time passes by the inputs of the part above as it does without
  a hop, if that part stands at their heads: the part below, which knows what is open, asks for it, and nothing more is committed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import polars as pl

from onefold.compute.live.bundles import meeting_point
from onefold.compute.live.event_time import lowest, operator_watermark, passed_by
from onefold.compute.live.idleness import IdleClock
from onefold.compute.live.inputs.reading import Inputs
from onefold.compute.live.operators.sessions import SessionAggregate
from onefold.compute.plan.windows import END, START
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import WATERMARK_END_US, Position
from onefold.state.fold.streams import rows as stream_rows

if TYPE_CHECKING:
    from onefold.compute.live.bundles import Meeting
    from onefold.compute.live.client import LiveJob
    from onefold.compute.live.idleness import Place
    from onefold.compute.live.plan import LivePart, LivePlan
    from onefold.compute.live.worker.batch_reader import BatchReader
    from onefold.compute.live.worker.bundle_fold import BundleFold
    from onefold.state.fold.live.rows import BundleRow

TICK_S: Final = 1.0
"""A clock ahead of the log's is carried into the log this often at most."""


class Quiet:
    """Of one bundle. It starts again with each owner."""

    def __init__(self, part: LivePart, reader: BatchReader) -> None:
        self._part = part
        self._reader = reader
        self._clock = IdleClock(
            {
                number: None if one.by_append or one.idle_us is None else one.idle_us / 1e6
                for number, one in enumerate(part.inputs)
                if not one.hop_of and not one.history
            }
        )
        self._ticked_s = float("-inf")

    def positions(
        self, fold: BundleFold, job: LiveJob, read: Mapping[Place, int | None] = MappingProxyType({})
    ) -> list[Position]:
        """Partitions that are idle now, or that time has passed by, as they are to be committed. ``read``: those of which the
        commit has rows, with their highest time: they are neither, but must not keep the others from being it."""
        return [*self._found_idle(fold, job, read), *self._passed_by(fold, job, read)]

    def _found_idle(self, fold: BundleFold, job: LiveJob, read: Mapping[Place, int | None]) -> list[Position]:
        waiting = [
            one
            for place, one in fold.positions.items()
            if not one.idle and place not in read and self._reader.reads(fold, place)
        ]
        boot_s = job.client.env.boot_s()
        if not waiting or not self._clock.due(waiting, boot_s):
            return []
        places = [(one.input, one.partition) for one in waiting]
        heads, _ = self._reader.inputs.heads(places, barrier=True)
        return self._clock.found_idle(waiting, heads, boot_s)

    def _passed_by(self, fold: BundleFold, job: LiveJob, read: Mapping[Place, int | None]) -> list[Position]:
        standing = [
            Position(*place, one.next, _later(one.max_us, read.get(place)), one.idle)
            for place, one in fold.positions.items()
        ]
        waiting = {
            place: one
            for place, one in _by_append(self._part, fold.positions.values()).items()
            if place not in read and self._reader.reads(fold, place)
        }
        due_us = self._due_us(fold, self._part) if waiting else None
        if due_us is None or not self._is_due(job, due_us):
            return []
        if not _would_close(self._part, standing, waiting, due_us):
            return []
        passed = passed_by(waiting.values(), self._reader.inputs.heads_now(waiting))
        if any((one.max_us or 0) < due_us for one in passed):
            self._ticked_s = job.client.env.boot_s()  # this clock is ahead of the log's, which decides
        return passed

    def watermark_below(self, fold: BundleFold, job: LiveJob, above: Above, upto: int) -> int | None:
        """How far a commit that reads the hop up to an offset may go, as time has passed by the inputs above; None: unknown."""
        part = above.part
        due_us = None if part is None else self._due_us(fold, part)
        if part is None or due_us is None or not self._is_due(job, due_us):
            return None
        head, rows = above.view()
        positions = [one for row in rows for one in row.positions]
        waiting = _by_append(part, positions)
        if not waiting or upto < head or not _would_close(part, positions, waiting, due_us):
            return None
        passed = {
            (one.input, one.partition): one for one in passed_by(waiting.values(), above.heads_now(waiting))
        }
        now = [passed.get((one.input, one.partition), one) for one in positions]
        mark = operator_watermark(None, now, part.delays_us)
        if mark is None or mark < due_us - max(part.delays_us.values()):
            # That part has something to read first, or the log's clock is behind this one.
            self._ticked_s = job.client.env.boot_s()
        return mark

    def seen_by_others(self, fold: BundleFold, job: LiveJob, above: Above) -> Meeting | None:
        """The positions and the watermark of a bundle of another worker that has seen time pass, and has read as far. This one
        may have nothing open, so that nothing is due; and a window is shown only once all bundles are beyond its end."""
        if not self._part.windowed or not any(one.by_append for one in (above.part or self._part).inputs):
            return None
        with job.local() as view:
            rows = [one.row for one in live_rows.bundles(view, fold.held.part_key) if one.id != fold.held.id]
        mine = fold.held.row
        ahead = [
            row
            for row in rows
            if row.watermark_us not in (None, WATERMARK_END_US)
            and lowest([mine.watermark_us, row.watermark_us]) != row.watermark_us
            and _read(row) == _read(mine)
        ]
        return meeting_point([mine, *ahead]) if ahead else None

    def _is_due(self, job: LiveJob, due_us: int) -> bool:
        env = job.client.env
        return env.wall_ms() * 1000 >= due_us and env.boot_s() - self._ticked_s >= TICK_S

    def _due_us(self, fold: BundleFold, read_by: LivePart) -> int | None:
        """When the next window should be closed, by inputs of that part; None: nothing is open, or none has processing time."""
        if not any(one.by_append for one in read_by.inputs):
            return None
        end = earliest_end_us(fold)
        if end is None:
            return None
        delay = max(read_by.delays_us.values())
        return end + self._part.lateness_us + delay + isinstance(self._part.operator, SessionAggregate)


def _later(one: int | None, other: int | None) -> int | None:
    return max((time for time in (one, other) if time is not None), default=None)


def _by_append(part: LivePart, positions: Iterable[Position]) -> dict[Place, Position]:
    """Those of inputs whose events' time is that of their append."""
    return {(one.input, one.partition): one for one in positions if part.inputs[one.input].by_append}


def _read(row: BundleRow) -> list[tuple[int, int, int]]:
    """How far it has read each partition."""
    return [(one.input, one.partition, one.next) for one in row.positions]


def _would_close(
    part: LivePart, positions: Iterable[Position], waiting: Collection[Place], due_us: int
) -> bool:
    """Whether the window that is due would close if time passed by some partitions: another input may hold it."""
    passed = [
        Position(one.input, one.partition, one.next, due_us, one.idle)
        if (one.input, one.partition) in waiting
        else one
        for one in positions
    ]
    delays = part.delays_us
    mark = operator_watermark(None, passed, delays)
    return mark is not None and mark >= due_us - max(delays.values())


def earliest_end_us(fold: BundleFold) -> int | None:
    """The end of the first window that is open; None without any."""
    operator = fold.part.operator
    if not fold.part.windowed or operator is None:
        return None
    closed = fold.closed_us()
    spec = operator.spec  # type: ignore[union-attr]
    column = START if spec.kind == "sliding" else END
    found = [
        int(least)
        for frame in fold.state.frames
        if (least := frame.select(pl.col(column).dt.epoch("us").min()).item()) is not None
    ]
    if not found:
        return None
    if spec.kind != "sliding":
        return min(found)
    # A slice is in several windows: the first of those that end behind what is closed.
    first = min(found) + spec.slice_us
    lowest = first if closed is None else max(first, closed + 1)
    phase = (spec.length_us + spec.offset_us) % spec.every_us
    return lowest + (phase - lowest) % spec.every_us


class Above:
    """What the part above has committed, for the part that reads its hop."""

    def __init__(self, job: LiveJob, generation: int, plan: LivePlan, part: LivePart) -> None:
        name = next((one.hop_of for one in part.inputs if one.hop_of), "")
        self.part = next((one for one in plan.parts if one.name == name), None)
        self._job = job
        self._key = live_rows.part_key(job.name, generation, name)
        self._hop = live_rows.hop_stream(job.name, generation, name)
        self._inputs: Inputs | None = None

    def look(self) -> tuple[int, int | None] | None:
        """(the end of the hop, the watermark of all that is before it), in one view; None: there is no part above."""
        if self.part is None:
            return None
        head, rows = self.view()
        if all(row.watermark_us == WATERMARK_END_US for row in rows):
            return head, WATERMARK_END_US
        return head, operator_watermark(
            None, [one for row in rows for one in row.positions], self.part.delays_us
        )

    def view(self) -> tuple[int, list[BundleRow]]:
        """The end of the hop, and the bundles of the part above, in one view of what is here. Each row before that end is of
        records before their positions, and each later one of later records."""
        with self._job.local() as view:
            rows = [bundle.row for bundle in live_rows.bundles(view, self._key)]
            return stream_rows.head_of(view, self._hop, 0).next, rows

    def heads_now(self, places: Iterable[Place]) -> dict[Place, tuple[int, int]]:
        """See ``Inputs``: of the part above."""
        if self._inputs is None:
            assert self.part is not None
            self._inputs = Inputs(self._job.client, self.part.inputs)
        return self._inputs.heads_now(places)
