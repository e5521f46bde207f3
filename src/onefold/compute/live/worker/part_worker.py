"""One worker's work on one part: it claims bundles, reads, computes and commits.

In a round each bundle reads what is there, up to a bounded piece, and commits once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from onefold.compute.live.bundles import HeldBundle, Meeting, Worker, meeting_point
from onefold.compute.live.history import History
from onefold.compute.live.job.beginning import add_inputs
from onefold.compute.live.job.committed import committed
from onefold.compute.live.output.writers import writer
from onefold.compute.live.plan import HopSink
from onefold.compute.live.worker.batch_reader import BatchReader, failed
from onefold.compute.live.worker.bundle_fold import BundleFold, Step
from onefold.compute.live.worker.quiet import Above, Quiet
from onefold.errors import JobFailed
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live import sharing
from onefold.state.fold.live.ops import WATERMARK_END_US, TrimHop

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.live.idleness import Place
    from onefold.compute.live.inputs.reading import Piece
    from onefold.compute.live.plan import LivePart, LivePlan
    from onefold.compute.live.runs.run_store import RunReader
    from onefold.compute.results.reading import Results
    from onefold.state.fold.live.rows import GenerationRow

TRIM_EVERY_COMMITS: Final = 32
"""What was read of a hop is removed once in so many commits."""


class PartWorker:
    """Works on one part of a generation. For one thread; ``close`` may be called from others."""

    def __init__(
        self,
        worker: Worker,
        plan: LivePlan,
        part: LivePart,
        blobs: BlobStore,
        reader: RunReader,
        results: Callable[[], Results],
    ) -> None:
        """``results``: those of batch jobs, for a history."""
        self.worker = worker
        self._job, self._generation = worker.job, worker.generation
        self._plan = plan
        self._part = part
        self._blobs = blobs
        self._env = self._job.client.env
        self._reader = reader
        self._input = BatchReader(self._job, self._generation, plan, part, blobs)
        hop = ""
        if isinstance(part.sink, HopSink):
            hop = live_rows.hop_stream(self._job.name, self._generation, part.name)
        self._writer = writer(self._job.client, self._job.home, part.sink, hop)
        self._history = History(results, part, self._generation) if part.history is not None else None
        self._above = Above(self._job, self._generation, plan, part)
        self._folds: dict[int, BundleFold] = {}
        self._quiet: dict[int, Quiet] = {}
        self._inputs_known = False
        self._schemas_known = False
        self.committed_s = 0.0
        """When it committed last, on the boot clock."""
        self.committing_s = 0.0
        """How long it has waited for commits since its reader has taken this back to 0."""
        self.is_behind = False
        """Whether its last round left records unread."""

    def close(self) -> None:
        """End the process that runs functions of the plan; what waits for it raises ``Stopped``."""
        self._input.close()

    def wait(self) -> None:
        """Until nothing is being compacted. After ``close``, by the thread that works."""
        for fold in self._folds.values():
            fold.compactor.wait()

    @property
    def name(self) -> str:
        """Of the part."""
        return self._part.name

    @property
    def key(self) -> bytes:
        """Of the part's rows."""
        return live_rows.part_key(self._job.name, self._generation, self._part.name)

    @property
    def state_bytes(self) -> int:
        """Of the open state in memory, as Polars estimates it."""
        return sum(fold.state.size_bytes for fold in self._folds.values())

    @property
    def has_first_lane(self) -> bool:
        """Whether it owns the part's first lane, and with it what one worker does for all."""
        return any(fold.held.lanes & 1 for fold in self._folds.values())

    # -- a round

    def work(self, generation: GenerationRow, seen: dict[int, int], *, may_read: bool) -> bool:
        """A round; whether anything was committed. ``seen``: gets the offset of each shard at which its inputs were looked at.
        ``may_read``: otherwise too much waits for other shards, or is held in memory."""
        self._adopt(self._claimed())
        self.drop_lost()
        meeting = self._fused()
        if not self._schemas_known:
            self._input.load_schemas()
            self._schemas_known = True
        places = {
            place
            for fold in self._folds.values()
            for place in fold.positions
            if self._input.reads(fold, place)
        }
        heads, looked = self._input.inputs.heads(places)
        for shard, offset in looked.items():
            seen[shard] = min(offset, seen.get(shard, offset))
        worked = self.is_behind = False
        if may_read:
            for fold in list(self._folds.values()):
                worked |= self._work(fold, heads, generation, meeting)
        elif self.worker.full_bytes:
            self._adopt(self.worker.give(self._part.name))  # no commit comes that would
            self.drop_lost()
        return worked

    def _claimed(self) -> list[HeldBundle]:
        """The bundles that it holds, after it took what nobody owns, up to its share. Nothing to take: nothing appended."""
        name = self._part.name
        return self.worker.claim(name) if self.worker.can_claim(name) else self.worker.refresh(name)

    def _adopt(self, bundles: Iterable[HeldBundle]) -> None:
        """Read the state of those that are new, or changed. Their owner before may have said what the columns are."""
        for held in bundles:
            if held.id in self._folds and self._folds[held.id].held is held:
                continue
            self._folds[held.id] = BundleFold(held, self._part, self._blobs, self._reader, self._writer)
            self._quiet[held.id] = Quiet(self._part, self._input)
            self._schemas_known = False

    def waits_for_streams(self) -> bool:
        """Whether a stream that it reads is not there yet. Those that are there now become inputs of the part."""
        if self._inputs_known:
            return False
        missing = add_inputs(self._job, self._generation, self._part)
        self._inputs_known = not missing
        return missing

    def _fused(self) -> Meeting | None:
        """Fuse the bundles that stand at one point; where the others are to be fused, if there are several."""
        if len(self._folds) < 2 or self._part.operator is None:
            return None
        self._adopt(self.worker.fuse(self._part.name))
        self.drop_lost()
        rows = [fold.held.row for fold in self._folds.values()]
        open_rows = [row for row in rows if row.watermark_us != WATERMARK_END_US]
        return meeting_point(open_rows) if len(open_rows) > 1 else None

    def _work(
        self,
        fold: BundleFold,
        heads: Mapping[Place, int],
        generation: GenerationRow,
        meeting: Meeting | None,
    ) -> bool:
        """One commit of the bundle, if there is anything to commit. ``meeting``: it does not read beyond."""
        if fold.watermark_us == WATERMARK_END_US:
            return False
        above = self._above.look()
        if above is not None:
            heads = dict.fromkeys(fold.positions, above[0])
        if meeting is not None:
            met = {(one.input, one.partition): one.next for one in meeting[0]}
            heads = {place: min(head, met.get(place, head)) for place, head in heads.items()}
        pieces = self._input.read(fold, heads, self._ends(generation))
        self.is_behind |= bool(pieces) and self._input.is_behind
        quiet = self._quiet[fold.held.id]
        read = {piece.place: prepared.highest_us for piece, prepared in pieces}
        idle = quiet.positions(fold, self._job, read) if above is None else []
        watermark = self._watermark(fold, [piece for piece, _ in pieces], generation, above)
        if meeting is None and not pieces:
            meeting = quiet.seen_by_others(fold, self._job, self._above)
        history = self._history.partial() if self._history is not None and fold.waits_for_history else None
        if fold.waits_for_history and history is None:
            watermark = None
        step = fold.step(
            pieces,
            idle,
            watermark_us=watermark,
            schema=self._input.schemas.change() if pieces else None,
            meeting=meeting,
            history=history,
        )
        if not step.delta.changes:
            return False
        if self._plan.on_error == "fail":
            self._check(step)
        rows = sum(piece.rows for piece, _ in pieces)
        if step.too_large and self._may_split(fold, rows):
            return self._work_in_two(fold, heads, generation)
        if step.too_large:
            self._read_less(rows, step.too_large)
            return True
        began_s = self._env.boot_s()
        accepted = fold.held.commit(step.delta)
        self.committing_s += self._env.boot_s() - began_s
        fold.accepted(step)
        self._input.read_more()
        self._input.schemas.accepted(step.delta.schema)
        self.committed_s = self._env.boot_s()
        self._trim(fold, accepted.row.seq)
        if accepted.wanted:
            self._adopt(self.worker.give(self._part.name))
        return True

    def _check(self, step: Step) -> None:
        """Raise JobFailed for what would be set aside."""
        if step.broken:
            raise failed(self._job, step.broken)
        if step.refused:
            raise JobFailed(
                f"live job {self._job.name!r}: a row cannot be given to its sink: {step.refused}. "
                'Correct the plan, or start it with on_error="skip", which sets such rows aside'
            )

    def _may_split(self, fold: BundleFold, rows: int) -> bool:
        """Whether fewer lanes would write less at once: of closing windows always, otherwise when fewer records would not."""
        keyed = self._part.operator is not None and lane_sets.count(fold.held.lanes) > 1
        return keyed and (self._part.windowed or rows <= 1)

    def _work_in_two(self, fold: BundleFold, heads: Mapping[Place, int], generation: GenerationRow) -> bool:
        """The commit's writes would not fit into a record: each half of its lanes commits its own, and is fused with the other
        after that."""
        before = fold.held.lanes
        self._adopt(self.worker.split(self._part.name, fold.held))
        self.drop_lost()
        worked = False
        for half in [one for one in self._folds.values() if one.held.lanes & before]:
            worked |= self._work(half, heads, generation, None)
        return worked

    def _read_less(self, rows: int, size: int) -> None:
        """A commit's writes would not fit into a record: take fewer records, and more again after that."""
        if rows <= 1:
            raise JobFailed(
                f"live job {self._job.name!r}: one commit writes {size:,} bytes, which is more than a record holds. Write "
                "less at once: smaller windows or rows, or into a table, whose rows need not fit into a record"
            )
        self._input.read_less(rows)

    def _watermark(
        self,
        fold: BundleFold,
        pieces: Sequence[Piece],
        generation: GenerationRow,
        above: tuple[int, int | None] | None,
    ) -> int | None:
        """How far a commit of these pieces may go, where more is known than the times of rows: the end of a drained job, and what
        the part above lets it, if the hop is read to the end by this commit."""
        if above is None:
            drained = (
                generation.state == "draining" and not pieces and self._is_read(fold, self._ends(generation))
            )
            return WATERMARK_END_US if drained else None
        read = {piece.place: piece.next for piece in pieces}
        upto = min(
            (
                read.get(place, one.next)
                for place, one in fold.positions.items()
                if self._input.reads(fold, place)
            ),
            default=0,
        )
        marks = [above[1]] if upto >= above[0] else []
        if above[1] != WATERMARK_END_US:
            marks.append(self._quiet[fold.held.id].watermark_below(fold, self._job, self._above, upto))
        return max((mark for mark in marks if mark is not None), default=None)

    @staticmethod
    def _is_read(fold: BundleFold, ends: Mapping[Place, int]) -> bool:
        positions = fold.positions
        return all(positions[place].next >= end for place, end in ends.items() if place in positions)

    def _trim(self, fold: BundleFold, seq: int) -> None:
        """Remove what was read of the hop, periodically."""
        above = self._above.part
        if above is not None and fold.held.lanes & 1 and seq % TRIM_EVERY_COMMITS == 0:
            self._job.submit(TrimHop(self._job.name, self._generation, above.name))

    def _ends(self, generation: GenerationRow) -> dict[Place, int]:
        return {
            (number, partition): offset
            for part, number, partition, offset in generation.ends
            if part == self._part.name
        }

    # -- others

    def behind(self, generation: GenerationRow) -> set[str]:
        """Other workers that have something to do: owners with records to read, a partition to find idle, or windows to close at
        the end; and where nobody owns what has, those that are to take it."""
        with self._job.local() as view:
            bundles = live_rows.bundles(view, self.key)
            workers = live_rows.sharing_workers(view, self._job.name, self._generation)
        others = [one.row for one in bundles if one.row.owner != self.worker.id]
        heads, _ = self._input.inputs.heads(
            {(one.input, one.partition) for row in others for one in row.positions}
        )
        idle = {
            (place, one.next)
            for fold in self._folds.values()
            for place, one in fold.positions.items()
            if one.idle
        }
        waits = self._part.history
        is_done = self._history is not None and self._history.state() == "done"
        found: set[str] = set()
        for row in others:
            drains = generation.state == "draining" and row.watermark_us != WATERMARK_END_US
            for one in row.positions:
                place = (one.input, one.partition)
                if waits is not None and place[0] == waits[0] and not is_done:
                    continue  # not theirs to take in yet
                unread = heads.get(place, 0) > one.next
                if drains or unread or (not one.idle and (place, one.next) in idle):
                    found.add(row.owner)
        if "" in found:
            found |= sharing.with_room(self._part.lanes, bundles, workers)
        return found - {"", self.worker.id}

    def progress(self, generation: GenerationRow) -> dict[Place, tuple[int, int]]:
        """How far all workers have read each partition, and where it ends, or the job that drains."""
        with self._job.local() as view:
            bundles = live_rows.bundles(view, self.key)
        positions = committed(one.row for one in bundles)
        read = {
            place: one.next for place, one in positions.items() if not self._part.inputs[place[0]].history
        }
        heads, _ = self._input.inputs.heads(read)
        return {
            place: (read[place], end)
            for place, end in (heads | self._ends(generation)).items()
            if place in read
        }

    def drop_lost(self) -> None:
        """Drop what is in memory of bundles that are another's now, and read again what others may have said."""
        for number in [number for number, fold in self._folds.items() if fold.held.lost]:
            del self._folds[number]
            self._quiet.pop(number, None)
            self._schemas_known = False

    def drop_doubtful(self) -> None:
        """Nobody knows whether a commit happened: what is in memory goes, and the bundle's row says it after the next claim."""
        for number in [number for number, fold in self._folds.items() if fold.held.in_doubt is not None]:
            self._folds[number].held.lost = True
        self.drop_lost()
