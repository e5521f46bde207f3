"""Counters that every region can add to, without a floor: what they count, and what they refuse."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold import config
from onefold.arguments import shown


def test_what_regions_add_at_the_same_time_is_all_counted(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu").counters("likes"), regions.database("us").counters("likes")
    assert (eu.add("a"), eu.add("a", 5), us.add("a", -10)) == (1, 6, -10)
    assert (eu.get("a"), us.get("a"), eu.get("b"), eu.get("b", None)) == (6, -10, 0, None)
    regions.exchange()
    assert eu.get("a") == us.get("a") == -4
    assert "a" in us and "b" not in us


def test_items_come_in_key_order_over_shards_and_pages(shards: MemoryRegions) -> None:
    likes = shards.database("eu").counters("likes")
    assert list(likes.items()) == [] and len(likes) == 0 and not likes
    keys = [("a", n) for n in range(20)] + [(n, "x") for n in range(150)]
    for n, key in enumerate(keys):
        likes.add(key, n)
    found = list(likes.items())
    assert found == [(key, n) for n, key in enumerate(keys)]
    assert len(likes) == len(keys) and likes
    assert list(likes.items(prefix="a")) == found[:20]
    assert list(likes.items(start=("a", 3), stop=(2, ""))) == found[3:22]
    assert list(likes.items(limit=70)) == found[:70]
    assert list(likes.items(limit=0)) == list(likes.items(start="b", stop="a")) == []
    with pytest.raises(of.InvalidArgument, match="limit"):
        likes.items(limit=-1)


def test_a_scan_shows_one_moment_of_each_shard(shards: MemoryRegions) -> None:
    likes = shards.database("eu").counters("likes")
    for n in range(200):
        likes.add(n)
    scan = likes.items()
    first = [next(scan) for _ in range(3)]
    for n in range(200):
        likes.add(n, 10)
    rest = list(scan)
    assert [key for key, _ in first + rest] == list(range(200))
    by_shard: dict[int, set[int]] = {}
    from onefold.state.encoding.keys import encode_key

    for key, value in first + rest:
        by_shard.setdefault(likes.client.shard_of(encode_key(key)), set()).add(value)
    assert all(len(values) == 1 for values in by_shard.values()), by_shard


def test_a_deleted_counter_begins_again_and_keeps_what_was_added_elsewhere(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu").counters("likes"), regions.database("us").counters("likes")
    eu.add("a", 7)
    regions.exchange()
    us.add("a", 2)
    assert eu.delete("a") is True and eu.delete("a") is False and "a" not in eu
    regions.exchange()
    assert eu.get("a") == us.get("a") == 2
    eu.add("a", 1)
    regions.exchange()
    assert eu.get("a") == us.get("a") == 3


@pytest.mark.parametrize("seed", range(8))
def test_counters_are_as_a_model_that_knows_which_additions_each_region_has_seen(seed: int) -> None:
    """An addition counts where it is known, unless a delete that is known there had seen it."""
    rng = random.Random(seed)
    names = ("eu", "us", "ap")[: rng.choice((2, 3))]
    regions = MemoryRegions(*names, shards=rng.choice((1, 2)))
    handles = {name: regions.database(name).counters("n") for name in names}
    added: dict[str, dict[int, tuple[str, int]]] = {name: {} for name in names}
    removed: dict[str, set[int]] = {name: set() for name in names}
    try:
        for number in range(150):
            name, key = rng.choice(names), rng.choice("ab")
            match rng.randrange(10):
                case 0:
                    handles[name].delete(key)
                    removed[name] |= {n for n, (of_key, _) in added[name].items() if of_key == key}
                case 1 | 2 | 3 | 4:
                    source = rng.choice([other for other in names if other != name])
                    regions.pull(name, source)
                    added[name] |= added[source]
                    removed[name] |= removed[source]
                case _:
                    by = rng.randint(-9, 9)
                    handles[name].add(key, by)
                    added[name][number] = key, by
            for one, counters in handles.items():
                live = [pair for n, pair in added[one].items() if n not in removed[one]]
                expected = {of_key: sum(by for other, by in live if other == of_key) for of_key, _ in live}
                assert dict(counters.items()) == expected, (seed, number, one)
    finally:
        regions.close()


@pytest.mark.parametrize("n", [1.5, True, False, 2**63, -(2**63), 10**5000, "1", None], ids=shown)
def test_what_is_no_integer_of_64_bit_is_refused_before_anything_is_written(
    regions: MemoryRegions, n: Any
) -> None:
    database = regions.database("eu")
    before = regions.regions["eu"].shards[0].applied
    for counters in (database.counters("likes"), database.counters("stock", floor=0)):
        with pytest.raises(of.InvalidArgument, match=r"n must be a whole number"):
            counters.add("a", n)
    assert regions.regions["eu"].shards[0].applied == before


def test_a_counter_that_would_leave_64_bit_is_refused(regions: MemoryRegions) -> None:
    likes = regions.database("eu").counters("likes")
    likes.add("a", 2**63 - 1)
    with pytest.raises(of.InvalidValue, match="64 bit"):
        likes.add("a", 1)
    assert likes.get("a") == 2**63 - 1


def test_bad_arguments_are_named(regions: MemoryRegions) -> None:
    database = regions.database("eu")
    for floor in (1, 1.0, True, "0", -(2**63)):
        with pytest.raises(of.InvalidArgument, match="floor"):
            database.counters("stock", floor=floor)  # type: ignore[arg-type]
    with pytest.raises(of.InvalidArgument, match=r"got 5\. Counters begin at 0"):
        database.counters("stock", floor=5)
    with pytest.raises(of.InvalidArgument, match="increment"):
        database.counters("likes", mode="consistent")  # type: ignore[arg-type]
    with pytest.raises(of.InvalidArgument, match="mode"):
        database.counters("likes", mode="fast")  # type: ignore[arg-type]
    longest = "x" * (config.NAME_BYTES_MAX - 2)
    assert database.counters(longest).add("a") == database.sets(longest[1:]).add("a", 1) == 1
    with pytest.raises(of.InvalidArgument, match=f"at most {config.NAME_BYTES_MAX - 4} bytes"):
        database.counters(longest, floor=-5)
    for name in ("", 5, longest + "x", "x" * (config.NAME_BYTES_MAX + 1)):
        with pytest.raises(of.InvalidArgument, match="name"):
            database.counters(name)  # type: ignore[arg-type]
    with pytest.raises(of.UnsupportedConsistency, match="mode='consistent'"):
        database.counters("likes", consistency="strong")
    likes = database.counters("likes")
    with pytest.raises(of.UnsupportedConsistency):
        likes.get("a", consistency="strong")
    with pytest.raises(of.InvalidKey):
        likes.add(1.5)
    with pytest.raises(of.InvalidArgument, match="request_id"):
        likes.add("a", request_id="")
    for call in (lambda: likes.here("a"), lambda: likes.move("a", 1, to="us")):
        with pytest.raises(of.InvalidArgument, match="floor"):
            call()


def test_a_name_is_one_thing_in_all_shards(shards: MemoryRegions) -> None:
    eu, us = shards.database("eu"), shards.database("us")
    eu.counters("n").add("a")
    uses: list[Any] = [
        lambda: eu.counters("n", floor=0).get("b"),
        lambda: eu.counters("n", floor=0).add("b"),
        lambda: list(eu.sets("n").items()),
        lambda: eu.sets("n").add("b", 1),
    ]
    for use in uses:
        with pytest.raises(of.InvalidArgument, match="'n' is a collection of counters already"):
            use()
    # Not known there yet: each region has a kind of its own, and keeps it.
    us.counters("n", floor=-5).add("a")
    shards.exchange()
    assert (eu.counters("n").get("a"), us.counters("n", floor=-5).get("a")) == (1, 1)
    with pytest.raises(of.InvalidArgument, match="is a collection of counters"):
        eu.sets("n").add("b", 1)


def test_a_request_id_counts_once_also_in_another_region(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    likes = eu.counters("likes")
    assert [likes.add("a", 5, request_id="r1") for _ in range(3)] == [5, 5, 5]
    likes.add("a", 1)
    regions.exchange()
    assert us.counters("likes").add("a", 5, request_id="r1") == 5
    assert us.counters("likes").get("a") == 6
    assert likes.delete("a", request_id="r2") is likes.delete("a", request_id="r2") is True
    likes.add("b")
    assert eu.counters("likes").delete("b", request_id="r3") is True
    regions.exchange()
    with pytest.raises(of.InvalidArgument, match="used by another operation"):
        us.counters("likes").add("b", request_id="r3")


def test_plain_handles_stay_out_of_a_transaction(regions: MemoryRegions) -> None:
    database = regions.database("eu")
    likes, tags = database.counters("likes"), database.sets("tags")
    uses: list[Any] = [
        lambda: likes.add("a"),
        lambda: likes.get("a"),
        likes.items,
        lambda: tags.add("a", 1),
        lambda: tags.get("a"),
        lambda: database.conflicts("m"),
        database.sync,
    ]
    with database.transaction():
        for use in uses:
            with pytest.raises(of.TransactionError):
                use()
    assert likes.add("a") == 1


def test_reads_wait_for_what_a_token_has_seen(regions: MemoryRegions) -> None:
    eu = regions.database("eu")
    eu.counters("likes").add("a")
    us = regions.database("us", eu.session.token, timeout=0.05)
    likes = us.counters("likes")
    for call in (lambda: likes.get("a"), lambda: likes.items().__next__(), lambda: likes.add("a")):
        with pytest.raises(of.TooStale, match="effects of eu"):
            call()
    assert likes.get("a", consistency="eventual") == 0
    assert us.counters("likes", consistency="eventual").get("a") == 0
    regions.exchange()
    assert likes.get("a") == 1
