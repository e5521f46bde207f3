"""``run_transaction`` tries again alike in the synchronous and the asynchronous API."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest

import onefold as of
from onefold import aio, config
from onefold.env import SYSTEM
from onefold.state.running import run_transaction

SYNC_AND_ASYNC = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class Skewed:
    """The real environment, with a clock that the test moves on."""

    def __init__(self) -> None:
        self.skew_s = 0.0

    def wall_ms(self) -> int:
        return SYSTEM.wall_ms()

    def boot_s(self) -> float:
        return SYSTEM.boot_s() + self.skew_s

    def token(self, nbytes: int) -> bytes:
        return bytes(nbytes)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(config, "TRANSACTION_BACKOFF_MAX_S", config.TRANSACTION_BACKOFF_S)


def losing(
    path: Path,
    asynchronous: bool,
    *,
    timeout=None,
    took_s=0.0,
    error=of.Conflict,
    raises=of.Conflict,
    **options,
):
    """How often a transaction was tried whose every try takes so long and loses, and what was raised in the end."""
    env, tries = Skewed(), []

    def lose() -> None:
        tries.append(1)
        env.skew_s += took_s
        raise error("lost")

    async def lose_later(tx) -> None:
        lose()

    async def run() -> None:
        async with await aio.connect(path, timeout=timeout) as db:
            db.sync._state.env = env
            await db.run_transaction(lose_later, **options)

    def run_sync() -> None:
        with closing(of.connect(path, timeout=timeout)) as db:
            db._state.env = env
            run_transaction(db._state, lambda tx: lose(), **options)

    with pytest.raises(raises) as caught:
        asyncio.run(run()) if asynchronous else run_sync()
    return len(tries), caught.value


@SYNC_AND_ASYNC
def test_a_lost_transaction_is_tried_as_often_as_asked_for(tmp_path, asynchronous):
    tries, error = losing(tmp_path / "db", asynchronous, attempts=4)
    assert (tries, str(error)) == (4, "lost")


@SYNC_AND_ASYNC
def test_no_try_begins_after_the_time_limit_of_the_connection(tmp_path, asynchronous):
    assert losing(tmp_path / "db", asynchronous, timeout=1000.0, took_s=400.0, attempts=50)[0] == 3
    assert losing(tmp_path / "db", asynchronous, timeout=None, took_s=400.0, attempts=5)[0] == 5


@SYNC_AND_ASYNC
@pytest.mark.parametrize("attempts", [0, -1, True, 1.5, "3", None])
def test_a_wrong_number_of_attempts_is_refused_before_the_first(tmp_path, asynchronous, attempts):
    tries, error = losing(tmp_path / "db", asynchronous, attempts=attempts, raises=of.InvalidArgument)
    assert tries == 0
    assert "attempts must be a whole number" in str(error)


@SYNC_AND_ASYNC
def test_only_a_conflict_is_tried_again(tmp_path, asynchronous):
    assert losing(tmp_path / "db", asynchronous, error=of.Unavailable, raises=of.Unavailable)[0] == 1


@SYNC_AND_ASYNC
def test_a_condition_that_did_not_hold_is_not_tried_again(tmp_path, asynchronous):
    tries = []

    def put(tx):
        tries.append(1)
        tx.map("m").put("a", 1)
        tx.map("m").put("a", 2, if_absent=True)

    async def run():
        async with await aio.connect(tmp_path / "db") as db:

            async def work(tx):
                tries.append(1)
                await tx.map("m").put("a", 1)
                await tx.map("m").put("a", 2, if_absent=True)

            await db.run_transaction(work)

    def run_sync():
        with closing(of.connect(tmp_path / "db")) as db:
            db.run_transaction(put)

    with pytest.raises(of.Conflict, match="if_absent"):
        asyncio.run(run()) if asynchronous else run_sync()
    assert len(tries) == 1
