"""Transactions, queues, locks and streams as their users see them: what the documents promise, in a folder, in memory and over
several shards.
"""

import threading
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

import onefold as of
from support.state_places import elsewhere, folder_of_space, in_thread, refused, state_db  # noqa: F401

# -- transactions


def test_a_transaction_is_all_or_nothing_with_its_outbox(db):
    m = db.map("accounts")
    m["alice"] = 100

    def move(fail):
        with db.transaction() as tx:
            a = tx.map("accounts")
            a["alice"] -= 10
            a["bob"] = a.get("bob", 0) + 10
            assert a["bob"] == 10  # it reads its own writes
            tx.stream("audit").append({"amount": 10})
            tx.queue("mail").put({"to": "bob"})
            if fail:
                raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        move(True)
    assert dict(m) == {"alice": 100} and len(db.queue("mail")) == 0 and list(db.stream("audit").read()) == []
    move(False)
    assert dict(m) == {"alice": 90, "bob": 10} and len(db.queue("mail")) == 1
    assert [record.value for record in db.stream("audit").read()] == [{"amount": 10}]


def test_whoever_loses_gets_a_conflict_and_run_transaction_tries_again(db):
    m = db.map("m")
    m["k"] = 0

    def bump(tx):
        tries.append(1)
        a = tx.map(m)
        a["k"] += 1
        if len(tries) < 3:
            in_thread(lambda: m.put("k", m["k"] + 10))
        return a["k"]

    tries = []
    assert db.run_transaction(bump) == 21 and len(tries) == 3 and m["k"] == 21
    for lost in ("a value", "an absence", "a range"):
        with pytest.raises(of.Conflict) as error, db.transaction() as tx:  # noqa: PT012
            a = tx.map(m)
            _ = (
                a["k"]
                if lost == "a value"
                else a.get("new")
                if lost == "an absence"
                else list(a.scan(prefix="x"))
            )
            a["written"] = lost
            key = {"a value": "k", "an absence": "new", "a range": ("x", 1)}[lost]
            in_thread(lambda key=key: m.put(key, 5))
        assert error.value.definite and "written" not in m, lost
    tries = []
    with pytest.raises(of.Conflict):
        db.run_transaction(bump, attempts=2)
    assert len(tries) == 2


def test_a_lost_try_with_a_request_id_stays_rejected(db):
    m = db.map("m")
    m["k"] = 0
    for _ in range(2):
        with pytest.raises(of.Conflict, match="'r'"), db.transaction("r") as tx:  # noqa: PT012
            tx.map(m)["k"] += 1
            in_thread(lambda: m.put("k", m["k"] + 1))
    assert db.outcome("r") == "rejected" and db.outcome("never") is None


def test_a_read_only_transaction_is_a_snapshot_and_appends_nothing(db):
    m = db.map("m")
    m["k"] = 1
    before = [space.applied for space in db._shards]
    with db.transaction(read_only=True) as tx:
        assert tx.map(m)["k"] == 1
    assert [space.applied for space in db._shards] == before
    with pytest.raises(of.TransactionError, match="read_only"), db.transaction(read_only=True) as tx:
        tx.map(m)["k"] = 2


