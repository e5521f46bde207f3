"""The jobs fold, operation by operation."""

from __future__ import annotations

from typing import Any

import pytest

from kit.jobs.driver import Jobs, stage
from onefold import config
from onefold.compute.jobs import ops, rows, state
from onefold.compute.jobs.ops import Accepted, Refused, StageSpec
from onefold.compute.plan.stages import DeadLetter, Result


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
