"""Collections for every region, asynchronously: as the synchronous ones, and waiting takes no thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold.aio.database import AsyncDatabase
from onefold.available.kinds.places import REGISTER
from onefold.available.ops import Put
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.values import encode_value


def run(main: Callable[[AsyncDatabase, AsyncDatabase, MemoryRegions], Coroutine[Any, Any, None]]) -> None:
    regions = MemoryRegions("eu", "us", shards=2)

    async def within() -> None:
        eu = AsyncDatabase(lambda: regions.database("eu"))
        us = AsyncDatabase(lambda: regions.database("us"))
        async with eu, us:
            await main(eu, us, regions)

    try:
        asyncio.run(within())
    finally:
        regions.close()


def test_counters_and_sets() -> None:
    async def main(eu: AsyncDatabase, us: AsyncDatabase, regions: MemoryRegions) -> None:
        likes, tags = eu.counters("likes"), eu.sets("tags")
        assert (likes.name, tags.name) == ("likes", "tags")
        assert await likes.add("a", 3) == 3
        assert await likes.add("b", request_id="r") == await likes.add("b", request_id="r") == 1
        assert await likes.get("a") == 3 and await likes.get("c", None) is None
        assert await likes.contains("a") and await likes.count() == 2
        assert [pair async for pair in likes.items()] == [("a", 3), ("b", 1)]
        assert [pair async for pair in likes.items(prefix="b")] == [("b", 1)]
        assert await likes.delete("a") is True
        assert await tags.add("k", 1, 2, ttl="1h") == 2 and await tags.discard("k", 1) == 1
        assert await tags.get("k") == {2} and await tags.contains("k", 2) and await tags.count() == 1
        assert [pair async for pair in tags.items()] == [("k", {2})]
        assert await tags.delete("k") is True
        with pytest.raises(of.InvalidArgument):
            eu.counters("x", floor=1)
        async with eu.transaction():
            for use in (lambda: likes.add("a"), lambda: tags.get("k"), eu.sync_regions):
                with pytest.raises(of.TransactionError):
                    await use()
        stock = eu.counters("stock", floor=0)
        assert await stock.add("s", 5) == 5 and await stock.move("s", 2, to="us") == 3
        await us.sync_regions()
        assert await us.counters("stock", floor=0).here("s") == 2
        with pytest.raises(of.BelowFloor, match="all there is"):
            await stock.add("s", -6)
        assert [region.name for region in await us.regions()] == ["us", "eu"]

    run(main)


def test_many_wait_for_rights_and_none_holds_a_thread() -> None:
    async def main(eu: AsyncDatabase, us: AsyncDatabase, regions: MemoryRegions) -> None:
        regions.linked = False
        await eu.counters("stock", floor=0).add("s", 100)
        regions.exchange()
        stock = us.counters("stock", floor=0)
        waiting = [asyncio.create_task(stock.add("s", -1)) for _ in range(80)]
        likes = us.counters("likes")
        for n in range(10):
            assert await asyncio.wait_for(likes.add("a"), 60) == n + 1
        assert not any(task.done() for task in waiting)
        waiting.pop().cancel()
        while not all(task.done() for task in waiting):
            regions.exchange()
            await asyncio.sleep(0.001)
        assert sorted(task.result() for task in waiting)[-1] == 99
        regions.exchange()
        assert await stock.get("s") in (20, 21)

    run(main)


def test_following_conflicts() -> None:
    async def main(eu: AsyncDatabase, us: AsyncDatabase, regions: MemoryRegions) -> None:
        def put(database: AsyncDatabase, value: int) -> None:
            client = database.sync._available
            request = Put(REGISTER, "carts", ((encode_key("k"), encode_value(value)),))
            client.do(client.shard_of(encode_key("k")), (request,))

        async with eu.conflicts("carts", follow=True, timeout=60) as feed:
            for n in (1, 2):
                step = asyncio.ensure_future(anext(feed))
                put(eu, n)
                put(us, -n)
                regions.exchange()
                found = await step
                assert (found.kept, found.dropped) == (-n, n)
        assert [one.kept async for one in eu.conflicts(start=found.token)] == []
        assert [one.kept async for one in eu.conflicts("carts", follow=True, timeout=0.01)] == [-1, -2]

    run(main)
