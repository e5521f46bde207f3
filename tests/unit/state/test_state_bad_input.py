"""Whatever is wrong with the arguments of a call on shared state: an error of its own, definite, that says what to do, and
nothing is written.

Maps have a file of their own (``test_map_bad_input``), and so has what is called where it may not be (``test_state_misplaced``).
"""

import datetime
import math

import pytest

import onefold as of
from onefold import config
from onefold.errors import (
    InvalidArgument,
    InvalidKey,
    InvalidValue,
    OnefoldError,
    SpaceError,
    TokenError,
    TooLarge,
    TransactionError,
    Unavailable,
    UnsupportedConsistency,
)  # fmt: skip
from support.refusals import filled_db, refuses  # noqa: F401

WRONG_NAMES = ["", None, 5, b"m", "x" * 201, "é" * 101, "\ud800", ["m"], ("m",), object(), True]
WRONG_DURATIONS = [
    "",
    "soon",
    "5",
    "-5s",
    -1,
    math.nan,
    math.inf,
    True,
    b"5s",
    [5],
    object(),
    datetime.timedelta(-1),
    1j,
]
WRONG_KEYS = [1.5, ["a"], {"a": 1}, {1}, ("a", 1.5), object(), "\ud800", bytearray(b"a"), ()]
LARGE_KEYS = ["x" * config.KEY_BYTES_MAX, 1 << 90_000]
WRONG_VALUES = [object(), {1, 2}, 1j, [object()], lambda: 1, "\ud800", {"x": {"y": object()}}]
LARGE_VALUE = b"x" * (config.VALUE_BYTES_MAX + 1)
WRONG_REQUESTS = ["", 5, b"x", "\ud800", object(), "x" * 20_000]


def refuses_each(error, operation, wrong, db):
    for one in wrong:
        refuses(error, lambda one=one: operation(one), db)


# -- names


NAMED = {
    "map": lambda db, name: db.map(name),
    "queue": lambda db, name: db.queue(name),
    "dead letters": lambda db, name: db.queue("q", dead_letter=name),
    "lock": lambda db, name: db.lock(name),
    "stream": lambda db, name: db.stream(name),
    "consumer": lambda db, name: db.stream("s").consumer(name),
}


@pytest.mark.parametrize("kind", NAMED)
def test_wrong_names_are_told(db, kind):
    for name in WRONG_NAMES:
        if kind == "dead letters" and name is None:
            continue
        assert "name" in refuses(InvalidArgument, lambda name=name: NAMED[kind](db, name), db)


@pytest.mark.parametrize("kind", ["map", "queue", "stream"])
def test_wrong_names_inside_a_transaction_are_told(db, kind):
    with db.transaction() as tx:
        refuses_each(InvalidArgument, getattr(tx, kind), WRONG_NAMES, db)


# -- queues


def test_wrong_arguments_of_a_queue_are_told(db):
    refuses_each(InvalidArgument, lambda lease: db.queue("q", lease=lease), [*WRONG_DURATIONS, 0, None], db)
    refuses_each(
        InvalidArgument,
        lambda attempts: db.queue("q", max_attempts=attempts),
        [0, -1, 1.5, "3", None, True],
        db,
    )
    refuses(InvalidArgument, lambda: db.queue("q", dead_letter="q"), db)


def test_wrong_puts_are_told(db):
    q = db.queue("q")
    for put in (
        q.put,
        lambda value, **more: q.put_many(["fine", value], **more),
    ):
        refuses_each(InvalidValue, put, WRONG_VALUES, db)
        refuses(TooLarge, lambda put=put: put(LARGE_VALUE), db)
        refuses_each(InvalidKey, lambda key, put=put: put(1, key=key), WRONG_KEYS, db)
        refuses_each(TooLarge, lambda key, put=put: put(1, key=key), LARGE_KEYS, db)
        refuses_each(InvalidArgument, lambda delay, put=put: put(1, delay=delay), WRONG_DURATIONS, db)
        refuses_each(InvalidArgument, lambda name, put=put: put(1, request_id=name), WRONG_REQUESTS, db)
    refuses_each(InvalidArgument, q.put_many, [5, None, object(), "text", b"bytes"], db)
    refuses_each(InvalidArgument, lambda name: q.put_many([], request_id=name), WRONG_REQUESTS, db)


