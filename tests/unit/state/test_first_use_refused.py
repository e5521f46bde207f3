"""The first use of a name that is refused leaves nothing: no stream with a fixed number of partitions, no record."""

from __future__ import annotations

import polars as pl
import pytest

import onefold as of
from onefold import config

LARGE = b"x" * (config.VALUE_BYTES_MAX + 1)
SPACES = {"memory": ("memory://", 1), "one shard": (None, 1), "three shards": (None, 3)}


@pytest.fixture(params=SPACES, name="db")
def empty_db(request, tmp_path):
    url, shards = SPACES[request.param]
    with of.connect(url or tmp_path / "space", shards=shards) as opened:
        opened.map("used").put("k", 1, request_id="used")
        yield opened


def fails(_value):
    raise ValueError("no")


def broken():
    yield {"k": "a"}
    raise ValueError("no")


def in_block(db, call):
    with db.transaction() as tx:
        call(tx)


def then_fails(call):
    def block(tx):
        call(tx)
        raise ValueError("no")

    return block


STREAMS = {
    "bad value": lambda s: s.append(object()),
    "large value": lambda s: s.append(LARGE),
    "bad key": lambda s: s.append(1, key=1.5),
    "large key": lambda s: s.append(1, key="x" * 20_000),
    "bad request id": lambda s: s.append(1, request_id=""),
    "request id of something else": lambda s: s.append(1, request_id="used"),
    "many: bad value": lambda s: s.append_many([1, object()]),
    "many: large value": lambda s: s.append_many([1, LARGE]),
    "many: no list": lambda s: s.append_many("text"),
    "many: breaks off": lambda s: s.append_many(broken()),
    "many: no such key": lambda s: s.append_many([{"k": 1}], key="nix"),
    "many: bad key": lambda s: s.append_many([{"k": 1.5}], key="k"),
    "many: request id of something else": lambda s: s.append_many([1], request_id="used"),
    "many: too large together": lambda s: s.append_many([bytes(10**6)] * 40),
    "frame: no such key": lambda s: s.append_many(pl.DataFrame({"a": [1]}), key="nix"),
    "frame: lazy": lambda s: s.append_many(pl.LazyFrame({"a": [1]})),
    "bad group": lambda s: s.consumer(""),
    "bad start of a group": lambda s: s.consumer("g", start="now"),
    "bad timeout of a consumer": lambda s: s.consumer("g", timeout="soon"),
    "bad retention": lambda s: s.set_retention("soon"),
    "no retention": lambda s: s.set_retention(0),
    "bad start": lambda s: s.read("now"),
}
OTHERS = {
    "map: bad value": lambda db: db.map("new").put("k", object()),
    "map: bad key": lambda db: db.map("new").put(1.5, 1),
    "map: large value": lambda db: db.map("new").put("k", LARGE),
    "map: bad ttl": lambda db: db.map("new").put("k", 1, ttl=0),
    "map: not there": lambda db: db.map("new").put("k", 1, if_version="0-1-0"),
    "map: many": lambda db: db.map("new").put_many({"k": 1, "l": object()}),
    "map: many, in parts": lambda db: db.map("new").put_many({"k": 1, "l": object()}, atomic=False),
    "map: update": lambda db: db.map("new").update({"k": 1, 1.5: 1}),
    "map: modify": lambda db: db.map("new").modify("k", fails),
    "map: modify to what cannot be stored": lambda db: db.map("new").modify("k", lambda _: object()),
    "map: increment": lambda db: db.map("new").increment("k", "x"),
    "map: setdefault": lambda db: db.map("new").setdefault("k", object()),
    "map: pop": lambda db: db.map("new").pop("k"),
    "queue: bad value": lambda db: db.queue("new").put(object()),
    "queue: large value": lambda db: db.queue("new").put(LARGE),
    "queue: bad key": lambda db: db.queue("new").put(1, key=1.5),
    "queue: bad delay": lambda db: db.queue("new").put(1, delay=-1),
    "queue: many": lambda db: db.queue("new").put_many([1, object()]),
    "queue: breaks off": lambda db: db.queue("new").put_many(broken()),
    "queue: bad timeout": lambda db: db.queue("new").take(timeout="soon"),
    "lock: bad timeout": lambda db: db.lock("new").acquire("soon"),
    "lock: bad ttl": lambda db: db.lock("new", ttl=0).acquire(),
    "transaction: bad value": lambda db: in_block(db, lambda tx: tx.map("new").put("k", object())),
    "transaction: queue": lambda db: in_block(db, lambda tx: tx.queue("new").put(object())),
    "transaction: attempts": lambda db: db.run_transaction(lambda tx: tx.map("new").put("k", 1), attempts=0),
}


