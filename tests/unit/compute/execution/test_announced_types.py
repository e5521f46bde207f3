"""Announcing types: what it costs, and what becomes of a task whose announcement cannot be kept."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute.blobs.store import BlobsUnavailable
from onefold.compute.code.canonical.reduce_keys import is_float
from onefold.compute.execution import lost_results
from onefold.compute.execution.result_types import ResultTypes, _types_of, announcements
from onefold.compute.frames.common_types import common_schema
from onefold.compute.jobs import ops, state
from onefold.compute.plan.stages import Result
from onefold.compute.plan.type_sensitive import EXACT, Needs
from onefold.compute.tasks.found_types import Found, _numbers
from onefold.config import FAILURE_TEXT_CHARS_MAX
from support.in_process import functions_in_process  # noqa: F401
from support.typed_runs import Build, by_file, db_over_two_files, split_over, started  # noqa: F401

OWN: dict[str, tuple[Callable[[int], Any], Build]] = {
    "decimals": (lambda n: Decimal(10 ** (n % 9) + n), lambda rows: rows),
    "decimals in lists": (lambda n: [Decimal(10 ** (n % 9) + n)], lambda rows: rows),
    "wide numbers": (
        lambda n: 2**53 + 1 + 2 * n,
        lambda rows: rows.group_by().agg(n=agg.approx_n_unique("k")),
    ),
    "wide keys": (
        lambda n: 2**53 + 1 + 2 * n,
        lambda rows: rows.map_reduce(map=lambda r: [(r["k"], 1)], reduce=lambda _k, v: sum(v)),
    ),
}
"""Each task has values of its own, of the same types."""


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("case", OWN)
def test_tasks_with_the_same_types_announce_little(tmp_path: Path, case: str) -> None:
    value, build = OWN[case]
    tasks = 50
    split_over(tmp_path / "in", list(range(tasks)), tasks)
    with of.connect("memory://") as db:
        rows = db.read_text(str(tmp_path / "in" / "*.txt")).map(lambda r: {"k": value(int(r["line"]))})
        run = build(rows).into("t").start(workers=1, target_splits=tasks).wait(timeout=60)
        assert run.state == "done", run.errors()
        with run._engine.shard.view() as view:
            names, _ = state.announced(view, run.id)
            appends = view.offset
        assert 1 <= len(names) <= 10
        assert appends <= run.progress().total + len(names) + 5


def checked(run: of.Run, given: list[Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said of tasks of a program each that give these types."""
    engine = run._engine
    with engine.shard.view() as view:
        row = state.read_run(view, run.id)
    assert row is not None
    stored = engine.stored(row.plan)
    monkeypatch.setattr(ResultTypes, "_of", lambda _self, _stage, result: {"v": result})
    said = []
    for dtype in given:
        try:
            ResultTypes(engine, run.id, stored).check(0, dtype)
            said.append("")
        except of.InvalidValue as error:
            said.append(str(error))
    return said


