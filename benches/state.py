"""Shared state on the embedded engine, next to raw SQLite, the disk, and peers, in one run and in turn.

Run: ``python benches/state.py [--seconds 2] [--rounds 3]``. Peers are measured too when ``ONEFOLD_BENCH_PEERS`` names a Python
with any of ``redis diskcache etcd3 'protobuf<3.21' huey litequeue``, and ``redis-server``, ``etcd`` are on the PATH (Debian has
both).
Redis runs with ``appendonly yes, appendfsync always``; etcd as one member with its defaults, which sync every write; diskcache
with its defaults, which do not sync. Everything is on the disk of ``ONEFOLD_BENCH_DIR``.

Targets: a put ≥ 55 % of raw SQLite WAL/FULL commits on a disk that syncs 10,000 times a second; 8 threads ≥ 3.2 × one;
put_many(1000) ≥ 60k keys/s; strong get ≥ 60k/s; hot session get ≥ 300k/s. A small transaction ≥ 50 % of a put; queue put + get
+ acknowledge ≥ 1k/s, and ≥ 1.0 × Huey on SQLite; with 10M keys the same rates within 2 × and an open in < 1 s (``--keys``).
Rates are of this machine; the ratios are what is claimed. Each is the median of the ratios of the rounds, since two that are
measured one after the other have the same disk. Next to the rates stands the processor time of an operation.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import apsw

import onefold as of
from common import data_dir
from state_peers import VALUE, rate

PEERS = os.environ.get("ONEFOLD_BENCH_PEERS")
Measure = Callable[[float], float]
TARGETS = {"huey queue": 1.0}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"no server answers on port {port}")


@contextmanager
def serving(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        yield
    finally:
        process.terminate()
        process.wait()


def redis(folder: Path, stack: ExitStack) -> str:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    stack.enter_context(serving([*command, "--appendonly", "yes", "--appendfsync", "always"], port))
    return str(port)


def etcd(folder: Path, stack: ExitStack) -> str:
    port, peer = free_port(), free_port()
    urls = [f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"]
    command = ["etcd", "--data-dir", str(folder), "--listen-client-urls", urls[0]]
    command += ["--advertise-client-urls", urls[0], "--listen-peer-urls", urls[1]]
    command += ["--initial-advertise-peer-urls", urls[1], "--initial-cluster", f"default={urls[1]}"]
    stack.enter_context(serving(command, port))
    return str(port)


def peer(name: str, where: str, measure: str) -> Measure:
    script = Path(__file__).with_name("state_peers.py")

    def run(seconds: float) -> float:
        command = [str(PEERS), str(script), name, where, measure, str(seconds)]
        return float(json.loads(subprocess.check_output(command))["rate"])

    return run


def has(module: str) -> bool:
    """Whether the peers' Python has it."""
    command = [str(PEERS), str(Path(__file__).with_name("state_peers.py")), "--has", module]
    return bool(PEERS) and subprocess.run(command, capture_output=True, check=False).returncode == 0


def fdatasync(folder: Path) -> Measure:
    fd = os.open(folder / "synced", os.O_CREAT | os.O_WRONLY)

    def step(n: int) -> None:
        os.pwrite(fd, VALUE * 60, (n % 1000) * 4096)
        os.fdatasync(fd)

    return lambda seconds: rate(step, seconds)


def raw_sqlite(folder: Path) -> Measure:
    con = apsw.Connection(str(folder / "raw.db"))
    con.execute("PRAGMA journal_mode=WAL").fetchall()
    con.execute("PRAGMA synchronous=FULL")
    con.execute("CREATE TABLE IF NOT EXISTS kv(k BLOB PRIMARY KEY, v BLOB) WITHOUT ROWID")
    sql = "INSERT OR REPLACE INTO kv VALUES(?, ?)"
    return lambda seconds: rate(lambda n: con.execute(sql, (b"k%d" % (n % 5000), VALUE)), seconds)


def threads(step: Callable[[int], object], number: int) -> Measure:
    def measure(seconds: float) -> float:
        rates: list[float] = []
        at = [
            threading.Thread(target=lambda i=i: rates.append(rate(lambda n: step(n * number + i), seconds)))
            for i in range(number)
        ]
        for thread in at:
            thread.start()
        for thread in at:
            thread.join()
        return sum(rates)

    return measure


