"""Workers of live jobs killed while they commit, or stopped for longer than a lease: every event counts once, in every sink."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

import onefold as of
from faults.live_worker import jobs
from onefold import config

pytestmark = pytest.mark.faults
WORKER = Path(__file__).with_name("live_worker.py")
START = datetime(2026, 1, 1, tzinfo=UTC)
LEASE_S = 1.0


def worker(folder: Path, seed: int = 0, *options: str) -> subprocess.Popen[bytes]:
    """A process that works on the jobs, once it does."""
    return subprocess.Popen(
        [sys.executable, WORKER, folder, str(LEASE_S), str(seed), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def up(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() in (b"up\n", b""), "it says that it is up, or dies before"


@contextmanager
def ended(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """All processes of the list are gone afterwards."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


class Events:
    """What was appended: in event time order up to the watermark's delay."""

    def __init__(self, db: of.Database, random: Random) -> None:
        self.random = random
        self.stream = db.stream("clicks", partitions=2)
        self.stream.create()
        self.rows: list[dict[str, Any]] = []

    def append(self) -> None:
        """A few more."""
        now = len(self.rows) / 20
        piece = [
            {
                "at": START + timedelta(seconds=round(now + self.random.random() * 4, 2)),
                "page": self.random.choice("abcdefgh"),
                "v": self.random.randrange(100),
            }
            for _ in range(self.random.randint(1, 40))
        ]
        self.stream.append_many(piece, key="page")
        self.rows += piece

    def by(self, group: Callable[[dict[str, Any]], Any]) -> Counter[tuple[Any, ...]]:
        """(group, count, sum) of each group."""
        groups: dict[Any, list[int]] = {}
        for row in self.rows:
            groups.setdefault(group(row), []).append(row["v"])
        return Counter((*key, len(values), sum(values)) for key, values in groups.items())

    def sessions(self) -> Counter[tuple[Any, ...]]:
        """(first event, page, count, sum) of each session."""
        found: dict[tuple[Any, str], list[int]] = {}
        for page in {row["page"] for row in self.rows}:
            last = begun = None
            for row in sorted((row for row in self.rows if row["page"] == page), key=lambda row: row["at"]):
                begun = row["at"] if last is None or row["at"] - last > timedelta(seconds=1) else begun
                last = row["at"]
                found.setdefault((begun, page), []).append(row["v"])
        return Counter((*key, len(values), sum(values)) for key, values in found.items())


def window(row: dict[str, Any]) -> tuple[Any, ...]:
    return START + (row["at"] - START) // timedelta(seconds=10) * timedelta(seconds=10), row["page"]


def check_once(db: of.Database, events: Events) -> None:
    """After all of it was read and every window is closed, each event is in each sink once."""
    runs = {name: job.start() for name, job in jobs(db).items()}
    for run in runs.values():
        run.stop(drain=True, timeout=120)
        status = run.status()
        assert (status.rows, status.late) == (len(events.rows), 0)
    names = ("window_start", "page", "n", "total")
    windows = events.by(window)
    assert Counter(db.table("windows").to_polars().select(names).rows()) == windows
    assert Counter(db.stream("out").to_polars().select(names).rows()) == windows
    assert Counter(db.table("sessions").to_polars().select(names).rows()) == events.sessions()
    pages = Counter((page, *row.values()) for page, row in db.map("pages").items())
    assert pages == events.by(lambda row: (row["page"],))


def commits(db: of.Database) -> int:
    return sum(run.status().commits for run in db.runs())  # type: ignore[attr-defined]


