"""Cuts of several shards are of one instant, also where each shard's records arrive when they will."""

from __future__ import annotations

import random
import threading
from contextlib import contextmanager

import pytest

from onefold.codec import decode_record
from onefold.env import SeededEnv
from onefold.errors import AppendUnknown, Timeout
from onefold.space import cuts

SHARDS = 3


class _Inline:
    """A pool whose work is done at once, in order, so that a seed says all."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def map(self, *given):
        return list(map(*given))

    def shutdown(self):
        pass


@pytest.fixture(autouse=True)
def inline(monkeypatch):
    monkeypatch.setattr(cuts, "ThreadPoolExecutor", _Inline)


class World:
    """Logs that one writer appends to in turn: record number n goes to shard n % SHARDS, after all those before it."""

    def __init__(self, seed, *, busy=0.1, lossy=0.1):
        self.random = random.Random(seed)
        self.busy, self.lossy = busy, lossy
        self.written = 0
        self.logs = [[] for _ in range(SHARDS)]
        self.shards = [Delayed(self, shard) for shard in range(SHARDS)]
        self.lock = threading.Lock()

    def happens(self):
        """What others do between any two of our steps."""
        while self.random.random() < self.busy:
            self.logs[self.written % SHARDS].append("record")
            self.written += 1
        for space in self.shards:
            if self.random.random() < 0.5:
                space.here = self.random.randint(space.here, len(self.logs[space.shard]))


class Delayed:
    """A replica: ``here`` says how much of the log has come."""

    strong_reads = False

    def __init__(self, world, shard):
        self.world, self.shard, self.here = world, shard, 0
        self.env = SeededEnv(shard)
        self.log = self
        self.marks = []

    @property
    def applied(self):
        with self.world.lock:
            self.world.happens()
            return self.here

    def barrier(self):
        with self.world.lock:
            self.world.happens()
            self.env.advance(0.05)
            log = self.world.logs[self.shard]
            log.append("barrier")
            own = len(log)
            self.world.happens()
            self.here = self.world.random.randint(max(own, self.here), len(log))
            return self.here

    def append(self, data, deadline=None):
        with self.world.lock:
            self.world.happens()
            record = decode_record(data)
            self.marks.append((record.client, record.number))
            lost = self.world.random.random() < self.world.lossy
            if not lost or self.world.random.random() < 0.5:
                self.world.logs[self.shard].append("mark")
            if lost:
                raise AppendUnknown("nobody knows")
            own = len(self.world.logs[self.shard])
            self.world.happens()
            return own

    def pause(self, seconds):
        self.env.advance(seconds)
        with self.world.lock:
            self.world.happens()


@contextmanager
def pin(space):
    with space.world.lock:
        space.world.happens()
        yield_here = space.here
    yield space.shard, yield_here


def seen(world, pins):
    """How many records of each shard are in the pins."""
    return [world.logs[shard][:offset].count("record") for shard, offset in pins]


def is_prefix(counts):
    """Whether no record is there without all that were written before it."""
    total = sum(counts)
    return counts == [len(range(shard, total, SHARDS)) for shard in range(SHARDS)]


@pytest.mark.parametrize("seed", range(300))
def test_no_record_is_in_a_cut_without_those_before_it(seed):
    world = World(seed)
    with world.lock:
        for _ in range(20):
            world.happens()
    acknowledged = world.written
    with cuts.cut(world.shards, pin, lambda pinned: pinned[1]) as pins:
        counts = seen(world, pins)
    assert is_prefix(counts), counts
    assert sum(counts) >= acknowledged
    for space in world.shards:  # no number is given twice, and none is left out
        numbers = {}
        for client, number in space.marks:
            assert number == numbers.get(client, 0) + 1
            numbers[client] = number


def test_pins_that_have_only_not_moved_here_are_no_cut(monkeypatch):
    """The check can fail: without the marks after the pins some seed shows what never was."""
    monkeypatch.setattr(cuts._Marks, "append", lambda marks: [space.here + 1 for space in marks._shards])
    wrong = 0
    for seed in range(300):
        world = World(seed)
        with cuts.cut(world.shards, pin, lambda pinned: pinned[1]) as pins:
            wrong += not is_prefix(seen(world, pins))
    assert wrong


def test_where_writers_leave_no_moment_nothing_is_read():
    with (
        pytest.raises(Timeout, match="no moment in which nobody wrote") as caught,
        cuts.cut(World(1, busy=0.95).shards, pin, lambda pinned: pinned[1]),
    ):
        pass
    assert caught.value.definite


def test_one_shard_is_always_a_cut_and_shows_what_was_acknowledged():
    world = World(1, busy=0.9)
    world.logs[0] = ["record"] * 100
    with cuts.cut(world.shards[:1], pin, lambda pinned: pinned[1]) as pins:
        assert pins[0][1] >= 100


def test_an_instant_that_will_not_do_is_left_before_the_next_try():
    world = World(2, busy=0.0)
    held, calls = [], []

    @contextmanager
    def counted(space):
        held.append(space.shard)
        yield space.shard, space.here
        held.remove(space.shard)

    def retry(pins):
        assert len(pins) == SHARDS
        return (lambda: calls.append(list(held))) if len(calls) < 2 else None

    with cuts.cut(world.shards, counted, lambda pinned: pinned[1], retry=retry):
        assert sorted(held) == [0, 1, 2]
    assert calls == [[], []] and held == []
