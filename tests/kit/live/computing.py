"""What a worker of the model computes: counts of events by window and key, from the input and from runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
import numpy as np

from kit.live.world import PART, US, World, out_of
from onefold.compute.live import event_time
from onefold.compute.live.alignment import Unread, choose
from onefold.compute.live.bundles import Delta, HeldBundle
from onefold.compute.live.client import LiveJob
from onefold.compute.live.idleness import IdleClock
from onefold.compute.live.run_bytes import unseal
from onefold.compute.plan.windows import closing_us, last_closed_us
from onefold.state.fold.kinds import Write
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import TIME_MAX_US, WATERMARK_END_US, Counters, Cover, NewRun, Position
from onefold.state.fold.live.rows import GenerationRow, Run
from onefold.state.fold.streams.ops import Append
from support.live_counting import runs_of

State = Counter[tuple[int, int, int]]
"""(lane, window start, key) -> how many."""
Rows = list[tuple[int, int, int, int]]
"""The same in a run, with the number last."""


class Batch(NamedTuple):
    """What was computed, to be committed."""

    delta: Delta
    state: State
    watermark: int | None
    """Both after it."""


class Read(NamedTuple):
    """Rows of a bundle."""

    fresh: State
    late: list[tuple[int, int, int]]
    """(lane, partition, offset)."""
    before_seam: int
    """How many rows are those of the history, and left out."""
    at: dict[int, Position]
    """Where the partitions stand after it."""
    moved: bool


class Loaded:
    """A bundle in memory."""

    def __init__(self, held: HeldBundle, watermark: int | None, state: State, idle_s: float) -> None:
        self.held = held
        self.watermark = watermark
        """Late is judged against it."""
        self.state = state
        self.clock = IdleClock({0: idle_s})
        self.batch: Batch | None = None


class BlobGone(Exception):
    """A run that the job names cannot be read."""


class Computation:
    """Of one process, in one generation of the job."""

    def __init__(self, world: World, job: LiveJob, generation: int) -> None:
        self.world = world
        self.job = job
        self.generation = generation
        self.window = world.settings.window
        self.seen = (0,) * len(world.heads())
        """The ends of the partitions as this process's replica shows them, which may lag."""
        self.lags_until_s = 0.0
        self.pauses_until_s = 0.0
        """It reads nothing until then, since too much of its output waits, and looks at its bundles all the same."""

    def hear(self) -> None:
        """The replica follows the log, but not always."""
        now, chance = self.world.env.boot_s(), self.world.chance
        if now >= self.lags_until_s:
            self.seen = self.world.heads()
            if chance.random() < 0.15:
                self.lags_until_s = now + chance.choice((1.0, 4.0, 15.0))
        if self.world.faults and now >= self.pauses_until_s and chance.random() < 0.02:
            self.pauses_until_s = now + chance.choice((4.0, 15.0))

    # -- state

    def first_watermark(self, held: HeldBundle) -> int | None:
        """Of a bundle that was just claimed. Its own method, so that it can be broken."""
        return held.row.watermark_us

    def load(self, held: HeldBundle, watermark: int | None) -> State:
        """What is open at the watermark, from the runs."""
        state: State = Counter()
        for run in runs_of(held):
            if run.row.kind == "state":
                state.update(self.rows_of(held, run))
        return self.alive(state, watermark)

    def rows_of(self, held: HeldBundle, run: Run) -> State:
        """Of the bundle's lanes that the run still covers. Raises BlobGone."""
        data = self.world.blobs.get(run.row.blob)
        if data is None:
            raise BlobGone(f"{run.row.blob} of the run at {run.id}")
        rows: Rows = msgspec.msgpack.decode(unseal(data)[1], type=Rows)
        covered = lane_sets.unpack(run.row.lanes) & held.lanes
        found: State = Counter()
        for lane, window, key, number in rows:
            if covered >> lane & 1:
                found[lane, window, key] += number
        return found

    def alive(self, state: State, watermark: int | None) -> State:
        """Without the windows that are closed."""
        if watermark is None:
            return state
        closed = last_closed_us(watermark, self.window)
        return Counter({row: number for row, number in state.items() if self.end(row[1]) > closed})

    def end(self, window: int) -> int:
        return window + self.window.length_us

    def compute(self, loaded: Loaded) -> Batch:
        """The next batch."""
        row = loaded.held.row
        read = self.read(loaded, self._reads(loaded))
        if self.awaits_history(loaded) and self.world.history_is_done:
            read = self.enter(loaded, read)
        at = dict(read.at)
        silent = [one for one in row.positions if at[one.partition] == one and not one.idle]
        now_s = self.world.env.boot_s()
        if loaded.clock.due(silent, now_s):
            for one in loaded.clock.found_idle(silent, self.barriered_heads(), now_s):
                at[one.partition] = one
        watermark = self._watermark(loaded, at)
        compacted, dropped = self._compaction(loaded) if read.moved or self.world.faults else ([], ())
        return self.batch(loaded, read._replace(at=at), watermark, compacted, dropped)

    def read(self, loaded: Loaded, reads: list[tuple[int, int, int]]) -> Read:
        """The bundle's rows of these pieces of the input: on time, or late by the watermark before them."""
        settings, held = self.world.settings, loaded.held
        at = {one.partition: one for one in held.row.positions}
        fresh: State = Counter()
        late: list[tuple[int, int, int]] = []
        before_seam = 0
        for partition, start, stop in reads:
            events = self.world.input[partition][start:stop]
            times = np.array([event.time_us for event in events], dtype=np.int64)
            appended = np.array([event.appended_us for event in events], dtype=np.int64)
            at[partition] = event_time.advanced(
                at[partition], stop, times, appended, settings.max_ahead_us
            ).position
            closing = closing_us(times, self.window)
            is_late = closing <= (-np.inf if loaded.watermark is None else loaded.watermark)
            windows = closing - self.window.lateness_us - self.window.length_us
            for number, event in enumerate(events):
                lane = self.lane(partition, event.key)
                if self.world.seam_us is not None and event.time_us < self.world.seam_us:
                    before_seam += self._counts(held, partition)
                elif held.lanes >> lane & 1 and is_late[number]:
                    late.append((lane, partition, start + number))
                elif held.lanes >> lane & 1:
                    fresh[lane, int(windows[number]), event.key] += 1
        return Read(fresh, late, before_seam, at, bool(reads))

    def _counts(self, held: HeldBundle, partition: int) -> int:
        """1 where the bundle counts what is of no lane, of a partition; else 0."""
        return held.lanes >> lane_sets.of_partition(partition, self.world.settings.lanes) & 1

    # -- a history

    def awaits_history(self, loaded: Loaded) -> bool:
        """Whether it has not entered. Its own method, so that it can be broken."""
        return any(one.input == 1 and not one.next for one in loaded.held.row.positions)

    def holds(self, positions: Iterable[Position]) -> list[Position]:
        """The positions that the watermark is the lowest of. Its own method, so that it can be broken."""
        return list(positions)

    def enter(self, loaded: Loaded, read: Read) -> Read:
        """Take in what crosses the seam of the bundle's lanes, with the commit that says so."""
        fresh = Counter(read.fresh)
        fresh.update(self.of_history(loaded.held))
        number = self.world.settings.partitions
        return read._replace(fresh=fresh, at=read.at | {number: Position(1, number, 1, None, True)})

    def of_history(self, held: HeldBundle) -> State:
        """The groups of the bundle's lanes that are open at the seam. Its own method, so that it can be broken."""
        groups = self.crossing()
        return Counter({row: number for row, number in groups.items() if held.lanes >> row[0] & 1})

    def crossing(self) -> State:
        """All groups that are open at the seam."""
        seam_us = self.world.seam_us
        assert seam_us is not None
        found: State = Counter()
        for event in self.world.history:
            window = event.time_us // self.window.length_us * self.window.length_us
            if self.end(window) > seam_us:
                found[self.lane(0, event.key), window, event.key] += 1
        return found

    def batch(
        self,
        loaded: Loaded,
        read: Read,
        watermark: int | None,
        compacted: list[NewRun],
        dropped: tuple[Cover, ...],
    ) -> Batch:
        """The commit of what was read, which moves the watermark there."""
        held = loaded.held
        state: State = Counter(loaded.state)
        state.update(read.fresh)
        closed: State = Counter(
            {key: number for key, number in state.items() if self._closes(key[1], loaded, watermark)}
        )
        runs = [*compacted]
        writes: tuple[Write, ...] = ()
        if read.fresh:
            runs.append(held.run("state", _packed(read.fresh), len(read.fresh), self.world))
        if closed:
            runs.append(held.run("result", _packed(closed), len(closed), self.world))
            writes = (Append(out_of(self.generation), 0, len(closed), _packed(closed)),)
        if read.late:
            frame = msgspec.msgpack.encode(sorted(read.late))
            runs.append(held.run("late", frame, len(read.late), self.world))
        return Batch(
            Delta(
                tuple(one for one in read.at.values() if one not in held.row.positions),
                None if watermark is None or watermark <= _mark(held) else watermark,
                tuple(runs),
                dropped,
                Counters(sum(read.fresh.values()), len(read.late), before_seam=read.before_seam),
                (),
                writes,
            ),
            Counter({key: number for key, number in state.items() if key not in closed}),
            watermark,
        )

    def _draining(self) -> GenerationRow | None:
        found = live_rows.generation_of(self.world.store, self.job.name, self.generation)
        return found if found is not None and found.state == "draining" else None

    def lane(self, partition: int, key: int) -> int:
        """Of an event."""
        spec = self.world.settings
        return (
            lane_sets.of_partition(partition, spec.lanes) if spec.by_partition else (key * 7 + 3) % spec.lanes
        )

    def barriered_heads(self) -> dict[tuple[int, int], int]:
        """Its own method, so that it can be broken."""
        self.seen = self.world.heads()
        return {(0, partition): head for partition, head in enumerate(self.seen)}

    def _reads(self, loaded: Loaded) -> list[tuple[int, int, int]]:
        """(partition, from, to) of the next batch: what is visible here, the partition that is behind in time first."""
        if self.world.faults and self.world.env.boot_s() < self.pauses_until_s:
            return []
        at = {one.partition: one for one in loaded.held.row.positions}
        heads = self.seen if self.world.faults else self.upto()
        found: dict[int, tuple[int, int]] = {}
        starts = starts_of(self.world, self.generation)
        for _ in range(self.world.chance.randint(1, 3)):
            behind = [one for one in at.values() if one.input == 0 and one.next < heads[one.partition]]
            unread = [Unread(one, one.next > starts[one.partition]) for one in behind]
            choice = choose(unread, 10 * US)
            if choice is None:
                break
            one = choice.position
            stop = min(
                heads[one.partition], one.next + self.world.chance.randint(1, self.world.settings.rows_max)
            )
            times = [event.time_us for event in self.world.input[one.partition][one.next : stop]]
            if choice.until_us is not None:
                beyond = next((n for n, time in enumerate(times) if time > choice.until_us), len(times) - 1)
                times = times[: beyond + 1]
                stop = one.next + len(times)
            at[one.partition] = Position(0, one.partition, stop, max(times))
            found[one.partition] = (found.get(one.partition, (one.next, stop))[0], stop)
        return [(partition, start, stop) for partition, (start, stop) in found.items()]

    def upto(self) -> tuple[int, ...]:
        """To where the partitions are read: a job that drains reads no further than its ends."""
        drains = self._draining()
        ends = {} if drains is None else {partition: offset for _, _, partition, offset in drains.ends}
        return tuple(ends.get(partition, head) for partition, head in enumerate(self.world.heads()))

    def _watermark(self, loaded: Loaded, at: dict[int, Position]) -> int | None:
        drains = self._draining()
        if drains is not None and not any(one.input == 1 and not one.next for one in at.values()):
            ends = {partition: offset for _, _, partition, offset in drains.ends}
            if all(one.next >= ends.get(one.partition, 0) for one in at.values()):
                return WATERMARK_END_US
        return self.operator_watermark(loaded, at)

    def operator_watermark(self, loaded: Loaded, at: dict[int, Position]) -> int | None:
        """Its own method, so that it can be broken."""
        delays = {0: self.world.settings.delay_us}
        return event_time.operator_watermark(loaded.watermark, self.holds(at.values()), delays)

    def _closes(self, window: int, loaded: Loaded, after: int | None) -> bool:
        before, end = loaded.watermark, self.end(window)
        open_before = before is None or end > last_closed_us(before, self.window)
        return after is not None and open_before and end <= last_closed_us(after, self.window)

    def _compaction(self, loaded: Loaded) -> tuple[list[NewRun], tuple[Cover, ...]]:
        """Sometimes: some neighbouring runs become one, or runs without open windows go."""
        held = loaded.held
        if self.world.chance.random() > self.world.stress.compacts:
            return [], ()
        runs = [run for run in runs_of(held) if run.row.kind == "state"]
        if len(runs) < 2:
            return [], ()
        first = self.world.chance.randrange(len(runs) - 1)
        merged = runs[first : first + self.world.chance.randint(2, 4)]
        state: State = Counter()
        covers: list[Cover] = []
        for run in merged:
            state.update(self.rows_of(held, run))
            lanes = lane_sets.unpack(run.row.lanes) & held.lanes
            covers.append(Cover(run.id, lane_sets.pack(lanes)))
        state = self.alive(state, loaded.watermark)
        if not state:
            return [], tuple(covers)
        return [held.run("state", _packed(state), len(state), self.world, replaces=tuple(covers))], ()


def starts_of(world: World, generation: int) -> dict[int, int]:
    """Where the generation began to read, by partition."""
    part = live_rows.part_of(world.store, live_rows.part_key(world.job.name, generation, PART))
    return {} if part is None else {partition: offset for _, partition, offset in part.spec.starts}


def _mark(held: HeldBundle) -> int:
    return -TIME_MAX_US if held.row.watermark_us is None else held.row.watermark_us


def _packed(state: State) -> bytes:
    return msgspec.msgpack.encode([[*key, number] for key, number in sorted(state.items())])
