"""What readers of the jobs fold get: runs, stages, tables, tasks, results and claims as frozen rows; ``state`` reads them."""

from __future__ import annotations

from typing import Literal

import msgspec

from onefold.compute.jobs.rows import RunError
from onefold.compute.plan.stages import DeadLetter, Failure, Result

State = Literal["running", "done", "failed", "cancelled"]
StageStatus = Literal["done", "ready", "waiting", "skipped"]


class StageRow(msgspec.Struct, frozen=True):
    """One stage of a run. ``state``: "ready" (its open tasks can be claimed), "waiting" (for the stages in
    ``needs``), "done", or "skipped" (not complete, but nobody needs it)."""

    index: int
    state: StageStatus
    count: int
    """Tasks."""
    done: int
    reused: int
    needs: tuple[int, ...]
    inputs: str
    """Blob with the msgpack of ``list[TaskInput]``, in dispatch order."""
    cost: int
    """Input bytes of all tasks (0: unknown)."""
    cost_done: int
    rows: int
    """Rows read by this run's own tasks whose results are in force."""
    bytes: int


class RunRow(msgspec.Struct, frozen=True):
    """A run. Counters over all stages; ``rows`` and ``bytes`` count what this run read itself (reused tasks
    do not count)."""

    id: str
    table: str
    state: State
    sink: Literal["table", "parquet"]
    mode: Literal["continue", "replace", "error"]
    version: str | None
    digest: str
    columns: tuple[str, ...] | None
    plan: str
    explain: str
    seed: int
    on_error: Literal["fail", "skip"]
    max_attempts: int
    member: str
    """The process that submitted or last resumed it."""
    previous: str | None
    """The table's head before this run."""
    kept: bool
    """Whether its tasks and results are still there; they go when a later run of the table is done."""
    stages: tuple[StageRow, ...]
    changes: int
    """Sequence number of the latest change of a task."""
    done: int
    """Finished tasks."""
    total: int
    """Tasks that have to be finished, without those of skipped stages that are not."""
    rows: int
    bytes: int
    cost: int
    """Input bytes of the tasks in ``total``, as far as the submission told."""
    cost_done: int
    failed: int
    """Failed attempts."""
    retried: int
    """Tasks handed out again after a failed attempt."""
    reused: int
    dead: int
    """Dead letters of the finished tasks."""
    created_ms: int
    updated_ms: int
    created_offset: int
    error: RunError | None
    """Why it failed or was cancelled."""

    @property
    def result_stage(self) -> int:
        """The stage whose tasks make up the result: the last, but for the one that publishes a folder."""
        return len(self.stages) - (2 if self.sink == "parquet" else 1)


class TableRow(msgspec.Struct, frozen=True):
    """A table. ``head`` is its latest run; ``exact``: that run is done."""

    name: str
    head: str
    exact: bool
    done: str | None
    """The latest run that completed and whose tasks and results are kept: while the head is not done, a
    reader may prefer it."""
    sink: Literal["table", "parquet"]
    columns: tuple[str, ...] | None
    live: tuple[str, ...]
    """Runs whose tasks and results are kept, oldest first, the head last."""
    past: tuple[str, ...]
    """Earlier runs, oldest first."""
    updated_ms: int


class TaskRow(msgspec.Struct, frozen=True):
    """A task of a run."""

    stage: int
    index: int
    identity: bytes
    state: Literal["open", "claimed", "done"]
    epoch: int
    """The latest that was handed out; 0: none."""
    fence: int
    """Results of lower epochs are refused."""
    claims: tuple[int, ...]
    """Epochs of the claims in force."""
    reused: bool
    cost: int
    rows: int
    """Rows read for its result (0 for reused ones: this run did not read them)."""
    dead: int
    sequence: int


class TaskResult(msgspec.Struct, frozen=True):
    """A finished task's result. Its dead letters are in ``errors``; ``result.dead`` is empty here."""

    result: Result
    reused: bool
    sequence: int


class Change(msgspec.Struct, frozen=True):
    """A task's latest change: finished (again), or reopened (``result`` is None: what it gave before counts
    no longer)."""

    sequence: int
    stage: int
    index: int
    result: Result | None
    reused: bool


class ClaimRow(msgspec.Struct, frozen=True):
    """A claim in force."""

    stage: int
    index: int
    epoch: int
    worker: str
    attempt: int
    isolate: bool
    backup: bool
    since_ms: int
    """Fold time of the claim; not a clock to measure leases with."""

    @property
    def member(self) -> str:
        """The worker's process."""
        return self.worker.split("/", 1)[0]


class ErrorRow(msgspec.Struct, frozen=True):
    """A failed attempt (``kind`` "failed": ``failure``) or a record that was skipped ("dead": ``letter``)."""

    kind: Literal["failed", "dead"]
    stage: int
    index: int
    attempt: int
    worker: str
    at_ms: int
    failure: Failure | None
    letter: DeadLetter | None


class UnfitRow(msgspec.Struct, frozen=True):
    """Why a node does not work on a run (``stage`` -1), or not on that task and perhaps others of it."""

    node: str
    reason: str
    stage: int
    index: int
    at_ms: int


class MemberRow(msgspec.Struct, frozen=True):
    """A process that renews. Observers watch ``renewals`` move on their own clocks."""

    name: str
    renewals: int
    offset: int
    at_ms: int
