"""For every asynchronous method: a call that is cancelled, and what must be true afterwards.

``covers`` names the methods. A scenario gets a ``World``: ``await world.cancel(coroutine)`` gives its result
or raises Cancelled.
"""

import asyncio
import contextlib
import functools
from dataclasses import dataclass
from typing import Any

import onefold as of
from onefold.state.encoding.keys import encode_key
from support.cancelling import Cancelled, Cancelling, cancelled_at

SCENARIOS = {}
COVERED = set()


def covers(*methods):
    def note(scenario):
        SCENARIOS[scenario.__name__] = scenario
        COVERED.update(methods)
        return scenario

    return note


@dataclass
class World:
    """The connection, how calls are cancelled, and what was counted."""

    db: Any
    url: str
    shards: int = 1
    at: int = 1
    how: str = "at once"
    pause_s: float = 0.0
    number: int = 0
    cancelled: int = 0
    reached: bool = False
    incremented: int = 0
    maybe_incremented: int = 0

    def new(self, kind="x"):
        self.number += 1
        return f"{kind}{self.number}"

    async def cancel(self, coroutine):
        """Its result. Raises Cancelled."""
        try:
            return await cancelled_at(coroutine, self.at, self.how, self.pause_s)
        except Cancelled:
            self.cancelled += 1
            self.reached = True
            raise

    async def cancel_here(self, coroutine):
        """The same in the task of the caller, as a transaction's calls need."""
        how = "at the end" if self.how == "at the end" else "at once"
        try:
            return await Cancelling(coroutine, self.at, how, 0)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
            self.cancelled += 1
            self.reached = True
            raise Cancelled from None

    async def attempt(self, coroutine):
        """Its result, or Cancelled."""
        try:
            return await self.cancel(coroutine)
        except Cancelled:
            return Cancelled


# -- maps


@covers("AsyncMap.put", "AsyncMap.delete", "AsyncMap.pop", "AsyncMap.setdefault", "AsyncMap.modify")
async def writes_happen_or_not(w):
    m, key = w.db.map("m"), w.new()
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


@covers("AsyncMap.put_many", "AsyncMap.update")
async def many_are_written_whole_or_not(w):
    m, key = w.db.map("m"), w.new()
    for call in (m.put_many, m.update):
        await w.attempt(call({f"{key}a": 1, f"{key}b": 2}))
        await m.put("fence", 0)
        assert len(await m.get_many([f"{key}a", f"{key}b"])) in (0, 2)


@covers("AsyncMap.increment")
async def increments_are_counted_once(w):
    done = await w.attempt(w.db.map("counts").increment("n"))
    w.incremented += done is not Cancelled
    w.maybe_incremented += done is Cancelled


@covers(
    "AsyncMap.get", "AsyncMap.get_item", "AsyncMap.get_many", "AsyncMap.contains", "AsyncMap.count",
    "AsyncDatabase.outcome", "AsyncQueue.count", "AsyncQueue.counts", "AsyncQueue.dead", "AsyncStream.count",
    "AsyncStream.positions", "AsyncLock.check",
)  # fmt: skip
async def reads_do_not_mix_up_answers(w):
    m, q, s = w.db.map("fixed"), w.db.queue("fixed"), w.db.stream("fixed", partitions=1)
    lock = w.db.lock("checked")
    async with lock:
        for call in (
            lambda: m.get("a"), lambda: m.get_item("a"), lambda: m.get_many(["a"]), lambda: m.contains("a"),
            m.count, lambda: w.db.outcome("none"), q.count, q.counts, q.dead, s.count, s.positions, lock.check,
        ):  # fmt: skip
            await w.attempt(call())
            assert await m.get("a") == 1
        assert lock.held
    assert lock.sync.holder() is None


@covers("AsyncMap.clear")
async def clearing_happens_or_not(w):
    m = w.db.map(w.new("cleared"))
    await m.put_many({n: n for n in range(5)})
    done = await w.attempt(m.clear())
    await m.put(99, 0)
    left = {key async for key in m}
    if done is not Cancelled:
        assert left == {99}
    else:  # one that had begun may come after the put; it is one operation in each shard
        shard_of = m.sync.client.shard_of
        for shard in range(w.shards):
            there = {n for n in range(5) if shard_of(encode_key(n)) == shard}
            assert left & there in (there, set()), (shard, left)


