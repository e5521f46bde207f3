"""Exceptions of signal handlers in the main thread while a live job is begun, ended or changed.

They come out as they are, the job is not failed by them, and the same call does what is left when it is called again.
"""

import itertools
import signal
import sys
import time
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.live.worker.job_worker import JobWorker
from onefold.compute.upkeep.keeper import Keeper
from onefold.state.fold.live import rows as live_rows

sys.path.insert(0, str(Path(__file__).parent))
from interrupted_program import INTERRUPTS

from support.traced import check_met, library_files

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
WAIT_S = 120
AT = datetime(2026, 1, 1, tzinfo=UTC)
ROWS = [{"k": f"k{number % 10}", "at": AT} for number in range(20)]
FILES = library_files(
    "compute/live/",
    "compute/live_runs.py",
    "compute/live_starting.py",
    "compute/bounded/histories.py",
    "compute/launching.py",
    "state/core/afterwards.py",
    "database/jobs.py",
)
RUNNING = "compute/live_runs.py"


class TimeIsUp(of.Timeout):
    """What a handler raises that takes the error of a wait for its own."""

    def __init__(self):
        super().__init__("the handler's time is up")


class Lost(of.Conflict):
    """What a handler raises that looks like a refusal."""

    def __init__(self):
        super().__init__("the handler's conflict")


KINDS = (*INTERRUPTS, TimeIsUp, Lost)


def handler(kind, _frame=None):
    raise kind


def wait_for(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def interrupts(prepare, call, *met):
    """Makes the call again and again, each time where ``prepare`` has made what it needs, interrupted where it first passes one
    line after the other; gives what was prepared and the place each time. ``met``: files that must have been passed."""
    kinds, seen = itertools.cycle(KINDS), set()
    call(prepare())  # what is imported, and kept from then on
    while True:
        hit, prepared = [], prepare()

        def trace(frame, event, _, hit=hit):
            name = frame.f_code.co_filename
            place = (name, frame.f_code.co_name, frame.f_lineno)
            if event in ("call", "line") and place not in seen and name.startswith(tuple(FILES)):
                seen.add(place)
                hit.append(place)
                sys.settrace(None)
                handler(next(kinds))
            return trace if "/onefold/" in name else None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            call(prepared)
        except KINDS:
            sys.settrace(before)
            if not hit:
                raise
        else:
            sys.settrace(before)
            if hit:
                pytest.fail(f"what the handler raised did not come out: {hit[0]}")
            assert len(seen) > 20
            check_met(met, (name for name, _, _ in seen))
            return
        yield prepared, hit[0]


class Space:
    """A space with a stream, and jobs whose workers have died between their commits and the forwarding."""

    def __init__(self, folder, monkeypatch):
        self.db = of.connect(folder / "space", shards=3)
        self.folder = folder
        self.numbers = itertools.count()
        self.db.stream("s", partitions=1).append_many(ROWS, key=None)
        pl.DataFrame({"at": [AT - timedelta(hours=1)], "k": ["k0"]}).write_parquet(folder / "past.parquet")
        monkeypatch.setattr(JobWorker, "_forward", lambda self: False)
        monkeypatch.setattr(JobWorker, "_give_back", lambda self: self.worker.leave())
        monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)  # what is left, the call itself must do

    def close(self):
        self.db.close()

    def counted(self):
        return self.db.read_stream("s", follow=True).group_by("k").agg(n=agg.count())

    def with_rows(self):
        """A job that has rows to send."""
        name = f"m{next(self.numbers)}"
        run = self.counted().into_map(name, key="k").start(latency=0)
        wait_for(lambda: run.status().rows == len(ROWS), "its rows are committed")
        self.db._live.workers.stop(run.name, 1)
        return run

    def stopped(self):
        run = self.with_rows()
        run._job.stop(1)
        return run

    def into_table(self):
        return self.counted().into(f"t{next(self.numbers)}")

    def over_history(self):
        live = self.db.read_stream("s", follow=True, event_time="at")
        both = self.db.concat(self.db.read_parquet(str(self.folder / "past.parquet")), live, at=AT)
        return both.group_by("k").agg(n=agg.count()).into(f"h{next(self.numbers)}")

    def is_settled(self, run):
        for shard in range(3):
            with self.db._state.view(shard) as view:
                heads = live_rows.outbox_heads(view, live_rows.generation_key(run.name, 1))
                if any(head.first != head.next for _, head in heads):
                    return False
        return len(self.db.map(run.name.removeprefix("map:"))) == 10


