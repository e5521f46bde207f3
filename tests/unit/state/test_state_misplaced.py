"""Whatever is called on shared state where or when it may not be: an error of its own, definite, that says what to do, and
nothing is written.
"""

import asyncio
import datetime
import pickle
import threading

import cloudpickle
import pytest

import onefold as of
from onefold.errors import InvalidArgument, SpaceError, TransactionError
from support.refusals import filled_db, refuses  # noqa: F401

# -- transactions


def test_a_read_only_transaction_writes_nothing(db):
    with db.transaction(read_only=True) as tx:
        m = tx.map("m")
        assert m["there"] == 1
        for write in (
            lambda: m.put("a", 1), lambda: m.__setitem__("a", 1), lambda: m.__delitem__("there"), lambda: m.increment("n"),
            lambda: m.pop("there"), lambda: m.setdefault("a", 1), lambda: m.update(a=1), m.clear, lambda: m.put_many({"a": 1}),
            lambda: m.delete("there"), lambda: tx.queue("q").put(1), lambda: tx.stream("s").append(1),
            lambda: tx.stream("new").append(1), lambda: tx.stream("s").append_many([1]), lambda: tx.commit(None),
        ):  # fmt: skip
            assert "read-only" in refuses(TransactionError, write, db)


def test_transactions_are_not_nested_nor_used_twice_or_elsewhere(db):
    outer = db.transaction()
    refuses(TransactionError, lambda: outer.map("m"), db)
    with outer as tx:
        refuses(TransactionError, db.transaction().__enter__, db)
        refuses(TransactionError, lambda: db.run_transaction(lambda tx: 1), db)
        refuses(TransactionError, outer.__enter__, db)
        m = tx.map("m")
        found = []

        def elsewhere():
            try:
                found.append(m["there"])
            except TransactionError as error:
                found.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert isinstance(found[0], TransactionError) and found[0].definite
        with of.connect("memory://") as other:
            for kind in ("map", "queue", "stream"):
                refuses(TransactionError, lambda kind=kind: getattr(tx, kind)(getattr(other, kind)("m")), db)
    for use in (
        lambda: m["there"],
        lambda: m.put("a", 1),
        lambda: tx.map("m"),
        outer.__enter__,
        lambda: tx.queue("q"),
    ):
        refuses(TransactionError, use, db)


def plain_uses(db):
    m, q, s, lock = db.map("m"), db.queue("q"), db.stream("s"), db.lock("l")
    return {
        "get": lambda: m["there"], "get default": lambda: m.get("x"), "in": lambda: "there" in m, "len": lambda: len(m),
        "put": lambda: m.put("a", 1), "[]=": lambda: m.__setitem__("a", 1), "del": lambda: m.__delitem__("there"),
        "delete": lambda: m.delete("x"), "increment": lambda: m.increment("n"), "pop": lambda: m.pop("there"),
        "put_many": lambda: m.put_many({"a": 1}), "update": lambda: m.update(a=1), "clear": m.clear, "popitem": m.popitem,
        "setdefault": lambda: m.setdefault("a", 1), "modify": lambda: m.modify("a", lambda v: 1),
        "get_many": lambda: m.get_many(["a"]), "get_item": lambda: m.get_item("a"), "scan": lambda: list(m.scan()),
        "keys": lambda: list(m.keys()), "values": lambda: list(m.values()), "items": lambda: list(m.items()),
        "iter": lambda: list(m), "watch": m.watch, "count": m.count,
        "queue put": lambda: q.put(1), "queue put_many": lambda: q.put_many([1]), "take": lambda: q.take(timeout=0),
        "queue len": lambda: len(q), "counts": q.counts, "dead": q.dead, "retry_dead": q.retry_dead, "drop_dead": q.drop_dead,
        "queue get": lambda: q.get(timeout=0).__enter__(),
        "append": lambda: s.append(1), "append_many": lambda: s.append_many([1]), "create": s.create,
        "stream len": lambda: len(s),
        "read": lambda: list(s.read()), "frames": lambda: list(s.read_frames()), "to_polars": s.to_polars,
        "positions": s.positions, "consumer": lambda: s.consumer("g"), "retention": lambda: s.set_retention("1d"),
        "lock": lambda: lock.acquire(timeout=0),
    }  # fmt: skip


