"""A map inside a transaction is laid over the snapshot: what is written, read, refused and ended there."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

import threading
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

import onefold as of
from onefold.db import Database
from onefold.env import SeededEnv
from onefold.folds import folds as space_folds
from onefold.space.open_space import open_shards
from onefold.state.encoding.items import Version
from onefold.state.encoding.keys import decode_key, encode_key
from onefold.state.maps.in_transaction import PENDING
from support.transacted import contents, elsewhere


@pytest.fixture
def db():
    with of.connect("memory://") as opened:
        yield opened


def timed(env):
    return Database(open_shards("memory://", space_folds, env=env))


def put(db, items, name="m", ttl=None):
    with db.transaction() as tx:
        tx.map(name).put_many(items, ttl=ttl)


# -- writes


def test_writes_are_folded_into_the_fewest(db):
    with db.transaction() as tx:
        m = tx.map("m")
        for number in range(10):
            m[number] = number
            m["x"] = number
        m.put("t", 1, ttl="1m")
        m.put("u", 1, ttl=60)
        m.increment("n")
        m.increment("n", 2)
        tx.map("other")["a"] = 1
        for key in ("p", "q"):
            tx._core.buffer.delete("m", [encode_key(key)])
        ((shard, part),) = tx._core.parts().items()
    assert (shard, part.reads, part.spans) == (0, (), ())
    assert [type(write).__name__ for write in part.writes] == ["Put", "Put", "Put", "Delete", "Increment"]
    assert [len(write.items) for write in part.writes[:3]] == [11, 2, 1]
    assert contents(db)["n"] == 3


def test_an_increment_of_what_is_no_number_is_refused(db):
    put(db, {"text": "hello"})
    with db.transaction() as tx:
        m = tx.map("m")
        m["mine"] = "text"
        with pytest.raises(of.InvalidValue):
            m.increment("mine")
        with pytest.raises(of.InvalidArgument):
            m.increment("n", "1")
        with pytest.raises(of.InvalidArgument):
            m.increment("n", True)
        del m["mine"]
    with pytest.raises(of.InvalidValue) as caught, db.transaction() as tx:
        tx.map("m").increment("text")
        tx.map("m")["beside"] = 1
    assert caught.value.definite
    with pytest.raises(of.InvalidValue), db.transaction() as tx:
        tx.map("m").increment("text")
        _ = tx.map("m")["text"]
    assert contents(db) == {"text": "hello"}


def test_an_increment_keeps_the_lifetime_and_one_that_makes_the_key_sets_it():
    env = SeededEnv(1)
    with timed(env) as db:
        put(db, {"a": 1}, ttl=60)
        with db.transaction() as tx:
            m = tx.map("m")
            m.increment("a", ttl=10)
            m.increment("b", ttl=10)
            m.increment("b", ttl=99)
            m.increment("c")
        env.advance(11)
        assert contents(db) == {"a": 2, "c": 1}
        env.advance(50)
        assert contents(db) == {"c": 1}


def test_bad_arguments_are_refused_before_anything_is_buffered(db):
    with db.transaction() as tx:
        m = tx.map("m")
        for refused, error in (
            (lambda: m.put(1.5, 1), of.InvalidKey),
            (lambda: m.get(1.5), of.InvalidKey),
            (lambda: m.put("a", object()), of.InvalidValue),
            (lambda: m.put_many({"a": 1, "b": object()}), of.InvalidValue),
            (lambda: m.put("a", 1, ttl=-1), of.InvalidArgument),
            (lambda: m.put("a", 1, ttl=0), of.InvalidArgument),
            (lambda: m.put("a", 1, if_version="1-2", if_absent=True), of.InvalidArgument),
            (lambda: m.put("a", 1, if_version="?"), of.InvalidArgument),
            (lambda: m.scan(limit=-1), of.InvalidArgument),
            (lambda: m.scan(limit=True), of.InvalidArgument),
            (lambda: tx.map(""), of.InvalidArgument),
            (lambda: tx.map("x" * 1000), of.InvalidArgument),
            (lambda: tx.map(7), of.InvalidArgument),
            (lambda: tx.commit("consumer"), of.InvalidArgument),
        ):
            with pytest.raises(error):
                refused()
        assert dict(m) == {}
        with pytest.raises(TypeError):
            hash(m)
    assert tx.version is None


# -- items, versions, conditions


def test_get_item_gives_the_snapshots_version_and_pending_for_own_writes():
    env = SeededEnv(1)
    with timed(env) as db:
        put(db, {"a": 1, "n": 1})
        put(db, {"t": 1}, ttl=60)
        with db.transaction() as tx:
            m = tx.map("m")
            first = m.get_item("a")
            assert (first.key, first.value, first.expires_at) == ("a", 1, None)
            assert first.version == Version.of(str(first.version)) != PENDING
            end = m.get_item("t").expires_at
            assert end == datetime.fromtimestamp(env.wall_ms() / 1000 + 60, UTC)
            m.put("a", 2, ttl=30)
            assert (m.get_item("a").version, m.get_item("a").value) == (PENDING, 2)
            assert m.get_item("a").expires_at == end - timedelta(seconds=30)
            m.increment("t")
            assert (m.get_item("t").version, m.get_item("t").expires_at) == (PENDING, end)
            assert m.get_item("none") is None
        with db.transaction(read_only=True) as later:
            assert later.map("m").get_item("a").version == tx.version


def test_conditions_hold_in_the_snapshot_or_raise_conflict_at_once(db):
    put(db, {"a": 1, "b": 1})
    with db.transaction() as tx:
        m = tx.map("m")
        version = m.get_item("a").version
        m.put("c", 1, if_absent=True)
        for refused in (
            lambda: m.put("a", 2, if_absent=True),
            lambda: m.put("c", 2, if_absent=True),
            lambda: m.put("none", 2, if_version=version),
            lambda: m.put("c", 2, if_version=version),
            lambda: m.delete("none", if_version=version),
            lambda: m.delete("a", if_version=str(version).replace("0-", "0-z")),
        ):
            with pytest.raises(of.Conflict) as caught:
                refused()
            assert caught.value.definite
        m.put("a", 2, if_version=str(version))
        with pytest.raises(of.Conflict):
            m.put("a", 3, if_version=version)  # now it is what this transaction wrote
        m.put("a", 4, if_version=PENDING)
        assert m.delete("b", if_version=m.get_item("b").version) is True
    assert contents(db) == {"a": 4, "c": 1}
    with pytest.raises(of.Conflict), db.transaction() as tx:
        tx.map("m").put("d", 1, if_absent=True)
        elsewhere(lambda: put(db, {"d": 2}))


# -- lifetimes


def test_what_has_ended_is_gone_for_every_transaction():
    env = SeededEnv(1)
    with timed(env) as db:
        put(db, {"a": 1, "b": 2}, ttl=10)
        put(db, {"c": 3})
        space = db._state.shards[0]
        env.advance(10)
        before = space.applied
        with db.transaction(read_only=True) as tx:
            m = tx.map("m")
            assert dict(m) == {"c": 3} == m.get_many(["a", "b", "c"])
            assert (m.get("a"), "b" in m, m.get_item("a"), len(m)) == (None, False, None, 1)
            assert list(m.scan(limit=1)) == [("c", 3)]
        assert space.applied == before, "a read-only transaction appends nothing"
        with db.transaction() as tx:
            m = tx.map("m")
            assert dict(m) == {"c": 3}
            m.put("a", 5, if_absent=True)
        assert contents(db) == {"a": 5, "c": 3}


def test_what_ends_during_a_read_only_transaction_stays_in_its_snapshot():
    env = SeededEnv(1)
    with timed(env) as db:
        put(db, {"a": 1}, ttl=10)
        with db.transaction(read_only=True) as tx:
            m = tx.map("m")
            assert m["a"] == 1
            env.advance(11)
            assert m["a"] == 1
            assert dict(m) == {"a": 1}
        with pytest.raises(of.Conflict), db.transaction() as tx:
            m = tx.map("m")
            put_again = m.setdefault("a", 2)
            m["seen"] = put_again
            elsewhere(lambda: put(db, {"a": 3}))


def test_an_item_that_was_read_and_ends_before_the_commit_conflicts():
    env = SeededEnv(1)
    with timed(env) as db:
        put(db, {"a": 1}, ttl=10)
        with pytest.raises(of.Conflict), db.transaction() as tx:
            tx.map("m")["b"] = tx.map("m")["a"]
            env.advance(11)


# -- iteration


def test_writing_while_iterating_does_not_disturb_the_iteration(db):
    put(db, {number: number for number in range(100)})
    with db.transaction() as tx:
        m = tx.map("m")
        for key in m:
            del m[key]
            m[key + 1000] = key
        assert list(m.items()) == [(number + 1000, number) for number in range(100)]
        pairs = m.scan()
        assert next(pairs) == (1000, 0)
        m.clear()
        assert list(pairs) == [(number + 1000, number) for number in range(1, 100)]
        assert len(m) == 0
    assert contents(db) == {}


@pytest.mark.parametrize("reverse", [False, True])
def test_long_scans_of_large_values_come_in_pages(db, reverse, monkeypatch):
    monkeypatch.setattr("onefold.config.MAP_PAGE_BYTES", 10_000)
    expected = [(number, "x" * 1000) for number in range(200)]
    put(db, expected)
    with db.transaction(read_only=True) as tx:
        m = tx.map("m")
        pairs = m.scan(reverse=reverse)
        first = next(pairs)
        elsewhere(lambda: put(db, [(number, "other") for number in range(200)]))
        assert [first, *pairs] == (expected[::-1] if reverse else expected)
        assert list(m.scan(reverse=reverse)) == (expected[::-1] if reverse else expected)
        assert list(m.scan(start=50, stop=150, limit=90, reverse=reverse)) == (
            expected[149:59:-1] if reverse else expected[50:140]
        )


# -- types


@dataclass
class Account:
    balance: int
    owner: str = ""


def test_a_typed_map_gives_its_type(db):
    with db.transaction() as tx:
        accounts = tx.map("accounts", Account)
        assert isinstance(accounts, MutableMapping)
        accounts["a"] = Account(5)
        assert accounts["a"] == Account(5)
        with pytest.raises(of.InvalidValue):
            accounts["b"] = 5
        assert list(accounts.values()) == [Account(5)]
    with db.transaction(read_only=True) as tx:
        assert tx.map("accounts", type=Account).get_item("a").value == Account(5)
        assert tx.map("accounts")["a"] == {"balance": 5, "owner": ""}
    assert decode_key(encode_key("a")) == "a"


def test_a_value_that_was_read_is_a_private_copy(db):
    put(db, {"a": [1]})
    with db.transaction() as tx:
        m = tx.map("m")
        m["a"].append(2)
        assert m["a"] == [1]
        mine = [1]
        m["b"] = mine
        mine.append(2)
        assert m["b"] == [1]


def test_handles_of_the_same_database_are_taken_and_others_refused(db):
    accounts = db.map("accounts", type=Account)
    with db.transaction() as tx:
        m = tx.map(accounts)
        m["a"] = Account(1)
        with pytest.raises(of.TransactionError, match="outside of the transaction"):
            _ = accounts["a"]
        with of.connect("memory://") as other, pytest.raises(of.TransactionError, match="another connection"):
            tx.map(other.map("accounts"))
    assert accounts["a"] == Account(1)


def test_queues_are_written_with_the_transaction(db):
    queue = db.queue("mail")
    with pytest.raises(ZeroDivisionError), db.transaction() as tx:
        tx.queue("mail").put("never")
        _ = 1 / 0
    with db.transaction() as tx:
        tx.queue(queue).put("b")
        tx.map("m")["a"] = 1
        with of.connect("memory://") as other, pytest.raises(of.TransactionError):
            tx.queue(other.queue("mail"))
    assert (len(queue), contents(db)) == (1, {"a": 1})


def test_streams_are_written_and_consumed_with_the_transaction(db):
    clicks = db.stream("clicks")
    with pytest.raises(ZeroDivisionError), db.transaction() as tx:
        tx.stream("clicks").append("never")
        _ = 1 / 0
    with db.transaction() as tx:
        tx.stream(clicks).append("a")
        tx.stream("clicks").append_many(["b", "c"])
        with of.connect("memory://") as other, pytest.raises(of.TransactionError):
            tx.stream(other.stream("clicks"))
    assert [record.value for record in clicks.read()] == ["a", "b", "c"]
    consumer = clicks.consumer("group")
    next(consumer)
    with pytest.raises(ZeroDivisionError), db.transaction() as tx:
        tx.commit(consumer)
        _ = 1 / 0
    with db.transaction() as tx:
        tx.map("m")["seen"] = 1
        tx.commit(consumer)
    consumer.close()
    assert contents(db) == {"seen": 1}
    again = clicks.consumer("group")
    assert next(again).value == "b"
    again.close()


def test_transactions_of_threads_do_not_see_each_other(db):
    done = threading.Barrier(4, timeout=60)

    def work(number):
        with db.transaction() as tx:
            m = tx.map("m")
            m[number] = number
            done.wait()
            assert list(m) == [number]  # nobody's else: nothing was committed yet
            done.wait()
            m.pop(number)
            m[number + 10] = 1

    with ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(work, number) for number in range(4)]
    outcomes = [task.exception() for task in tasks]
    assert all(error is None or isinstance(error, of.Conflict) for error in outcomes)
    assert any(error is None for error in outcomes)