def own(db: of.Database) -> dict[str, Measure]:
    m, q = db.map("bench"), db.queue("bench")
    m["hot"] = VALUE
    batches = [{("m", b, k): VALUE for k in range(1000)} for b in range(20)]

    def put(n: int) -> None:
        m.put(f"k{n % 5000}", VALUE)

    def transaction(n: int) -> None:
        with db.transaction() as tx:
            a = tx.map("bench")
            a[f"t{n % 5000}"] = a["hot"]
            a["u"] = n

    def queue(n: int) -> None:
        q.put(VALUE)
        with q.get(timeout=0) as message:
            assert message is not None

    return {
        "put": lambda s: rate(put, s),
        "put, 8 threads": threads(put, 8),
        "put_many(1000), keys": lambda s: rate(lambda n: m.put_many(batches[n % 20]), s, 1000),
        "strong get": lambda s: rate(lambda _: m.get("hot"), s),
        "hot session get": lambda s: rate(lambda _: m.get("hot", consistency="session"), s),
        "transaction": lambda s: rate(transaction, s),
        "queue put + get": lambda s: rate(queue, s),
    }


def fill(db: of.Database, keys: int) -> float:
    m, start = db.map("big"), time.perf_counter()
    for at in range(0, keys, 10_000):
        m.put_many({("key", n): VALUE for n in range(at, min(keys, at + 10_000))})
    return keys / (time.perf_counter() - start)


def with_keys(space: Path, keys: int, seconds: float) -> dict[str, float]:
    """Rates with that many keys in the map, at random places of it, and how long opening takes."""
    import random

    found: dict[str, float] = {}
    with of.connect(space) as db:
        if len(db.map("big")) < keys:
            found["fill, keys"] = fill(db, keys)
    start = time.perf_counter()
    with of.connect(space) as db:
        m, rng = db.map("big"), random.Random(1)
        assert m.get(("key", 0)) == VALUE
        found["open, s"] = time.perf_counter() - start
        found["put"] = rate(lambda _: m.put(("key", rng.randrange(keys)), VALUE), seconds)
        found["strong get"] = rate(lambda _: m.get(("key", rng.randrange(keys))), seconds)
        found["put_many(1000), keys"] = rate(
            lambda n: m.put_many({("key", rng.randrange(keys)): VALUE for _ in range(1000)}), seconds, 1000
        )
    return found


