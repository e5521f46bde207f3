"""Streams and consumer groups in the state fold, operation by operation."""

from __future__ import annotations

import random

import pytest

from onefold import config
from onefold.fold.api import Context
from onefold.state.fold import blobs
from onefold.state.fold.machine import MALFORMED, StateFold, apply_writes, first_refusal
from onefold.state.fold.ops import Commit, state_op
from onefold.state.fold.outcomes import Answer, Rejected
from onefold.state.fold.streams import fold as stream_fold
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import (
    STREAM_BLOBS_VERSION,
    Append,
    AppendBlob,
    Beat,
    CommitOffsets,
    Expire,
    Join,
    Leave,
    MakeStream,
    Retain,
)
from onefold.testing import check_fold
from onefold.testing.memory_store import MemoryStore


class World:
    """The fold's functions over a store in memory, with a fold time that is told."""

    def __init__(self, partitions=2, retention_ms=None):
        self.store = MemoryStore()
        self.now_ms = 1_000_000
        self.offset = 0
        self.do(MakeStream("s", partitions, retention_ms))

    def context(self):
        self.offset += 1
        return Context(self.offset, 0, self.now_ms, "c", None)

    def do(self, op):
        return stream_fold.apply_op(self.store, self.context(), op, StateFold.version)

    def write(self, *writes):
        refused = first_refusal(self.store, writes)
        return refused or apply_writes(self.store, self.context(), writes)

    def append(self, partition=0, count=1, frame=b"x"):
        return self.write(Append("s", partition, count, frame))

    def head(self, partition=0):
        return stream_rows.head_of(self.store, "s", partition)

    def segments(self, partition=0):
        rows = self.store.scan(stream_rows.segment_table("s", partition), stream_rows.FIRST_KEY)
        return [stream_rows.read_segment(*row) for row in rows]

    def runs(self, partition=0):
        return [(run.offset, run.count) for segment in self.segments(partition) for run in segment.runs]

    def group(self, name="g"):
        return stream_rows.read_group(self.store.get(stream_rows.GROUPS, stream_rows.group_key("s", name)))

    def join(self, member, **more):
        return self.do(Join("s", "g", member, f"p-{member}", **more))

    def commit(self, member, *moves, generation=None):
        generation = self.group().generation if generation is None else generation
        return self.write(CommitOffsets("s", "g", member, generation, moves))


# -- what a stream is like


def test_the_first_number_of_partitions_stays():
    world = World(partitions=4)
    assert world.do(MakeStream("s", 9)) == Answer([4, None, 1])


@pytest.mark.parametrize("partitions", [0, -1, config.STREAM_PARTITIONS_MAX + 1, 1 << 63])
def test_a_number_of_partitions_out_of_bounds_is_malformed(partitions):
    assert World().do(MakeStream("t", partitions)) == Rejected("malformed", "t")


def test_retention_changes_only_when_told_and_old_copies_do_not_win():
    world = World(partitions=4, retention_ms=10)
    assert world.do(MakeStream("s", 4, 99)) == Answer([4, 10, 1])
    assert world.do(MakeStream("s", 4, 99, change=True)) == Answer([4, 99, 2])
    assert world.do(MakeStream("s", 4, 99, change=True)) == Answer([4, 99, 2])
    assert world.do(MakeStream("s", 4, 10, version=1)) == Answer([4, 99, 2])
    assert world.do(MakeStream("s", 4, None, version=3)) == Answer([4, None, 3])


# -- appends


def test_offsets_are_contiguous_in_each_partition():
    world = World()
    assert world.append(0, 3) == ((0, 0, 1_000_000),)
    assert world.append(1, 2) == ((1, 0, 1_000_000),)
    assert world.append(0, 5) == ((0, 3, 1_000_000),)
    assert world.runs(0) == [(0, 3), (3, 5)]
    assert world.runs(1) == [(0, 2)]


def test_appends_of_one_commit_go_one_after_the_other_into_one_segment():
    world = World()
    result = world.write(*[Append("s", 0, 1, b"x") for _ in range(10)])
    assert [base for _, base, _ in result] == list(range(10))
    assert len(world.segments()) == 1


