"""The read side of the jobs fold, on a run that is being worked on."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from onefold.compute.jobs import ops, state
from onefold.compute.jobs.fold import JobsFold
from onefold.compute.jobs.ops import StageSpec, Submit
from onefold.compute.jobs.read_rows import TaskResult
from onefold.compute.plan.stages import DeadLetter, Failure, Result
from onefold.fold.api import Context
from onefold.testing.memory_store import MemoryStore

_decode = msgspec.msgpack.Decoder(ops.Outcome).decode


class Log:
    """Applies operations one after the other."""

    def __init__(self, fold_version: int = 1) -> None:
        self.store = MemoryStore()
        self.offset = 0
        self.fold_version = fold_version

    def __call__(self, operation: ops.Operation) -> Any:
        self.offset += 1
        context = Context(self.offset, 0, 1000 + self.offset, "client", None)
        body = msgspec.msgpack.encode(operation)
        outcome = _decode(JobsFold().apply(self.store, context, body, self.fold_version))
        assert isinstance(outcome, ops.Accepted), outcome
        return outcome


def submission(run: str, table: str, tasks: int, expect: str | None = None) -> Submit:
    names = tuple(f"{table}{number}".encode().ljust(16) for number in range(tasks))
    stages = (
        StageSpec(names, (), f"in0-{run}", (5,) * tasks),
        StageSpec((b"publish".ljust(16),), (0,), f"in1-{run}"),
    )
    return Submit(
        run, table, "parquet", "continue", "v1", "digest", ("a", "b"), f"plan-{run}", 3, "skip", 4, stages, "m1",
        expect, False, f"why-{run}",
    )  # fmt: skip


@pytest.fixture
def log() -> Log:
    """Run ``r`` of table ``t``: 0 is done, 1 has failed once, 2 is claimed with a backup, 3 is open; and ``other`` of ``u``."""
    log = Log()
    log(submission("r", "t", 4))
    log(submission("other", "u", 1))
    zero, one, two = log(ops.Claim("r", "m1/0", 3)).assignments
    letter = DeadLetter("file:1", "'x'", "ValueError: x")
    log(ops.Done("r", 0, 0, zero.epoch, Result(blob="B", rows_in=10, bytes_in=100, dead=(letter,))))
    log(ops.Failed("r", 0, 1, one.epoch, Failure("boom", record="'y'", kind="KeyError")))
    log(ops.Claim("r", "m2/1", 1, (0, 2, two.epoch)))
    log(ops.Renew("m1"))
    return log


def test_a_run_is_read_with_its_progress(log: Log) -> None:
    run = state.read_run(log.store, "r")
    assert run is not None
    assert (run.id, run.table, run.state, run.sink, run.mode) == ("r", "t", "running", "parquet", "continue")
    assert (run.version, run.digest, run.columns, run.plan, run.explain) == (
        "v1",
        "digest",
        ("a", "b"),
        "plan-r",
        "why-r",
    )
    assert (run.seed, run.on_error, run.max_attempts, run.member, run.kept) == (3, "skip", 4, "m1", True)
    assert (run.done, run.total, run.rows, run.bytes, run.cost, run.cost_done) == (1, 5, 10, 100, 20, 5)
    assert (run.failed, run.retried, run.reused, run.dead, run.changes) == (1, 0, 0, 1, 1)
    assert (run.created_ms, run.created_offset, run.error, run.previous) == (1001, 1, None, None)
    assert run.updated_ms == 1000 + log.offset - 1
    assert [(row.index, row.state, row.count, row.inputs) for row in run.stages] == [
        (0, "ready", 4, "in0-r"),
        (1, "waiting", 1, "in1-r"),
    ]
    assert state.read_run(log.store, "nobody") is None
    assert [row.id for row in state.list_runs(log.store)] == ["r", "other"]
    assert [row.id for row in state.list_runs(log.store, table="u", state="running")] == ["other"]
    assert state.list_runs(log.store, state="failed") == []


def test_tables_are_read(log: Log) -> None:
    table = state.read_table(log.store, "t")
    assert table is not None
    assert (table.name, table.head, table.exact, table.done, table.live) == ("t", "r", False, None, ("r",))
    assert [row.name for row in state.list_tables(log.store)] == ["t", "u"]
    assert state.read_table(log.store, "v") is None


def test_tasks_results_and_claims_are_read(log: Log) -> None:
    tasks = state.read_tasks(log.store, "r", 0)
    assert [(task.index, task.state, task.epoch, task.claims, task.cost) for task in tasks] == [
        (0, "done", 1, (), 5),
        (1, "open", 1, (), 5),
        (2, "claimed", 2, (1, 2), 5),
        (3, "open", 0, (), 5),
    ]
    assert [task.index for task in state.read_tasks(log.store, "r", 0, 1, 3)] == [1, 2]
    assert [task.index for task in state.read_tasks(log.store, "r", 1)] == [0]
    assert state.read_tasks(log.store, "r", 2) == []
    assert state.results(log.store, "r", 0) == {
        0: TaskResult(Result(blob="B", rows_in=10, bytes_in=100), reused=False, sequence=1)
    }
    claims = state.claims(log.store, "r")
    assert [(row.stage, row.index, row.epoch, row.worker, row.member, row.backup) for row in claims] == [
        (0, 2, 1, "m1/0", "m1", False),
        (0, 2, 2, "m2/1", "m2", True),
    ]
    assert state.tries(log.store, "r") == {(0, 1): 1}


def test_errors_are_read_and_bounded(log: Log) -> None:
    failed, dead = state.errors(log.store, "r")
    assert failed.failure is not None
    assert (failed.kind, failed.index, failed.attempt, failed.worker, failed.failure.record) == (
        "failed",
        1,
        1,
        "m1/0",
        "'y'",
    )
    assert dead.letter is not None
    assert (dead.kind, dead.index, dead.letter.location) == ("dead", 0, "file:1")
    assert state.errors(log.store, "r", limit=0) == []


def test_members_and_garbage_are_read(log: Log) -> None:
    assert {name: row.renewals for name, row in state.members(log.store).items()} == {"m1": 1}
    assert state.garbage(log.store) == {}
    log(ops.Lost("r", 0, 0, "B"))
    assert state.garbage(log.store) == {"B": log.offset}
    assert state.garbage(log.store, before=log.offset) == {}


def test_a_follower_sees_each_change_once_and_can_page(log: Log) -> None:
    def places(after: int, limit: int | None = None) -> list[tuple[int, int, bool]]:
        found = state.changes(log.store, "r", after, limit)
        return [(change.sequence, change.index, change.result is not None) for change in found]

    for task in log(ops.Claim("r", "m1/0", 9)).assignments:
        log(ops.Done("r", 0, task.index, task.epoch, Result(inline=b"x")))
    assert places(0) == [(1, 0, True), (2, 1, True), (3, 3, True)]
    assert places(0, 1) == [(1, 0, True)]
    assert places(1, 1) == [(2, 1, True)]
    assert places(3) == []
    log(ops.Lost("r", 0, 0, "B"))
    assert places(3) == [(4, 0, False)]
    assert places(0) == [(2, 1, True), (3, 3, True), (4, 0, False)]
    (again,) = log(ops.Claim("r", "m1/0", 1)).assignments
    log(ops.Done("r", 0, 0, again.epoch, Result(inline=b"y")))
    assert places(4) == [(5, 0, True)]


def test_run_names_that_begin_alike_stay_apart() -> None:
    log = Log()
    log(submission("r", "t", 2))
    log(submission("r1", "t1", 3))
    log(ops.Claim("r1", "m/0", 3))
    assert len(state.read_tasks(log.store, "r", 0)) == 2
    assert state.claims(log.store, "r") == []
    assert [task.index for task in log(ops.Claim("r", "m/0", 9)).assignments] == [0, 1]


@pytest.mark.parametrize(("fold_version", "kept"), [(1, 1_000), (2, 100_000)])
def test_the_fold_version_says_how_many_dead_letters_are_kept(fold_version: int, kept: int) -> None:
    log = Log(fold_version)
    log(submission("r", "t", 1))
    (task,) = log(ops.Claim("r", "m1/0", 1)).assignments
    letters = tuple(DeadLetter(f"file:{number}", "", "") for number in range(kept + 1))
    log(ops.Done("r", 0, 0, task.epoch, Result(blob="B", dead=letters)))
    found = [one.letter for one in state.errors(log.store, "r", limit=0, all_letters=True)]
    assert found == list(letters[:kept])
    run = state.read_run(log.store, "r")
    assert run is not None and run.dead == kept + 1
