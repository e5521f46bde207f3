"""Worker processes that die: the executor says what happened, goes on, and finds the records that kill."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onefold import agg
from onefold.compute.plan.nodes import Map, MapBatches
from onefold.compute.plan.stages import (
    Branch,
    MapOutput,
    PartialOutput,
    ReduceLeaf,
    RowsOutput,
    ShuffleOutput,
    Stage,
    TaskInput,
)
from onefold.compute.tasks import outputs
from onefold.compute.tasks.executor import InlineExecutor
from onefold.compute.tasks.spec import TaskError, TaskSpec
from onefold.errors import SpaceError
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
        (lambda record: os.closerange(3, 1 << 16) or time.sleep(0.1), "killed by|exited"),
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

    def kill() -> None:
        wait_until(started.exists)
        assert executor.pid is not None
        os.kill(executor.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(TaskError) as caught:
        bench.run(stage, executor)
    thread.join()
    assert caught.value.failure.died


def test_death_is_noticed_while_a_forked_child_holds_the_socket(bench: Bench) -> None:
    child_pid = bench.blobs.directory.parent / "child"

    def forks(_record: dict[str, Any]) -> None:
        pid = os.fork()
        if not pid:
            time.sleep(600)
            os._exit(0)
        child_pid.write_text(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        assert bench.failure(forks).died
        assert alive(int(child_pid.read_text())), "it was noticed only when the child let go of the socket"
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
    thread.join(60)
    assert caught.value.failure.died and executor.pid is None
    with pytest.raises(SpaceError):
        bench.run(stage, executor)


# -- isolation ----------------------------------------------------------------------------------------------------------


def test_isolation_finds_exactly_the_records_that_kill(bench: Bench) -> None:
    bad = (0, 4_321, 4_322, ROWS - 1)
    calls, crash = bench.blobs.directory.parent / "calls", crashes_at(*bad)

    def counted(record: dict[str, Any]) -> int:
        with calls.open("ab", buffering=0) as file:
            file.write(b".")
        return crash(record)

    stage = bench.stage(Map(NODE, counted))
    executor = bench.start(stage)
    result = bench.run(stage, executor, isolate=True, skip_errors=True)
    assert [letter.record for letter in result.dead] == [repr({"line": f"line {i}"}) for i in bad]
    assert [letter.location.rsplit(" ", 1)[1] for letter in result.dead] == [str(i + 1) for i in bad]
    assert all("SIGSEGV" in letter.error for letter in result.dead)
    assert bench.frame(result)["value"].to_list() == [i for i in range(ROWS) if i not in bad]
    assert result.rows_in == ROWS and executor.restarts <= 3 * len(bad)
    assert calls.stat().st_size <= 2.5 * ROWS  # each death costs the records of a small piece
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


OUTPUTS = {
    "partial": PartialOutput((), (("n", agg.count()), ("s", agg.sum("value")), ("f", agg.first("value")))),
    "shuffle": ShuffleOutput(("value",), 3),
    "pairs": MapOutput(lambda record: [(record["value"] % 5, 1)], None, 3),
}


@pytest.mark.moving(3)
@pytest.mark.parametrize("kind", [*OUTPUTS])
def test_isolation_halves_batches_and_merges_every_output(bench: Bench, kind: str) -> None:
    bad = 1_234
    output = OUTPUTS[kind]
    stage = bench.stage(MapBatches(NODE, batch_dies(bad)), output=output)
    result = bench.run(stage, isolate=True, skip_errors=True)
    assert [letter.record for letter in result.dead] == [repr({"line": f"line {bad}"})]
    if isinstance(output, PartialOutput):
        from onefold.compute import aggregates

        (row,) = aggregates.final(bench.frame(result), [], output.aggs).rows()
        assert row == (ROWS - 1, sum(range(ROWS)) - bad, 0)
    elif isinstance(output, ShuffleOutput):
        from onefold.compute.tasks import shuffle

        pieces = [shuffle.read_partition([result], partition, bench.blobs) for partition in range(3)]
        assert sorted(pl.concat(pieces)["value"]) == [i for i in range(ROWS) if i != bad]
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
