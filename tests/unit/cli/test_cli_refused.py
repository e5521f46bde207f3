"""Wrong values on the command line: exit code 2 for what cannot be, one line that says why, and nothing is made."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import onefold as of
from onefold.cli.app import app
from support.command_line import ask

NUMBERS = ("9" * 400, "9" * 5000, "10000000000000000000", "-1", "1.5", "nan", "inf", "x", "", "1e400")
SPACE: dict[str, str | None] = {
    "up": None,
    "demo": None,
    "init": "nats://127.0.0.1:1/s",
    "node": "nats://127.0.0.1:1/s",
}
"""Where commands run that do not take any space."""
NEEDED = {
    "table": ["t"],
    "late": ["live"],
    "stream tail": ["s"],
    "stream append": ["s"],
    "ls": ["m"],
    "runs resume": ["run"],
    "replay": ["live", "program.py"],
    "run": ["program.py"],
    "restore": ["backup"],
}


def commands(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, one in group.commands.items():
        if hasattr(one, "commands"):
            yield from commands(one, f"{before}{name} ")
            if one.invoke_without_command:
                yield f"{before}{name}", one
        else:
            yield f"{before}{name}", one


COUNTS = [
    (name, option.opts[-1])
    for name, command in commands(typer.main.get_command(app))
    for option in command.params
    if option.min is not None or option.max is not None or "int" in str(getattr(option, "_bare_type", ""))
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "program.py").write_text("")
    with of.connect("space") as db:
        db.map("m")["k"] = 1
        db.stream("s").append(1)
    return tmp_path


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


@pytest.mark.parametrize(("command", "option"), COUNTS)
def test_every_number_has_bounds(folder: Path, command: str, option: str) -> None:
    before = sorted(folder.iterdir())
    for wrong in NUMBERS:
        if wrong == "1.5" and option in ("--level", "--megabytes"):
            continue
        url = SPACE.get(command, "space")
        ended = ask(*command.split(), *NEEDED.get(command, []), option, wrong, url=url)
        assert ended.returncode == 2, (wrong, ended.stderr)
        assert "Traceback" not in ended.stderr and ended.stdout == ""
        assert len(ended.stderr) < 6000 and option.lstrip("-") in ended.stderr
    assert sorted(folder.iterdir()) == before


def test_numbers_of_many_commands_are_found() -> None:
    assert {("table", "--top"), ("stream tail", "--lines"), ("up", "--nodes"), ("runs", "--limit")} <= {
        *COUNTS
    }
    assert len(COUNTS) >= 20


LINES: list[tuple[list[str], str, int]] = [
    (["put", "", "k", "v"], "", 2),
    (["put", "x" * 300, "k", "v"], "", 2),
    (["put", "m", "k", "v", "--ttl", "0s"], "", 2),
    (["put", "m", "k", "v", "--ttl", "9" * 400 + "s"], "", 2),
    (["put", "m", "k", "v", "--if-version", "x" * 5000], "", 2),
    (["put", "m", "k", "v", "--if-version", "1-1-1"], "", 1),
    (["put", "m", "k" * 20_000, "v"], "", 1),
    (["put", "m", "k", "v" * 2_000_000], "", 1),
    (["put", "m", "k", "-"], "v" * 2_000_000, 1),
    (["put", "m", "[" + "1" * 5000 + ".5]", "v"], "", 2),
    (["stream", "append", ""], "1\n", 2),
    (["stream", "append", "s"], "junk\n", 1),
    (["stream", "append", "s", "--key", "k"], '{"a": 1}\n', 1),
    (["stream", "append", "s", "--key", "k"], '{"k": 1.5}\n', 1),
    (["stream", "append", "s", "--partitions", "2000"], "1\n", 2),
    (["import", "no-export.jsonl"], "", 1),
    (["import", "-"], "junk\n", 1),
    (["import", "nix"], "", 1),
    (["get", "m", "k", "--at", "9" * 5000], "", 2),
    (["get", "m", "k", "--at", "of1.AAAA"], "", 2),
    (["watch", "m", "--from", "of1.AAAA"], "", 2),
    (["watch", "m", "--timeout", "9" * 5000 + "s"], "", 2),
    (["stream", "retain", "s", "9" * 400 + "s"], "", 2),
    (["restore", "nix", "--to", "0000-00-00"], "", 2),
]


@pytest.mark.parametrize(("words", "stdin", "code"), LINES, ids=lambda one: repr(one)[:40])
def test_a_refused_command_makes_no_space(
    folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], stdin: str, code: int
) -> None:
    (folder / "no-export.jsonl").write_text("junk\n")
    before = sorted(folder.iterdir())
    typed(monkeypatch, stdin)
    ended = ask(*words, url="new")
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.strip().splitlines()[-1]) < 500
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    "url",
    [
        "",
        " ",
        "~",
        "~/space",
        "sqlite:///",
        "sqlite:///x?mode=ro",
        "nats:/h/s",
        "postgres://h/x",
        "a\0b",
        "nats://h",
    ],
)
def test_a_url_that_cannot_be_is_wrong_usage(folder: Path, url: str) -> None:
    before = sorted(folder.iterdir())
    for words in (["put", "m", "k", "v"], ["get", "m", "k"], ["status"], ["stream", "ls"]):
        ended = ask(*words, url=url)
        assert ended.returncode == 2, ended.stderr
        assert ended.stderr.strip().splitlines()[-1].startswith("Error: Invalid value for --url: ")
    assert sorted(folder.iterdir()) == before


def test_what_makes_a_space_still_does(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask("put", "m", "k", "7", url="one").returncode == 0
    typed(monkeypatch, '{"k": "a"}\n' * 2500)
    assert ask("stream", "append", "s", "--key", "k", "--partitions", "3", url="two").returncode == 0
    assert ask("export", "file.jsonl", url="two").returncode == 0
    assert ask("import", "file.jsonl", url="three").returncode == 0
    with of.connect("one") as one, of.connect("three") as three:
        assert one.map("m")["k"] == 7
        assert len(three.stream("s")) == 2500 and three.stream("s").partitions == 3
