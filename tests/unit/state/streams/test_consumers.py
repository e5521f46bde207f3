"""Consumer groups: shares, commits, and what happens when members come and go, fail and seek."""

from __future__ import annotations

import itertools
import random
import threading
from datetime import UTC, datetime

import pytest

import onefold as of
from onefold import config
from onefold.env import SeededEnv
from onefold.log.memory import MemoryLog
from onefold.shard.memory import MemoryShard
from onefold.state.core.client import StateClient
from onefold.state.fold.machine import StateFold
from onefold.state.fold.streams.ops import CommitOffsets
from onefold.state.streams.stream import Stream
from support.filled_streams import fill

SILENCE = 0.05


@pytest.fixture(params=["memory", "folder", "shards"])
def db(request, tmp_path):
    if request.param == "memory":
        found = of.connect("memory://")
    else:
        found = of.connect(tmp_path / "space", shards=3 if request.param == "shards" else None)
    with found:
        yield found


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(config, "CONSUMER_WATCH_S", 0.02)


def values(consumer):
    return [record.value for record in consumer]


def test_a_consumer_gives_everything_and_goes_on_after_what_it_committed(db):
    s = fill(db, 20)
    with s.consumer("g", timeout=SILENCE) as consumer:
        assert consumer.assignment == (0, 1, 2, 3)
        first = [next(consumer).value for _ in range(8)]
        consumer.commit()
        next(consumer)  # given and not committed
    with s.consumer("g", timeout=SILENCE) as consumer:
        rest = values(consumer)
        consumer.commit()
    assert sorted(first + rest) == list(range(20))
    with s.consumer("g", timeout=SILENCE) as consumer:
        assert values(consumer) == []
        fill(db, 5, start=100)
        assert sorted(values(consumer)) == list(range(100, 105))
    with s.consumer("other", timeout=SILENCE) as consumer:
        assert len(values(consumer)) == 25


def test_records_come_in_the_order_of_each_partition_and_tell_where_they_are(db):
    s = fill(db, 30)
    with s.consumer("g", timeout=SILENCE) as consumer:
        records = list(consumer)
    for partition in range(4):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(len(mine)))
        assert all(record.key == record.value for record in mine)
    assert consumer.position.offsets == {p: end for p, (_, end) in s.positions().items()}


def test_a_new_group_may_start_at_latest(db):
    s = fill(db, 10)
    with s.consumer("g", start="latest", timeout=SILENCE) as consumer:
        fill(db, 3, start=50)
        assert sorted(values(consumer)) == [50, 51, 52]
    with s.consumer("g", start="earliest", timeout=SILENCE) as consumer:
        assert sorted(values(consumer)) == [50, 51, 52]  # the group is not new


def test_a_consumer_waits_for_a_stream_that_is_not_made_yet(db):
    for start in ("earliest", "latest"):
        with db.stream(start).consumer("g", start=start) as consumer:
            consumer.commit()
            db.stream(start, partitions=3).append("first")
            assert next(consumer).value == "first"
            consumer.commit()
            assert consumer.committed


def test_two_consumers_share_the_partitions(db):
    s = fill(db, 40)
    with s.consumer("g", timeout=SILENCE) as one, s.consumer("g", timeout=SILENCE) as two:
        found = {one: values(one), two: values(two)}
        assert len(one.assignment) == len(two.assignment) == 2
        assert set(one.assignment) | set(two.assignment) == {0, 1, 2, 3}
        assert sorted(found[one] + found[two]) == list(range(40))
        one.commit()
        two.commit()
    with s.consumer("g", timeout=SILENCE) as three:
        assert values(three) == []


def test_more_members_than_partitions_leave_some_without(db):
    s = fill(db, 5, partitions=1)
    with s.consumer("g", timeout=SILENCE) as one, s.consumer("g", timeout=SILENCE) as two:
        found = values(one) + values(two)
        assert sorted(found) == list(range(5))
        assert sorted([one.assignment, two.assignment]) == [(), (0,)]


