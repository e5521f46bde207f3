"""A job of Python functions on a real cluster of this machine, done by one worker in all and by two: how much faster two are.

Run: ``python benches/cluster_jobs.py [--mb 96] [--rounds 3]``. Three servers as ``onefold up`` starts them, and next to them two
spaces: one whose single node has one worker, one with two such nodes. The program that submits works on nothing itself, and
asks for the whole result. Both get the same job in turn, each time into a new table, so that nothing is re-used. Servers, nodes,
workers and this program share the processors. Target: two workers ≥ 1.7 × as fast as one, on two processors. What two processes
without any of that make of the same lines is printed too: on a machine that does something else as well, it is less than 2.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import onefold as of
from common import THREADS, data_dir, source_text, together_s
from onefold import agg
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from state import free_port

WORD = re.compile(r"[A-Za-z_][A-Za-z_0-9]*")
READY_S = 60.0
PATIENCE_S = 900.0
END_S = 45.0
TARGET = 1.7


def facts(record: dict[str, Any]) -> dict[str, Any]:
    """What the job computes of a line, in Python alone: its longest word, and a checksum of its words one by one."""
    words = WORD.findall(record["line"])
    check = 0
    for word in words:
        check = zlib.crc32(word.encode(), check)
        for letter in word:
            check = (check * 31 + ord(letter)) & 0xFFFFFFFF
    return {"words": len(words), "longest": max(map(len, words), default=0), "check": check}


@contextmanager
def node(url: str, name: str, folder: Path) -> Iterator[int]:
    """A node with one worker, in a process of its own, that is ready; its pid."""
    port = free_port()
    command = [sys.executable, "-m", "onefold.cli", "node", "--url", url, "--name", name, "--workers", "1"]
    command += ["--dir", str(folder / name), "--http", f"127.0.0.1:{port}"]
    environment = {key: text for key, text in os.environ.items() if not key.startswith("ONEFOLD_")}
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        end = time.monotonic() + READY_S
        while not ready(port):
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"node {name} is not ready:\n{log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ready(port: int) -> bool:
    """What a node says itself."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.HTTPError, OSError):
        return False


def job_s(db: of.Database, source: Path, table: str, tasks: int) -> tuple[float, object]:
    """How long the job takes, from its submission to the result in this program; and the result."""
    began = time.perf_counter()
    rows = db.read_text(str(source / "*.txt")).map(facts)
    job = rows.group_by("longest").agg(n=agg.count(), words=agg.sum("words"), check=agg.max("check"))
    run = job.into(table).start(workers=0, target_splits=tasks)
    run.wait(PATIENCE_S)
    run.raise_if_failed()
    frame = run.result().to_polars().sort("longest")
    seconds = time.perf_counter() - began
    done = run.progress()
    if done.failed or done.reused or run.worker_pids:
        raise SystemExit(f"{table}: {done}, workers here: {run.worker_pids}")
    return seconds, frame.rows()


def plain(path: str, part: int, parts: int) -> None:
    """In a process of its own: compute every so-manieth line of a file once a line comes on stdin."""
    lines = Path(path).read_text("utf8").splitlines()[part::parts]
    print("ready", flush=True)
    sys.stdin.readline()
    for line in lines:
        facts({"line": line})
    print("done", flush=True)


def plain_s(path: Path, processes: int) -> float:
    """How long so many processes take for the lines of a file, once they have begun."""
    command = [sys.executable, __file__, "--plain", str(path)]
    return together_s([[*command, str(part), str(processes)] for part in range(processes)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=96, help="size of the input")
    parser.add_argument("--tasks", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plain", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        plain(args.plain[0], int(args.plain[1]), int(args.plain[2]))
        return
    source = source_text(args.mb)
    with tempfile.TemporaryDirectory(dir=data_dir(), prefix="cluster-jobs-") as made, ExitStack() as stack:
        folder = Path(made)
        os.environ |= {"ONEFOLD_CACHE": str(folder / "cache"), "ONEFOLD_PROGRESS": "0"}
        servers = LocalServers.start(folder / "servers", 3)
        stack.callback(servers.stop, delete=True)
        spaces = {}
        for workers, name in ((1, "one"), (2, "two")):
            set_up_space(servers.url(name, "admin"))
            for number in range(workers):
                stack.enter_context(node(servers.url(name, "node"), f"{name}-{number + 1}", folder))
            spaces[workers] = stack.enter_context(of.connect(servers.url(name)))
        seconds: dict[int, list[float]] = {workers: [] for workers in spaces}
        bare: dict[int, list[float]] = {1: [], 2: []}
        results = []
        for turn in range(args.rounds + 1):  # the first is for warming up
            for workers, db in spaces.items():
                took, result = job_s(db, source, f"t{turn}", args.tasks)
                results.append(result)
                if turn:
                    seconds[workers].append(took)
                    bare[workers].append(plain_s(sorted(source.glob("*.txt"))[0], workers))
        if any(result != results[0] for result in results):
            raise SystemExit("the results differ")
        one, two = (statistics.median(seconds[workers]) for workers in (1, 2))
        print(
            f"a job of Python functions over {args.mb} MB in {args.tasks} tasks on {THREADS} processors: 1 worker {one:.2f} s, "
            f"2 workers on 2 nodes {two:.2f} s: {one / two:.2f} x as fast   target >= {TARGET} x "
            f"(2 bare processes: {statistics.median(bare[1]) / statistics.median(bare[2]):.2f} x)"
        )


if __name__ == "__main__":
    main()
