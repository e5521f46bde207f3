"""One job for a table's name, batch or live: whatever the order in which programs start and drop, and wherever one dies."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold.compute.client import JobClient
from onefold.compute.jobs import ops, rows, state
from onefold.compute.live import names
from onefold.compute.live.client import LiveJob, check_free
from onefold.compute.live.names import Unreserved
from onefold.errors import Conflict, InvalidArgument
from onefold.state.core.client import StateClient
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.live import rows as live_rows
from support.live_counting import PART

SEEDS = range(60)
AT_HOME_AND_ELSEWHERE = ("t", "u")
"""Names of which one has its rows in the first shard, of two, and one has not."""


class Killed(BaseException):
    """The program is gone."""


class Turns:
    """Threads that take a step each when it is their turn, in an order by a seed; some are killed before a step."""

    def __init__(self, seed: int, kills: bool) -> None:
        self.random = random.Random(seed)
        self.kills = kills
        self.checks: Callable[[], None] = lambda: None
        self._local = threading.local()
        self._go: list[threading.Semaphore] = []
        self._back = threading.Semaphore(0)
        self._ended: set[int] = set()
        self.errors: list[BaseException] = []

    def step(self) -> None:
        """Before and after each operation of a program."""
        number = getattr(self._local, "number", None)
        if number is None:
            return
        self._back.release()
        self._go[number].acquire()
        if self.kills and self.random.random() < 0.04:
            raise Killed

    def _program(self, number: int, program: Callable[[], None]) -> None:
        self._local.number = number
        self._go[number].acquire()
        try:
            program()
        except Killed:
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            self._ended.add(number)
            self._back.release()

    def run(self, programs: list[Callable[[], None]]) -> None:
        self._go = [threading.Semaphore(0) for _ in programs]
        threads = [
            threading.Thread(target=self._program, args=one, daemon=True) for one in enumerate(programs)
        ]
        for thread in threads:
            thread.start()
        while len(self._ended) < len(programs):
            number = self.random.choice([n for n in range(len(programs)) if n not in self._ended])
            self._go[number].release()
            assert self._back.acquire(timeout=120)
            self.checks()
        for thread in threads:
            thread.join()
        assert not self.errors, self.errors


@contextmanager
def in_turns(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each operation that a program submits is a step."""
    with monkeypatch.context() as patching:
        for kind in (JobClient, StateClient):
            submit = kind.submit

            def stepping(self: Any, *args: Any, submit: Any = submit, **options: Any) -> Any:
                turns.step()
                done = submit(self, *args, **options)
                turns.step()
                return done

            patching.setattr(kind, "submit", stepping)
        yield


def start_live(db: of.Database, name: str) -> bool:
    """Whether a live job of that name was begun, or was there."""
    job = LiveJob(db._state, name)
    try:
        names.begin(db._engine, job, partial(job.start, "plan", [PART]))
    except InvalidArgument:
        return False
    return True


def drop_live(db: of.Database, name: str) -> None:
    job = LiveJob(db._state, name)
    row = job.row()
    if row is None:
        return
    try:
        job.stop(row.current)
        names.drop(db._engine, job, row.current, lambda: None)
    except Conflict:
        pass  # it was dropped, or started, meanwhile


def start_batch(db: of.Database, name: str) -> bool:
    """Whether a run into that table was begun, as ``launching`` does it."""
    engine = db._engine
    for attempt in range(10):
        try:
            check_free(db._state, name)
            table = None
            with engine.shard.view() as view:
                table = state.read_table(view, name)
            outcome = engine.submit(
                ops.Submit(
                    run=f"{name}{id(db)}{attempt}{random.random()}", table=name, sink="table", mode="continue", version=None,
                    digest="d", columns=None, plan="plan", seed=1, on_error="fail", max_attempts=1,
                    stages=(ops.StageSpec((), (), "inputs"),), member="m", expect=None if table is None else table.head,
                )
            )[0]  # fmt: skip
            if isinstance(outcome, ops.Accepted):
                return True
            if outcome.code == "reserved":
                names.free_abandoned(engine, db._state, name)
            else:
                assert outcome.code == "conflict", outcome
        except InvalidArgument:
            return False
    raise AssertionError("it never came to an end")


