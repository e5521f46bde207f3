"""The parts of ``regions.py`` that need servers: puts over delayed links, session reads of replicas, and what nobody uses."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import nats

import onefold as of
import regions
from cluster_idle import SETTLE_S, processor_s, status
from onefold.cluster.local import LocalCluster
from onefold.cluster.servers import LocalServers
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.streams import lead_from, stream_state
from regions import Measured, p50_ms, ratio_line
from regions_links import between_sites

HERE = "dc1"
IDLE_S = 15.0
WAIT_S = 60.0


class RawStream:
    """Publishing to a stream that is placed as a consistent log, acknowledged one by one, with nats-py alone."""

    def __init__(self, servers: LocalServers) -> None:
        self._servers = servers
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        servers.url("raw", "admin")
        self._nats = self.run(self._connect())

    def run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connect(self) -> Any:
        ports = [server.port for server in self._servers.servers if server.region == HERE]
        connection = await nats.connect(
            [f"nats://127.0.0.1:{port}" for port in ports],
            nkeys_seed=str(self._servers.seed_file("raw", "admin")),
            inbox_prefix="_INBOX_admin",
        )
        made: dict[str, object] = {"name": "RAW", "subjects": ["of.raw.x.log.0"], "storage": "file"}
        made |= {"num_replicas": self._servers.copies, "placement": {"tags": ["cp"]}}
        made |= {"discard": "new", "deny_delete": True, "allow_direct": True}
        answer = await self._ask(connection, "CREATE", made)
        end = time.monotonic() + WAIT_S
        while not (answer.get("cluster") or {}).get("leader", "").startswith(HERE):
            if time.monotonic() > end:
                raise SystemExit(f"the raw stream is not led from {HERE}: {answer}")
            await self._ask(connection, "LEADER.STEPDOWN", {"placement": {"tags": [f"region:{HERE}"]}})
            await asyncio.sleep(1.0)
            answer = await self._ask(connection, "INFO", {})
        return connection

    async def _ask(self, connection: Any, call: str, body: dict[str, object]) -> dict[str, Any]:
        answer = await connection.request(f"$JS.API.STREAM.{call}.RAW", json.dumps(body).encode(), timeout=10)
        return dict(json.loads(answer.data))

    def publish(self, number: int) -> float:
        """The median of so many acknowledgements, in ms."""

        async def measure() -> float:
            times = []
            for _ in range(number):
                began = time.perf_counter()
                await self._nats.request("of.raw.x.log.0", b"x" * 180, timeout=10)
                times.append(time.perf_counter() - began)
            return 1000 * statistics.median(times)

        return float(self.run(measure()))

    def close(self) -> None:
        self.run(self._nats.close())
        self._loop.call_soon_threadsafe(self._loop.stop)


def lead_here(cluster: LocalCluster) -> None:
    """Have the consistent log led from the region that puts."""
    link = Link(parse_address(cluster.url("node")))
    try:
        info = admin.read_space(link)
        stream = LogNames(info.space, info.incarnation, 0).stream
        end = time.monotonic() + WAIT_S
        while not (link.run(lambda: stream_state(link, stream), 10.0).leader or "").startswith(HERE):
            if time.monotonic() > end:
                raise SystemExit(f"{stream} is not led from {HERE}")
            link.run(lambda: lead_from(link, stream, HERE), 10.0)
            time.sleep(1.0)
    finally:
        link.close()


def over_links(stack: ExitStack, folder: Path, asked: argparse.Namespace) -> list[Measured]:
    links = stack.enter_context(between_sites())
    wide = LocalCluster.up(folder / "wide", nodes=min(asked.nodes, 4), regions=2, shards=1)
    stack.callback(wide.down, delete=True)
    narrow = LocalCluster.up(folder / "narrow", nodes=2, servers=3, shards=1)
    stack.callback(narrow.down, delete=True)
    lead_here(wide)
    raw = RawStream(wide.servers)
    stack.callback(raw.close)
    lines = regions.reads(wide.url(), asked.rounds, "cluster")
    with of.connect(wide.url(), region=HERE) as db, of.connect(narrow.url()) as other:
        available, wide_map = db.map("puts-a", mode="available"), db.map("puts-c")
        narrow_map = other.map("puts")

        def put(m: Any, number: int = asked.puts) -> Callable[[], float]:
            return lambda: p50_ms(lambda at: m.put(f"k{at % 1000}", regions.VALUE), number)

        near: dict[str, list[float]] = {"available": [], "one region": []}
        far: list[float] = []
        put(available)(), put(narrow_map)()
        for _ in range(asked.rounds):
            near["available"].append(put(available)())
            near["one region"].append(put(narrow_map)())
            links.delay(asked.delay)
            time.sleep(1.0)
            far.append(put(available)())
            links.delay(0.0)
            time.sleep(1.0)
        links.delay(asked.delay)
        time.sleep(2.0)
        lead_here(wide)
        few = max(5, asked.puts // 5)
        consistent = regions.in_turn(
            asked.rounds, {"put": put(wide_map, few), "raw": lambda: raw.publish(few)}
        )
        links.delay(0.0)
    delay = f"{asked.delay:g} ms"
    return [
        *lines,
        ratio_line(
            "cluster: available put / put of a one-region cluster",
            near["available"],
            near["one region"],
            1.2,
            unit="ms",
        ),
        ratio_line(
            f"cluster: available put, links of {delay} / none", far, near["available"], 1.2, unit="ms"
        ),
        ratio_line(
            f"cluster: consistent put / raw ack, links of {delay}",
            consistent["put"],
            consistent["raw"],
            1.2,
            unit="ms",
        ),
    ]


def idle(folder: Path, asked: argparse.Namespace) -> list[Measured]:
    cluster = LocalCluster.up(folder / "idle", nodes=asked.nodes, regions=2)
    try:
        pids = [one.pid for one in (*cluster.nodes, *cluster.servers.servers) if one.pid is not None]
        time.sleep(SETTLE_S)
        began_s, before = time.monotonic(), sum(map(processor_s, pids))
        time.sleep(IDLE_S)
        share = (sum(map(processor_s, pids)) - before) / (time.monotonic() - began_s)
        memory_gb = sum(int(status(pid)["VmRSS"].split()[0]) for pid in pids) / 1024**2
    finally:
        cluster.down(delete=True)
    what = f"{len(pids) - asked.nodes} servers and {asked.nodes} nodes idle"
    return [
        Measured(f"{what}, % of a core", 100 * share, 15.0),
        Measured(f"{what}, GB", memory_gb, 1.2),
    ]


def steps(
    stack: ExitStack, folder: Path, asked: argparse.Namespace
) -> dict[str, Callable[[], list[Measured]]]:
    """The parts by their names."""
    return {
        "links": lambda: over_links(stack, folder, asked),
        "idle": lambda: idle(folder, asked),
    }
