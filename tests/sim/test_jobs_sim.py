"""The jobs fold in simulated worlds full of faults; a failing test names its seed.

By default a sixth of the first 300 worlds is run, another one each day; ``ONEFOLD_SIM_SEEDS`` sets how many are run from the
first on (or from ``ONEFOLD_SIM_FIRST``). Bugs planted into the fold must each be caught by the first 300.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from kit.jobs.world import simulate
from onefold.compute.jobs import rows
from onefold.compute.jobs.edit import RunEdit
from onefold.compute.jobs.fold import JobsFold
from onefold.compute.jobs.ops import Assignment, Done, Expire, Outcome, Refused, Release
from onefold.compute.jobs.retention import Retention
from onefold.compute.jobs.rows import TaskState, encode
from onefold.compute.plan.stages import Result

SEEDS = os.environ.get("ONEFOLD_SIM_SEEDS")
PARTS = 6 if SEEDS is None else 1
FIRST = int(os.environ.get("ONEFOLD_SIM_FIRST", "0"))
WORLDS = range(300) if SEEDS is None else range(FIRST, FIRST + int(SEEDS))


@pytest.mark.moving(PARTS)
@pytest.mark.parametrize("seed", WORLDS)
def test_a_world_of_faults_ends_with_the_batch_result(seed: int) -> None:
    simulate(seed)


class NoFencing(JobsFold):
    """Every result is taken, also a second one."""

    def _refuse_done(self, edit: RunEdit, op: Done, task: TaskState) -> Refused | None:
        refusal = super()._refuse_done(edit, op, task)
        return None if refusal is not None and refusal.code == "already_done" else refusal


class NoFenceAfterLost(JobsFold):
    """The first result of an open task is taken, whatever input it comes from."""

    def _refuse_done(self, edit: RunEdit, op: Done, task: TaskState) -> Refused | None:
        refusal = super()._refuse_done(edit, op, task)
        return None if refusal is not None and 0 < op.epoch < task.fence and not task.result else refusal


class ExpiredIsFailed(JobsFold):
    """An expired claim counts as a failed attempt."""

    def _end(self, edit: RunEdit, op: Release | Expire) -> Outcome:
        outcome = super()._end(edit, op)
        if isinstance(op, Expire) and not isinstance(outcome, Refused):
            tries = edit.tries(op.stage, op.index)
            tries.errors += 1
            edit.store.put(rows.TRIES, rows.task_key(op.run, op.stage, op.index), encode(tries))
        return outcome


def listed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that finishes again keeps its earlier place among the finished ones: it is merged twice."""

    def record_change(self: RunEdit, stage: int, index: int, task: TaskState) -> None:
        self.state.changes += 1
        task.sequence = self.state.changes
        self.store.put(rows.CHANGE, rows.sequence_key(self.run, task.sequence), encode((stage, index)))

    monkeypatch.setattr(RunEdit, "record_change", record_change)


def hands_out_done_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A late result leaves its task in the queue."""
    finish = RunEdit.finish

    def planted(
        self: RunEdit, stage: int, index: int, task: TaskState, result: Result, letters_max: int
    ) -> None:
        queued = None if task.claims else rows.queue_key(self.run, task.queue, stage, index)
        finish(self, stage, index, task, result, letters_max)
        if queued is not None:
            self.store.put(rows.OPEN, queued, b"")

    monkeypatch.setattr(RunEdit, "finish", planted)


def ignores_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is taken over by its split's name, also when the split's content has changed."""
    monkeypatch.setattr(rows, "known_as", lambda identity, upstream: identity[:8] + upstream)


def repeats_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is open again gets the epoch that it had."""
    hand_out = RunEdit.hand_out

    def planted(
        self: RunEdit, stage: int, index: int, task: TaskState, worker: str, *, backup: bool
    ) -> Assignment:
        if not backup and task.epoch > task.fence:
            task.epoch -= 1
        return hand_out(self, stage, index, task, worker, backup=backup)

    monkeypatch.setattr(RunEdit, "hand_out", planted)


def keeps_readers_of_lost_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has read an input that came out differently the second time keeps its result."""
    monkeypatch.setattr(RunEdit, "restart_stage", lambda self, stage: None)


def trusts_who_looked_while_inputs_were_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost input does not fence those that are reading it."""
    monkeypatch.setattr(RunEdit, "fence_stage", lambda self, stage: None)


def takes_over_without_asking_for_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results that were taken over are not compared with what their inputs give now."""
    monkeypatch.setattr(RunEdit, "check_dependents", lambda self, stage: None)


def forgets_who_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    """A result that a new run has taken over goes with the run that made it."""

    def planted(self: Retention, result_ids: Iterable[bytes]) -> None:
        list(result_ids)

    monkeypatch.setattr(Retention, "share_results", planted)


PLANTED: list[type[JobsFold] | Callable[[pytest.MonkeyPatch], None]] = [
    NoFencing,
    NoFenceAfterLost,
    ExpiredIsFailed,
    listed_twice,
    hands_out_done_tasks,
    ignores_identities,
    repeats_epochs,
    keeps_readers_of_lost_inputs,
    trusts_who_looked_while_inputs_were_missing,
    takes_over_without_asking_for_inputs,
    forgets_who_shares,
]


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_planted_bugs_are_caught(bug: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    planted = JobsFold()
    if isinstance(bug, type):
        planted = bug()
    else:
        bug(monkeypatch)
    for seed in range(300):
        try:
            simulate(seed, planted)
        except (AssertionError, KeyError) as caught:
            print(f"caught by seed {seed}: {str(caught).splitlines()[0][:160]}")
            return
    pytest.fail("300 worlds did not catch it")
