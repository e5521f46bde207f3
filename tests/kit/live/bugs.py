"""Planted bugs of live jobs: mistakes that somebody could make, each of which the model's checks must notice.

``planted(name)`` patches the product, or the model's worker where the mistake would be a worker's, inside a ``with`` block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final
from unittest.mock import patch

import msgspec

from kit.live.computing import Computation, Loaded, Read, State
from kit.live.worker import SimWorker
from kit.live.world import PART, World
from onefold import config
from onefold.compute.live import bundles as handles
from onefold.compute.live import event_time, holds
from onefold.compute.live.bundles import HeldBundle, Worker
from onefold.compute.live.event_time import Moved
from onefold.compute.live.holds import Holding
from onefold.compute.live.idleness import IdleClock, Place
from onefold.compute.live.run_bytes import Origin, seal
from onefold.fold.api import Context, Store, StoreView
from onefold.state.fold.live import bundles as bundle_fold
from onefold.state.fold.live import commit as commit_fold
from onefold.state.fold.live import jobs as job_fold
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import Fuse, LaneCommit, Position, StartJob
from onefold.state.fold.live.rows import Bundle, BundleRow, GenerationRow
from onefold.state.fold.ops import Commit, decode_op, state_op
from onefold.state.fold.outcomes import Outcome, Rejected
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.rows import Hold, Holder

if TYPE_CHECKING:
    from onefold.compute.live.event_time import Times
    from onefold.compute.live.plan import LivePart
    from onefold.shard.api import View

Patch = Callable[[ExitStack], None]


@contextmanager
def planted(name: str | None) -> Iterator[None]:
    """The bug is there inside the block. Every run is a blob there, as large ones are. Raises KeyError for an unknown name."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(config, "LIVE_INLINE_BYTES_MAX", 0))
        if name is not None:
            BUGS[name](stack)
        yield


def _no_seq_check(stack: ExitStack) -> None:
    """A commit need not follow the last one."""
    refusal, apply = commit_fold.refusal, commit_fold.apply

    def following(store: StoreView, write: LaneCommit) -> LaneCommit:
        part = live_rows.part_key(write.job, write.generation, write.part)
        found = live_rows.bundle_of(store, part, write.bundle)
        return write if found is None else msgspec.structs.replace(write, seq=found.seq + 1)

    def refuse(store: StoreView, write: LaneCommit) -> Rejected | None:
        return refusal(store, following(store, write))

    def do(store: Store, context: Context, write: LaneCommit) -> object:
        return apply(store, context, following(store, write))

    stack.enter_context(patch.object(commit_fold, "refusal", refuse))
    stack.enter_context(patch.object(commit_fold, "apply", do))


def _appends_of_their_own(stack: ExitStack) -> None:
    """Output is in the record of the commit, as an operation of its own with an outcome of its own."""
    append = World.append

    def split(self: World, body: bytes) -> Outcome:
        op = decode_op(body)
        if not isinstance(op, Commit) or len(op.writes) < 2:
            return append(self, body)
        outcome = append(self, state_op(Commit((), (), op.writes[:1])).body)
        append(self, state_op(Commit((), (), op.writes[1:])).body)
        return outcome

    stack.enter_context(patch.object(World, "append", split))


def _watermark_recomputed(stack: ExitStack) -> None:
    """A new owner works out the watermark from the times that it finds, instead of taking the one that is committed."""

    def recomputed(self: Computation, held: HeldBundle) -> int | None:
        awake = [msgspec.structs.replace(one, idle=False) for one in held.row.positions]
        return event_time.operator_watermark(None, awake, {0: self.world.settings.delay_us})

    stack.enter_context(patch.object(Computation, "first_watermark", recomputed))


def _idle_by_the_clock(stack: ExitStack) -> None:
    """A partition of which this worker has read nothing for a while is idle, whatever there is to read."""
    found_idle = IdleClock.found_idle

    def by_the_clock(
        self: IdleClock, positions: Iterable[Position], heads: Mapping[Place, int], boot_s: float
    ) -> list[Position]:
        at = list(positions)
        return found_idle(self, at, {(one.input, one.partition): one.next for one in at}, boot_s)

    stack.enter_context(patch.object(IdleClock, "found_idle", by_the_clock))


def _idle_by_a_stale_view(stack: ExitStack) -> None:
    """Whether everything is read is asked of a replica that may lag."""

    def stale(self: Computation) -> dict[Place, int]:
        return {(0, partition): head for partition, head in enumerate(self.seen)}

    stack.enter_context(patch.object(Computation, "barriered_heads", stale))


