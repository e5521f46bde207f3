"""A small worker of a live job that counts events by window and key."""

from __future__ import annotations

from typing import cast

from kit.live.computing import Batch, Computation, Loaded
from kit.live.world import PART, Client, World
from onefold.compute.live.bundles import HeldBundle, Worker, meeting_point
from onefold.compute.live.client import BundleLost, LiveJob, NotRunning
from onefold.compute.live.observing import WorkerObserver
from onefold.errors import AppendUnknown, OnefoldError
from onefold.state.core.client import StateClient
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import WATERMARK_END_US, Give, Position


class SimWorker:
    """One process."""

    def __init__(self, world: World, name: str, generation: int = 1) -> None:
        self.world = world
        self.name = name
        self.client = Client(world, name, faults=True)
        self.job = LiveJob(cast("StateClient", self.client), world.job.name)
        self.generation = generation
        self.worker = Worker(self.job, generation, name)
        self.observer = WorkerObserver(self.worker, world.settings.lease_s)
        self.computation = Computation(world, self.job, generation)
        self.loaded: dict[int, Loaded] = {}
        self.stopped_until_s = 0.0
        kept = world.kept
        self.holding = None if kept is None else kept.holding(self.job, generation)
        self.beat_s = 0.0

    # -- one step

    def step(self) -> None:
        """Do one thing. Raises Killed; what else a process meets, it handles."""
        try:
            self._beat()
            self._hold()
            self.computation.hear()
            held = self.worker.held(PART)
            self._take(held)
            self._do_something(held)
        except (BundleLost, NotRunning):
            self._take(self.worker.refresh(PART))
        except AppendUnknown:  # a commit in doubt is tried again, or given up; what else was is read again
            for one in self.worker.held(PART):
                one.lost = (
                    one.in_doubt is not None and self.world.chance.random() < self.world.stress.gives_up
                )
            if self.world.chance.random() < self.world.stress.returns:
                self._take(self.worker.refresh(PART))
        self._forget_lost()

    def _hold(self) -> None:
        """Now and then: keep what is not read, and let go what is."""
        kept = self.world.kept
        if kept is None or self.holding is None or self.world.chance.random() > 0.4:
            return
        found = live_rows.generation_of(self.world.store, self.job.name, self.generation)
        if found is not None and found.state in live_rows.ACTIVE:
            self.holding.look(now=True)
            kept.is_moved(self.generation)

    def _do_something(self, held: list[HeldBundle]) -> None:
        stress, luck = self.world.stress, self.world.chance.random()
        if not held or luck < stress.claims:
            self._take(self.worker.claim(PART))
        elif (luck := luck - stress.claims) < stress.looks:
            self.observer.look(self._behind())
        elif (luck := luck - stress.looks) < stress.gives:
            self._take(self.worker.give(PART))
        elif (luck := luck - stress.gives) < stress.splits:
            self._split(self.world.chance.choice(held))
        elif (luck := luck - stress.splits) < stress.halves:
            self._halve(self.world.chance.choice(held))
        elif luck - stress.halves < stress.fuses:
            self.meet_and_fuse()
        else:
            self._work(self.world.chance.choice(held))

    def _split(self, held: HeldBundle) -> None:
        """Into two, of which anybody may take one."""
        lanes = lane_sets.last_of(held.lanes, lane_sets.count(held.lanes) // 2)
        if held.in_doubt is not None or not lanes:
            return
        row, given = held.row, lane_sets.pack(lanes)
        give = Give(self.job.name, self.generation, PART, held.id, self.name, row.epoch, row.seq, given)
        self.job.submit(give)
        self._take(self.worker.claim(PART))

    def _halve(self, held: HeldBundle) -> None:
        """Into two, both of which stay here: they are read one by one from now on."""
        if held.in_doubt is None and lane_sets.count(held.lanes) > 1:
            self._take(self.worker.split(PART, held))

    def halve(self) -> None:
        """Without faults: make two of each bundle."""
        for held in self.worker.held(PART):
            self._halve(held)

    def finish(self, bundles: int | None = None) -> None:
        """Without faults: bring everything to its end, or so many bundles."""
        self._take(self.worker.claim(PART))
        for held in self.worker.held(PART)[:bundles]:
            for _ in range(200):
                if held.lost or held.row.watermark_us == WATERMARK_END_US:
                    break
                self._work(held, patient=False)

    def catch_up(self) -> None:
        """Without faults: read what there is."""
        self._take(self.worker.claim(PART))
        heads = self.computation.upto()
        for held in self.worker.held(PART):
            stood = 0
            while held.row.watermark_us != WATERMARK_END_US and any(
                one.next < heads[one.partition] for one in held.row.positions
            ):
                before = held.row.positions
                self._work(held, patient=False)
                stood = stood + 1 if held.row.positions == before else 0
                assert stood < 20, f"bundle {held.id} does not come to the end of its input"

    def _beat(self) -> None:
        now = self.world.env.boot_s()
        if self.world.settings.cluster and now - self.beat_s > self.world.settings.lease_s / 3:
            self.beat_s = now
            self.worker.beat()

    def _take(self, held: list[HeldBundle]) -> None:
        for one in held:
            known = self.loaded.get(one.id)
            if known is None or known.held is not one:
                mark = self.computation.first_watermark(one)
                self.loaded[one.id] = Loaded(
                    one, mark, self.computation.load(one, mark), self.world.settings.idle_s
                )

    def _forget_lost(self) -> None:
        for number in [number for number, one in self.loaded.items() if one.held.lost]:
            del self.loaded[number]

    def _behind(self) -> set[str]:
        """The owners of bundles with unread input, by a barriered view."""
        heads = self.world.heads()
        key = live_rows.part_key(self.job.name, self.generation, PART)
        return {
            bundle.row.owner
            for bundle in live_rows.bundles(self.world.store, key)
            if any(at.next < heads[at.partition] for at in bundle.row.positions)
        }

    # -- a commit

    def _work(self, held: HeldBundle, *, patient: bool = True) -> None:
        loaded = self.loaded[held.id]
        if loaded.batch is None:
            loaded.batch = self.computation.compute(loaded)
            if patient and self.world.chance.random() < self.world.stress.waits:
                return  # something happens between the computation and the commit
        batch = loaded.batch
        if not batch.delta.changes:
            loaded.batch = None
            return
        try:
            self.commit(held, batch)
        except AppendUnknown:
            raise
        except OnefoldError:
            loaded.batch = None
            raise
        loaded.state, loaded.watermark, loaded.batch = batch.state, batch.watermark, None

    def commit(self, held: HeldBundle, batch: Batch) -> None:
        """Its own method, so that it can be broken."""
        held.commit(batch.delta)

    # -- fusing

    def meet_and_fuse(self) -> None:
        """Bring the bundles of this worker to one point, and fuse those that are there."""
        held = [one for one in self.worker.held(PART) if one.in_doubt is None]
        if len(held) < 2:
            return
        meeting = meeting_point([one.row for one in held])
        positions, watermark = meeting or ((), None)
        for one in held if meeting is not None else ():
            loaded = self.loaded[one.id]
            mine = {position.partition for position in one.row.positions}
            target = tuple(position for position in positions if position.partition in mine)
            if (target, watermark) == (one.row.positions, one.row.watermark_us):
                continue
            loaded.batch = None
            self.go_to(loaded, target, watermark)
        self._take(self.worker.fuse(PART))

    def go_to(self, loaded: Loaded, target: tuple[Position, ...], watermark: int | None) -> None:
        """Commit exactly up to there."""
        held = loaded.held
        begins = {one.partition: one.next for one in held.row.positions}
        reads = [(one.partition, begins[one.partition], one.next) for one in target if one.input == 0]
        computation = self.computation
        read = computation.read(loaded, [piece for piece in reads if piece[1] < piece[2]])
        if computation.awaits_history(loaded) and any(one.input == 1 and one.next for one in target):
            read = computation.enter(loaded, read)
        at = {one.partition: one for one in target}
        loaded.batch = computation.batch(loaded, read._replace(at=at), watermark, [], ())
        self._work(held, patient=False)
