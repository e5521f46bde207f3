"""Bundles as workers hold them, on the memory and the embedded engine: commits, what is in doubt, and death at every line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from unittest.mock import patch

import msgspec
import pytest

from onefold import config
from onefold.compute.live import bundles as bundle_module
from onefold.compute.live import client as client_module
from onefold.compute.live.bundles import Delta, Worker, meeting_point
from onefold.compute.live.client import BundleLost, LiveJob, NotRunning
from onefold.compute.live.idleness import IdleClock
from onefold.compute.live.observing import WorkerObserver
from onefold.compute.live.run_bytes import Origin, seal, unseal
from onefold.env import SeededEnv
from onefold.errors import AppendUnknown, Conflict, InvalidArgument, InvalidPlan, InvalidValue, SpaceError
from onefold.folds import folds
from onefold.log.memory import Faults, MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.space.open_shard import open_shard
from onefold.state.core.client import StateClient
from onefold.state.fold.live import lanes as lane_sets
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import LIVE_VERSION, Give, Position
from onefold.state.fold.streams.ops import Append
from support import parts
from support.live_counting import ALL, PART, Blobs, begun, count, output, runs_of, work


class Killed(BaseException):
    """At a line."""


@pytest.fixture(params=["memory", "file"])
def client(request, tmp_path) -> Iterator[StateClient]:
    with closing(opened(request.param, tmp_path / "space")) as found:
        yield found


def opened(engine: str, path: Path) -> StateClient:
    if engine == "memory":
        return StateClient([MemoryShard(MemoryLog(), folds(0, 1), SeededEnv(1))])
    return StateClient([open_shard(path, folds(0, 1))])


def test_a_job_is_counted_once_commit_by_commit(client):
    job = begun(client)
    worker = Worker(job, 1)
    (held,) = worker.claim("count")
    accepted = held.commit(count(held, 7))
    assert (accepted.row.seq, accepted.row.watermark_us, accepted.wanted) == (1, 70, 0)
    work(worker)
    assert worker.claim("count") == [held] and not held.lost
    assert output(client) == [*ALL]
    assert [run.row.rows for run in runs_of(held)] == [7, 5, 5, 3]
    origin, frame = unseal(_inline(job, runs_of(held)[0]))
    assert (origin.job, origin.bundle, origin.epoch, origin.seq) == ("job", 0, 1, 1)
    assert msgspec.msgpack.decode(frame) == [*range(7)]


def _inline(job, run):
    with job.view() as view:
        return live_rows.inline_of(view, live_rows.part_key("job", 1, "count"), run.id) or b""


def test_a_job_with_nothing_to_do_has_nothing_to_commit(client):
    begun(client)
    assert not Delta().changes
    assert Delta((Position(0, 0, 0, None, True),)).changes


def test_a_job_without_input_appends_its_silence_once_and_then_nothing(client):
    job = begun(client)
    worker, other = Worker(job, 1), Worker(job, 1)
    work(worker)
    work(other)
    clock, observer = IdleClock({0: 10}), WorkerObserver(other)
    offsets = []
    for second in range(30):
        assert not worker.can_claim("count") and not other.can_claim("count")
        (held,) = worker.held("count")
        idle = clock.found_idle(held.row.positions, {(0, 0): len(ALL)}, second)
        delta = Delta(tuple(idle))
        if delta.changes:
            held.commit(delta)
        assert observer.look(()) == 0
        offsets.append(client.shards[0].applied)
    assert offsets[9] + 1 == offsets[10] == offsets[-1]
    assert held.row.positions[0].idle


def test_workers_beat_where_others_may_be_on_other_machines(client):
    assert not Worker(begun(client), 1).needs_beats
    doubt = Doubt()
    worker = Worker(doubt.job, 1)
    assert worker.needs_beats and not worker.beat()
    worker.claim("count")
    assert worker.beat()


def test_a_claim_is_worth_it_when_lanes_are_free_and_it_has_room(client):
    job = begun(client)
    worker, other = Worker(job, 1), Worker(job, 1)
    assert worker.can_claim("count")
    worker.claim("count")
    assert other.can_claim("count")  # nobody knows it yet
    other.claim("count")
    assert not other.can_claim("count")
    worker.leave()
    assert other.can_claim("count")


def test_of_two_that_believe_in_a_bundle_one_goes_through(client):
    job = begun(client)
    zombie = Worker(job, 1, "zombie")
    (stale,) = zombie.claim("count")
    batch = count(stale, 5)
    other = Worker(job, 1, "other")
    WorkerObserver(other).look(())
    zombie.leave()
    stale.lost = False  # it was stopped, and does not know
    work(other)
    with pytest.raises(BundleLost):
        stale.commit(batch)
    with pytest.raises(BundleLost):
        stale.commit(batch)
    assert output(client) == [*ALL]


def test_a_newcomer_is_given_its_share(client):
    job = begun(client)
    first, second = Worker(job, 1, "a"), Worker(job, 1, "b")
    (held,) = first.claim("count")
    assert second.claim("count") == []
    assert held.commit(count(held, 5)).wanted == 2
    assert [one.lanes for one in first.give("count")] == [0b0011]
    (mine,) = second.refresh("count")
    assert mine.lanes == 0b1100 and mine.row.positions == held.row.positions
    assert first.held("count") != [held] and held.lost
    work(first)
    work(second)
    assert sorted(output(client)) == [*ALL]


def test_bundles_meet_and_are_fused(client):
    job = begun(client)
    worker = Worker(job, 1)
    (held,) = worker.claim("count")
    row = held.row
    job.submit(Give("job", 1, "count", 0, worker.id, row.epoch, 0, lane_sets.pack(0b1000), worker.id))
    one, two = worker.refresh("count")
    one.commit(count(one, 12))
    two.commit(count(two, 6))
    assert worker.fuse("count") == [one, two]
    positions, watermark = meeting_point([one.row, two.row])
    assert (positions, watermark) == ((Position(0, 0, 12, 120),), 120)
    two.commit(count(two, 12))
    (fused,) = worker.fuse("count")
    assert fused.lanes == 0b1111 and one.lost and two.lost
    work(worker)
    assert sorted(output(client)) == [*ALL]


def test_bundles_of_different_partitions_do_not_meet():
    def row(partition):
        return live_rows.BundleRow(b"\x01", "a", 1, 0, 0, (Position(0, partition, 5, 50),), 40)

    assert meeting_point([row(0), row(1)]) is None
    assert meeting_point([row(0)]) == ((Position(0, 0, 5, 50),), 40)


def test_a_stopped_job_says_so_and_continues_where_it_was(client):
    job = begun(client)
    worker = Worker(job, 1)
    work(worker, 10)
    (held,) = worker.held("count")
    assert job.stop(1) == "running"
    with pytest.raises(NotRunning, match="stopped"):
        held.commit(count(held, 12))
    with pytest.raises(NotRunning):
        worker.claim("count")
    assert job.start("new code", [PART]).before == "stopped"
    work(worker)
    assert output(client) == [*ALL]


def test_another_plan_is_refused_with_the_difference(client):
    job = begun(client)
    other = msgspec.structs.replace(PART, signature=(("keys", "m"),))
    with pytest.raises(Conflict, match=r"keys was n, and is m.*replay"):
        job.start("plan", [other])
    with pytest.raises(InvalidPlan, match="1 to 100 parts"):
        job.start("plan", [])
    with pytest.raises(InvalidArgument, match="has a name"):
        LiveJob(client, "")
    with pytest.raises(NotRunning):
        LiveJob(client, "nobody").stop(1)


def test_a_large_run_is_a_blob_and_a_small_one_is_not(client):
    job = begun(client)
    (held,) = Worker(job, 1).claim("count")
    blobs = Blobs()
    small = held.run("state", b"x", 1, blobs)
    large = held.run("state", bytes(config.LIVE_INLINE_BYTES_MAX), 1, blobs)
    assert (small.blob, large.inline, large.blob) == ("", b"", "0")
    assert len(blobs["0"]) == large.size


def test_no_two_runs_have_equal_bytes(client):
    job = begun(client)
    worker = Worker(job, 1)
    (held,) = worker.claim("count")
    seen = [held.run("state", b"same", 1, Blobs()).inline for _ in range(2)]
    held.commit(count(held, 1))
    seen.append(held.run("state", b"same", 1, Blobs()).inline)
    held.lost = True
    (again,) = worker.refresh("count")
    seen.append(again.run("state", b"same", 1, Blobs()).inline)
    assert len(set(seen)) == 4
    assert {bytes(unseal(data)[1]) for data in seen} == {b"same"}


def test_the_frame_of_a_run_can_be_read_in_place():
    data = seal(Origin("j" * 100, 1, "p", 1, 2, 3, 4, 5), b"frame")
    _, frame = unseal(data)
    assert bytes(frame) == b"frame" and (len(data) - len(frame)) % 64 == 0
    with pytest.raises(InvalidValue, match="not a run"):
        unseal(b"something else")
    with pytest.raises(InvalidValue, match="damaged"):
        unseal(data[:6] + b"\xc1" * 200)


# -- in doubt


class Doubt:
    """Two programs on one log in memory, of which the first one's appends have no answer when told."""

    def __init__(self) -> None:
        self.env = SeededEnv(3)
        self.log = MemoryLog(seed=1, env=self.env)
        self.client = self._client()
        self.client.shards[0].raise_fold_version(LIVE_VERSION)  # as a node does
        self.other = self._client()
        self.job = begun(self.client)

    def _client(self) -> StateClient:
        shard = MemoryShard(self.log, folds(0, 1), self.env, replica=True, pause=self.env.advance)
        return StateClient([shard], timeout=2.0)

    @contextmanager
    def failing(self, **chances: float) -> Iterator[None]:
        self.log.faults = Faults(surfaces=0.0, **chances)
        try:
            yield
        finally:
            self.log.faults = Faults(surfaces=0.0)


