"""Which workers are expired, by whom, and when: on boot clocks, never by silence of an idle job."""

from __future__ import annotations

from contextlib import closing

import pytest

from onefold.compute.live.bundles import Worker
from onefold.compute.live.observing import WorkerObserver
from onefold.env import SeededEnv
from onefold.folds import folds
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.fold.live.ops import Beat
from support.live_counting import begun, count

LEASE_S = 15


class Pair:
    """A worker, and another one that looks at it."""

    def __init__(self, monkeypatch) -> None:
        self.env = SeededEnv(1)
        self.shard = MemoryShard(MemoryLog(env=self.env), folds(0, 1), self.env)
        self.client = StateClient([self.shard])
        self.alive: bool | None = True
        monkeypatch.setattr(self.shard, "member_alive", lambda member: self.alive)
        job = begun(self.client)
        self.worker, self.other = Worker(job, 1, "a"), Worker(job, 1, "b")
        (self.held,) = self.worker.claim("count")
        self.other.claim("count")
        self.observer = WorkerObserver(self.other, LEASE_S)

    def look(self, *behind: str, after: float = 0.0) -> int:
        self.env.advance(after)
        return self.observer.look(behind)


@pytest.fixture
def pair(monkeypatch):
    found = Pair(monkeypatch)
    with closing(found.client):
        yield found


def test_a_dead_process_is_expired_at_once_and_its_death_counted(pair):
    pair.alive = False
    assert pair.look() == 1
    (held,) = pair.other.claim("count")
    assert (held.lanes, held.row.deaths) == (0b1111, 1)
    assert pair.look() == 0


def test_an_idle_worker_that_lives_is_never_expired(pair):
    for _ in range(20):
        assert pair.look(after=LEASE_S / 3) == 0


def test_a_stopped_worker_with_unread_input_is_expired_after_a_lease(pair):
    for _ in range(4):
        assert pair.look("a", after=LEASE_S / 4) == 0
    assert pair.look("a", after=LEASE_S / 4) == 1


def test_a_commit_begins_the_lease_again(pair):
    for number in range(12):
        assert pair.look("a", after=LEASE_S / 3) == 0
        pair.held.commit(count(pair.held, number + 1))


def test_where_nobody_can_see_into_a_process_beats_keep_it(pair):
    pair.alive = None
    for _ in range(12):
        assert pair.look(after=LEASE_S / 3) == 0
        assert pair.worker.beat()
    assert [pair.look(after=LEASE_S / 3) for _ in range(4)] == [0, 0, 0, 1]
    assert not pair.worker.beat()


def test_an_observer_that_was_stopped_itself_is_no_witness(pair):
    pair.alive = None
    assert pair.look() == 0
    assert pair.look(after=10 * LEASE_S) == 0
    assert [pair.look(after=LEASE_S / 3) for _ in range(3)] == [0, 0, 1]


@pytest.mark.parametrize(("stopped_s", "expired"), [(0.0, 1), (LEASE_S, 0)])
def test_an_observer_that_is_long_in_one_step_is_a_witness(pair, stopped_s, expired):
    assert pair.look("a") == 0
    for _ in range(4):
        pair.env.advance(LEASE_S / 3)
        pair.observer.awake()
    pair.env.advance(stopped_s)
    assert pair.look("a") == expired


def test_a_beat_between_the_look_and_the_record_wins(pair, monkeypatch):
    pair.alive = None
    for _ in range(3):
        pair.look(after=LEASE_S / 3)
    submit = pair.other.job.submit

    def late(op):
        submit(Beat("job", 1, "a"))
        return submit(op)

    monkeypatch.setattr(pair.other.job, "submit", late)
    assert pair.look(after=LEASE_S / 3) == 0
    assert pair.worker.beat()