def _unequal_fusion(stack: ExitStack) -> None:
    """Bundles at equal positions are fused under the larger watermark."""
    fuse = bundle_fold.fuse

    def larger(store: Store, op: Fuse) -> Outcome:
        part = live_rows.part_key(op.job, op.generation, op.part)
        rows = [live_rows.bundle_of(store, part, number) for number in (op.first[0], op.second[0])]
        first, second = rows
        if first is not None and second is not None and _nexts(first) == _nexts(second):
            marks = [row.watermark_us for row in (first, second) if row.watermark_us is not None]
            for number, row in ((op.first[0], first), (op.second[0], second)):
                changed = msgspec.structs.replace(
                    row, watermark_us=max(marks, default=None), positions=first.positions
                )
                live_rows.put_bundle(store, part, number, changed)
        return fuse(store, op)

    def meet(self: SimWorker) -> None:
        held = [one for one in self.worker.held(PART) if one.in_doubt is None]
        furthest: dict[int, Position] = {}
        for one in (at for each in held for at in each.row.positions):
            furthest[one.partition] = max(one, furthest.get(one.partition, one), key=lambda at: at.next)
        for each in held:
            loaded, at = self.loaded[each.id], {one.partition: one for one in each.row.positions}
            behind = {
                number: one for number, one in furthest.items() if number in at and at[number].next < one.next
            }
            at |= {number: msgspec.structs.replace(one, idle=False) for number, one in behind.items()}
            if behind:
                loaded.batch = None
                self.go_to(loaded, tuple(at.values()), self.computation.operator_watermark(loaded, at))
        self._take(self.worker.fuse(PART))

    stack.enter_context(patch.object(bundle_fold, "fuse", larger))
    stack.enter_context(patch.object(SimWorker, "meet_and_fuse", meet))
    stack.enter_context(patch.object(Worker, "fusion_key", staticmethod(_nexts)))


def _nexts(row: BundleRow) -> object:
    return tuple((one.input, one.partition, one.next) for one in row.positions)


def _equal_blobs(stack: ExitStack) -> None:
    """Runs with equal rows have equal bytes, and so one name."""

    def sealed(origin: Origin, frame: bytes) -> bytes:
        return seal(Origin("", 0, "", 0, 0, 0, 0, 0), frame)

    stack.enter_context(patch.object(handles, "seal", sealed))


def _positions_go_back(stack: ExitStack) -> None:
    """A new owner reads the positions from an older view than the rest, and nobody minds."""
    older: dict[tuple[object, int], tuple[Position, ...]] = {}
    made, happened = HeldBundle.__init__, HeldBundle._happened

    def from_older(self: HeldBundle, worker: Worker, part: str, bundle: Bundle) -> None:
        positions = older.get((worker.job.client.shards[0].env, bundle.id), bundle.row.positions)
        made(
            self, worker, part, bundle._replace(row=msgspec.structs.replace(bundle.row, positions=positions))
        )

    def noting(self: HeldBundle, write: LaneCommit) -> None:
        older[self.worker.job.client.env, self.id] = self.row.positions
        happened(self, write)

    stack.enter_context(patch.object(HeldBundle, "__init__", from_older))
    stack.enter_context(patch.object(HeldBundle, "_happened", noting))
    stack.enter_context(patch.object(commit_fold, "_why_back", lambda *_: ""))
    stack.enter_context(patch.object(commit_fold, "no_time_went_back", lambda *_: True))


def _attempts_by_seq_alone(stack: ExitStack) -> None:
    """Who finds its ``seq`` committed takes that for its own attempt."""
    settle = HeldBundle.settle

    def by_seq(self: HeldBundle) -> bool:
        doubt = self._doubt
        if doubt is None:
            return settle(self)
        with self.worker.job.view() as view:
            found = live_rows.bundle_of(view, self.part_key, self.id)
        if found is not None and (found.owner, found.seq) == (doubt.write.owner, doubt.write.seq):
            self._happened(doubt.write)
            return True
        return settle(self)

    stack.enter_context(patch.object(HeldBundle, "settle", by_seq))


def _far_future_counts(stack: ExitStack) -> None:
    """A row a year ahead moves the watermark like any other."""
    advanced = event_time.advanced

    def trusting(
        position: Position, upto: int, times: Times, appended: Times, max_ahead_us: int | None
    ) -> Moved:
        return advanced(position, upto, times, appended, None)

    stack.enter_context(patch.object(event_time, "advanced", trusting))


def _drain_forgotten(stack: ExitStack) -> None:
    """A job that was stopped while it drained runs again, with bundles that read no more."""

    def runs(store: StoreView, op: StartJob, number: int, found: GenerationRow) -> GenerationRow:
        return GenerationRow("running", op.plan, found.offset, created_ms=found.created_ms)

    stack.enter_context(patch.object(job_fold, "_continued", runs))


def _ends_forgotten(stack: ExitStack) -> None:
    """A job that was stopped while it drained has no ends any more when it drains on."""
    continued = job_fold._continued

    def endless(store: StoreView, op: StartJob, number: int, found: GenerationRow) -> GenerationRow:
        return msgspec.structs.replace(continued(store, op, number, found), ends=())

    stack.enter_context(patch.object(job_fold, "_continued", endless))


