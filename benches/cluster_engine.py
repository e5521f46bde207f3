"""The JetStream engine next to the raw engine, in one run: appends, and catching up by direct gets.

``python benches/cluster_engine.py [--records N]``: three servers of this machine. Raw is nats-py by itself: ``request`` for an
append, a batched direct get for catching up. The ratio is what counts; figures of a busy machine are not comparable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nats

from onefold.cluster.servers import LocalServers
from onefold.codec import Op, Record, encode_record
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog

ROUNDS = 10


def record(number: int, size: int) -> bytes:
    return encode_record(Record("c0-aa", number, 1, (Op("x", bytes(size)),)))


class Raw:
    """nats-py on a loop of its own thread, driven from there: no thread is changed for a request."""

    def __init__(self, servers: list[str]) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.client = self.run(nats.connect(servers))

    def run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(120)

    def appends(self, subject: str, data: bytes, count: int) -> list[float]:
        async def go() -> list[float]:
            took = []
            for _ in range(count):
                began = time.perf_counter()
                await self.client.request(subject, data, timeout=5)
                took.append(time.perf_counter() - began)
            return took

        return self.run(go())

    def read_all(self, stream: str, batch: int, max_bytes: int) -> int:
        async def go() -> int:
            inbox, start, size = self.client.new_inbox(), 1, 0
            coming = await self.client.subscribe(inbox)
            while True:
                body = json.dumps({"seq": start, "batch": batch, "max_bytes": max_bytes}).encode()
                await self.client.publish(f"$JS.API.DIRECT.GET.{stream}", body, reply=inbox)
                while True:
                    message = await coming.next_msg(5)
                    if not message.headers.get("Nats-Sequence"):
                        break
                    size += len(message.data)
                    start = int(message.headers["Nats-Sequence"]) + 1
                if message.headers.get("Nats-Num-Pending", "0") == "0":
                    return size

        return self.run(go())


def timed(work: Callable[[], int]) -> float:
    """Bytes per second."""
    began = time.perf_counter()
    size = work()
    return size / (time.perf_counter() - began)


def read_all(log: JetStreamLog, max_bytes: int) -> int:
    start, size = 1, 0
    while entries := log.read(start, max_bytes):
        start = entries[-1].offset + 1
        size += sum(len(entry.data) for entry in entries)
    return size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=300)
    count = parser.parse_args().records
    with tempfile.TemporaryDirectory() as folder:
        servers = LocalServers.start(Path(folder), 3, secure=False)
        try:
            run(servers, count)
        finally:
            servers.stop()


def run(servers: LocalServers, count: int) -> None:
    link = Link.shared(parse_address(servers.url("bench")))
    info = admin.make_space(link, "bench", 4)
    raw = Raw([f"nats://127.0.0.1:{server.port}" for server in servers.servers])
    print("append, p50 over rounds that take turns, ms")
    for shard, size in ((0, 100), (1, 10_000)):
        log = JetStreamLog(link, info, shard)
        assert log.last == 0
        data = record(1, size)
        engine: list[float] = []
        plain: list[float] = []
        for _ in range(ROUNDS):
            plain += raw.appends(log.names.subject, data, count // ROUNDS)
            for _ in range(count // ROUNDS):
                began = time.perf_counter()
                log.append(data)
                engine.append(time.perf_counter() - began)
        one, other = statistics.median(engine) * 1e3, statistics.median(plain) * 1e3
        print(f"  {size:>6} B: engine {one:.3f}, raw request {other:.3f}: {one / other:.2f}x")
        log.close()
    print("catching up, MB/s and records/s")
    for shard, size, number in ((2, 200, 20_000), (3, 50_000, 1000)):
        log = JetStreamLog(link, info, shard)
        fill(raw, log, size, number)
        engine_rate = plain_rate = 0.0
        for _ in range(3):
            plain_rate = max(plain_rate, timed(partial(raw.read_all, log.names.stream, 1000, 8 << 20)))
            fresh = JetStreamLog(link, info, shard)
            assert fresh.wait(number - 1, 30) >= number
            engine_rate = max(engine_rate, timed(partial(read_all, fresh, 4 << 20)))
            fresh.close()
        each = (len(record(1, size))) or 1
        print(
            f"  {size:>6} B: engine {engine_rate / 1e6:.1f} MB/s ({engine_rate / each:,.0f}/s), "
            f"raw {plain_rate / 1e6:.1f} MB/s: {engine_rate / plain_rate:.2f}x"
        )
        log.close()
    raw.run(raw.client.close())
    link.close()


def fill(raw: Raw, log: JetStreamLog, size: int, count: int) -> None:
    data = record(1, size)

    async def go() -> None:
        for first in range(0, count, 200):
            for _ in range(min(200, count - first) - 1):
                await raw.client.publish(log.names.subject, data)
            await raw.client.request(log.names.subject, data, timeout=10)

    raw.run(go())


if __name__ == "__main__":
    main()