@covers(
    "AsyncMap.scan", "AsyncMap.items", "AsyncMap.keys", "AsyncMap.values", "AsyncMap.__aiter__", "AsyncStream.read",
    "Pulled.__aiter__", "Pulled.__anext__", "Pulled.__aenter__", "Pulled.__aexit__", "Pulled.aclose",
)  # fmt: skip
async def a_scan_skips_nothing(w):
    m, s = w.db.map("scanned"), w.db.stream("scanned", partitions=2)
    numbers = list(range(300))
    for make in (m.scan, m.items, m.keys, m.values, m.__aiter__, s.read):
        found, scan = [], make()
        while True:
            try:
                item = await w.cancel(scan.__anext__())
            except Cancelled:
                continue  # the next step gets what this one waited for, so this comes to an end
            except StopAsyncIteration:
                break
            found.append(item[0] if isinstance(item, tuple) else getattr(item, "value", item))
        assert sorted(found) == numbers, make
        await w.attempt(scan.aclose())
        scan = make()
        await w.attempt(scan.__aenter__())
        assert len([item async for item in scan]) == 300
        await w.attempt(scan.__aexit__(None, None, None))


@covers(
    "AsyncMap.watch",
    "Fed.__aiter__",
    "Fed.__anext__",
    "Fed.__aenter__",
    "Fed.__aexit__",
    "Fed.aclose",
    "Fed.open",
)
async def a_watch_and_a_follower_miss_nothing(w):
    m, s, key = w.db.map("watched"), w.db.stream("followed", partitions=1), w.new()
    for fed, write in (
        (m.watch(), lambda n: m.put((key, n), n)),
        (s.read("latest", follow=True), s.append),
    ):
        await w.attempt(fed.__aenter__())
        await fed.__aenter__()
        found = []
        for n in range(3):
            with_nothing_there = asyncio.create_task(w.attempt(fed.__anext__()))
            if n % 2:
                await asyncio.sleep(0.002)
            await write(n)
            got = await with_nothing_there
            found.append((got if got is not Cancelled else await fed.__anext__()).value)
        assert found == [0, 1, 2]
        await w.attempt(fed.__aexit__(None, None, None))
        await w.attempt(fed.aclose())


# -- queues and locks


@covers("AsyncQueue.put", "AsyncQueue.put_many")
async def messages_are_put_once_or_not(w):
    q = w.db.queue(w.new("put"))
    one = await w.attempt(q.put("a"))
    many = await w.attempt(q.put_many(["b", "c"]))
    await q.put("fence")
    found = [message.value for message in await _drain(q)]
    assert found.count("a") <= 1 and found.count("b") == found.count("c") <= 1
    assert one is Cancelled or "a" in found
    assert many is Cancelled or "b" in found


@covers("AsyncQueue.get", "AsyncDelivery.__aenter__")
async def a_cancelled_get_uses_up_nothing(w):
    q = w.db.queue(w.new("got"), max_attempts=1)

    async def get():
        async with q.get() as message:
            return message.value

    waiting = asyncio.create_task(w.attempt(get()))
    if w.number % 2:
        await asyncio.sleep(0.001)
    await q.put("job")
    got = await waiting
    left = await _drain(q)
    if got is Cancelled:
        assert [(message.value, message.attempt) for message in left] in ([("job", 1)], [])
    assert await q.dead() == [], "a message that nobody was given is a dead letter"


@covers("AsyncDelivery.__aexit__", "AsyncMessage.ack", "AsyncMessage.nack", "AsyncMessage.extend")
async def a_message_ends_once(w):
    for end in ("leave", "ack", "nack", "extend"):
        q = w.db.queue(w.new("ended"), max_attempts=5)
        await q.put(end)
        delivery = q.get()
        message = await delivery.__aenter__()
        assert (message.value, message.attempt) == (end, 1)
        if end != "leave":
            await w.attempt(getattr(message, end)())
        await w.attempt(delivery.__aexit__(None, None, None))
        while (await q.counts()).in_flight:  # cancelled twice, its end may be on its way
            await asyncio.sleep(0.001)
        left = [message.attempt for message in await _drain(q)]
        assert left in ([], [2]) if end == "nack" else left == [], end
        assert await q.counts() == (0, 0, 0, 0, 0)


@covers("AsyncLock.__aenter__", "AsyncLock.__aexit__")
async def a_lock_is_free_afterwards(w):
    name = w.new("lock")

    async def hold():
        async with w.db.lock(name):
            await asyncio.sleep(0)

    same = w.db.lock(name)
    await w.attempt(hold())
    entered = await w.attempt(same.__aenter__())
    if entered is Cancelled:
        await same.__aenter__()
    await w.attempt(same.__aexit__(None, None, None))
    async with w.db.lock(name, timeout=5):
        if (w.how, w.at) == ("at once", 1):  # it stands in line
            assert await w.attempt(hold()) is Cancelled
    assert same.sync.holder() is None


