"""Waits of programs under asyncio that end: by time, by closing, by interrupts; and none is lost on the way."""

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
from onefold.shard import waiters
from onefold.shard.waiters import ALL
from onefold.state.encoding.keys import encode_key
from onefold.state.fold.locks.fold import read_row
from onefold.state.locks.asking import LockNews
from onefold.state.queues.taking import QueueNews
from support.aio_waits import SEED, Looks, follow, running, sleeping, take, until, watch
from support.silent_shard import wait_until


def test_what_is_back_as_it_was_is_news_again():
    """One of the group may have looked in between."""
    with of.connect("memory://") as db:
        client, q, held = db._state, db.queue("q"), db.lock("l")
        shard = client.shards[0]

        def row():
            with shard.view() as view:
                return read_row(view, "l")

        def checked(interest):
            with shard.view() as view:
                return interest.check(view, view.offset - 1)

        held.acquire()
        lock_news, queue_news = LockNews(client, 0, "l", row()), QueueNews(q)
        q.put(1)
        for _ in range(2):
            assert checked(queue_news).wakes == 1
            q.take().give_back()
        held.release()
        for _ in range(2):
            assert checked(lock_news) == ALL
            held.acquire()
            held.release()
        with db.map("m").watch() as changes:
            one, other = changes.look(), changes.look()
            assert one.awaited[0].interest is not other.awaited[0].interest


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
                looking = db._bridge._waits._waiters[id(db.sync._shards[0])]
                for number in range(250):
                    await db.map("other").put("a", number)
                    if number % 5 == 0:  # the thread that looks keeps up
                        await until(lambda: looking.seen >= db.sync._state.shards[0].applied)
                        await until(lambda: sleeping(db) == 3)
                await db.map("m").put("a", 1)
                await until(lambda: got == [1, 1, 1])

    asyncio.run(main())


def test_a_watch_of_two_shards_looks_before_either_forgets(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HISTORY_WINDOW_OFFSETS", 80)
    monkeypatch.setattr(config, "HISTORY_PRUNE_EVERY_OFFSETS", 10)

    async def main():
        async with of.aio.connect(tmp_path / "space", shards=2) as db:
            client = db.sync._state
            first, second = (
                next(key for key in range(50) if client.shard_of(encode_key(key)) == n) for n in (0, 1)
            )
            for number in range(300):  # the one shard is far ahead of the other
                await db.map("other").put(first, number)
            got = []
            async with running(watch(db, "m", got) for _ in range(3)):
                await until(lambda: sleeping(db) == 3)
                await db.map("m").put(first, 0)
                await until(lambda: got == [0] * 3 and sleeping(db) == 3)
                looking = db._bridge._waits._waiters[id(db.sync._shards[1])]
                for number in range(250):
                    await db.map("other").put(second, number)
                    if number % 5 == 0:
                        await until(lambda: looking.seen >= client.shards[1].applied)
                        await until(lambda: sleeping(db) == 3)
                await db.map("m").put(second, 1)
                await until(lambda: got == [0] * 3 + [1] * 3)

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
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)
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


@pytest.mark.moving(3)
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
                # The body of a block is the program's: what was cancelled there was given, and is given again. So the takers stay
                # until the last message is confirmed too.
                async with asyncio.timeout(120):
                    while await db.queue("q").count():
                        await asyncio.sleep(0.01)

    try:
        asyncio.run(main())
    except BaseException as error:
        error.add_note(f"seed {seed}")
        raise