def test_who_closes_leaves_its_share_to_the_others(db):
    s = fill(db, 40)
    with s.consumer("g", timeout=SILENCE) as one:
        two = s.consumer("g", timeout=SILENCE)
        mine, lost = values(one), values(two)
        one.commit()
        two.close()
        assert len(one.assignment) == 2
        again = values(one)
        assert sorted(again) == sorted(lost)
        assert one.assignment == (0, 1, 2, 3)
        assert sorted(mine + again) == list(range(40))
    with pytest.raises(of.SpaceError, match="closed"):
        next(two)
    two.close()


def test_a_commit_after_a_rebalance_is_refused_until_iteration_goes_on(db):
    s = fill(db, 40)
    with s.consumer("g", timeout=SILENCE) as one:
        given = [next(one).value for _ in range(20)]
        with s.consumer("g", timeout=SILENCE) as two:
            for _ in range(2):
                with pytest.raises(of.Conflict, match="reassigned") as caught:
                    one.commit()
                assert caught.value.definite
            mine, others = values(one), values(two)
            assert sorted(mine + others) == list(range(40))  # all of it again: nothing had been committed
            assert set(given) & set(mine)
            one.commit()
            two.commit()


def test_a_lost_partition_is_given_no_more_and_what_stays_goes_on(db):
    s = fill(db, 40)
    with s.consumer("g", timeout=SILENCE) as one:
        first = [next(one).value for _ in range(20)]
        with s.consumer("g", timeout=SILENCE) as two:
            one._members.look_now()
            rest = list(one)
            assert {record.partition for record in rest} <= set(one.assignment)
            assert not {record.value for record in rest} & set(first)
            with pytest.raises(of.Conflict):
                one.commit()
            assert sorted(values(two)) == sorted(record.value for record in s.read(partitions=two.assignment))


def test_exactly_once_under_conflicts(db):
    rng = random.Random(4)
    s = fill(db, 60)
    counts = db.map("counts")
    counts["n"] = 0
    conflicts = 0
    with s.consumer("g", timeout=SILENCE) as consumer:
        for record in consumer:
            try:
                with db.transaction() as tx:
                    tx.map("counts")["n"] = tx.map("counts")["n"] + 1
                    tx.map("seen")[record.value] = tx.map("seen").get(record.value, 0) + 1
                    tx.commit(consumer)
                    if rng.random() < 0.3:
                        _in_thread(lambda: counts.modify("n", lambda n: n))
            except of.Conflict:
                conflicts += 1
    assert conflicts > 5
    assert dict(db.map("seen").items()) == dict.fromkeys(range(60), 1)
    assert counts["n"] == 60


def test_exactly_once_while_members_come_and_go(db):
    rng = random.Random(9)
    s = fill(db, 80)
    members, conflicts = [s.consumer("g", timeout=0)], 0
    for _ in range(3000):
        if rng.random() < 0.05 and len(members) > 1:
            members.pop(rng.randrange(len(members))).close()
        consumer = rng.choice(members)
        batch = [record.value for record in itertools.islice(consumer, rng.randrange(1, 5))]
        if rng.random() < 0.05 and len(members) < 4:
            members.append(s.consumer("g", timeout=0))  # between reading and committing
        try:
            with db.transaction() as tx:
                for value in batch:
                    tx.map("seen").increment(value)
                tx.commit(consumer)
        except of.Conflict:
            conflicts += 1
        if len(db.map("seen")) == 80 and rng.random() < 0.1:
            break
    for member in members:
        member.close()
    assert conflicts
    with s.consumer("g", timeout=SILENCE) as consumer:
        assert values(consumer) == []
    assert dict(db.map("seen").items()) == dict.fromkeys(range(80), 1)


def _in_thread(fn):
    thread = threading.Thread(target=fn)
    thread.start()
    thread.join()


def test_a_retried_transaction_commits_the_same_records_once(db):
    s = fill(db, 10, partitions=1)
    db.map("m")["n"] = 0
    tries = 0

    def work(tx):
        nonlocal tries
        tries += 1
        tx.map("m")["n"] = tx.map("m")["n"] + len(batch)
        tx.commit(consumer)
        if tries == 1:
            _in_thread(lambda: db.map("m").modify("n", lambda n: n))

    with s.consumer("g", timeout=SILENCE) as consumer:
        batch = [next(consumer) for _ in range(4)]
        db.run_transaction(work)
        assert tries == 2
        assert next(consumer).value == 4
        assert consumer.committed == {0: 4}
    assert db.map("m")["n"] == 4


