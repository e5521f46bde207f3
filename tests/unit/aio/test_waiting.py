"""Waiting costs no thread, a look is made only when there is news, and no news is lost."""

import asyncio
import contextlib
import random
import subprocess
import sys
import threading

import pytest

import onefold as of
from onefold import config
from onefold.aio import waiting
from onefold.aio.bridge import Bridge
from onefold.aio.waiting import Waits
from onefold.shard import waiters
from onefold.state.core.waiting import Awaited, Pause
from support.silent_shard import Silent, Told, wait_until

WAITS = 120
THREADS_MAX = 30
SEED = 7


@pytest.fixture(params=["memory", "folder", "shards"])
def opened(request, tmp_path):
    """Makes a connection."""
    if request.param == "memory":
        return lambda: of.aio.connect("memory://")
    options = {"shards": 3} if request.param == "shards" else {}
    return lambda: of.aio.connect(tmp_path / "space", **options)


class Looks:
    """Counts the looks of waiting tasks."""

    def __init__(self, monkeypatch):
        self.count = 0
        look = Bridge.look

        def counted(bridge, fn):
            self.count += 1
            return look(bridge, fn)

        monkeypatch.setattr(Bridge, "look", counted)


async def until(condition, seconds=30):
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


async def lock(db, name, got):
    while True:
        async with db.lock(name):
            got.append(name)
        await asyncio.Event().wait()


async def consume(db, name, got):
    async with db.stream(name, partitions=2).consumer("g") as consumer:
        async for record in consumer:
            got.append(record.value)
            await consumer.commit()


def test_waits_of_all_kinds_share_a_few_threads(opened):
    async def main():
        async with opened() as db:
            got = []
            kinds = (watch, take, follow, consume)
            waits = [kinds[n % 4](db, f"n{n // 8}", got) for n in range(WAITS)]
            async with running(waits):
                await until(lambda: sleeping(db) == WAITS)
                assert threading.active_count() - before <= THREADS_MAX
                await db.map("n0").put("a", 1)
                await until(lambda: len(got) == 2)

    before = threading.active_count()  # other tests may have left some
    asyncio.run(main())


def test_nobody_looks_while_nothing_that_matters_is_written(tmp_path, monkeypatch):
    looks = Looks(monkeypatch)

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got = []
            waits = [(watch, take)[n % 2](db, f"n{n}", got) for n in range(WAITS)]
            async with running(waits):
                await until(lambda: sleeping(db) == WAITS)
                looks.count = 0
                for number in range(50):
                    await db.map("other").put(number, number)
                    await db.queue("others").put(number)
                looking = db._bridge._waits._waiters[0]
                await until(lambda: looking.seen >= db.sync._state.shards[0].applied)
                await db.map("n0").put("a", 1)  # what comes last has been seen when this arrives
                await until(lambda: got == [1])
                assert looks.count <= 4

    asyncio.run(main())


def test_a_message_wakes_one_of_those_who_wait(tmp_path, monkeypatch):
    looks = Looks(monkeypatch)

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got = []
            async with running(take(db, "q", got) for _ in range(WAITS)):
                await until(lambda: sleeping(db) == WAITS)
                looks.count = 0
                await db.queue("q").put_many(range(3))
                await until(lambda: len(got) == 3 and sleeping(db) == WAITS)
                # Those three look, and again after their message; leases are looked at by one.
                assert looks.count < 30

    asyncio.run(main())


