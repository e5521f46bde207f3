"""For asynchronous methods of collections for every region: a call that is cancelled, and what must be true afterwards."""

import contextlib

from tests.support.memory_regions import MemoryRegions

import onefold as of
from onefold.aio.database import AsyncDatabase
from support.cancelled_calls import covers
from support.cancelling import Cancelled


@contextlib.asynccontextmanager
async def two_regions(shards):
    """The connections of two, and the regions."""
    regions = MemoryRegions("eu", "us", shards=shards)
    try:
        eu = AsyncDatabase(lambda: regions.database("eu", timeout=0.2))
        us = AsyncDatabase(lambda: regions.database("us", timeout=0.2))
        async with eu as first, us as second:
            yield first, second, regions
    finally:
        regions.close()


@covers("AsyncCounters.add", "AsyncCounters.delete", "AsyncCounters.move", "AsyncCounters.here")
async def counters_count_once_or_not(w):
    async with two_regions(w.shards) as (eu, us, regions):
        likes = eu.counters("likes")
        done = await w.attempt(likes.add("a", 5))
        assert await likes.add("fence") == 1
        assert await likes.get("a") in ((5,) if done is not Cancelled else (0, 5))
        await w.attempt(likes.delete("a"))
        assert await likes.get("a") in (0, 5)
        stock, there = eu.counters("stock", floor=0), us.counters("stock", floor=0)
        await stock.add("s", 10)
        await w.attempt(stock.move("s", 4, to="us"))
        assert await w.attempt(stock.here("s")) in (10, 6, Cancelled)
        regions.exchange()
        try:
            await w.attempt(there.add("s", -8))  # it has to be waited for
        except of.BelowFloor:
            assert await there.get("s") == 10
        regions.exchange()
        assert await stock.get("s") == await there.get("s") in (2, 10)
        assert await stock.here("s") + await there.here("s") == await stock.get("s")


@covers("AsyncSets.add", "AsyncSets.discard", "AsyncSets.delete")
async def elements_are_added_whole_or_not(w):
    async with two_regions(w.shards) as (eu, _, _):
        tags = eu.sets("tags")
        for call, allowed in (
            (lambda: tags.add("k", 1, 2), ({1, 2}, set())),
            (lambda: tags.discard("k", 1), ({1, 2}, {2}, set())),
            (lambda: tags.delete("k"), ({1, 2}, {2}, set())),
        ):
            await w.attempt(call())
            await tags.add("other", 0)
            assert await tags.get("k") in allowed


@covers(
    "AsyncCounters.get", "AsyncCounters.contains", "AsyncCounters.count", "AsyncCounters.items", "AsyncSets.get",
    "AsyncSets.contains", "AsyncSets.count", "AsyncSets.items", "AsyncRegions.regions", "AsyncRegions.sync_regions",
    "AsyncRegions.conflicts",
)  # fmt: skip
async def reads_of_a_region_do_not_mix_up_answers(w):
    async with two_regions(w.shards) as (eu, _, _):
        likes, tags = eu.counters("likes"), eu.sets("tags")
        await likes.add("a", 7)
        await tags.add("k", 1)
        for call in (
            lambda: likes.get("a"), lambda: likes.contains("a"), likes.count, lambda: tags.get("k"),
            lambda: tags.contains("k", 1), tags.count, eu.regions, eu.sync_regions,
        ):  # fmt: skip
            await w.attempt(call())
            assert await likes.get("a") == 7
        for make, expected in (
            (likes.items, [("a", 7)]),
            (tags.items, [("k", {1})]),
            (eu.conflicts, []),
        ):
            found, scan = [], make()
            while True:
                try:
                    found.append(await w.cancel(scan.__anext__()))
                except Cancelled:
                    continue  # the next step gets what this one waited for
                except StopAsyncIteration:
                    break
            assert found == expected