@pytest.mark.moving(8)
@pytest.mark.parametrize("seed", range(8))
def test_kills_in_commits_leave_each_event_counted_once(tmp_path: Path, seed: int) -> None:
    random = Random(seed)
    with of.connect(tmp_path) as db:
        events = Events(db, random)
        for job in jobs(db).values():
            job.start(workers=0)
        deaths, between = 0, []
        processes = [worker(tmp_path, random.randint(1, 1 << 30)) for _ in range(2)]
        at_work = list(processes)
        with ended(processes):
            before = 0
            limit = time.monotonic() + 120
            while deaths < 4:
                assert time.monotonic() < limit
                events.append()
                for process in [one for one in at_work if one.poll() is not None]:
                    assert process.returncode == -signal.SIGKILL
                    now = commits(db)
                    between.append(now - before)
                    before, deaths = now, deaths + 1
                    at_work.remove(process)
                    at_work.append(worker(tmp_path, random.randint(1, 1 << 30)))
                    processes.append(at_work[-1])
                time.sleep(random.random() * 0.02)
        assert sum(count > 0 for count in between) >= 2, f"commits happen between the kills: {between}"
        check_once(db, events)


def test_retention_takes_nothing_that_killed_workers_have_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "STREAM_MERGE_MS", 0)  # each append is a segment, which retention may remove
    random = Random(9)
    with of.connect(tmp_path) as db:
        events = Events(db, random)
        events.append()
        for job in jobs(db).values():
            job.start(workers=0)
        db.stream("clicks", partitions=2).set_retention("1ms")
        deaths = 0
        processes: list[subprocess.Popen[bytes]] = []
        with ended(processes):
            limit = time.monotonic() + 120
            while deaths < 2 or len(db.stream("clicks")) == len(events.rows):
                assert time.monotonic() < limit, "not killed, or nothing that was read is gone"
                if not processes or processes[-1].poll() is not None:
                    deaths += bool(processes)
                    processes.append(worker(tmp_path, random.randint(1, 1 << 30), "0"))
                events.append()
                time.sleep(0.05 + random.random() * 0.05)
        check_once(db, events)


def test_a_worker_stopped_beyond_the_lease_does_no_harm(tmp_path: Path) -> None:
    random = Random(7)
    with of.connect(tmp_path) as db:
        events = Events(db, random)
        processes = [worker(tmp_path) for _ in range(2)]
        with ended(processes):
            for process in processes:
                up(process)
            stopped = processes[0]
            taken = 0
            limit = time.monotonic() + 200
            while taken < 2:
                assert time.monotonic() < limit
                for _ in range(20):
                    events.append()
                stopped.send_signal(signal.SIGSTOP)
                try:
                    taken += _others_take_over(db, events)
                finally:
                    stopped.send_signal(signal.SIGCONT)
                events.append()
            assert stopped.poll() is None
        check_once(db, events)


def _others_take_over(db: of.Database, events: Events) -> bool:
    """Whether all is committed while a worker is stopped. Not where it was stopped while it held the lock of the space."""
    limit = time.monotonic() + 20 * LEASE_S
    held: set[str] = set()
    while time.monotonic() < limit:
        status = [run.status() for run in db.runs()]  # type: ignore[attr-defined]
        if all(one.rows == len(events.rows) and one.workers == 1 for one in status):
            return True
        held |= {one.held_by for one in status}
        time.sleep(0.05)
    return False


def test_workers_come_and_go_in_several_processes(tmp_path: Path) -> None:
    random = Random(8)
    with of.connect(tmp_path) as db:
        events = Events(db, random)
        processes: list[subprocess.Popen[bytes]] = []
        with ended(processes):
            for interrupted in (False, True):
                processes += [worker(tmp_path) for _ in range(2)]
                for process in processes[-2:]:
                    up(process)
                run = db.open_run("windows")
                limit = time.monotonic() + 120
                while run._moment().workers < 2 or len(_owners(run)) < 2:  # type: ignore[attr-defined]
                    assert time.monotonic() < limit
                    events.append()
                    time.sleep(0.02)
                for process in processes[-2:]:  # they give back what they hold, and are no workers any more
                    if interrupted:
                        process.send_signal(signal.SIGINT)
                        process.wait(120)
                    else:
                        process.communicate(b"\n", timeout=120)
                assert run._moment().workers == 0  # type: ignore[attr-defined]
                assert _owners(run) == {""}
        check_once(db, events)


def _owners(run: Any) -> set[str]:
    return {row.owner for row in run._moment().bundles}
