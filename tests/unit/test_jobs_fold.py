"""The jobs fold, operation by operation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold import config
from onefold.compute.jobs import ops, rows, state
from onefold.compute.jobs.fold import JobsFold
from onefold.compute.jobs.ops import Accepted, Assignment, Refused, StageSpec
from onefold.compute.stages import DeadLetter, Failure, Result
from onefold.fold.api import Context
from onefold.testing.memory_store import MemoryStore

_decode = msgspec.msgpack.Decoder(ops.Outcome).decode


def identity(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def stage(names: str, *needs: int) -> StageSpec:
    """A stage of one task per word."""
    words = names.split()
    return StageSpec(
        tuple(identity(word) for word in words), tuple(needs), f"inputs-{names}", tuple(10 for _ in words)
    )


@dataclass
class Jobs:
    """A fold over a memory store, spoken to like a log."""

    store: MemoryStore = field(default_factory=MemoryStore)
    fold: JobsFold = field(default_factory=JobsFold)
    offset: int = 0
    log: list[bytes] = field(default_factory=list)

    def do(self, operation: ops.Operation) -> Any:
        return self.do_bytes(msgspec.msgpack.encode(operation))

    def do_bytes(self, body: bytes) -> Any:
        self.offset += 1
        self.log.append(body)
        before = self.store.digest()
        outcome = _decode(
            self.fold.apply(self.store, Context(self.offset, 0, self.offset * 10, "c", None), body, 1)
        )
        if isinstance(outcome, Refused):
            assert self.store.digest() == before, f"a refused operation wrote something: {outcome}"
        return outcome

    def submit(self, run: str, /, *stages: StageSpec, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "run": run, "table": "t", "sink": "table", "mode": "continue", "version": None, "digest": "d",
            "columns": ("k", "n"), "plan": f"plan-{run}", "seed": 7, "on_error": "fail", "max_attempts": 2,
            "stages": stages, "member": "m", "explain": f"explain-{run}",
        }  # fmt: skip
        if "expect" not in changes:
            table = state.read_table(self.store, changes.get("table", "t"))
            values["expect"] = table.head if table is not None else None
        return self.do(ops.Submit(**(values | changes)))

    def claim(self, run: str, count: int = 1, worker: str = "m/0") -> tuple[Assignment, ...]:
        outcome = self.do(ops.Claim(run, worker, count))
        assert isinstance(outcome, Accepted), outcome
        return outcome.assignments

    def done(self, run: str, task: Assignment, blob: str | None = None, **values: Any) -> Any:
        result = Result(blob=blob, **values) if blob else Result(inline=b"x", **values)
        return self.do(ops.Done(run, task.stage, task.index, task.epoch, result))

    def failed(self, run: str, task: Assignment, **values: Any) -> Any:
        return self.do(
            ops.Failed(run, task.stage, task.index, task.epoch, Failure(**({"message": "boom"} | values)))
        )

    def finish(self, run: str, label: str = "") -> None:
        """Do all that is open."""
        while tasks := self.claim(run, 100):
            for task in tasks:
                assert isinstance(self.done(run, task, f"{label}{task.stage}-{task.index}"), Accepted)
            if self.run(run).state != "running":
                return

    def run(self, run: str) -> state.RunRow:
        row = state.read_run(self.store, run)
        assert row is not None
        return row

    def places(self, run: str, count: int = 100) -> list[tuple[int, int]]:
        return [(task.stage, task.index) for task in self.claim(run, count)]


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def refused(outcome: Any, code: str) -> str:
    assert isinstance(outcome, Refused), outcome
    assert outcome.code == code, outcome
    return outcome.message


# -- the plain life of a run


def test_tasks_are_handed_out_in_dispatch_order_and_the_run_ends(jobs: Jobs) -> None:
    assert jobs.submit("r1", stage("a b c")) == Accepted(state="running", run="r1")
    first, second = jobs.claim("r1", 2)
    assert (first.index, second.index, first.epoch, first.attempt, first.isolate) == (0, 1, 1, 1, False)
    (third,) = jobs.claim("r1", 5, "m/1")
    assert jobs.claim("r1") == ()
    assert jobs.done("r1", second, rows_in=5, bytes_in=50).state == "running"
    assert jobs.done("r1", first, rows_in=1).state == "running"
    assert state.read_table(jobs.store, "t").exact is False  # type: ignore[union-attr]
    assert jobs.done("r1", third).state == "done"
    table = state.read_table(jobs.store, "t")
    assert table is not None
    assert (table.head, table.exact, table.done, table.columns) == ("r1", True, "r1", ("k", "n"))
    run = jobs.run("r1")
    assert (run.done, run.total, run.rows, run.bytes, run.reused, run.cost, run.cost_done) == (
        3,
        3,
        6,
        50,
        0,
        30,
        30,
    )
    refused(jobs.do(ops.Claim("r1", "m/0")), "not_running")


def test_an_empty_run_is_done_at_once(jobs: Jobs) -> None:
    assert jobs.submit("r1", StageSpec((), (), "inputs")).state == "done"


def test_the_first_result_wins(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    (task,) = jobs.claim("r1")
    jobs.do(ops.Expire("r1", 0, 0, task.epoch))
    (again,) = jobs.claim("r1", worker="m/1")
    assert (again.index, again.epoch, again.attempt) == (0, 2, 1)
    assert isinstance(jobs.done("r1", task, rows_in=3), Accepted)  # late, but the first
    refused(jobs.done("r1", again, rows_in=3), "already_done")
    refused(jobs.done("r1", task, rows_in=3), "already_done")
    assert jobs.run("r1").rows == 3
    assert state.claims(jobs.store, "r1") == []


def test_an_epoch_that_was_never_handed_out_is_fenced(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"))
    for epoch in (0, 1, -1, 2**63):
        refused(jobs.do(ops.Done("r1", 0, 0, epoch, Result(inline=b"x"))), "fenced")


def test_unknown_runs_and_tasks(jobs: Jobs) -> None:
    refused(jobs.do(ops.Claim("r1", "m/0")), "no_such_run")
    jobs.submit("r1", stage("a"))
    for place in ((0, 1), (1, 0), (-1, 0), (0, -1), (2**40, 2**40)):
        refused(jobs.do(ops.Done("r1", *place, 1, Result())), "no_such_task")
        refused(jobs.do(ops.Claim("r1", "m/0", 1, (*place, 1))), "no_such_task")


def test_released_and_expired_claims_are_no_failed_attempts(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    (task,) = jobs.claim("r1")
    assert isinstance(jobs.do(ops.Release("r1", 0, 0, task.epoch)), Accepted)
    refused(jobs.do(ops.Release("r1", 0, 0, task.epoch)), "fenced")
    (task,) = jobs.claim("r1")
    assert isinstance(jobs.do(ops.Expire("r1", 0, 0, task.epoch)), Accepted)
    refused(jobs.do(ops.Expire("r1", 0, 0, task.epoch)), "fenced")
    refused(jobs.failed("r1", task), "fenced")
    (task,) = jobs.claim("r1")
    assert (task.index, task.attempt, task.epoch) == (0, 1, 3)
    run = jobs.run("r1")
    assert (run.failed, run.retried) == (0, 0)


# -- failures


def test_a_failing_task_is_isolated_and_then_fails_the_run(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    seen = []
    for _ in range(4):
        task = jobs.claim("r1")[0]
        seen.append((task.attempt, task.isolate, task.skip_errors))
        outcome = jobs.failed("r1", task, record="17", location="f:3")
    assert seen == [(1, False, False), (2, False, False), (3, True, False), (4, True, False)]
    assert outcome.state == "failed"
    run = jobs.run("r1")
    assert run.error is not None
    assert run.error.failure is not None
    assert (run.failed, run.retried, run.error.index, run.error.failure.record) == (4, 3, 0, "17")
    assert [error.attempt for error in state.errors(jobs.store, "r1")] == [1, 2, 3, 4]
    refused(jobs.do(ops.Claim("r1", "m/0")), "not_running")


def test_a_final_failure_fails_the_run_and_resume_starts_attempts_anew(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    first, second = jobs.claim("r1", 2)
    assert jobs.failed("r1", first, final=True).state == "failed"
    assert state.claims(jobs.store, "r1") == []
    assert jobs.done("r1", second).state == "failed"  # what was running when it failed is not lost
    assert jobs.do(ops.Resume("r1", "m2")).state == "running"
    assert jobs.run("r1").error is None
    (task,) = jobs.claim("r1", 5)
    assert (task.index, task.attempt, task.isolate) == (0, 1, False)
    assert jobs.done("r1", task).state == "done"
    assert jobs.do(ops.Resume("r1", "m2")).state == "done"


def test_a_process_that_dies_twice_isolates_its_task(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"), on_error="skip", max_attempts=9)
    for attempt in range(config.PROCESS_DEATHS_MAX):
        (task,) = jobs.claim("r1")
        assert (task.attempt, task.isolate, task.skip_errors) == (attempt + 1, False, False)
        jobs.failed("r1", task, died=True)
    (task,) = jobs.claim("r1")
    assert (task.isolate, task.skip_errors) == (True, True)


def test_a_stale_failure_has_no_effect(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"))
    (old,) = jobs.claim("r1")
    jobs.do(ops.Expire("r1", 0, 0, old.epoch))
    (new,) = jobs.claim("r1")
    refused(jobs.failed("r1", old, final=True), "fenced")
    assert jobs.done("r1", new).state == "done"
    refused(jobs.failed("r1", new, final=True), "already_done")


def test_dead_letters_belong_to_the_result(jobs: Jobs) -> None:
    letter = DeadLetter("f:1", "'x'", "ValueError")
    jobs.submit("r1", stage("a b"), on_error="skip")
    first, second = jobs.claim("r1", 2)
    jobs.done("r1", first, "blob-a", dead=(letter, letter))
    jobs.done("r1", second, "blob-b")
    assert [error.letter for error in state.errors(jobs.store, "r1")] == [letter, letter]
    assert jobs.run("r1").dead == 2
    jobs.submit("r2", stage("a c"), on_error="skip")  # taken over with the task
    assert jobs.run("r2").dead == 2
    jobs.do(ops.Lost("r2", 0, 0, "blob-a"))
    assert (jobs.run("r2").dead, state.errors(jobs.store, "r2")) == (0, [])
    first = jobs.claim("r2")[0]
    jobs.done("r2", first, "blob-a", dead=(letter,))
    assert [error.letter for error in state.errors(jobs.store, "r2")] == [letter]


def test_only_the_latest_errors_are_kept(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"), max_attempts=1000)
    for _ in range(config.ERRORS_PER_RUN_KEPT + 5):
        jobs.failed("r1", jobs.claim("r1")[0], message="m" * 30_000)
    errors = state.errors(jobs.store, "r1", limit=1000)
    assert [errors[0].attempt, errors[-1].attempt, len(errors)] == [6, 105, config.ERRORS_PER_RUN_KEPT]
    assert errors[0].failure is not None
    assert len(errors[0].failure.message) == config.FAILURE_TEXT_CHARS_MAX


# -- backups


def test_a_backup_runs_beside_the_slow_claim(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    (slow,) = jobs.claim("r1")
    place = (0, 0, slow.epoch)
    refused(jobs.do(ops.Claim("r1", "m/0", 1, place)), "fenced")
    (backup,) = jobs.do(ops.Claim("r1", "m/1", 1, place)).assignments
    assert (backup.index, backup.epoch, backup.attempt) == (0, 2, 1)
    refused(jobs.do(ops.Claim("r1", "m/2", 1, place)), "fenced")
    assert [(claim.worker, claim.backup) for claim in state.claims(jobs.store, "r1")] == [
        ("m/0", False),
        ("m/1", True),
    ]
    assert jobs.places("r1") == [(0, 1)]
    jobs.do(ops.Expire("r1", 0, 0, slow.epoch))
    assert jobs.places("r1") == []  # the backup still works on it
    assert isinstance(jobs.done("r1", backup), Accepted)
    refused(jobs.done("r1", slow), "already_done")
    refused(jobs.do(ops.Claim("r1", "m/2", 1, place)), "already_done")


# -- tables


def test_tables_refuse_what_would_surprise(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"))
    assert "r1" in refused(jobs.submit("r2", stage("a b")), "busy")
    jobs.finish("r1")
    refused(jobs.submit("r2", stage("a"), mode="error"), "table_exists")
    assert 'mode="replace"' in refused(jobs.submit("r2", stage("a"), columns=("other",)), "different_columns")
    refused(jobs.submit("r2", stage("a"), expect=None), "conflict")
    refused(jobs.submit("r2", stage("a"), expect="r0"), "conflict")
    assert isinstance(
        jobs.submit("r2", stage("a"), columns=("other",), mode="replace", expect=None), Accepted
    )
    assert state.read_table(jobs.store, "t").columns == ("other",)  # type: ignore[union-attr]


def test_an_equal_running_run_is_joined_whatever_its_order(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"), stage("x", 0))
    assert jobs.submit("r2", stage("b a"), stage("x", 0), expect="other").run == "r1"
    assert state.read_run(jobs.store, "r2") is None
    refused(jobs.submit("r2", stage("a b"), stage("x", 0), version="2"), "busy")
    refused(jobs.submit("r2", stage("a b"), stage("x"), mode="replace"), "busy")


def test_a_submission_is_idempotent(jobs: Jobs) -> None:
    assert jobs.submit("r1", stage("a"), expect=None) == Accepted(state="running", run="r1")
    jobs.finish("r1")
    assert jobs.submit("r1", stage("a"), expect=None) == Accepted(state="done", run="r1")
    refused(jobs.submit("r1", stage("b"), expect=None), "exists")


def test_superseding_cancels_the_running_run(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    first, second = jobs.claim("r1", 2)
    jobs.done("r1", first)
    assert jobs.submit("r2", stage("a b c"), supersede=True) == Accepted(state="running", run="r2")
    run = jobs.run("r1")
    assert (run.state, run.error.reason if run.error else "") == ("cancelled", "superseded by run r2")
    refused(jobs.done("r1", second), "not_running")
    assert jobs.run("r2").reused == 1
    refused(jobs.do(ops.Resume("r1", "m")), "conflict")
    refused(jobs.do(ops.Lost("r1", 0, 0, "x")), "conflict")


def test_cancel_and_resume_keep_what_is_finished(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b c"))
    first, second = jobs.claim("r1", 2)
    jobs.done("r1", first)
    assert jobs.do(ops.Cancel("r1", "enough")).state == "cancelled"
    assert jobs.do(ops.Cancel("r1")).state == "cancelled"
    refused(jobs.done("r1", second), "not_running")
    assert jobs.do(ops.Resume("r1", "m2")).state == "running"
    assert jobs.run("r1").member == "m2"
    assert jobs.places("r1") == [(0, 1), (0, 2)]
    assert isinstance(jobs.done("r1", second), Accepted)  # same input, first result


# -- reuse and retention


def test_done_tasks_are_taken_over_and_retired_ones_go_when_the_successor_is_done(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b c"))
    jobs.finish("r1", "one-")
    assert jobs.submit("r2", stage("b d c")).state == "running"
    found = state.results(jobs.store, "r2", 0)
    assert {index: (task.result.blob, task.reused) for index, task in found.items()} == {
        0: ("one-0-1", True),
        2: ("one-0-2", True),
    }
    assert len(state.results(jobs.store, "r1", 0)) == 3  # still readable
    run = jobs.run("r2")
    assert (run.done, run.total, run.reused, run.rows) == (2, 3, 2, 0)
    assert state.garbage(jobs.store) == {}
    jobs.do(ops.Cancel("r2"))
    jobs.submit("r3", stage("a b"))  # nothing was lost by the cancelled one
    assert jobs.run("r3").state == "done"
    table = state.read_table(jobs.store, "t")
    assert table is not None
    assert (table.live, table.past, table.done) == (("r3",), ("r1", "r2"), "r3")
    assert set(state.garbage(jobs.store)) == {
        "one-0-2", "plan-r1", "plan-r2", "inputs-a b c", "inputs-b d c", "explain-r1"
    }  # fmt: skip
    assert state.results(jobs.store, "r1", 0) == {}
    jobs.submit("r4", stage("a b c"))
    assert jobs.run("r4").reused == 2


def test_garbage_that_is_named_again_is_no_garbage(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"))
    jobs.finish("r1", "x")
    jobs.submit("r2", stage("b"))
    jobs.finish("r2", "y")
    assert "x0-0" in state.garbage(jobs.store)
    jobs.submit("r3", stage("c"))
    jobs.finish("r3", "x")
    assert "x0-0" not in state.garbage(jobs.store)
    assert jobs.do(ops.Swept(("x0-0", "y0-0", "y0-0", "never"))).blobs == ("y0-0",)
    assert jobs.do(ops.Swept(("y0-0",))).blobs == ()


def test_replace_takes_nothing_over_and_nothing_from_before_later(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    jobs.finish("r1", "old-")
    jobs.submit("r2", stage("a b"), mode="replace")
    assert jobs.run("r2").reused == 0
    (task,) = jobs.claim("r2")
    jobs.done("r2", task, "new-0")
    jobs.do(ops.Cancel("r2"))
    assert len(state.results(jobs.store, "r1", 0)) == 2
    jobs.submit("r3", stage("a b"))
    assert {i: t.result.blob for i, t in state.results(jobs.store, "r3", 0).items()} == {0: "new-0"}


def test_tables_do_not_share_results(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"))
    jobs.finish("r1")
    jobs.submit("r2", stage("a"), table="t2")
    assert jobs.run("r2").reused == 0


def test_runs_of_a_table_that_never_completes_are_bounded(jobs: Jobs) -> None:
    for number in range(config.LIVE_RUNS_PER_TABLE_MAX + 5):
        assert isinstance(jobs.submit(f"r{number}", stage(f"a{number} z"), supersede=True), Accepted)
        jobs.done(f"r{number}", jobs.claim(f"r{number}")[0], f"blob{number}")
    table = state.read_table(jobs.store, "t")
    assert table is not None
    assert len(table.live) == config.LIVE_RUNS_PER_TABLE_MAX
    assert {name for name in state.garbage(jobs.store) if name.startswith("blob")} == {
        f"blob{n}" for n in range(5)
    }


def test_past_runs_are_bounded(jobs: Jobs) -> None:
    for number in range(config.RUNS_PER_TABLE_KEPT + 5):
        jobs.submit(f"r{number:03}", stage(f"a{number}"))
        jobs.finish(f"r{number:03}")
    runs = state.list_runs(jobs.store, table="t")
    assert [runs[0].id, runs[-1].id, len(runs)] == ["r004", "r104", config.RUNS_PER_TABLE_KEPT + 1]
    assert [run.id for run in runs if run.kept] == ["r104"]
    kept = {"plan-r104", "inputs-a104", "explain-r104", "explain-r103", "0-0"}
    assert {key.decode() for key, _ in jobs.store.scan(rows.BLOB)} == kept
    assert state.list_runs(jobs.store, state="running") == []


# -- stages, lost blobs


def test_a_stage_waits_for_what_it_needs(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"), stage("x y", 0))
    assert [row.state for row in jobs.run("r1").stages] == ["ready", "waiting"]
    first, second = jobs.claim("r1", 9)
    jobs.done("r1", first)
    assert jobs.places("r1") == []
    jobs.done("r1", second)
    assert [row.state for row in jobs.run("r1").stages] == ["done", "ready"]
    assert jobs.places("r1") == [(1, 0), (1, 1)]


def test_a_stage_that_nobody_reads_any_more_is_skipped(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"), stage("x", 0))
    jobs.finish("r1")
    jobs.do(ops.Lost("r1", 0, 1, "0-1"))
    run = jobs.run("r1")
    assert (run.state, run.stages[0].state, run.done, run.total) == ("done", "skipped", 2, 2)
    assert jobs.submit("r2", stage("a b"), stage("x", 0)).state == "done"
    assert jobs.run("r2").stages[0].state == "skipped"
    assert jobs.do(ops.Lost("r2", 1, 0, "1-0")).state == "running"  # now it is needed
    assert state.read_table(jobs.store, "t").exact is False  # type: ignore[union-attr]
    assert jobs.places("r2") == [(0, 1)]


@pytest.mark.parametrize("same", [True, False])
def test_who_read_a_lost_blob_runs_again_only_when_the_second_one_differs(jobs: Jobs, same: bool) -> None:
    jobs.submit("r1", stage("a b"), stage("x y", 0), stage("z", 1))
    first, second = jobs.claim("r1", 9)
    jobs.done("r1", first, "A")
    jobs.done("r1", second, "B")
    x, y = jobs.claim("r1", 9)
    jobs.done("r1", x, "X", rows_in=4)
    sequence = jobs.run("r1").changes
    assert isinstance(jobs.do(ops.Lost("r1", 0, 0, "A")), Accepted)
    refused(jobs.do(ops.Lost("r1", 0, 0, "A")), "fenced")
    refused(jobs.do(ops.Lost("r1", 0, 1, "A")), "fenced")
    refused(jobs.done("r1", first, "A"), "fenced")
    (again,) = jobs.claim("r1", 9)
    assert (again.stage, again.index, again.epoch, again.attempt) == (0, 0, 2, 1)
    jobs.done("r1", again, "A" if same else "A2")
    changed = [
        (change.stage, change.index, change.result is None)
        for change in state.changes(jobs.store, "r1", sequence)
    ]
    refused(jobs.done("r1", y, "Y"), "fenced")  # who knows what it has read while A was not there
    if same:
        assert changed == [(0, 0, False)]
        (y,) = jobs.claim("r1", 9)
        assert (y.stage, y.index, y.attempt) == (1, 1, 1)
        jobs.done("r1", y, "Y")
        assert jobs.places("r1") == [(2, 0)]
    else:
        assert changed == [(0, 0, False), (1, 0, True)]
        assert jobs.run("r1").rows == 0
        assert jobs.places("r1") == [(1, 0), (1, 1)]


def test_an_expired_claim_is_fenced_too_when_the_input_changes(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"), stage("x", 0))
    jobs.done("r1", jobs.claim("r1")[0], "A")
    (zombie,) = jobs.claim("r1")
    jobs.do(ops.Expire("r1", 1, 0, zombie.epoch))
    jobs.do(ops.Lost("r1", 0, 0, "A"))
    jobs.done("r1", jobs.claim("r1")[0], "A2")
    refused(jobs.done("r1", zombie, "X"), "fenced")


def test_results_of_different_inputs_do_not_meet_in_a_later_run(jobs: Jobs) -> None:
    """r1 makes x from A; a re-run of a gives A2; a later run with both x and y must make x again."""
    jobs.submit("r1", stage("a"), stage("x y", 0))
    jobs.done("r1", jobs.claim("r1")[0], "A")
    jobs.done("r1", jobs.claim("r1")[0], "X")
    jobs.do(ops.Cancel("r1"))
    jobs.submit("r2", stage("a"), stage("y", 0), digest="other")
    jobs.do(ops.Lost("r2", 0, 0, "A"))
    jobs.done("r2", jobs.claim("r2")[0], "A2")
    jobs.do(ops.Cancel("r2"))
    jobs.submit("r3", stage("a"), stage("x y", 0))
    run = jobs.run("r3")
    assert [row.reused for row in run.stages] == [1, 0]


def test_taken_over_results_start_again_when_their_inputs_come_out_differently(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"), stage("x y", 0))
    jobs.finish("r1")
    jobs.do(ops.Lost("r1", 0, 0, "0-0"))
    jobs.submit("r2", stage("a"), stage("x y", 0))
    assert jobs.run("r2").state == "done"
    jobs.do(ops.Lost("r2", 1, 1, "1-1"))
    (a,) = jobs.claim("r2", 9)
    jobs.done("r2", a, "different")
    assert jobs.places("r2") == [(1, 0), (1, 1)]


def test_a_dependent_is_not_taken_over_with_other_splits(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"), stage("x", 0))
    jobs.finish("r1")
    jobs.submit("r2", stage("a b"), stage("x", 0))
    assert [row.reused for row in jobs.run("r2").stages] == [1, 0]


# -- changes, members, garbage operations, cost


def test_changes_hold_each_task_once(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"))
    jobs.finish("r1")
    assert [(c.sequence, c.index) for c in state.changes(jobs.store, "r1")] == [(1, 0), (2, 1)]
    jobs.do(ops.Lost("r1", 0, 0, "0-0"))
    assert [(c.sequence, c.index, c.result) for c in state.changes(jobs.store, "r1", 2)] == [(3, 0, None)]
    jobs.finish("r1", "again-")
    found = state.changes(jobs.store, "r1")
    assert [(c.sequence, c.index) for c in found] == [(2, 1), (4, 0)]
    assert found[1].result is not None
    assert found[1].result.blob == "again-0-0"
    assert [c.sequence for c in state.changes(jobs.store, "r1", 0, limit=1)] == [2]


def test_members_are_counted_and_bounded(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "MEMBERS_KEPT", 3)
    for name in ("a", "b", "a", "c", "d"):
        assert jobs.do(ops.Renew(name)) == Accepted()
    members = state.members(jobs.store)
    assert {name: row.renewals for name, row in members.items()} == {"a": 2, "c": 1, "d": 1}


@pytest.mark.parametrize(
    "change",
    [
        {"run": ""}, {"run": "a\0b"}, {"table": "x" * 600}, {"max_attempts": 0}, {"stages": ()},
        {"stages": (StageSpec((b"short",), (), ""),)}, {"stages": (StageSpec((), (0,), ""),)},
        {"stages": (StageSpec((identity("a"),), (), "", (-1,)),)},
        {"stages": (StageSpec((identity("a"),), (), "", (1, 2)),)},
        {"stages": (stage("a"), stage("b", 0, 0))},
    ],
)  # fmt: skip
def test_malformed_submissions(jobs: Jobs, change: dict[str, Any]) -> None:
    refused(jobs.submit("r1", stage("a"), **({"expect": None} | change)), "malformed")


def test_absurd_results_are_refused(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a"))
    (task,) = jobs.claim("r1")
    refused(jobs.done("r1", task, rows_in=-1), "malformed")
    refused(jobs.done("r1", task, bytes_in=2**60), "malformed")
    refused(jobs.done("r1", task, "blob", inline=b"x"), "malformed")


_names = st.sampled_from(["r1", "r2", "t", "m/0", "", "\0"]) | st.text(max_size=3)
_numbers = st.integers(-2, 3) | st.integers(-(2**63), 2**64 - 1)
_results = st.builds(
    Result, inline=st.none() | st.binary(max_size=2), blob=st.none() | _names, rows_in=_numbers, bytes_in=_numbers,
    dead=st.lists(st.builds(DeadLetter, _names, _names, _names), max_size=2).map(tuple),
)  # fmt: skip
_tasks = (_names, _numbers, _numbers, _numbers)
_operations = st.one_of(
    st.builds(
        ops.Submit, run=_names, table=_names, sink=st.just("table"),
        mode=st.sampled_from(["continue", "replace", "error"]), version=st.none(), digest=_names,
        columns=st.none() | st.just(("a",)), plan=_names, seed=_numbers,
        on_error=st.sampled_from(["fail", "skip"]), max_attempts=_numbers,
        stages=st.lists(
            st.builds(
                StageSpec, st.lists(st.sampled_from([identity("a"), identity("b"), b""]), max_size=3).map(tuple),
                st.lists(_numbers, max_size=2).map(tuple), _names, st.lists(_numbers, max_size=3).map(tuple),
            ), max_size=3,
        ).map(tuple),
        member=_names, expect=st.none() | _names, supersede=st.booleans(), explain=_names,
    ),
    st.builds(ops.Claim, _names, _names, _numbers, st.none() | st.tuples(_numbers, _numbers, _numbers)),
    st.builds(ops.Done, *_tasks, _results),
    st.builds(ops.Failed, *_tasks, st.builds(Failure, _names, died=st.booleans(), final=st.booleans())),
    st.builds(ops.Release, *_tasks), st.builds(ops.Expire, *_tasks),
    st.builds(ops.Lost, _names, _numbers, _numbers, _names),
    st.builds(ops.Renew, _names), st.builds(ops.Cancel, _names), st.builds(ops.Resume, _names, _names),
    st.builds(ops.Swept, st.lists(_names, max_size=3).map(tuple)),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(_operations.map(msgspec.msgpack.encode) | st.binary(max_size=40), max_size=25))
def test_no_bytes_raise_and_refusals_write_nothing(bodies: list[bytes]) -> None:
    jobs = Jobs()
    jobs.submit("r1", stage("a b"), stage("x", 0), on_error="skip")
    jobs.claim("r1", 2)
    for body in bodies:
        jobs.do_bytes(body)


@settings(max_examples=150, deadline=None)
@given(
    _operations.map(msgspec.msgpack.encode),
    st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=3),
)
def test_no_flipped_byte_raises(body: bytes, flips: list[tuple[int, int]]) -> None:
    damaged = bytearray(body)
    for place, value in flips:
        damaged[place % len(damaged)] = value
    jobs = Jobs()
    jobs.submit("r1", stage("a b"), stage("x", 0))
    jobs.do_bytes(bytes(damaged))


def test_the_cost_of_an_operation_does_not_grow_with_the_run() -> None:
    def writes(count: int) -> list[int]:
        store, fold, found = MemoryStore(), JobsFold(), []

        def do(operation: ops.Operation) -> Any:
            before = store.writes
            body = msgspec.msgpack.encode(operation)
            outcome = _decode(fold.apply(store, Context(len(found) + 1, 0, 0, "c", None), body, 1))
            found.append(store.writes - before)
            return outcome

        tasks = tuple(number.to_bytes(16, "big") for number in range(count))
        do(
            ops.Submit(
                "r",
                "t",
                "table",
                "continue",
                None,
                "d",
                None,
                "p",
                1,
                "fail",
                4,
                (StageSpec(tasks, (), "i"),),
                "m",
            )
        )
        (task,) = do(ops.Claim("r", "m/0")).assignments
        do(ops.Failed("r", 0, 0, task.epoch, Failure("boom")))
        (task,) = do(ops.Claim("r", "m/0")).assignments
        do(ops.Done("r", 0, 0, task.epoch, Result(blob="b")))
        do(ops.Lost("r", 0, 0, "b"))
        return found[1:]

    assert writes(10) == writes(20_000)
    assert max(writes(10)) <= 12


def test_replaying_the_log_gives_the_same_state(jobs: Jobs) -> None:
    jobs.submit("r1", stage("a b"), stage("x", 0))
    jobs.finish("r1")
    jobs.submit("r2", stage("a c"), stage("x", 0))
    jobs.finish("r2")
    replayed = Jobs()
    for body in jobs.log:
        replayed.do_bytes(body)
    assert replayed.store.digest() == jobs.store.digest()
