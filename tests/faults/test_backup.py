"""Slow and stopped workers: a backup finishes their task, and what they say when they wake up changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import onefold as of
from onefold import agg
from onefold.compute.jobs import state
from support.times import scaled

pytestmark = pytest.mark.faults


def texts(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.txt").write_text(f"a b file{number}\n" * 5)
    return folder


def expected(source: Path) -> Counter[str]:
    return Counter(word for path in source.glob("*.txt") for word in path.read_text().split())


def test_a_stopped_worker_gets_a_backup(tmp_path: Path) -> None:
    source, seen, go = texts(tmp_path / "in", 16), tmp_path / "seen", tmp_path / "go"
    seen.mkdir()

    def words(record: dict[str, str]) -> list[str]:
        """From the ninth file on they wait, so that both workers have a task when one of them is stopped."""
        import time

        found = record["line"].split()
        time.sleep(0.01)
        (seen / found[-1]).touch()
        while len(list(seen.iterdir())) > 8 and not go.exists():
            time.sleep(0.01)
        return found

    with of.connect(tmp_path / "space") as db:
        job = (
            db.read_text(f"{source}/*.txt").flat_map(words).group_by("value").agg(n=agg.count()).into("words")
        )
        run = job.start(workers=2)
        stopped = 0
        for snapshot in db.table("words").watch(timeout=60):
            if snapshot.done >= 6 and not stopped:
                stopped = run.worker_pids[0]
                os.kill(stopped, signal.SIGSTOP)
                go.touch()
        assert stopped
        run.wait(timeout=60)
        assert run.state == "done"
        assert Counter(dict(run.result().to_polars().iter_rows())) == expected(source)


PROGRAM = """
import onefold as of, sys, time
from onefold import agg
def words(record):
    time.sleep(0.02)
    return record["line"].split()
with of.connect(sys.argv[1]) as db:
    job = db.read_text(sys.argv[2] + "/*.txt").flat_map(words).group_by("value").agg(n=agg.count()).into("words")
    job.run(progress=False, workers=1)
"""


def test_a_stopped_program_is_taken_over_and_its_zombie_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole program is stopped (alive, silent); another one expires its claims after the lease and finishes; then
    the first wakes up and appends what it had in hand."""
    from onefold import config

    monkeypatch.setattr(config, "LEASE_S", scaled(2.0))
    source, space = texts(tmp_path / "in", 12), tmp_path / "space"
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, str(space), str(source)])
    try:
        with of.connect(space) as db:
            deadline = time.monotonic() + 60
            while not (db.runs() and db.runs()[0].progress().done >= 3):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            os.kill(program.pid, signal.SIGSTOP)
            run = db.runs()[0]
            run.resume(workers=1).wait(timeout=60)
            assert run.state == "done"
            counted = Counter(dict(run.result().to_polars().iter_rows()))
            assert counted == expected(source)
            os.kill(program.pid, signal.SIGCONT)
            assert program.wait(timeout=60) == 0
            assert Counter(dict(db.table("words").to_polars().iter_rows())) == counted
            with db._engine.shard.view() as view:
                assert not state.claims(view, run.id)
    finally:
        if program.poll() is None:
            program.kill()
            program.wait()