@pytest.fixture
def space(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGUSR1, handler)
    with closing(Space(tmp_path, monkeypatch)) as made:
        yield made
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("history", [False, True])
def test_a_start(space, history):
    prepare = space.over_history if history else space.into_table
    met = ("compute/live_starting.py", *(("bounded/histories.py", "launching.py") if history else ()))
    for job, place in interrupts(prepare, lambda job: job.start(workers=0), *met):
        with suppress(of.InvalidArgument):  # it was not begun yet
            assert space.db.open_run(job.name).state == "running", place
        run = job.start(workers=0)
        assert run.state == "running", place
        if history:
            assert [one.state for one in space.db.runs(table=f"{job.name}@history")] == ["running"], place
            space.db.open_run(job.name).cancel()


def test_a_stop(space):
    for run, place in interrupts(space.with_rows, lambda run: run.stop(), "worker/endings.py"):
        assert run.state in ("running", "stopped"), place
        assert run.stop().state == "stopped", place
        assert space.is_settled(run), place


def test_a_resume(space):
    for run, place in interrupts(space.stopped, lambda run: run.resume(workers=0), RUNNING):
        assert run.state in ("running", "stopped"), place
        assert run.resume(workers=0).state == "running", place


def test_a_drain(space, monkeypatch):
    monkeypatch.undo()  # its workers do all
    monkeypatch.setattr(Keeper, "start", lambda *_, **__: None)

    def running():
        return space.counted().into(f"d{next(space.numbers)}").start(latency=0)

    for run, place in interrupts(running, lambda run: run.stop(drain=True, timeout=WAIT_S), "job/waits.py"):
        assert run.state in ("running", "draining", "done"), place
        assert run.stop(drain=True, timeout=WAIT_S).state == "done", place


@pytest.mark.parametrize("history", [False, True])
def test_a_cancel(space, history):
    prepare = (lambda: space.over_history().start(workers=0)) if history else space.with_rows
    for run, place in interrupts(
        prepare, lambda run: run.cancel(), "worker/endings.py", "output/settling.py"
    ):
        assert run.state in ("running", "cancelled"), place
        run.cancel()
        assert run.state == "cancelled", place
        if history:
            assert [one.state for one in space.db.runs(table=f"{run.name}@history")] == ["cancelled"], place
        else:
            assert space.is_settled(run), place


@pytest.mark.parametrize("history", [False, True])
def test_a_drop(space, history):
    def with_history():
        return space.over_history().start(workers=0).stop()

    prepare = with_history if history else space.stopped
    drop = lambda run: space.db.drop(run.name)  # noqa: E731
    for run, place in interrupts(prepare, drop, "compute/live_starting.py", "live/names.py"):
        if run.exists:
            assert run.state in ("stopped", "cancelled"), place  # or half dropped
        space.db.drop(run.name)
        assert not run.exists, place
        assert not space.db.drop(run.name), place
        if not history:
            assert space.is_settled(run), place
        space.into_table()  # names are free again


def test_a_replay_and_its_swap(space):
    def begun():
        job = space.into_table()
        job.start(workers=0)
        return job

    for job, place in interrupts(begun, lambda job: job.replay(workers=0), "compute/live_starting.py"):
        with suppress(of.Conflict):  # it has begun
            job.replay(workers=0)
        assert [run.state for run in space.db.runs(table=job.name)] == ["running"] * 2, place

    def replaying():
        return begun().replay(workers=0)

    for again, place in interrupts(replaying, lambda run: run.swap(force=True), RUNNING):
        if again.role == "replay":
            again.swap(force=True)
        states = {run.role: run.state for run in space.db.runs(table=again.name)}
        assert states == {"current": "running", "replaced": "stopped"}, place
