"""The limits of a transaction: each is a definite error, raised before anything is written."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress

import pytest

import onefold as of
from onefold import config
from onefold.db import Database
from onefold.env import SYSTEM, SeededEnv
from onefold.errors import OnefoldError
from onefold.folds import folds as space_folds
from onefold.shard.memory import MemoryShard
from onefold.space.log_prefix import LogPrefix
from onefold.space.open_shard import open_shard
from onefold.space.open_space import open_shards
from onefold.state.fold.machine import StateFold
from onefold.state.fold.maps.ops import Put
from onefold.state.fold.ops import Commit, Span, state_op
from onefold.state.fold.outcomes import decode_outcome
from onefold.state.transactions.buffer import Buffer, Meter


@pytest.fixture
def db():
    with of.connect("memory://") as opened:
        yield opened


@pytest.fixture
def few_operations(monkeypatch):
    monkeypatch.setattr("onefold.config.TRANSACTION_OPERATIONS_MAX", 10)


@pytest.fixture
def few_bytes(monkeypatch):
    monkeypatch.setattr("onefold.config.TRANSACTION_BYTES_MAX", 10_000)


def contents(db):
    with db.transaction(read_only=True) as tx:
        return dict(tx.map("m"))


def refused(db, work):
    """The block is left by TooLarge, and nothing of it is written."""
    before = contents(db)
    with pytest.raises(of.TooLarge, match="Split it") as caught, db.transaction() as tx:
        tx.map("m")["first"] = 1
        work(tx.map("m"))
    assert caught.value.definite
    assert contents(db) == before


def test_too_many_keys_are_refused_whether_written_or_read(db, few_operations):
    refused(db, lambda m: m.put_many(dict.fromkeys(range(10), 0)))
    refused(db, lambda m: [m.put(number, 0) for number in range(10)])
    refused(db, lambda m: [m.increment(number) for number in range(10)])
    refused(db, lambda m: [m.get(number) for number in range(10)])
    refused(db, lambda m: m.get_many(range(10)))
    refused(db, lambda m: [list(m.scan(prefix=number)) for number in range(10)])
    refused(db, lambda m: [m._tx.add_write(0, None, 0) for _ in range(10)])
    with db.transaction() as tx:
        tx.map("m").put_many(dict.fromkeys(range(10), 0))
    assert len(contents(db)) == 10


def test_too_many_bytes_are_refused(db, few_bytes):
    refused(db, lambda m: m.put("a", "x" * 10_000))
    refused(db, lambda m: [m.put(number, "x" * 1000) for number in range(10)])
    refused(db, lambda m: [m.get("x" * 1000 + str(number)) for number in range(10)])
    refused(db, lambda m: m._tx.add_write(0, None, 10_000))
    with db.transaction() as tx:
        tx.map("m")["a"] = "x" * 9000


def test_a_put_many_that_is_refused_leaves_the_buffer_as_it_was(db, few_operations):
    with db.transaction() as tx:
        m = tx.map("m")
        m.put_many({"a": 1, "b": 2})
        with pytest.raises(of.TooLarge):
            m.put_many(dict.fromkeys(range(9), 0) | {"a": 100})
        assert m.get_many(["a", "b", 0, 1]) == {"a": 1, "b": 2}
    assert contents(db) == {"a": 1, "b": 2}


def test_what_is_done_to_a_key_again_counts_once(db, few_operations, few_bytes):
    with db.transaction() as tx:
        m = tx.map("m")
        for number in range(100):
            m["a"] = "x" * 5000
            m["b"] = number
            m.get("c")
            m.increment("n")
            del m["a"]
    assert contents(db) == {"b": 99, "n": 100}


def test_a_read_only_transaction_of_one_shard_reads_as_much_as_it_likes(db, few_operations):
    for low in range(0, 40, 10):
        with db.transaction() as tx:
            tx.map("m").put_many({number: number for number in range(low, low + 10)})
    with db.transaction(read_only=True) as tx:
        m = tx.map("m")
        assert [m[number] for number in range(40)] == list(range(40))
        assert len(m.get_many(range(40))) == 40


def test_a_buffer_counts_what_it_holds():
    meter = Meter()
    buffer = Buffer(meter)
    buffer.put_many("m", [(b"a", b"x" * 100)])
    once = meter.bytes
    buffer.put_many("m", [(b"a", b"x" * 200)])
    assert (meter.operations, meter.bytes) == (1, once + 100)
    buffer.delete("m", [b"a"])
    assert (meter.operations, meter.bytes) == (1, once - 100)
    buffer.increment("m", b"b", 1)
    assert meter.operations == 2


def test_a_transaction_of_the_greatest_size_fits_into_a_record(tmp_path):
    value = b"x" * (1 << 19)
    with of.connect(tmp_path / "space") as db:
        with pytest.raises(of.TooLarge), db.transaction() as tx:
            for number in range(100):
                tx.map("m")[number] = value
        count = config.TRANSACTION_BYTES_MAX // (len(value) + 1000)
        with db.transaction() as tx:
            for number in range(count):
                tx.map("m")[number] = value
        with db.transaction(read_only=True) as tx:
            assert len(tx.map("m")) == count


def test_a_transaction_that_is_open_for_too_long_is_refused():
    env = SeededEnv(1)
    with Database(open_shards("memory://", space_folds, env=env)) as db:
        with db.transaction() as tx:
            tx.map("m")["a"] = 1
            env.advance(config.TRANSACTION_AGE_S)
        assert contents(db) == {"a": 1}
        too_long = pytest.raises(of.TransactionError, match=r"open for 301 s; the limit is 300 s")
        with too_long as caught, db.transaction() as tx:
            tx.map("m")["a"] = 2
            env.advance(config.TRANSACTION_AGE_S + 1)
        assert caught.value.definite
        with db.transaction(read_only=True) as tx:
            m = tx.map("m")
            pairs = m.scan()
            env.advance(config.TRANSACTION_AGE_S + 1)
            for use in (lambda: m["a"], lambda: next(pairs), lambda: tx.map("m"), lambda: len(m)):
                with pytest.raises(of.TransactionError, match="open for"):
                    use()
            env._boot_s -= config.TRANSACTION_AGE_S
        assert contents(db) == {"a": 1}
        db.run_transaction(lambda tx: tx.map("m").put("b", 1))  # the guard is gone


def test_a_large_transaction_is_committed_whole(db):
    def work():
        with db.transaction() as tx:
            m = tx.map("m")
            for number in range(20_000):
                m[number] = number
            assert len(m) == 20_000
            for number in range(0, 20_000, 2):
                del m[number]
            assert sum(m.values()) == 100_000_000

    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()
    with db.transaction(read_only=True) as tx:
        assert len(tx.map("m")) == 10_000


@pytest.mark.parametrize("offset", [1 << 63, -(1 << 63)])
def test_a_range_read_at_an_offset_that_cannot_be_halts_nobody(offset):
    with closing(open_shard("memory://", [StateFold()])) as space:
        commit = Commit((), (Span("none", b"a", b"b", offset),), ())
        decode_outcome(space.submit([state_op(commit)])[0])
        space.submit([state_op(commit)])


def test_how_deep_the_callers_stack_is_decides_nothing(tmp_path):
    """A put near the end of the stack happens, or fails and leaves no record that a replay would take for good."""

    def deep(levels, key):
        if levels:
            deep(levels - 1, key)
        else:
            space.submit([state_op(Commit((), (), (Put("m", ((key, b"\xc0"),)),)))])

    with closing(open_shard(tmp_path / "space", [StateFold()])) as space:
        deep(0, b"first")
        for levels in range(sys.getrecursionlimit() - 150, sys.getrecursionlimit()):
            with suppress(RecursionError, OnefoldError):
                deep(levels, str(levels).encode())
        with space.view() as view:
            live = dict(view.scan("state/m/m"))
        prefix = LogPrefix(space.log, space.applied, SYSTEM)
        with closing(MemoryShard(prefix, [StateFold()], SYSTEM)) as again, again.view() as view:
            assert dict(view.scan("state/m/m")) == live
