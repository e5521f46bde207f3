"""Tasks that wait in a program without a replica: one question for all of them, and each is woken."""

import asyncio
import threading

from onefold.aio.database import AsyncDatabase
from support.remote_programs import (
    SOON_S,
    _hedge_soon,  # noqa: F401
    other_program,  # noqa: F401
    remote_program,  # noqa: F401
    remote_world,  # noqa: F401
)

TASKS = 10


async def until(condition):
    async with asyncio.timeout(SOON_S):
        while not condition():
            await asyncio.sleep(0.005)


def asleep(db):
    members = [ref() for group in db._bridge._waits._groups.values() for ref in group._members]
    return len({id(waiter) for waiter in members if waiter is not None and waiter.waiting})


def test_tasks_of_all_kinds_wait_by_one_question_and_wake(world, db, other):
    shards = len(db._shards)
    got = []

    async def watch(remote, n):
        async for change in remote.map(f"m{n}").watch():
            got.append(("watch", n, change.value))

    async def take(remote, n):
        while True:
            async with remote.queue(f"q{n}").get() as message:
                got.append(("take", n, message.value))

    async def follow(remote, n):
        async for record in remote.stream(f"s{n}", partitions=2).read(follow=True):
            got.append(("follow", n, record.value))

    async def lock(remote, n):
        async with remote.lock(f"l{n}"):
            got.append(("lock", n, None))
            await asyncio.Event().wait()

    async def main():
        async with AsyncDatabase(lambda: db) as remote:
            held = [other.lock(f"l{n}") for n in range(TASKS)]
            for one in held:
                await asyncio.to_thread(one.acquire)
            kinds = (watch, take, follow, lock)
            tasks = [asyncio.ensure_future(kind(remote, n)) for kind in kinds for n in range(TASKS)]
            await until(lambda: asleep(remote) == len(tasks))
            threads = threading.active_count()
            before = world.asked["Beyond"]

            def write():
                for n in range(TASKS):
                    other.map("unrelated").put(n, n)
                    other.map(f"m{n}").put("a", n)
                    other.queue(f"q{n}").put(n)
                    other.stream(f"s{n}", partitions=2).append(n)
                    held[n].release()

            await asyncio.to_thread(write)
            expected = {
                (kind.__name__, n, None if kind is lock else n) for kind in kinds for n in range(TASKS)
            }
            await until(lambda: set(got) == expected)
            assert len(got) == len(tasks)
            # One for each record at most, however many wait.
            assert world.asked["Beyond"] - before <= shards * 20 * TASKS
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            return threads

    assert asyncio.run(main()) < 60
