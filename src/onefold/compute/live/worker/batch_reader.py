"""What a worker reads for a bundle's next commit: pieces of partitions, prepared, with the columns of their inputs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.live.alignment import Unread, choose
from onefold.compute.live.idleness import Place
from onefold.compute.live.inputs.preparing import Prepared, Schemas, located, prepare
from onefold.compute.live.inputs.python_steps import PythonSteps, has_python
from onefold.compute.live.inputs.reading import Hop, Inputs, Piece
from onefold.errors import JobFailed, TooOld
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import WATERMARK_END_US, Position

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.live.client import LiveJob
    from onefold.compute.live.plan import LivePart, LivePlan
    from onefold.compute.live.worker.bundle_fold import BundleFold


class BatchReader:
    """Of one worker. For one thread; ``close`` may be called from others."""

    def __init__(
        self, job: LiveJob, generation: int, plan: LivePlan, part: LivePart, blobs: BlobStore
    ) -> None:
        self._job, self._generation, self._plan, self._part = job, generation, plan, part
        self.inputs = Inputs(job.client, part.inputs, hops_of(job, generation, part))
        later = next((one.window for one in plan.parts if one.window is not None), None)
        self.schemas = Schemas(part.inputs, part.window, later)
        self._starts: dict[Place, int] = {}
        self._python: PythonSteps | None = None
        if has_python(part.inputs):
            self._python = PythonSteps(part.inputs, blobs, stops=plan.on_error == "fail")
        most, called = config.LIVE_BATCH_ROWS_MAX, config.LIVE_PYTHON_ROWS_MAX
        self._rows_most = most if self._python is None else min(called, most)
        self._rows_max = self._rows_most
        self.is_behind = False
        """Whether the last read ended at the size of a batch: there is more."""

    def close(self) -> None:
        """End the process that runs Python functions."""
        if self._python is not None:
            self._python.close()

    def read_less(self, rows: int) -> None:
        """A commit of so many records was too large: the next one has fewer."""
        self._rows_max = max(1, rows // 2)

    def read_more(self) -> None:
        """A commit was not too large: the next ones may have more again."""
        self._rows_max = min(self._rows_most, self._rows_max * 2)

    def load_schemas(self) -> None:
        """Take the columns of the inputs as commits have said them, and where each partition was begun."""
        key = live_rows.part_key(self._job.name, self._generation, self._part.name)
        with self._job.local() as view:
            row = live_rows.part_of(view, key)
        if row is not None:
            self.schemas.load(row.schema_changes, row.schema)
            self._starts = {(number, partition): offset for number, partition, offset in row.spec.starts}

    def reads(self, fold: BundleFold, place: Place) -> bool:
        """Whether the bundle reads that partition."""
        if self._part.inputs[place[0]].history:
            return False
        if self._part.operator is not None:
            return True
        return bool(fold.held.lanes >> lane_sets.of_partition(place[1], self._part.lanes) & 1)

    def read(
        self, fold: BundleFold, heads: Mapping[Place, int], ends: Mapping[Place, int]
    ) -> list[tuple[Piece, Prepared]]:
        """What there is, up to a bounded size, the partition first that is behind in event time. ``ends``: not beyond these.

        Raises JobFailed for a record that cannot be processed, unless those are set aside, and where retention has removed
        records that were not read.
        """
        if fold.watermark_us == WATERMARK_END_US:
            return []
        positions = {place: one for place, one in fold.positions.items() if self.reads(fold, place)}
        stops = {place: min(heads.get(place, 0), ends.get(place, heads.get(place, 0))) for place in positions}
        pieces: list[tuple[Piece, Prepared]] = []
        rows = 0
        while rows < self._rows_max:
            unread = [
                Unread(one, one.next > self._starts.get(place, 0))
                for place, one in positions.items()
                if one.next < stops[place]
            ]
            choice = choose(unread, round(config.LIVE_SKEW_S * 1e6))
            if choice is None:
                break
            place = (choice.position.input, choice.position.partition)
            upto = min(stops[place], choice.position.next + self._rows_max - rows)
            try:
                read = self.inputs.read(place, choice.position.next, upto)
            except TooOld:
                raise JobFailed(self._lost(fold)) from None
            if read is None:
                break
            piece, prepared = self._prepared(read, choice.until_us)
            self.inputs.keep(read, piece.next)
            pieces.append((piece, prepared))
            rows += piece.rows
            known = [choice.position.max_us, prepared.highest_us]
            highest = max((time for time in known if time is not None), default=None)
            positions[place] = Position(place[0], place[1], piece.next, highest)
        self.is_behind = rows >= self._rows_max
        return pieces

    def _lost(self, fold: BundleFold) -> str:
        """What retention has removed of all that the bundle reads."""
        gone: list[str] = []
        for (number, partition), first in self.inputs.firsts(fold.positions).items():
            lost = first - fold.positions[number, partition].next
            if lost > 0:
                stream, hold = self._part.inputs[number].stream, self._part.inputs[number].hold_us / 1e6
                gone.append(
                    f"{lost:,} of partition {partition} of {stream!r}, which were kept {hold:g} s longer"
                )
        return (
            f"live job {self._job.name!r}: records that it had not read are past their retention and gone: {'; '.join(gone)}. "
            "Start a replay, which begins with what is there: "
            "run = job.replay(); run.catch_up(); run.swap(). A longer read_stream(hold=) keeps more for a job that stands still"
        )

    def _prepared(self, read: Piece, until_us: int | None) -> tuple[Piece, Prepared]:
        number = read.place[0]
        run_python = (
            None if self._python is None else partial(self._python.run, number, self.schemas.made[number])
        )
        piece, prepared = prepare(
            read, self._part.inputs[number], self.schemas.of[number], until_us, run_python
        )
        if prepared.dead and self._plan.on_error == "fail":
            raise failed(self._job, located(prepared.dead[0], prepared, self._part.inputs[number].stream))
        return piece, prepared


def failed(job: LiveJob, why: str) -> JobFailed:
    """What a record fails a job with that does not set such records aside."""
    return JobFailed(
        f"live job {job.name!r}: {why}. "
        'Correct the plan, or start it with on_error="skip", which sets such records aside'
    )


def hops_of(job: LiveJob, generation: int, part: LivePart) -> dict[int, Hop]:
    """The inputs of a part that other parts write."""
    return {
        number: Hop(live_rows.hop_stream(job.name, generation, one.hop_of), job.home)
        for number, one in enumerate(part.inputs)
        if one.hop_of
    }