def test_a_commit_whose_answer_is_lost_is_found_in_the_row():
    doubt = Doubt()
    (held,) = Worker(doubt.job, 1).claim("count")
    with doubt.failing(lost_answer=1.0):
        held.commit(count(held, 5))
    assert held.in_doubt is None and held.row.seq == 1
    assert output(doubt.client) == [*range(5)]


@pytest.mark.parametrize("surfaces", ["before", "after", "never"])
def test_a_commit_in_doubt_happens_once_whenever_it_surfaces(surfaces):
    doubt = Doubt()
    (held,) = Worker(doubt.job, 1).claim("count")
    batch = count(held, 5)
    with doubt.failing(late=1.0), pytest.raises(AppendUnknown):
        held.commit(batch)
    assert held.in_doubt is batch
    with pytest.raises(InvalidArgument, match="in doubt"):
        held.commit(count(held, 6))
    if surfaces == "before":
        doubt.log.surface_all()
    assert held.settle() is (surfaces == "before")
    held.commit(batch) if surfaces != "before" else None
    if surfaces == "after":
        doubt.log.surface_all()
    work(held.worker)
    assert output(doubt.client) == [*ALL]


def test_another_attempt_of_the_same_commit_is_not_taken_for_this_one():
    doubt = Doubt()
    worker = Worker(doubt.job, 1)
    (held,) = worker.claim("count")
    with doubt.failing(late=1.0), pytest.raises(AppendUnknown):
        held.commit(count(held, 5))
    held.lost = True  # it gave up, and looked at the row again
    (again,) = worker.refresh("count")
    longer = count(again, 8)
    doubt.log.surface_all()
    with pytest.raises(BundleLost):
        again.commit(longer)
    (fresh,) = worker.refresh("count")
    assert fresh.row.positions[0].next == 5
    work(worker)
    assert output(doubt.client) == [*ALL]