def test_a_wake_up_is_passed_on_by_one_that_is_cancelled(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got = []
            async with running(take(db, "q", got) for _ in range(20)) as tasks:
                await until(lambda: sleeping(db) == 20)
                (group,) = db._bridge._waits._groups.values()
                for task in tasks[:-1]:  # each is chosen, and cancelled before it can look
                    group.wake_one()
                    task.cancel()
                await asyncio.sleep(0)
                await db.queue("q").put("a")
                await until(lambda: got == ["a"])

        waits = Waits(asyncio.get_running_loop())
        shard = Silent()
        client = type("Client", (), {"shards": [shard]})()
        woken = []

        async def one(number):
            with waits.waiter() as waiter:
                await waiter.wait(client, Pause((Awaited(0, Told(), 0),)), None)
                woken.append(number)
                await asyncio.Event().wait()  # it looks, and is cancelled

        async with running(one(number) for number in range(3)) as tasks:
            await until(lambda: len(waits._groups) == 1 and all_wait(waits, 3))
            next(iter(waits._groups.values())).wake_one()
            await until(lambda: woken == [0])
            tasks[0].cancel()
            await until(lambda: woken == [0, 1])
        assert not waits._groups
        shard.close()

    asyncio.run(main())


def all_wait(waits, count):
    (group,) = waits._groups.values()
    return sum(ref().waiting for ref in group._members) == count


def test_one_who_joins_after_newer_records_were_checked_looks_again():
    async def main():
        shard, looked = Silent(), []
        client = type("Client", (), {"shards": [shard]})()
        waits = Waits(asyncio.get_running_loop())

        async def one(offset):
            with waits.waiter() as waiter:
                waiter.begin_look()
                await waiter.wait(client, Pause((Awaited(0, Told(), offset),)), None)
                looked.append(offset)

        async with running([one(0)]):
            await until(lambda: waits._groups)
            shard.move()
            await until(lambda: next(iter(waits._groups.values())).checked == 1)
            async with running([one(1), one(0)]) as (_, behind):
                await behind
                assert looked == [0]
                assert all_wait(waits, 2)
        shard.close()

    asyncio.run(main())


def test_what_happens_without_a_record_is_noticed(opened):
    """The end of a lifetime, of a delay, and of a lease."""

    async def main():
        async with opened() as db:
            got = []
            m, q = db.map("m"), db.queue("q")
            waits = [watch(db, "m", got), *(take(db, "q", got) for _ in range(5))]
            leased = db.queue("leased", lease=0.2)
            await leased.put("left")
            assert leased.sync.take() is not None  # and its taker forgets it
            async with running([*waits, take(db, "leased", got)]):
                await until(lambda: sleeping(db) == 7)
                await m.put("a", "put", ttl=0.1)
                await q.put("late", delay=0.15)
                await until(lambda: sorted(map(str, got)) == ["None", "late", "left", "put"])

    asyncio.run(main())


def test_a_lock_wakes_the_one_whose_turn_it_is(tmp_path, monkeypatch):
    looks = Looks(monkeypatch)

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got = []
            held = db.lock("a", ttl=60)
            await held.__aenter__()
            async with running(lock(db, "a", got) for _ in range(50)):
                await until(lambda: sleeping(db) == 50)
                looks.count = 0
                await held.__aexit__(None, None, None)
                await until(lambda: len(got) == 50)
                assert looks.count < 250  # all would be 1225

            # Cancelled, none stands in the line or has it.
            async with asyncio.timeout(30), db.lock("a"):
                pass

    asyncio.run(main())


def test_a_stream_wakes_those_whose_partition_has_more(tmp_path, monkeypatch):
    looks = Looks(monkeypatch)

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got, partitions = [], 20
            s = db.stream("s", partitions=partitions)
            await s.append(0)

            async def one(partition):
                async for record in s.read("latest", follow=True, partitions=[partition]):
                    got.append((partition, record.value))

            async with running(one(partition) for partition in range(partitions)):
                await until(lambda: sleeping(db) == partitions)
                await s.append(1, "key")
                await until(lambda: len(got) == 1 and sleeping(db) == partitions)
                looks.count = 0
                await s.append(2, "key")
                await until(lambda: len(got) == 2 and sleeping(db) == partitions)
                assert looks.count <= 4

    asyncio.run(main())


def test_a_watch_outlives_more_records_of_others_than_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 80)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 10)

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got = []
            async with running(watch(db, "m", got) for _ in range(3)):
                await until(lambda: sleeping(db) == 3)
                looking = db._bridge._waits._waiters[0]
                for number in range(250):
                    await db.map("other").put("a", number)
                    if number % 5 == 0:  # the thread that looks keeps up
                        await until(lambda: looking.seen >= db.sync._state.shards[0].applied)
                        await until(lambda: sleeping(db) == 3)
                await db.map("m").put("a", 1)
                await until(lambda: got == [1, 1, 1])

    asyncio.run(main())