def test_offsets_that_another_has_moved_are_no_proof_that_a_transaction_committed(db):
    """A transaction of the partition's earlier owner may be decided after the partition was given to this member."""
    s = fill(db, 10, partitions=1)
    tries = 0

    def work(tx):
        nonlocal tries
        tries += 1
        tx.map("m")["n"] = tx.map("m").get("n", 0) + len(batch)
        tx.commit(consumer)
        if tries == 1:
            members = consumer._members
            move = CommitOffsets("s", "g", members.id, members.generation, ((0, -1, 4),))
            _in_thread(lambda: s.client.commit(s.layout.home, (move,)))

    with s.consumer("g", timeout=SILENCE) as consumer:
        batch = [next(consumer) for _ in range(4)]
        with pytest.raises(of.Conflict):
            db.run_transaction(work, attempts=3)
        assert tries == 3
        assert db.map("m").get("n") is None
        assert next(consumer).value == 4
        assert consumer.committed == {0: 4}


def test_a_commit_that_was_not_confirmed_is_not_done_twice(db, monkeypatch):
    """As when the program was broken off between the commit and the word of it."""
    s = fill(db, 10, partitions=1)

    def count(tx):
        tx.map("m")["n"] = tx.map("m").get("n", 0) + len(batch)
        tx.commit(consumer)

    with s.consumer("g", timeout=SILENCE) as consumer:
        batch = [next(consumer) for _ in range(4)]
        with monkeypatch.context() as patched:
            patched.setattr(consumer, "_confirm", lambda *_: None)
            db.run_transaction(count)
        with pytest.raises(of.Conflict):
            db.run_transaction(count, attempts=2)
        assert db.map("m")["n"] == 4
        assert next(consumer).value == 4
        consumer.commit()
        assert consumer.committed == {0: 5}


def test_a_rewind_that_fails_is_made_up_for_by_the_next_step(db, monkeypatch):
    s = fill(db, 10, partitions=1)
    with s.consumer("g", timeout=SILENCE) as consumer:
        batch = [next(consumer) for _ in range(4)]
        with pytest.raises(RuntimeError), db.transaction() as tx:  # noqa: PT012
            tx.commit(consumer)
            raise RuntimeError("changed its mind")
        with monkeypatch.context() as patched:
            patched.setattr(consumer._members, "refresh", _unreachable)
            with pytest.raises(of.Unavailable):
                next(consumer)
        assert [next(consumer).value for _ in range(5)] == [*(record.value for record in batch), 4]
        consumer.commit()


def _unreachable():
    raise of.Unavailable("no answer", definite=True)


def test_transactions_one_after_the_other_without_a_record_between(db):
    s = fill(db, 10, partitions=1)
    with s.consumer("g", timeout=SILENCE) as consumer:
        next(consumer)
        for number in range(3):
            with db.transaction() as tx:
                tx.map("m")[number] = 1
                tx.commit(consumer)
        assert next(consumer).value == 1
        consumer.commit()
        assert consumer.committed == {0: 2}
        with pytest.raises(of.TransactionError, match="has ended"), db.transaction() as tx:  # noqa: PT012
            next(consumer)
            tx.commit(consumer)
            next(consumer)
        assert next(consumer).value == 2
        consumer.commit()


def test_after_a_transaction_that_failed_plain_commit_still_means_all_that_was_given(db):
    s = fill(db, 10, partitions=1)
    with s.consumer("g", timeout=SILENCE) as consumer:
        next(consumer)
        with pytest.raises(ZeroDivisionError), db.transaction() as tx:  # noqa: PT012
            tx.commit(consumer)
            raise ZeroDivisionError
        consumer.commit()
        assert consumer.committed == {0: 1}
        next(consumer)
        with pytest.raises(ZeroDivisionError), db.transaction() as tx:  # noqa: PT012
            tx.commit(consumer)
            raise ZeroDivisionError
        assert next(consumer).value == 1  # given again


