"""A map inside a transaction is a dict laid over the snapshot."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

import threading
from collections.abc import MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onefold as of
from onefold.db import Database
from onefold.env import SeededEnv
from onefold.fold.shards import open_shards
from onefold.folds import folds as space_folds
from onefold.state.items import Version
from onefold.state.keys import decode_key, encode_key, encode_prefix
from onefold.state.ops import Delete, Increment, Put
from onefold.state.tx_buffer import Buffer, Meter, overlay, value_over
from onefold.state.tx_map import PENDING
from onefold.state.values import encode_value


@pytest.fixture
def db():
    with of.connect("memory://") as opened:
        yield opened


@pytest.fixture(scope="module")
def shared():
    with of.connect("memory://") as opened:
        yield opened


def timed(env):
    return Database(open_shards("memory://", space_folds, env=env))


def elsewhere(fn):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def put(db, items, name="m", ttl=None):
    with db.transaction() as tx:
        tx.map(name).put_many(items, ttl=ttl)


def contents(db, name="m"):
    with db.transaction(read_only=True) as tx:
        return dict(tx.map(name))


def in_order(mapping):
    return sorted(mapping.items(), key=lambda pair: encode_key(pair[0]))


# -- as a dict

KEYS = st.sampled_from([None, b"b", "a", "b", "c", ("a", 1), ("a", 2), ("b", "x"), ((1, 2),), -1, 0, 7, True])
NUMBERS = st.integers(-5, 5)
OPS = st.one_of(
    st.tuples(st.just("set"), KEYS, NUMBERS),
    st.tuples(st.just("del"), KEYS),
    st.tuples(st.just("delete"), KEYS),
    st.tuples(st.just("increment"), KEYS, NUMBERS),
    st.tuples(st.just("pop"), KEYS, NUMBERS),
    st.tuples(st.just("setdefault"), KEYS, NUMBERS),
    st.tuples(st.just("modify"), KEYS),
    st.tuples(st.just("update"), st.dictionaries(KEYS, NUMBERS, max_size=4)),
    st.tuples(st.just("clear")),
    st.tuples(st.just("get"), KEYS),
    st.tuples(st.just("in"), KEYS),
    st.tuples(st.just("get_many"), st.lists(KEYS, max_size=4)),
    st.tuples(st.just("len")),
    st.tuples(
        st.just("scan"),
        st.none() | KEYS,
        st.none() | KEYS,
        st.none() | KEYS,
        st.none() | st.integers(0, 5),
        st.booleans(),
    ),
)


def scanned(model, prefix, start, stop, limit, reverse):
    low, high = encode_prefix(() if prefix is None else prefix)
    pairs = [
        pair
        for pair in in_order(model)
        if low <= encode_key(pair[0]) < high
        and (start is None or encode_key(start) <= encode_key(pair[0]))
        and (stop is None or encode_key(pair[0]) < encode_key(stop))
    ]
    return (pairs[::-1] if reverse else pairs)[:limit]


def step(m, model, op):
    """One operation on both; they must answer alike."""
    match op:
        case "set", key, value:
            m[key] = model[key] = value
        case "del", key:
            if key in model:
                del model[key], m[key]
            else:
                with pytest.raises(KeyError):
                    del m[key]
        case "delete", key:
            assert m.delete(key) == (model.pop(key, None) is not None)
        case "increment", key, by:
            model[key] = model.get(key, 0) + by
            assert m.increment(key, by) is None
        case "pop", key, default:
            assert m.pop(key, default) == model.pop(key, default)
        case "setdefault", key, default:
            assert m.setdefault(key, default) == model.setdefault(key, default)
        case "modify", key:
            model[key] = model.get(key, 10) * 2
            assert m.modify(key, lambda value: value * 2, 10) == model[key]
        case "update", items:
            model.update(items)
            m.update(items)
        case ("clear",):
            model.clear()
            m.clear()
        case "get", key:
            assert m.get(key, "none") == model.get(key, "none")
            item = m.get_item(key)
            assert (None if item is None else item.value) == model.get(key)
        case "in", key:
            assert (key in m) == (key in model)
        case "get_many", keys:
            assert m.get_many(keys) == {key: model[key] for key in keys if key in model}
        case ("len",):
            assert (len(m), bool(m)) == (len(model), bool(model))
        case "scan", prefix, start, stop, limit, reverse:
            seen = m.scan(prefix=prefix, start=start, stop=stop, limit=limit, reverse=reverse)
            assert list(seen) == scanned(model, prefix, start, stop, limit, reverse)


# 0 == False and 1 == True are one key of a dict and two of a map: so of these only True is among KEYS, and no 1.
names = iter(range(1 << 30))


@settings(max_examples=200, deadline=None)
@given(base=st.dictionaries(KEYS, NUMBERS), ops=st.lists(OPS, max_size=25), read_back=st.booleans())
def test_a_map_in_a_transaction_behaves_as_a_dict_and_commits_what_it_showed(shared, base, ops, read_back):
    name = f"m{next(names)}"
    put(shared, base, name)
    model = dict(base)
    with shared.transaction() as tx:
        m = tx.map(name)
        for op in ops:
            step(m, model, op)
        if read_back:
            assert list(m.items()) == in_order(model)
            assert list(m) == list(m.keys()) == [key for key, _ in in_order(model)]
            assert list(reversed(m)) == list(m)[::-1]
            assert list(m.values()) == [value for _, value in in_order(model)]
            assert m == model
    assert contents(shared, name) == model
    for (_, key), value in tx.increments.items():
        assert model[key] == value


ENTRIES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.binary(max_size=1), NUMBERS),
        st.tuples(st.just("delete"), st.binary(max_size=1)),
        st.tuples(st.just("increment"), st.binary(max_size=1), NUMBERS),
    ),
    max_size=30,
)


@given(base=st.dictionaries(st.binary(max_size=1), NUMBERS), ops=ENTRIES, reverse=st.booleans())
def test_the_writes_of_a_buffer_do_what_its_overlay_shows(base, ops, reverse):
    number = encode_value
    below = {key: number(value) for key, value in base.items()}
    model, buffer = dict(base), Buffer(Meter())
    for op in ops:
        match op:
            case "put", key, value:
                buffer.put_many("m", [(key, number(value))])
                model[key] = value
            case "delete", key:
                buffer.delete("m", [key])
                model.pop(key, None)
            case "increment", key, by:
                buffer.increment("m", key, by)
                model[key] = model.get(key, 0) + by
    expected = sorted(((key, number(value)) for key, value in model.items()), reverse=reverse)
    own = buffer.range("m", b"", b"\xff\xff", reverse=reverse)
    assert list(overlay(iter(sorted(below.items(), reverse=reverse)), own, reverse=reverse)) == expected

    applied, touched = dict(below), []
    for write in buffer.writes(lambda key: 0).get(0, []):
        match write:
            case Put():
                applied.update(write.items)
                touched += [key for key, _ in write.items]
            case Delete():
                for key in write.keys:
                    applied.pop(key, None)
                touched += write.keys
            case Increment():
                entry = buffer.get("m", write.key)
                applied[write.key] = value_over(entry, below.get(write.key))
                touched.append(write.key)
    assert sorted(applied.items(), reverse=reverse) == expected
    assert len(touched) == len(set(touched)), "a key is written once"


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
        space = db._state.spaces[0]
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
        elsewhere(lambda: None)
        m = tx.map("m")
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