def test_waits_end_when_their_time_is_over(tmp_path, monkeypatch):
    looks = Looks(monkeypatch)

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:

            async def get():
                async with db.queue("q").get(timeout=0.05) as message:
                    return message

            async def change():
                return [c async for c in db.map("m").watch(timeout=0.05)]

            found = await asyncio.gather(*(wait() for _ in range(20) for wait in (get, change)))
            assert found == [None, []] * 20
            assert not db._bridge._waits._groups
            assert looks.count < 200

    asyncio.run(main())


def test_closing_ends_all_waits(opened):
    async def main():
        db = await opened()
        got = []
        tasks = [
            asyncio.ensure_future(kind(db, "n", got)) for kind in (watch, take, follow) for _ in range(5)
        ]
        await until(lambda: sleeping(db) == 15)
        await db.close()
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert {type(end) for end in ends} == {of.SpaceError}

    asyncio.run(main())
    wait_until(lambda: not any(thread.name == "onefold-waiters" for thread in threading.enumerate()))


def test_records_of_other_processes_wake(tmp_path):
    program = (
        "import sys, onefold as of\n"
        "with of.connect(sys.argv[1]) as db:\n"
        "    db.map('m')['a'] = 'change'\n"
        "    db.queue('q').put('message')\n"
    )

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got = []
            async with running([watch(db, "m", got), take(db, "q", got)]):
                await until(lambda: sleeping(db) == 2)
                other = await asyncio.to_thread(
                    subprocess.run, [sys.executable, "-c", program, str(tmp_path / "space")], check=False
                )
                assert other.returncode == 0
                await until(lambda: sorted(got) == ["change", "message"])

    asyncio.run(main())


class Interrupted(Exception):
    """Raised by a signal handler."""


def interrupt_after(lines):
    """Have the n-th line of the module that this thread comes to raise; gives what tells whether it did."""
    left, hits = [lines], []

    def trace(frame, event, _):
        if frame.f_code.co_filename != waiting.__file__:
            return None
        if event != "exception" and not hits:
            left[0] -= 1
            if left[0] < 0:
                hits.append((frame.f_code.co_name, frame.f_lineno))
                raise Interrupted
        return trace

    sys.settrace(trace)
    return hits


@pytest.mark.parametrize("seed", range(SEED, SEED + 2))
def test_an_interrupt_at_any_line_loses_no_wake_up(monkeypatch, seed):
    monkeypatch.setattr(waiters, "_TURN_S", 0.02)
    monkeypatch.setattr(waiting, "_LATE_S", 0.02)
    monkeypatch.setattr(waiting, "_BUSY_S", 0.05)
    rng, places = random.Random(seed), set()

    async def main():
        async with of.aio.connect("memory://") as db:
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            got = []

            async def taker():
                while True:
                    with contextlib.suppress(Interrupted):
                        # What was taken by one who is interrupted then is given again when its lease ends.
                        async with db.queue("q", lease=0.2).get() as message:
                            got.append(message.value)

            async with running(taker() for _ in range(3)):
                await until(lambda: sleeping(db) == 3)
                for number in range(60):
                    hits = interrupt_after(rng.randrange(120))
                    try:
                        with contextlib.suppress(Interrupted):
                            await db.queue("q").put(number, delay=rng.choice((None, 0.001)))
                        await until(lambda number=number: number in got)
                    except BaseException as error:
                        error.add_note(f"seed {seed}, message {number}, interrupted at {hits}")
                        raise
                    finally:
                        sys.settrace(None)
                    places.update(hits)

    asyncio.run(main())
    assert len(places) > 15


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_no_message_stays_behind_while_takers_come_and_go(opened, seed):
    rng = random.Random(seed)

    async def main():
        async with opened() as db:
            got = []

            async def taker():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rng.uniform(0, 0.03)):
                        await take(db, "q", got)

            async def come_and_go():
                while True:
                    await taker()

            async with running(come_and_go() for _ in range(12)):
                for number in range(60):
                    await db.queue("q").put(number, delay=rng.choice((None, None, 0.01)))
                    if rng.random() < 0.3:
                        await asyncio.sleep(rng.uniform(0, 0.01))
            async with running(take(db, "q", got) for _ in range(3)):
                await until(lambda: set(got) == set(range(60)))
                # The body of a block is the program's: what was cancelled there was given, and is given again.
            assert await db.queue("q").count() == 0

    try:
        asyncio.run(main())
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
