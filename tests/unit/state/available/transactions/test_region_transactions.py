"""Transactions over collections for every region: serializable in the region, of one shard, whole or not at all."""

# ruff: noqa: PT012 - what raises is the end of the transaction's block

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold import config
from onefold.database import Database


@pytest.fixture
def regions() -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us")
    yield made
    made.close()


@pytest.fixture
def eu(regions: MemoryRegions) -> Database:
    return regions.database("eu")


def elsewhere(fn: Callable[[], Any]) -> Any:
    """Run in another thread, where the block's guard does not hold."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(fn).result()


def add(db: Database, **counts: int) -> None:
    with db.transaction() as tx:
        for key, n in counts.items():
            tx.counters("n").add(key, n)


def tag(db: Database, key: str, *elements: str) -> None:
    with db.transaction() as tx:
        tx.sets("s").add(key, *elements)


def counts(db: Database) -> dict[Any, int]:
    with db.transaction(read_only=True) as tx:
        return dict(tx.counters("n").items())


def tags(db: Database) -> dict[Any, set[Any]]:
    with db.transaction(read_only=True) as tx:
        return dict(tx.sets("s").items())


# -- own writes


def test_the_block_sees_what_it_has_added_to_counters(eu: Database) -> None:
    add(eu, a=5, b=1)
    with eu.transaction() as tx:
        n = tx.counters("n")
        n.add("a", 2)
        n.add("a", -1)
        n.add("c")
        assert (n.get("a"), n.get("c"), n.get("z"), n.get("z", 9), n["a"]) == (6, 1, 0, 9, 6)
        assert n.delete("b")
        assert not n.delete("z")
        assert dict(n.items()) == {"a": 6, "c": 1}
        assert list(n.items(prefix="c")) == list(n.items(start="b")) == [("c", 1)]
        assert list(n.items(limit=1)) == [("a", 6)]
        assert (len(n), "b" in n, "c" in n, bool(n)) == (2, False, True, True)
        assert counts_elsewhere(eu) == {"a": 5, "b": 1}
    assert tx.increments == {("n", "a"): 6, ("n", "c"): 1}
    assert counts(eu) == {"a": 6, "c": 1}


def counts_elsewhere(db: Database) -> dict[Any, int]:
    found: dict[Any, int] = elsewhere(lambda: counts(db))
    return found


def test_the_block_sees_what_it_has_changed_in_sets(eu: Database) -> None:
    tag(eu, "a", "x", "y")
    tag(eu, "b", "x")
    with eu.transaction() as tx:
        s = tx.sets("s")
        s.add("a", "z")
        s.discard("a", "x", "unknown")
        s.add("c", "new")
        s.discard("b", "x")
        assert (s.get("a"), s["b"], s.get("unknown")) == ({"y", "z"}, set(), set())
        assert [s.contains("a", one) for one in "xyz"] == [False, True, True]
        assert dict(s.items()) == {"a": {"y", "z"}, "c": {"new"}}
        assert list(s.items(limit=1)) == [("a", {"y", "z"})]
        assert ("a" in s, "b" in s, len(s), bool(s)) == (True, False, 2, True)
        assert s.delete("a")
        assert not s.delete("b")
        s.add("a", "last")
        assert (s.get("a"), s.contains("a", "y"), s.contains("a", "last")) == ({"last"}, False, True)
    assert tags(eu) == {"a": {"last"}, "c": {"new"}}


def test_a_deleted_counter_is_not_added_to_in_the_same_transaction(eu: Database) -> None:
    add(eu, a=5)
    with eu.transaction() as tx:
        tx.counters("n").add("a")
        tx.counters("n").delete("a")
        with pytest.raises(of.TransactionError, match="was deleted in this transaction"):
            tx.counters("n").add("a", 3)
    assert counts(eu) == {}


def test_elements_with_a_lifetime_end(eu: Database) -> None:
    with eu.transaction() as tx:
        tx.sets("s").add("a", "short", ttl="1ms")
        tx.sets("s").add("a", "long", ttl="1h")
        assert tx.sets("s").get("a") == {"short", "long"}
    while tags(eu) != {"a": {"long"}}:
        pass
    with eu.transaction() as tx:
        assert tx.sets("s").get("a") == {"long"}
        tx.sets("s").add("b", "x")


# -- serializable


def lost_update(db: Database) -> None:
    add(db, a=1)
    with db.transaction() as tx:
        seen = tx.counters("n").get("a")
        elsewhere(lambda: add(db, a=10))
        tx.counters("n").add("mine", seen)


def write_skew(db: Database) -> None:
    tag(db, "on call", "ann", "bob")
    with db.transaction() as tx:
        if tx.sets("s").contains("on call", "ann"):
            elsewhere(lambda: db.run_transaction(lambda other: other.sets("s").discard("on call", "ann")))
            tx.sets("s").discard("on call", "bob")
            tx.counters("n").add("mine")


def miss_filled(db: Database) -> None:
    with db.transaction() as tx:
        if "a" not in tx.counters("n"):
            elsewhere(lambda: add(db, a=1))
            tx.counters("n").add("mine")


def phantom_in_a_set(db: Database) -> None:
    tag(db, "a", "x")
    with db.transaction() as tx:
        tx.counters("n").add("mine", len(tx.sets("s").get("a")))
        elsewhere(lambda: tag(db, "a", "y"))


def phantom_in_a_scan(db: Database) -> None:
    add(db, a=1, c=3)
    with db.transaction() as tx:
        total = sum(value for _, value in tx.counters("n").items())
        elsewhere(lambda: add(db, b=2))
        tx.counters("n").add("mine", total)


def deleted_and_made_again(db: Database) -> None:
    tag(db, "a", "x")
    with db.transaction() as tx:
        assert tx.sets("s").contains("a", "x")
        elsewhere(lambda: db.run_transaction(lambda other: other.sets("s").delete("a")))
        elsewhere(lambda: tag(db, "a", "x"))
        tx.counters("n").add("mine")


@pytest.mark.parametrize(
    "scenario",
    [lost_update, write_skew, miss_filled, phantom_in_a_set, phantom_in_a_scan, deleted_and_made_again],
)
def test_what_was_overtaken_is_refused_and_writes_nothing(eu: Database, scenario: Any) -> None:
    with pytest.raises(of.Conflict, match="nothing was written"):
        scenario(eu)
    assert "mine" not in counts(eu)
    assert "ann" not in tags(eu).get("on call", set())
    assert tags(eu).get("on call") in (None, {"bob"})


def test_what_an_import_changes_is_a_conflict_too(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    add(eu, a=1)
    regions.exchange()
    with pytest.raises(of.Conflict), eu.transaction() as tx:
        seen = tx.counters("n").get("a")
        elsewhere(lambda: add(us, a=10))
        elsewhere(regions.exchange)
        tx.counters("n").add("a", seen)
    assert counts(eu) == {"a": 11}


def test_what_changed_elsewhere_in_the_collection_is_no_conflict(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    add(eu, a=1, b=1)
    tag(eu, "a", "x")
    with eu.transaction() as tx:
        n, s = tx.counters("n"), tx.sets("s")
        assert n.get("a") == 1
        assert s.contains("a", "x")
        assert next(n.items()) == ("a", 1)
        elsewhere(lambda: add(us, b=10, c=1))
        elsewhere(lambda: tag(us, "a", "y"))
        elsewhere(regions.exchange)
        n.add("a")
    assert counts(eu) == {"a": 2, "b": 11, "c": 1}


def test_writes_without_a_read_never_conflict(eu: Database) -> None:
    add(eu, a=1)
    with eu.transaction() as tx:
        tx.counters("n").add("a", 1)
        tx.sets("s").add("a", "mine")
        tx.sets("s").discard("a", "theirs")
        elsewhere(lambda: add(eu, a=10))
        elsewhere(lambda: tag(eu, "a", "theirs"))
    assert (counts(eu), tags(eu)) == ({"a": 12}, {"a": {"mine"}})


def test_reads_are_of_one_moment(eu: Database) -> None:
    add(eu, a=1, b=1)
    with eu.transaction() as tx:
        assert tx.counters("n").get("a") == 1
        elsewhere(lambda: add(eu, a=1, b=1))
        assert tx.counters("n").get("b") == 1
        assert dict(tx.counters("n").items()) == {"a": 1, "b": 1}
    assert tx.version is None  # it wrote nothing, so there is nothing to be refused


def test_a_read_only_transaction_is_a_snapshot_and_writes_nothing(eu: Database) -> None:
    add(eu, a=1)
    tag(eu, "a", "x")
    with eu.transaction(read_only=True) as tx:
        assert tx.counters("n").get("a") == 1
        elsewhere(lambda: add(eu, a=1, b=1))
        assert dict(tx.counters("n").items()) == {"a": 1}
        for write in (
            lambda: tx.counters("n").add("a"),
            lambda: tx.counters("n").delete("a"),
            lambda: tx.sets("s").add("a", "y"),
            lambda: tx.sets("s").discard("a", "x"),
            lambda: tx.sets("s").delete("a"),
        ):
            with pytest.raises(of.TransactionError, match="read-only"):
                write()
    assert counts(eu) == {"a": 2, "b": 1}


def test_a_snapshot_that_has_left_the_history_is_too_old(
    eu: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 3)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 1)
    add(eu, a=1)
    with pytest.raises(of.TooOld, match="Run it again, shorter"), eu.transaction() as tx:
        assert list(tx.counters("n").items())
        for _ in range(9):
            elsewhere(lambda: add(eu, b=1))
        tx.counters("n").get("b")
        tx.counters("n").add("a")
    assert counts(eu) == {"a": 1, "b": 9}


# -- its block


def test_a_block_that_raises_writes_nothing(eu: Database) -> None:
    with pytest.raises(ZeroDivisionError), eu.transaction() as tx:
        tx.counters("n").add("a")
        _ = 1 / 0
    assert counts(eu) == {}


def test_handles_belong_to_the_block_and_its_thread(eu: Database) -> None:
    with eu.transaction() as tx:
        n, s = tx.counters("n"), tx.sets("s")
        n.add("a")
        uses = (
            lambda: n.get("a"),
            lambda: n.add("a"),
            n.items,
            lambda: s.get("a"),
            lambda: s.add("a", "x"),
            lambda: s.contains("a", "x"),
            lambda: tx.counters("n"),
        )
        for use in uses:
            with pytest.raises(of.TransactionError, match="this is another one"):
                elsewhere(use)
        begun = n.items()
        next(begun)
    for use in uses:
        with pytest.raises(of.TransactionError, match="is over"):
            use()
    with pytest.raises(of.TransactionError, match="is over"):
        next(begun)
    assert counts(eu) == {"a": 1}


def test_it_may_not_be_open_for_too_long(eu: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(of.TransactionError, match="has been open for"), eu.transaction() as tx:
        tx.counters("n").add("a")
        monkeypatch.setattr(config, "TRANSACTION_AGE_S", -1.0)
    monkeypatch.undo()
    assert counts(eu) == {}


def test_it_may_not_be_too_large(eu: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "TRANSACTION_OPERATIONS_MAX", 3)
    with pytest.raises(of.TooLarge), eu.transaction() as tx:
        for key in range(3):
            tx.counters("n").add(key)
            tx.counters("n").add(key)  # the same key again costs nothing
        tx.sets("s").add("a", "x")
    assert counts(eu) == {}


def test_a_function_is_run_again_until_it_commits(eu: Database) -> None:
    add(eu, a=1)
    tries = []

    def double(tx: of.Transaction) -> int:
        seen = tx.counters("n").get("a")
        tries.append(seen)
        if len(tries) < 3:
            elsewhere(lambda: add(eu, a=1))
        tx.counters("n").add("a", seen)
        return seen

    assert eu.run_transaction(double) == 3
    assert (tries, counts(eu)) == ([1, 2, 3], {"a": 6})
