"""Eight writers at once: does anyone wait for long, beyond what the disk costs?

Run: ``python benches/stalls.py [--seconds 2] [--rounds 3] [--writers 8]``. Each of eight processes, and then of eight threads,
puts one key after another as fast as it can, and the latency of every put is kept. Next to them runs, on the same folder
(ONEFOLD_BENCH_DIR), one process that only writes 4 KB and calls ``fdatasync``. In turn (disk, processes, threads,
disk, ...), since the disk of a machine that does other work too is not the same all the time.

Target: at the 99th percentile no put stalls for more than 100 ms beyond what syncing costs, that is beyond its turn among
eight: 8 x the 99th percentile of fdatasync alone. And nobody starves: the one that does least does half of the mean.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import onefold as of
from common import data_dir

STALL_MS = 100.0
SHARE_MIN = 0.5


def latencies(step: Callable[[int], object], seconds: float) -> list[float]:
    """Milliseconds that each call took."""
    found = []
    begin = time.perf_counter()
    end, number = begin + seconds, 0
    while begin < end:
        step(number)
        now = time.perf_counter()
        found.append((now - begin) * 1000)
        begin, number = now, number + 1
    return found


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of all is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def synced(folder: Path, seconds: float) -> list[float]:
    """The disk alone."""
    fd = os.open(folder / "synced", os.O_CREAT | os.O_WRONLY)

    def step(number: int) -> None:
        os.pwrite(fd, b"x" * 4096, number % 1000 * 4096)
        os.fdatasync(fd)

    try:
        return latencies(step, seconds)
    finally:
        os.close(fd)


def write_as_process(folder: str, name: str, seconds: float) -> None:
    """One writing process: says when it is ready, begins on a word, and gives its latencies."""
    with of.connect(folder) as db:
        m = db.map("m")
        m[name] = 0
        print("ready", flush=True)
        sys.stdin.readline()
        print(json.dumps(latencies(lambda number: m.put((name, number % 1000), number), seconds)))


def by_processes(folder: Path, writers: int, seconds: float) -> list[list[float]]:
    """The latencies of each of so many processes."""
    of.connect(folder).close()
    command = [sys.executable, __file__, "--child", str(folder), "--seconds", str(seconds)]
    started = [
        subprocess.Popen(
            [*command, "--name", f"w{n}"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for n in range(writers)
    ]
    try:
        for process in started:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit("a writing process did not start")
        for process in started:
            if process.stdin is not None:
                process.stdin.write("go\n")
                process.stdin.flush()
        return [json.loads(process.communicate()[0]) for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def by_threads(folder: Path, writers: int, seconds: float) -> list[list[float]]:
    """The same of threads of one process."""
    found: list[list[float]] = [[] for _ in range(writers)]
    ready = threading.Barrier(writers)
    with of.connect(folder) as db:
        m = db.map("m")

        def run(n: int) -> None:
            ready.wait()
            found[n] = latencies(lambda number: m.put((f"w{n}", number % 1000), number), seconds)

        threads = [threading.Thread(target=run, args=(n,)) for n in range(writers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return found


def report(what: str, each: list[list[float]], sync_p99: float) -> bool:
    """One line, and whether the target is met."""
    together = [latency for one in each for latency in one]
    shares = [len(one) / statistics.mean(map(len, each)) for one in each]
    p99 = percentile(together, 0.99)
    stall = p99 - len(each) * sync_p99
    met = len(each) == 1 or (stall <= STALL_MS and min(shares) >= SHARE_MIN)
    p50 = percentile(together, 0.5)
    line = f"{what:16} {len(together):8} times   p50 {p50:8.2f} ms   p99 {p99:8.2f} ms   max {max(together):8.2f} ms"
    if len(each) > 1:
        verdict = "met" if met else "missed"
        line += (
            f"   beyond syncing {max(stall, 0.0):7.2f} ms   least share {min(shares):4.2f}   target {verdict}"
        )
    print(line)
    return met


def add(to: list[list[float]], more: list[list[float]]) -> None:
    """What each measured in one more round."""
    for one, found in zip(to, more, strict=True):
        one += found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="w", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        write_as_process(args.child, args.name, args.seconds)
        return
    disk: list[list[float]] = [[]]
    processes: list[list[float]] = [[] for _ in range(args.writers)]
    threads: list[list[float]] = [[] for _ in range(args.writers)]
    with tempfile.TemporaryDirectory(dir=data_dir()) as name:
        folder = Path(name)
        for _ in range(args.rounds):
            add(disk, [synced(folder, args.seconds)])
            add(processes, by_processes(folder / "p", args.writers, args.seconds))
            add(threads, by_threads(folder / "t", args.writers, args.seconds))
    sync_p99 = percentile(disk[0], 0.99)
    report("fdatasync alone", disk, sync_p99)
    met = report(f"{args.writers} processes", processes, sync_p99)
    met &= report(f"{args.writers} threads", threads, sync_p99)
    raise SystemExit(0 if met else 1)


if __name__ == "__main__":
    main()
