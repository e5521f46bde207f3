"""How a live job stands, from its rows in one view and the ends of its inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

from onefold.compute.live.event_time import lowest, time_of
from onefold.compute.live.idleness import Place
from onefold.compute.live.inputs.reading import Inputs
from onefold.compute.live.job.committed import committed, unread
from onefold.compute.live.job.held_by import Standing, held_by
from onefold.errors import InvalidArgument, OnefoldError
from onefold.machine.undisturbed import let_pass
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.commit import total
from onefold.state.fold.live.ops import WATERMARK_END_US, Counters

if TYPE_CHECKING:
    from onefold.compute.live.client import Found
    from onefold.compute.live.job.stored import LiveJobs
    from onefold.compute.live.plan import LivePart
    from onefold.state.fold.live.ops import Position
    from onefold.state.fold.live.rows import BundleRow, GenerationRow


@dataclass(frozen=True)
class LiveStatus:
    """How a live job stands, from one view."""

    watermark: datetime | None
    """Windows that end before it (and the lateness) are closed, in UTC; None: none yet, or the job is done."""
    lag: int
    """Records of the inputs that are not committed."""
    lag_s: float
    """For how long the oldest of them has waited, in seconds."""
    rows: int
    rate: float
    """Events committed per second, since this handle was made or last asked."""
    late: int
    dead: int
    ahead: int
    before_seam: int
    left_out: int
    """Records with a value in a column that the schema of their input does not have."""
    commits: int
    workers: int
    state_bytes: int
    """Of the runs that hold its state, as they are stored."""
    held_by: str
    """What keeps the watermark where it is, and what to do; empty: nothing."""
    partitions: tuple[tuple[int, int, int, bool], ...]
    """(input, partition, next offset, idle)."""


@dataclass(frozen=True)
class Moment:
    """The rows of a part of a job in one view."""

    generation: GenerationRow
    bundles: tuple[BundleRow, ...]
    workers: int
    state_bytes: int
    offset: int
    below: tuple[BundleRow, ...] = ()
    """Of the part that reads the hop of this one, if there is one."""
    full: tuple[tuple[str, int], ...] = ()
    """Workers that hold so much open state that they read nothing, and how many bytes."""

    @property
    def counters(self) -> Counters:
        """Of all bundles together."""
        found = Counters()
        for row in (*self.bundles, *self.below):
            found = total(found, row.counters)
        return found

    @property
    def watermark_us(self) -> int | None:
        """The lowest; None: below every time."""
        return lowest([row.watermark_us for row in self.below or self.bundles])

    @property
    def positions(self) -> dict[Place, Position]:
        """How far each partition is committed in all bundles, and whether it is idle in all."""
        return committed(self.bundles)

    def lag(self, inputs: Inputs, part: LivePart) -> int:
        """Records of the inputs of its first part, which is ``part``, that are not committed."""
        positions = self.positions
        heads, _ = inputs.heads(positions)
        return sum(unread(positions, heads, part.inputs).values())

    @property
    def drained(self) -> bool:
        """Whether all its windows are closed."""
        rows = self.below or self.bundles
        return bool(rows) and all(row.watermark_us == WATERMARK_END_US for row in rows)


def moment_of(found: Found, parts: Sequence[LivePart], *, sizes: bool = False, strong: bool = True) -> Moment:
    """The rows of the first part in one view, and of the one below it. ``sizes``: with the bytes of its state. Raises
    InvalidArgument when it was dropped."""
    name, number = found.job.name, found.generation
    with found.job.asked() if strong else found.job.local() as view:
        generation = live_rows.generation_of(view, name, number)
        if generation is None:
            raise InvalidArgument(f"live job {found.id} was dropped")
        keys = [live_rows.part_key(name, number, part.name) for part in parts]
        runs = live_rows.runs(view, keys[-1]) if sizes else ()
        workers = live_rows.workers(view, name, number)
        rows = [tuple(one.row for one in live_rows.bundles(view, key)) for key in keys]
        return Moment(
            generation,
            rows[0],
            len(workers),
            sum(run.row.size for run in runs if run.row.kind == "state"),
            view.offset,
            tuple(row for below in rows[1:] for row in below),
            tuple((worker, row.state_bytes) for worker, row in sorted(workers.items()) if row.state_bytes),
        )


def status_of(
    found: Found,
    parts: Sequence[LivePart],
    inputs: Inputs,
    moment: Moment,
    rate: float,
    *,
    busy_s: float | None = None,
    trouble: str = "",
) -> LiveStatus:
    """How it stands. ``moment``: with sizes. ``busy_s``: for how long a worker of this process has
    been in one step; None: it has none. ``trouble``: why one of this process cannot work now."""
    part = replace(parts[0], operator=parts[-1].operator)
    counters, positions = moment.counters, moment.positions
    heads, _ = inputs.heads(positions)
    waiting = unread(positions, heads, part.inputs)
    standing = Standing(
        found.id,
        part,
        moment.generation.state,
        moment.generation.error,
        moment.bundles,
        heads,
        counters.ahead,
        moment.full,
        moment.below,
        parts[-1].history,
        counters.dead,
        busy_s is not None,
        busy_s or 0.0,
        trouble,
    )
    return LiveStatus(
        time_of(moment.watermark_us),
        sum(waiting.values()),
        _waited_s(inputs, {place: positions[place].next for place in waiting}),
        counters.rows,
        rate,
        counters.late,
        counters.dead,
        counters.ahead,
        counters.before_seam,
        counters.left_out,
        counters.commits,
        moment.workers,
        moment.state_bytes,
        held_by(standing),
        tuple((*place, one.next, one.idle) for place, one in positions.items()),
    )


def rows_of(found: Found) -> int:
    """The rows that a job has counted. Needs no plan: of a list of jobs this process may be unable to load some. Raises
    InvalidArgument when it was dropped."""
    name, number = found.job.name, found.generation
    with found.job.local() as view:
        if live_rows.generation_of(view, name, number) is None:
            raise InvalidArgument(f"live job {found.id} was dropped")
        parts = [key for key, _ in live_rows.parts(view, name, number)]
        return sum(row.counters.rows for key in parts for _, row in live_rows.bundles(view, key))


def standings(jobs: LiveJobs) -> Iterator[tuple[str, str, LiveStatus | None]]:
    """(job, state, how it stands) of the present generation of each live job that is not over, as far as this process has seen.

    None for one whose plan cannot be loaded here. Its rate is 0: who watches the rows has it.
    """
    for found, is_current, row in jobs.all(strong=False):
        if not is_current or row.state in live_rows.OVER:
            continue
        try:
            parts = jobs.plan_of(found).parts
            moment = moment_of(found, parts, sizes=True, strong=False)
            status = status_of(found, parts, Inputs(jobs.client, parts[0].inputs), moment, 0.0)
        except OnefoldError as error:
            let_pass(error)
            yield found.job.name, row.state, None
        else:
            yield found.job.name, row.state, status


def _waited_s(inputs: Inputs, waiting: dict[Place, int]) -> float:
    """For how long the oldest of these records has waited."""
    oldest: float | None = None
    for place, offset in waiting.items():
        try:
            appended = inputs.appended_ms(place, offset)
        except OnefoldError as error:
            let_pass(error)
            continue  # retention has removed it, or it cannot be read: the worker finds that out
        if appended is not None:
            oldest = appended if oldest is None else min(oldest, appended)
    return 0.0 if oldest is None else max(0.0, inputs.now_ms - oldest) / 1000
