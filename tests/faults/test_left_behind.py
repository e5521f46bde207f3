"""A program that starts a job and ends without waiting or closing leaves claims that nobody has to wait for."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import pytest

import onefold as of
from onefold.compute.jobs import state
from onefold.compute.tasks import executor

PROGRAM = """
import onefold as of, os, sys, time
_, space, source, seen, gate = sys.argv
def slow(record):
    open(f"{seen}/{record['line']}", "w").close()
    while len(os.listdir(seen)) > 6 and not os.path.exists(gate): time.sleep(0.01)
    return record["line"]
db = of.connect(space)
run = db.read_text(source).map(slow).into("t").start(workers=2)
while run.progress().done < 2: time.sleep(0.01)
print(run.id)
"""


def test_claims_are_given_back_at_exit(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(12):
        (source / f"{number}.txt").write_text(f"{number}a\n{number}b\n")
    (tmp_path / "seen").mkdir()
    gate = tmp_path / "gate"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "space", source, tmp_path / "seen", gate],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    with of.connect(tmp_path / "space") as db:
        run = db.open_run(done.stdout.strip())
        assert run.state == "running", run.errors()
        with db._engine.shard.view() as view:
            assert state.claims(view, run.id) == []
        before = run.progress().done
        assert before >= 2
        gate.touch()
        assert run.resume(workers=1).wait(timeout=60).result().to_polars().height == 24
        assert run.progress().failed == 0


def test_a_task_that_meets_its_closed_worker_is_given_back_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    working = threading.Event()

    def run(self: executor.ProcessExecutor, *_: object) -> NoReturn:
        working.set()
        while not self.closed:
            time.sleep(0.001)
        raise of.SpaceError("this executor is closed")

    monkeypatch.setattr(executor.ProcessExecutor, "run", run)
    (tmp_path / "in.txt").write_text("a\n")
    with of.connect(tmp_path / "space") as db:
        started = db.read_text(tmp_path / "in.txt").map(str).into("t").start(workers=1)
        assert working.wait(60)
    with of.connect(tmp_path / "space") as db:
        assert db.open_run(started.id).state == "running"