def test_wrong_takes_are_told(db):
    q = db.queue("q")
    refuses_each(InvalidArgument, lambda timeout: q.get(timeout=timeout), WRONG_DURATIONS, db)
    refuses_each(InvalidArgument, lambda timeout: q.take(timeout=timeout), WRONG_DURATIONS, db)
    refuses_each(InvalidArgument, lambda limit: q.dead(limit=limit), [0, -1, 1.5, "3", True, None], db)
    message = q.take(timeout=0)
    refuses_each(InvalidArgument, message.extend, [*WRONG_DURATIONS, 0], db)
    refuses_each(InvalidArgument, lambda delay: message.nack(delay=delay), WRONG_DURATIONS, db)
    message.ack()
    for again in (message.ack, message.nack, message.extend):
        refuses(InvalidArgument, again, db)
    q.put("next")
    delivery = q.get(timeout=0)
    with delivery:
        refuses(InvalidArgument, delivery.__enter__, db)


def test_a_request_id_of_another_operation_is_told(db):
    if len(db._shards) > 1:
        pytest.skip(
            "a request id is known in the shard of its operation; in another one it is another request"
        )
    uses = {
        "put": lambda name: db.map("m").put("there", 1, request_id=name),
        "delete": lambda name: db.map("m").delete("there", request_id=name),
        "put_many": lambda name: db.map("m").put_many(dict.fromkeys(range(9), 1), request_id=name),
        "increment": lambda name: db.map("m").increment("n", request_id=name),
        "queue": lambda name: db.queue("q").put("again", request_id=name),
        "stream": lambda name: db.stream("s").append("again", request_id=name),
        "transaction": lambda name: db.run_transaction(lambda tx: tx.map("m").put("x", 1), request_id=name),
    }
    answers = {}
    for first, use in uses.items():
        answers[first] = use(first)
    state = {"m": dict(db.map("m")), "q": len(db.queue("q")), "s": len(db.stream("s"))}
    for first in uses:
        for second, use in uses.items():
            try:
                found = use(first)
            except OnefoldError as error:
                definite = error.definite
            else:
                definite = first != second or found == answers[first]
            assert definite, (first, second)
            assert state == {"m": dict(db.map("m")), "q": len(db.queue("q")), "s": len(db.stream("s"))}, (
                first,
                second,
            )


# -- locks


def test_wrong_arguments_of_a_lock_are_told(db):
    refuses_each(InvalidArgument, lambda ttl: db.lock("l", ttl=ttl), [*WRONG_DURATIONS, 0, 0.0001, None], db)
    refuses_each(InvalidArgument, lambda timeout: db.lock("l", timeout=timeout), WRONG_DURATIONS, db)
    lock = db.lock("l")
    refuses_each(InvalidArgument, lambda timeout: lock.acquire(timeout=timeout), WRONG_DURATIONS, db)
    for use in (lock.release, lock.check, lambda: lock.fencing_token):
        refuses(InvalidArgument, use, db)
    assert not lock.held
    with lock:
        refuses(InvalidArgument, lock.acquire, db)
        refuses(InvalidArgument, lambda: lock.acquire(timeout=0), db)
        lock.check()
    refuses(InvalidArgument, lock.release, db)


# -- streams


def test_wrong_arguments_of_a_stream_are_told(db):
    for name in ("s", "new"):
        refuses_each(
            InvalidArgument,
            lambda n, name=name: db.stream(name, partitions=n),
            [0, -1, 1.5, "2", True, 1 << 40],
            db,
        )
        refuses_each(
            InvalidArgument, lambda r, name=name: db.stream(name, retention=r), [*WRONG_DURATIONS, 0], db
        )
        refuses_each(
            InvalidArgument, lambda t, name=name: db.stream(name, type=t), [complex, object(), "Nonsense"], db
        )
    other = db.stream("s", partitions=3)
    for use in (lambda: other.append(1), other.create, lambda: other.partitions, lambda: list(other.read())):
        assert "partitions" in refuses(InvalidArgument, use, db)


