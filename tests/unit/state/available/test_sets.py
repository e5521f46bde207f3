"""Sets that every region can change: an element that is added anywhere stays, unless a discard has seen it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of


def test_sets_hold_what_keys_may_be(regions: MemoryRegions) -> None:
    tags = regions.database("eu").sets("tags")
    elements = {"a", "", 1, None, b"\x00", (1, ("x", None)), ("a", "b"), "with\0nul"}
    assert tags.add("k", *elements) == len(elements)
    assert tags.add("k", "a", "new") == 1
    assert tags.get("k") == elements | {"new"}
    assert all(tags.contains("k", element) for element in elements) and not tags.contains("k", "b")
    assert tags.discard("k", "a", "never") == 1
    assert tags.get("k") == elements - {"a"} | {"new"}
    assert (tags.get("other"), "k" in tags, "other" in tags) == (set(), True, False)
    assert tags.delete("k") is True and tags.delete("k") is False
    assert tags.get("k") == set() and len(tags) == 0 and not tags
    assert (tags.add("k"), tags.discard("k")) == (0, 0)


def test_items_come_in_key_order_over_shards_and_pages(shards: MemoryRegions) -> None:
    tags = shards.database("eu").sets("tags")
    expected = {}
    for n in range(60):
        key = ("k\0" * (n % 3), n)
        expected[key] = set(range(n + 1))
        tags.add(key, *expected[key])
    found = list(tags.items())
    assert dict(found) == expected
    assert [key for key, _ in found] == sorted(expected)
    assert len(tags) == 60 and tags
    assert list(tags.items(prefix="k\0")) == [pair for pair in found if pair[0][0] == "k\0"]
    assert list(tags.items(start=found[5][0], stop=found[9][0])) == found[5:9]
    assert list(tags.items(limit=7)) == found[:7]
    assert list(tags.items(limit=0)) == []


@pytest.mark.parametrize("seed", range(12))
def test_sets_are_as_a_model_that_knows_which_additions_each_region_has_seen(seed: int) -> None:
    """An element is in the set while an addition is known that no discard which is known had seen."""
    rng = random.Random(seed)
    names = ("eu", "us", "ap")[: rng.choice((2, 3))]
    regions = MemoryRegions(*names, shards=rng.choice((1, 2)))
    handles = {name: regions.database(name).sets("s") for name in names}
    added: dict[str, dict[int, tuple[str, int]]] = {name: {} for name in names}
    removed: dict[str, set[int]] = {name: set() for name in names}

    def seen(name: str, key: str, elements: set[int]) -> set[int]:
        return {n for n, pair in added[name].items() if pair[0] == key and pair[1] in elements}

    try:
        for number in range(0, 1500, 10):
            name, key = rng.choice(names), rng.choice(["a", "b\0"])
            some = set(rng.sample(range(5), rng.randint(1, 3)))
            match rng.randrange(12):
                case 0:
                    handles[name].delete(key)
                    removed[name] |= seen(name, key, set(range(5)))
                case 1 | 2 | 3:
                    handles[name].discard(key, *some)
                    removed[name] |= seen(name, key, some)
                case 4 | 5 | 6 | 7:
                    source = rng.choice([other for other in names if other != name])
                    regions.pull(name, source)
                    added[name] |= added[source]
                    removed[name] |= removed[source]
                case _:
                    handles[name].add(key, *some)
                    added[name] |= {number + at: (key, element) for at, element in enumerate(sorted(some))}
            for one, sets in handles.items():
                expected: dict[str, set[int]] = {}
                for n, (of_key, element) in added[one].items():
                    if n not in removed[one]:
                        expected.setdefault(of_key, set()).add(element)
                assert dict(sets.items()) == expected, (seed, number, one)
                assert sets.get(key) == expected.get(key, set())
    finally:
        regions.close()


def test_elements_with_a_lifetime_leave_by_themselves(regions: MemoryRegions) -> None:
    database = regions.database("eu")
    tags = database.sets("tags")
    tags.add("k", "short", ttl=0.05)
    tags.add("k", "long", ttl="1h")
    tags.add("k", "again", ttl=0.05)
    tags.add("k", "again")
    env = database._available.env
    until = env.boot_s() + 60
    while tags.contains("k", "short"):
        assert env.boot_s() < until
    assert tags.get("k") == {"long", "again"} and list(tags.items()) == [("k", {"long", "again"})]
    regions.exchange()
    assert regions.database("us").sets("tags").get("k") == {"long", "again"}
    with pytest.raises(of.InvalidArgument, match="ttl"):
        tags.add("k", "x", ttl=0)


def test_bad_arguments_are_named(regions: MemoryRegions) -> None:
    database = regions.database("eu")
    tags = database.sets("tags")
    before = regions.regions["eu"].shards[0].applied
    uses: list[Any] = [
        lambda: tags.add("k", 1.5),
        lambda: tags.discard("k", [1]),
        lambda: tags.contains("k", {}),
        lambda: tags.get(1.5),
    ]
    for use in uses:
        with pytest.raises(of.InvalidKey):
            use()
    with pytest.raises(of.InvalidArgument, match="for every region"):
        database.sets("tags", mode="consistent")  # type: ignore[arg-type]
    with pytest.raises(of.UnsupportedConsistency):
        tags.get("k", consistency="strong")
    assert regions.regions["eu"].shards[0].applied == before


def test_a_request_id_counts_once(regions: MemoryRegions) -> None:
    tags = regions.database("eu").sets("tags")
    assert tags.add("k", 1, request_id="r") == 1
    tags.discard("k", 1)
    assert tags.add("k", 1, request_id="r") == 1
    assert tags.get("k") == set()
