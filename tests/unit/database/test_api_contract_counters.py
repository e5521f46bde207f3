"""The names and signatures of counters, sets, conflicts and regions that programs are written against."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold import aio

REQUIRED = inspect.Parameter.empty
VARIABLE = inspect.Parameter.VAR_POSITIONAL


def takes(function: Any, **expected: Any) -> None:
    """It has these parameters with these defaults; more are allowed, if they have defaults."""
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind is not VARIABLE
    }
    assert {name: found.get(name, "missing") for name in expected} == expected
    for name, default in found.items():
        assert name in expected or default is not REQUIRED, f"{name} is required and nobody gives it"


@pytest.fixture
def db() -> Iterator[of.Database]:
    regions = MemoryRegions("eu", "us")
    yield regions.database("eu")
    regions.close()


def test_what_a_database_gives() -> None:
    for connection in (of.Database, aio.AsyncDatabase):
        takes(connection.counters, name=REQUIRED, mode="available", floor=None)
        takes(connection.sets, name=REQUIRED, mode="available")
        takes(connection.conflicts, name=None, start=None, follow=False, timeout=None)
        takes(connection.regions)
    takes(of.Database.sync, timeout=None)
    takes(aio.AsyncDatabase.sync_regions, timeout=None)
    for name in ("regions", "sync_regions"):
        assert inspect.iscoroutinefunction(getattr(aio.AsyncDatabase, name))


def test_counters_and_sets() -> None:
    for counters in (of.Counters, aio.AsyncCounters):
        takes(counters.add, key=REQUIRED, n=1, request_id=None)
        takes(counters.get, key=REQUIRED, default=0, consistency=None)
        takes(counters.delete, key=REQUIRED)
        takes(counters.here, key=REQUIRED)
        takes(counters.move, key=REQUIRED, n=REQUIRED, to=REQUIRED)
        takes(counters.items)
    for sets in (of.Sets, aio.AsyncSets):
        takes(sets.add, key=REQUIRED, request_id=None)
        takes(sets.discard, key=REQUIRED, request_id=None)
        assert inspect.signature(sets.add).parameters["elements"].kind is VARIABLE
        takes(sets.get, key=REQUIRED)
        takes(sets.contains, key=REQUIRED, element=REQUIRED)
        takes(sets.delete, key=REQUIRED)
        takes(sets.items)


def test_what_comes_back(db: of.Database) -> None:
    likes, stock, tags = (
        db.counters("likes", mode="available"),
        db.counters("stock", floor=0),
        db.sets("tags"),
    )
    assert likes.add("a") == 1 and likes.get("b") == 0 and list(likes.items()) == [("a", 1)]
    assert "a" in likes and len(likes) == 1 and likes.delete("a") is True
    assert stock.add("sku-1", 5) == 5 and stock.add("sku-1", -1) == 4 and stock.here("sku-1") == 4
    with pytest.raises(of.BelowFloor) as caught:
        stock.add("sku-1", -100)
    assert caught.value.definite and (caught.value.value, caught.value.here) == (4, 4)
    stock.move("sku-1", 2, to="us")
    tags.add("k", "x")
    assert tags.get("k") == {"x"} and tags.contains("k", "x") and tags.get("none") == set()
    tags.discard("k", "x")
    tags.delete("k")
    assert db.sync() is None  # type: ignore[func-returns-value]


def test_fields_of_regions_and_conflicts(db: of.Database) -> None:
    names = [field.name for field in dataclasses.fields(of.ConflictEntry)]
    assert {"collection", "key", "kept", "dropped", "regions", "time", "token"} <= set(names)
    (here, other) = db.regions()
    assert isinstance(here, of.Region) and (here.state, other.state) == ("here", "linked")
    for region in (here, other):
        assert isinstance(region.behind_writes, int) and isinstance(region.gone_bytes, int)
        assert isinstance(region.behind_s, float) and isinstance(region.clock_ahead_s, float)
