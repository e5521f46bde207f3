"""Every asynchronous method, cancelled at every await: what the program was not given has not happened, and nothing is left."""

import asyncio
import inspect
import random
import threading
import time

import pytest

import onefold as of
from onefold.aio import (
    available_maps,
    available_transactions,
    counters,
    database,
    iterators,
    jobs,
    maps,
    queues,
    regions,
    sets,
    streams,
    transactions,
)
from support import cancelled_maps, cancelled_region_transactions, cancelled_regions, parts
from support.cancelled_calls import COVERED, SCENARIOS, World
from support.cancelling import HOW

PARTS = 5
CANCELLATIONS = 2000 if parts.takes_all() else 2000 // PARTS
SEED = 9 + parts.part_of_day(PARTS)


def asynchronous_methods():
    """Names of all public methods of the asynchronous API that wait, or that give something which waits."""
    names = set()
    for module in (
        available_maps,
        available_transactions,
        counters,
        database,
        iterators,
        jobs,
        maps,
        queues,
        regions,
        sets,
        streams,
        transactions,
    ):
        for kind in vars(module).values():
            if (
                not inspect.isclass(kind)
                or kind.__module__ != module.__name__
                or getattr(kind, "_is_protocol", False)
            ):
                continue
            for name, method in vars(kind).items():
                if not inspect.isfunction(method) or (name.startswith("_") and not name.startswith("__a")):
                    continue
                gives = str(inspect.signature(method).return_annotation)
                waits = inspect.iscoroutinefunction(method) or name in ("__aiter__", "__await__")
                later = ("Pulled", "Fed", "TxScan", "AsyncDelivery", "AsyncConsumer", "AsyncTransaction")
                if waits or gives.startswith(later):
                    names.add(f"{kind.__name__}.{name}")
    return names


def test_every_asynchronous_method_is_cancelled_in_a_test():
    methods = asynchronous_methods()
    assert len(methods) > 60
    assert cancelled_regions.of.__name__ == "onefold" and cancelled_maps.covers  # their scenarios are listed
    assert cancelled_region_transactions.covers is cancelled_regions.covers
    assert methods - COVERED == set()
    assert COVERED - methods == set()


async def prepare(db):
    await db.map("fixed").put("a", 1)
    await db.queue("fixed").put(1)
    await db.stream("fixed", partitions=1).append(1)
    await db.map("scanned").put_many({n: n for n in range(300)})
    await db.stream("scanned", partitions=2).append_many(list(range(300)))
    await db.stream("consumed", partitions=1).append_many(list(range(50)))
    await db.stream("followed", partitions=1).append("before")
    await db.map("few").put_many({n: n for n in range(5)})


async def storm(db, url, shards, cancellations):
    """How many cancellations there were; of one run of a scenario ten count, since a scan alone would make thousands."""
    rng = random.Random(SEED)
    world = World(db, url, shards)
    counted = 0
    while counted < cancellations:
        for name in rng.sample(sorted(SCENARIOS), len(SCENARIOS)):
            world.at = rng.randrange(4)
            for how in rng.sample(HOW, len(HOW)):
                world.at += 1
                world.how, world.pause_s = how, rng.choice((0.0, 0.0003, 0.001, 0.003))
                world.reached, before = False, world.cancelled
                try:
                    await asyncio.wait_for(SCENARIOS[name](world), 120)
                except BaseException as error:
                    error.add_note(f"seed {SEED}, {name}, cancelled at await {world.at}, {how}")
                    raise
                counted += min(10, world.cancelled - before)
                if not world.reached:
                    world.at = 0  # it has fewer awaits
    total = await db.map("counts").get("n", 0)
    assert world.incremented <= total <= world.incremented + world.maybe_incremented
    return counted


@pytest.mark.parametrize("kind", ["memory", "folder", "shards"])
def test_a_storm_of_cancellations(kind, tmp_path):
    url = "memory://" if kind == "memory" else str(tmp_path / "space")
    share = {"memory": 0.5, "folder": 0.35, "shards": 0.15}[kind]

    async def main():
        shards = 3 if kind == "shards" else 1
        async with of.aio.connect(url, **({"shards": 3} if shards > 1 else {})) as db:
            await prepare(db)
            done = await storm(db, url, shards, CANCELLATIONS * share)
            # The connection works, for everything.
            async with db.transaction() as tx:
                await tx.map("m").put("last", 1)
            assert await db.map("m").get("last") == 1
            held = [thread for thread in threading.enumerate() if thread.name.startswith("onefold-aio-block")]
            assert len(held) <= 16
            return done

    assert asyncio.run(main()) >= CANCELLATIONS * share


def test_the_loop_ends_while_tasks_wait(tmp_path):
    """asyncio.run cancels what waits when its main task ends; nothing hangs, and no message is used up."""

    async def main():
        db = await of.aio.connect(tmp_path / "space")
        q, s, m = db.queue("q", max_attempts=1), db.stream("s", partitions=1), db.map("m")

        async def get():
            async with q.get():
                pass

        async def consume():
            async with s.consumer("g") as consumer:
                await consumer.__anext__()

        lock = db.lock("l")
        await lock.__aenter__()
        changes, more = m.watch(), s.read("latest", follow=True)
        waits = (get(), consume(), db.lock("l").__aenter__(), changes.__anext__(), more.__anext__())
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in tasks)
        return db.sync, lock.sync

    began = time.monotonic()
    plain, held = asyncio.run(main())
    assert time.monotonic() - began < 60
    with plain:
        plain.queue("q").put("job")
        with plain.queue("q").get(timeout=60) as message:
            assert message.attempt == 1
        held.release()
        with plain.lock("l", timeout=60):
            pass


def test_an_iterator_that_was_dropped_while_it_waited_is_no_member(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            s = db.stream("s", partitions=1)
            await s.append(1)
            async with s.consumer("g") as consumer:
                assert (await consumer.__anext__()).value == 1
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await consumer.__anext__()
                # Nothing looks for it any more: it does not show a member to be alive that nobody is.
                look = consumer._fed._look
                while look is not None and not look.done():
                    await asyncio.sleep(0.01)
                assert not consumer._fed._steps
                assert not db._bridge._waits._groups
            async with asyncio.TaskGroup() as group:
                with pytest.raises(ZeroDivisionError):
                    async with db.lock("l"):
                        raise ZeroDivisionError
                group.create_task(db.map("m").put("a", 1))
            assert await db.map("m").get("a") == 1

    asyncio.run(main())


def test_a_consumer_that_is_not_open_has_nothing_to_rewind(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            consumer = db.stream("s", partitions=1).consumer("g")
            await consumer.rewind()
            with pytest.raises(of.InvalidArgument, match="open it first"):
                await consumer.commit()

    asyncio.run(main())
