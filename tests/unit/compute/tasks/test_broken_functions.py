"""A function that is wrong for many records costs work in proportion to the records: calls and counted lines, never time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import onefold as of
from onefold import agg, config
from onefold.compute import sources
from onefold.compute.blobs.store import BlobStore
from onefold.compute.plan.nodes import Filter, FlatMap, Map, MapBatches, Node, Source
from onefold.compute.plan.stages import Branch, DeadLetter, RowsOutput, SourceLeaf, Stage, TaskInput
from onefold.compute.sources import places
from onefold.compute.tasks.failures import LocatedError
from onefold.compute.tasks.kernels import execute
from onefold.compute.tasks.pipeline import Pipeline
from onefold.compute.tasks.spec import TaskError, TaskSpec
from onefold.errors import JobFailed
from onefold.machine import members

NODE = Node()
ROWS = 4_096


class Counted:
    """Functions that count the records that they were given."""

    def __init__(self, broken: Callable[[int], bool]) -> None:
        self.seen = 0
        self._broken = broken

    def record(self, record: dict[str, Any]) -> dict[str, Any]:
        self.seen += 1
        if self._broken(record["i"]):
            raise ValueError("broken")
        return record

    def many(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        return [self.record(record)]

    def batch(self, frame: pl.DataFrame) -> pl.DataFrame:
        self.seen += frame.height
        if any(map(self._broken, frame["i"])):
            raise ValueError("broken")
        return frame


BROKEN: dict[str, Callable[[int], bool]] = {
    "all": lambda i: True,
    "every other": lambda i: i % 2 == 0,
    "every tenth": lambda i: i % 10 == 0,
    "half": lambda i: i >= ROWS // 2,
    "first": lambda i: i == 0,
    "last": lambda i: i == ROWS - 1,
    "some": lambda i: i in (7, 1_000, 1_001, 3_000),
    "none": lambda i: False,
}
STEPS: dict[str, Callable[[Counted], Any]] = {
    "map": lambda f: (Map(NODE, f.record),),
    "flat_map after filter": lambda f: (Filter(NODE, (pl.col("i") >= 0,)), FlatMap(NODE, f.many)),
    "map_batches": lambda f: (MapBatches(NODE, f.batch),),
}


@pytest.mark.parametrize("which", BROKEN)
@pytest.mark.parametrize("step", STEPS)
def test_skipping_looks_at_each_record_a_few_times(step: str, which: str) -> None:
    function = Counted(BROKEN[which])
    located: list[int] = []
    letters: list[DeadLetter] = []
    frame = pl.DataFrame({"i": range(ROWS)})

    def locate(row: int) -> str:
        located.append(row)
        return f"row {row}"

    pieces = Pipeline(STEPS[step](function), lambda _: pl.DataFrame()).run_tracked(
        frame, 0, locate, lambda letter, _: letters.append(letter), lambda *_: None
    )
    found = pl.concat(
        [piece for piece in pieces if isinstance(piece, pl.DataFrame) and piece.height] or [frame.clear()]
    )
    bad = [i for i in range(ROWS) if BROKEN[which](i)]
    assert found["i"].to_list() == [i for i in range(ROWS) if not BROKEN[which](i)]
    assert [letter.location for letter in letters] == [f"row {i}" for i in bad]
    assert located == bad, "places are asked for once each, in order"
    assert function.seen <= 4 * ROWS


@pytest.mark.parametrize("which", ["all", "every other", "half", "first", "last"])
@pytest.mark.parametrize("step", STEPS)
def test_failing_stops_at_the_first_record(step: str, which: str) -> None:
    function = Counted(BROKEN[which])
    located: list[int] = []
    first = next(i for i in range(ROWS) if BROKEN[which](i))

    def on_letter(letter: DeadLetter, kind: str) -> None:
        raise LocatedError(letter, kind)

    pieces = Pipeline(STEPS[step](function), lambda _: pl.DataFrame()).run_tracked(
        pl.DataFrame({"i": range(ROWS)}),
        0,
        lambda row: located.append(row) or f"row {row}",  # type: ignore[func-returns-value]
        on_letter,
        lambda *_: None,
        stop_at_first=True,
    )
    with pytest.raises(LocatedError) as caught:
        list(pieces)
    assert caught.value.letter.location == f"row {first}" and located == [first]
    assert function.seen <= (first + 1 if step != "map_batches" else 4 * ROWS)


def _spec(folder: Path, function: Callable[..., Any], **options: Any) -> tuple[TaskSpec, BlobStore]:
    (folder / "lines.txt").write_text("".join(f"line {i}\n" for i in range(900)))
    source = Source("text", (str(folder / "lines.txt"),))
    resolved = sources.resolve(source)
    units = tuple(sources.units_of(source, resolved, split_bytes=1 << 20, min_units=1))
    stage = Stage(0, (Branch(SourceLeaf(source, resolved.schema), (Map(NODE, function),)),), RowsOutput())
    return TaskSpec(stage, TaskInput(0, units), **options), BlobStore(folder / "blobs")


@pytest.mark.parametrize("isolate", [False, True])
def test_lines_are_counted_in_one_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolate: bool
) -> None:
    counted: list[places.Places] = []
    opened = 0
    init, lines = places.Places.__init__, places._lines

    def made(self: places.Places, source: Source) -> None:
        init(self, source)
        counted.append(self)

    def walk(*arguments: Any) -> Iterator[int]:
        nonlocal opened
        opened += 1
        return lines(*arguments)

    monkeypatch.setattr(places.Places, "__init__", made)
    monkeypatch.setattr(places, "_lines", walk)

    def wrong(_: dict[str, Any]) -> None:
        raise ValueError("wrong for every record")

    spec, blobs = _spec(tmp_path, wrong, skip_errors=True, isolate=isolate)
    result = execute(spec, blobs)
    assert [letter.location.rsplit("/", 1)[1] for letter in result.dead] == [
        f"lines.txt: line {i + 1}" for i in range(900)
    ]
    assert opened == 1 and sum(one.records for one in counted) == 900
    spec, blobs = _spec(tmp_path, wrong, isolate=isolate)
    with pytest.raises(TaskError) as caught:
        execute(spec, blobs)
    assert caught.value.failure.location.endswith("line 1")  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "text"])
def test_places_are_those_of_the_file(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / f"in.{kind}"
    path.write_text(
        {
            "csv": 'a,b\n1,"x\ny"\n2,z\n3,w\n',
            "jsonl": '{"a": 1}\n\n{"a": 2}\n{"a": 3}\n',
            "text": "a\nb\nc\n",
        }[kind]
    )
    source = Source(kind, (str(path),))
    (unit,) = sources.units_of(source, sources.resolve(source), split_bytes=1 << 20, min_units=1)
    wanted = {"csv": [2, 4, 5], "jsonl": [1, 3, 4], "text": [1, 2, 3]}[kind]
    walker = places.Places(source)
    for order in ([0, 1, 2], [2, 0, 1], [1, 1, 2]):
        assert [walker.locate(unit, row).rsplit(" ", 1)[1] for row in order] == [
            str(wanted[row]) for row in order
        ]
    assert "row 9 from byte" in walker.locate(unit, 8)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space") as db:
        yield db


def wrong_lines(db: of.Database, tmp_path: Path, lines: int) -> tuple[Any, Callable[[], int]]:
    """A job whose function is wrong for every line, and how often it was called, in whatever process."""
    (tmp_path / "in.txt").write_text("".join(f"{i}\n" for i in range(lines)))
    log = str(tmp_path / "calls")

    def wrong(record: dict[str, Any]) -> Any:
        with open(log, "a") as file:
            file.write("x")
        raise ValueError(f"no {record['line']}")

    job = db.read_text(tmp_path / "in.txt").map(wrong, schema={"value": pl.Int64})
    return job, lambda: Path(log).stat().st_size


def test_a_job_that_fails_stops_at_its_first_record(db: of.Database, tmp_path: Path) -> None:
    job, calls = wrong_lines(db, tmp_path, 16_000)
    with pytest.raises(JobFailed, match="no ") as caught:
        job.into("t").run(progress=False, workers=1)
    assert caught.value.record is not None and "line " in str(caught.value.location)
    assert calls() <= 2, "the first record of a task or two"
    (run,) = db.runs(table="t")
    assert 1 <= len(run.errors()) <= 2 and run.errors().complete
    assert run.progress().retried == 0


@pytest.mark.parametrize("step", ["map", "map_batches", "reduce"])
def test_a_function_is_not_tried_again(db: of.Database, tmp_path: Path, step: str) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    mark = tmp_path / "calls"

    def once(*given: Any) -> Any:
        with mark.open("a") as file:
            file.write("x")
        if step == "map_batches" or mark.stat().st_size > 1:
            raise ValueError("no")
        raise RuntimeError("the first time")

    rows = db.read_text(tmp_path / "in.txt")
    if step == "reduce":
        with pytest.raises(JobFailed):
            db.map_reduce(
                rows,
                map=lambda record: [(record["line"], 1)],
                reduce=once,
                into="t",
                workers=1,
            ).result()
    else:
        job = rows.map(once) if step == "map" else rows.map_batches(once)
        with pytest.raises(JobFailed):
            job.into("t").run(progress=False, workers=1)
    (run,) = db.runs(table="t")
    assert (run.progress().failed, run.progress().retried) == (1, 0)
    # A batch is tried once more in the same attempt, to tell which of its records it is.
    assert mark.stat().st_size <= (2 if step == "map_batches" else 1)


@pytest.mark.parametrize("kind", [MemoryError, ConnectionError, TimeoutError])
@pytest.mark.parametrize("step", ["map", "map_batches", "reduce"])
def test_what_may_pass_is_tried_again(
    db: of.Database, tmp_path: Path, step: str, kind: type[BaseException]
) -> None:
    (tmp_path / "in.txt").write_text("one\n")
    mark = tmp_path / "calls"

    def twice(*given: Any) -> Any:
        with mark.open("a") as file:
            file.write("x")
        if mark.stat().st_size <= (4 if step == "map_batches" else 2):
            raise kind("for a moment")
        return 1 if step == "reduce" else given[0]

    rows = db.read_text(tmp_path / "in.txt")
    if step == "reduce":
        run = db.map_reduce(
            rows,
            map=lambda record: [(record["line"], 1)],
            reduce=twice,
            into="t",
            workers=1,
        )
        run.wait()
    else:
        job = rows.map(twice) if step == "map" else rows.map_batches(twice)
        run = job.into("t").run(progress=False, workers=1)
    assert run.state == "done" and run.progress().failed == 2


def test_a_function_that_fails_in_passing_gets_another_call(db: of.Database, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("".join(f"{i}\n" for i in range(100)))
    mark = str(tmp_path / "met")

    def flaky(record: dict[str, Any]) -> dict[str, Any]:
        if record["line"] == "7" and not Path(mark).exists():
            Path(mark).touch()
            raise ConnectionError("the network was away for a moment")
        return record

    run = db.read_text(tmp_path / "in.txt").map(flaky).into("t").run(progress=False, workers=1)
    assert run.state == "done" and run.result().to_polars().height == 100


@pytest.mark.parametrize("kind", ["map", "map_batches", "expression", "group_by"])
def test_every_skipped_record_is_kept(db: of.Database, tmp_path: Path, kind: str) -> None:
    lines = 1_200
    job, calls = wrong_lines(db, tmp_path, lines)
    read = db.read_text(tmp_path / "in.txt")
    if kind == "map_batches":
        job = read.map_batches(
            lambda frame: frame.select(value=pl.col("line").str.slice(99).str.to_integer())
        )
    elif kind == "expression":
        job = read.with_columns(value=pl.col("line").str.slice(99).str.to_integer())
    sink = job.group_by("value").agg(n=agg.count()).into("t") if kind == "group_by" else job.into("t")
    run = sink.run(progress=False, workers=1, on_error="skip", seed=3)
    letters = run.dead_letters()
    assert letters.schema == dict.fromkeys(("location", "record", "error", "traceback"), pl.String)
    numbers = sorted(int(place.rsplit(" ", 1)[1]) for place in letters["location"])
    assert numbers == list(range(1, lines + 1)) and run.progress().skipped == lines
    errors = run.errors()
    assert errors.complete and len(errors) == lines and all(error.skipped for error in errors)
    if kind in ("map", "group_by"):
        assert calls() <= 3 * lines
        by_line = {int(error.location.rsplit(" ", 1)[1]): error for error in errors if error.location}
        assert by_line[42].message == "ValueError: no 41" and by_line[42].record == "{'line': '41'}"


@pytest.mark.parametrize("together", [False, True])
def test_a_program_of_an_earlier_release_has_the_space_open_too(
    db: of.Database, tmp_path: Path, together: bool
) -> None:
    folder = Path(db.url) / "members"
    older = members.Member(folder, "m_older", '{"pid": 1, "fold_version_max": 1}') if together else None
    job, _ = wrong_lines(db, tmp_path, 1_200)
    run = job.into("t").run(progress=False, workers=1, on_error="skip")
    with db._shards[0].view() as view:
        assert view.head().fold_version == (1 if together else 2)
    kept = 1_000 if together else 1_200
    assert run.progress().skipped == 1_200 and run.dead_letters().height == kept
    assert len(run.errors()) == kept and run.errors().complete is not together
    if older is not None:
        older.close()


def test_errors_say_when_they_are_not_all(
    db: of.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "ERRORS_PER_RUN_KEPT", 2)
    (tmp_path / "in.txt").write_text("".join(f"{i}\n" for i in range(100)))

    read = db.read_text(tmp_path / "in.txt")
    run = read.with_columns(n=pl.col("line").str.slice(9).str.to_integer()).into("t").start(workers=1)
    for _ in range(3):
        run.wait(timeout=60)
        assert run.state == "failed"
        run.resume(workers=1)
    run.wait(timeout=60)
    assert len(run.errors()) == 2 and not run.errors().complete


def test_many_tracebacks_do_not_fill_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DEAD_LETTER_TRACEBACKS_CHARS_MAX", 10_000)

    def wrong(record: dict[str, Any]) -> None:
        raise ValueError(record["line"])

    spec, blobs = _spec(tmp_path, wrong, skip_errors=True)
    dead = execute(spec, blobs).dead
    assert len(dead) == 900 and dead[0].traceback and not dead[-1].traceback
    assert dead[-1].error == "ValueError: line 899" and dead[-1].record
    assert sum(len(letter.traceback) for letter in dead) <= 10_000
