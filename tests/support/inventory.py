"""What the tests plant and break, one a line, so that two versions can be compared: ``python tests/support/inventory.py``.

Faults of the cluster's nemesis and of the simulation, bugs planted into the simulation, and every test that plants something.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from kit.bugs import BUGS
from kit.cluster.nemesis import FAULTS
from kit.remote_bugs import REMOTE_BUGS
from onefold.testing.sim.faults import Faults

ROOT = Path(__file__).parents[2]
PLANTED = "planted or caught or noticed or notice or no_bugs"


def planting_tests() -> list[str]:
    """Files and names of tests that plant a bug, with their parameters, but for the seeds that show it."""
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--import-mode=importlib", "-q"]
    listed = subprocess.run(
        [*command, "--collect-only", "-k", PLANTED, "tests"],
        cwd=ROOT,
        env={**os.environ, "ONEFOLD_TEST_DAY": "all"},
        capture_output=True,
        text=True,
        check=True,
    )
    found = [line.rpartition("/")[2] for line in listed.stdout.splitlines() if "::" in line]
    return sorted({re.sub(r"(?<=[-a-z\d])-\d+\]$", "]", line) for line in found})


def main() -> None:
    for kind, names in (
        ("fault of the cluster", FAULTS),
        ("fault of the simulation", [field.name for field in fields(Faults)]),
        ("bug of the simulation", BUGS),
        ("bug of the simulation without a replica", REMOTE_BUGS),
        ("test", planting_tests()),
    ):
        for name in sorted(names):
            print(f"{kind}: {name}")


if __name__ == "__main__":
    main()
