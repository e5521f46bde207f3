"""Watching available maps: what other regions did, tokens of one region, nothing twice and nothing missed."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold import config
from onefold.state.available.maps.map import AvailableMap
from onefold.state.encoding.keys import encode_key

MERGES = ("last_writer_wins", "fields", "keep_both")


@pytest.fixture(params=[1, 3])
def regions(request: pytest.FixtureRequest) -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us", shards=request.param)
    yield made
    made.close()


def both(regions: MemoryRegions, merge: Any = "last_writer_wins") -> tuple[AvailableMap[Any, Any], ...]:
    return tuple(regions.database(name).map("m", mode="available", merge=merge) for name in regions.names)


def value_of(merge: object, number: int) -> Any:
    return {"n": number} if merge == "fields" else number


@pytest.mark.parametrize("merge", MERGES)
def test_a_change_says_where_it_was_written(regions: MemoryRegions, merge: str) -> None:
    eu, us = both(regions, merge)
    with eu.watch(timeout=60) as changes:
        here = eu.put("k", value_of(merge, 1))
        change = next(changes)
        assert (change.key, change.version, change.kind, change.region) == ("k", here, "put", "eu")
        assert change.value == eu["k"]
        there = us.put("other", value_of(merge, 2))
        regions.exchange()
        change = next(changes)
        assert (change.key, change.version, change.kind, change.region) == ("other", there, "put", "us")
        assert change.version == us.get_item("other").version  # type: ignore[union-attr]
        us.delete("k")
        regions.exchange()
        change = next(changes)
        assert (change.key, change.value, change.kind) == ("k", None, "delete")
        assert change.region == (None if merge == "keep_both" else "us")
    consistent = regions.databases[0].map("consistent")
    with consistent.watch(timeout=60) as theirs:
        consistent["k"] = 1
        assert next(theirs).region is None


def test_an_import_is_as_many_changes_as_it_has_keys(regions: MemoryRegions) -> None:
    eu, us = both(regions)
    watch = eu.watch(timeout=0)
    for n in range(config.WATCH_PAGE_CHANGES + 50):
        us[n] = n
    us.delete(0)
    us[1] = "again"
    regions.exchange()
    found = [*watch]
    assert sorted(change.key for change in found) == [*range(1, config.WATCH_PAGE_CHANGES + 50)]
    assert {change.kind for change in found} == {"put"}
    assert eu[1] == "again"


def test_each_token_continues_within_an_import(regions: MemoryRegions) -> None:
    eu, us = both(regions, "keep_both")
    start = eu.watch().token
    eu.put_many(dict.fromkeys(range(6), "eu"), atomic=False)
    us.put_many(dict.fromkeys(range(3, 9), "us"), atomic=False)
    regions.exchange()
    us.put_many(dict.fromkeys(range(9), "us 2"), atomic=False)
    us.delete(4)
    regions.exchange()
    changes = [*eu.watch(start=start, timeout=0)]
    assert len(changes) >= 18
    for at, change in enumerate(changes):
        again = [*eu.watch(start=change.token, timeout=0)]
        if len(regions.regions["eu"].shards) == 1:
            assert again == changes[at + 1 :]
        else:  # shards come in turns
            assert {(one.key, str(one.version)) for one in again} == {
                (one.key, str(one.version)) for one in changes[at + 1 :]
            }


def test_what_changes_nothing_is_no_change() -> None:
    regions = MemoryRegions("eu", "us")
    try:
        eu, us = both(regions, "fields")
        us["k"] = {"a": 0}
        us.delete("gone")  # nothing was there
        regions.exchange()
        watch = us.watch(timeout=0)
        eu.patch("k", {"a": 1, "b": 1}, unset="c")
        eu.delete("k")
        time.sleep(0.002)
        us.patch("k", {"a": 2})  # later, so what eu did to it is lost
        assert [change.kind for change in watch] == ["put"]
        watch = us.watch(timeout=0)
        eu.delete("nothing")
        applied = regions.regions["us"].shards[0].applied
        for _ in range(4):
            regions.exchange()
            eu.patch("tick", {"n": 1})
            us.patch("tick", {"n": 2})
        gone = regions.databases[1]._available.known(0).gone_rows
        assert regions.regions["us"].shards[0].applied > applied and gone == 0  # tombstones were collected
        found = [change for change in watch if change.key != "tick"]
        assert {(change.key, change.kind) for change in found} <= {("k", "put")} and len(found) <= 1
    finally:
        regions.close()


def test_expiry_is_a_change(regions: MemoryRegions) -> None:
    eu, us = both(regions)
    with us.watch(timeout=60) as changes:
        eu.put("k", 1, ttl=0.2)
        eu["stays"] = 1
        regions.exchange()
        kinds = {}
        while len(kinds) < 3:
            change = next(changes)
            kinds[change.key, change.kind] = change.region
    assert kinds == {("k", "put"): "eu", ("stays", "put"): "eu", ("k", "expire"): "eu"}


def test_the_present_state_comes_first(regions: MemoryRegions) -> None:
    eu, us = both(regions, "keep_both")
    us["a"], eu["a"], us["b"] = 1, 2, 3
    us.delete("c")
    regions.exchange()
    watch = eu.watch(initial=True, timeout=0)
    found = [*watch]
    assert {change.key: sorted(change.value or []) for change in found} == {"a": [1, 2], "b": [3]}
    assert all(change.version == eu.get_item(change.key).version for change in found)  # type: ignore[union-attr]
    assert {change.region for change in found} <= {"eu", "us"}
    eu["c"] = 4
    assert [change.key for change in eu.watch(start=watch.token, timeout=0)] == ["c"]


def test_a_token_is_of_one_region(regions: MemoryRegions) -> None:
    eu, us = both(regions)
    eu["k"] = 1
    regions.exchange()
    token = next(eu.watch(initial=True)).token
    with pytest.raises(of.TokenError, match="in region eu, and this is region us"):
        us.watch(start=token)
    database = regions.databases[0]
    with pytest.raises(of.TokenError, match="available map in region eu"):
        database.map("consistent").watch(start=token)
    database.map("consistent")["k"] = 1
    for other in (database.map("consistent").watch().token, "of2.x", "text", "of1.AAAA"):
        with pytest.raises(of.TokenError):
            eu.watch(start=other)
    elsewhere = MemoryRegions("eu")
    try:
        with pytest.raises(of.TokenError):
            elsewhere.database("eu").map("m", mode="available").watch(start=token)
    finally:
        elsewhere.close()
    with pytest.raises(of.InvalidArgument, match="not both"):
        eu.watch(start=token, initial=True)


def test_a_session_token_is_a_place_to_watch_from(regions: MemoryRegions) -> None:
    eu, _ = both(regions)
    eu["before"] = 1
    token = regions.databases[0].session.token
    eu["after"] = 2
    assert [change.key for change in eu.watch(start=token, timeout=0)] == ["after"]
    change = next(eu.watch(start=token))
    other = regions.database("us", change.token).map("m", mode="available")
    with pytest.raises(of.TooStale):  # a change's token is one of a session, too
        other.client.meet(other.client.shard_of(encode_key("after")), other.level, 0.01)
    regions.exchange()
    assert other["after"] == 2


def test_a_prefix_is_watched_alone(regions: MemoryRegions) -> None:
    eu, us = both(regions)
    watch = eu.watch("a", timeout=0)
    us[("a", 1)], us[("b", 1)], eu["a"] = 1, 2, 3
    regions.exchange()
    assert sorted(str(change.key) for change in watch) == ["('a', 1)", "a"]


@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("seed", range(4))
def test_a_follower_of_random_changes_ends_with_the_map(merge: str, seed: int) -> None:
    rng = random.Random(seed)
    regions = MemoryRegions("eu", "us", "ap", shards=rng.choice((1, 2)))
    try:
        maps = both(regions, merge)
        copies: list[dict[Any, Any]] = [{} for _ in maps]
        tokens = [m.watch().token for m in maps]

        def follow(at: int) -> None:
            for change in maps[at].watch(start=tokens[at], timeout=0):
                tokens[at] = change.token
                if change.kind == "put":
                    assert change.value is not None
                    copies[at][change.key] = change.value
                else:
                    assert change.key in copies[at], (change, seed)
                    del copies[at][change.key]
                if rng.random() < 0.3:
                    return

        for step in range(150):
            at, key = rng.randrange(3), rng.randrange(8)
            match rng.randrange(6):
                case 0 | 1:
                    maps[at].put(key, value_of(merge, step))
                case 2:
                    maps[at].delete(key)
                case 3 if merge == "fields":
                    maps[at].patch(key, {rng.choice("abc"): step}, unset=rng.choice("xyn"))
                case 4:
                    follow(at)
                case _:
                    regions.pull(*rng.sample(regions.names, 2))
        regions.exchange()
        for at, m in enumerate(maps):
            while [*m.watch(start=tokens[at], timeout=0)]:
                follow(at)
            assert copies[at] == dict(m) == dict(maps[0]), seed
    finally:
        regions.close()