def raw_with_keys(file: Path, keys: int, seconds: float) -> dict[str, float]:
    """The same of a table of raw SQLite, WAL and ``synchronous=FULL``, with the same cache: what so many pages cost anybody."""
    import random

    con, rng = apsw.Connection(str(file)), random.Random(1)
    con.execute("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA cache_size=-8000")
    con.execute("CREATE TABLE IF NOT EXISTS kv(key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
    upsert = "INSERT INTO kv VALUES(?, ?) ON CONFLICT DO UPDATE SET value=excluded.value"

    def key(n: int) -> bytes:
        return b"key%012d" % n

    def write(items: list[tuple[bytes, bytes]]) -> None:
        con.execute("BEGIN IMMEDIATE")
        con.executemany(upsert, items)
        con.execute("COMMIT")

    def new(n: int) -> bytes:  # SQLite writes no page for a value that is there already
        return b"%08d" % n + VALUE[8:]

    for at in range(0, keys, 10_000):
        write([(key(n), VALUE) for n in range(at, min(keys, at + 10_000))])
    found = {
        "put": rate(lambda n: write([(key(rng.randrange(keys)), new(n))]), seconds),
        "strong get": rate(
            lambda _: con.execute("SELECT value FROM kv WHERE key=?", (key(rng.randrange(keys)),)).get,
            seconds,
        ),
        "put_many(1000), keys": rate(
            lambda n: write([(key(rng.randrange(keys)), new(n)) for _ in range(1000)]), seconds, 1000
        ),
    }
    con.close()
    return found


def at_both_sizes(keys: int, seconds: float) -> None:
    """Rates with few keys and with many, of Onefold and of raw SQLite: how much of them is left."""
    kinds: dict[str, Callable[[Path, int, float], dict[str, float]]] = {
        "Onefold": with_keys,
        "raw SQLite": raw_with_keys,
    }
    for kind, measure in kinds.items():
        found = {}
        for count in (10_000, keys):
            found[count] = measure(data_dir() / f"{kind.split()[0].lower()}-keys-{count}", count, seconds)
            print(f"{kind}, {count:,} keys:", {name: round(value, 3) for name, value in found[count].items()})
        left = {
            name: found[keys][name] / found[10_000][name]
            for name in ("put", "strong get", "put_many(1000), keys")
        }
        print(f"{kind}, left of it:", {name: round(share, 2) for name, share in left.items()}, "(target 0.5)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keys", type=int, default=0, help="measure a map with this many keys instead")
    options = parser.parse_args()
    if options.keys:
        at_both_sizes(options.keys, options.seconds)
        return
    folder = Path(tempfile.mkdtemp(dir=data_dir()))
    try:
        with ExitStack() as stack:
            measures: dict[str, Measure] = {
                "fdatasync": fdatasync(folder),
                "raw SQLite commit": raw_sqlite(folder),
            }
            db = stack.enter_context(of.connect(folder / "space"))
            measures |= own(db)
            for name in filter(has, ("huey", "litequeue")):
                measures[f"{name} queue"] = peer(name, str(folder / name), "queue")
            if has("redis") and shutil.which("redis-server"):
                where = redis(folder, stack)
                for name in ("put", "put_many", "get", "queue"):
                    measures[f"redis {name}"] = peer("redis", where, name)
            if has("etcd3") and shutil.which("etcd"):
                where = etcd(folder / "etcd", stack)
                for name in ("put", "get", "transaction"):
                    measures[f"etcd {name}"] = peer("etcd", where, name)
            if has("diskcache"):
                for name in ("put", "get"):
                    measures[f"diskcache {name}"] = peer("diskcache", str(folder / "dc"), name)
            for name in ("raw SQLite commit", "put"):
                measures[name](
                    options.seconds
                )  # until their write-ahead logs have been written once, each sync extends a file
            rates: dict[str, list[float]] = {name: [] for name in measures}
            processor: dict[str, list[float]] = {name: [] for name in measures}
            for _ in range(options.rounds):
                for name, measure in measures.items():
                    busy_s, start = time.process_time(), time.perf_counter()
                    rates[name].append(measure(options.seconds))
                    busy_s, took_s = time.process_time() - busy_s, time.perf_counter() - start
                    processor[name].append(busy_s / (rates[name][-1] * took_s))
    finally:
        shutil.rmtree(folder)
    report(rates, processor)


def report(rates: dict[str, list[float]], processor: dict[str, list[float]]) -> None:
    found = {name: statistics.median(each) for name, each in rates.items()}
    peers = ("huey", "litequeue", "redis", "etcd", "diskcache")
    for name, value in found.items():
        own_time = "" if name.startswith(peers) else f"{statistics.median(processor[name]) * 1e6:9.1f} µs"
        print(f"{name:24} {value:12,.0f} /s {own_time}")
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")

    def ratio(ours: str, theirs: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))

    checks = [
        ("put / raw SQLite commit", ratio("put", "raw SQLite commit"), 0.55),
        ("8 threads / one", ratio("put, 8 threads", "put"), 3.2),
        ("put_many keys/s", found["put_many(1000), keys"], 60_000),
        ("strong get /s", found["strong get"], 60_000),
        ("hot session get /s", found["hot session get"], 300_000),
        ("transaction / put", ratio("transaction", "put"), 0.5),
        ("queue put + get /s", found["queue put + get"], 1_000),
    ]
    for peer_name, ours in (
        ("huey queue", "queue put + get"),
        ("litequeue queue", "queue put + get"),
        ("redis put", "put"),
        ("redis put_many", "put_many(1000), keys"),
        ("redis get", "strong get"),
        ("redis queue", "queue put + get"),
        ("etcd put", "put"),
        ("etcd get", "strong get"),
        ("etcd transaction", "transaction"),
        ("diskcache put", "put"),
        ("diskcache get", "hot session get"),
    ):
        if peer_name in found:
            checks.append((f"{ours} / {peer_name}", ratio(ours, peer_name), TARGETS.get(peer_name, 0.0)))
    for name, value, target in checks:
        wanted = f"(target {target:,g}: {'met' if value >= target else 'MISSED'})" if target else ""
        print(f"{name:40} {value:12,.2f} {wanted}")


if __name__ == "__main__":
    sys.exit(main())
