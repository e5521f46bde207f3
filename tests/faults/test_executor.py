"""Worker processes: whatever a function does to its process, the executor says what happened and goes on."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onefold import agg
from onefold.compute import functions, outputs, sources
from onefold.compute.blobs import BlobMissing, BlobStore
from onefold.compute.executor import InlineExecutor, ProcessExecutor
from onefold.compute.plan import FlatMap, Map, MapBatches, Node, Source
from onefold.compute.stages import (
    Branch,
    MapOutput,
    Output,
    PartialOutput,
    ReduceLeaf,
    Result,
    RowsOutput,
    ShuffleOutput,
    SourceLeaf,
    Stage,
    TaskInput,
    Unit,
)
from onefold.compute.tasks import TaskError, TaskSpec
from onefold.errors import SpaceError

pytestmark = pytest.mark.faults
ROWS = 10_000
NODE = Node()


class Bench:
    """A file of numbered lines, read by whatever step is under test in one worker process."""

    def __init__(self, folder: Path) -> None:
        path = folder / "numbers.txt"
        path.write_text("".join(f"line {i}\n" for i in range(ROWS)))
        self.blobs = BlobStore(folder / "blobs")
        source = Source("text", (str(path),))
        resolved = sources.resolve(source)
        self.leaf = SourceLeaf(source, resolved.schema)
        self.units: tuple[Unit, ...] = tuple(
            sources.units_of(source, resolved, split_bytes=1 << 30, min_units=1)
        )
        self.executors: list[ProcessExecutor] = []

    def stage(self, *steps: Any, output: Output | None = None) -> Stage:
        return Stage(0, (Branch(self.leaf, steps),), output or RowsOutput())

    def start(self, *stages: Stage) -> ProcessExecutor:
        executor = ProcessExecutor(functions.dump(stages), self.blobs.directory)
        self.executors.append(executor)
        return executor

    def run(self, stage: Stage, executor: ProcessExecutor | None = None, **options: Any) -> Result:
        executor = executor or self.start(stage)
        return executor.run(TaskSpec(stage, TaskInput(0, self.units), **options))

    def failure(self, fn: Callable[[dict[str, Any]], Any], **options: Any) -> Any:
        with pytest.raises(TaskError) as caught:
            self.run(self.stage(Map(NODE, fn)), **options)
        return caught.value.failure

    def frame(self, result: Result) -> pl.DataFrame:
        frame = outputs.load_frame(result, self.blobs)
        assert frame is not None
        return frame


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    pids = [executor.pid for executor in made.executors]
    for executor in made.executors:
        executor.close()
    assert all(pid is None or not alive(pid) for pid in pids)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def number(record: dict[str, Any]) -> int:
    return int(record["line"].split()[1])


# -- what works ---------------------------------------------------------------------------------------------------------


def test_worker_and_this_process_give_the_same(bench: Bench) -> None:
    output = PartialOutput((pl.col("value"),), (("n", agg.count()),))
    stage = bench.stage(FlatMap(NODE, lambda record: list(record["line"])), output=output)
    reported: list[int] = []
    executor = bench.start(stage)
    result = executor.run(TaskSpec(stage, TaskInput(0, bench.units)), reported.append)
    inline = InlineExecutor([stage], bench.blobs).run(TaskSpec(stage, TaskInput(0, bench.units)))
    assert (result.inline, result.blob, result.rows_in) == (inline.inline, inline.blob, ROWS)
    assert result.bytes_in == bench.units[0].cost
    assert executor.pid is not None and alive(executor.pid)
    assert all(0 < rows <= ROWS for rows in reported)


def test_randomness_comes_from_the_seed(bench: Bench) -> None:
    def draw(_record: dict[str, Any]) -> float:
        import random

        import numpy as np

        return random.random() + float(np.random.random())

    stage = bench.stage(Map(NODE, draw))
    executor = bench.start(stage)
    first, again, other = (bench.run(stage, executor, seed=seed) for seed in (2**64 - 1, 2**64 - 1, 8))
    assert first.blob == again.blob != other.blob


def test_huge_results_go_to_blobs_and_prints_to_stderr(
    bench: Bench, capfd: pytest.CaptureFixture[str]
) -> None:
    def chatty(record: dict[str, Any]) -> str:
        if number(record) == 5:
            print("said on stdout")
            assert sys.stdin.read() == ""
        return os.urandom(5_000).hex()

    result = bench.run(bench.stage(Map(NODE, chatty)))
    assert result.inline is None
    assert bench.frame(result)["value"].str.len_bytes().sum() == ROWS * 10_000
    seen = capfd.readouterr()
    assert "said on stdout" in seen.err and seen.out == ""


def test_a_missing_blob_of_an_earlier_task_is_named(bench: Bench) -> None:
    stage = Stage(0, (Branch(ReduceLeaf(1, lambda key, values: 1, 2)),), RowsOutput(), (1,))
    executor = bench.start(stage)
    name = "ab" * 32
    with pytest.raises(BlobMissing) as caught:
        executor.run(TaskSpec(stage, TaskInput(0, partition=0), inputs={1: [Result(blob=name)]}))
    assert caught.value.name == name


# -- exceptions ---------------------------------------------------------------------------------------------------------


class Evil(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError("no text either")


def test_an_exception_names_record_place_and_the_users_lines(bench: Bench) -> None:
    def broken(record: dict[str, Any]) -> int:
        if number(record) == 6_789:
            raise LookupError("no such thing")
        return 1

    failure = bench.failure(broken)
    assert failure.message == "LookupError: no such thing" and failure.kind == "LookupError"
    assert failure.record == "{'line': 'line 6789'}"
    assert failure.location.endswith("numbers.txt: line 6790")
    assert 'raise LookupError("no such thing")' in failure.traceback
    assert "onefold/compute" not in failure.traceback
    assert not failure.died and not failure.final
    assert bench.failure(broken, isolate=True).final


def test_odd_exceptions(bench: Bench) -> None:
    def evil(_record: dict[str, Any]) -> None:
        raise Evil(1, 2)

    def endless(record: dict[str, Any]) -> Any:
        return endless(record)

    def leaves(_record: dict[str, Any]) -> None:
        sys.exit(3)

    def interrupts(_record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    executor_kinds = [bench.failure(fn).kind for fn in (evil, endless, leaves, interrupts)]
    assert executor_kinds == ["Evil", "RecursionError", "SystemExit", "KeyboardInterrupt"]


def test_skipping_keeps_the_rest(bench: Bench) -> None:
    def broken(record: dict[str, Any]) -> int:
        if number(record) % 1000 == 7:
            raise ValueError(number(record))
        return number(record)

    result = bench.run(bench.stage(Map(NODE, broken)), skip_errors=True)
    assert [letter.error for letter in result.dead] == [f"ValueError: {i}" for i in range(7, ROWS, 1000)]
    assert result.dead[1].location.endswith("line 1008")
    assert bench.frame(result)["value"].to_list() == [i for i in range(ROWS) if i % 1000 != 7]
    failure = bench.failure(broken, skip_errors=True, dead_letters_max=3)
    assert failure.final and "more than 3 records" in failure.message


def test_plans_that_cannot_be_loaded(bench: Bench, tmp_path: Path) -> None:
    stage = bench.stage(Map(NODE, len))
    for plan in (b"garbage", functions.dump((stage,))[:-20]):
        executor = ProcessExecutor(plan, bench.blobs.directory)
        with pytest.raises(TaskError, match="cannot load the plan") as caught:
            bench.run(stage, executor)
        assert caught.value.failure.final
        assert executor.pid is None
        executor.close()


# -- deaths -------------------------------------------------------------------------------------------------------------


def crashes_at(*bad: int) -> Callable[[dict[str, Any]], int]:
    def crash(record: dict[str, Any]) -> int:
        if number(record) in bad:
            ctypes.string_at(0)
        return number(record)

    return crash


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda record: os._exit(9), "exited with status 9"),
        (lambda record: os.kill(os.getpid(), signal.SIGKILL), "killed by SIGKILL (out of memory?)"),
        (lambda record: ctypes.string_at(0), "killed by SIGSEGV"),
        (lambda record: os.closerange(3, 100) or time.sleep(0.1), "killed by|exited"),
    ],
)
def test_deaths_are_told_apart_and_the_next_task_runs(bench: Bench, how: Any, message: str) -> None:
    broken, good = bench.stage(Map(NODE, how)), bench.stage(Map(NODE, number))
    good = Stage(1, good.branches, good.output)
    executor = bench.start(broken, good)
    with pytest.raises(TaskError) as caught:
        bench.run(broken, executor)
    failure = caught.value.failure
    assert failure.died and not failure.final and failure.kind == "WorkerDied"
    assert any(part in failure.message for part in message.split("|")), failure.message
    assert bench.run(good, executor).rows_in == ROWS


def test_kill_9_from_outside_is_noticed_at_once(bench: Bench) -> None:
    started = bench.blobs.directory.parent / "started"

    def slow(_record: dict[str, Any]) -> None:
        started.touch()
        time.sleep(60)

    stage = bench.stage(Map(NODE, slow))
    executor = bench.start(stage)
    killed_at: list[float] = []

    def kill() -> None:
        wait_until(started.exists)
        assert executor.pid is not None
        killed_at.append(time.monotonic())
        os.kill(executor.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(TaskError) as caught:
        bench.run(stage, executor)
    assert time.monotonic() - killed_at[0] < 2
    thread.join()
    assert caught.value.failure.died


def test_death_is_noticed_while_a_forked_child_holds_the_socket(bench: Bench) -> None:
    child_pid = bench.blobs.directory.parent / "child"

    def forks(_record: dict[str, Any]) -> None:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        child_pid.write_text(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        began = time.monotonic()
        assert bench.failure(forks).died
        assert time.monotonic() - began < 20
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child_pid.read_text()), signal.SIGKILL)


def test_close_ends_a_running_task(bench: Bench) -> None:
    started = bench.blobs.directory.parent / "started"

    def slow(_record: dict[str, Any]) -> None:
        started.touch()
        time.sleep(60)

    stage = bench.stage(Map(NODE, slow))
    executor = bench.start(stage)

    def close() -> None:
        wait_until(started.exists)
        executor.close()

    thread = threading.Thread(target=close)
    thread.start()
    with pytest.raises(TaskError, match="closed") as caught:
        bench.run(stage, executor)
    thread.join(20)
    assert caught.value.failure.died and executor.pid is None
    with pytest.raises(SpaceError):
        bench.run(stage, executor)


# -- isolation ----------------------------------------------------------------------------------------------------------


def test_isolation_finds_exactly_the_records_that_kill(bench: Bench) -> None:
    bad = (0, 4_321, 4_322, ROWS - 1)
    stage = bench.stage(Map(NODE, crashes_at(*bad)))
    executor = bench.start(stage)
    began = time.monotonic()
    result = bench.run(stage, executor, isolate=True, skip_errors=True)
    assert [letter.record for letter in result.dead] == [repr({"line": f"line {i}"}) for i in bad]
    assert [letter.location.rsplit(" ", 1)[1] for letter in result.dead] == [str(i + 1) for i in bad]
    assert all("SIGSEGV" in letter.error for letter in result.dead)
    assert bench.frame(result)["value"].to_list() == [i for i in range(ROWS) if i not in bad]
    assert result.rows_in == ROWS and executor.restarts <= 3 * len(bad)
    assert time.monotonic() - began < 30
    with pytest.raises(TaskError) as caught:
        bench.run(stage, executor, isolate=True)
    failure = caught.value.failure
    assert failure.final and failure.died and failure.record == "{'line': 'line 0'}"


def batch_dies(bad: int) -> Callable[[pl.DataFrame], pl.DataFrame]:
    def batch(frame: pl.DataFrame) -> pl.DataFrame:
        if (frame["line"] == f"line {bad}").any():
            os._exit(5)
        return frame.with_columns(value=pl.col("line").str.slice(5).cast(pl.Int64))

    return batch


@pytest.mark.parametrize(
    "output",
    [
        PartialOutput((), (("n", agg.count()), ("s", agg.sum("value")), ("f", agg.first("value")))),
        ShuffleOutput(("value",), 3),
        MapOutput(lambda record: [(record["value"] % 5, 1)], None, 3),
    ],
    ids=["partial", "shuffle", "pairs"],
)
def test_isolation_halves_batches_and_merges_every_output(bench: Bench, output: Any) -> None:
    bad = 1_234
    stage = bench.stage(MapBatches(NODE, batch_dies(bad)), output=output)
    result = bench.run(stage, isolate=True, skip_errors=True)
    assert [letter.record for letter in result.dead] == [repr({"line": f"line {bad}"})]
    if isinstance(output, PartialOutput):
        from onefold.compute import aggregates

        (row,) = aggregates.final(bench.frame(result), [], output.aggs).rows()
        assert row == (ROWS - 1, sum(range(ROWS)) - bad, 0)
    elif isinstance(output, ShuffleOutput):
        from onefold.compute import shuffle

        parts = [shuffle.read_partition([result], partition, bench.blobs) for partition in range(3)]
        assert sorted(pl.concat(parts)["value"]) == [i for i in range(ROWS) if i != bad]
    else:
        second = Stage(1, (Branch(ReduceLeaf(0, lambda key, values: sum(values), 3)),), RowsOutput(), (0,))
        inline = InlineExecutor([second], bench.blobs)
        sums: dict[int, int] = {}
        for partition in range(3):
            spec = TaskSpec(second, TaskInput(0, partition=partition), inputs={0: [result]})
            frame = outputs.load_frame(inline.run(spec), bench.blobs)
            sums |= dict(frame.iter_rows()) if frame is not None else {}
        assert sums == {k: ROWS // 5 - (k == bad % 5) for k in range(5)}


def test_isolating_after_a_death_from_outside_gives_the_whole_result(bench: Bench, tmp_path: Path) -> None:
    once = tmp_path / "once"

    def dies_once(record: dict[str, Any]) -> int:
        if number(record) == 5_000 and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number(record)

    result = bench.run(bench.stage(Map(NODE, dies_once)), isolate=True, skip_errors=True)
    assert once.exists() and result.dead == ()
    assert bench.frame(result)["value"].to_list() == list(range(ROWS))


def test_isolation_in_reduce(bench: Bench) -> None:
    def kills(key: int, values: Iterator[int]) -> int:
        if key == 3:
            os._exit(1)
        return sum(values)

    first = bench.stage(output=MapOutput(lambda record: [(number(record) % 7, 1)], None, 1))
    second = Stage(1, (Branch(ReduceLeaf(0, kills, 1)),), RowsOutput(), (0,))
    executor = bench.start(first, second)
    mapped = bench.run(first, executor)
    spec = TaskSpec(second, TaskInput(0, partition=0), inputs={0: [mapped]}, isolate=True, skip_errors=True)
    result = executor.run(spec)
    assert [letter.location for letter in result.dead] == ["key 3"]
    assert bench.frame(result)["key"].sort().to_list() == [0, 1, 2, 4, 5, 6]


# -- where it is started from -------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
from onefold.compute import functions, outputs, sources
from onefold.compute.blobs import BlobStore
from onefold.compute.executor import ProcessExecutor
from onefold.compute.plan import Map, Node, Source
from onefold.compute.stages import Branch, RowsOutput, SourceLeaf, Stage, TaskInput
from onefold.compute.tasks import TaskSpec

folder = Path(sys.argv[1])
FACTOR = 3
class Helper:
    def times(self, x): return x * FACTOR
def work(record):
    (folder / f"pid{os.getpid()}").touch()
    if MODE == "sleep":
        time.sleep(600)
    if MODE == "spin":
        import re
        re.match(r"(a+)+b", "a" * 64)  # never gives up the interpreter lock, for years
    return Helper().times(int(record["line"].split()[1]))
MODE = sys.argv[2]
source = Source("text", (str(folder / "numbers.txt"),))
resolved = sources.resolve(source)
stage = Stage(0, (Branch(SourceLeaf(source, resolved.schema), (Map(Node(), work),)),), RowsOutput())
blobs = BlobStore(folder / "blobs")
executor = ProcessExecutor(functions.dump((stage,)), blobs.directory)
if MODE in ("thread", "spin"):  # the thread that starts the worker ends before the worker's work does
    import threading
    starter = threading.Thread(target=executor.start); starter.start(); starter.join()
units = tuple(sources.units_of(source, resolved, split_bytes=1 << 30, min_units=1))
result = executor.run(TaskSpec(stage, TaskInput(0, units)))
print(outputs.load_frame(result, blobs)["value"].sum())
"""


