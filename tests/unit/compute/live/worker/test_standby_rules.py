"""When a worker joins its job and when it leaves it, rule by rule: a clock and parts that say what they are to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.live.bundles import Worker
from onefold.compute.live.observing import WorkerObserver
from onefold.compute.live.runs.run_store import RunReader
from onefold.compute.live.worker.job_worker import OBSERVE_S, JobWorker
from onefold.compute.live.worker.standby import TAKE_IN_TROUBLE_S, TAKE_S, Standby
from onefold.env import SystemEnv
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import Leave

PATIENCE_S = 2.0 * 2 + 0.1
"""More than any worker waits."""


class Clock(SystemEnv):
    now_s = 1e9  # beyond all deadlines of the real one

    def boot_s(self) -> float:
        return self.now_s


class Part:
    """Of a worker, as ``Standby`` sees it."""

    def __init__(self, job: str, name: str) -> None:
        self.name, self.key = name, live_rows.part_key(job, 1, name)
        self.state_bytes = 0
        self.committing_s = self.committed_s = 0.0
        self.at = self.end = 0
        self.waits = False
        self.dropped = 0

    def waits_for_streams(self) -> bool:
        return self.waits

    def progress(self, _generation: Any) -> dict[Any, Any]:
        return {(0, 0): (self.at, self.end)}

    def drop_lost(self) -> None:
        self.dropped += 1


class Job:
    """A running job that no thread works on, and workers of it in order of their ids."""

    def __init__(self, db: of.Database) -> None:
        db.stream("s").append({"k": 0, "g": 0})
        rows = db.read_stream("s", follow=True).map(lambda row: row)  # a part of its own
        self.run: Any = rows.group_by("k").agg(n=agg.count()).into("t").start(workers=0)
        self.clock = self.run._job.client.env = Clock()
        self.names = [part.name for part in self.run._jobs.plan_of(self.run._found).parts]
        self.count = 0

    def made(self, *, shares: bool = False) -> tuple[Standby, Worker, list[Any]]:
        self.count += 1
        worker = Worker(self.run._job, 1, f"w_{self.count}")
        parts: list[Any] = [Part(self.run.name, name) for name in self.names]
        return Standby(worker, parts, 0.0, shares=shares), worker, parts

    def works(self, standby: Standby, **changes: Any) -> bool:
        row = self.run._generation_row()
        return standby.works(type(row)(changes.get("state", row.state), *_rest(row)))

    def claim(self, worker: Worker) -> None:
        for name in self.names:
            worker.claim(name)

    def owners(self) -> set[str]:
        keys = [live_rows.part_key(self.run.name, 1, name) for name in self.names]
        with self.run._jobs.client.view(self.run._job.home) as view:
            return {one.row.owner for key in keys for one in live_rows.bundles(view, key)}

    def sharing(self) -> set[str]:
        with self.run._jobs.client.view(self.run._job.home) as view:
            return set(live_rows.sharing_workers(view, self.run.name, 1))

    def pass_s(self, seconds: float) -> None:
        self.clock.now_s += seconds


def _rest(row: Any) -> list[Any]:
    return [getattr(row, field) for field in row.__struct_fields__[1:]]


@contextmanager
def job(path: Path) -> Iterator[Job]:
    with of.connect(path) as db:
        yield Job(db)


def test_it_takes_all_that_nobody_owns_of_all_parts(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        standby, worker, parts = one.made()
        assert len(parts) > 1
        for part in parts:
            part.waits = True
        assert not one.works(standby)  # what it would read is not there
        assert one.owners() == {""}
        assert one.works(standby, state="draining")
        assert one.owners() == {worker.id}


def test_it_leaves_free_lanes_to_those_that_work_for_a_while(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        _, first, _ = one.made()
        _, second, _ = one.made()
        standby, worker, parts = one.made()
        one.claim(first)
        one.claim(second)  # has no lanes yet
        assert not one.works(standby)
        assert parts[0].dropped and parts[1].dropped  # of what it may have held before
        first.leave()
        assert not one.works(standby)
        one.pass_s(TAKE_S / 2)
        assert not one.works(standby)
        one.pass_s(TAKE_S)
        assert one.works(standby)
        assert worker.id in one.owners()


def test_it_helps_who_is_full_until_it_is_given_lanes(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        _, first, _ = one.made()
        one.claim(first)
        standby, worker, _ = one.made()
        assert not one.works(standby)
        first.full_bytes = 1
        first.beat()
        assert one.works(standby)
        one.claim(worker)
        first.full_bytes = 0
        first.beat()
        assert one.works(standby)
        assert one.owners() == {first.id}


def test_one_after_the_other_helps_a_job_that_is_behind(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        _, first, _ = one.made()
        one.claim(first)
        standby, _, parts = one.made()
        parts[0].end = 10
        assert not one.works(standby)
        one.pass_s(PATIENCE_S)
        parts[0].at = 10
        parts[0].end = 20
        assert not one.works(standby)  # it has read what there was
        one.pass_s(PATIENCE_S / 4)
        assert not one.works(standby)
        _, second, _ = one.made()
        one.claim(second)
        one.pass_s(PATIENCE_S)
        assert not one.works(standby)  # another one helps now
        one.pass_s(PATIENCE_S)
        assert one.works(standby)


def quiet(one: Job) -> tuple[Standby, Worker, list[Any]]:
    """One that shares with another, and leaves when it looks next."""
    _, first, _ = one.made()
    one.claim(first)
    standby, worker, parts = one.made()
    one.claim(worker)
    first.give(one.names[0])
    worker.refresh(one.names[0])
    assert worker.held(one.names[0])
    assert one.works(standby)
    one.pass_s(config.LIVE_QUIET_S)
    return standby, worker, parts


def test_it_leaves_when_all_is_quiet(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        standby, worker, parts = quiet(one)
        parts[0].committing_s = 100.0
        standby.worked(101.0)
        assert parts[0].committing_s == 0
        assert not one.works(standby)
        assert worker.id not in one.owners() | one.sharing()
        assert parts[0].dropped and parts[1].dropped


def test_it_looks_from_when_it_has_joined(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        _, first, _ = one.made()
        one.claim(first)
        standby, worker, _ = one.made()
        assert not one.works(standby)
        one.pass_s(2 * config.LIVE_QUIET_S)  # it stood by
        one.claim(worker)
        first.give(one.names[0])
        worker.refresh(one.names[0])
        assert one.works(standby)
        assert worker.id in one.owners()
        one.pass_s(config.LIVE_QUIET_S)
        assert not one.works(standby)
        one.claim(first)
        assert not one.works(standby)
        one.pass_s(2 * config.LIVE_QUIET_S)
        one.claim(worker)
        first.give(one.names[0])
        worker.refresh(one.names[0])
        assert one.works(standby)
        assert worker.id in one.owners()


def test_it_leaves_when_all_have_kept_up_again(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        standby, worker, parts = quiet(one)
        standby._looked_s = None
        parts[1].end = 1
        assert one.works(standby)
        one.pass_s(config.LIVE_QUIET_S)
        assert one.works(standby)
        one.pass_s(config.LIVE_QUIET_S)
        parts[1].at = 1  # long after it was there
        assert one.works(standby)
        assert worker.id in one.owners()
        one.pass_s(config.LIVE_QUIET_S)
        assert not one.works(standby)


def test_who_stands_by_in_trouble_stays(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        _, other, _ = one.made()
        one.claim(other)
        standby, worker, _ = one.made()
        assert not one.works(standby)
        standby.met_trouble()
        one.pass_s(PATIENCE_S)
        standby.met_trouble()
        assert one.run.status().workers == 2
        assert not one.works(standby)
        one.claim(worker)
        standby.met_trouble()  # the first time that it works
        assert worker.id in one.sharing()


def test_it_waits_again_before_it_takes_lanes_that_it_has_given_up(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        standby, worker, _ = one.made()
        assert one.works(standby)
        assert one.works(standby)
        _, other, _ = one.made()
        one.claim(other)
        one.pass_s(config.LIVE_QUIET_S)
        standby._leave()
        assert not one.works(standby)
        one.pass_s(TAKE_S)
        assert one.works(standby)
        assert worker.id in one.owners()


@pytest.mark.parametrize("why", ["least", "busy", "too large", "in doubt", "alone", "behind"])
def test_it_stays(tmp_path: Path, why: str) -> None:
    with job(tmp_path) as one:
        standby, worker, parts = quiet(one)
        (first,) = one.sharing() - {worker.id}
        if why == "least":
            one.run._job.submit(Leave(one.run.name, 1, first))
            one.claim(Worker(one.run._job, 1, "w_9"))
        elif why == "busy":
            standby.worked(0.6 * config.LIVE_QUIET_SHARE * config.LIVE_QUIET_S)  # of two
        elif why == "too large":
            parts[0].state_bytes = int(0.3 * config.LIVE_STATE_BYTES_MAX)  # of two
        elif why == "in doubt":
            held: Any = worker.held(one.names[0])[0]
            held._doubt = SimpleNamespace(delta=held)
        elif why == "alone":
            one.run._job.submit(Leave(one.run.name, 1, first))
        else:
            parts[1].end = 1
            standby._looked_s = None
            assert one.works(standby)
            one.pass_s(config.LIVE_QUIET_S)
        assert one.works(standby)
        assert worker.id in one.owners()


@pytest.mark.parametrize("shares", [False, True])
def test_who_cannot_work_leaves_to_others_and_comes_back_where_nobody_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares: bool
) -> None:
    monkeypatch.setattr(config, "LIVE_BEHIND_S", 20.0)
    long_s = 41.0
    with job(tmp_path) as one:
        standby, worker, parts = one.made(shares=shares)
        assert one.works(standby)
        one.claim(worker)
        assert one.works(standby)
        standby.met_trouble()
        one.pass_s(long_s)
        standby.met_trouble()
        assert one.owners() == {worker.id}  # there is nobody else
        other = Worker(one.run._job, 1, "w_9")
        other.stand_by(one.names[0])
        parts[0].committed_s = one.clock.now_s - 0.1
        standby.met_trouble()
        assert one.owners() == {worker.id}  # it has committed meanwhile
        standby.worked(0.0)
        one.pass_s(long_s)
        standby.met_trouble()
        assert one.owners() == {worker.id}  # not for long
        one.pass_s(long_s)
        standby.met_trouble()
        assert one.owners() == {""} and worker.id not in one.sharing()
        assert parts[0].dropped
        assert not one.works(standby)
        one.pass_s(TAKE_S)
        assert not one.works(standby)
        one.pass_s(TAKE_IN_TROUBLE_S)
        assert one.works(standby)
        assert one.owners() == {worker.id}
        one.pass_s(long_s)
        standby.met_trouble()
        assert one.owners() == {worker.id}  # of this time, not of the last one


def test_who_is_not_known_yet_observes_an_only_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    monkeypatch.setattr(WorkerObserver, "look", lambda self, _: looked.append(self._worker.id))
    with job(tmp_path) as one:
        run = one.run
        plan = run._jobs.plan_of(run._found)
        blobs = run._jobs.blobs
        made = JobWorker(run._job, 1, plan, blobs, RunReader(blobs), run._jobs.results)
        made._observe(run._generation_row())
        assert not looked
        _, worker, _ = one.made()
        one.claim(worker)
        one.pass_s(OBSERVE_S)
        made._observe(run._generation_row())
        assert looked == [made.worker.id]


def test_who_could_not_work_does_not_help_for_longer_each_time(tmp_path: Path) -> None:
    with job(tmp_path) as one:
        standby, worker, parts = one.made(shares=True)
        away: list[float] = []
        other = Worker(one.run._job, 1, "w_9")
        one.claim(other)
        other.full_bytes = 1
        other.beat()
        for _ in range(8):
            one.claim(worker)
            standby.met_trouble()
            one.pass_s(PATIENCE_S)
            standby.met_trouble()
            began_s = one.clock.now_s
            while not one.works(standby):
                one.pass_s(0.25)
            away.append(one.clock.now_s - began_s)
        assert away[0] >= config.LIVE_BEHIND_S and away[1] >= 1.5 * away[0] and away[2] >= 1.5 * away[1]
        assert away[-1] <= config.LIVE_QUIET_S + 0.25
        parts[0].committed_s = one.clock.now_s
        standby.worked(0.0)
        assert one.works(standby)
        assert standby._away_s == 0