def test_plain_handles_are_refused_inside_a_block(db):
    uses = plain_uses(db)
    with db.transaction():
        for use in uses.values():
            refuses(TransactionError, use, db)


def test_everything_is_refused_after_close(db):
    uses = plain_uses(db)
    lock, held = db.lock("free"), db.lock("held")
    held.acquire()
    db.queue("q").put("more")
    message, delivery = db.queue("q").take(timeout=0), db.queue("q").get(timeout=0)
    scan, watch, reader = db.map("m").scan(), db.map("m").watch(), db.stream("s").read(follow=True)
    consumer = db.stream("s").consumer("g")
    transaction = db.transaction()
    session = db.map("m", consistency="session")
    assert session["there"] == 1
    db.close()
    db.close()
    uses |= {
        "session get": lambda: session["there"], "held": held.check, "renew": held.renew, "release": held.release,
        "ack": message.ack, "nack": message.nack, "extend": message.extend, "delivery": delivery.__enter__,
        "scan made before": lambda: list(scan), "watch made before": lambda: next(watch), "reader": lambda: next(reader),
        "consumer made before": lambda: next(iter(consumer)), "free lock": lambda: lock.acquire(timeout=0),
        "transaction": lambda: db.run_transaction(lambda tx: tx.map("m").put("a", 1)),
        "blind transaction": lambda: (transaction.__enter__().map("m").put("a", 1), transaction.__exit__(None, None, None)),
        "outcome": lambda: db.outcome("x"), "at": lambda: db.at(datetime.datetime.now()), "token": lambda: db.session.token,
        "runs": db.runs,
    }  # fmt: skip
    wrong = []
    for name, use in uses.items():
        try:
            assert "closed" in refuses(SpaceError, use)
        except (AssertionError, pytest.fail.Exception, Exception) as error:
            wrong.append(f"{name}: {error}")
    assert not wrong


# -- asynchronous


def test_an_asynchronous_handle_in_another_event_loop_is_told(tmp_path):
    opened = {}

    async def first():
        db = await of.aio.connect(tmp_path / "space")
        opened.update(
            db=db, m=db.map("m"), q=db.queue("q"), s=db.stream("s"), lock=db.lock("l"), tx=db.transaction()
        )
        await opened["m"].put("there", 1)

    async def second():
        db, m, q, s = opened["db"], opened["m"], opened["q"], opened["s"]
        before = db.sync._shard.applied
        for name, use in {
            "get": lambda: m.get("there"), "put": lambda: m.put("a", 1), "increment": lambda: m.increment("n"),
            "queue": lambda: q.put(1), "take": lambda: q.get(timeout=0).__aenter__(), "append": lambda: s.append(1),
            "scan": lambda: anext(aiter(m.scan())), "read": lambda: anext(aiter(s.read())), "outcome": lambda: db.outcome("x"),
            "lock": opened["lock"].__aenter__, "transaction": opened["tx"].__aenter__,
            "watch": lambda: anext(aiter(m.watch())),
        }.items():  # fmt: skip
            with pytest.raises(InvalidArgument, match="event loop") as caught:
                await use()
            assert caught.value.definite, name
        assert db.sync._shard.applied == before

    asyncio.run(first())
    try:
        asyncio.run(second())
    finally:
        opened["db"].sync.close()


def test_an_asynchronous_connection_that_is_not_open_is_told(tmp_path):
    async def main():
        db = of.aio.connect(tmp_path / "space")
        with pytest.raises(SpaceError) as caught:
            db.map("m")
        assert caught.value.definite
        async with db:
            m = db.map("m")
            await m.put("a", 1)
        with pytest.raises(SpaceError, match="closed"):
            await m.get("a")

    asyncio.run(main())


def test_handles_are_not_sent_to_other_processes(db):
    handles = [db, db.map("m"), db.queue("q"), db.stream("s"), db.lock("l"), db.transaction()]
    for handle in handles:
        assert "connect there" in refuses(InvalidArgument, lambda handle=handle: pickle.dumps(handle), db)
        assert "connect there" in refuses(
            InvalidArgument, lambda handle=handle: cloudpickle.dumps(handle), db
        )
    for value in (db.map("m").get_item("there"), db.stream("s").append(1), next(iter(db.stream("s").read()))):
        assert repr(pickle.loads(pickle.dumps(value))) == repr(value)