PLAIN = {
    "read": lambda db: db.map("m").get("k"),
    "write": lambda db: db.map("m").put("k", 2),
    "scan": lambda db: list(db.map("m")),
    "len": lambda db: len(db.map("m")),
    "watch": lambda db: db.map("m").watch(),
    "put": lambda db: db.queue("q").put(1),
    "take": lambda db: db.queue("q").get(timeout=0).__enter__(),
    "append": lambda db: db.stream("s").append(1),
    "follow": lambda db: list(db.stream("s").read()),
    "lock": lambda db: db.lock("l").__enter__(),
    "nested": lambda db: db.transaction().__enter__(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_handles_are_refused_in_the_block_of_their_own_thread(name):
    with of.connect("memory://") as db:
        m = db.map("m")
        m["k"] = 1
        with db.transaction() as tx:
            refused(of.TransactionError, lambda: PLAIN[name](db), "transaction")
            assert in_thread(lambda: m["k"]) == 1  # another thread is not in the block
            assert tx.map(m)["k"] == 1
        assert m["k"] == 1 and len(db.queue("q")) == 0


# -- queues and locks


def test_a_message_is_given_until_it_is_acknowledged_and_then_is_a_dead_letter(db):
    for number in range(4):  # so that with shards some dead letters go to another one
        q = db.queue(f"mail{number}", lease="30s", max_attempts=2, dead_letter=f"dead{number}")
        held = db.queue(f"mail{number}")
        held.put("held")
        with held.get(timeout=0) as kept:
            q.put({"to": "ann"}, key="ann")
            for attempt in (1, 2):
                with pytest.raises(RuntimeError), q.get(timeout=0) as msg:  # noqa: PT012
                    assert (msg.value, msg.attempt) == ({"to": "ann"}, attempt)
                    msg.extend()
                    raise RuntimeError("bad mail")
            with db.queue(f"dead{number}").get(
                timeout=0
            ) as msg:  # at once, and nobody looks at the queue itself
                assert msg.value == {"to": "ann"}
            assert kept.value == "held"
        assert q.dead() == [] and len(q) == 0
    aside = db.queue("aside", max_attempts=1)
    aside.put("x")
    with pytest.raises(RuntimeError), aside.get(timeout=0):
        raise RuntimeError("no")
    assert [(letter.value, letter.errors) for letter in aside.dead()] == [("x", ("RuntimeError: no",))]
    with aside.get(timeout="10ms") as msg:
        assert msg is None


def test_messages_of_one_key_come_one_at_a_time_in_order(db):
    q = db.queue("q")
    for number in range(3):
        q.put(number, key="k")
    with q.get(timeout=0) as first:
        assert first.value == 0 and len(q) == 3
        with q.get(timeout=0) as second:
            assert second is None
    assert [q.take(0).ack() for _ in range(2)] == [None, None] and len(q) == 0


@pytest.mark.moving(2)
def test_each_message_goes_to_one_of_many_takers(folder):
    program = (
        "with of.connect(sys.argv[1]) as db:\n"
        "    while True:\n"
        "        with db.queue('q').get(timeout=0) as msg:\n"
        "            if msg is None: break\n"
        "            print(msg.value)\n"
    )
    with of.connect(folder) as db:
        for number in range(60):
            db.queue("q").put(number)
        printed = []
        threads = [
            threading.Thread(target=lambda: printed.append(elsewhere(program, folder))) for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(int(line) for text in printed for line in text.split()) == list(range(60))
        assert len(db.queue("q")) == 0


def test_a_delayed_message_and_a_lease_that_is_over(onefold_clock):
    with onefold_clock.connect() as db:
        q = db.queue("q", lease="30s")
        q.put("later", delay="1m")
        assert len(q) == 1 and q.take(0) is None
        onefold_clock.advance("61s")
        message = q.take(0)
        assert message.value == "later" and q.take(0) is None
        onefold_clock.advance("31s")
        again = q.take(0)
        assert again.attempt == 2
        refused(of.Conflict, message.ack, "lease")
        again.ack()


@pytest.mark.moving(2)
def test_a_lock_is_held_by_one_and_its_fencing_tokens_grow(folder):
    with of.connect(folder) as db:
        tokens = []
        for _ in range(2):
            with db.lock("nightly", ttl="1m") as lock:
                tokens.append(lock.fencing_token)
        with db.lock("nightly", ttl="1m") as lock:
            tokens.append(lock.fencing_token)
            program = (
                "try:\n"
                "    with of.connect(sys.argv[1]).lock('nightly', timeout='100ms'): print('mine')\n"
                "except of.Timeout as error: print(error.definite, error)\n"
            )
            assert elsewhere(program, folder).startswith(
                "True the lock 'nightly' did not become free in time"
            )
        tokens.append(
            int(
                elsewhere("with of.connect(sys.argv[1]).lock('nightly') as l: print(l.fencing_token)", folder)
            )
        )
        assert tokens == sorted(set(tokens))


# -- streams


def test_a_stream_keeps_the_order_of_each_key_and_reads_from_anywhere(db):
    s = db.stream("clicks", partitions=8)
    before = datetime.now() - timedelta(milliseconds=2)  # records have milliseconds
    positions = [s.append({"n": n}, key=f"u{n % 3}") for n in range(9)]
    records = list(s.read())
    for user in range(3):
        own = [record for record in records if record.key == f"u{user}"]
        assert [record.value["n"] for record in own] == [user, user + 3, user + 6]
        assert len({record.partition for record in own}) == 1
    assert {"n": 0} in [record.value for record in s.read(positions[0])]
    assert {record.value["n"] for record in s.read(str(positions[4]))} >= {4, 5, 6, 7, 8}
    later = [record.offset for record in s.read(positions[3]) if record.key == "u0"]
    assert later == [1, 2]  # in its own partition nothing before it
    assert list(s.read("latest")) == [] and len(list(s.read(start="earliest"))) == 9
    assert len(list(s.read(start=before))) == len(list(s.read(before.astimezone(UTC)))) == 9
    assert list(s.read(datetime.now(UTC) + timedelta(hours=1))) == []
    refused(of.InvalidArgument, lambda: list(s.read("sometime")), "'earliest'")
    refused(of.InvalidArgument, lambda: db.stream("clicks", partitions=4).append(1), "8", "4")


def test_many_records_at_once_from_a_list_and_a_frame(db):
    s = db.stream("clicks", partitions=8)
    s.append_many([{"user": "a", "n": 1}, {"user": "b", "n": 2}], key="user")
    s.append_many(pl.DataFrame({"user": ["a", "b"], "n": [3, 4]}), key="user")
    found = {(record.key, record.value["n"]): record.partition for record in s.read()}
    assert sorted(found) == [("a", 1), ("a", 3), ("b", 2), ("b", 4)]
    assert found[("a", 1)] == found[("a", 3)] and found[("b", 2)] == found[("b", 4)]
    refused(of.InvalidArgument, lambda: s.append_many(pl.DataFrame({"n": [1]}), key="user"), "'user'")


def test_following_gives_what_another_process_appends(folder):
    with of.connect(folder) as db:
        s = db.stream("s")
        reader = s.read("latest", follow=True, timeout="20s")
        elsewhere("of.connect(sys.argv[1]).stream('s').append('there')", folder)
        assert next(reader).value == "there"


def test_progress_and_effect_of_a_consumer_commit_together(db):
    s = db.stream("orders")
    for price in (1, 2, 3):
        s.append({"price": price}, key="k")
    with s.consumer("billing", timeout=0) as consumer:
        first = next(consumer)
        with db.transaction() as tx:
            tx.map("totals").increment(first.key, first.value["price"])
            tx.commit(consumer)
        next(consumer)  # its effect and progress are lost
    with s.consumer("billing", timeout=0) as consumer:
        for record in consumer:
            with db.transaction() as tx:
                tx.map("totals").increment(record.key, record.value["price"])
                tx.commit(consumer)
    assert dict(db.map("totals")) == {"k": 6}
    with s.consumer("billing", timeout=0) as consumer:
        assert list(consumer) == []
    with s.consumer("others", timeout=0) as consumer:
        assert len(list(consumer)) == 3
        consumer.commit()
