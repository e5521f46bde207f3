"""Runs whose tasks give values of types that may differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from support.in_process import functions_in_process  # noqa: F401

Build = Callable[[of.Dataset], Any]


@pytest.fixture(name="db")
def db_over_two_files(tmp_path: Path) -> Iterator[of.Database]:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    with of.connect(tmp_path / "space") as db:
        yield db


def by_file(record: dict[str, Any]) -> dict[str, Any]:
    return {"v": 1 if record["line"] == "a" else "text"}


def started(db: of.Database, folder: Path) -> of.Run:
    rows = db.read_text(str(folder / "*.txt")).map(by_file)
    return rows.into("t").start(workers=0, target_splits=2)


def split_over(folder: Path, values: list[Any], files: int) -> None:
    folder.mkdir()
    size = len(values) // files
    for number in range(files):
        lines = range(number * size, (number + 1) * size)
        (folder / f"{number}.txt").write_text("".join(f"{line}\n" for line in lines))
