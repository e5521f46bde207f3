"""``onefold demo``, small: real files, a real worker killed, the result checked by the demo itself and here."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onefold.cli.jobs import demo_job

pytestmark = pytest.mark.faults
LIBRARY = Path(sysconfig.get_path("stdlib"))


def demo(*args: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onefold.cli", "demo", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with some Python, one file of it broken."""
    folder = tmp_path / "files"
    for package in ("http", "json"):
        for path in (LIBRARY / package).glob("*.py"):
            (folder / package).mkdir(parents=True, exist_ok=True)
            (folder / package / path.name).write_bytes(path.read_bytes())
    (folder / "broken.py").write_text("def (:\n")
    (folder / "odd[name]*.py").write_text("x = 1\n")
    return folder


def test_a_worker_is_killed_and_nothing_differs(tmp_path: Path) -> None:
    result = demo("--megabytes", "3", "--workers", "2", "--json", "--dir", tmp_path / "space")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["same"]
    assert found["differences"] == []
    assert found["killed_pid"] is not None
    assert 2 * found["killed_after_tasks"] >= found["tasks"]
    assert found["retried"] >= 1
    assert f"killed worker {found['killed_pid']}" in result.stderr
    assert found["again"]["reused"] == found["again"]["total"]
    assert found["again"]["seconds"] < found["seconds"]
    # Seeded, so this is no matter of luck: 95 % are promised, and small groups are the ones withheld.
    assert found["intervals"]["held"] >= 0.8 * found["intervals"]["shown"] > 0
    assert found["bytes"] <= 3e6 < found["bytes_found"]


def test_the_counts_are_those_of_python_itself(files: Path, tmp_path: Path) -> None:
    result = demo("--paths", files, "--workers", "2", "--json", "--dir", tmp_path / "space")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    expected: Counter[str] = Counter()
    for path in files.rglob("*.py"):
        if path.name not in ("broken.py", "odd[name]*.py"):
            expected.update(type(node).__name__ for node in ast.walk(ast.parse(path.read_bytes())))
    expected[demo_job.UNPARSED] = 1
    assert found["unparsed"] == 1
    assert found["constructs"] == len(expected)
    assert [(row["construct"], row["n"]) for row in found["top"]] == sorted(
        expected.items(), key=lambda item: -item[1]
    )[:10]
    assert (tmp_path / "space").is_dir()


def test_without_a_terminal_it_tells_its_story_and_leaves_nothing(
    files: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    result = demo("--paths", files)
    assert result.returncode == 0, result.stderr
    assert "What is the Python on this machine made of?" in result.stdout
    assert "exactly" in result.stdout
    assert "nothing was left to do" in result.stdout
    assert "\x1b" not in result.stdout + result.stderr
    assert list((tmp_path / "tmp").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "tmp"]


def test_a_difference_is_found_and_named() -> None:
    plain = demo_job.PlainResult(Counter(a=6, b=1), Counter(a=2, b=1), 0.0)
    right = pl.DataFrame({"construct": ["b", "a"], "n": [1, 6], "files": [1, 2], "per_file": [1.0, 3.0]})
    assert demo_job.differences(right, plain) == []
    for wrong in (
        right.with_columns(n=pl.Series([1, 7])),
        right.with_columns(files=pl.Series([1, 1])),
        right.with_columns(per_file=pl.Series([1.0, 3.1])),
        right.head(1),
        right.with_columns(construct=pl.Series(["b", "c"])),
    ):
        assert demo_job.differences(wrong, plain)


def test_a_sample_is_seeded_and_keeps_its_size(files: Path) -> None:
    whole = demo_job.sample([files], 10**9)
    assert whole.whole
    assert all("[" not in path for path in whole.paths)
    part = demo_job.sample([files], 100_000)
    assert part == demo_job.sample([files], 100_000)
    assert 0 < part.size <= 100_000
    assert not part.whole
    assert set(part.paths) < set(whole.paths)
    assert demo_job.sample([files, files], 10**9) == whole


def test_no_files_is_a_failure_that_says_so(tmp_path: Path) -> None:
    result = demo("--paths", tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert "no Python files" in result.stderr