def test_a_bundle_lost_while_its_commit_is_in_doubt_says_that_it_may_have_happened():
    doubt = Doubt()
    worker = Worker(doubt.job, 1, "a")
    (held,) = worker.claim("count")
    batch = count(held, 5)
    with doubt.failing(late=1.0), pytest.raises(AppendUnknown):
        held.commit(batch)
    heir = Worker(LiveJob(doubt.other, "job"), 1, "b")
    doubt.log.surface_all()
    heir.claim("count")
    observer = WorkerObserver(heir, 10)
    for _ in range(4):
        observer.look({"a"})
        doubt.env.advance(4)
    with pytest.raises(BundleLost) as found:
        held.commit(batch)
    assert not found.value.definite and held.lost
    work(heir)
    assert output(doubt.client) == [*ALL]


def test_an_interrupt_leaves_a_commit_in_doubt(client):
    job = begun(client)
    (held,) = Worker(job, 1).claim("count")
    batch = count(held, 5)
    shard = client.shards[0]
    submit = shard.submit

    def interrupted(*args):
        submit(*args)
        raise KeyboardInterrupt

    with patch.object(shard, "submit", interrupted), pytest.raises(KeyboardInterrupt):
        held.commit(batch)
    assert held.in_doubt is batch
    held.commit(batch)
    assert held.row.seq == 1 and output(client) == [*range(5)]


