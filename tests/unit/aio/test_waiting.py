"""Waiting costs no thread, a look is made only when there is news, and no news is lost."""

import asyncio
import random
import subprocess
import sys
import threading

import pytest

import onefold as of
from onefold import config
from onefold.aio.waiting import Waits
from onefold.state.core.leases import Lease, keeper
from onefold.state.core.waiting import Awaited, Pause
from onefold.state.locks.lock import Lock
from support.aio_waits import SEED, Looks, follow, running, sleeping, take, until, watch
from support.silent_shard import Silent, Told

WAITS = 120


THREADS_MAX = 30


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
                looking = db._bridge._waits._waiters[id(db.sync._shards[0])]
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
            async with asyncio.timeout(120), db.lock("a"):
                pass

    asyncio.run(main())


def test_idle_locks_look_only_when_a_lease_may_be_over(tmp_path, monkeypatch):
    """Their holders are asked after by the one thread, once for all locks of a process."""
    looks = Looks(monkeypatch)
    monkeypatch.setattr(config, "LEASE_LOOK_S", 0.02)

    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            got, held = [], [db.lock(f"l{number}", ttl=60) for number in range(40)]
            for one in held:
                await one.__aenter__()
            async with running(lock(db, one.name, got) for one in held):
                await until(lambda: sleeping(db) == len(held))
                shard, asked = db.sync._state.shards[0], []
                alive = shard.member_alive

                def asked_after(member):
                    asked.append(member)
                    return alive(member)

                monkeypatch.setattr(shard, "member_alive", asked_after)
                looks.count = 0
                await until(lambda: len(asked) >= 10)
                assert looks.count == 0
                await asyncio.to_thread(held[7].sync.renew)
                await until(lambda: len(asked) >= 20)
                assert looks.count == 0  # a renewal is noted without one
                for one in held:
                    await one.__aexit__(None, None, None)
                await until(lambda: len(got) == len(held))

    asyncio.run(main())


@pytest.mark.parametrize("noted", ["nothing", "another grant"])
def test_a_lease_that_somebody_else_was_about_to_look_at_ends_too(noted, monkeypatch):
    async def main():
        async with of.aio.connect("memory://") as db:
            client = db.sync._state
            observer = keeper(client).observer
            if noted == "another grant":
                observer.look(
                    client.shards[0], ("lock", 0, "l"), [Lease(10**6, 0, 3600.0, client.shards[0].member)]
                )
            due, asked = observer.due, []
            # Who came first, and was interrupted then, counts as the one who looks.
            monkeypatch.setattr(
                observer, "due", lambda subject: bool(asked.append(subject) or asked[1:]) and due(subject)
            )
            silent, got = Lock(client, "l", ttl=0.1, renew=False), []
            await asyncio.to_thread(silent.acquire)
            async with running([lock(db, "l", got)]):
                await until(lambda: got)
            assert len(asked) > 1

    asyncio.run(main())


HOLDER = """
import sys, onefold as of
from onefold.state.fold.locks.fold import read_row
from onefold.state.locks.asking import LockNews
from onefold.state.locks.lock import Lock
from onefold.state.queues.taking import QueueNews
db = of.connect(sys.argv[1])
db.lock("dead", ttl="1h").acquire()
Lock(db._state, "silent", ttl=0.5, renew=False).acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("renewed", [False, True])
def test_a_lock_passes_on_from_a_holder_that_is_dead_or_silent(tmp_path, renewed):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLDER, str(tmp_path / "space")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            try:
                await asyncio.to_thread(process.stdout.readline)
                got = []
                mine = Lock(db.sync._state, "mine", ttl=0.4, renew=False)
                await asyncio.to_thread(mine.acquire)
                async with running(lock(db, name, got) for name in ("dead", "silent", "mine")):
                    await until(lambda: sleeping(db) + len(got) == 3)
                    if renewed:
                        await asyncio.to_thread(mine.renew)
                    await until(lambda: {"mine", "silent"} <= set(got))
                    assert "dead" not in got
                    process.kill()
                    await until(lambda: "dead" in got)
            finally:
                process.kill()
                process.wait()
                process.stdin.close()
                process.stdout.close()

    asyncio.run(main())


def test_a_change_is_read_once_for_all_who_watch_it(opened, monkeypatch):
    looks = Looks(monkeypatch)

    async def main():
        async with opened() as db:
            got, m = [], db.map("m")
            async with running(watch(db, "m", got) for _ in range(WAITS)):
                await until(lambda: sleeping(db) == WAITS)
                looks.count = 0
                for number in range(5):
                    await m.put((7, number), number)
                    await until(lambda number=number: got.count(number) == WAITS and sleeping(db) == WAITS)
                assert len(got) == 5 * WAITS
                if len(db.sync._state.shards) == 1:
                    assert looks.count <= 5  # each looking would be 1,200
                else:
                    assert looks.count <= 6 * WAITS  # whether the other shards have news

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(SEED, SEED + 3))
def test_what_is_handed_to_watchers_is_what_a_look_would_find(opened, monkeypatch, seed):
    """Watchers of many ranges that come, are slow, and leave: each gets every change of its range once, in order."""
    monkeypatch.setattr(config, "WATCH_SHARED_CHANGES", 3)
    rng = random.Random(seed)
    prefixes = (None, (0,), (1,), (1, 1))

    async def main():
        async with opened() as db:
            m, given = db.map("m"), []

            async def watching(prefix, slow):
                mine = []
                async with m.watch(prefix) as changes:
                    begun = changes.feed.token
                    given.append((asyncio.current_task(), prefix, begun, mine))
                    async for change in changes:
                        mine.append((change.key, change.value, change.kind, change.version))
                        if rng.random() < slow:
                            await asyncio.sleep(rng.uniform(0, 0.01))

            async def writing():
                for number in range(120):
                    key = (rng.randrange(3), rng.randrange(3))
                    match rng.randrange(6):
                        case 0:
                            await m.delete(key)
                        case 1:
                            await m.put(key, number, ttl=0.02)
                        case 2:
                            await m.put_many({(key[0], n): number for n in range(rng.choice((2, 6)))})
                        case 3:
                            await db.map("other").put(key, number)
                        case _:
                            await m.put(key, number)
                    await asyncio.sleep(rng.choice((0, 0, 0.004)))

            tasks = [watching(rng.choice(prefixes), rng.choice((0, 0, 0.5))) for _ in range(12)]
            async with running(tasks) as running_tasks:
                await until(lambda: len(given) == 12)
                writer = asyncio.ensure_future(writing())
                for number in range(6):
                    await asyncio.sleep(0.03)
                    running_tasks[number].cancel()
                    running_tasks.append(asyncio.ensure_future(watching(rng.choice(prefixes), 0.2)))
                await writer
                await m.put((9, 9), "last")
                for prefix in prefixes[1:]:
                    await m.put((*prefix, 9), "last")
                await until(lambda: len(given) == len(running_tasks))
                await until(lambda: all(task.cancelled() or is_whole(db, *one) for task, *one in given))
            for _, prefix, begun, mine in given:
                wanted = there(db, prefix, begun)
                for key in {change[0] for change in mine}:  # shards come in any order
                    of_key = [change for change in mine if change[0] == key]
                    assert of_key == [change for change in wanted if change[0] == key][: len(of_key)]

    def there(db, prefix, begun):
        with db.sync.map("m").watch(prefix, start=begun, timeout=0) as changes:
            return [(change.key, change.value, change.kind, change.version) for change in changes]

    def is_whole(db, prefix, begun, mine):
        return len(mine) >= len(there(db, prefix, begun))

    try:
        asyncio.run(main())
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
