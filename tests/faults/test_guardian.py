"""Programs that tests start end with the tests, also when those are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support import guardian

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not guardian.possible(), reason="processes cannot be watched here"),
]
TESTS = """
import os, subprocess, sys, time
sys.path.insert(0, sys.argv[1])
from support import guardian

guardian.watch()
endless = [sys.executable, "-S", "-c", "import time; print(flush=True); time.sleep(600)"]
parent = "import subprocess, sys, time; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); time.sleep(600)"
pids = []
for options in ({}, {"start_new_session": True}, {"env": {}}):
    program = subprocess.Popen(endless, stdout=subprocess.PIPE, **options)
    program.stdout.readline()
    pids.append(program.pid)
program = subprocess.Popen([sys.executable, "-S", "-c", parent, *endless], stdout=subprocess.PIPE)
pids += [program.pid, int(program.stdout.readline())]
child = os.fork()
if not child:
    os.setsid()
    time.sleep(600)
print(*pids, child, flush=True)
time.sleep(600 if sys.argv[2] == "killed" else 0)
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("how", ["killed", "ended"])
def test_all_that_tests_started_ends_with_them(how: str) -> None:
    command = [sys.executable, "-c", TESTS, str(Path(__file__).parents[1]), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        pids = [int(word) for word in tests.stdout.readline().split()]
        assert len(pids) == 6
        if how == "killed":
            assert all(running(pid) for pid in pids)
            tests.send_signal(signal.SIGKILL)
        end = time.monotonic() + 60
        while left := [pid for pid in pids if running(pid)]:
            assert time.monotonic() < end, f"{left} outlived the tests that started them"
            time.sleep(0.01)


def test_this_process_is_guarded_whatever_it_starts() -> None:
    """Every start of a program by any test comes by here, so none can be forgotten."""
    assert guardian.guarded()
    show = f"import os; print(os.environ[{guardian.VARIABLE!r}])"
    for environment in (None, {}, {guardian.VARIABLE: "another"}, {**os.environ}):
        shown = subprocess.run(
            [sys.executable, "-S", "-c", show], env=environment, capture_output=True, text=True, check=False
        )
        assert shown.stdout.strip() == os.environ[guardian.VARIABLE]