def drop_batch(db: of.Database, name: str) -> None:
    db._engine.drop_table(name)


def has_both(db: of.Database, name: str) -> bool:
    with db._state.view(db._state.shard_of(encode_key(name))) as view:
        live = live_rows.job_of(view, name) is not None
    with db._engine.shard.view() as view:
        return live and state.read_table(view, name) is not None


@pytest.mark.moving(6)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kills", [False, True])
def test_a_name_has_one_job_in_every_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unsynced: None, seed: int, kills: bool
) -> None:
    name = AT_HOME_AND_ELSEWHERE[seed % 2]
    turns = Turns(seed, kills)
    acts = [start_live, start_live, drop_live, start_batch, start_batch, drop_batch]
    with of.connect(tmp_path, shards=2) as db, in_turns(turns, monkeypatch):
        started = start_live(db, name)
        assert started

        def program(number: int) -> Callable[[], None]:
            chosen = random.Random(seed * 100 + number)

            def run() -> None:
                for _ in range(4):
                    chosen.choice(acts)(db, name)

            return run

        def check() -> None:
            assert not has_both(db, name)

        turns.checks = check
        turns.run([program(number) for number in range(3)])
        drop_live(db, name)
        drop_batch(db, name)
        assert start_batch(db, name)  # nothing that died keeps the name
        assert not start_live(db, name)
        drop_batch(db, name)
        assert start_live(db, name)
        assert not start_batch(db, name)


def test_names_are_in_both_shards(tmp_path: Path) -> None:
    with of.connect(tmp_path, shards=2) as db:
        assert {db._state.shard_of(encode_key(name)) for name in AT_HOME_AND_ELSEWHERE} == {0, 1}


def test_a_start_whose_reservation_was_given_up_reserves_again(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        job = LiveJob(db._state, "t")
        given: list[int] = []

        def start(reservation: int) -> None:
            given.append(reservation)
            if len(given) == 1:
                assert start_batch(db, "t")  # another program takes the start for dead
                drop_batch(db, "t")
            job.start("plan", [PART], reservation)

        names.begin(db._engine, job, start)
        assert len(given) == 2 and given[0] < given[1]
        with pytest.raises(Unreserved):
            LiveJob(db._state, "u").start("plan", [PART], _fenced(db, "u"))


def test_a_job_that_is_dropped_before_its_start_continues_is_not_begun_next_to_a_run(tmp_path: Path) -> None:
    with of.connect(tmp_path) as db:
        assert start_live(db, "t")
        job = LiveJob(db._state, "t")

        def start(reservation: int) -> None:
            drop_live(db, "t")
            assert start_batch(db, "t")
            job.start("plan", [PART], reservation)

        with pytest.raises(InvalidArgument, match="made by a batch job"):
            names.begin(db._engine, job, start)
        assert not has_both(db, "t")


def _fenced(db: of.Database, name: str) -> int:
    (outcome,) = db._engine.submit(ops.ReserveName(name))
    assert isinstance(outcome, ops.Accepted)
    LiveJob(db._state, name).fence(outcome.token)
    return outcome.token


def test_before_their_fold_version_names_are_not_reserved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "NAMES_VERSION", 1 << 20)  # a program of an earlier release has the space open
    with of.connect(tmp_path) as db:
        assert start_live(db, "t")
        with db._engine.shard.view() as view:
            assert list(view.scan(rows.RESERVED)) == []
        assert not start_batch(db, "t")
        drop_live(db, "t")
        assert start_batch(db, "t") and not start_live(db, "t")
