"""The jobs fold: stages, lost inputs, what readers follow, and that no bytes can stop it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.jobs.driver import Jobs, identity, stage
from onefold import config
from onefold.compute.jobs import ops, state
from onefold.compute.jobs.fold import JobsFold
from onefold.compute.jobs.ops import Accepted, Refused, StageSpec
from onefold.compute.plan.stages import DeadLetter, Failure, Result
from onefold.fold.api import Context
from onefold.testing.memory_store import MemoryStore


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


def refused(outcome: Any, code: str) -> str:
    assert isinstance(outcome, Refused), outcome
    assert outcome.code == code, outcome
    return outcome.message


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
            outcome = msgspec.msgpack.decode(
                fold.apply(store, Context(len(found) + 1, 0, 0, "c", None), body, 1), type=ops.Outcome
            )
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
