"""Bundles as their worker holds them: claimed, committed one commit after the other, given away, fused.

A commit whose outcome is unknown is *in doubt*. The bundle's row, read behind a barrier, tells: its ``seq`` is there with the
attempt's nonce, or it is not there and may still surface. While it is in doubt only the same commit may be tried again, under the
same nonce, so whichever copy counts, it is that content. A worker that gives up instead drops the handle and claims again; what
surfaces then fails on ``seq`` or the epoch, or was there when the row was read.

A handle is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Protocol

from onefold import config
from onefold.compute.live.client import BundleLost, LiveJob, NotRunning, refused
from onefold.compute.live.run_bytes import Origin, seal
from onefold.errors import AppendUnknown, InvalidArgument, OnefoldError
from onefold.ids import new_id
from onefold.state.fold.kinds import Write
from onefold.state.fold.live import commit as commit_fold
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live import sharing
from onefold.state.fold.live.lanes import Lanes
from onefold.state.fold.live.ops import (
    Beat,
    Claim,
    Counters,
    Cover,
    Fuse,
    Give,
    LaneCommit,
    Leave,
    NewRun,
    Outgoing,
    Position,
    RunKind,
)
from onefold.state.fold.live.rows import Bundle, BundleRow
from onefold.state.fold.ops import Commit
from onefold.state.fold.outcomes import Committed

NOTHING_COUNTED = Counters()


class Puts(Protocol):
    """Where blobs are stored."""

    def put(self, data: bytes) -> str:
        """Store bytes; returns their name once they are durable."""
        ...


@dataclass(frozen=True)
class Delta:
    """What a commit changes."""

    positions: tuple[Position, ...] = ()
    """Of the input partitions that moved or became idle."""
    watermark_us: int | None = None
    runs: tuple[NewRun, ...] = ()
    """From ``HeldBundle.run``."""
    dropped: tuple[Cover, ...] = ()
    counted: Counters = NOTHING_COUNTED
    outbox: tuple[Outgoing, ...] = ()
    writes: tuple[Write, ...] = ()
    """Others of the same ``Commit``: ``Put``, ``Delete``, ``Append``."""
    schema: tuple[int, bytes] | None = None
    """What it says of the inputs' columns."""

    @property
    def changes(self) -> bool:
        """Whether there is anything to commit. An idle job appends nothing."""
        return self != Delta()


class Accepted(NamedTuple):
    """A commit that happened."""

    row: BundleRow
    """The bundle after it."""
    wanted: int
    """Lanes that other workers wait for: time for ``Worker.give``. 0 when the outcome was learned from the row."""


class _Attempt(NamedTuple):
    delta: Delta
    write: LaneCommit