def test_a_task_that_cannot_announce_its_types_fails(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(db, tmp_path)
    monkeypatch.setattr(config, "ANNOUNCEMENTS_PER_RUN_MAX", 2)
    given = [pl.Int8(), pl.Null(), pl.Int64(), pl.Int16(), pl.Float64(), pl.String()]
    said = checked(run, given, monkeypatch)
    assert said[:4] == [""] * 4  # of which two say more than those before
    assert all("too many different types" in text and "schema=" in text for text in said[4:])
    (outcome,) = run._engine.submit(ops.Unfit(run.id, "node", "no disk", 0))
    assert isinstance(outcome, ops.Accepted) and len(run.refusals()) == 1
    run._engine.submit(ops.Cancel(run.id))


def test_a_refused_announcement_fails_its_task(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(db, tmp_path)
    monkeypatch.setattr(config, "MEMBERS_KEPT", 2)
    for name in ("one", "two"):
        run._engine.submit(ops.Unfit(run.id, name, "no disk", 0))
    (said,) = checked(run, [pl.Int64()], monkeypatch)
    assert "could not be compared" in said
    run._engine.submit(ops.Cancel(run.id))


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("error", [BlobsUnavailable("the store is away"), None])
def test_a_result_that_could_not_be_read_once_is_compared_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BlobsUnavailable | None
) -> None:
    monkeypatch.setattr(config, "NODE_RETRY_S", 0.01)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_text("a\n")
    with of.connect("memory://") as db:
        rows = db.read_text(str(folder / "*.txt")).map(by_file).into("t")
        rows.run(progress=False, workers=1)
        (folder / "b.txt").write_text("b\n")
        read = ResultTypes._of
        reads: list[Result] = []

        def away_once(types: ResultTypes, stage: int, result: Result) -> Any:
            reads.append(result)
            if len(reads) == 2 and error is not None:  # after its own
                raise error
            return read(types, stage, result)

        monkeypatch.setattr(ResultTypes, "_of", away_once)
        run = rows.start(workers=1).wait(timeout=60)
        assert len(reads) >= 2 and run.state == "failed"
        assert "column 'v' mixes int, str" in str(run.errors()[0].message)


@pytest.mark.usefixtures("functions_in_process")
def test_tasks_done_before_a_run_was_resumed_are_compared(tmp_path: Path) -> None:
    split_over(tmp_path / "in", [0, 0], 2)
    works = tmp_path / "works"

    def k(record: dict[str, Any]) -> dict[str, Any]:
        if record["line"] == "1" and not works.exists():
            raise ValueError("not yet")
        return {"k": 9 if record["line"] == "0" else 9.0}

    with of.connect("memory://") as db:
        rows = db.read_text(str(tmp_path / "in" / "*.txt")).map(k)
        job = rows.map_reduce(map=lambda r: [(str(r["k"]), 1)], reduce=lambda _k, v: sum(v))
        for seed in range(20):  # an order in which the one that works comes first
            run = job.into(f"t{seed}").start(workers=1, seed=seed).wait(timeout=60)
            assert run.state == "failed"
            if run.progress().done:
                break
        assert run.progress().done == 1
        works.touch()
        run.resume(workers=1).wait(timeout=60)
        assert run.state == "failed"
        assert "column 'k', which the function" in str(run.errors()[-1].message)


def test_a_long_type_is_announced_in_parts() -> None:
    inner = pl.Struct({f"field {number}": pl.List(pl.Int64()) for number in range(2_000)})
    for dtype in (inner, pl.List(inner), pl.Struct({"a": pl.Struct({"b": pl.Array(inner, 3)})})):
        said = announcements(0, {"v": dtype})
        assert len(said) > 1 and all(len(text) <= FAILURE_TEXT_CHARS_MAX for text in said.values())
        assert common_schema(_types_of(text) for text in said.values()) == {"v": dtype}


WIDE: list[tuple[Any, list[int]]] = [
    (pl.Int64, [2**53, -(2**53), 2**60, -(2**63), 2**62 + 2**10]),
    (pl.Int64, [2**53 + 1]),
    (pl.Int64, [0, -(2**53) - 1]),
    (pl.Int64, [2**63 - 1]),
    (pl.UInt64, [2**63, 2**64 - 2**11]),
    (pl.UInt64, [2**64 - 1]),
    (pl.Int128, [-(2**127), 2**126]),
    (pl.Int128, [2**127 - 1]),
    (pl.UInt128, [2**127, 2**127 + 2**80]),
    (pl.UInt128, [2**128 - 1]),
    (pl.UInt128, [2**127 + 1]),
]


@pytest.mark.parametrize(("dtype", "numbers"), WIDE)
def test_numbers_that_no_float_holds_are_noted(dtype: Any, numbers: list[int]) -> None:
    held = all(map(is_float, numbers))
    what = _numbers(pl.Series("k", [*numbers, None], dtype=dtype))
    assert what == (["Null"] if held else ["not held"])


@pytest.mark.usefixtures("functions_in_process")
def test_a_lost_result_is_compared_when_it_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "PARTIAL_INLINE_BYTES_MAX", 10)
    (tmp_path / "a.txt").write_text("a\n")
    with of.connect(tmp_path / "space") as db:
        first = db.read_text(str(tmp_path / "*.txt")).map(by_file).into("t").run(progress=False, workers=1)
        engine = first._engine
        with engine.shard.view() as view:
            blob = state.results(view, first.id, 0)[0].result.blob
        assert blob is not None
        engine.blobs.path(blob).unlink()
        (tmp_path / "b.txt").write_text("b\n")
        with monkeypatch.context() as patch:  # it is lost after the submitter has looked
            patch.setattr(lost_results, "reopen", lambda *_: False)
            run = db.read_text(str(tmp_path / "*.txt")).map(by_file).into("t").start(workers=1)
            assert run.wait(timeout=60).state == "done" and run.progress().reused == 1
        run.resume(workers=1).wait(timeout=60)
        assert run.state == "failed"
        assert "column 'v' mixes int, str" in str(run.errors()[-1].message)


def test_a_chunk_that_is_run_in_another_way_is_noted_once() -> None:
    found = Found(0, {0: Needs({"k": EXACT})})
    found.take(0, pl.DataFrame({"k": [Decimal(10)]}))
    found.decimals(0, pl.DataFrame({"k": [Decimal(10)]}))
    found.form(0, "dicts", "the function")
    found.again()
    found.through()
    assert found.names() == []
    found.form(0, "bare values", "the function")
    found.through()
    assert len(found.names()) == 1
