"""What type checkers know of the maps that a database gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
from dataclasses import dataclass
from typing import Any, assert_type

import onefold as of


@dataclass
class Cart:
    items: list[str]


def total(siblings: list[Cart]) -> int:
    return sum(len(cart.items) for cart in siblings)


def either(siblings: list[Any]) -> str:
    return str(siblings)


def program(db: of.Database, adb: of.aio.AsyncDatabase) -> None:
    assert_type(db.map("m"), of.Map[Any])
    assert_type(db.map("m", type=Cart, mode="consistent"), of.Map[Cart])
    assert_type(db.map("m", mode="available"), of.AvailableMap[Any, Any])
    assert_type(db.map("m", mode="available", type=Cart), of.AvailableMap[Cart, Cart])
    assert_type(db.map("m", mode="available", merge="fields", type=Cart), of.AvailableMap[Cart, Cart])
    assert_type(db.map("m", mode="available", merge="keep_both"), of.AvailableMap[list[Any], Any])
    both = db.map("m", mode="available", merge="keep_both", type=Cart)
    assert_type(both, of.AvailableMap[list[Cart], Cart])
    assert_type(db.map("m", mode="available", merge=either), of.AvailableMap[str, Any])
    merged = db.map("m", mode="available", merge=total, type=Cart)
    assert_type(merged, of.AvailableMap[int, Cart])
    both["a"] = Cart(["apple"])
    assert_type(both["a"], list[Cart])
    assert_type(both.get("a"), list[Cart] | None)
    assert_type(both.pop("a"), list[Cart])
    assert_type(both.modify("a", lambda siblings: Cart([])), list[Cart])
    merged.update({"a": Cart([])})
    assert_type(merged["a"], int)
    item = merged.get_item("a")
    assert item is not None
    assert_type(item.value, int)
    for key, value in merged.items():
        assert_type(value, int)
    for change in merged.watch():
        assert_type(change.value, int | None)
    assert_type(adb.map("m", mode="available", merge=total, type=Cart), of.aio.AsyncAvailableMap[int, Cart])
    assert_type(adb.map("m", type=Cart), of.aio.AsyncMap[Cart])
"""
WRONG = """
    both["b"] = [Cart([])]
    merged["b"] = 5
    db.map("m", mode="available", merge="newest")
    db.map("m", merge="fields")
"""


def errors_of(path: Path, text: str) -> list[str]:
    path.write_text(text)
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(path)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [line for line in said.splitlines() if ": error: " in line]


def test_a_merge_says_what_is_read_and_what_is_put(tmp_path: Path) -> None:
    assert errors_of(tmp_path / "right.py", PROGRAM) == []
    errors = errors_of(tmp_path / "wrong.py", PROGRAM + WRONG)
    lines = {int(error.split(":")[1]) for error in errors}
    first = PROGRAM.count("\n") + 2
    assert lines == set(range(first, first + 4)), errors
