"""A transaction belongs to its block, thread and database; run_transaction runs the block again after conflicts."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

import gc
import sys

import pytest

import onefold as of
from support.transacted import contents, elsewhere
from support.transaction_places import db_in_memory, transaction_db  # noqa: F401


def put(db, name="m", **items):
    with db.transaction() as tx:
        tx.map(name).update(items)


# -- the block


def test_an_exception_in_the_block_writes_nothing_and_goes_on(db):
    with pytest.raises(ZeroDivisionError), db.transaction() as tx:
        tx.map("m")["a"] = 1
        _ = 1 / 0
    assert contents(db) == {}
    put(db, a=2)  # the guard is gone
    assert tx.version is None


def test_a_transaction_belongs_to_its_block_thread_and_database(db):
    tx = db.transaction()
    with pytest.raises(of.TransactionError, match="not begun"):
        tx.map("m")
    with tx:
        m = tx.map("m")
        m["a"] = 1
        for use in (
            lambda: m["a"],
            lambda: m.put("a", 2),
            lambda: tx.map("m"),
            lambda: list(m),
            m.scan,
        ):
            with pytest.raises(of.TransactionError, match="another one"):
                elsewhere(use)
        with pytest.raises(of.TransactionError, match="inside a transaction"), db.transaction():
            pass
        with pytest.raises(of.TransactionError, match="inside a transaction"):
            db.run_transaction(lambda inner: None)
        with pytest.raises(of.TransactionError), tx:
            pass
        with of.connect("memory://") as other, other.transaction() as inner:
            inner.map("m")["a"] = 1
        pairs = m.scan()
        next(pairs)
    for use in (
        lambda: m["a"],
        lambda: m.put("a", 2),
        lambda: tx.map("m"),
        lambda: next(pairs),
        lambda: len(m),
    ):
        with pytest.raises(of.TransactionError, match="over"):
            use()
    with pytest.raises(of.TransactionError, match="once"), tx:
        pass
    assert contents(db) == {"a": 1}


def test_a_block_that_ends_in_another_thread_writes_nothing(db):
    tx = db.transaction()

    def begin():
        tx.__enter__()
        tx.map("m")["a"] = 1

    elsewhere(begin)
    with pytest.raises(of.TransactionError, match="must end in the thread"):
        tx.__exit__(None, None, None)
    assert contents(db) == {}


def test_a_transaction_is_refused_in_another_task_of_its_thread(memory):
    import asyncio

    async def main():
        with memory.transaction() as tx:
            m = tx.map("m")
            m["a"] = 1

            async def other():
                with pytest.raises(of.TransactionError, match="another one"):
                    m["a"] = 2

            await asyncio.create_task(other())

    asyncio.run(main())
    assert contents(memory) == {"a": 1}


def test_writing_in_a_read_only_transaction_is_refused(db):
    put(db, a=1)
    with db.transaction(read_only=True) as tx:
        m = tx.map("m")
        for write in (
            lambda: m.put("a", 2),
            lambda: m.update(a=2),
            lambda: m.put_many({"a": 2}),
            lambda: m.pop("a"),
            lambda: m.delete("a"),
            m.clear,
            lambda: m.increment("a"),
            lambda: m.modify("a", lambda value: 2),
            lambda: m.setdefault("b", 2),
            lambda: tx._core.add_write(0, None, 1),
            lambda: tx.commit(None),
        ):
            with pytest.raises(of.TransactionError, match="read-only"):
                write()
        assert dict(m) == {"a": 1}
    assert contents(db) == {"a": 1}


# -- run_transaction


def test_run_transaction_tries_again_until_it_commits(db):
    put(db, x=0)
    tries = []

    def fn(tx):
        seen = tx.map("m")["x"]
        if len(tries) < 3:
            elsewhere(lambda: put(db, x=seen + 10))
        tries.append(seen)
        tx.map("m")["x"] = seen + 1
        return seen + 1

    assert db.run_transaction(fn) == 31
    assert tries == [0, 10, 20, 30]
    assert contents(db) == {"x": 31}


def test_run_transaction_gives_up_after_its_attempts_and_tries_nothing_but_conflicts_again(memory):
    put(memory, x=0)
    calls = []

    def loses(tx):
        calls.append(tx.map("m")["x"])
        elsewhere(lambda: put(memory, x=len(calls)))
        tx.map("m")["y"] = 1

    with pytest.raises(of.Conflict):
        memory.run_transaction(loses, attempts=4)
    assert len(calls) == 4

    def raises(tx):
        calls.append("raised")
        raise KeyError("no")

    with pytest.raises(KeyError):
        memory.run_transaction(raises)
    assert calls.count("raised") == 1

    def absent(tx):
        calls.append("absent")
        tx.map("m").put("x", 1, if_absent=True)

    with pytest.raises(of.Conflict, match="already"):
        memory.run_transaction(absent)
    assert calls.count("absent") == 1


def test_run_transaction_refuses_functions_that_would_do_nothing(memory):
    async def coroutine(tx):
        tx.map("m")["a"] = 1

    def generator(tx):
        tx.map("m")["a"] = 1
        yield

    for fn in (coroutine, lambda tx: coroutine(tx=tx), generator):
        with pytest.raises(of.TransactionError):
            memory.run_transaction(fn)
    for fn, attempts in ((None, 1), (lambda tx: 1, 0), (lambda tx: 1, True), (lambda tx: 1, 1.5)):
        with pytest.raises(of.InvalidArgument):
            memory.run_transaction(fn, attempts=attempts)
    assert contents(memory) == {}


# -- blocks that end in another order, elsewhere, or never


def test_blocks_of_two_connections_end_in_any_order():
    with of.connect("memory://") as one, of.connect("memory://") as other:
        for first in (True, False):
            blocks = [one.transaction(), other.transaction()]
            for block in blocks:
                block.__enter__()
            for block in blocks if first else blocks[::-1]:
                block.__exit__(None, None, None)
            for db in (one, other):
                db.map("m")["free"] = 1
                put(db, a=1)


def test_a_thread_is_free_when_its_block_was_ended_elsewhere_or_lost(db):
    import gc

    ended = db.transaction()
    ended.__enter__()
    with pytest.raises(of.TransactionError, match="must end in the thread"):
        elsewhere(lambda: ended.__exit__(None, None, None))
    db.map("m")["a"] = 1
    lost = db.transaction()
    lost.__enter__()
    with pytest.raises(of.TransactionError):
        db.map("m")["a"] = 2
    del lost
    gc.collect()
    db.map("m")["a"] = 3
    assert contents(db) == {"a": 3}


def test_transactions_messages_and_locks_leave_nothing_to_the_garbage_collector(tmp_path):
    """The block of a transaction refers to the frame around it, whose variables refer to the transaction; what takes or ends a
    message refers to its submission."""
    with of.connect(tmp_path / "space") as db:
        counter, queue = db.map("m"), db.queue("q")

        def use():
            with db.transaction() as tx:
                tx.map("m")["k"] = 1
            counter.put("other", counter["k"])
            queue.put("message")
            with queue.get(timeout=0) as message, db.lock("l"):
                assert message is not None
            queue.put("message")
            taken = queue.take(timeout=0)
            taken.extend()
            taken.nack()
            queue.take(timeout=0).ack()

        use()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                use()
            assert gc.collect() == 0
        finally:
            gc.enable()


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_what_a_handler_raises_while_a_transaction_goes_away_is_not_lost(db):
    """Python throws away what a signal handler raises in a finalizer: none of them may run Python code."""

    class Handler(BaseException):
        pass

    def trace(frame, event, arg):
        if frame.f_code.co_name == "__del__":
            raise Handler

    tx = db.transaction()
    tx.__enter__()
    tx.map("m")["a"] = 1
    sys.settrace(trace)
    try:
        del tx
        gc.collect()
    finally:
        sys.settrace(None)
    assert contents(db) == {}  # the thread is free
    assert not hasattr(of.Transaction, "__del__") and not hasattr(of.aio.AsyncTransaction, "__del__")