def everything(db):
    return [*db.collections()], [shard.applied for shard in db._shards]


@pytest.mark.parametrize("how", STREAMS)
def test_a_refused_first_use_makes_no_stream(db, how):
    before = everything(db)
    stream = db.stream("new", partitions=4, retention="1d")
    with pytest.raises((of.OnefoldError, ValueError)):
        STREAMS[how](stream)
    assert everything(db) == before
    assert db.stream("new", partitions=7).append(1)
    assert db.stream("new").partitions == 7 and db.stream("new").retention is None


@pytest.mark.parametrize(
    "how", [name for name in STREAMS if "value" in name or "key" in name or "many" in name]
)
@pytest.mark.parametrize("by", ["name", "handle"])
def test_a_refused_first_append_in_a_transaction_makes_no_stream(db, how, by):
    if "request id" in how:
        pytest.skip("it is the transaction's")
    before = everything(db)
    with pytest.raises((of.OnefoldError, ValueError)), db.transaction() as tx:
        STREAMS[how](tx.stream("new" if by == "name" else db.stream("new", partitions=4)))
    assert everything(db) == before
    with db.transaction() as tx:  # one that goes on
        with pytest.raises((of.OnefoldError, ValueError)):
            STREAMS[how](tx.stream("new" if by == "name" else db.stream("new", partitions=4)))
        tx.map("other")["k"] = 1
    assert [one.name for one in db.collections() if one.kind == "stream"] == []


def test_a_block_that_raises_makes_no_stream(db):
    before = everything(db)
    with pytest.raises(ValueError, match="no"):
        in_block(db, then_fails(lambda tx: tx.stream(db.stream("new", partitions=4)).append(1)))
    with db.transaction() as tx:
        tx.stream("new").append_many([])
    assert everything(db) == before


@pytest.mark.parametrize("how", OTHERS)
def test_a_refused_first_use_leaves_nothing(db, how):
    before = everything(db)
    with pytest.raises((of.OnefoldError, ValueError, KeyError)):
        OTHERS[how](db)
    assert [*db.collections()] == before[0]
    if "request id" not in how and "not there" not in how:
        assert everything(db) == before


def test_a_transaction_makes_its_streams_when_it_commits(db):
    with db.transaction() as tx:
        tx.stream(db.stream("new", partitions=4, retention="1d")).append("a", key="k")
        tx.stream("new").append("b", key="l")  # among the same partitions
        tx.stream("new").append_many([{"k": key} for key in "klmnop"], key="k")
        assert [one.name for one in db.collections() if one.kind == "stream"] == []
    stream = db.stream("new")
    assert (stream.partitions, stream.retention, len(stream)) == (4, 86400.0, 8)
    at = {record.key: record.partition for record in stream.read()}
    stream.append_many([{"k": key} for key in "klmnop"], key="k")
    assert all(at[record.key] == record.partition for record in stream.read())


def test_a_stream_that_another_makes_meanwhile_is_a_conflict(db):
    tries = []

    def block(tx):
        tx.stream("new").append("a", key="k")
        tx.map("m")["k"] = 1
        if not tries:
            tries.append(1)
            db_of(db).stream("new", partitions=4).create()

    with pytest.raises(of.Conflict, match=r"was made meanwhile, with 4 partitions"), db.transaction() as tx:
        block(tx)
    assert len(db.stream("new")) == 0 and "k" not in db.map("m")
    db.run_transaction(block)
    assert [record.value for record in db.stream("new").read()] == ["a"]


def db_of(db):
    """Another connection to the same shards: plain handles of a block's own are refused in it."""
    return of.Database(db._shards)


def test_a_first_append_again_under_its_request_is_the_first_one(db):
    first = db.stream("new", partitions=2).append("a", request_id="r")
    assert db_of(db).stream("new").append("a", request_id="r").offsets == first.offsets
    assert len(db.stream("new")) == 1