def test_small_appends_are_merged_and_large_ones_are_kept_beside():
    world = World()
    for _ in range(100):
        world.append(frame=b"x" * 200)
    assert 100 * 200 / config.STREAM_MERGE_BYTES_MAX <= len(world.segments()) < 10
    world.append(frame=b"y" * (config.STREAM_INLINE_BYTES_MAX + 1), count=7)
    world.append(frame=b"z")
    *_, large, last = world.segments()
    assert large.beside and (large.base, large.count) == (100, 7)
    assert last.base == 107 and last.runs[0].frame == b"z"
    frame = world.store.get(stream_rows.frame_table("s", 0), stream_rows.segment_key(100))
    assert frame == b"y" * (config.STREAM_INLINE_BYTES_MAX + 1)


def test_appends_far_apart_in_time_are_not_merged():
    world = World()
    world.append()
    world.now_ms += config.STREAM_MERGE_MS
    world.append()
    assert [segment.first_ms for segment in world.segments()] == [
        1_000_000,
        1_000_000 + config.STREAM_MERGE_MS,
    ]


def test_an_append_to_an_unknown_stream_or_partition_is_refused_and_writes_nothing():
    world = World(partitions=2)
    digest = world.store.digest()
    assert world.write(Append("other", 0, 1, b"x")) == Rejected("no_stream", "other")
    for write in (
        Append("s", 2, 1, b"x"),
        Append("s", -1, 1, b"x"),
        Append("s", 0, 0, b"x"),
        Append("s", 0, 1 << 40, b"x"),
        Append("s", 0, 1, b"x", 999),
        Append("", 0, 1, b"x"),
        Append("n" * 500, 0, 1, b"x"),
    ):
        assert isinstance(world.write(write), Rejected), write
    assert world.store.digest() == digest


# -- retention


def test_an_append_removes_what_is_past_the_retention():
    world = World(retention_ms=5000)
    world.append(count=3)
    world.append(frame=b"y" * (config.STREAM_INLINE_BYTES_MAX + 1))
    world.now_ms += 5000
    world.append()
    assert world.head().first == 0
    world.now_ms += 1
    world.append()
    assert (world.head().first, world.head().next) == (4, 6)
    assert world.runs() == [(4, 1), (5, 1)]
    assert list(world.store.scan(stream_rows.frame_table("s", 0))) == []


def test_retain_removes_what_is_past_and_the_offsets_go_on():
    world = World(retention_ms=5000)
    world.append(count=3)
    world.now_ms += 5001
    assert world.do(Retain("s", 0)) == Answer(1)
    assert world.do(Retain("s", 0)) == Answer(0)
    head = world.head()
    assert (head.first, head.next, head.bytes) == (3, 3, 0)
    assert world.append() == ((0, 3, world.now_ms),)
    assert world.do(Retain("s", 5)) == Rejected("no_stream", "s")


def test_a_first_segment_that_takes_in_more_is_as_old_as_its_newest_record():
    world = World(retention_ms=500)
    world.append()
    world.now_ms += 400
    world.append()
    assert len(world.segments()) == 1 and world.head().oldest_ms == world.now_ms
    world.now_ms += 200
    assert world.do(Retain("s", 0)) == Answer(0)


def test_one_record_removes_a_bounded_number_of_segments(monkeypatch):
    monkeypatch.setattr(config, "STREAM_RETIRE_SEGMENTS_MAX", 3)
    world = World(retention_ms=5000)
    for _ in range(10):
        world.append(frame=b"x" * config.STREAM_MERGE_BYTES_MAX)
    world.now_ms += 5001
    assert [world.do(Retain("s", 0)).value for _ in range(5)] == [3, 3, 3, 1, 0]