# -- streams and consumers


@covers("AsyncStream.append", "AsyncStream.append_many")
async def records_are_appended_once_or_not(w):
    s = w.db.stream(w.new("appended"), partitions=1)
    await w.attempt(s.append("a"))
    await w.attempt(s.append_many(["b", "c"]))
    await s.append("fence")
    found = [record.value async for record in s.read()]
    assert found.count("a") <= 1 and found.count("b") == found.count("c") <= 1


@covers(
    "AsyncStream.consumer", "AsyncConsumer.__aiter__", "AsyncConsumer.__anext__", "AsyncConsumer.__aenter__",
    "AsyncConsumer.__aexit__", "AsyncConsumer.aclose", "AsyncConsumer.commit", "AsyncConsumer.rewind",
    "AsyncConsumer.seek", "AsyncConsumer.skip", "AsyncTransaction.commit",
)  # fmt: skip
async def a_consumer_commits_what_it_was_given(w):
    s, group = w.db.stream("consumed", partitions=1), w.new("group")
    entering = s.consumer(group)
    if await w.attempt(entering.__aenter__()) is not Cancelled:
        await entering.aclose()
    c = s.consumer(group)
    await c.__aenter__()
    assert len(c.sync.assignment) == 1, "a ghost holds the partition"
    given = []
    for _ in range(3):
        got = await w.attempt(c.__anext__())
        if got is not Cancelled:
            given.append(got.offset)
    assert given == list(range(len(given)))
    assert await w.attempt(c.skip()) in (False, Cancelled)
    await w.attempt(c.commit())
    await c.commit()
    assert c.sync.committed == ({0: len(given)} if given else {})
    given.append((await c.__anext__()).offset)
    await w.attempt(c.__anext__())
    given = list(range(c.sync.position.offsets[0]))

    async def within():
        async with w.db.transaction() as tx:
            await tx.commit(c)
            await tx.map("m").put(group, len(given))

    await w.attempt(within())
    committed = await w.db.map("m").get(group)
    again = await c.__anext__()
    # Not committed: from the last commit again, or further on when tx.commit was never reached.
    behind = len(given)
    assert again.offset == behind if committed else again.offset in ((c.sync.committed or {0: 0})[0], behind)
    await w.attempt(c.rewind())
    await w.attempt(c.seek("earliest"))
    await c.seek("earliest")
    assert (await c.__anext__()).offset == 0
    await w.attempt(c.aclose())
    await c.aclose()
    await w.attempt(c.__aexit__(None, None, None))
    async with s.consumer(group) as after:
        assert len(after.sync.assignment) == 1


# -- transactions


@covers(
    "AsyncDatabase.transaction", "AsyncTransaction.__aenter__", "AsyncTransaction.__aexit__", "AsyncTransaction.run",
    "AsyncTxMap.put", "AsyncTxMap.get", "AsyncTxMap.get_item", "AsyncTxMap.get_many", "AsyncTxMap.contains",
    "AsyncTxMap.count", "AsyncTxMap.put_many", "AsyncTxMap.update", "AsyncTxMap.delete", "AsyncTxMap.pop",
    "AsyncTxMap.setdefault", "AsyncTxMap.modify", "AsyncTxMap.increment", "AsyncTxQueue.put", "AsyncTxStream.append",
    "AsyncTxStream.append_many",
)  # fmt: skip
async def a_transaction_is_whole_or_not(w):
    name = w.new("tx")

    async def all_of_it():
        async with w.db.transaction() as tx:
            m = tx.map(name)
            await m.put("a", 1)
            await m.put_many({"b": 1})
            await m.update(c=1)
            (
                await m.get("x"),
                await m.get_item("a"),
                await m.get_many(["a"]),
                await m.contains("a"),
                await m.count(),
            )
            await m.delete("x"), await m.pop("x", None), await m.setdefault("d", 1)
            await m.modify("e", lambda old: 1)
            await m.increment("f")
            await tx.queue(name).put(1)
            await tx.stream(name).append(1)
            await tx.stream(name).append_many([2, 3])

    done = await w.attempt(all_of_it())
    await w.db.map("m").put("fence", 0)  # a plain handle works: no block is open here
    counts = await w.db.map(name).count(), await w.db.queue(name).count(), await w.db.stream(name).count()
    assert counts in ((6, 1, 3), (0, 0, 0)) if done is Cancelled else counts == (6, 1, 3)


