"""What available maps refuse: each a clear error before anything is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold import config
from onefold.database import Database


class Person(msgspec.Struct):
    name: str
    age: int = 0


@dataclass
class Point:
    x: int
    y: int


@pytest.fixture
def eu() -> Iterator[Database]:
    made = MemoryRegions("eu", "us")
    yield made.database("eu")
    made.close()


def applied(database: Database) -> int:
    return database._available.shards[0].applied


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "ap"}, "mode must be 'consistent' or 'available'; got 'ap'"),
        ({"mode": None}, "mode must be"),
        ({"merge": "fields"}, "mode='available'"),
        ({"merge": max}, "mode='available'"),
        (
            {"mode": "available", "merge": "newest"},
            "merge must be 'last_writer_wins', 'fields', 'keep_both' or",
        ),
        ({"mode": "available", "merge": None}, "merge must be"),
        ({"mode": "available", "merge": 5}, "merge must be"),
        ({"mode": "available", "type": object()}, "cannot be stored"),
    ],
)
def test_modes_and_merges_that_there_are_not(eu: Database, options: Any, message: str) -> None:
    with pytest.raises(of.InvalidArgument, match=message):
        eu.map("m", **options)


def test_a_merge_function_is_a_plain_one(eu: Database) -> None:
    async def later(siblings: list[Any]) -> Any:
        return siblings

    with pytest.raises(of.InvalidArgument, match="cannot be asynchronous"):
        eu.map("m", mode="available", merge=later)


@pytest.mark.parametrize("name", ["", None, "n" * (config.NAME_BYTES_MAX - 1), "\ud800"])
def test_names_that_cannot_be(eu: Database, name: Any) -> None:
    with pytest.raises(of.InvalidArgument, match="name of a"):
        eu.map(name, mode="available")
    eu.map("n" * (config.NAME_BYTES_MAX - 2), mode="available")["k"] = 1


def test_strong_is_refused(eu: Database) -> None:
    with pytest.raises(of.UnsupportedConsistency, match="mode='consistent'"):
        eu.map("m", mode="available", consistency="strong")
    m = eu.map("m", mode="available")
    for read in (m.get, m.get_item, m.get_many, m.count):
        with pytest.raises(of.UnsupportedConsistency, match="mode='consistent'"):
            read("k" if read != m.get_many else ["k"], consistency="strong")  # type: ignore[operator]
    with pytest.raises(of.UnsupportedConsistency):
        m.scan(consistency="strong")
    with pytest.raises(of.UnsupportedConsistency, match="unknown consistency"):
        m.get("k", consistency="newest")
    assert m.get("k", consistency="bounded:5s") is None


@pytest.mark.parametrize("value", [1, "text", None, [1], {1: 2}, {b"a": 1}, {"a": 1, 2: 3}, {("a",): 1}])
def test_a_map_by_fields_holds_fields_with_names(eu: Database, value: Any) -> None:
    m = eu.map("m", mode="available", merge="fields")
    before = applied(eu)
    for write in (
        lambda: m.put("k", value),
        lambda: m.update({"k": value}),
        lambda: m.put_many({"k": value}, atomic=False),
        lambda: m.setdefault("k", value),
        lambda: m.modify("k", lambda _: value),
    ):
        with pytest.raises(of.InvalidValue, match="holds dicts, Structs and dataclasses"):
            write()
    assert applied(eu) == before


def test_structs_and_dataclasses_have_fields(eu: Database) -> None:
    people = eu.map("people", mode="available", merge="fields", type=Person)
    people["a"] = Person("Ann", 30)
    assert people.patch("a", {"age": 31}) == Person("Ann", 31)
    points = eu.map("points", mode="available", merge="fields", type=Point)
    points["p"] = Point(1, 2)
    assert points["p"] == Point(1, 2)
    before = applied(eu)
    for fields in ({"age": "old"}, {"name": None}):
        with pytest.raises(of.InvalidValue, match="would not be of the type of map 'people'"):
            people.patch("a", fields)
    for key, unset in (("a", ("name",)), ("new", ("age",))):
        with pytest.raises(of.InvalidValue, match="would not be of the type"):
            people.patch(key, unset=unset)
    with pytest.raises(of.InvalidValue):
        people["b"] = {"name": "Bob"}  # type: ignore[assignment]
    assert applied(eu) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no field"),
        ({"set": {}}, "no field"),
        ({"set": {"a": 1}, "inc": {"b": 1}}, "no inc: .*counters"),
        ({"set": {"a": 1}, "push": {"b": 1}}, "no push"),
        ({"set": {"a": 1}, "if_version": "0-1-1"}, "no if_version"),
        ({"set": {"a.b": 1}}, "is a path"),
        ({"unset": ["a.b"]}, "is a path"),
        ({"set": {1: 1}}, "text as names"),
        ({"unset": [1]}, "text as names"),
        ({"unset": 5}, "the names of fields"),
        ({"set": ["a"]}, "a dict of the fields"),
        ({"set": {"a": 1}, "unset": "a"}, "both set and unset"),
        ({"set": {"a": 1}, "request_id": ""}, "request_id"),
    ],
)
def test_patches_that_cannot_be(eu: Database, arguments: Any, message: str) -> None:
    m = eu.map("m", mode="available", merge="fields")
    m["k"] = {"a": 0}
    before = applied(eu)
    with pytest.raises(of.InvalidArgument, match=message):
        m.patch("k", **arguments)
    assert applied(eu) == before and m["k"] == {"a": 0}


def test_only_maps_by_fields_are_patched(eu: Database) -> None:
    for merge in ("last_writer_wins", "keep_both", max):
        with pytest.raises(of.InvalidArgument, match="merge='fields'"):
            eu.map(f"m{merge}"[:20], mode="available", merge=merge).patch("k", {"a": 1})  # type: ignore[call-overload]


def test_values_that_cannot_be_stored_are_named(eu: Database) -> None:
    m = eu.map("m", mode="available", merge="fields")
    with pytest.raises(of.InvalidValue, match="the field 'a'"):
        m.patch("k", {"a": object()})
    with pytest.raises(of.InvalidValue):
        m["k"] = {"a": object()}
    with pytest.raises(of.TooLarge):
        m.patch("k", {"a": b"x" * config.VALUE_BYTES_MAX})
    m["k"] = {"a": b"x" * (config.VALUE_BYTES_MAX // 2)}
    with pytest.raises(of.TooLarge, match="the item would take"):
        m.patch("k", {"b": b"x" * (config.VALUE_BYTES_MAX // 2)})
    with pytest.raises(of.InvalidKey):
        m.get(1.5)
    with pytest.raises(of.TooLarge, match="do not fit into one record"):
        eu.map("large", mode="available").update(
            dict.fromkeys(range(70), b"x" * (config.VALUE_BYTES_MAX - 100))
        )


def test_there_is_no_increment(eu: Database) -> None:
    with pytest.raises(of.InvalidArgument, match=r"db\.counters\('m_counts'\)\.add"):
        eu.map("m", mode="available").increment("k")


def test_versions_of_the_two_kinds_of_maps_are_told_apart(eu: Database) -> None:
    there, here = eu.map("there"), eu.map("here", mode="available")
    theirs, mine = there.put("k", 1), here.put("k", 1)
    assert theirs != mine and mine == here.get_item("k").version  # type: ignore[union-attr]
    for wrong in (theirs, str(theirs), f'"{theirs}"', "@", "@1", "x y", 5):
        with pytest.raises(of.InvalidArgument):
            here.put("k", 2, if_version=wrong)  # type: ignore[arg-type]
        with pytest.raises(of.InvalidArgument):
            here.delete("k", if_version=wrong)  # type: ignore[arg-type]
    for wrong in (mine, str(mine), f'"{mine}"', f'W/"{mine}"'):
        with pytest.raises(of.InvalidArgument, match="available map"):
            there.put("k", 2, if_version=wrong)
    assert (there["k"], here["k"]) == (1, 1)
    here.put("k", 2, if_version=f'"{mine}"')
    with pytest.raises(of.InvalidArgument, match="not both"):
        here.put("k", 3, if_version=mine, if_absent=True)


def test_a_plain_handle_inside_a_transaction_is_refused(eu: Database) -> None:
    m = eu.map("m", mode="available")
    with eu.transaction() as tx:
        tx.map("other")["k"] = 1
        for use in (lambda: m.get("k"), lambda: m.put("k", 1), lambda: [*m], m.clear, m.popitem):
            with pytest.raises(of.TransactionError, match="inside a transaction's block"):
                use()  # type: ignore[operator]


def test_put_many_is_whole_in_one_shard() -> None:
    regions = MemoryRegions("eu", shards=4)
    try:
        m = regions.database("eu").map("m", mode="available")
        items = {n: n for n in range(20)}
        with pytest.raises(of.TransactionError, match=r"of \d shards.*atomic=False"):
            m.put_many(items)
        assert not m
        m.put_many({("a", n): n for n in range(20)})
        assert m.count("a") == 20
        m.put_many(items, atomic=False)
        m.update({n: -n for n in items})
        assert m.count() == 40 and m[3] == -3
        m.clear()
        assert not m
    finally:
        regions.close()