def test_the_head_counts_what_is_there():
    rng = random.Random(5)
    world = World(retention_ms=3000)
    for _ in range(400):
        world.append(count=rng.randrange(1, 5), frame=rng.randbytes(rng.choice([5, 300, 5000, 20_000])))
        world.now_ms += rng.choice([0, 0, 10, 400])
        segments = world.segments()
        rows = dict(world.store.scan(stream_rows.segment_table("s", 0), stream_rows.FIRST_KEY))
        head = world.head()
        assert head.first == segments[0].base
        assert head.next == segments[-1].base + segments[-1].count
        assert head.bytes == sum(stream_rows.frame_bytes(row) for row in rows.values())
        assert head.oldest_ms == segments[0].last_ms
        ends = [segment.base + segment.count for segment in segments]
        assert ends[:-1] == [segment.base for segment in segments[1:]]
        assert segments[0].last_ms >= world.now_ms - 3000 - 400


# -- consumer groups


def test_each_partition_has_exactly_one_owner_and_shares_are_even():
    world = World(partitions=7)
    for count, member in enumerate("cab", 1):
        assert world.join(member) == Answer(count)
        group = world.group()
        owners = [[at for at in range(count) if group.owns(at, partition)] for partition in range(7)]
        assert all(len(one) == 1 for one in owners)
        shares = [owners.count([at]) for at in range(count)]
        assert max(shares) - min(shares) <= 1
    assert [member.id for member in world.group().members] == ["a", "b", "c"]


def test_joining_twice_changes_nothing_and_leaving_begins_a_generation():
    world = World()
    world.join("a")
    assert world.join("a") == Answer(1)
    assert world.do(Leave("s", "g", "b")) == Answer(False)
    assert world.do(Leave("s", "g", "a")) == Answer(True)
    assert (world.group().generation, world.group().members) == (2, ())


def test_expiry_counts_only_for_the_epoch_that_was_seen():
    world = World()
    world.join("a")
    assert world.do(Beat("s", "g", "a")) == Answer(True)
    assert world.do(Expire("s", "g", "a", 0)) == Answer(False)
    assert world.group().generation == 1
    assert world.do(Expire("s", "g", "a", 1)) == Answer(True)
    assert world.do(Beat("s", "g", "a")) == Answer(False)


def test_commits_are_refused_for_old_generations_foreign_partitions_and_other_offsets():
    world = World(partitions=2)
    world.join("a")
    assert world.commit("a", (0, -1, 5), (1, -1, 3)) == (None,)
    world.join("b")  # now a has partition 0 and b has 1
    rebalanced = Rejected("rebalanced", "group g of stream s")
    assert world.commit("a", (0, 5, 6), generation=1) == rebalanced
    assert world.commit("a", (1, 3, 6)) == rebalanced
    assert world.commit("a", (0, 4, 6)) == rebalanced
    assert world.commit("a", (0, -1, 6)) == rebalanced
    assert world.commit("z", (0, 5, 6)) == rebalanced
    assert world.commit("a", (0, 5, 6)) == (None,)
    assert world.commit("b", (1, 3, 4)) == (None,)
    assert world.commit("b", (9, -1, 4)) == Rejected("malformed", "s")


def test_a_start_counts_for_a_new_group_only():
    world = World()
    world.join("a", start=((0, 7),))
    world.join("b", start=((0, 9), (1, 9)))
    assert world.commit("a", (0, 7, 8)) == (None,)


def test_a_group_has_a_limit_and_needs_a_stream(monkeypatch):
    monkeypatch.setattr(config, "CONSUMERS_PER_GROUP_MAX", 1)
    world = World()
    world.join("a")
    assert world.join("b") == Rejected("too_many", "group g of stream s")
    assert world.do(Join("none", "g", "a", "p")) == Rejected("no_stream", "none")
    assert world.join("") == Rejected("malformed", "s")


# -- frames in blobs