@pytest.mark.parametrize("how", ["-c", "script", "stdin", "thread"])
def test_programs_without_a_main_guard(bench: Bench, tmp_path: Path, how: str) -> None:
    mode = "thread" if how == "thread" else "run"
    arguments = {"-c": ["-c", SCRIPT], "stdin": ["-"]}.get(how, [str(tmp_path / "program.py")])
    (tmp_path / "program.py").write_text(SCRIPT)
    (tmp_path / "random.py").write_text(
        "raise ImportError('a file of the working directory shadows a module')"
    )
    done = subprocess.run(
        [sys.executable, "-P", *arguments, str(tmp_path), mode],
        input=SCRIPT if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(3 * sum(range(ROWS)))]


@pytest.mark.parametrize("mode", ["sleep", "spin"])
def test_the_worker_goes_when_its_parent_is_killed(bench: Bench, tmp_path: Path, mode: str) -> None:
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path), mode])
    try:
        wait_until(lambda: bool(list(tmp_path.glob("pid*"))), 60)
        (worker,) = (int(path.name[3:]) for path in tmp_path.glob("pid*"))
        assert alive(worker) and worker != parent.pid
    finally:
        parent.kill()
        parent.wait()
    wait_until(lambda: not alive(worker), 10)


def test_ctrl_c_is_the_parents(bench: Bench) -> None:
    def slow(record: dict[str, Any]) -> int:
        if number(record) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        return 1

    assert bench.run(bench.stage(Map(NODE, slow))).rows_out == ROWS


def test_several_workers_start_side_by_side(bench: Bench) -> None:
    stage = bench.stage(Map(NODE, number))
    executors = [bench.start(stage) for _ in range(3)]
    for executor in executors:
        executor.start()
    assert len({executor.pid for executor in executors}) == 3
    assert [bench.run(stage, executor).rows_in for executor in executors] == [ROWS] * 3