class HeldBundle:
    """One bundle of a worker, from its claim until it is lost, given or fused."""

    def __init__(self, worker: Worker, part: str, bundle: Bundle) -> None:
        self.worker = worker
        self.part = part
        self.id = bundle.id
        self.row = bundle.row
        """As of the last commit that is known to have happened."""
        self.lost = False
        self._nonce = int.from_bytes(worker.job.client.env.token(8), "big") >> 1
        """Of all its commits: a handle never sends two that differ under one ``seq``."""
        self._runs_made = count()
        self._doubt: _Attempt | None = None

    @property
    def lanes(self) -> Lanes:
        """Its lanes."""
        return lane_sets.unpack(self.row.lanes)

    @property
    def part_key(self) -> bytes:
        """The key of its part's rows."""
        return live_rows.part_key(self.worker.job.name, self.worker.generation, self.part)

    @property
    def in_doubt(self) -> Delta | None:
        """The commit of which nobody knows yet whether it happened."""
        return None if self._doubt is None else self._doubt.delta

    def run(
        self,
        kind: RunKind,
        frame: bytes,
        rows: int,
        blobs: Puts,
        *,
        lanes: Lanes | None = None,
        ends_us: tuple[int, int] | None = None,
        replaces: tuple[Cover, ...] = (),
    ) -> NewRun:
        """A run for the next commit; large ones are stored first. No other run ever has the same bytes.

        ``lanes``: those it covers, by default all of the bundle. ``ends_us``: the lowest and the highest window end in it.
        """
        job = self.worker.job
        origin = Origin(
            job.name,
            self.worker.generation,
            self.part,
            self.id,
            self.row.epoch,
            self.row.seq + 1,
            self._nonce,
            next(self._runs_made),  # also from the thread that compacts
            job.client.shards[0].incarnation,
        )
        data = seal(origin, frame)
        is_small = len(data) <= config.LIVE_INLINE_BYTES_MAX
        low, high = ends_us if ends_us is not None else (None, None)
        return NewRun(
            kind,
            lane_sets.pack(self.lanes if lanes is None else lanes),
            rows,
            len(data),
            "" if is_small else blobs.put(data),
            data if is_small else b"",
            low,
            high,
            replaces,
        )

    def commit(self, delta: Delta) -> Accepted:
        """Commit, behind the last commit that is known to have happened.

        Raises BundleLost and NotRunning (definite: the handle is of no more use), what the other writes meet (definite), and
        as ``Shard.submit``. After an error that is not definite the commit is in doubt: call again with the same delta, or drop
        the handle. Raises InvalidArgument for another delta while one is in doubt.
        """
        if self.lost:
            raise BundleLost(f"bundle {self.id} was lost before; nothing was written. Claim again")
        doubted = self._doubt
        if doubted is not None and doubted.delta is not delta:
            raise InvalidArgument(
                f"commit {doubted.write.seq} of bundle {self.id} is in doubt: try the same one again"
            )
        attempt = doubted or _Attempt(delta, self._write(delta))
        job = self.worker.job
        try:
            outcome = job.client.submit(job.home, Commit((), (), (attempt.write, *delta.writes)))
        except OnefoldError as error:
            if error.definite and doubted is None:
                raise
            self._doubt = attempt
            if self._is_settled():
                return Accepted(self.row, 0)
            if error.definite:  # an earlier try may have happened
                raise AppendUnknown(f"{error} (an earlier try of this commit is in doubt)") from error
            raise
        except BaseException:
            self._doubt = attempt  # an interrupt: it may have happened
            raise
        if isinstance(outcome, Committed):
            self._happened(attempt.write)
            result: Any = outcome.results[0]
            return Accepted(self.row, result[1])
        return self._refused(attempt, refused(outcome))

    def _refused(self, attempt: _Attempt, error: OnefoldError) -> Accepted:
        """This try was refused; an earlier copy of it may have come first, or may still come."""
        in_doubt = self._doubt is not None
        if in_doubt or isinstance(error, BundleLost):
            self._doubt = attempt
            if self.settle():
                return Accepted(self.row, 0)
        if isinstance(error, BundleLost | NotRunning):
            self.lost = True  # a copy that surfaces later is another handle's to find
        if self.lost or not in_doubt:
            self._doubt = None
            raise error
        raise AppendUnknown(f"{error} (an earlier try of this commit is in doubt)") from error

    def _is_settled(self) -> bool:
        """As ``settle``; False also when the row cannot be read now."""
        try:
            return self.settle()
        except BundleLost:
            raise
        except OnefoldError:
            return False

    def settle(self) -> bool:
        """Whether the commit in doubt happened, by the bundle's row behind a barrier. False: it is not there yet.

        Raises BundleLost when the bundle is another's, or at a commit that is not this one; and what reading raises.
        """
        attempt = self._doubt
        if attempt is None:
            return False
        job, write = self.worker.job, attempt.write
        with job.view() as view:
            found = live_rows.bundle_of(view, self.part_key, self.id)
        if found is None or (found.owner, found.epoch) != (write.owner, write.epoch):
            raise self._lose("has another owner")
        if found.seq == write.seq - 1 and found.lanes == write.lanes:
            return False
        if found.seq != write.seq or found.nonce != write.nonce:
            raise self._lose("is at a commit that is not this worker's")
        self._happened(write)
        return True

    def _write(self, delta: Delta) -> LaneCommit:
        return LaneCommit(
            self.worker.job.name,
            self.worker.generation,
            self.part,
            self.id,
            self.worker.id,
            self.row.epoch,
            self.row.seq + 1,
            self.row.lanes,
            self._nonce,
            delta.positions,
            delta.watermark_us,
            delta.runs,
            delta.dropped,
            delta.counted,
            delta.outbox,
            delta.schema,
        )

    def _happened(self, write: LaneCommit) -> None:
        self.row = commit_fold.committed(self.row, write)
        self._doubt = None

    def _lose(self, why: str) -> BundleLost:
        self.lost = True
        self._doubt = None
        return BundleLost(
            f"bundle {self.id} of {self.worker.job.name!r} {why}. Claim again: what is committed is in its rows",
            definite=False,  # the commit in doubt may have happened before
        )


