"""A bench for worker processes: a file of numbered lines, and executors that are closed in the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from onefold.compute import sources
from onefold.compute.blobs.store import BlobStore
from onefold.compute.code import functions
from onefold.compute.plan.nodes import Map, Node, Source
from onefold.compute.plan.stages import Branch, Output, Result, RowsOutput, SourceLeaf, Stage, TaskInput, Unit
from onefold.compute.tasks import outputs
from onefold.compute.tasks.executor import ProcessExecutor
from onefold.compute.tasks.spec import TaskError, TaskSpec

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


@pytest.fixture(name="bench")
def bench_of_lines(tmp_path: Path) -> Iterator[Bench]:
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


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def number(record: dict[str, Any]) -> int:
    return int(record["line"].split()[1])
