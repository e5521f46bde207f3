"""For asynchronous methods of transactions over collections for every region: a call that is cancelled, and what must be true."""

from support.cancelled_calls import covers
from support.cancelled_regions import two_regions
from support.cancelling import Cancelled


@covers(
    "AsyncTxAvailableMap.put", "AsyncTxAvailableMap.put_many", "AsyncTxAvailableMap.update", "AsyncTxAvailableMap.patch",
    "AsyncTxAvailableMap.modify", "AsyncTxCounters.add", "AsyncTxCounters.get", "AsyncTxCounters.contains",
    "AsyncTxCounters.count", "AsyncTxCounters.delete", "AsyncTxSets.add", "AsyncTxSets.discard", "AsyncTxSets.get",
    "AsyncTxSets.contains", "AsyncTxSets.count", "AsyncTxSets.delete",
)  # fmt: skip
async def a_transaction_in_a_region_is_whole_or_not(w):
    async with two_regions(w.shards) as (eu, us, regions):
        likes, tags = eu.counters("likes"), eu.sets("tags")

        async def all_of_it():
            async with eu.transaction() as tx:
                n, s, m = tx.counters(likes), tx.sets(tags), tx.map("m", mode="available")
                await n.add(("k", 1), 2)
                await n.add(("k", 2))
                assert (await n.get(("k", 1)), await n.contains(("k", 9))) == (2, False)
                await n.delete(("k", 2))
                await s.add("k", "x", "y")
                await s.discard("k", "y")
                assert (await s.get("k"), await s.contains("k", "x")) == ({"x"}, True)
                await s.delete(("k", 1))
                await m.put(("k", "a"), 1)
                await m.put_many({("k", "b"): 1})
                await m.update({("k", "c"): 1})
                await m.modify(("k", "d"), lambda found: 1)
                await tx.map("f", mode="available", merge="fields").patch("k", {"x": 1})
                if w.shards == 1:
                    assert (await n.count(), await s.count()) == (1, 1)

        done = await w.attempt(all_of_it())
        await likes.add("fence")  # a plain handle works: no block is open here
        found = (
            await likes.get(("k", 1)),
            await tags.get("k"),
            await eu.map("m", mode="available").count(),
            await eu.map("f", mode="available", merge="fields").get("k"),
        )
        whole, nothing = (2, {"x"}, 4, {"x": 1}), (0, set(), 0, None)
        assert found in (whole, nothing) if done is Cancelled else found == whole
        regions.exchange()
        assert await us.counters("likes").get(("k", 1)) == found[0]


@covers("AsyncTxCounters.items", "AsyncTxSets.items")
async def a_scan_of_a_region_in_a_transaction_skips_nothing(w):
    async with two_regions(w.shards) as (eu, _, _):
        for key in range(3):
            await eu.counters("likes").add(("k", key), 1)
            await eu.sets("tags").add(("k", key), "x")
        async with eu.transaction() as tx:
            for make in (tx.counters("likes").items, tx.sets("tags").items):
                scan, found, before = make(prefix="k"), [], w.cancelled
                while True:
                    try:
                        found.append(await w.cancel_here(scan.__anext__()))
                    except Cancelled:
                        assert w.cancelled < before + 50, "a cancelled step loses what it waited for"
                    except StopAsyncIteration:
                        break
                assert [key for key, _ in found] == [("k", 0), ("k", 1), ("k", 2)]
