"""``onefold node``: what it is not given right ends with wrong usage, before anything is opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

URL = "nats://127.0.0.1:1/space"


def node(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onefold.cli", "node", *arguments]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=cwd, env=environment, check=False
    )


@pytest.mark.moving(3)
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "a node needs a cluster"),
        (("--url", "folder"), "a node needs a cluster"),
        (("--url", URL, "--http", "x"), "--http takes HOST:PORT"),
        (("--url", URL, "--name", "a/b"), "a node's name has"),
        (("--url", URL, "--region", ""), "a region"),
        (("--url", URL, "--region", "eu.west"), "--region has"),
        (("--url", URL, "--snapshots", "file:///x"), "blobs cannot be kept"),
        (("--url", URL, "--workers", "-1"), "--workers"),
        (("--url", URL, "--code", "python"), "--code is pickle or reference"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = node(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert told in " ".join(done.stderr.split()), done.stderr
    assert not list(tmp_path.iterdir())


def test_no_server_is_told_without_the_password(tmp_path: Path) -> None:
    done = node("--url", "nats://node:hunter2@127.0.0.1:1/space", "--name", "n1", cwd=tmp_path)
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
