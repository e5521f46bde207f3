"""README's second example: its two programs, as they are written, on the cluster that its own commands start and end."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
STATUSES = ("200", "200", "404", "500")
MARK = "--- {} ---"


def below(heading: str) -> str:
    return re.split(r"^## ", README.split(f"## {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def block(heading: str, kind: str) -> str:
    """The one block of a language below a heading."""
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", below(heading), re.MULTILINE | re.DOTALL)
    return str(found)


def commands() -> list[str]:
    """The lines that are to be typed, without what they say."""
    return [
        line.split("  #")[0].strip() for line in block("The same program on a cluster", "sh").splitlines()
    ]


class Typed(NamedTuple):
    """What came of the commands."""

    code: int
    said: dict[str, str]
    """By the command's first words: what it printed."""
    errors: str
    home: Path
    environment: dict[str, str]


pytestmark = pytest.mark.timeout(900)  # the first test types all commands


@pytest.fixture(scope="module")
def typed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """All of it in one shell, as a reader would; and the cluster's end, whatever happens."""
    home = tmp_path_factory.mktemp("home")
    (home / "job.py").write_text(block("A job", "python"))
    (home / "state.py").write_text(block("Shared state", "python"))
    (home / "logs" / "web").mkdir(parents=True)
    for at in range(8):
        with gzip.open(home / "logs" / "web" / f"{at}.log.gz", "wt") as file:
            file.writelines(f"GET /{line} status={STATUSES[(at + line) % 4]}\n" for line in range(500))
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}",
        "ONEFOLD_CACHE": str(home / "cache"),
    }
    lines = [f"echo '{MARK.format(line)}'\n{line}" for line in commands()[1:]]
    script = "set -e\n" + "\n".join([commands()[0], *lines])
    try:
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        parts = re.split(rf"^{MARK.format('(.*)')}\n", done.stdout, flags=re.MULTILINE)
        yield Typed(
            done.returncode, dict(zip(parts[1::2], parts[2::2], strict=True)), done.stderr, home, environment
        )
    finally:
        end = [sys.executable, "-m", "onefold.cli", "down", "--delete", "--dir", home / ".onefold-cluster"]
        subprocess.run(end, env=environment, capture_output=True, check=False)
        shutil.rmtree(home, ignore_errors=True)


def test_every_command_is_typed_and_ends_well(typed: Typed) -> None:
    assert typed.code == 0, typed.errors
    assert [line.split()[0] for line in commands()] == ["export", "python", *["onefold"] * 4]
    assert list(typed.said) == commands()[1:]
    assert "Traceback" not in typed.errors


def test_the_program_with_shared_state_says_the_same_as_without_a_cluster(typed: Typed) -> None:
    assert typed.said["python state.py"] == "{'to': 'bob'}\n"


def test_the_job_gives_what_plain_python_counts(typed: Typed) -> None:
    counts = Counter(STATUSES[(at + line) % 4] for at in range(8) for line in range(500))
    text = typed.errors + typed.said["onefold run job.py"]
    for status, n in counts.items():
        assert re.search(rf"^{status} +{n:,}$", text, re.MULTILINE), text
    assert "exact: every task is in" in text


def test_status_shows_servers_copies_nodes_and_the_run(typed: Typed) -> None:
    text = typed.said["onefold status"]
    for server in ("s1", "s2", "s3"):
        assert re.search(rf"^server +{server} .* up, ", text, re.MULTILINE), text
    for node in ("n1", "n2", "n3"):
        assert re.search(rf"^node +{node}  live", text, re.MULTILINE), text
    assert "0 running, 1 done, 0 failed" in text


def test_the_doctor_finds_all_well(typed: Typed) -> None:
    text = typed.said["onefold doctor"]
    assert "problem" not in text and "sync: s1, s2, s3 acknowledge what is on disk" in text, text


def test_down_ends_all_of_it_and_keeps_the_data(typed: Typed) -> None:
    ended = typed.said["onefold down"]
    for name in ("n1", "n2", "n3", "s1", "s2", "s3"):
        assert name in ended
    kept = typed.home / ".onefold-cluster"
    assert kept.is_dir()
    left = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            left += [path] if bytes(kept) in path.read_bytes() else []
    assert left == [], "something runs on"


def test_nothing_of_a_space_in_a_folder_was_made(typed: Typed) -> None:
    """The programs were on the cluster, not beside it."""
    assert not (typed.home / ".onefold").exists()
