"""A job that one worker can do has one; others stand by, and join when it cannot, or is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg, config
from onefold.backoff import wait_until
from onefold.compute.live.bundles import Worker
from onefold.compute.live.inputs.reading import Inputs
from onefold.compute.live.observing import WorkerObserver
from onefold.compute.live.worker.job_worker import JobWorker
from onefold.compute.live.worker.standby import Standby
from onefold.errors import Unavailable
from onefold.state.fold.live import rows as live_rows


def counts(db: of.Database) -> Any:
    return db.read_stream("s", follow=True).group_by("k").agg(n=agg.count()).into("t")


def owners(run: Any) -> set[str]:
    return {row.owner for row in run._moment().bundles}


def workers(run: Any) -> set[str]:
    with run._jobs.client.view(run._job.home) as view:
        return set(live_rows.workers(view, run.name, 1))


def sharing(run: Any) -> set[str]:
    with run._jobs.client.view(run._job.home) as view:
        return set(live_rows.sharing_workers(view, run.name, 1))


def wait_for(holds: Any) -> None:
    assert wait_until(holds, 120, 0.01)


@contextmanager
def looks(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """How often each worker has looked whether it is needed."""
    found: dict[str, int] = {}
    works = Standby.works

    def counted(self: Standby, generation: Any) -> bool:
        answer = works(self, generation)
        found[self._worker.id] = found.get(self._worker.id, 0) + 1
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Standby, "works", counted)
        yield found


def test_a_light_job_of_several_processes_has_one_worker_and_moves_when_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LIVE_BEHIND_S", 600.0)
    with of.connect(tmp_path) as db, ExitStack() as others, looks(monkeypatch) as looked:
        stream = db.stream("s")
        stream.append({"k": 0})
        run = counts(db).start(workers=0)
        first = others.enter_context(of.connect(tmp_path))
        counts(first).start().catch_up(timeout=120)
        (owner,) = owners(run)
        for _ in range(2):
            counts(others.enter_context(of.connect(tmp_path))).start()
        for number in range(1, 10):
            stream.append({"k": number})
            run.catch_up(timeout=120)
        wait_for(lambda: len(looked) == 3 and min(looked.values()) >= 3)
        assert owners(run) == sharing(run) == {owner}
        assert run.status().workers == len(workers(run)) == 3
        first.close()
        stream.append({"k": 10})
        run.catch_up(timeout=120)
        wait_for(lambda: len(sharing(run)) == 1)  # who came second stands by again
        (other,) = owners(run)
        assert {other} == sharing(run) != {owner}
        wait_for(lambda: run.status().workers == 2)
        assert db.table("t").to_polars()["n"].to_list() == [1] * 11


def test_a_job_that_is_behind_is_shared_until_all_is_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "LIVE_BEHIND_S", 0.05)
    entered, go = str(tmp_path / "entered"), str(tmp_path / "go")

    def slow(frame: Any) -> None:
        Path(entered).touch()
        while not Path(go).exists():
            time.sleep(0.01)

    with of.connect(tmp_path / "space") as db, of.connect(tmp_path / "space") as other:
        stream = db.stream("s")
        stream.append({"k": 0})
        rows = db.read_stream("s", follow=True).group_by("k").agg(n=agg.count())
        run: Any = rows.for_each(slow, name="t").start(latency=0)
        wait_for(Path(entered).exists)
        stream.append({"k": 1})
        other.open_run("t").resume()  # type: ignore[union-attr]
        wait_for(lambda: len(sharing(run)) == 2)
        assert len(owners(run)) == 1
        Path(go).touch()
        wait_for(lambda: len(owners(run)) == 2)  # the slow one gives with its next commit
        run.catch_up(timeout=120)
        assert run.status().rows == 2
        both = owners(run)
        monkeypatch.setattr(config, "LIVE_BEHIND_S", 600.0)  # of a worker that begins
        monkeypatch.setattr(config, "LIVE_QUIET_S", 0.2)
        wait_for(lambda: len(owners(run)) == 1)
        assert sharing(run) == owners(run) == {min(both)}
        wait_for(lambda: run.status().workers == 2)
        stream.append_many([{"k": number} for number in range(20)])
        run.catch_up(timeout=120)
        assert run.status().rows == 22


def test_a_worker_that_cannot_read_leaves_its_share_to_one_that_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives, so nobody expires it, and it commits nothing, so it gives no lanes."""
    monkeypatch.setattr(config, "LIVE_BEHIND_S", 0.05)
    monkeypatch.setattr(WorkerObserver, "look", lambda *_: 0)  # as where it beats
    with of.connect(tmp_path) as db, of.connect(tmp_path) as other:
        stream = db.stream("s")
        stream.append({"k": 0})
        run: Any = counts(db).start(latency=0)
        run.catch_up(timeout=120)
        (stuck,) = owners(run)
        read = Inputs.read
        ((slot,),) = run._workers._slots.values()

        def broken(self: Inputs, *given: Any) -> Any:
            if threading.current_thread() is slot.thread:
                raise Unavailable("its disk does not answer")
            return read(self, *given)

        monkeypatch.setattr(Inputs, "read", broken)
        counts(other).start(latency=0)
        for number in range(1, 20):
            stream.append({"k": number})
        run.catch_up(timeout=120)
        assert stuck not in owners(run) and "" not in owners(run)
        assert db.table("t").to_polars()["n"].to_list() == [1] * 20
        wait_for(lambda: run.status().workers == 2)  # it stands by


