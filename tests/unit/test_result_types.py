"""No order of two programs makes a run done whose tasks' types do not fit together."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold.compute.jobs import ops, state
from onefold.compute.result_types import ResultTypes, announcements
from onefold.config import FAILURE_TEXT_CHARS_MAX


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name}\n")
    with of.connect(tmp_path / "space") as db:
        yield db


def by_file(record: dict[str, Any]) -> dict[str, Any]:
    return {"v": 1 if record["line"] == "a" else "text"}


def started(db: of.Database, folder: Path) -> of.Run:
    rows = db.read_text(str(folder / "*.txt")).map(by_file)
    return rows.into("t").start(workers=0, target_splits=2)


class Hold:
    """Holds the tasks of all programs after their types were compared, until ``wanted`` are there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wanted: int) -> None:
        self.met: list[object] = []
        barrier = threading.Barrier(wanted)
        check = ResultTypes.check

        def held(types: ResultTypes, stage: int, result: Any) -> None:
            try:
                check(types, stage, result)
            finally:
                self.met.append(types)
                if len(self.met) <= wanted:
                    barrier.wait(60)

        monkeypatch.setattr(ResultTypes, "check", held)


def test_tasks_that_end_at_the_same_time_do_not_both_pass(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(db, tmp_path)
    hold = Hold(monkeypatch, 2)
    with of.connect(tmp_path / "space") as other:
        programs = [run, other.open_run(run.id)]
        for program in programs:
            program.resume(workers=1)
        for program in programs:
            program.wait(timeout=60)
    assert len(set(hold.met)) == 2
    assert run.state == "failed"
    assert "column 'v' is " in str(run.errors()[0].message)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whoever_compares_later_sees_it(
    db: of.Database, tmp_path: Path, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(db, tmp_path)
    engine = run._engine
    with engine.space.view() as view:
        row = state.read_run(view, run.id)
    assert row is not None
    stored = engine.stored(row.plan)
    given = [{"v": pl.Int64()}, {"v": pl.Null()}, {"v": pl.String()}]
    monkeypatch.setattr(ResultTypes, "_of", lambda _self, _stage, result: result)
    fits = {0, 1, 2}
    for number in order:
        types = ResultTypes(engine, run.id, stored)  # of another program each
        try:
            types.check(0, given[number])  # type: ignore[arg-type]
        except of.InvalidValue:
            fits.discard(number)
    assert order[0] in fits and len(fits & {0, 2}) == 1
    assert run.refusals() == []  # nothing that a person is shown
    engine.submit(ops.Cancel(run.id))


def test_the_same_types_are_announced_once(db: of.Database, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"{number}\n")
    rows = db.read_text(str(tmp_path / "*.txt")).map(lambda record: {"v": record["line"]})
    run = rows.into("t").run(progress=False, workers=1, target_splits=8)
    with run._engine.space.view() as view:
        assert len(state.announced(view, run.id)) == 1
    assert run.result().to_polars().height == 8


def test_types_of_many_columns_are_announced_in_parts() -> None:
    types = {f"column {number}": pl.List(pl.Int64()) for number in range(3_000)}
    said = announcements(0, types)
    assert len(said) > 1 and all(len(text) <= FAILURE_TEXT_CHARS_MAX for text in said.values())
