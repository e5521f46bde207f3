"""What a transaction over collections for every region refuses: other kinds, other shards, what has no rights; and its names."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold.available.ops import Change, Include
from onefold.database import Database
from onefold.errors import InvalidArgument
from onefold.state.encoding.keys import encode_key


@pytest.fixture
def regions() -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us")
    yield made
    made.close()


@pytest.fixture
def eu(regions: MemoryRegions) -> Database:
    return regions.database("eu")


@pytest.fixture
def sharded() -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us", shards=3)
    yield made
    made.close()


def counts(db: Database, name: str = "n", floor: int | None = None) -> dict[Any, int]:
    with db.transaction(read_only=True) as tx:
        return dict(tx.counters(name, floor=floor).items())


# -- one kind


CONSISTENT: dict[str, Callable[[Database], Callable[[of.Transaction], object]]] = {
    "map": lambda _: lambda tx: tx.map("c"),
    "map handle": lambda db: partial(_map_of, db.map("c")),
    "queue": lambda _: lambda tx: tx.queue("q"),
    "stream": lambda _: lambda tx: tx.stream("s"),
    "commit": lambda db: partial(_commit, db.stream("s").consumer("g")),
}
AVAILABLE: dict[str, Callable[[Database], Callable[[of.Transaction], object]]] = {
    "counters": lambda _: lambda tx: tx.counters("n").add("a"),
    "counters handle": lambda db: partial(_counters_of, db.counters("n")),
    "sets": lambda _: lambda tx: tx.sets("t").add("a", 1),
    "sets handle": lambda db: partial(_sets_of, db.sets("t")),
    "map": lambda _: lambda tx: tx.map("m", mode="available").put("a", 1),
    "map handle": lambda db: partial(_map_of, db.map("m", mode="available")),
}


def _map_of(handle: Any, tx: of.Transaction) -> None:
    tx.map(handle)["a"] = 1


def _counters_of(handle: Any, tx: of.Transaction) -> None:
    tx.counters(handle).add("a")


def _sets_of(handle: Any, tx: of.Transaction) -> None:
    tx.sets(handle).add("a", 1)


def _commit(consumer: Any, tx: of.Transaction) -> None:
    tx.commit(consumer)


@pytest.mark.parametrize("available", AVAILABLE)
@pytest.mark.parametrize("consistent", CONSISTENT)
def test_consistent_and_available_collections_are_not_in_one_transaction(
    eu: Database, consistent: str, available: str
) -> None:
    use_both = [CONSISTENT[consistent](eu), AVAILABLE[available](eu)]
    for first, second in (use_both, use_both[::-1]):
        tx = eu.transaction()
        with pytest.raises(of.TransactionError, match=r"cannot have both.*str\(change.version\)"), tx:
            if first is use_both[0]:
                tx.map("c")["b"] = 1
            first(tx)
            second(tx)
    assert (counts(eu), eu.sets("t").get("a"), len(eu.map("m", mode="available"))) == ({}, set(), 0)
    assert len(eu.map("c")) == 0


def test_handles_are_those_of_this_database(eu: Database, regions: MemoryRegions) -> None:
    other = regions.database("eu")
    with eu.transaction() as tx:
        for use in (lambda: tx.counters(other.counters("n")), lambda: tx.sets(other.sets("s"))):
            with pytest.raises(of.TransactionError, match="belongs to another connection"):
                use()
        wrong: Any = eu.sets("s")
        with pytest.raises(of.InvalidArgument, match=r"tx\.counters takes"):
            tx.counters(wrong)
        for nothing in (None, 7, b"n", eu.map("m")):
            bad: Any = nothing
            with pytest.raises(of.InvalidArgument, match=r"tx\.sets takes"):
                tx.sets(bad)
        with pytest.raises(of.InvalidArgument, match="name"):
            tx.sets("")


def test_plain_handles_are_refused_inside_the_block(eu: Database) -> None:
    n, s = eu.counters("n"), eu.sets("s")
    with eu.transaction() as tx:
        tx.counters(n).add("a")
        tx.sets(s).add("a", "x")
        with pytest.raises(of.TransactionError, match=r"Use tx\.counters\('n'\)"):
            n.add("a")
        with pytest.raises(of.TransactionError, match=r"Use tx\.sets\('s'\)"):
            s.get("a")
    assert (n.get("a"), s.get("a")) == (1, {"x"})


def test_a_name_is_one_thing_inside_a_transaction_too(eu: Database) -> None:
    eu.counters("n").add("a")
    eu.sets("s").add("a", "x")
    for use in (
        lambda tx: tx.sets("n").get("a"),
        lambda tx: tx.sets("n").add("a", "x"),
        lambda tx: tx.counters("s").add("a"),
        lambda tx: tx.counters("n", floor=0).get("a"),
        lambda tx: list(tx.counters("s").items()),
    ):
        with pytest.raises(of.InvalidArgument, match="a name is one thing"), eu.transaction() as tx:
            use(tx)
    with eu.transaction() as tx:
        with pytest.raises(of.InvalidArgument, match="floor"):
            tx.counters(eu.counters("n"), floor=0)
        for floor in (1, "0", True, 1.5):
            bad: Any = floor
            with pytest.raises(of.InvalidArgument, match="floor"):
                tx.counters("m", floor=bad)


@pytest.mark.parametrize("n", [1.5, True, "1", None, 1 << 63, -(1 << 63)])
def test_what_is_no_integer_of_64_bit_is_refused_at_once(eu: Database, n: Any) -> None:
    with eu.transaction() as tx:
        with pytest.raises(of.InvalidArgument):
            tx.counters("n").add("a", n)
        tx.counters("n").add("a", (1 << 63) - 1)
        with pytest.raises(of.InvalidValue, match="64 bit"):
            tx.counters("n").add("a", 1)
    assert counts(eu) == {"a": (1 << 63) - 1}


def test_sets_are_told_their_elements(eu: Database) -> None:
    with eu.transaction() as tx:
        with pytest.raises(of.InvalidArgument, match="name the elements"):
            tx.sets("s").add("a")
        with pytest.raises(of.InvalidKey):
            tx.sets("s").add("a", 1.5)
        with pytest.raises(of.InvalidArgument, match="ttl"):
            tx.sets("s").add("a", "x", ttl=0)


# -- one shard


def keys_of(regions: MemoryRegions) -> list[int]:
    """A key of each shard."""
    client = regions.database("eu")._available
    found = {client.shard_of(encode_key(key)): key for key in range(100)}
    return [found[shard] for shard in range(client.shard_count)]


def test_another_shard_is_refused_before_anything_is_written(sharded: MemoryRegions) -> None:
    eu = sharded.database("eu")
    first, second, _ = keys_of(sharded)
    eu.counters("n").add(first)
    uses: list[Callable[[of.Transaction], object]] = [
        lambda tx: tx.counters("n").add(second),
        lambda tx: tx.counters("n").get(second),
        lambda tx: tx.sets("s").add(second, "x"),
        lambda tx: tx.sets("s").contains(second, "x"),
        lambda tx: list(tx.counters("n").items()),
        lambda tx: len(tx.sets("s")),
    ]
    for use in uses:
        with (
            pytest.raises(of.TransactionError, match=r"stays in one shard.*nothing was written"),
            eu.transaction() as tx,
        ):
            tx.counters("n").add(first)
            use(tx)
    assert counts(eu) == {first: 1}
    with eu.transaction() as tx:  # one element first: all collections of it are in one shard
        tx.counters("n").add((second, "a"))
        tx.sets("s").add(second, "x")
        assert list(tx.counters("n").items(prefix=(second,))) == [((second, "a"), 1)]
    assert eu.sets("s").get(second) == {"x"}


def test_a_read_only_transaction_reads_every_shard(sharded: MemoryRegions) -> None:
    eu = sharded.database("eu")
    keys = keys_of(sharded)
    for key in keys:
        eu.counters("n").add(key, key + 1)
        eu.sets("s").add(key, "x")
    with eu.transaction(read_only=True) as tx:
        assert dict(tx.counters("n").items()) == {key: key + 1 for key in keys}
        assert list(tx.counters("n").items(limit=2)) == sorted((key, key + 1) for key in keys)[:2]
        assert tx.sets("s").get(keys[1]) == {"x"}
        assert dict(tx.sets("s").items()) == {key: {"x"} for key in keys}


# -- rights


def test_a_counter_with_a_floor_is_not_waited_for_and_all_is_refused(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    eu.counters("stock", floor=0).add("sku", 5)
    regions.exchange()
    with pytest.raises(of.BelowFloor) as caught, us.transaction() as tx:
        tx.counters("stock", floor=0).add("sku", -1)
        tx.counters("n").add("orders")
        tx.sets("s").add("orders", "one")
    assert (caught.value.definite, caught.value.value, caught.value.here) == (True, 5, 0)
    assert (counts(us), us.sets("s").get("orders")) == ({}, set())
    with eu.transaction() as tx:
        stock = tx.counters("stock", floor=0)
        stock.add("sku", -7)
        stock.add("sku", 3)  # together they take no more than is there
        assert stock.get("sku") == 1
        with pytest.raises(of.InvalidArgument, match="floor"):
            stock.delete("sku")
        tx.counters("n").add("orders")
    assert tx.increments == {("stock", "sku"): 1, ("n", "orders"): 1}
    with pytest.raises(of.BelowFloor), eu.transaction() as tx:
        tx.counters("stock", floor=0).add("sku", -2)
    assert counts(eu, "stock", 0) == {"sku": 1}


# -- names


def test_a_request_happens_once_in_the_region_and_elsewhere_when_heard_of(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")

    def order(tx: of.Transaction) -> None:
        tx.counters("n").add("orders")
        tx.sets("s").add("orders", "one")

    assert eu.outcome("r") is None
    eu.run_transaction(order, request_id="r")
    eu.run_transaction(order, request_id="r")
    with eu.transaction(request_id="r") as tx:
        tx.counters("other").add("x", 100)  # another one under the same name: not done
    assert (counts(eu), counts(eu, "other"), tx.increments) == ({"orders": 1}, {}, {})
    assert (eu.outcome("r"), us.outcome("r")) == ("committed", None)
    regions.exchange()
    assert us.outcome("r") is None  # this connection has not used its region yet
    us.run_transaction(order, request_id="r")
    assert (counts(us), us.outcome("r")) == ({"orders": 1}, "committed")
    regions.exchange()
    assert counts(eu) == counts(us) == {"orders": 1}


def test_a_try_that_lost_stays_rejected_under_its_name(eu: Database, regions: MemoryRegions) -> None:
    other = regions.database("eu")
    with pytest.raises(of.Conflict, match="stays rejected"), eu.transaction(request_id="r") as tx:
        seen = tx.counters("n").get("a")
        other.counters("n").add("a")
        tx.counters("n").add("a", seen + 1)
    assert eu.outcome("r") == "rejected"
    tries = []

    def again(tx: of.Transaction) -> None:
        tries.append(1)
        tx.counters("n").add("a")

    with pytest.raises(of.Conflict, match="was rejected before, and stays so"):
        eu.run_transaction(again, request_id="r")
    assert (len(tries), counts(eu)) == (1, {"a": 1})


def test_only_the_last_try_of_a_function_is_kept(eu: Database, regions: MemoryRegions) -> None:
    other = regions.database("eu")

    def overtaken(tx: of.Transaction) -> None:
        seen = tx.counters("n").get("a")
        if seen < 2:
            other.counters("n").add("a")
        tx.counters("n").add("a", 10)

    eu.run_transaction(overtaken, request_id="r")
    assert (eu.outcome("r"), counts(eu)) == ("committed", {"a": 12})


def test_a_refusal_of_the_region_is_not_kept_under_a_name(regions: MemoryRegions) -> None:
    """A session that has seen more than this region is refused, and that says nothing about the request."""
    eu, us = regions.database("eu"), regions.database("us")
    eu.counters("n").add("a")
    ahead = regions.database("us", eu.session.token)
    from onefold.available.ops import Do, available_op, decode_outcome

    op = available_op(Do((Include("s", encode_key("a"), (encode_key("x"),)),), session={1: 1}), "r")
    refused = decode_outcome(regions.regions["us"].shards[0].submit([op])[0])
    assert refused.reason == "behind"  # type: ignore[union-attr]
    regions.exchange()
    with ahead.transaction(request_id="r") as tx:
        tx.counters("n").add("a")
    assert (us.counters("n").get("a"), ahead.outcome("r")) == (2, "committed")


def test_the_session_travels_into_the_transaction(regions: MemoryRegions) -> None:
    eu = regions.database("eu")
    eu.counters("n").add("a")
    us = regions.database("us", eu.session.token, timeout=0.05)
    for use in (lambda tx: tx.counters("n").get("a"), lambda tx: tx.counters("n").add("a")):
        with pytest.raises(of.TooStale, match="effects of eu are not here") as caught, us.transaction() as tx:
            use(tx)
        assert caught.value.regions == ("eu",)
    regions.exchange()
    us.run_transaction(lambda tx: tx.counters("n").add("a", tx.counters("n").get("a")))
    assert us.counters("n").get("a") == 2


def test_the_past_of_a_space_has_no_collections_for_every_region(eu: Database) -> None:
    eu.counters("n").add("a")
    eu.map("c")["a"] = 1
    past = eu.at(eu.session.token)
    with pytest.raises(InvalidArgument, match="read as it was"), past.transaction(read_only=True) as tx:
        tx.counters("n")


def test_what_a_transaction_asks_for_is_one_request_a_counter(eu: Database) -> None:
    with eu.transaction() as tx:
        for _ in range(5):
            tx.counters("stock", floor=-9).add("sku", -1)
            tx.counters("n").add("a")
        assert tx._part is not None
        requests = tx._part.requests()
    assert len(requests) == 2
    assert Change("stock", -9, encode_key("sku"), -5) in requests