@covers("AsyncTxMap.scan", "AsyncTxMap.items", "TxScan.__aiter__", "TxScan.__anext__")
async def a_scan_in_a_transaction_skips_nothing(w):
    async with w.db.transaction() as tx:
        m = tx.map("few")
        for scan in (m.scan(), m.items()):
            found, before = [], w.cancelled
            while True:
                try:
                    found.append(await w.cancel_here(scan.__anext__()))
                except Cancelled:
                    assert w.cancelled < before + 50, "a cancelled step loses what it waited for"
                except StopAsyncIteration:
                    break
            assert [key for key, _ in found] == list(range(5))


@covers("AsyncDatabase.run_transaction")
async def a_tried_transaction_is_whole_or_not(w):
    key = w.new()

    async def both(tx):
        await tx.map("m").put(f"{key}a", 1)
        await tx.map("m").put(f"{key}b", 1)

    await w.attempt(w.db.run_transaction(both))
    await w.db.map("m").put("fence", 0)
    assert len(await w.db.map("m").get_many([f"{key}a", f"{key}b"])) in (0, 2)


# -- jobs


@covers(
    "AsyncDatabase.start", "AsyncDatabase.replay", "AsyncDatabase.open_run", "AsyncDatabase.runs", "AsyncDatabase.tables",
    "AsyncDatabase.drop", "AsyncRun.state", "AsyncRun.progress", "AsyncRun.status", "AsyncRun.errors",
    "AsyncRun.dead_letters", "AsyncRun.wait", "AsyncRun.result", "AsyncRun.catch_up", "AsyncRun.stop", "AsyncRun.resume",
    "AsyncRun.cancel", "AsyncRun.swap", "AsyncTable.status", "AsyncTable.to_polars", "AsyncTable.get", "AsyncTable.top",
    "AsyncTable.estimate", "AsyncTable.late", "AsyncTable.count", "AsyncTable.scan", "AsyncTable.to_arrow",
    "AsyncRun.watermark", "AsyncRun.point", "AsyncRun.caught_up",
)  # fmt: skip
async def jobs_live_on_or_end_whole(w):
    db, name = w.db, w.new("t")
    job = db.read_stream("fixed", follow=True).group_by("page").agg(n=of.agg.count()).into(name)
    await w.attempt(db.start(job, workers=0))
    run, table = await db.start(job, workers=0), db.table(name)
    await w.attempt(db.replay(job, workers=0))
    ids = [one.id for one in await db.runs(table=name)]
    assert ids in ([f"{name}/1"], [f"{name}/2", f"{name}/1"], [f"{name}/1", f"{name}/2"])
    for call in (
        run.state, run.progress, run.status, run.errors, run.dead_letters, run.result, table.status, table.to_polars,
        lambda: table.get("a"), table.top, lambda: table.estimate("n"), table.late, table.count, db.runs, db.tables,
        lambda: db.open_run(name), lambda: run.resume(workers=0), table.scan, table.to_arrow, run.watermark, run.point,
    ):  # fmt: skip
        await w.attempt(call())
        assert await run.state() == "running"
    point = await run.point()
    for wait in (run.wait, run.catch_up, functools.partial(run.caught_up, point)):
        with contextlib.suppress(of.Timeout):
            await w.attempt(wait(timeout=0.001))
    if len(ids) == 2:
        await w.attempt((await db.open_run(f"{name}/2")).swap(force=True))
    await w.attempt(run.stop())
    await w.attempt(run.cancel())
    for one in await db.runs(table=name):
        await one.cancel()
    await w.attempt(db.drop(name))
    await db.drop(name)
    assert not [one.id for one in await db.runs() if one.id.startswith(f"{name}/")]


# -- connections


@covers(
    "AsyncDatabase.__aenter__", "AsyncDatabase.__aexit__", "AsyncDatabase.__await__", "AsyncDatabase.close",
    "AsyncDatabase.at",
)  # fmt: skip
async def a_connection_is_closed(w):
    url = w.url
    await w.attempt(of.aio.connect(url).__aenter__())
    db = of.aio.connect(url)

    async def awaited():
        return await db

    await w.attempt(awaited())
    await db
    past = await w.attempt(db.at(db.session.token))
    if past is not Cancelled:
        await w.attempt(past.__aexit__(None, None, None))
        await past.close()
    await w.attempt(db.close())
    await db.close()


async def _drain(q):
    """The messages that are ready, each taken and acknowledged."""
    found = []
    while True:
        async with q.get(timeout=0) as message:
            if message is None:
                return found
            found.append(message)
