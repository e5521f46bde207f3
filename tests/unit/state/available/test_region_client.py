"""The core under collections for every region: operations, the session over regions, levels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.memory_regions import MemoryRegions

from onefold.available import reading
from onefold.available.kinds.places import REGISTER, place_of
from onefold.available.ops import Put
from onefold.errors import InvalidArgument, TokenError, TooStale, UnsupportedConsistency
from onefold.state.core.consistency import STRONG, bounded, parse_level

PLACE = place_of(REGISTER, "carts")


@pytest.fixture
def regions() -> Iterator[MemoryRegions]:
    made = MemoryRegions("eu", "us")
    yield made
    made.close()


def put(database: object, key: bytes, value: bytes) -> None:
    database._available.do(0, (Put(REGISTER, "carts", ((key, value),)),))  # type: ignore[attr-defined]


def get(database: object, key: bytes, level: str = "session") -> object:
    with database._available.view(0, parse_level(level), 0.05) as view:  # type: ignore[attr-defined]
        return reading.get(view, PLACE, key)


def test_what_one_region_wrote_is_in_the_other_after_the_exchange(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    put(eu, b"a", b"1")
    assert get(us, b"a") is None
    regions.exchange()
    assert get(us, b"a") == b"1"


def test_a_token_of_another_region_is_waited_for_and_can_be_forgotten(regions: MemoryRegions) -> None:
    eu = regions.database("eu")
    put(eu, b"a", b"1")
    token = eu.session.token
    assert token.startswith("of2.")
    us = regions.database("us", token)
    with pytest.raises(TooStale, match="effects of eu are not here") as caught:
        get(us, b"a")
    assert caught.value.regions == ("eu",)
    assert get(us, b"a", "eventual") is None
    regions.exchange()
    assert get(us, b"a") == b"1"
    other = regions.database("us")
    put(eu, b"b", b"2")
    other.session.merge(eu.session.token)
    with pytest.raises(TooStale):
        get(other, b"b")
    other.session.forget("eu")
    assert get(other, b"b") is None
    with pytest.raises(InvalidArgument, match="no region 'de'"):
        other.session.forget("de")


def test_a_token_goes_on_through_a_connection_that_uses_no_such_collection(regions: MemoryRegions) -> None:
    eu = regions.database("eu")
    put(eu, b"a", b"1")
    through = regions.database("us", eu.session.token)
    us = regions.database("us", through.session.token)
    with pytest.raises(TooStale):
        get(us, b"a")


def test_bounded_asks_the_other_regions(regions: MemoryRegions) -> None:
    eu, us = regions.database("eu"), regions.database("us")
    put(eu, b"a", b"1")
    assert get(us, b"a", "bounded:5s") == b"1"
    put(eu, b"b", b"2")
    regions.cut.add(("eu", "us"))
    assert get(us, b"b", "bounded:5m") is None  # it was asked a moment ago
    with pytest.raises(TooStale, match="eu does not answer"):
        get(us, b"b", "bounded:0.000001s")


def test_strong_is_refused(regions: MemoryRegions) -> None:
    eu = regions.database("eu")
    with pytest.raises(UnsupportedConsistency, match="mode='consistent'"):
        get(eu, b"a", "strong")
    assert bounded(1) != STRONG


def test_a_token_of_another_space_is_refused(regions: MemoryRegions) -> None:
    other = MemoryRegions("eu", "us")
    try:
        database = other.database("eu")
        put(database, b"a", b"1")
        with pytest.raises(TokenError):
            regions.database("eu", database.session.token)
    finally:
        other.close()
