"""Worker processes: results, exceptions and plans that cannot be loaded, and wherever the process is started from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onefold import agg
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.code import functions
from onefold.compute.plan.nodes import FlatMap, Map
from onefold.compute.plan.stages import (
    Branch,
    PartialOutput,
    ReduceLeaf,
    Result,
    RowsOutput,
    Stage,
    TaskInput,
)
from onefold.compute.tasks.executor import InlineExecutor, ProcessExecutor
from onefold.compute.tasks.spec import TaskError, TaskSpec
from support.executor_bench import (
    NODE,
    ROWS,
    Bench,
    alive,
    bench_of_lines,  # noqa: F401
    number,
    wait_until,
)

pytestmark = pytest.mark.faults

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
    assert not failure.died and failure.final, "a function is not tried again"
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


# -- where it is started from -------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
from onefold.compute import sources; from onefold.compute.code import functions; from onefold.compute.tasks import outputs
from onefold.compute.blobs.store import BlobStore
from onefold.compute.tasks.executor import ProcessExecutor
from onefold.compute.plan.nodes import Map, Node, Source
from onefold.compute.plan.stages import Branch, RowsOutput, SourceLeaf, Stage, TaskInput
from onefold.compute.tasks.spec import TaskSpec

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
    wait_until(lambda: not alive(worker), 120)


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