class Worker:
    """One worker of a generation of a job: what it owns, and how it comes to own more or less. Used by one thread at a time."""

    def __init__(self, job: LiveJob, generation: int, worker_id: str | None = None) -> None:
        """``worker_id``: default: a new one. Two workers must never have the same."""
        self.job = job
        self.generation = generation
        self.id = new_id("w", job.client.env) if worker_id is None else worker_id
        self.full_bytes = 0
        """It holds so much open state that it reads nothing; 0: it reads. Others see it with the next beat."""
        self._held: dict[tuple[str, int], HeldBundle] = {}

    @property
    def member(self) -> str:
        """Its process."""
        return self.job.client.shards[self.job.home].member

    def held(self, part: str) -> list[HeldBundle]:
        """The bundles of a part that it holds, as far as it knows, by id."""
        return [one for (name, _), one in sorted(self._held.items()) if name == part and not one.lost]

    def claim(self, part: str) -> list[HeldBundle]:
        """Take what nobody owns, up to this worker's share; all bundles of the part that it holds now. Raises NotRunning.

        Handles of bundles that are as they were stay the same ones.
        """
        self.job.submit(Claim(self.job.name, self.generation, part, self.id, self.member))
        return self.refresh(part)

    def stand_by(self, part: str) -> None:
        """Become known as a worker of the job that wants no lanes yet; ``claim`` then takes a share. ``part``: any of the job's.
        Raises NotRunning."""
        self.job.submit(Claim(self.job.name, self.generation, part, self.id, self.member, standby=True))

    def can_claim(self, part: str) -> bool:
        """Whether a claim would change anything, as far as this process has seen. An idle job appends nothing: it looks."""
        with self.job.local() as view:
            key = live_rows.part_key(self.job.name, self.generation, part)
            spec, bundles = live_rows.part_of(view, key), live_rows.bundles(view, key)
            workers = live_rows.sharing_workers(view, self.job.name, self.generation)
        if spec is None or self.id not in workers:
            return True
        owned = sharing.owned(bundles)
        room = sharing.share_max(spec.spec.lanes, len(workers)) - owned.get(self.id, 0)
        return room > 0 and owned.get("", 0) > 0

    def refresh(self, part: str) -> list[HeldBundle]:
        """Read again which bundles of the part are this worker's. One whose row is not what its handle says is a new handle."""
        with self.job.local() as view:
            key = live_rows.part_key(self.job.name, self.generation, part)
            mine = [one for one in live_rows.bundles(view, key) if one.row.owner == self.id]
        before = {one.id: one for one in self.held(part)}
        for bundle in mine:
            old = before.pop(bundle.id, None)
            if old is None or (old.in_doubt is None and old.row != bundle.row):
                if old is not None:
                    old.lost = True
                self._held[part, bundle.id] = HeldBundle(self, part, bundle)
        for gone in before.values():
            gone.lost = True
            del self._held[part, gone.id]
        return self.held(part)

    def give(self, part: str) -> list[HeldBundle]:
        """Give lanes to workers that have too few; what it holds then. Not while a commit is in doubt: it gives none of those."""
        with self.job.local() as view:
            key = live_rows.part_key(self.job.name, self.generation, part)
            spec = live_rows.part_of(view, key)
            bundles = live_rows.bundles(view, key)
            workers = live_rows.sharing_workers(view, self.job.name, self.generation)
        if spec is None:
            return []
        rows = {bundle.id: bundle.row for bundle in bundles}
        for gift in sharing.gifts(spec.spec.lanes, bundles, workers, self.id):
            held = self._held.get((part, gift.bundle))
            if held is None or held.lost or held.in_doubt is not None or held.row != rows[gift.bundle]:
                continue
            lanes, row = lane_sets.pack(gift.lanes), held.row
            self.job.submit(
                Give(
                    self.job.name,
                    self.generation,
                    part,
                    gift.bundle,
                    self.id,
                    row.epoch,
                    row.seq,
                    lanes,
                    gift.to,
                )
            )
            break  # it has other lanes now: the next gift is of what is read again
        return self.refresh(part)

    def split(self, part: str, held: HeldBundle) -> list[HeldBundle]:
        """Make two bundles of one of more than one lane, both this worker's; what it holds then. They stand where it stood, so
        ``fuse`` makes one of them again."""
        given = lane_sets.last_of(held.lanes, lane_sets.count(held.lanes) // 2)
        row, name = held.row, self.job.name
        lanes = lane_sets.pack(given)
        self.job.submit(
            Give(name, self.generation, part, held.id, self.id, row.epoch, row.seq, lanes, self.id)
        )
        return self.refresh(part)

    def fuse(self, part: str) -> list[HeldBundle]:
        """Fuse bundles that are equal in position and watermark; what it holds then."""
        while self._fuse_two(part):
            self.refresh(part)
        return self.held(part)

    def _fuse_two(self, part: str) -> bool:
        alike: dict[object, HeldBundle] = {}
        for one in self.held(part):
            if one.in_doubt is not None:
                continue
            first = alike.setdefault(self.fusion_key(one.row), one)
            if first is not one:
                places = ((each.id, each.row.epoch, each.row.seq) for each in (first, one))
                self.job.submit(Fuse(self.job.name, self.generation, part, self.id, *places))
                return True
        return False

    @staticmethod
    def fusion_key(row: BundleRow) -> object:
        """Equal for bundles that can be fused. Not by one watermark and another: a window between them was emitted for some lanes
        and is open for others."""
        return row.positions, row.watermark_us

    def beat(self) -> bool:
        """Say that it lives; False: it was given up. Only where ``needs_beats``."""
        return bool(self.job.submit(Beat(self.job.name, self.generation, self.id, self.full_bytes)))

    @property
    def needs_beats(self) -> bool:
        """Whether there may be workers on other machines, which cannot know for certain that this process lives."""
        return not self.job.client.shards[self.job.home].strong_reads

    def leave(self) -> None:
        """Give up everything: others may claim it at once."""
        for held in self._held.values():
            held.lost = True
        self._held.clear()
        self.job.submit(Leave(self.job.name, self.generation, self.id))


Meeting = tuple[tuple[Position, ...], int | None]
"""Positions, in order, and a watermark."""


def meeting_point(rows: Sequence[BundleRow]) -> Meeting | None:
    """Where bundles of one owner can be fused: each commits up to these positions, and exactly these, and this watermark.

    The furthest position of each partition, idle if a bundle that is there found it so, and the highest watermark. None for
    bundles that read different partitions: the watermark of one says nothing of the other's rows.
    """
    if len({tuple((one.input, one.partition) for one in row.positions) for row in rows}) > 1:
        return None
    furthest: dict[tuple[int, int], Position] = {}
    for row in rows:
        for one in row.positions:
            place = (one.input, one.partition)
            other = furthest.get(place, one)
            ahead = max(one, other, key=lambda each: each.next)
            idle = any(each.idle and each.next == ahead.next for each in (one, other))
            times = [each.max_us for each in (one, other) if each.max_us is not None]
            furthest[place] = Position(*place, ahead.next, max(times, default=None), idle)
    marks = [row.watermark_us for row in rows if row.watermark_us is not None]
    return tuple(furthest[place] for place in sorted(furthest)), max(marks, default=None)