def test_a_blob_is_named_until_retention_removes_its_records():
    world = World(retention_ms=1000)
    world.append(count=3)
    assert world.write(AppendBlob("s", 0, 5, "b", 90_000)) == ((0, 3, 1_000_000),)
    world.append()
    assert [(run.offset, run.count, run.size, run.blob) for one in world.segments() for run in one.runs] == [
        (0, 3, 1, ""),
        (3, 5, 90_000, "b"),
        (8, 1, 1, ""),
    ]
    assert world.head().bytes > 90_000 and blobs.named_by(world.store, "b") == 1
    assert not [*world.store.scan(stream_rows.frame_table("s", 0))]
    world.now_ms += 2000
    assert world.do(Retain("s", 0)) == Answer(3)
    assert (blobs.named_by(world.store, "b"), blobs.garbage_since(world.store, "b")) == (0, world.now_ms)
    assert world.head().bytes == 0


def test_a_blob_that_two_records_name_is_garbage_after_the_second():
    world = World(retention_ms=1000)
    world.write(AppendBlob("s", 0, 1, "b", 90_000))
    world.now_ms += 600
    world.write(AppendBlob("s", 1, 1, "b", 90_000))
    world.now_ms += 600
    world.do(Retain("s", 0))
    assert blobs.named_by(world.store, "b") == 1 and not blobs.garbage(world.store)
    world.now_ms += 600
    world.do(Retain("s", 1))
    assert blobs.garbage(world.store) == ["b"] and blobs.sweep(world.store, ("b", "c")) == ["b"]


@pytest.mark.parametrize(
    "changed",
    [
        {"blob": ""},
        {"blob": "b" * 129},
        {"size": 0},
        {"size": 1 << 31},
        {"count": 0},
        {"partition": 2},
        {"stream": "~live/x"},
        {"format": 256},
    ],
)
def test_an_append_of_a_blob_that_cannot_be_is_malformed(changed):
    world = World()
    world.do(MakeStream("~live/x", 1))
    given = {"stream": "s", "partition": 0, "count": 1, "blob": "b", "size": 9}
    assert world.write(AppendBlob(**(given | changed))).reason == "malformed"
    assert not blobs.named_by(world.store, "b")


def test_before_its_fold_version_an_append_of_a_blob_is_malformed():
    body = state_op(Commit((), (), (AppendBlob("s", 0, 1, "b", 90_000),))).body
    world = World()
    fold = StateFold()
    assert fold.apply(world.store, world.context(), body, STREAM_BLOBS_VERSION - 1) == MALFORMED
    assert fold.apply(world.store, world.context(), body, STREAM_BLOBS_VERSION) != MALFORMED
    assert world.head().next == 1


# -- the contract


def random_operations(seed):
    rng = random.Random(seed)
    ops = [MakeStream("s", 3, 2000)]
    for _ in range(150):
        match rng.randrange(8):
            case 0 | 1 | 2:
                writes = [
                    Append(
                        "s",
                        rng.randrange(4),
                        rng.randrange(1, 4),
                        rng.randbytes(rng.choice([9, 900, 20_000])),
                    )
                    for _ in range(rng.randrange(1, 4))
                ]
                if rng.random() < 0.3:
                    writes.append(AppendBlob("s", rng.randrange(4), 2, rng.choice("xyz"), 90_000))
                ops.append(Commit((), (), tuple(writes)))
            case 3:
                ops.append(Join("s", rng.choice("gh"), rng.choice("abc"), "p", ((0, 1),)))
            case 4:
                ops.append(rng.choice([Leave, Beat])("s", rng.choice("gh"), rng.choice("abc")))
            case 5:
                moves = ((rng.randrange(3), rng.choice([-1, 1, 2]), rng.choice([1, 2])),)
                write = CommitOffsets("s", rng.choice("gh"), rng.choice("abc"), rng.randrange(1, 9), moves)
                ops.append(Commit((), (), (write,)))
            case 6:
                ops.append(Expire("s", rng.choice("gh"), rng.choice("abc"), rng.randrange(3)))
            case _:
                ops.append(rng.choice([Retain("s", rng.randrange(4)), MakeStream("s", 3, 900, change=True)]))
    return [state_op(op).body for op in ops]


@pytest.mark.parametrize("seed", range(3))
def test_the_fold_keeps_its_contract(seed):
    check_fold(StateFold(), random_operations(seed), seed=seed)