def test_wrong_appends_are_told(db):
    s = db.stream("s")
    refuses_each(InvalidValue, s.append, WRONG_VALUES, db)
    refuses(TooLarge, lambda: s.append(LARGE_VALUE), db)
    refuses_each(InvalidKey, lambda key: s.append(1, key=key), WRONG_KEYS, db)
    refuses_each(TooLarge, lambda key: s.append(1, key=key), LARGE_KEYS, db)
    refuses_each(InvalidArgument, lambda name: s.append(1, request_id=name), WRONG_REQUESTS, db)
    refuses_each(InvalidArgument, lambda name: s.append_many([1], request_id=name), WRONG_REQUESTS, db)
    refuses_each(InvalidArgument, s.append_many, [5, None, object(), "text", b"bytes"], db)
    refuses_each(InvalidValue, lambda value: s.append_many(["fine", value]), WRONG_VALUES, db)
    refuses_each(
        InvalidArgument,
        lambda key: s.append_many([{"a": 1}], key=key),
        ["nothing", 5, b"a", ["a"], object()],
        db,
    )


def test_wrong_reads_are_told(db):
    s = db.stream("s")
    wrong = [
        "",
        "late",
        5,
        None,
        b"earliest",
        "s1.x.y.z",
        object(),
        ["earliest"],
        1.5,
    ]
    refuses_each(InvalidArgument, s.read, wrong, db)
    refuses_each(InvalidArgument, s.to_polars, wrong, db)
    refuses_each(
        InvalidArgument,
        lambda p: s.read(partitions=p),
        [-1, 2, "0", [0, 5], [1.5], [True], {0: 1}, object()],
        db,
    )
    refuses_each(InvalidArgument, lambda t: s.read(timeout=t), WRONG_DURATIONS, db)
    refuses_each(
        UnsupportedConsistency, lambda level: s.read(consistency=level), ["fast", "", 5, b"strong"], db
    )
    elsewhere = db.stream("another").append("x")
    refuses(InvalidArgument, lambda: s.read(elsewhere), db)
    refuses_each(
        InvalidArgument, lambda start: s.consumer("g", start=start), ["late", 5, None, b"latest"], db
    )
    refuses_each(InvalidArgument, lambda t: s.consumer("g", timeout=t), WRONG_DURATIONS, db)


# -- tokens


def token_of(incarnation, offsets):
    from onefold.state.core.tokens import Token, encode_token

    return encode_token(Token(incarnation, offsets))


def test_wrong_tokens_are_told(db):
    good = db.session.token
    damaged = good[:-2] + ("AA" if good[-2:] != "AA" else "BB")
    foreign = token_of("i_foreign", {0: 1})
    other_shards = token_of(db._shard.incarnation, {7: 1})
    negative = token_of(db._shard.incarnation, {0: -1})
    wrong = [
        "",
        "x",
        "of1.",
        "of1.!!!",
        "of2." + good[4:],
        good + "x",
        damaged,
        foreign,
        other_shards,
        negative,
        good[:-5],
    ]
    refuses_each(TokenError, lambda token: db.map("m").watch(start=token), [*wrong, 5, b"x", object()], db)
    refuses_each(TokenError, db.at, wrong, db)
    refuses_each(InvalidArgument, db.at, [5, None, b"x", 1.5, object(), datetime.date(2024, 1, 1)], db)
    refuses_each(TokenError, db.session.merge, [*wrong, 5, b"x", None], db)
    assert db.session.token == good, "a wrong token was taken over"
    future = token_of(db._shard.incarnation, dict.fromkeys(range(len(db._shards)), 1 << 40))
    refuses(TokenError, lambda: db.at(future), db)
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
    refuses(InvalidArgument, lambda: db.at(later), db)


def test_a_token_from_the_future_waits_and_fails(tmp_path):
    with of.connect(tmp_path / "space", timeout=1) as db:
        db.map("m")["a"] = 1
        future = token_of(db._shard.incarnation, {0: 1 << 40})
        refuses(TokenError, lambda: db.map("m").watch(start=future), db)
        with of.connect(tmp_path / "space", session=future, timeout=1) as ahead:
            message = refuses(Unavailable, lambda: ahead.map("m")["a"], db)
            assert "token" in message
            refuses(TokenError, lambda: ahead.map("m").get("a", consistency="session"), db)
            assert ahead.map("m").get("a", consistency="eventual") == 1


