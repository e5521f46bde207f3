"""Queues in a space of several shards: what a transaction over shards has put is there once it is decided."""

import pytest

import onefold as of
from onefold.state.transactions.coordinator import Coordinator


@pytest.fixture
def db(tmp_path):
    with of.connect(tmp_path / "space", shards=4) as opened:
        yield opened


def test_a_message_of_a_commit_that_nobody_resolved_is_taken(db, monkeypatch):
    # The coordinator dies after its decision: the message is committed, and still prepared in the queue's shard.
    class Died(BaseException):
        pass

    def die(*_, **__):
        raise Died

    queues = [f"q{number}" for number in range(8)]
    monkeypatch.setattr(Coordinator, "_resolve", die)

    def put_all(tx):
        for name in queues:
            tx.queue(name).put(name)

    with pytest.raises(Died):
        db.run_transaction(put_all)
    for name in queues:
        with db.queue(name).get(timeout=0) as msg:
            assert msg is not None
            assert msg.value == name