def _entered_by_each_owner(stack: ExitStack) -> None:
    """Whether a history has entered is remembered by the process, which does not look at the position."""
    entered: set[int] = set()
    enter, kept = Computation.enter, list[Loaded]()  # kept: so that no identity comes again

    def once(self: Computation, loaded: Loaded, read: Read) -> Read:
        entered.add(id(loaded))
        kept.append(loaded)
        return enter(self, loaded, read)

    def awaits(self: Computation, loaded: Loaded) -> bool:
        return self.world.settings.history and id(loaded) not in entered

    stack.enter_context(patch.object(Computation, "enter", once))
    stack.enter_context(patch.object(Computation, "awaits_history", awaits))


def _nothing_is_held(stack: ExitStack) -> None:
    """The watermark does not wait for a history."""

    def streams_only(self: Computation, positions: Iterable[Position]) -> list[Position]:
        return [one for one in positions if one.input == 0]

    stack.enter_context(patch.object(Computation, "holds", streams_only))


def _history_of_all_lanes(stack: ExitStack) -> None:
    """Each bundle takes in the groups of all lanes. What its runs cover hides that from whoever reads them, and not in memory."""

    def whole(self: Computation, held: HeldBundle) -> State:
        return self.crossing()

    stack.enter_context(patch.object(Computation, "of_history", whole))


def _held_from_the_furthest(stack: ExitStack) -> None:
    """What the bundle that is furthest has read is let go."""

    def furthest(self: Holding, part: LivePart) -> dict[tuple[str, int], dict[int, int]]:
        found = unread(self, part)
        with self._job.local() as view:
            key = live_rows.part_key(self._job.name, self._generation, part.name)
            for at in (at for bundle in live_rows.bundles(view, key) for at in bundle.row.positions):
                for offsets in found.values() if at.input == 0 else ():
                    offsets[at.partition] = max(offsets[at.partition], at.next)
        return found

    unread = Holding._unread
    stack.enter_context(patch.object(Holding, "_unread", furthest))


def _held_while_it_runs(stack: ExitStack) -> None:
    """A job that is stopped needs nothing."""
    over_in = holds._over_in

    def over(view: View, name: str, generation: int) -> bool:
        row = live_rows.generation_of(view, name, generation)
        return over_in(view, name, generation) or (row is not None and row.state not in live_rows.ACTIVE)

    stack.enter_context(patch.object(holds, "_over_in", over))


def _held_for_ever(stack: ExitStack) -> None:
    """Nobody lets go what generations that are over have not read."""
    stack.enter_context(patch.object(holds, "_is_over", lambda *_: False))


def _held_from_the_start(stack: ExitStack) -> None:
    """A hold that is there stays where it is."""
    due = Holding._due

    def missing(
        self: Holding, view: View, part: str, stream: str, hold_ms: int, unread: Mapping[int, int]
    ) -> tuple[tuple[int, int], ...]:
        found = due(self, view, part, stream, hold_ms, unread)
        holders = [Holder(stream, one, self._job.name, self._generation, part) for one, _ in found]
        return tuple(
            one
            for one, holder in zip(found, holders, strict=True)
            if stream_rows.hold_of(view, holder) is None
        )

    stack.enter_context(patch.object(Holding, "_due", missing))


def _held_without_a_bound(stack: ExitStack) -> None:
    """What a job has not read stays for as long as it has not."""
    holds_of = stream_rows.holds_of

    def endless(view: StoreView, stream: str, partition: int) -> list[Hold]:
        return [one._replace(hold_ms=1 << 40) for one in holds_of(view, stream, partition)]

    stack.enter_context(patch.object(stream_rows, "holds_of", endless))


BUGS: Final[dict[str, Patch]] = {
    "no seq check": _no_seq_check,
    "appends in an operation of their own": _appends_of_their_own,
    "watermark recomputed after takeover": _watermark_recomputed,
    "idle by the clock alone": _idle_by_the_clock,
    "idle by a stale view": _idle_by_a_stale_view,
    "fusion with unequal watermarks": _unequal_fusion,
    "equal blobs swept": _equal_blobs,
    "positions that go back": _positions_go_back,
    "attempts told apart by seq alone": _attempts_by_seq_alone,
    "far-future times move the watermark": _far_future_counts,
    "a drain forgotten by the next start": _drain_forgotten,
    "a drain without its ends after the next start": _ends_forgotten,
    "input held from the bundle that is furthest": _held_from_the_furthest,
    "input held only while the job runs": _held_while_it_runs,
    "input held when the job is over": _held_for_ever,
    "input held from the start": _held_from_the_start,
    "input held without a bound": _held_without_a_bound,
    "a history enters with each owner": _entered_by_each_owner,
    "nothing is held for a history": _nothing_is_held,
    "a history enters for all lanes": _history_of_all_lanes,
}
