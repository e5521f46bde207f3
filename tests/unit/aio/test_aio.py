"""The asynchronous API over the same core."""

import asyncio
import contextlib
import inspect
import threading

import pytest

import onefold as of
from onefold.errors import Conflict, InvalidArgument, SpaceError, Timeout, TransactionError
from onefold.state.maps import reader as map_reader

SOON_S = 60


def run(main):
    return asyncio.run(asyncio.wait_for(main(), SOON_S))


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else str(tmp_path / "space")


def test_maps(url):
    async def main():
        async with of.aio.connect(url) as db:
            m = db.map("accounts")
            version = await m.put("alice", {"balance": 100})
            assert (await m.get_item("alice")).version == version
            with pytest.raises(Conflict):
                await m.put("alice", 0, if_absent=True)
            await m.put_many({("eu", n): n for n in range(600)})
            assert [v async for _, v in m.scan(prefix=("eu",), start=("eu", 590))] == list(range(590, 600))
            assert await m.count() == 601
            assert await m.increment("hits", 2) == 2
            assert await m.modify("hits", lambda n: n * 10) == 20
            assert await m.pop("hits") == 20
            assert await m.pop("hits", None) is None
            assert await m.setdefault("x", 1) == 1
            assert await m.delete("x")
            assert not await m.contains("x")
            assert await anext(aiter(m)) == "alice"

    run(main)


