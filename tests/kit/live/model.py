"""A run of the model from its seed."""

from __future__ import annotations

from collections import Counter
from typing import cast

import msgspec

from kit.live.check import Watcher
from kit.live.worker import SimWorker
from kit.live.world import PART, Client, Killed, World
from onefold.compute.live.holds import release
from onefold.errors import AppendUnknown, Conflict, OnefoldError
from onefold.fold.api import prefix_stop
from onefold.state.core.client import StateClient
from onefold.state.fold import blobs as named_blobs
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import StartJob, Stop, Sweep
from onefold.state.fold.outcomes import Answer


class Model:
    """Workers, the sweeper, and whoever stops and kills them."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.steps = steps = self.world.stress.steps
        self.watchers = {1: Watcher(self.world)}
        self.workers: list[SimWorker] = []
        self.replays_at = self.world.chance.choice((None, None, steps // 4, steps // 2))
        if self.world.settings.history:
            self.replays_at = None  # refused: its result would be that of the history again
        self._made = self._rounds = 0
        self._stands = 0
        """For so many steps more the job is stopped."""
        self._keeper = Client(self.world, "keeper", faults=True)
        self._current = 1
        self._hidden: dict[str, bytes] = {}
        self._to_hide: list[str] = []

    def run(self) -> Counter[str]:
        """All of it; how often what happened. Raises AssertionError when something does not hold."""
        world = self.world
        for step in range(self.steps):
            if step == self.replays_at:
                self._replay()
            world.pass_time()
            world.produce()
            world.surface()
            self._come_and_go()
            for worker in list(self.workers):
                if world.env.boot_s() >= worker.stopped_until_s and world.chance.random() < 0.7:
                    self._step(worker)
            if world.chance.random() < world.stress.sweeps:
                self._sweep()
            self._keep()
            self._restart_job()
        self._finish()
        self._no_names_are_left_over()
        self._is_let_go()
        seen: Counter[str] = Counter() if self.world.kept is None else self.world.kept.seen
        for generation, watcher in self.watchers.items():
            watcher.look()
            watcher.verify("done" if generation == self._current else "stopped")
            seen += watcher.seen
        return seen

    def _step(self, worker: SimWorker) -> None:
        try:
            worker.step()
        except Killed:
            self._bury(worker)
        self.watchers[worker.generation].look()

    def _bury(self, worker: SimWorker) -> None:
        self.world.alive[worker.name] = False
        self.workers.remove(worker)
        self.watchers[worker.generation].seen["deaths"] += 1

    def _come_and_go(self) -> None:
        chance = self.world.chance
        for generation in self.watchers:
            there = sum(worker.generation == generation for worker in self.workers)
            if not there or (
                there < self.world.stress.workers_max and chance.random() < self.world.stress.comes
            ):
                self._made += 1
                self.workers.append(SimWorker(self.world, f"w{self._made}", generation))
        if self.workers and chance.random() < 0.03:
            worker = chance.choice(self.workers)
            worker.stopped_until_s = self.world.env.boot_s() + chance.choice((2.0, 10.0, 40.0))
            self.watchers[worker.generation].seen["stops"] += 1
        if len(self.workers) > 1 and chance.random() < 0.02:
            worker = chance.choice(self.workers)
            try:
                worker.worker.leave()
            except Killed:
                pass
            except OnefoldError:
                return
            self._bury(worker)

    def _restart_job(self) -> None:
        """Stopped and started again, while commits are on their way. Where input does not stay it stands still for a while."""
        world = self.world
        if self._stands > 0:
            self._stands -= 1
            if not self._stands:
                world.job.start(f"plan{world.offset}", [world.spec])
        elif world.chance.random() < (0.01 if world.kept is None else 0.03):
            world.operator.submit(0, Stop(world.job.name, 1))
            self._stands = 1 if world.kept is None else world.chance.randint(1, 25)

    def _keep(self) -> None:
        """What generations that are over have not read is let go."""
        if self.world.kept is not None and self.world.chance.random() < 0.2:
            try:
                release(cast("StateClient", self._keeper))
            except (AppendUnknown, Killed):
                return

    def _is_let_go(self) -> None:
        """Nobody needs the input any more."""
        if self.world.kept is not None:
            self.world.kept.readers.clear()
            release(cast("StateClient", self.world.operator))
            self.world.kept.is_let_go()

    def _replay(self) -> None:
        """A second generation reads everything from the start, next to the first."""
        world, starts = self.world, self.world.spec.starts
        if world.kept is not None:  # it begins with what is there
            starts = tuple((0, partition, world.kept.head(partition).first) for _, partition, _ in starts)
        spec = msgspec.structs.replace(world.spec, starts=starts)
        generation = world.job.replay("plan of the replay", [spec])
        if world.kept is not None:
            world.kept.holding(world.job, generation).look_if_it_can()
            world.kept.readers.add(generation)
        self.watchers[generation] = Watcher(self.world, generation)

    def _swap(self) -> None:
        """Refused while the second generation lags; then it is the job, and the first one is stopped."""
        world, ends = self.world, self._ends()
        last = SimWorker(world, "last of the replay", 2)
        self._expire_all(last)
        part = live_rows.part_key(world.job.name, 2, PART)
        positions = [at for bundle in live_rows.bundles(world.store, part) for at in bundle.row.positions]
        behind = any(at.next < world.heads()[at.partition] for at in positions)
        try:
            world.job.swap(2, ends)
            assert not behind, "a generation that lags was swapped"
            self.watchers[2].seen["swaps at once"] += 1
        except Conflict:
            assert behind, "a generation that does not lag was not swapped"
            self.watchers[2].seen["swaps that waited"] += 1
            last.catch_up()
            world.job.swap(2, ends)
        self._current = 2
        if world.kept is not None:
            world.kept.readers.remove(1)
        last.worker.leave()

    def _ends(self) -> list[tuple[str, int, int, int]]:
        return [(PART, 0, partition, len(events)) for partition, events in enumerate(self.world.input)]

    def _expire_all(self, last: SimWorker) -> None:
        """All others of its generation are dead, or silent for a lease."""
        names = [worker.name for worker in self.workers]
        last.worker.claim(PART)
        for _ in range(5):
            last.observer.look(names)
            last.worker.beat()
            self.world.env.advance(self.world.settings.lease_s / 3)

    def _sweep(self) -> None:
        """One step of the sweeper: hide what is garbage, or have what was hidden swept."""
        world = self.world
        if self._to_hide:
            names, self._to_hide = self._to_hide, []
            for name in names:
                if name in world.blobs:
                    self._hidden[name] = world.blobs.pop(name)
            outcome = world.operator.submit(0, Sweep(tuple(names)))
            swept = set(outcome.value if isinstance(outcome, Answer) else ())
            for name in names:
                if name not in swept and name in self._hidden:
                    world.blobs.setdefault(name, self._hidden[name])
                self._hidden.pop(name, None)
        else:
            self._to_hide = named_blobs.garbage(world.store, limit=5)

    def _finish(self) -> None:
        """Faults end, everything is read and closed."""
        world = self.world
        world.faults = False
        while self._stands:
            self._restart_job()
        for body in world.late_copies:
            world.append(body)
        for worker in self.workers:
            world.alive[worker.name] = False
        if 2 in self.watchers:
            self._swap()
        world.job.drain(self._current, self._ends())
        last = SimWorker(world, "last", self._current)
        self._expire_all(last)
        if world.chance.random() < 0.7:
            self._interrupt_drain(last)
        while self._drains():
            last.finish()

    def _interrupt_drain(self, last: SimWorker) -> None:
        """Some bundles are drained; then the job is stopped or fails, more comes, it is started again, and perhaps drained
        again."""
        world, watcher = self.world, self.watchers[self._current]
        last.halve()
        last.finish(world.chance.choice((0, 1, 1, 1, 2)))
        if not self._drains():
            return
        world.operator.submit(
            0, Stop(world.job.name, self._current, world.chance.choice(("stopped", "failed")))
        )
        last.worker.leave()
        for _ in range(8):
            world.pass_time()
            world.produce()
        world.operator.submit(0, StartJob(world.job.name, "after", (world.spec,), self._current))
        watcher.seen["drains that drain on" if self._drains() else "drains undone"] += 1
        last.catch_up()
        if self._state() != "done":
            world.job.drain(self._current, self._ends())

    def _drains(self) -> bool:
        self._rounds += 1
        assert self._rounds < 20, "the job is not done although nothing is in its way"
        return self._state() == "draining"

    def _state(self) -> str:
        found = live_rows.generation_of(self.world.store, self.world.job.name, self._current)
        return "" if found is None else found.state

    def _no_names_are_left_over(self) -> None:
        """Each blob is counted by exactly what names it."""
        world = self.world
        names: Counter[str] = Counter()
        for generation in self.watchers:
            key = live_rows.part_key(world.job.name, generation, PART)
            names.update(run.row.blob for run in live_rows.runs(world.store, key) if run.row.blob)
            inline = world.store.scan(live_rows.INLINE, key, prefix_stop(key))
            assert next(inline, None) is None
        for blob, number in names.items():
            assert named_blobs.named_by(world.store, blob) == number, f"{blob} is named {number} times"
        assert not set(named_blobs.garbage(world.store)) & set(names), "a blob is named and garbage"


def run(seed: int) -> Counter[str]:
    """A run of the model. Raises AssertionError, which the caller gives its seed."""
    return Model(seed).run()
