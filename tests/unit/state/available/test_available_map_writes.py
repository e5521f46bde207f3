"""Conditions, requests, lifetimes and merge functions of available maps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold.state.available.maps.map import AvailableMap
from onefold.state.encoding.items import RegionVersion
from onefold.testing.plugin import pure_merges

MERGES = ("last_writer_wins", "fields", "keep_both", max)


@pytest.fixture
def regions() -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us", shards=2)
    yield made
    made.close()


def value_of(merge: object, number: int) -> Any:
    return {"n": number} if merge == "fields" else number


def both(regions: MemoryRegions, merge: Any) -> tuple[AvailableMap[Any, Any], AvailableMap[Any, Any]]:
    eu, us = (regions.database(name).map("m", mode="available", merge=merge) for name in ("eu", "us"))
    return eu, us


def wait_until(true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.005)


@pytest.mark.parametrize("merge", MERGES)
def test_conditions_hold_in_this_region(regions: MemoryRegions, merge: Any) -> None:
    eu, us = both(regions, merge)
    first = eu.put("k", value_of(merge, 1), if_absent=True)
    with pytest.raises(of.Conflict, match="already"):
        eu.put("k", value_of(merge, 2), if_absent=True)
    us.put("k", value_of(merge, 2), if_absent=True)  # another region knows nothing of it yet
    item = eu.get_item("k")
    assert item is not None and item.version == first == RegionVersion.of(str(first)) and item.region == "eu"
    second = eu.put("k", value_of(merge, 3), if_version=first)
    for stale in (first, str(first)):
        with pytest.raises(of.Conflict, match="does not have the version"):
            eu.put("k", value_of(merge, 4), if_version=stale)
        with pytest.raises(of.Conflict):
            eu.delete("k", if_version=stale)
    regions.exchange()
    here, there = eu.get_item("k"), us.get_item("k")
    assert here == there and here is not None
    if merge == "keep_both":
        assert here.version != second and len(here.siblings or ()) == 2
    assert us.delete("k", if_version=here.version) is True
    assert us.delete("k") is False
    with pytest.raises(of.Conflict):
        us.put("k", value_of(merge, 1), if_version=here.version)


def test_versions_of_maps_by_fields_differ_when_a_field_goes(regions: MemoryRegions) -> None:
    eu, us = both(regions, "fields")
    written = eu.put("k", {"a": 1, "b": 2, "c": 3})
    regions.exchange()
    eu.patch("k", unset="a")
    us.patch("k", unset="b")
    versions = {eu.get_item("k").version, us.get_item("k").version, written}  # type: ignore[union-attr]
    assert len(versions) == 3
    regions.exchange()
    regions.exchange()
    assert eu.get_item("k") == us.get_item("k")
    assert eu["k"] == {"c": 3}


def test_a_collected_tombstone_of_a_field_is_no_conflict() -> None:
    regions = MemoryRegions("eu", "us")
    try:
        eu, us = both(regions, "fields")
        eu["k"] = {"a": 1, "b": 2}
        eu.patch("k", unset="a")
        regions.exchange()
        version = eu.get_item("k").version  # type: ignore[union-attr]
        for n in range(3):  # others say that they know it, so the tombstone goes
            us["other"] = eu["other"] = {"n": n}
            regions.exchange()
        eu.put("k", {"a": 2}, if_version=version)
        regions.exchange()
        assert us["k"] == {"a": 2}
    finally:
        regions.close()


@pytest.mark.parametrize("merge", MERGES)
def test_a_request_happens_once_also_in_a_region_that_has_heard_of_it(
    regions: MemoryRegions, merge: Any
) -> None:
    eu, us = both(regions, merge)
    version = eu.put("k", value_of(merge, 1), request_id="r1")
    eu.put("k", value_of(merge, 2), if_version=version)
    assert eu.put("k", value_of(merge, 1), request_id="r1") == version
    deleted = eu.put("d", value_of(merge, 1))
    assert eu.delete("d", if_version=deleted, request_id="r2") is True
    assert eu.delete("d", if_version=deleted, request_id="r2") is True  # as the first time
    regions.exchange()
    assert us.put("k", value_of(merge, 1), request_id="r1") == version
    assert us.put("k", value_of(merge, 1), if_absent=True, request_id="r1") == version
    assert us.get_many(["k"]) == eu.get_many(["k"])
    assert us.delete("d", request_id="r2") is True
    with pytest.raises(of.InvalidArgument, match="used by another operation"):
        us.delete("k", request_id="r1")
    with pytest.raises(of.Conflict):
        us.put("k", value_of(merge, 1), if_version=deleted, request_id="r3")


@pytest.mark.parametrize("merge", MERGES)
def test_items_end_by_themselves_in_every_region(regions: MemoryRegions, merge: Any) -> None:
    eu, us = both(regions, merge)
    eu.put("stays", value_of(merge, 1))
    eu.put("ends", value_of(merge, 1), ttl=0.3)
    item = eu.get_item("ends")
    assert item is not None and item.expires_at is not None
    regions.exchange()
    there = us.get_item("ends")
    assert there is None or there.expires_at == item.expires_at
    wait_until(lambda: eu.get("ends") is None and us.get("ends") is None)
    for m in (eu, us):
        assert [*m] == ["stays"] and len(m) == 1 and m.get_many(["ends"]) == {}
        assert m.get_item("ends") is None and "ends" not in m and dict(m.scan(limit=2)).keys() == {"stays"}
    eu.put("ends", value_of(merge, 2), if_absent=True)
    regions.exchange()
    assert us.get("ends") == eu.get("ends") is not None


def test_what_is_over_by_the_readers_clock_is_not_shown_where_nothing_can_be_written(
    regions: MemoryRegions, monkeypatch: pytest.MonkeyPatch
) -> None:
    eu, _ = both(regions, "last_writer_wins")
    eu.put("ends", 1, ttl=0.2)

    def refused(shard: int) -> None:
        raise of.SpaceError("read-only")

    monkeypatch.setattr(eu.client, "tick", refused)
    wait_until(lambda: eu.get("ends") is None)
    assert [*eu] == [] and len(eu) == 0 and eu.get_many(["ends"]) == {}


def test_modify_keeps_the_end_of_an_item(regions: MemoryRegions) -> None:
    eu, _ = both(regions, "last_writer_wins")
    eu.put("k", 1, ttl="1h")
    before = eu.get_item("k")
    assert eu.modify("k", lambda n: n + 1) == 2
    after = eu.get_item("k")
    assert before is not None and after is not None and before.expires_at is not None
    assert after.expires_at is not None
    assert 0 <= (after.expires_at - before.expires_at).total_seconds() < 60
    eu.modify("k", lambda n: n + 1, ttl="2h")
    assert eu.get_item("k").expires_at > after.expires_at  # type: ignore[union-attr,operator]
    assert eu.modify("new", lambda n: n + 1, 5) == 6


def test_the_other_methods_of_a_dict(regions: MemoryRegions) -> None:
    eu, us = both(regions, "last_writer_wins")
    assert eu.setdefault("a", 1) == 1 and eu.setdefault("a", 2) == 1
    assert eu.pop("a") == 1 and eu.pop("a", None) is None
    with pytest.raises(KeyError):
        eu.pop("a")
    eu.update({"b": 2}, c=3)
    eu.update([("d", 4)])
    assert eu.popitem() == ("b", 2) and [*eu.items()] == [("c", 3), ("d", 4)]
    assert [*reversed(eu)] == ["d", "c"] and eu == {"c": 3, "d": 4} and bool(eu)
    regions.exchange()
    us.clear()
    assert not us
    with pytest.raises(KeyError):
        us.popitem()
    regions.exchange()
    assert not eu


def test_siblings_are_replaced_together(regions: MemoryRegions) -> None:
    eu, us = both(regions, "keep_both")
    eu["k"], us["k"] = "eu", "us"
    regions.exchange()
    seen: list[Any] = []
    assert eu.modify("k", lambda siblings: seen.append(sorted(siblings)) or "all") == ["all"]
    assert seen == [["eu", "us"]]
    assert eu.modify("new", len) == [0] and eu.modify("newer", len, "first") == [1]
    assert eu.pop("k") == ["all"]
    assert eu.setdefault("k", 1) == [1]
    us["k"] = 2  # without having seen that
    regions.exchange()
    assert sorted(eu["k"]) == sorted(us["k"]) == [1, 2]


def test_a_merge_function_that_raises_names_the_place_and_has_the_siblings(regions: MemoryRegions) -> None:
    def picky(siblings: list[Any]) -> Any:
        siblings.append("mine")  # its own copy
        if len(siblings) > 2:
            raise RuntimeError("too many")
        return siblings[0]

    eu, us = both(regions, picky)
    for m, name in ((eu, "eu"), (us, "us")):
        m["a"] = "first"
        m[f"only {name}"] = name
    us["b"] = eu["b"] = "both"
    regions.exchange()
    for read in (lambda: eu["a"], lambda: eu.get("a"), lambda: eu.get_item("a"), lambda: eu.get_many(["a"])):
        with pytest.raises(of.MergeFailed, match="picky of map 'm' raised RuntimeError: too many") as caught:
            read()
        error = caught.value
        assert error.siblings == ["first", "first"] and (error.map, error.key) == ("m", "a")
        assert error.definite and isinstance(error.__cause__, RuntimeError)
    for write in (lambda: eu.pop("a"), lambda: eu.setdefault("a", 1)):
        with pytest.raises(of.MergeFailed):
            write()
    assert "a" in eu and len(eu) == 4 and [*eu] == ["a", "b", "only eu", "only us"]
    scan, found, failed = eu.scan(), [], 0
    while True:
        try:
            found.append(next(scan))
        except of.MergeFailed:
            failed += 1
        except StopIteration:
            break
    assert failed == 2 and sorted(found) == [("only eu", "eu"), ("only us", "us")]
    assert eu.modify("a", sorted) == ["first", "first"]  # it gets the siblings, not what cannot be merged
    eu["b"] = "mended"
    regions.exchange()
    assert us["b"] == "mended"


def test_what_a_signal_handler_raises_in_a_merge_function_passes(regions: MemoryRegions) -> None:
    def interrupted(siblings: list[Any]) -> Any:
        raise KeyboardInterrupt

    eu, _ = both(regions, interrupted)
    eu["k"] = 1
    with pytest.raises(KeyboardInterrupt):
        eu.get("k")


def test_a_merge_function_that_is_not_pure_is_found_in_tests(
    regions: MemoryRegions, onefold_db: of.Database
) -> None:
    numbers = iter(range(100))
    eu, _ = both(regions, lambda siblings: next(numbers))
    eu["k"] = 1
    with pytest.raises(of.MergeFailed, match="two different values of the same siblings"):
        eu["k"]
    m = onefold_db.map("m", mode="available", merge=lambda siblings: siblings.pop())
    m["k"] = 1
    with pure_merges():
        assert m["k"] == 1


def test_an_unreadable_value_names_its_map_and_key(regions: MemoryRegions) -> None:
    database = regions.database("eu")
    database.map("m", mode="available")["k"] = "text"
    database.map("m", mode="available")["n"] = 1
    m = database.map("m", mode="available", type=int)
    with pytest.raises(of.InvalidValue, match="map 'm', key 'k'") as caught:
        m["k"]
    assert (caught.value.map, caught.value.key) == ("m", "k")
    scan = m.scan()
    with pytest.raises(of.InvalidValue):
        next(scan)
    assert [*scan] == [("n", 1)]


def test_modify_of_many_threads_loses_nothing() -> None:
    regions = MemoryRegions("eu")
    try:
        m = regions.database("eu").map("m", mode="available")

        def count() -> None:
            for _ in range(20):
                m.modify("n", lambda n: n + 1, 0)

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert m["n"] == 80
    finally:
        regions.close()


def test_session_reads_come_from_memory_and_see_what_comes_from_other_regions() -> None:
    regions = MemoryRegions("eu", "us")
    try:
        eu, us = both(regions, "last_writer_wins")
        for n in range(30):
            us["k"] = n
            assert us["k"] == us.get("k", consistency="eventual") == n
            token = regions.databases[1].session.token
            regions.exchange()
            regions.databases[0].session.merge(token)
            assert eu["k"] == n
        assert eu._cache is not None
    finally:
        regions.close()
