"""Consumers in transactions under a request id, which may have been committed before with other contents."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import onefold as of
from onefold.state.core.client import StateClient
from onefold.state.fold.outcomes import Committed
from onefold.state.transactions.coordinator import Coordinator
from support.filled_streams import fill

SILENCE = 0.05
BATCH = 5
KEYS = range(8)
"""Enough that they are in every shard."""


@pytest.fixture(params=[None, 4], ids=["one shard", "four shards"])
def db(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[of.Database]:
    with of.connect(tmp_path / "space", shards=request.param) as found:
        yield found


def commits_under(db: of.Database, request_id: str, consumer: of.Consumer[int]) -> None:
    with db.transaction(request_id=request_id) as tx:
        tx.map("m")[request_id] = "second"
        tx.commit(consumer)


def check_nothing_passed_over(consumer: of.Consumer[int]) -> None:
    """The consumer's transaction did not happen, so all its records come again, and can be committed."""
    assert [next(consumer).value for _ in range(BATCH)] == list(range(BATCH))
    assert consumer.committed == {}
    consumer.commit()
    assert consumer.committed == {0: BATCH}


@pytest.mark.parametrize("keys", [(0,), KEYS], ids=["one key", "many keys"])
@pytest.mark.parametrize("behind", [False, True])
def test_offsets_do_not_move_by_what_the_request_did_before(
    db: of.Database, keys: range, behind: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if behind:  # as a replica may be that has not yet applied what the request did
        monkeypatch.setattr(StateClient, "present", lambda *_: {})
    for number in range(2):  # whose homes are shards of their own
        stream, request = fill(db, BATCH, partitions=1, name=f"s{number}"), f"request-{number}"
        with db.transaction(request_id=request) as tx:
            for key in keys:
                tx.map("m")[key] = "first"
        with stream.consumer("g", timeout=SILENCE) as consumer:
            for _ in range(BATCH):
                next(consumer)
            commits_under(db, request, consumer)
            check_nothing_passed_over(consumer)
        assert db.map("m").get(request) is None


def test_nor_by_what_is_resolved_only_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The earlier one died when it had been decided, so its writes are done by the one that asks for its outcome."""
    with of.connect(tmp_path / "space", shards=4) as db:
        stream = fill(db, BATCH, partitions=1)
        with monkeypatch.context() as patched:
            patched.setattr(Coordinator, "_resolve", lambda *_: {0: Committed(0, 0)})
            with db.transaction(request_id="x") as tx:
                for key in KEYS:
                    tx.map("m")[key] = 1
        with stream.consumer("g", timeout=SILENCE) as consumer:
            for _ in range(BATCH):
                next(consumer)
            with db.transaction(request_id="x") as tx:
                for key in KEYS:
                    tx.map("m").increment(key)
                tx.commit(consumer)
            assert tx.increments == {}
            check_nothing_passed_over(consumer)
        assert dict(db.map("m").items()) == dict.fromkeys(KEYS, 1)


def test_a_request_that_commits_moves_them(db: of.Database) -> None:
    stream = fill(db, 3 * BATCH, partitions=1)
    with stream.consumer("g", timeout=SILENCE) as consumer:
        for number in range(3):
            assert [next(consumer).value for _ in range(BATCH)] == [
                *range(number * BATCH, (number + 1) * BATCH)
            ]
            commits_under(db, f"a{number}", consumer)
            commits_under(db, f"a{number}", consumer)  # again, as one without an answer does
            commits_under(db, f"b{number}", consumer)  # without a record between
        assert consumer.committed == {0: 3 * BATCH}
        assert len(db.map("m")) == 6
