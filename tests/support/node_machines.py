"""Machines that work on the runs of one embedded space, and a program that counts words on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import agg
from onefold.compute import runs
from onefold.compute.blobs.backends import DirectoryBackend
from onefold.compute.blobs.shared import SharedBlobs
from onefold.compute.engine import Engine
from onefold.compute.jobs import state
from onefold.compute.node_worker import NodeWorkers
from onefold.folds import folds as space_folds
from onefold.space.open_space import open_shards

PATIENCE_S = 60.0


def until(holds: Callable[[], Any], what: str = "it") -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)
    return found


@pytest.fixture(name="lines")
def lines_to_count(tmp_path: Path) -> str:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.txt").write_text("".join(f"w{i % 5}\n" for i in range(20 + number)))
    return str(folder / "*.txt")


def expected() -> dict[str, int]:
    found: dict[str, int] = {}
    for number in range(8):
        for i in range(20 + number):
            found[f"w{i % 5}"] = found.get(f"w{i % 5}", 0) + 1
    return found


def result(db: of.Database, table: str = "words") -> dict[str, int]:
    return dict(db.table(table).to_polars().select("line", "n").iter_rows())


def counting(
    db: of.Database, paths: str, fn: Callable[[Any], Any] | None = None, table: str = "words"
) -> Any:
    rows = db.read_text(paths)
    if fn is not None:
        rows = rows.map(fn)
    return rows.group_by("line").agg(n=agg.count()).into(table)


class Machine:
    """A machine of its own, but for the space's file: its blobs are in its own cache of a shared directory."""

    def __init__(self, tmp_path: Path, name: str, **options: Any) -> None:
        self.name = name
        self.notes: list[tuple[str, dict[str, Any]]] = []
        (tmp_path / "shared").mkdir(exist_ok=True)
        (space,) = open_shards(str(tmp_path / "space"), space_folds)
        self.blobs = SharedBlobs(tmp_path / f"cache-{name}", DirectoryBackend(tmp_path / "shared"))
        code = options.pop("code", "pickle")
        self.engine = Engine(space, blobs=self.blobs, code=code)
        self.workers = NodeWorkers(
            self.engine, node=name, note=lambda event, fields: self.notes.append((event, fields)), **options
        )

    def events(self, event: str) -> list[dict[str, Any]]:
        return [fields for found, fields in list(self.notes) if found == event]

    def close(self) -> None:
        self.workers.stop()
        self.engine.close()
        self.blobs.close()


@contextmanager
def machine(tmp_path: Path, name: str, *, start: bool = True, **options: Any) -> Iterator[Machine]:
    made = Machine(tmp_path, name, **options)
    try:
        if start:
            made.workers.start()
        yield made
    finally:
        made.close()


@pytest.fixture(name="db")
def submitting_program(tmp_path: Path) -> Iterator[of.Database]:
    """The submitting program; its blobs are shared as well, so that nodes can have them."""
    (tmp_path / "shared").mkdir(exist_ok=True)
    with of.connect(tmp_path / "space") as database:
        blobs = SharedBlobs(tmp_path / "cache-app", DirectoryBackend(tmp_path / "shared"))
        database._jobs = Engine(database._shard, blobs=blobs, owns_space=False)
        yield database


def workers_of(db: of.Database, run: runs.Run) -> set[str]:
    """Members that have a claim now."""
    with db._engine.shard.view() as view:
        return {claim.member for claim in state.claims(view, run.id)}
