"""What must hold of a run of the model, whatever happened in it."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import msgspec

from kit.live.computing import starts_of
from kit.live.world import PART, US, Event, World, out_of
from onefold.compute.live.run_bytes import unseal
from onefold.compute.plan.windows import closing_us
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.rows import Run
from onefold.state.fold.streams import rows as stream_rows


class Idle(NamedTuple):
    """A flag that was committed."""

    partition: int
    next: int


class Watcher:
    """Looks at the rows after every step, and at everything at the end."""

    def __init__(self, world: World, generation: int = 1) -> None:
        self.world = world
        self.generation = generation
        self.idle: set[Idle] = set()
        self.seen: Counter[str] = Counter()
        """How often what happened: so that a test knows that its runs are not empty."""
        self._last: dict[int, tuple[int, str, int]] = {}

    def look(self) -> None:
        """After a step."""
        world, lanes = self.world, 0
        key = live_rows.part_key(world.job.name, self.generation, PART)
        bundles = live_rows.bundles(world.store, key)
        for bundle in bundles:
            mine = lane_sets.unpack(bundle.row.lanes)
            assert not lanes & mine, f"lanes of bundle {bundle.id} are in another one too"
            lanes |= mine
            for at in bundle.row.positions:
                if at.idle and at.input == 0:
                    self.idle.add(Idle(at.partition, at.next))
            now = (bundle.row.epoch, bundle.row.owner, bundle.row.seq)
            before = self._last.get(bundle.id, now)
            self.seen["commits"] += now[2] > before[2]
            entered = {bool(at.next) for at in bundle.row.positions if at.input == 1}
            self.seen["commits while a history is awaited"] += now[2] > before[2] and entered == {False}
            self.seen["owners"] += now[0] > before[0]
        assert lanes == lane_sets.all_lanes(world.settings.lanes), "a lane is in no bundle"
        self.seen["splits"] += len(bundles) > len(self._last) > 0
        self.seen["fusions"] += len(bundles) < len(self._last)
        self._last = {bundle.id: (bundle.row.epoch, bundle.row.owner, bundle.row.seq) for bundle in bundles}

    def verify(self, state: str) -> None:
        """At the end. ``state``: that of the generation; of one that was stopped before its end, what is there is right."""
        world = self.world
        found = live_rows.generation_of(world.store, world.job.name, self.generation)
        assert found is not None and found.state == state, f"it is {found and found.state}, not {state}"
        results, sent, late = self._results(), self._sent(), Counter(self._late())
        assert results == sent, f"table and stream differ: {results - sent} / {sent - results}"
        emitted = Counter((lane, window, key) for lane, window, key, _ in results.elements())
        assert set(emitted.values()) <= {1}, f"windows were emitted again: {emitted.most_common(3)}"
        assert set(late.values()) <= {1}, f"rows are late twice: {late.most_common(3)}"
        if state == "done":
            counts: Counter[tuple[int, int]] = Counter()
            for _, window, key, number in results.elements():
                counts[window, key] += number
            ends = {partition: offset for _, _, partition, offset in found.ends}
            expected = self._expected(set(late), ends)
            over, under = counts - expected, expected - counts
            assert counts == expected, f"counted {over} too often, {under} too seldom"
            self._verify_seam(ends)
        self._verify_late(set(late))
        self._verify_idle()
        self.seen["windows"] += len(emitted)
        self.seen["late"] += len(late)
        self.seen["idle"] += len(self.idle)

    def _runs(self, kind: str) -> list[Run]:
        key = live_rows.part_key(self.world.job.name, self.generation, PART)
        return [run for run in live_rows.runs(self.world.store, key) if run.row.kind == kind]

    def _decoded(self, kind: str) -> list[list[int]]:
        found: list[list[int]] = []
        for run in self._runs(kind):
            found += msgspec.msgpack.decode(unseal(self.world.blobs[run.row.blob])[1])
        return found

    def _results(self) -> Counter[tuple[int, int, int, int]]:
        return Counter((lane, window, key, number) for lane, window, key, number in self._decoded("result"))

    def _sent(self) -> Counter[tuple[int, int, int, int]]:
        out = out_of(self.generation)
        table = stream_rows.segment_table(out, 0)
        found: Counter[tuple[int, int, int, int]] = Counter()
        for key, row in self.world.store.scan(table, stream_rows.FIRST_KEY):
            for run in stream_rows.read_segment(key, row).runs:
                frame = run.frame or self.world.store.get(stream_rows.frame_table(out, 0), key) or b""
                found.update(tuple(each) for each in msgspec.msgpack.decode(frame))
        return found

    def _late(self) -> list[tuple[int, int]]:
        return [(partition, offset) for _, partition, offset in self._decoded("late")]

    def _expected(self, late: set[tuple[int, int]], ends: dict[int, int]) -> Counter[tuple[int, int]]:
        """Of every row before the ends that is not late, in its window."""
        window_us = self.world.settings.window_us
        counts: Counter[tuple[int, int]] = Counter()
        starts = starts_of(self.world, self.generation)
        for partition, events in enumerate(self.world.input):
            for offset, event in enumerate(events[: ends.get(partition)]):
                if offset < starts[partition]:
                    continue
                if (partition, offset) not in late and not self._is_before_seam(event):
                    counts[event.time_us // window_us * window_us, event.key] += 1
        for event in self.world.history:
            window = event.time_us // window_us * window_us
            if not self._is_before_seam(event._replace(time_us=window + window_us - 1)):
                counts[window, event.key] += 1
        return counts

    def _is_before_seam(self, event: Event) -> bool:
        return self.world.seam_us is not None and event.time_us < self.world.seam_us

    def _verify_seam(self, ends: dict[int, int]) -> None:
        """Live rows before the seam are counted; windows across it are whole, as ``_expected`` says."""
        world = self.world
        key = live_rows.part_key(world.job.name, self.generation, PART)
        counted = sum(one.row.counters.before_seam for one in live_rows.bundles(world.store, key))
        left_out = sum(
            self._is_before_seam(event)
            for partition, events in enumerate(world.input)
            for event in events[: ends.get(partition)]
        )
        assert counted == left_out, f"{counted} of {left_out} rows before the seam are counted"
        self.seen["histories"] += bool(world.history)
        self.seen["rows before a seam"] += left_out

    def _verify_late(self, late: set[tuple[int, int]]) -> None:
        """A row is late only beyond the delay of its own partition, or behind a silence of it."""
        settings = self.world.settings
        for partition, offset in late:
            events = self.world.input[partition]
            event = events[offset]
            closing = closing_us(event.time_us, settings.window)
            honest = [
                one.time_us
                for one in events[:offset]
                if one.time_us <= one.appended_us + settings.max_ahead_us
            ]
            beyond = bool(honest) and closing <= max(honest) - settings.delay_us
            silent = any(idle.partition == partition and idle.next <= offset for idle in self.idle)
            assert beyond or silent, f"row {offset} of partition {partition} is late without a reason"

    def _verify_idle(self) -> None:
        """A partition was idle only where nothing came for that long."""
        for idle in self.idle:
            events = self.world.input[idle.partition]
            if idle.next >= len(events):
                continue
            before = events[idle.next - 1].appended_us if idle.next else self.world.began_us
            silence_s = (events[idle.next].appended_us - before) / US
            assert silence_s >= self.world.settings.idle_s - 0.01, (
                f"partition {idle.partition} was idle at {idle.next} after {silence_s} s only"
            )