def test_rewind_and_seek(db):
    s = fill(db, 10, partitions=1)
    with s.consumer("g", timeout=SILENCE) as consumer:
        assert values(consumer) == list(range(10))
        consumer.rewind()
        assert values(consumer) == list(range(10))
        consumer.commit()
        consumer.rewind()
        assert values(consumer) == []
        consumer.seek("earliest")
        assert next(consumer).value == 0
        consumer.commit()
        consumer.seek("latest")
        assert values(consumer) == []
        consumer.seek(next(s.read()).position)
        assert next(consumer).value == 1
        consumer.seek(datetime(2000, 1, 1, tzinfo=UTC))
        assert next(consumer).value == 0
        with pytest.raises(of.InvalidArgument):
            consumer.seek("nowhere")


def test_what_retention_removed_before_it_was_consumed_is_told():
    env = SeededEnv(1)
    client = StateClient([MemoryShard(MemoryLog(env=env), [StateFold()], env)])
    s = Stream(client, "s", retention="1m")
    s.append(0)
    consumer = s.consumer("g", timeout=0)
    assert next(consumer).value == 0
    consumer.commit()
    s.append(1)
    env.advance(61)
    s.append(2)
    with pytest.raises(of.TooOld, match="has been removed"):
        next(consumer)
    consumer.seek("earliest")
    assert next(consumer).value == 2
    consumer.commit()
    client.close()


class Broken(Exception):
    """What goes wrong in a transaction's block."""


def test_a_block_that_failed_after_its_commit_of_the_consumer_takes_it_back(db):
    with fill(db, 6, partitions=1).consumer("g", timeout=SILENCE) as consumer:
        assert next(consumer).value == 0

        def broken() -> None:
            with db.transaction() as tx:
                tx.commit(consumer)
                raise Broken

        with pytest.raises(Broken):
            broken()
        assert next(consumer).value == 0


def test_of_a_block_that_failed_before_it_the_consumer_is_told_by_rewind(db):
    with fill(db, 6, partitions=1).consumer("g", timeout=SILENCE) as consumer:
        assert next(consumer).value == 0
        with pytest.raises(Broken), db.transaction():
            raise Broken
        consumer.rewind()
        assert next(consumer).value == 0
        with db.transaction() as tx:
            tx.commit(consumer)
        assert next(consumer).value == 1


def test_bad_arguments_are_told(db):
    s = fill(db, 1)
    for wrong in ("", None, "x" * 201):
        with pytest.raises(of.InvalidArgument, match="consumer group"):
            s.consumer(wrong)
    for wrong in ("middle", 5, None):
        with pytest.raises(of.InvalidArgument, match="start"):
            s.consumer("g", start=wrong)
    with pytest.raises(of.InvalidArgument, match="timeout"):
        s.consumer("g", timeout="soon")
    with s.consumer("g", timeout=SILENCE) as consumer:
        next(consumer)
        with pytest.raises(of.TransactionError, match=r"tx.commit\(consumer\)"), db.transaction():
            consumer.commit()
        with (
            of.connect("memory://") as foreign,
            pytest.raises(of.TransactionError),
            foreign.transaction() as tx,
        ):
            tx.commit(consumer)
    with pytest.raises(of.SpaceError, match="closed"):
        consumer.commit()


class Interposed(dict):
    """Lets something happen in another thread right after a look."""

    def __init__(self, known, then):
        super().__init__(known)
        self.then = then

    def get(self, key, default=None):
        found = super().get(key, default)
        then, self.then = self.then, None
        if then is not None:
            thread = threading.Thread(target=then)
            thread.start()
            thread.join(0.3)  # it may have to wait until the look is over
            self.thread = thread
        return found


def test_what_is_given_while_another_thread_commits_counts_as_given():
    """As an event loop does, which gives what was found while a task's commit is in a thread."""
    with of.connect("memory://") as db:
        s = db.stream("s", partitions=1)
        s.append_many(["a", "b", "c"])
        with s.consumer("g", timeout=SILENCE) as consumer:
            assert next(consumer).value == "a" and consumer.poll()
            given = []
            consumer._next = Interposed(consumer._next, lambda: given.append(consumer.give()))
            consumer.commit()
            consumer._next.thread.join(60)
            assert [record.value for record in given] == ["b"] and consumer.committed == {0: 1}
            consumer.commit()
            assert consumer.committed == {0: 2}
            consumer.rewind()
            assert values(consumer) == ["c"]
