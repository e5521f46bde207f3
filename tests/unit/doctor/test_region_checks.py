"""What the doctor says of regions: each judgement by itself, then of regions in memory."""

from __future__ import annotations

import pytest
from tests.support.memory_regions import MemoryRegions

from onefold.doctor.embedded import Check
from onefold.doctor.regions import check_regions, judge
from onefold.regions.peers import LinkIs, LinkState
from onefold.state.available.status import Region

HERE = Region("eu", "here")


def judged(
    *others: Region, here: Region = HERE, link: LinkIs = "linked", silent_s: float = 0
) -> dict[str, Check]:
    links = {one.name: LinkState(2, one.name, silent_s, link) for one in others}
    return {check.name: check for check in judge([here, *others], links)}


def test_regions_that_exchange_are_well() -> None:
    found = judged(Region("us", "linked"), Region("old", "evicted"))
    assert {check.status for check in found.values()} == {"ok"}
    assert found["regions"].found == "eu, us exchange what they write; old was evicted"


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("lost", "lost its end"),
        ("diverged", "other effects"),
        ("differs", "the same effects and have other rows"),
    ],
)
def test_links_that_exchange_nothing_are_problems(link: LinkIs, words: str) -> None:
    found = judged(Region("us", "behind"), link=link)["regions"]
    assert found.status == "problem" and words in found.found and "rejoin" in found.advice


def test_a_region_that_does_not_answer_and_what_it_holds_back() -> None:
    us = Region("us", "cut", behind_writes=7, behind_s=90)
    found = judged(us, here=Region("eu", "here", gone_bytes=5_000_000), link="cut", silent_s=90)
    assert found["regions"].status == found["deleted items"].status == "warn"
    assert "us does not answer since 1:30 ago; 7 writes" in found["regions"].found
    assert (
        "us (cut since 1:30 ago)" in found["deleted items"].found and "evict" in found["deleted items"].advice
    )
    few = judged(us, here=Region("eu", "here", gone_bytes=500), link="cut")
    assert few["deleted items"].status == "ok"


def test_a_region_that_is_behind_held_or_evicted() -> None:
    assert judged(Region("us", "behind", 3, 60))["regions"].status == "warn"
    held = judged(Region("us", "held", clock_ahead_s=3600))["regions' clocks"]
    assert held.status == "warn" and "us is 1:00:00 ahead" in held.found and "accept" in held.advice
    gone = judged(Region("us", "linked"), here=Region("eu", "evicted"))["regions"]
    assert gone.status == "problem" and "eu, was evicted" in gone.found


def test_regions_in_memory_are_looked_at() -> None:
    regions = MemoryRegions("eu", "us")
    eu = regions.database("eu")
    eu.map("carts", mode="available")["k"] = 1
    regions.exchange()
    assert [check.status for check in check_regions(eu._available)] == ["ok", "ok", "ok"]
    regions.cut = {("us", "eu"), ("eu", "us")}
    eu.map("carts", mode="available")["k"] = 2
    assert next(check_regions(eu._available)).status == "warn"