def test_wrong_arguments_of_connect_are_told(tmp_path):
    with of.connect(tmp_path / "space", shards=3) as db:
        db.map("m")["there"] = 1
        for token in ("", "x", "of1.x", token_of("i_foreign", {}), 5, b"x"):
            refuses(TokenError, lambda token=token: of.connect(tmp_path / "space", session=token), db)
        for shards in (0, -1, 1, 4, 1.5, "3", True, config.SHARDS_MAX + 1, 1 << 70):
            assert "shards" in refuses(
                InvalidArgument, lambda shards=shards: of.connect(tmp_path / "space", shards=shards), db
            )
        for level in ("fast", "", "STRONG", 5, b"strong", None):
            refuses(
                UnsupportedConsistency,
                lambda level=level: of.connect(tmp_path / "space", consistency=level),
                db,
            )
        for level in ("bounded:", "bounded:soon", "bounded:-1s"):
            refuses(
                InvalidArgument, lambda level=level: of.connect(tmp_path / "space", consistency=level), db
            )
        for timeout in WRONG_DURATIONS:
            refuses(
                InvalidArgument, lambda timeout=timeout: of.connect(tmp_path / "space", timeout=timeout), db
            )
    for shards in (0, "3", True, config.SHARDS_MAX + 1):
        refuses(InvalidArgument, lambda shards=shards: of.connect(tmp_path / "new", shards=shards))
    assert not (tmp_path / "new").exists()
    for url in (5, b"x", "redis://x", "a\0b", ["x"]):
        refuses(InvalidArgument, lambda url=url: of.connect(url))
    refuses(SpaceError, lambda: of.connect(tmp_path / "new", create=False))


# -- transactions


def test_wrong_arguments_of_transactions_are_told(db):
    refuses_each(InvalidArgument, db.transaction, [name for name in WRONG_REQUESTS if name is not None], db)
    refuses(InvalidArgument, lambda: db.transaction("x", read_only=True), db)
    for fn in (5, None, "fn"):
        refuses(InvalidArgument, lambda fn=fn: db.run_transaction(fn), db)
    for attempts in (0, -1, 1.5, "3", None, True):
        refuses(
            InvalidArgument, lambda attempts=attempts: db.run_transaction(lambda tx: 1, attempts=attempts), db
        )

    async def later(tx):
        return 1

    def each(tx):
        yield 1

    def hidden(tx):
        return later(tx)

    for fn in (later, each, hidden):
        refuses(TransactionError, lambda fn=fn: db.run_transaction(fn), db)
    refuses_each(InvalidArgument, db.outcome, ["", 5, None, b"x", object(), "\ud800"], db)


def test_wrong_operations_inside_a_transaction_are_told(db):
    before = [space.applied for space in db._shards]
    with db.transaction() as tx:
        m, q, s = tx.map("m"), tx.queue("q"), tx.stream("s")
        refuses_each(InvalidKey, lambda key: m[key], WRONG_KEYS, db)
        refuses_each(InvalidKey, lambda key: m.put(key, 1), WRONG_KEYS, db)
        refuses_each(TooLarge, lambda key: m.put(key, 1), LARGE_KEYS, db)
        refuses_each(InvalidValue, lambda value: m.put("a", value), WRONG_VALUES, db)
        refuses(TooLarge, lambda: m.put("a", LARGE_VALUE), db)
        refuses_each(InvalidArgument, lambda by: m.increment("there", by), ["1", None, True, 1j], db)
        refuses_each(InvalidArgument, lambda ttl: m.put("a", 1, ttl=ttl), [*WRONG_DURATIONS, 0], db)
        refuses_each(InvalidValue, q.put, WRONG_VALUES, db)
        refuses_each(InvalidKey, lambda key: q.put(1, key=key), WRONG_KEYS, db)
        refuses_each(InvalidArgument, lambda delay: q.put(1, delay=delay), WRONG_DURATIONS, db)
        refuses_each(InvalidArgument, q.put_many, [5, None, object(), "text", b"bytes"], db)
        refuses_each(InvalidValue, s.append, WRONG_VALUES, db)
        refuses_each(InvalidKey, lambda key: s.append(1, key=key), WRONG_KEYS, db)
        refuses_each(InvalidArgument, s.append_many, [5, None, object(), "text", b"bytes"], db)
        refuses_each(InvalidArgument, tx.commit, [None, 5, "consumer", db.stream("s")], db)
        for wrong in (db, db.queue("q"), db.stream("s"), db.lock("l")):
            refuses(InvalidArgument, lambda wrong=wrong: tx.map(wrong), db)
        for wrong in (db, db.map("m"), db.lock("l")):
            refuses(InvalidArgument, lambda wrong=wrong: tx.queue(wrong), db)
            refuses(InvalidArgument, lambda wrong=wrong: tx.stream(wrong), db)
    assert [space.applied for space in db._shards] == before, "what was refused was committed"