def test_many_tasks_share_commits(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            m = db.map("m")
            await m.put("first", 0)
            before = db.sync._shard.applied
            await asyncio.gather(*(m.put(n, n) for n in range(400)))
            assert await m.count() == 401
            assert db.sync._shard.applied - before < 300

    run(main)


def test_a_transaction_commits_or_conflicts(url):
    async def main():
        async with of.aio.connect(url) as db:
            m = db.map("m")
            await m.put("a", 1)
            async with db.transaction() as tx:
                inside = tx.map(m)
                await inside.put("b", await inside.get("a") + 1)
                assert await inside.get("b") == 2
                await tx.queue("mail").put("hello")
                await tx.stream("audit").append({"b": 2})
            assert tx.version is not None
            assert await m.get("b") == 2 and await db.queue("mail").count() == 1
            assert [r.value async for r in db.stream("audit").read()] == [{"b": 2}]

            async def loses():
                async with db.transaction() as tx:
                    await tx.map("m").get("a")
                    await asyncio.create_task(_outside(db))
                    await tx.map("m").put("b", 9)

            with pytest.raises(Conflict):
                await loses()
            with pytest.raises(ZeroDivisionError):
                async with db.transaction() as tx:
                    await tx.map("m").put("b", 1 / 0)
            assert await m.get("b") == 2

    async def _outside(db):
        await db.map("m").put("a", 5)

    run(main)


def test_plain_handles_are_refused_inside_a_block_of_their_task(url):
    async def main():
        async with of.aio.connect(url) as db:
            m, q = db.map("m"), db.queue("q")
            async with db.transaction() as tx:
                for wrong in (m.get("a"), m.put("a", 1), q.put(1)):
                    with pytest.raises(TransactionError):
                        await wrong
                with pytest.raises(TransactionError):
                    m.scan()
                with pytest.raises(TransactionError):
                    async with db.transaction():
                        pass
                await tx.map("m").put("a", 2)
            assert await m.get("a") == 2
            with pytest.raises(TransactionError):
                await tx.map("m").get("a")

    run(main)


def test_transactions_of_many_tasks_keep_the_total(url):
    async def main():
        async with of.aio.connect(url) as db:
            m = db.map("m")
            await m.put_many(dict.fromkeys("abc", 100))

            async def transfer(tx, source, target):
                accounts = tx.map("m")
                await accounts.put(source, await accounts.get(source) - 1)
                await accounts.put(target, await accounts.get(target) + 1)

            async def teller(number):
                source, target = "abc"[number % 3], "abc"[(number + 1) % 3]
                await db.run_transaction(lambda tx: transfer(tx, source, target), attempts=1000)

            await asyncio.gather(*(teller(n) for n in range(30)))
            assert sum([v async for _, v in m.items()]) == 300

    run(main)


def test_request_ids(url):
    async def main():
        async with of.aio.connect(url) as db:
            for _ in range(2):
                async with db.transaction("once") as tx:
                    await tx.map("m").increment("n")
            assert await db.map("m").get("n") == 1
            assert await db.outcome("once") == "committed"

    run(main)


def test_a_watch_gives_changes_and_a_cancelled_wait_loses_none(url):
    async def main():
        async with of.aio.connect(url) as db:
            m = db.map("m")
            await m.put("old", 0)
            async with m.watch(initial=True) as changes:
                assert (await anext(changes)).key == "old"
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(anext(changes), 0.05)
                await m.put("a", 1)
                change = await anext(changes)
                assert (change.key, change.value, change.kind) == ("a", 1, "put")
            with pytest.raises(StopAsyncIteration):
                await anext(changes)

    run(main)


def test_watchers_do_not_keep_writes_from_their_turn(tmp_path):
    async def main():
        async with of.aio.connect(tmp_path / "space") as db:
            m = db.map("m")
            await m.put("first", 0)

            async def one():
                async with m.watch(initial=True) as changes:
                    return "go" in [(await anext(changes)).key, (await anext(changes)).key]

            waiting = [asyncio.create_task(one()) for _ in range(60)]
            await m.put("go", 1)
            assert all(await asyncio.gather(*waiting))

    run(main)


def test_queues(url):
    async def main():
        async with of.aio.connect(url) as db:
            q = db.queue("mail")
            await q.put({"to": "a"})
            async with q.get(timeout="5s") as msg:
                assert msg.value == {"to": "a"} and msg.attempt == 1
            async with q.get(timeout=0) as msg:
                assert msg is None
            await q.put(1)
            with pytest.raises(ValueError, match="no"):
                async with q.get() as msg:
                    raise ValueError("no")
            async with q.get(timeout=0) as msg:
                assert msg.attempt == 2
            assert await q.count() == 0

    run(main)


def test_a_cancelled_taker_takes_nothing_away(url):
    async def main():
        async with of.aio.connect(url) as db:
            q = db.queue("mail")

            async def take():
                async with q.get() as msg:
                    return msg.value

            waiting = asyncio.create_task(take())
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await q.put("kept")
            async with q.get(timeout=SOON_S) as msg:
                assert msg.value == "kept"

    run(main)


def test_locks(url):
    async def main():
        async with of.aio.connect(url) as db:
            order = []

            async def hold(name):
                async with db.lock("l") as lock:
                    order.append((name, lock.fencing_token))

            async with db.lock("l") as lock:
                assert lock.held
                with pytest.raises(Timeout) as caught:
                    async with db.lock("l", timeout=0.01):
                        pass
                assert caught.value.definite
                waiting = asyncio.gather(hold(1), hold(2))
                await asyncio.sleep(0)
            await waiting
            tokens = [token for _, token in order]
            assert tokens == sorted(tokens) and tokens[0] > 0

    run(main)


def test_streams_and_consumers(url):
    async def main():
        async with of.aio.connect(url) as db:
            s = db.stream("clicks", partitions=2)
            await s.append_many([{"n": n, "k": n % 3} for n in range(50)], key="k")
            assert sorted([r.value["n"] async for r in s.read()]) == list(range(50))
            async with s.consumer("g", timeout=0.01) as consumer:
                got = [r.value["n"] async for r in consumer]
                async with db.transaction() as tx:
                    await tx.map("done").put("n", len(got))
                    await tx.commit(consumer)
            async with s.consumer("g", timeout=0.01) as consumer:
                assert [r async for r in consumer] == []

    run(main)


def test_a_handle_in_another_event_loop_is_refused(url):
    kept = []

    async def first():
        kept.append(await of.aio.connect(url))
        kept.append(kept[0].map("m"))

    async def second():
        with pytest.raises(InvalidArgument, match="another event loop") as caught:
            await kept[1].get("a")
        assert caught.value.definite

    asyncio.run(first())
    asyncio.run(second())
    kept[0].sync.close()


def test_use_after_close_and_before_open(url):
    async def main():
        db = of.aio.connect(url)
        with pytest.raises(SpaceError, match="not open"):
            db.map("m")
        async with db:
            m = db.map("m")
        with pytest.raises(SpaceError, match="closed"):
            await m.get("a")

    run(main)


def test_every_public_method_of_a_map_is_there():
    plain = {name for name in dir(of.Map) if not name.startswith("_")}
    own = {name for name in dir(of.aio.AsyncMap) if not name.startswith("_")}
    assert plain - own == {"popitem"}
    for name in plain & own:
        there = inspect.signature(getattr(of.Map, name)).parameters
        here = inspect.signature(getattr(of.aio.AsyncMap, name)).parameters
        assert set(there) <= set(here) | {"self"}, name


def test_a_watch_begins_with_its_call_also_when_its_first_step_is_cancelled(tmp_path, monkeypatch):
    held = threading.Event()
    opening = map_reader.open_watch

    def late(*args, **options):
        held.wait(60)
        return opening(*args, **options)

    async def program():
        async with of.aio.connect(tmp_path / "space") as db:
            m = db.map("m")
            await m.put("before", 0)
            monkeypatch.setattr(map_reader, "open_watch", late)
            changes = m.watch()
            step = asyncio.create_task(anext(changes))
            await asyncio.sleep(0)
            step.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await step
            await m.put("x", 1)
            held.set()
            change = await asyncio.wait_for(anext(changes), 120)
            assert (change.key, change.value) == ("x", 1)
            await changes.aclose()

    asyncio.run(program())
