"""Maps that every region can write: what they do in one region, and what becomes of it in others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold.state.available.maps.map import AvailableMap

MERGES = ("last_writer_wins", "fields", "keep_both")


@pytest.fixture(params=[1, 3])
def regions(request: pytest.FixtureRequest) -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us", shards=request.param)
    yield made
    made.close()


def pair(regions: MemoryRegions, merge: Any = "last_writer_wins") -> tuple[AvailableMap[Any, Any], ...]:
    """The same map in both regions."""
    return tuple(regions.database(name).map("carts", mode="available", merge=merge) for name in regions.names)


def value_of(merge: str, number: int) -> Any:
    return {"n": number} if merge == "fields" else number


def read(merge: str, number: int) -> Any:
    return [number] if merge == "keep_both" else value_of(merge, number)


@pytest.mark.parametrize("merge", MERGES)
def test_a_write_is_seen_at_once_here_and_elsewhere_after_the_exchange(
    regions: MemoryRegions, merge: str
) -> None:
    eu, us = pair(regions, merge)
    eu["a"] = value_of(merge, 1)
    eu.put(("b", 2), value_of(merge, 2))
    assert eu["a"] == read(merge, 1) and "a" in eu and len(eu) == 2
    assert us.get("a") is None and "a" not in us and len(us) == 0
    regions.exchange()
    assert dict(us) == dict(eu) == {"a": read(merge, 1), ("b", 2): read(merge, 2)}
    assert [*us.keys()] == ["a", ("b", 2)] and [*us.values()] == [read(merge, 1), read(merge, 2)]
    assert us.get_many(["a", "x"]) == {"a": read(merge, 1)}
    assert us.get_item("a") == eu.get_item("a")
    del us["a"]
    assert "a" in eu
    regions.exchange()
    assert "a" not in eu and [*eu] == [("b", 2)] and eu.count() == 1 and eu.count("b") == 1
    with pytest.raises(KeyError):
        del us["a"]
    with pytest.raises(KeyError):
        us["a"]
    us.clear()
    regions.exchange()
    assert not eu and not us


def test_the_last_writer_wins(regions: MemoryRegions) -> None:
    eu, us = pair(regions)
    eu["k"] = "eu"
    us["k"] = "us"
    regions.exchange()
    assert eu["k"] == us["k"] in ("eu", "us")


def test_fields_are_merged_one_by_one(regions: MemoryRegions) -> None:
    eu, us = pair(regions, "fields")
    eu["k"] = {"name": "Ann", "city": "Bern", "phone": "1"}
    regions.exchange()
    assert eu.patch("k", {"city": "Bonn"}) == {"name": "Ann", "city": "Bonn", "phone": "1"}
    assert us.patch("k", {"name": "Anna"}, unset=("phone",)) == {"name": "Anna", "city": "Bern"}
    regions.exchange()
    assert eu["k"] == us["k"] == {"name": "Anna", "city": "Bonn"}
    assert us.patch("new", {"a": None}) == {"a": None}


def test_both_are_kept_until_somebody_replaces_them(regions: MemoryRegions) -> None:
    eu, us = pair(regions, "keep_both")
    eu["k"], us["k"] = 1, 2
    regions.exchange()
    assert eu["k"] == us["k"] and sorted(eu["k"]) == [1, 2]
    item = us.get_item("k")
    assert item is not None and item.siblings == item.value and str(item.version).startswith("@")
    assert eu.modify("k", sum) == [3]
    regions.exchange()
    assert us["k"] == [3]


def test_a_merge_function_reads_what_is_kept(regions: MemoryRegions) -> None:
    eu, us = pair(regions, max)
    eu["k"], us["k"] = 1, 2
    assert (eu["k"], us["k"]) == (1, 2)
    regions.exchange()
    assert eu["k"] == us["k"] == 2
    item = eu.get_item("k")
    assert item is not None and sorted(item.siblings or []) == [1, 2]


def test_a_name_is_one_thing(regions: MemoryRegions) -> None:
    eu = regions.database("eu")
    eu.map("carts", mode="available")["a"] = 1
    for merge in ("fields", "keep_both", max):
        with pytest.raises(of.InvalidArgument, match="merge='last_writer_wins'"):
            eu.map("carts", mode="available", merge=merge).get("a")
    with pytest.raises(of.InvalidArgument, match="a name is one thing"):
        eu.map("carts")
    eu.map("accounts")["a"] = 1
    with pytest.raises(of.InvalidArgument, match="is a consistent map already"):
        eu.map("accounts", mode="available").get("a")
