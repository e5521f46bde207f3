"""The tests may be started in the background (``nohup``, many CI runners), where SIGINT and other signals are ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)
WAITS = "import sys, time; print(flush=True); time.sleep(60)"


def ignore() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)


@pytest.mark.parametrize("number", IGNORED, ids=lambda number: number.name)
def test_signals_end_the_programs_that_tests_start(number: signal.Signals) -> None:
    assert signal.getsignal(number) is not signal.SIG_IGN
    with subprocess.Popen(
        [sys.executable, "-S", "-c", WAITS], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.send_signal(number)
        assert program.wait(120) == -number


@pytest.mark.parametrize("workers", [0, 1])
def test_a_suite_started_in_the_background_passes(workers: int, tmp_path: Path) -> None:
    tests = f"{Path(__file__).relative_to(ROOT)}::{test_signals_end_the_programs_that_tests_start.__name__}"
    command = [sys.executable, "-m", "pytest", "-n", str(workers), "-p", "no:cacheprovider", tests]
    kept = {name: text for name, text in os.environ.items() if not name.startswith(("PYTEST_", "TESTS_"))}
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'tmp'}"],
        cwd=ROOT,
        env=kept,
        preexec_fn=ignore,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{len(IGNORED)} passed" in done.stdout
