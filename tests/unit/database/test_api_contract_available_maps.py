"""The names and signatures of available maps that programs are written against."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold import aio

REQUIRED = inspect.Parameter.empty


def takes(function: Any, **expected: Any) -> None:
    """It has these parameters with these defaults; more are allowed, if they have defaults."""
    found = {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    }
    assert {name: found.get(name, "missing") for name in expected} == expected
    for name, default in found.items():
        assert name in expected or default is not REQUIRED, f"{name} is required and nobody gives it"


@pytest.fixture
def db() -> Iterator[of.Database]:
    regions = MemoryRegions("eu", "us")
    yield regions.database("eu")
    regions.close()


def test_maps_of_a_database() -> None:
    for connection in (of.Database, aio.AsyncDatabase):
        takes(
            connection.map,
            name=REQUIRED,
            mode="consistent",
            merge="last_writer_wins",
            type=None,
            consistency=None,
        )


def test_available_maps() -> None:
    for kind in (of.AvailableMap, aio.AsyncAvailableMap):
        takes(kind.get, key=REQUIRED, default=None, consistency=None)
        takes(kind.get_item, key=REQUIRED, consistency=None)
        takes(kind.get_many, keys=REQUIRED, consistency=None)
        takes(
            kind.put,
            key=REQUIRED,
            ttl=None,
            if_version=None,
            if_absent=False,
            request_id=None,
            value=REQUIRED,
        )
        takes(kind.put_many, items=REQUIRED, ttl=None, atomic=True, request_id=None)
        takes(kind.patch, key=REQUIRED, set=None, unset=None, request_id=None)
        takes(kind.delete, key=REQUIRED, if_version=None, request_id=None)
        takes(kind.modify, key=REQUIRED, fn=REQUIRED, default=None)
        takes(kind.scan, prefix=None, start=None, stop=None, limit=None, reverse=False, consistency=None)
        takes(kind.watch, prefix=None, start=None, initial=False, timeout=None)
    assert issubclass(of.AvailableMap, MutableMapping)


def test_what_they_give(db: of.Database) -> None:
    m = db.map("m", mode="available", merge="keep_both")
    assert isinstance(m, of.AvailableMap)
    version = m.put("k", 1)
    assert isinstance(version, of.Version)
    item = m.get_item("k")
    assert isinstance(item, of.Item) and (item.siblings, item.region) == ([1], "eu")
    with m.watch(initial=True) as changes:
        change = next(changes)
    assert isinstance(change, of.Change) and (change.kind, change.region) == ("put", "eu")
    assert of.Change("k", 1, version, "put", "token").region is None
    error = of.MergeFailed("it failed", [1, 2])
    assert error.siblings == [1, 2] and error.definite
