"""Every Python program in the README and the documents type-checks, and can be run twice in one folder."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import onefold as of

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
IMPORTS = "import onefold as of\n"
GIVEN = {
    "docs/asyncio.md": "",
    "docs/choosing.md": "",
    "docs/cluster.md": "url: str = ''",
    "docs/consistency.md": "url = 'space'\ndb = of.connect(url)\nm = db.map('m')\nm['k'] = 1",
    "docs/live-jobs.md": "",
    "docs/maps.md": "def apply(key: object, value: object) -> None: ...\ndef save(token: str) -> None: ...",
    "docs/queues.md": (
        "import polars as pl\ndb = of.connect()\n"
        "def send(value: object) -> None: ...\ndef write_report(*, fencing_token: int) -> None: ...\n"
        "frame = pl.DataFrame({'user': ['u1', 'u2'], 'price': [1, 2]})"
    ),
    "docs/regions.md": "",
    "docs/testing.md": (
        "def teller(db: of.Database) -> None: ...\ndef auditor(db: of.Database) -> None: ..."
    ),
    "docs/transactions.md": (
        "db = of.connect()\ndb.map('accounts')['alice'] = 100\norder_id = 'o-1'\n"
        "def transfer(tx: of.Transaction) -> None: ...\ndef order(tx: of.Transaction) -> None: ..."
    ),
}
"""What the text around a document's programs takes for granted."""
UNTYPED = ("docs/testing.md",)
"""Tests, whose arguments are fixtures."""
ENDLESS = {
    "docs/asyncio.md": ('timeout="5s"', "timeout=0"),
    "docs/maps.md": ("initial=True)", "initial=True, timeout=0.1)"),
    "docs/queues.md": ("follow=True):", "follow=False):"),
}
"""Where a program waits for ever, or for what this test has no time for."""
PATIENT = {
    "docs/queues.md": ('s.consumer("billing")', 's.consumer("billing", timeout=0.1)'),
}


def programs(name: str) -> list[str]:
    """The Python blocks of a document, in order."""
    text = (ROOT / name).read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def runnable(block: str) -> str:
    """What is awaited at the top stands in a function of its own."""
    if not block.startswith("async "):
        return block
    return (
        "import asyncio\n\n\nasync def program() -> None:\n"
        + textwrap.indent(block, "    ")
        + "\nasyncio.run(program())\n"
    )


def test_every_document_with_programs_is_known() -> None:
    with_programs = {name for name in DOCUMENTS if programs(name)}
    assert with_programs == {*GIVEN, "README.md", "docs/jobs.md", "docs/live-jobs.md"}


def test_all_programs_type_check(tmp_path: Path) -> None:
    files = []
    for name in DOCUMENTS:
        for number, block in enumerate(programs(name)):
            # Each block alone, after those that it stands upon.
            before = [] if name in ("README.md", "docs/cluster.md") else programs(name)[:number]
            options = "# mypy: allow-untyped-defs, allow-untyped-calls\n" if name in UNTYPED else ""
            parts = [IMPORTS, GIVEN.get(name, ""), *map(runnable, before), runnable(block)]
            path = tmp_path / f"{Path(name).stem.lower()}_{number}.py"
            path.write_text(options + "\n".join(parts))
            files.append(path)
    assert len(files) >= 17
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "pyproject.toml",
        "--disable-error-code=no-redef",
    ]
    checked = subprocess.run([*command, *files], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    files[0].write_text(files[0].read_text() + "db.no_such_method()\n")
    assert subprocess.run([*command, files[0]], cwd=ROOT, capture_output=True, check=False).returncode == 1


def test_the_programs_of_the_front_page_run_twice_in_one_folder(tmp_path: Path) -> None:
    """Each day: whoever comes types these first."""
    run_twice("README.md", tmp_path)
    with of.connect(str(tmp_path / ".onefold")) as db:
        assert dict(db.map("accounts")) == {"alice": 90, "bob": 10}
        assert db.table("statuses").get("200") == {"status": "200", "n": 1}
        counted = db.table("per_minute").to_polars(final=False)
        assert counted.select("page", "n").group_by("page").sum().rows() == [("/", 2)]


@pytest.mark.parametrize(
    "name",
    [
        "docs/asyncio.md",
        "docs/choosing.md",
        "docs/consistency.md",
        "docs/jobs.md",
        "docs/maps.md",
        "docs/queues.md",
        "docs/regions.md",
        "docs/transactions.md",
    ],
)
@pytest.mark.moving(6)
def test_programs_run_twice_in_one_folder(name: str, tmp_path: Path) -> None:
    run_twice(name, tmp_path)


def run_twice(name: str, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text("GET / status=200\nGET /x status=404\n")
    with gzip.open(tmp_path / "logs" / "b.log.gz", "wt") as file:
        file.write("GET / status=200\nGET /x status=404\n")
    (tmp_path / "sales").mkdir()
    with gzip.open(tmp_path / "sales" / "a.csv.gz", "wt") as file:
        file.write("zip,price,count\n01234,2.5,2\nK1A,1.0,3\n")
    environment = {key: text for key, text in os.environ.items() if not key.startswith("ONEFOLD_")}
    text = "\n".join([IMPORTS, GIVEN.get(name, ""), *map(runnable, programs(name))])
    for places in (ENDLESS, PATIENT):
        old, new = places.get(name, ("", ""))
        assert old in text
        text = text.replace(old, new) if old else text
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
