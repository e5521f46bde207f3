"""Shared state on a real cluster of this machine (three servers, three nodes), next to raw JetStream and three members of etcd.

Run: ``python benches/cluster.py [--seconds 5] [--rounds 3]``. etcd is measured too when ``ONEFOLD_BENCH_PEERS`` names a Python
with ``etcd3 'protobuf<3.21'`` and ``etcd`` is on the PATH (Debian: etcd-server). Everything is on the disk of
``ONEFOLD_BENCH_DIR``; all servers sync every write. Servers, nodes and clients share this machine's processors.

Targets: a durable put p50 ≤ 1.4 × the raw publish ack; a strong read ≤ 2 ×; 4 client processes ≥ 20k durable puts/s in all
while the nodes apply them, and ≥ 10 × etcd's; local session reads ≥ 300k/s; catching up ≥ 60k new keys/s per core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import onefold as of
from common import data_dir
from state import free_port
from state_peers import VALUE, rate

PEERS = os.environ.get("ONEFOLD_BENCH_PEERS")
CLIENTS = 4
BATCH = 100
THREADS = 16


# -- what runs


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[str, list[int]]]:
    """A cluster as ``onefold up`` makes it: its URL and the pids of its nodes."""
    command = [sys.executable, "-m", "onefold.cli"]
    told = json.loads(
        subprocess.check_output([*command, "up", "--nodes", "3", "--dir", str(folder), "--json"])
    )
    try:
        yield told["url"], [each["pid"] for each in told["nodes"]]
    finally:
        subprocess.run(
            [*command, "down", "--dir", str(folder), "--delete"], check=True, stdout=subprocess.DEVNULL
        )


@contextmanager
def etcd(folder: Path) -> Iterator[list[int]]:
    """Three members; their client ports."""
    ports = [(free_port(), free_port()) for _ in range(3)]
    members = ",".join(f"m{n}=http://127.0.0.1:{peer}" for n, (_, peer) in enumerate(ports))
    with ExitStack() as stack:
        commands = []
        for n, (port, peer) in enumerate(ports):
            command = ["etcd", "--name", f"m{n}", "--data-dir", str(folder / f"m{n}")]
            command += ["--listen-client-urls", f"http://127.0.0.1:{port}"]
            command += ["--advertise-client-urls", f"http://127.0.0.1:{port}"]
            command += ["--listen-peer-urls", f"http://127.0.0.1:{peer}"]
            command += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
            commands.append(([*command, "--initial-cluster", members], port))
        started = [stack.enter_context(_starting(command)) for command, _ in commands]
        assert len(started) == 3
        for _, port in commands:
            _await_health(port)
        yield [port for _, port in commands]


@contextmanager
def _starting(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _await_health(port: int) -> None:
    import urllib.request

    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
                if json.loads(answer.read()).get("health") == "true":
                    return
        except (OSError, ValueError):
            pass
        time.sleep(0.1)
    raise SystemExit("etcd does not become healthy")


# -- latencies


def p50_ms(step: Callable[[], object], number: int) -> float:
    times = []
    for _ in range(number):
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


class RawStream:
    """Publishing to a stream like a shard's log, acknowledged one by one, with nats-py alone."""

    def __init__(self, folder: Path) -> None:
        from onefold.cluster.servers import LocalServers

        self._servers = LocalServers.open(folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._nats = self.run(self._connect())

    def run(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connect(self):  # type: ignore[no-untyped-def]
        import nats

        ports = [server.port for server in self._servers.servers]
        seed = self._servers.seed_file("raw", "admin")
        self._servers.url("raw", "admin")
        connection = await nats.connect(
            [f"nats://127.0.0.1:{port}" for port in ports],
            nkeys_seed=str(seed),
            inbox_prefix="_INBOX_admin",
        )
        subject = "of.raw.x.log.0"
        made = {"name": "RAW", "subjects": [subject], "num_replicas": 3, "storage": "file"}
        made |= {"discard": "new", "deny_delete": True, "allow_direct": True}
        answer = json.loads(
            (
                await connection.request("$JS.API.STREAM.CREATE.RAW", json.dumps(made).encode(), timeout=10)
            ).data
        )
        assert "error" not in answer, answer
        return connection

    def p50_ms(self, number: int) -> float:
        async def measure() -> float:
            times = []
            for _ in range(number):
                began = time.perf_counter()
                await self._nats.request("of.raw.x.log.0", VALUE * 3, timeout=10)
                times.append(time.perf_counter() - began)
            return statistics.median(times) * 1000

        return float(self.run(measure()))

    def close(self) -> None:
        self.run(self._nats.close())
        self._loop.call_soon_threadsafe(self._loop.stop)


@contextmanager
def halted(pids: list[int]) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def latencies(url: str, folder: Path, rounds: int, nodes: list[int]) -> None:
    """``nodes``: their pids; puts are measured again while these take no part of the processors."""
    raw = RawStream(folder)
    with of.connect(url) as local, of.connect(url, replicas="remote") as remote:
        mine, theirs = local.map("latency"), remote.map("latency")
        count = iter(range(10**9))
        steps = {
            "durable put, replica here": lambda: mine.put(next(count) % 1000, VALUE),
            "durable put, no replica": lambda: theirs.put(next(count) % 1000, VALUE),
            "strong get, replica here": lambda: mine.get(1),
            "strong get, no replica": lambda: theirs.get(1),
            "session get, no replica": lambda: theirs.get(1, consistency="session"),
        }
        alone = "durable put, the nodes halted"
        found: dict[str, list[float]] = {name: [] for name in ("raw publish ack", *steps, alone)}
        for step in steps.values():
            p50_ms(step, 50)
        for _ in range(rounds):
            found["raw publish ack"].append(raw.p50_ms(200))
            for name, step in steps.items():
                found[name].append(p50_ms(step, 200))
            with halted(nodes):
                found[alone].append(p50_ms(steps["durable put, replica here"], 200))
    raw.close()
    base = statistics.median(found["raw publish ack"])
    for name, values in found.items():
        median = statistics.median(values)
        print(f"{name:38} p50 {median:7.3f} ms   {median / base:5.2f} x the raw ack")


# -- rates


def client_rate(mode: str, where: str, seconds: float) -> None:
    """In a process of its own: wait for a line on stdin, then write as fast as it goes; prints keys/s."""
    name = f"{mode}-{os.getpid()}"
    if mode == "etcd":
        raise SystemExit("peers run in state_peers.py")
    with of.connect(where, replicas="remote") as db:
        m = db.map(name)
        m.put("begin", 1)
        print("ready", flush=True)
        sys.stdin.readline()
        began = time.perf_counter()
        if mode == "batches":
            per_second = rate(
                lambda n: m.put_many({(n % 50, k): VALUE for k in range(BATCH)}), seconds, BATCH
            )
        else:
            per_second = _threaded(m, seconds)
        print(json.dumps({"rate": per_second, "seconds": time.perf_counter() - began}), flush=True)


def _threaded(m: of.Map[object], seconds: float) -> float:
    counts = [0] * THREADS
    end = time.perf_counter() + seconds

    def work(at: int) -> None:
        while time.perf_counter() < end:
            m.put((at, counts[at] % 1000), VALUE)
            counts[at] += 1

    threads = [threading.Thread(target=work, args=(at,)) for at in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def together(commands: list[list[str]]) -> float:
    """Start all, let them begin at once, and add up their rates."""
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in processes:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise SystemExit(f"a client did not begin: {process.args}")
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    rates = []
    for process in processes:
        assert process.stdout is not None
        rates.append(float(json.loads(process.stdout.readline())["rate"]))
        process.wait()
    return sum(rates)


def rates(url: str, folder: Path, seconds: float, stack: ExitStack) -> None:
    mine = [sys.executable, __file__, "--client"]
    found = {}
    for mode, what in (
        ("batches", f"put_many({BATCH})"),
        ("single", f"single puts of {THREADS} threads each"),
    ):
        found[mode] = together([[*mine, mode, url, str(seconds)] for _ in range(CLIENTS)])
        with of.connect(url, replicas="remote") as db:
            began = time.perf_counter()
            db.map("after").put("all", 1)
            db.map("after").get("all")
            behind = time.perf_counter() - began
        print(
            f"{CLIENTS} clients, {what:34} {found[mode]:9,.0f} keys/s; a write after it is read {behind:.2f} s later"
        )
    if PEERS and shutil.which("etcd"):
        ports = stack.enter_context(etcd(folder / "etcd"))
        peer = [PEERS, str(Path(__file__).with_name("state_peers.py")), "etcd"]
        commands = [[*peer, str(ports[n % 3]), "put", str(seconds), "--wait"] for n in range(CLIENTS)]
        theirs = together(commands)
        print(
            f"{CLIENTS} etcd clients {theirs:9,.0f} puts/s: "
            + ", ".join(f"{mode} {value / theirs:.1f} x" for mode, value in found.items())
        )


def reads(url: str, seconds: float) -> None:
    with of.connect(url) as db:
        m = db.map("hot")
        m.put("k", VALUE)
        session = rate(lambda _: m.get("k", consistency="session"), seconds, 1)
        prefix = rate(lambda _: m.get("k", consistency="prefix"), seconds, 1)
    print(f"local reads: hot session {session:,.0f}/s, prefix {prefix:,.0f}/s")


def catch_up(url: str, keys: int) -> None:
    """A replica that has nothing yet follows a log of new keys."""
    with of.connect(url, replicas="remote") as db:
        m = db.map("catch-up")
        for start in range(0, keys, 1000):
            m.put_many({(start, k): VALUE for k in range(1000)})
    with tempfile.TemporaryDirectory(dir=data_dir()) as cache:
        done = subprocess.run(
            [sys.executable, __file__, "--catch-up", url],
            env={**os.environ, "ONEFOLD_CACHE": cache},
            capture_output=True,
            text=True,
            check=True,
        )
    told = json.loads(done.stdout.splitlines()[-1])
    print(
        f"catching up {keys:,} keys from nothing: {told['seconds']:.2f} s, {told['cpu_s']:.2f} s of one core: "
        f"{keys / told['cpu_s']:,.0f} keys/s per core (the log holds the other runs' keys too: {told['offset']:,} records)"
    )


def follow(url: str) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    with of.connect(url) as db:
        db.map("catch-up").get((0, 0))
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "offset": db._shards[0].applied}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=300_000, help="for catching up")
    parser.add_argument("--only", help="latencies, rates, reads or catch-up")
    parser.add_argument("--client", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--catch-up", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.client:
        client_rate(asked.client[0], asked.client[1], float(asked.client[2]))
        return
    if asked.catch_up:
        follow(asked.catch_up)
        return
    folder = Path(tempfile.mkdtemp(dir=data_dir(), prefix="cluster-"))
    try:
        with ExitStack() as stack:
            url, nodes = stack.enter_context(cluster(folder / "up"))
            os.environ["ONEFOLD_CACHE"] = str(folder / "cache")
            for name, measure in (
                ("catch-up", lambda: catch_up(url, asked.keys)),
                ("latencies", lambda: latencies(url, folder / "up", asked.rounds, nodes)),
                ("reads", lambda: reads(url, asked.seconds)),
                ("rates", lambda: rates(url, folder, asked.seconds, stack)),
            ):
                if asked.only in (None, name):
                    measure()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
