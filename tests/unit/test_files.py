"""Files that appear whole or not at all, what is synced before and after, and that nobody else syncs by hand."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import onefold
from onefold import files

SOURCES = Path(onefold.__file__).parent
BY_HAND = re.compile(r"os\.fsync\(|os\.kill\([^,]+, 0\)")
WRITERS = {"files.py", "compute/blobs/store.py"}
"""A blob is synced by the descriptor that it is written through."""


@pytest.fixture
def order(monkeypatch):
    """What is synced and renamed, in order, as names below the test's folder."""
    seen: list[tuple[str, str]] = []
    rename = Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: seen.append(("sync", Path(f"/proc/self/fd/{fd}").readlink().name))
    )
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (seen.append(("rename", Path(to).name)), rename(self, to))[1]
    )
    return seen


def test_a_whole_file_is_synced_then_named_then_its_folder_is_synced(tmp_path, order):
    files.write_whole(tmp_path / "a", b"new")
    (what, half), *rest = order
    assert what == "sync"
    assert half.startswith(".a.")
    assert rest == [("rename", "a"), ("sync", tmp_path.name)]
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    files.write_whole(tmp_path / "a", b"old")

    def fail():
        with files.whole_file(tmp_path / "a") as half:
            half.write_bytes(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_its_mode_from_the_first_byte(tmp_path, mode, monkeypatch):
    seen = []
    sync = files.sync
    monkeypatch.setattr(
        files, "sync", lambda path: (seen.append(stat.S_IMODE(path.stat().st_mode)), sync(path))
    )
    files.write_whole(tmp_path / "a", b"secret", mode)
    assert seen[0] == mode
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_tree_is_synced_from_its_files_to_its_root(tmp_path, order):
    (tmp_path / "t" / "b").mkdir(parents=True)
    (tmp_path / "t" / "b" / "c").touch()
    (tmp_path / "t" / "link").symlink_to("nowhere")
    files.sync_tree(tmp_path / "t")
    assert order[-1] == ("sync", "t")
    assert sorted(name for _, name in order) == ["b", "c", "t"]


def test_a_process_lives_until_it_has_been_cleared_away():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert files.process_lives(child.pid)
    child.communicate()
    assert not files.process_lives(child.pid)
    assert files.process_lives(os.getpid())


def test_nobody_else_syncs_or_looks_for_processes_by_hand():
    found = [
        f"{path.relative_to(SOURCES)}:{number}: {line.strip()}"
        for path in sorted(SOURCES.rglob("*.py"))
        if str(path.relative_to(SOURCES)) not in WRITERS
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if BY_HAND.search(line)
    ]
    assert not found