def test_what_another_write_is_refused_for_leaves_the_bundle_as_it_was(client):
    job = begun(client)
    (held,) = Worker(job, 1).claim("count")
    batch = Delta((Position(0, 0, 5, 50),), 50, writes=(Append("gone", 0, 1, b"x"),))
    with pytest.raises(Conflict, match="no_stream"):
        held.commit(batch)
    assert held.in_doubt is None and not held.lost
    held.commit(count(held, 5))


def test_a_commit_that_cannot_be_says_that_it_is_a_bug(client):
    job = begun(client)
    (held,) = Worker(job, 1).claim("count")
    held.commit(count(held, 5))
    with pytest.raises(SpaceError, match="a bug in Onefold"):
        held.commit(Delta((Position(0, 0, 4, 50),)))


# -- death


@pytest.mark.parametrize("engine", ["memory", "file"])
def test_death_at_any_line_loses_and_doubles_nothing(engine, tmp_path):
    """Of what claims, stores runs and commits: each line once, and then another worker ends the work."""
    with closing(opened(engine, tmp_path / "space")) as client:
        whole = Worker(begun(client), 1)
        lines = _lines_of(lambda: work(whole))
        assert len(lines) > 100
        for number, where in enumerate(parts.todays(lines, 3 if engine == "memory" else 10)):
            job = begun(client, f"job{number}")
            with pytest.raises(Killed), _killed_at(where):
                work(Worker(job, 1, "dies"))
            heir = Worker(job, 1, "heir")
            heir.claim("count")
            with patch.object(client.shards[0], "member_alive", lambda member: False):
                WorkerObserver(heir).look(())
            work(heir)
            assert sorted(output(client, job.name)) == [*ALL], f"killed at {where}"


Line = tuple[str, int, int]
"""File, line, and the how-manyth time."""
FILES = (bundle_module.__file__, client_module.__file__)


def _lines_of(run: Callable[[], None]) -> list[Line]:
    """Each line that it comes to, at its first and at its third time."""
    seen: dict[tuple[str, int], int] = {}

    def note(file: str, line: int) -> None:
        seen[file, line] = seen.get((file, line), 0) + 1

    with _traced(note):
        run()
    return [(*place, time) for place, times in seen.items() for time in (1, 3) if times >= time]


@contextmanager
def _killed_at(where: Line) -> Iterator[None]:
    times = 0

    def kill(file: str, line: int) -> None:
        nonlocal times
        times += (file, line) == where[:2]
        if times == where[2]:
            times += 1
            raise Killed

    with _traced(kill):
        yield


@contextmanager
def _traced(each: Callable[[str, int], None]) -> Iterator[None]:
    def trace(frame, event, _):
        if frame.f_code.co_filename not in FILES:
            return None
        if event == "line":
            each(frame.f_code.co_filename, frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)
