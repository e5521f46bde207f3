"""Waits of each kind, as tasks under asyncio."""

import asyncio
import contextlib

from onefold.aio.bridge import Bridge

SEED = 7


class Looks:
    """Counts the looks of waiting tasks."""

    def __init__(self, monkeypatch):
        self.count = 0
        look = Bridge.look

        def counted(bridge, fn):
            self.count += 1
            return look(bridge, fn)

        monkeypatch.setattr(Bridge, "look", counted)


async def until(condition, seconds=120):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def sleeping(db):
    """How many wait, as far as groups know."""
    members = [ref() for group in db._bridge._waits._groups.values() for ref in group._members]
    return len({id(waiter) for waiter in members if waiter is not None and waiter.waiting})


@contextlib.asynccontextmanager
async def running(tasks):
    tasks = [asyncio.ensure_future(task) for task in tasks]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def watch(db, name, got):
    async for change in db.map(name).watch():
        got.append(change.value)


async def take(db, name, got, **options):
    while True:
        async with db.queue(name, **options).get() as message:
            got.append(message.value)


async def follow(db, name, got):
    async for record in db.stream(name, partitions=2).read(follow=True):
        got.append(record.value)
