"""Random programs in several regions against a model that knows nothing but writes and what was known when they were made."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

import pytest
from tests.support.memory_regions import MemoryRegions

from onefold.state.available.maps.map import AvailableMap

KEYS = 6
FIELDS = "abc"


class Write(NamedTuple):
    """One write of one key."""

    number: int
    past: frozenset[int]
    """What its region knew."""
    value: Any
    """None: deleted. Of a patch: only its fields, None where one is removed."""
    whole: bool = True

    def field(self, name: str) -> Any:
        return None if self.value is None else self.value.get(name)

    def covers(self, name: str) -> bool:
        return self.whole or name in self.value


class Model:
    """What each region knows."""

    def __init__(self, regions: tuple[str, ...]) -> None:
        self.known: dict[str, dict[Any, list[Write]]] = {name: {} for name in regions}
        self.count = 0

    def numbers(self, region: str) -> frozenset[int]:
        return frozenset(write.number for writes in self.known[region].values() for write in writes)

    def write(self, region: str, key: Any, value: Any, *, whole: bool = True) -> None:
        self.count += 1
        write = Write(self.count, self.numbers(region), value, whole)
        self.known[region].setdefault(key, []).append(write)

    def pull(self, to: str, source: str) -> None:
        numbers = self.numbers(to)
        for key, writes in self.known[source].items():
            new = [write for write in writes if write.number not in numbers]
            self.known[to].setdefault(key, []).extend(new)

    def latest(self, region: str, key: Any, name: str | None = None) -> list[Write]:
        """Those writes that no other one has known; of a field, or (no name) of the whole key."""
        writes = [
            write
            for write in self.known[region].get(key, ())
            if (write.whole if name is None else write.covers(name))
        ]
        return [write for write in writes if not any(write.number in other.past for other in writes)]


def check(model: Model, region: str, key: Any, merge: str, found: Any, where: object) -> None:
    """Whether that can be read."""
    latest = model.latest(region, key)
    if merge == "last_writer_wins":
        assert found in ([write.value for write in latest] or [None]), where
    elif merge == "keep_both":
        live = [write.value for write in latest if write.value is not None]
        assert sorted(found or []) == sorted(live), where
    else:
        for name in FIELDS:
            allowed = [write.field(name) for write in model.latest(region, key, name)] or [None]
            assert (found or {}).get(name) in allowed, (where, name)
        if found is None:
            assert not latest or any(write.value is None for write in latest), where
        elif not any(found.values()):
            assert any(write.value is not None for write in latest), where


def step(
    rng: random.Random, model: Model, m: AvailableMap[Any, Any], region: str, merge: str, number: int
) -> None:
    key = rng.randrange(KEYS)
    value = {name: number for name in FIELDS if rng.random() < 0.6} if merge == "fields" else number
    match rng.randrange(7):
        case 0 | 1:
            m.put(key, value)
            model.write(region, key, value)
        case 2:
            m.delete(key)
            model.write(region, key, None)
        case 3:
            m.modify(key, lambda _: value)
            model.write(region, key, value)
        case 4:
            if m.pop(key, None) is not None:
                model.write(region, key, None)
        case 5 if merge == "fields":
            changes = {name: rng.choice((number, None)) for name in rng.sample(FIELDS, 2)}
            m.patch(
                key,
                {name: one for name, one in changes.items() if one is not None},
                unset=[name for name, one in changes.items() if one is None],
            )
            model.write(region, key, changes, whole=False)
        case _:
            item = m.get_item(key)
            if item is not None:
                m.put(key, value, if_version=str(item.version))
            else:
                m.put(key, value, if_absent=True)
            model.write(region, key, value)


@pytest.mark.parametrize("merge", ["last_writer_wins", "fields", "keep_both"])
@pytest.mark.parametrize("seed", range(8))
def test_regions_read_what_the_model_allows_and_become_equal(merge: str, seed: int) -> None:
    rng = random.Random(seed)
    regions = MemoryRegions(*("eu", "us", "ap")[: rng.choice((2, 3))], shards=rng.choice((1, 3)))
    try:
        model = Model(regions.names)
        maps = {
            name: regions.database(name).map("m", mode="available", merge=merge)  # type: ignore[call-overload]
            for name in regions.names
        }
        for number in range(1, 150):
            region = rng.choice(regions.names)
            if rng.random() < 0.25:
                source = rng.choice([name for name in regions.names if name != region])
                regions.pull(region, source)
                model.pull(region, source)
            else:
                step(rng, model, maps[region], region, merge, number)
            content = dict(maps[region])
            for key in range(KEYS):
                found = maps[region].get(key)
                assert content.get(key) == found, (seed, number, key)
                check(model, region, key, merge, found, (seed, number, key))
            assert len(content) == len(maps[region])
        regions.exchange()
        items = [{key: m.get_item(key) for key in range(KEYS)} for m in maps.values()]
        assert all(one == items[0] for one in items), seed
    finally:
        regions.close()