def test_a_worker_that_is_being_made_shares_too_when_several_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, go = threading.Event(), threading.Event()
    init = JobWorker.__init__

    def slow(self: JobWorker, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        if not made.is_set():
            made.set()
            assert go.wait(120)

    monkeypatch.setattr(JobWorker, "__init__", slow)
    with of.connect(tmp_path) as db:
        db.stream("s").append({"k": 0})
        run: Any = counts(db).start(workers=1)
        assert made.wait(120)
        run.resume(workers=3)
        wait_for(lambda: len(sharing(run)) == 2)
        go.set()
        wait_for(lambda: len(sharing(run)) == 3)


def test_who_comes_second_stands_by_again(tmp_path: Path) -> None:
    """Two see that lanes have no owner, and both claim."""
    with of.connect(tmp_path) as db:
        db.stream("s").append({"k": 0})
        run: Any = counts(db).start(workers=0)
        first, second = Worker(run._job, 1), Worker(run._job, 1)

        class Part:
            name = "main"

        standby = Standby(second, [], 0.0, shares=False)
        first.claim("main")
        part: Any = Part()
        assert not standby._claims([part])
        assert (workers(run), owners(run)) == ({first.id}, {first.id})
        first.leave()
        assert standby._claims([part])
        assert (workers(run), owners(run)) == ({second.id}, {second.id})


def test_a_worker_that_stands_still_keeps_no_lanes_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives, owns nothing, and a part of what nobody owns is left to it: as a process that was stopped before its claim."""
    monkeypatch.setattr(WorkerObserver.__init__, "__defaults__", (1.0,))
    with of.connect(tmp_path) as db:
        stream = db.stream("s")
        stream.append({"k": 0})
        run = counts(db).start(workers=0)
        still, other = Worker(run._job, 1, "still"), Worker(run._job, 1, "other")
        for worker in (other, still):
            worker.claim(run._part.name)
        assert other.held(run._part.name) and not still.held(run._part.name)
        other.leave()
        run.resume(workers=1)
        run.catch_up(timeout=60)
        assert "still" not in workers(run) and "" not in owners(run)
        still.claim(run._part.name)  # it continues, and takes its share like one that is new
        assert "still" in sharing(run)


def test_a_worker_whose_steps_are_long_takes_over_from_one_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its steps takes most of a lease, and it looks at the other one between them only."""
    monkeypatch.setattr(config, "LEASE_S", 2.0)
    monkeypatch.setattr(WorkerObserver.__init__, "__defaults__", (2.0,))
    with of.connect(tmp_path) as db:
        stream = db.stream("s", partitions=8)
        stream.append({"k": 0})
        sink = db.read_stream("s", follow=True).for_each(lambda frame: time.sleep(1.5), name="slow")
        run: Any = sink.start(workers=0)
        still, other = Worker(run._job, 1, "still"), Worker(run._job, 1, "other")
        still.claim(run._part.name)
        other.claim(run._part.name)
        still.give(run._part.name)
        other.leave()
        assert owners(run) == {"still", ""}
        run.resume(workers=1)
        limit = time.monotonic() + 60
        while "still" in owners(run):
            assert time.monotonic() < limit
            stream.append_many([{"k": number} for number in range(32)], key="k")
            time.sleep(0.2)
        assert run.state == "running"
