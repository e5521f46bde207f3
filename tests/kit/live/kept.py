"""What retention leaves of the input, and what it must leave and must not: ``read_stream(hold=)`` under faults."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from onefold.compute.live.client import LiveJob
from onefold.compute.live.holds import Holding
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.ops import Commit, state_op
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import Append, MakeStream
from onefold.state.fold.streams.rows import Head, Holder

if TYPE_CHECKING:
    from kit.live.world import World
    from onefold.compute.live.plan import LivePart

IN: Final = "in"
HOLD_S: Final = 3600
"""Longer than any run: what was not read is there until it is."""
FORGOTTEN, FORGOTTEN_S = "forgotten", 20
"""A job that nobody works on, and for how long it holds what it has not read."""


class Source(NamedTuple):
    """As much of an input of a plan as holds use."""

    stream: str
    history: bool = False
    hop_of: str = ""
    hold_us: int = 0


class Part(NamedTuple):
    """As much of a part of a plan as holds use."""

    name: str
    inputs: tuple[Source, ...]


class Kept:
    """The stream of the input. Its records are those of ``World.input``, by partition and offset."""

    def __init__(self, world: World, part: str) -> None:
        self._world = world
        self._part = part
        self._retention_ms = round(world.settings.retention_s * 1000)
        self.readers = {1}
        """The generations that need what they have not read."""
        self.seen: Counter[str] = Counter()
        """How often what happened."""
        world.operator.submit(0, MakeStream(IN, world.settings.partitions, self._retention_ms))
        self.holding(world.job, 1).look_if_it_can()
        forgotten = LiveJob(world.job.client, FORGOTTEN)
        forgotten.start("plan", [world.spec])
        self.holding(forgotten, 1, FORGOTTEN_S).look_if_it_can()

    def holding(self, job: LiveJob, generation: int, hold_s: int = HOLD_S) -> Holding:
        """Keeps what a generation has not read."""
        part = Part(self._part, (Source(IN, hold_us=hold_s * 1_000_000), Source("", history=True)))
        return Holding(job, generation, [cast("LivePart", part)])

    def head(self, partition: int) -> Head:
        """What is there."""
        return stream_rows.head_of(self._world.store, IN, partition)

    def append(self, partition: int, count: int) -> None:
        """Records come, and retention removes others: none that somebody has not read."""
        before, now_us = self.head(partition).first, self._world.now_us
        append = Append(IN, partition, count, b"")
        self._world.append(state_op(Commit((), (), (append,))).body)
        head = self.head(partition)
        after = head.first
        self.seen["input removed"] += after > before
        self.seen["input held"] += head.oldest_ms < self._world.env.wall_ms() - self._retention_ms
        for generation in self.readers if after > before else ():
            unread = self.unread(generation, partition)
            assert after <= unread, (
                f"generation {generation} has read partition {partition} up to {unread}, and it begins at {after}"
            )

        bound_us = now_us - (self._retention_ms + FORGOTTEN_S * 1000) * 1000
        removed = self._world.input[partition][before:after]
        assert all(event.appended_us < bound_us for event in removed), (
            "a job that stands still lost its input early"
        )
        if head.oldest_ms * 1000 < bound_us:
            self._is_for_readers(partition, head)

    def _is_for_readers(self, partition: int, head: Head) -> None:
        """The first segment, which is older than the forgotten job may hold it."""
        key = stream_rows.segment_key(head.first)
        row = self._world.store.get(stream_rows.segment_table(IN, partition), key)
        assert row is not None
        end = head.first + stream_rows.segment_head(row)[1]
        holders = [one for one in stream_rows.holders(self._world.store) if one.partition == partition]
        mine = [stream_rows.hold_of(self._world.store, one) for one in holders if one.job != FORGOTTEN]
        kept = any(one is not None and one.next < end for one in mine)
        assert kept, f"partition {partition} is kept from {head.first} beyond what a job may hold"

    def unread(self, generation: int, partition: int) -> int:
        """The first record that some bundle has not committed."""
        key = live_rows.part_key(self._world.job.name, generation, self._part)
        places = [at for bundle in live_rows.bundles(self._world.store, key) for at in bundle.row.positions]
        return min(at.next for at in places if (at.input, at.partition) == (0, partition))

    def is_moved(self, generation: int) -> None:
        """A worker has looked just now: what its generation has read is kept for others alone."""
        due_ms = self._world.env.wall_ms() - self._retention_ms
        for partition in range(self._world.settings.partitions):
            holder = Holder(IN, partition, self._world.job.name, generation, self._part)
            held, head = stream_rows.hold_of(self._world.store, holder), self.head(partition)
            if head.first == head.next or head.oldest_ms >= due_ms:
                continue
            unread = self.unread(generation, partition)
            assert held is not None, f"nothing holds partition {partition} for generation {generation}"
            assert held.next == unread, (
                f"partition {partition} is held from {held.next}, and read up to {unread}"
            )

    def is_let_go(self) -> None:
        """All is read, and its job is over: nothing is kept past its retention."""
        self._world.env.advance(self._retention_ms / 1000 + FORGOTTEN_S + 1)
        for partition in range(self._world.settings.partitions):
            self.append(partition, 1)
            head = self.head(partition)
            assert head.first == head.next - 1, f"partition {partition} is kept from {head.first} for nobody"
