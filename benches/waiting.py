"""What waiting costs: threads and processor time of many idle waits, and how soon one of them wakes.

    python benches/waiting.py                            # of this checkout
    python benches/waiting.py --before ../other          # and of another one, in turn

Each kind of wait runs in a process of its own, in an embedded space: 500 tasks of ``onefold.aio`` wait, each for something of its
own (``watch``, ``get``, ``lock``, ``follow``, ``consume``), or all for the same (``watch of one map``, ``get of one queue``).
Then, in this order:

- threads: of the process while nothing happens;
- idle: of a processor core, measured over ``--seconds`` in which nothing is written;
- unrelated put: processor time for each put into another map, beyond what the same put costs where nobody waits;
- wake-up: from the moment before the write that ends a wait to the moment at which the task that waited for it has the result,
  with the commit in between (a put where all watch the same map ends 500 waits: then to the first).

Target: for 500 idle watches, and for 500 idle gets, at most 40 threads and 0.02 of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

KINDS = ("watch", "get", "lock", "follow", "consume", "watch of one map", "get of one queue")
THREADS_MAX, CORES_MAX = 40, 0.02
TARGETS = ("watch", "get", "watch of one map", "get of one queue")
PUTS = 200

Woken = Callable[[int], None]


async def watching(db: Any, name: str, number: int, woken: Woken) -> None:
    async for _ in db.map(name).watch():
        woken(number)


async def getting(db: Any, name: str, number: int, woken: Woken) -> None:
    while True:
        async with db.queue(name).get():
            woken(number)


async def locking(db: Any, name: str, number: int, woken: Woken) -> None:
    async with db.lock(name):
        woken(number)


async def following(db: Any, name: str, number: int, woken: Woken) -> None:
    async for _ in db.stream(name, partitions=1).read(follow=True):
        woken(number)


async def consuming(db: Any, name: str, number: int, woken: Woken) -> None:
    async with db.stream(name, partitions=1).consumer("group") as consumer:
        async for _ in consumer:
            woken(number)


WAITS = {
    "watch": watching,
    "get": getting,
    "lock": locking,
    "follow": following,
    "consume": consuming,
}


async def ending(db: Any, wait: str, name: str, held: dict[str, Any]) -> Callable[[], Awaitable[object]]:
    """What ends such a wait."""
    if wait == "watch":
        return lambda: db.map(name).put("key", 1)
    if wait == "get":
        return lambda: db.queue(name).put(1)
    if wait == "lock":

        async def release() -> None:
            await held[name].__aexit__(None, None, None)

        return release
    return lambda: db.stream(name, partitions=1).append(1)


async def until_quiet() -> None:
    """Until this process has next to nothing to do, for at most half a minute."""
    end_s = time.monotonic() + 30
    while time.monotonic() < end_s:
        used_s = time.process_time()
        await asyncio.sleep(0.5)
        if time.process_time() - used_s < 0.02:
            return


async def put_cost(db: Any) -> float:
    used_s = time.process_time()
    for number in range(PUTS):
        await db.map("unrelated").put(number % 10, number)
    await asyncio.sleep(0.2)
    return (time.process_time() - used_s) / PUTS


async def measure(kind: str, waits: int, seconds: float, folder: str) -> dict[str, float]:
    import onefold as of

    wait = kind.split(maxsplit=1)[0]
    async with of.aio.connect(folder) as db:
        for _ in range(2):
            alone_s = await put_cost(db)
        names = [f"{wait}{number if ' of one ' not in kind else ''}" for number in range(waits)]
        held: dict[str, Any] = {}
        if wait == "lock":
            for name in names:
                held[name] = db.lock(name, ttl=3600)
                await held[name].__aenter__()
        if wait in ("follow", "consume"):
            for name in names:
                await db.stream(name, partitions=1).append(0)
        arrived: asyncio.Queue[float] = asyncio.Queue()
        tasks = [
            asyncio.create_task(
                WAITS[wait](db, name, number, lambda _: arrived.put_nowait(time.perf_counter()))
            )
            for number, name in enumerate(names)
        ]
        await asyncio.sleep(1)
        await until_quiet()
        while not arrived.empty():
            arrived.get_nowait()
        threads = threading.active_count()
        used_s = time.process_time()
        await asyncio.sleep(seconds)
        idle = (time.process_time() - used_s) / seconds
        unrelated_s = await put_cost(db)
        latencies = []
        for number in range(PUTS):
            end = await ending(db, wait, names[number * 7 % waits], held)
            began_s = time.perf_counter()
            await end()
            latencies.append(await asyncio.wait_for(arrived.get(), 60) - began_s)
            if kind == "watch of one map":
                for _ in range(waits - 1):
                    await arrived.get()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    percentiles = statistics.quantiles(latencies, n=100)
    return {
        "threads": threads,
        "idle": idle,
        "unrelated_ms": 1000 * (unrelated_s - alone_s),
        "p50_ms": 1000 * percentiles[49],
        "p99_ms": 1000 * percentiles[98],
    }


def run(kind: str, checkout: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [
        sys.executable,
        __file__,
        "--one",
        kind,
        "--waits",
        str(args.waits),
        "--seconds",
        str(args.seconds),
    ]
    env = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", default=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--waits", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asyncio.run(measure(args.one, args.waits, args.seconds, folder))))
        return
    checkouts = {"now": Path(__file__).parents[1]}
    if args.before:
        checkouts = {"before": args.before, **checkouts}
    print(f"{args.waits} waits             threads   idle cores   unrelated put   wake-up p50      p99")
    missed = False
    for kind in args.kinds:
        for name, checkout in checkouts.items():
            found = run(kind, checkout.resolve(), args)
            print(
                f"{kind:<17}{name:<7} {found['threads']:6.0f} {found['idle']:12.4f} {found['unrelated_ms']:12.2f} ms"
                f" {found['p50_ms']:11.2f} ms {found['p99_ms']:7.2f} ms",
                flush=True,
            )
        if kind in TARGETS and (found["threads"] > THREADS_MAX or found["idle"] > CORES_MAX):
            missed = True
    if missed:
        raise SystemExit(f"target missed: at most {THREADS_MAX} threads and {CORES_MAX} of a core")


if __name__ == "__main__":
    main()
