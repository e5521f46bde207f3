"""Benchmarks of live jobs and regions run, with tiny sizes, and what they compare is equal. Their figures are not looked at."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHES = Path(__file__).parents[2] / "benches"


def ran(script: str, *options: str, folder: Path) -> str:
    """What it printed. It ends with 0 or 1: targets are met or missed."""
    done = subprocess.run(
        [sys.executable, str(BENCHES / script), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "ONEFOLD_BENCH_DIR": str(folder), "HOME": str(folder)},
    )
    assert done.returncode in (0, 1), done.stderr[-3000:]
    unexpected = [line for line in done.stderr.splitlines() if "has its first live job" not in line]
    assert not unexpected, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("script", "options", "verdicts"),
    [
        ("live_speed.py", "--only counts,append --events 20000 --keys 100 --runs 1", 2),
        ("live_state.py", "--only commit --keys 3000 --runs 1", 1),
        ("regions_fold.py", "--keys 2000 --rounds 1 --only registers,sets", 2),
        ("live_latency.py", "--seconds 0.4 --rate 500 --frame 20 --warm 0", 2),
    ],
)
def test_a_benchmark_prints_its_verdicts(script: str, options: str, verdicts: int, tmp_path: Path) -> None:
    printed = ran(script, *options.split(), folder=tmp_path)
    judged = [line for line in printed.splitlines() if "target" in line]
    assert len(judged) == verdicts, printed
    assert all(": met" in line or ": missed" in line for line in judged), printed
