"""What the fault suite says where a tool or a right is missing: a reason for each fault, and none that only seems to happen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kit.cluster.nemesis import FAULTS
from kit.cluster.run import possible
from kit.cluster.stand import Stand

CABLES = {"cut-server", "cut-leader", "unplug-client", "one-way"}
SMALL_BYTES = 1_000_000


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are looked for; empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def failing(tools: Path, name: str, complaint: str) -> None:
    path = tools / name
    path.write_text(f"#!{sys.executable}\nimport sys\nsys.exit({complaint!r})\n")
    path.chmod(0o755)


@pytest.fixture
def process() -> Iterator[int]:
    """The process id of something that waits."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as waiting:
        yield waiting.pid


def on(pid: int) -> Any:
    """As much of a stand as a slow disk needs: the process of a server."""
    return SimpleNamespace(servers=SimpleNamespace(servers=[SimpleNamespace(pid=pid)]))


def test_without_tools_each_fault_that_needs_one_has_a_reason(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    stand = Stand(tmp_path / "stand", shards=1)
    assert stand._mount(SMALL_BYTES) is None
    shown, skipped = possible(stand)
    assert set(skipped) == CABLES | {"full-disk", "slow-disk"}
    assert set(shown) == set(FAULTS) - set(skipped)
    assert all("iproute2" in skipped[name] for name in CABLES)
    assert "`mount`" in skipped["full-disk"] and "strace" in skipped["slow-disk"]


def test_without_root_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    _, skipped = possible(Stand(tmp_path / "stand", shards=1))
    assert set(skipped) == CABLES | {"full-disk", "slow-disk"}
    assert all("root" in reason for reason in skipped.values())


def test_root_that_may_not_mount_or_trace_is_told_so(
    tools: Path, tmp_path: Path, process: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    failing(tools, "mount", "mount: permission denied")
    failing(tools, "strace", "attach: Operation not permitted")
    stand = Stand(tmp_path / "stand", shards=1)
    assert stand._mount(SMALL_BYTES) is None
    assert "permission denied" in possible(stand, ["full-disk"])[1]["full-disk"]
    assert "Operation not permitted" in possible(on(process), ["slow-disk"])[1]["slow-disk"]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("strace") is None, reason="needs root and strace (Debian: strace)"
)
def test_where_it_can_be_shown_nothing_is_left_behind(process: int) -> None:
    shown, skipped = possible(on(process), ["slow-disk"])
    if skipped:
        pytest.skip(skipped["slow-disk"])
    assert shown == ["slow-disk"]
    assert "TracerPid:\t0\n" in Path(f"/proc/{process}/status").read_text()
