"""For asynchronous methods of available maps: a call that is cancelled, and what must be true afterwards."""

import asyncio

from support.cancelled_calls import covers
from support.cancelling import Cancelled


@covers(
    "AsyncAvailableMap.put", "AsyncAvailableMap.delete", "AsyncAvailableMap.pop", "AsyncAvailableMap.setdefault",
    "AsyncAvailableMap.modify",
)  # fmt: skip
async def writes_of_a_region_happen_or_not(w):
    m, key = w.db.map("available", mode="available"), w.new()
    calls = [
        (lambda: m.put(key, 1), (None, 1)),
        (lambda: m.modify(key, lambda old: 2, None), (None, 1, 2)),
        (lambda: m.setdefault(key, 3), (1, 2, 3)),
        (lambda: m.pop(key, None), (None, 1, 2, 3)),
        (lambda: m.delete(key), (None, 1, 2, 3)),
    ]
    for call, allowed in calls:
        if await w.attempt(call()) is not Cancelled and call is calls[0][0]:
            assert await m.get(key) == 1
        assert await m.get(key) in (None, *allowed)


@covers("AsyncAvailableMap.put_many", "AsyncAvailableMap.update", "AsyncAvailableMap.patch")
async def effects_are_written_whole_or_not(w):
    m, key = w.db.map("by_fields", mode="available", merge="fields"), w.new()
    for call in (m.put_many, m.update):
        await w.attempt(call({(key, "a"): {"n": 1}, (key, "b"): {"n": 1}}))
        await m.put((key, "fence"), {})
        assert len(await m.get_many([(key, "a"), (key, "b")])) in (0, 2)
    await w.attempt(m.patch((key, "a"), {"x": 1, "y": 1}, unset="n"))
    await m.put((key, "fence"), {})
    assert await m.get((key, "a"), {}) in ({}, {"n": 1}, {"x": 1, "y": 1})


@covers("AsyncAvailableMap.clear", "AsyncAvailableMap.increment")
async def clearing_a_map_of_a_region_ends(w):
    m = w.db.map(w.new("cleared_available"), mode="available")
    await m.put_many({n: n for n in range(5)}, atomic=False)
    await w.attempt(m.clear())
    await m.clear()
    assert [key async for key in m] == []


@covers(
    "AsyncAvailableMap.get", "AsyncAvailableMap.get_item", "AsyncAvailableMap.get_many",
    "AsyncAvailableMap.contains", "AsyncAvailableMap.count", "AsyncAvailableMap.scan", "AsyncAvailableMap.items",
    "AsyncAvailableMap.keys", "AsyncAvailableMap.values", "AsyncAvailableMap.__aiter__",
)  # fmt: skip
async def reads_of_an_available_map_do_not_mix_up_answers(w):
    m = w.db.map("fixed_available", mode="available")
    await m.put_many({n: n for n in range(20)}, atomic=False)
    for call in (
        lambda: m.get(1), lambda: m.get_item(1), lambda: m.get_many([1]), lambda: m.contains(1), m.count,
    ):  # fmt: skip
        await w.attempt(call())
        assert await m.get(1) == 1
    for make in (m.scan, m.items, m.keys, m.values, m.__aiter__):
        found, scan = [], make()
        while True:
            try:
                item = await w.cancel(scan.__anext__())
            except Cancelled:
                continue  # the next step gets what this one waited for
            except StopAsyncIteration:
                break
            found.append(item[0] if isinstance(item, tuple) else item)
        assert sorted(found) == list(range(20)), make


@covers("AsyncAvailableMap.watch")
async def a_watch_of_an_available_map_misses_nothing(w):
    m, key = w.db.map("watched_available", mode="available"), w.new()
    async with m.watch() as fed:
        found = []
        for n in range(3):
            step = asyncio.create_task(w.attempt(fed.__anext__()))
            if n % 2:
                await asyncio.sleep(0.002)
            await m.put((key, n), n)
            got = await step
            found.append((got if got is not Cancelled else await fed.__anext__()).value)
        assert found == [0, 1, 2]
