"""Available maps, asynchronously."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold.aio.available_maps import AsyncAvailableMap
from onefold.aio.database import AsyncDatabase


def with_two(test: Callable[[MemoryRegions, AsyncDatabase, AsyncDatabase], Awaitable[None]]) -> None:
    async def run() -> None:
        regions = MemoryRegions("eu", "us", shards=2)
        try:
            first = AsyncDatabase(lambda: regions.database("eu"))
            second = AsyncDatabase(lambda: regions.database("us"))
            async with first as eu, second as us:
                await asyncio.wait_for(test(regions, eu, us), 120)
        finally:
            regions.close()

    asyncio.run(run())


@pytest.mark.parametrize("merge", ["last_writer_wins", "fields", "keep_both", sorted])
def test_everything_once(merge: Any) -> None:
    def value_of(number: int) -> Any:
        return {"n": number} if merge == "fields" else number

    def read(number: int) -> Any:
        return value_of(number) if merge in ("last_writer_wins", "fields") else [number]

    async def test(regions: MemoryRegions, eu: AsyncDatabase, us: AsyncDatabase) -> None:
        m: AsyncAvailableMap[Any, Any] = eu.map("m", mode="available", merge=merge)
        there: AsyncAvailableMap[Any, Any] = us.map("m", mode="available", merge=merge)
        version = await m.put("a", value_of(1))
        item = await m.get_item("a")
        assert item is not None and item.version == version and item.region == "eu"
        assert await m.get("a") == read(1) and await m.contains("a") and await m.count() == 1
        assert await there.get("a") is None
        async with there.watch(timeout=60) as changes:
            await m.update({"b": value_of(2)})
            await m.put_many({"c": value_of(3)})
            regions.exchange()
            found = [await anext(changes) for _ in range(3)]
        assert sorted(change.key for change in found) == ["a", "b", "c"]
        assert {change.region for change in found} == {"eu"}
        assert [pair async for pair in there.items()] == [("a", read(1)), ("b", read(2)), ("c", read(3))]
        keys = there.keys()
        assert [key async for key in there] == [key async for key in keys] == ["a", "b", "c"]
        assert [value async for value in there.values()] == [read(1), read(2), read(3)]
        assert [pair async for pair in there.scan(limit=1, reverse=True)] == [("c", read(3))]
        assert await there.get_many(["a", "x"]) == {"a": read(1)}
        assert await there.modify("a", lambda _: value_of(4)) == read(4)
        assert await there.setdefault("a", value_of(5)) == read(4)
        assert await there.pop("a") == read(4) and await there.pop("a", None) is None
        assert await there.delete("b") is True and await there.delete("b") is False
        if merge == "fields":
            assert await there.patch("c", {"m": 1}) == {"n": 3, "m": 1}
        with pytest.raises(of.InvalidArgument, match="counters"):
            await there.increment("c")
        await there.clear()
        assert await there.count() == 0
        assert there.sync.name == there.name == "m" and "AsyncAvailableMap" in repr(there)

    with_two(test)


def test_what_cannot_be_is_refused_before_the_region_is_opened() -> None:
    async def test(regions: MemoryRegions, eu: AsyncDatabase, us: AsyncDatabase) -> None:
        for options in ({"merge": "newest"}, {"consistency": "strong"}, {"type": object()}):
            with pytest.raises((of.InvalidArgument, of.UnsupportedConsistency)):
                eu.map("m", mode="available", **options)  # type: ignore[call-overload]
        with pytest.raises(of.InvalidArgument, match="mode must be"):
            eu.map("m", mode="none")  # type: ignore[call-overload]
        m = eu.map("m", mode="available")
        assert eu.sync._region_client is None
        await m.put("k", 1)
        with pytest.raises(of.InvalidArgument, match="a name is one thing"):
            await eu.map("m", mode="available", merge="fields").get("k")
        async with eu.transaction():
            with pytest.raises(of.TransactionError):
                await m.get("k")

    with_two(test)


def test_many_tasks_watch_the_maps_of_a_space_and_of_its_region() -> None:
    async def test(regions: MemoryRegions, eu: AsyncDatabase, us: AsyncDatabase) -> None:
        available, consistent = eu.map("v", mode="available"), eu.map("m")
        await available.put("k", 0)

        async def first(watch: Any) -> Any:
            async with watch as changes:
                return (await anext(changes)).value

        watching = [
            asyncio.create_task(first(m.watch(timeout=60))) for m in (available, consistent) for _ in range(5)
        ]
        await asyncio.sleep(0.05)
        await available.put("k", 1)
        await consistent.put("k", 2)
        assert await asyncio.gather(*watching) == [1] * 5 + [2] * 5

    with_two(test)
