"""No order of two programs makes a run done whose tasks' types do not fit together."""

from __future__ import annotations

import datetime as dt
import itertools
import random
import re
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg
from onefold.compute.blobs.store import BlobStore
from onefold.compute.execution import result_types
from onefold.compute.execution.result_types import ResultTypes, announcements
from onefold.compute.jobs import ops, state
from onefold.compute.plan.stages import MapOutput, PartialOutput, Result, RowsOutput, ShuffleOutput
from onefold.compute.plan.type_sensitive import EXACT, Needs
from onefold.compute.tasks import outputs
from onefold.compute.tasks.found_types import Found
from onefold.compute.tasks.python_steps import Values
from onefold.compute.tasks.reduce import PairCollector
from onefold.config import FAILURE_TEXT_CHARS_MAX
from onefold.errors import JobFailed
from support.in_process import functions_in_process  # noqa: F401
from support.typed_runs import Build, by_file, db_over_two_files, split_over, started  # noqa: F401


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


def run_by_two(run: of.Run, folder: Path) -> None:
    """Have two programs carry the run out at once."""
    with of.connect(folder / "space") as other:
        programs = [run, other.open_run(run.id)]
        for program in programs:
            program.resume(workers=1)
        for program in programs:
            program.wait(timeout=60)


def test_tasks_that_end_at_the_same_time_do_not_both_pass(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(db, tmp_path)
    hold = Hold(monkeypatch, 2)
    run_by_two(run, tmp_path)
    assert len(set(hold.met)) == 2
    assert run.state == "failed"
    assert "column 'v' mixes int, str" in str(run.errors()[0].message)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_whoever_compares_later_sees_it(
    db: of.Database, tmp_path: Path, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = started(db, tmp_path)
    engine = run._engine
    with engine.shard.view() as view:
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
    with run._engine.shard.view() as view:
        assert len(state.announced(view, run.id)[0]) == 1
    assert run.result().to_polars().height == 8


def test_types_of_many_columns_are_announced_in_parts() -> None:
    types = {f"column {number}": pl.List(pl.Int64()) for number in range(3_000)}
    said = announcements(0, types)
    assert len(said) > 1 and all(len(text) <= FAILURE_TEXT_CHARS_MAX for text in said.values())


# -- types that a task's own later steps depend on ---------------------------------------------------------------

VALUES: list[Any] = [9, 9, 9.0, 0.5]
BIG: list[Any] = [9, 2**53 + 1, 9.0, 0.5]
SENSITIVE: dict[str, tuple[list[Any], Build]] = {
    "text": (
        VALUES,
        lambda rows: rows.with_columns(t=pl.col("k").cast(pl.String)).group_by("t").agg(n=agg.count()),
    ),
    "odd": (BIG, lambda rows: rows.with_columns(t=pl.col("k") % 2 == 1).group_by("t").agg(n=agg.count())),
    "renamed first": (BIG, lambda rows: rows.select(j=pl.col("k")).filter(pl.col("j") % 2 == 1)),
    "filter": (BIG, lambda rows: rows.filter(pl.col("k") == 2**53).select("k")),
    "expression as key": (
        VALUES,
        lambda rows: rows.group_by(t=pl.col("k").cast(pl.String)).agg(n=agg.count()),
    ),
    "aggregate of an expression": (
        VALUES,
        lambda rows: rows.group_by().agg(n=agg.max(pl.col("k").cast(pl.String))),
    ),
    "function": (VALUES, lambda rows: rows.map(lambda r: {"t": str(r["k"])})),
    "function after an expression": (
        VALUES,
        lambda rows: rows.with_columns(z=pl.lit(1)).map(lambda r: {"t": str(r["k"])}),
    ),
    "batches": (
        VALUES,
        lambda rows: rows.map_batches(lambda frame: frame.select(pl.col("k").cast(pl.String))),
    ),
    "map_reduce": (
        VALUES,
        lambda rows: rows.map_reduce(map=lambda r: [(str(r["k"]), 1)], reduce=lambda _k, v: sum(v)),
    ),
    "join": (
        [9, 2**53 + 1, 9.0, 0.5],
        lambda rows: rows.join(rows.filter(pl.col("k") == 2**53), on="k").select("k"),
    ),
    "fold": (
        VALUES,
        lambda rows: rows.group_by().agg(
            n=agg.fold(lambda: "", lambda a, r: a + str(r["k"]), lambda a, b: a + b)
        ),
    ),
    "distinct": ([2**53, 2**53 + 1, 0.5, 0.5], lambda rows: rows.group_by().agg(n=agg.approx_n_unique("k"))),
    "null filled": (
        [None, None, 9.0, 0.5],
        lambda rows: rows.select(t=pl.col("k").fill_null(0).cast(pl.String)),
    ),
    "times": (
        [dt.timedelta(1), None, None, 3],
        lambda rows: rows.select(t=pl.col("k").cast(pl.Int64)),
    ),
}
"""Given ``k`` of these types in the first half of the lines and in the second, what follows sees the difference."""


def outcome(db: of.Database, folder: Path, values: list[Any], build: Build) -> list[Any] | str:
    """The rows, or the message of the error."""
    rows = db.read_text(str(folder / "*.txt")).map(lambda record: {"k": values[int(record["line"])]})
    try:
        run = build(rows).into("t").run(progress=False, workers=1, target_splits=8)
        return sorted(run.result().to_polars().rows(), key=repr)
    except (JobFailed, of.InvalidValue) as error:
        return str(error)


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("case", SENSITIVE)
def test_steps_that_see_types_give_one_result_or_an_error(tmp_path: Path, case: str) -> None:
    values, build = SENSITIVE[case]
    for files in (1, 2, 4):
        split_over(tmp_path / str(files), values, files)
        with of.connect("memory://") as db:
            found = outcome(db, tmp_path / str(files), values, build)
        if files == 1:
            one = found
        elif isinstance(found, str):
            if not isinstance(one, str):
                assert "column 'k', which the function" in found and "schema=" in found
        else:
            assert found == one


PLAIN: dict[str, tuple[list[Any], Build]] = {
    "grouped by": (
        VALUES,
        lambda rows: rows.group_by("k").agg(n=agg.count(), s=agg.sum("k"), m=agg.max("k")),
    ),
    "distinct": (VALUES, lambda rows: rows.group_by().agg(n=agg.approx_n_unique("k"))),
    "kept": (VALUES, lambda rows: rows.select("k")),
    "renamed": (VALUES, lambda rows: rows.select(j=pl.col("k")).group_by("j").agg(n=agg.count())),
    "as floats": (
        VALUES,
        lambda rows: rows.select(k=pl.col("k").cast(pl.Float64)).map(lambda r: str(r["k"])),
    ),
    "another column": (
        VALUES,
        lambda rows: rows.with_columns(z=pl.lit(2) + 1).group_by("z").agg(n=agg.count()),
    ),
    "nulls": ([None, None, 2, 3], lambda rows: rows.filter(pl.col("k") > 2).select("k")),
    "nulls to a function": ([None, None, 2, 3], lambda rows: rows.map(lambda r: {"t": str(r["k"])})),
    "wide numbers to a function": ([1, 2, 2**63, 3], lambda rows: rows.map(lambda r: {"t": str(r["k"])})),
}


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("case", PLAIN)
def test_steps_that_do_not_see_types_are_not_refused(tmp_path: Path, case: str) -> None:
    values, build = PLAIN[case]
    found = []
    for files in (1, 2, 4):
        split_over(tmp_path / str(files), values, files)
        with of.connect("memory://") as db:
            found.append(outcome(db, tmp_path / str(files), values, build))
    assert isinstance(found[0], list) and found == [found[0]] * 3


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("kept", [[0, 1], [2, 3]])
def test_results_of_earlier_runs_are_compared(tmp_path: Path, kept: list[int]) -> None:
    values, build = SENSITIVE["text"]
    folder = tmp_path / "in"
    folder.mkdir()
    with of.connect("memory://") as db:
        (folder / "0.txt").write_text("".join(f"{line}\n" for line in kept))
        assert isinstance(outcome(db, folder, values, build), list)
        (folder / "1.txt").write_text("".join(f"{line}\n" for line in range(4) if line not in kept))
        assert "column 'k', which the function" in str(outcome(db, folder, values, build))


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("case", ["text", "function", "map_reduce", "kept"])
def test_results_that_several_earlier_runs_left_are_compared(tmp_path: Path, case: str) -> None:
    build = {**SENSITIVE, **PLAIN}[case][1]
    for name, lines in (("whole", "0\n1\n"), ("floats", "2\n3\n"), ("broken", "no number\n")):
        (tmp_path / f"{name}.txt").write_text(lines)
    with of.connect("memory://") as db:

        def run(*names: str, seed: int = 7) -> of.Run:
            lines = db.read_text([str(tmp_path / f"{name}.txt") for name in names])
            rows = lines.map(lambda record: {"k": VALUES[int(record["line"])]})
            return build(rows).into("t").start(workers=1, target_splits=8, seed=seed)

        run("whole").result()
        failed = run("floats", "broken", seed=1).wait(timeout=60)  # in this order
        assert failed.state == "failed" and failed.progress().done == 1
        if case == "kept":  # whole numbers and floats may be in one column
            again = run("whole", "floats")
            assert again.progress().reused == again.progress().total
            assert sorted(again.result().to_polars()["k"]) == [0.5, 9, 9, 9]
            return
        runs = len(db.runs())
        if case == "map_reduce":  # its second stage has work to do, which compares
            assert run("whole", "floats").wait(timeout=60).state == "failed"
            return
        with pytest.raises(of.InvalidValue, match=r"'t' was not submitted: all its tasks were .* column 'k'"):
            run("whole", "floats")
        assert len(db.runs()) == runs


def test_what_supersedes_an_abandoned_run_is_compared(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tasks of that run may have ended since the first look."""
    head = started(db, tmp_path)
    (tmp_path / "c.txt").write_text("c\n")
    asked: list[bool] = []

    def check(_client: Any, operation: ops.Submit, _stored: Any) -> None:
        asked.append(operation.supersede)
        if operation.supersede:
            raise of.InvalidValue("they do not fit together")

    monkeypatch.setattr(result_types, "check_taken_over", check)
    monkeypatch.setattr(type(head._engine), "nobody_works", lambda _engine, _table: True)
    with pytest.raises(of.InvalidValue, match="do not fit together"):
        started(db, tmp_path)
    assert asked == [False, True] and head.state == "running" and len(db.runs()) == 1
    head.cancel()


def test_results_of_one_run_are_not_compared_again(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = db.read_text(str(tmp_path / "*.txt")).map(lambda record: {"v": record["line"]}).into("t")
    rows.run(progress=False, workers=1, target_splits=2)
    monkeypatch.setattr(result_types, "taken_over", None)
    (tmp_path / "b.txt").unlink()
    assert rows.run(progress=False, workers=1).progress().reused == 1


@pytest.mark.usefixtures("functions_in_process")
def test_records_with_other_columns_in_another_task(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = [{"a": 1}, {"a": 1}, {"a": 1, "b": 2}, {"a": 1}]
    found = []
    for files in (1, 2):
        split_over(tmp_path / str(files), given, files)
        with of.connect("memory://") as db:
            rows = db.read_text(str(tmp_path / str(files) / "*.txt")).map(lambda r: given[int(r["line"])])
            named = rows.filter(pl.col("a") > 0).select("a").into("named")
            assert named.run(progress=False, workers=1).result().to_polars().height == 4
            run = rows.map(lambda r: {"n": len(r)}).into("t").start(workers=1)
            run.wait(timeout=60)
            found.append(run)
            if files == 1:
                assert run.result().to_polars()["n"].to_list() == [2, 2, 2, 2]
            else:
                assert run.state == "failed"
                assert "gives the columns a" in str(run.errors()[0].message)


@pytest.mark.usefixtures("functions_in_process")
def test_types_of_steps_of_two_programs_at_once(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = db.read_text(str(tmp_path / "*.txt")).map(lambda r: {"k": 9 if r["line"] == "a" else 9.0})
    run = rows.select(t=pl.col("k").cast(pl.String)).into("t").start(workers=0, target_splits=2)
    hold = Hold(monkeypatch, 2)
    run_by_two(run, tmp_path)
    assert len(set(hold.met)) == 2
    assert run.state == "failed"
    assert "column 'k', which the function <lambda> of map gives, is " in str(run.errors()[0].message)


def test_notes_travel_with_every_kind_of_output(tmp_path: Path) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    frame = pl.DataFrame({"k": [1, 2]})
    found = Found(0, {0: Needs({"k": EXACT})})
    found.take(0, frame)
    found.through()
    for output in (RowsOutput(), ShuffleOutput(("k",), 2), PartialOutput((pl.col("k"),), ())):
        for names in ([], found.names()):
            held = outputs.collector(output, blobs, None, 0)
            held.add(frame, None)
            inline, blob, count = held.finish(names)
            part = Result(inline=inline, blob=blob, rows_out=count)
            assert outputs.head(part, output, blobs)[1] == names
            inline, blob, count = outputs.merge_parts(output, [part, part], blobs)
            assert outputs.head(Result(inline=inline, blob=blob), output, blobs)[1] == names
    mapped = MapOutput(lambda _r: [], None, 2)
    for spills in (0, 1, 2):
        pairs = PairCollector(mapped, blobs)
        for number in range(spills):
            pairs.add(Values([(number, 1)]), None)
            pairs._spill()
        if spills != 1:
            pairs.add(Values([("last", 1)]), None)
        _, blob, _ = pairs.finish(found.names())
        assert outputs.head(Result(blob=blob), mapped, blobs)[1] == found.names()


ANY: list[Any] = [
    9,
    9.0,
    0.5,
    None,
    2**53 + 1,
    2**53,
    float(2**53),
    2**63,
    -1,
    "x",
    [1],
    [1.5],
    [None],
    {"a": 1},
]
BUILDS: list[Build] = [
    lambda rows: rows.select(t=pl.col("k").cast(pl.String, strict=False)),
    lambda rows: rows.with_columns(j=pl.col("k").fill_null(0)).select(t=pl.col("j").cast(pl.String)),
    lambda rows: rows.with_columns(j=pl.col("k") * 2).map(repr),
    lambda rows: rows.map(repr),
    lambda rows: rows.group_by("k").agg(n=agg.count()),
    lambda rows: rows.group_by().agg(n=agg.approx_n_unique("k")),
    lambda rows: rows.map_reduce(map=lambda r: [(r["k"], 1)], reduce=lambda _k, v: sum(v)),
    lambda rows: rows.map_reduce(map=lambda r: [(r["k"], 1)], reduce=lambda k, _v: k).map(repr),
]


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("seed", range(16))
def test_random_values_give_one_result_or_an_error(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    values = rng.choices(ANY[:9] if rng.random() < 0.7 else ANY, k=4)
    build = BUILDS[seed % len(BUILDS)]
    found = []
    for files in (1, 4):
        split_over(tmp_path / str(files), values, files)
        with of.connect("memory://") as db:
            found.append(outcome(db, tmp_path / str(files), values, build))
    one, several = found
    assert isinstance(several, str) or several == one, (seed, values, found)


@pytest.mark.parametrize("other_type", [False, True])
def test_a_task_that_stands_between_compare_and_done_while_a_backup_ends(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other_type: bool
) -> None:
    """What the first attempt announced holds: the backup's result fits to it, or the run fails."""
    run = started(db, tmp_path)
    engine = run._engine
    with engine.shard.view() as view:
        row = state.read_run(view, run.id)
    assert row is not None
    stored = engine.stored(row.plan)
    monkeypatch.setattr(ResultTypes, "_of", lambda _self, _stage, result: {"v": types[result.rows_out]})
    types = {1: pl.Int64(), 2: pl.String() if other_type else pl.Int64()}

    def claimed(worker: str, backup: tuple[int, int, int] | None = None) -> ops.Assignment:
        (outcome,) = engine.submit(ops.Claim(run.id, worker, 1, backup))
        assert isinstance(outcome, ops.Accepted)
        (assignment,) = outcome.assignments
        return assignment

    def result(rows: int) -> Result:
        return Result(inline=None, blob=None, rows_out=rows)

    slow = claimed("one/0")
    ResultTypes(engine, run.id, stored).check(slow.stage, result(1))  # and then it is stopped
    backup = claimed("other/0", (slow.stage, slow.index, slow.epoch))
    assert (backup.stage, backup.index) == (slow.stage, slow.index)
    other = ResultTypes(engine, run.id, stored)
    if other_type:
        with pytest.raises(of.InvalidValue, match="column 'v' mixes int, str"):
            other.check(backup.stage, result(2))
        engine.submit(ops.Cancel(run.id))
        return
    other.check(backup.stage, result(2))
    (done,) = engine.submit(ops.Done(run.id, backup.stage, backup.index, backup.epoch, result(2)))
    assert isinstance(done, ops.Accepted)
    (late,) = engine.submit(ops.Done(run.id, slow.stage, slow.index, slow.epoch, result(1)))
    assert isinstance(late, ops.Refused) and late.code == "already_done"
    with engine.shard.view() as view:
        assert [one.result.rows_out for one in state.results(view, run.id, slow.stage).values()] == [2]
        assert not state.claims(view, run.id)
    engine.submit(ops.Cancel(run.id))


MIXED: dict[str, list[Any]] = {
    "text": [1, 1, "x", "x"],
    "bytes": [b"x", b"x", "x", "x"],
    "bool": [True, True, 1, 1],
    "float": [True, True, 0.5, 0.5],
    "in lists": [[1], [1], ["x"], ["x"]],
    "in lists of lists": [[[1]], [[1]], [["x"]], [["x"]]],
    "in dicts": [{"a": 1, "b": 1}, {"a": 1, "b": 1}, {"b": "x"}, {"b": "x"}],
    "lists": [[1], [1], 1, 1],
    "dicts": [{"a": 1}, {"a": 1}, "x", "x"],
    "zones": [
        dt.datetime(2024, 1, 1),
        dt.datetime(2024, 1, 1),
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, tzinfo=dt.UTC),
    ],
    "dates": [dt.date(2024, 1, 1), dt.date(2024, 1, 1), dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1)],
}


@pytest.mark.usefixtures("functions_in_process")
@pytest.mark.parametrize("case", MIXED)
def test_mixed_types_are_told_alike_in_one_split_and_several(tmp_path: Path, case: str) -> None:
    values = MIXED[case]
    said = []
    for files in (1, 2):
        split_over(tmp_path / str(files), values, files)
        with of.connect("memory://") as db:
            found = outcome(db, tmp_path / str(files), values, lambda rows: rows)
            assert isinstance(found, str)
            match = re.search(r"column '.*? mixes .*?schema=", found)
            assert match is not None, found
            said.append(match[0])
    assert said[0] == said[1]
