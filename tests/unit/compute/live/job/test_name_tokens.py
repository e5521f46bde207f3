"""Reservations of names, step by step: numbers grow, and each step does nothing to a reservation that is not its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import onefold as of
from onefold.compute.jobs import ops, state
from onefold.compute.live import names
from onefold.compute.live.client import LiveJob
from onefold.errors import InvalidArgument
from onefold.shard.fold_version import reach_version
from support.live_counting import PART


@pytest.fixture
def db(tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path) as db:
        assert reach_version(db._shard, ops.NAMES_VERSION)
        yield db


def submit(db: of.Database, op: ops.Operation) -> ops.Outcome:
    (outcome,) = db._engine.submit(op)
    return outcome


def reserve(db: of.Database) -> int:
    outcome = submit(db, ops.ReserveName("t"))
    assert isinstance(outcome, ops.Accepted)
    return outcome.token


def reserved(db: of.Database) -> int:
    with db._engine.shard.view() as view:
        return state.reservation(view, "t")


def start(db: of.Database) -> int:
    job = LiveJob(db._state, "t")
    return names.begin(db._engine, job, lambda token: job.start("plan", [PART], token)).generation


def test_only_its_own_reservation_is_given_back(db: of.Database) -> None:
    first, second = reserve(db), reserve(db)
    assert 0 < first < second == reserved(db)
    submit(db, ops.FreeName("t", first))
    assert reserved(db) == second
    submit(db, ops.FreeName("t", second))
    assert reserved(db) == 0
    assert reserve(db) > second


def test_reservations_of_one_record_differ(db: of.Database) -> None:
    outcomes = db._engine.submit(*[ops.ReserveName("t")] * 3)
    tokens = [outcome.token for outcome in outcomes if isinstance(outcome, ops.Accepted)]
    assert tokens == sorted(set(tokens)) and len(tokens) == 3


def test_a_start_succeeds_after_a_death_between_fence_and_free(db: of.Database) -> None:
    LiveJob(db._state, "t").fence(reserve(db))
    assert start(db) == 1


def test_a_job_that_is_there_is_started_without_another_reservation(db: of.Database) -> None:
    assert start(db) == 1
    token = reserved(db)
    assert start(db) == 1
    assert reserved(db) == token


def test_a_late_free_of_an_earlier_life_keeps_the_name_of_the_next(db: of.Database) -> None:
    assert start(db) == 1
    token, job = reserved(db), LiveJob(db._state, "t")
    job.stop(1)
    job.drop(1, token, lambda: None)  # and the program stands still before it frees the name
    assert start(db) == 2
    submit(db, ops.FreeName("t", token))
    assert reserved(db) > token
    with pytest.raises(InvalidArgument, match="live job"):
        names.free_abandoned(db._engine, db._state, "t")


def test_a_generation_that_is_not_the_last_is_dropped_without_the_name(db: of.Database) -> None:
    assert start(db) == 1
    job = LiveJob(db._state, "t")
    assert job.replay("plan", [PART]) == 2
    job.stop(2)
    names.drop(db._engine, job, 2, lambda: None)
    assert reserved(db) > 0
    assert submit(db, ops.ReserveName("t")) and job.row() is not None


@pytest.mark.parametrize("name", ["", "x" * 600, "a\0b"])
def test_what_cannot_be_a_table_is_not_reserved(db: of.Database, name: str) -> None:
    for op in (ops.ReserveName(name), ops.FreeName(name, 1)):
        outcome = submit(db, op)
        assert isinstance(outcome, ops.Refused) and outcome.code == "malformed"


def test_a_generation_that_another_call_has_dropped_is_dropped(db: of.Database) -> None:
    assert start(db) == 1
    job = LiveJob(db._state, "t")
    job.stop(1)
    for _ in range(2):
        job.drop(1, reserved(db), lambda: None)
    assert job.row() is None
