"""What a program pays before its first result: importing, connecting to a new folder, and a re-run of a job with nothing new.

    python benches/starting.py                            # of this checkout
    python benches/starting.py --before ../other          # and of another one, in turn

Everything runs in fresh interpreters, which take turns, and everything that an interpreter does counts, so the same without
Onefold is taken off: of a re-run ``import polars``, of the others a temporary folder. ``floor`` imports what connecting cannot do
without (APSW, msgspec and the standard library's modules) and nothing of Onefold.

Two figures: processor time, which other work on the machine changes little, and seconds; of each the median and the smallest.
With PYTHONDONTWRITEBYTECODE every import compiles its source again, which is not what an installed package does; so byte code
is written for these runs, into a temporary folder.

Targets, compared with 0.2.0: a re-run ≤ 0.8 ×, connecting ≤ 0.67 ×.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import once
from overheads import small_files

FOLDER = "import tempfile\nwith tempfile.TemporaryDirectory() as d: "
CODES = {
    "import onefold": ("import onefold", "pass"),
    "floor": (
        f"import apsw, msgspec, pathlib, threading, json, hashlib, ctypes, mmap\n{FOLDER}pass",
        f"{FOLDER}pass",
    ),
    "connect": (
        f"import onefold\n{FOLDER}onefold.connect(d + '/s').close()",
        f"{FOLDER}pass",
    ),
}
JOB = """
import os
import polars as pl
import onefold as of
from onefold import agg
with of.connect(os.environ["SPACE"]) as db:
    lines = db.read_text(os.environ["INPUT"] + "/*.txt")
    words = lines.select(pl.col("line").str.split(" ").alias("word")).explode("word")
    run = words.group_by("word").agg(n=agg.count()).into("words").run(progress=False)
    frame = run.result().to_polars()
    progress = run.progress()
print([progress.reused, progress.total, frame.height])
"""
Cost = tuple[float, float]
"""Milliseconds of processor time, and of time."""


def cost(code: str, env: dict[str, str]) -> Cost:
    """What a whole interpreter costs that runs this code."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, env=env, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used * 1000, seconds * 1000


def check_nothing_new(code: str, env: dict[str, str]) -> None:
    done = subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True, text=True)
    reused, total, _ = json.loads(done.stdout)
    assert reused == total, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, help="another checkout to compare with")
    parser.add_argument("--runs", type=int, default=21)
    args = parser.parse_args()
    checkouts = {"now": Path(__file__).parents[1]}
    if args.before:
        checkouts = {"before": args.before, **checkouts}
    codes = {**CODES, "re-run": (JOB, "import polars")}
    found: dict[tuple[str, str], list[Cost]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        envs = {}
        for name, checkout in checkouts.items():
            envs[name] = env = {
                **os.environ,
                "PYTHONPATH": str(checkout.resolve() / "src"),
                "PYTHONPYCACHEPREFIX": f"{scratch}/bytecode",
                "SPACE": f"{scratch}/{name}",
                "INPUT": str(once("small-500", small_files)),
                "ONEFOLD_PROGRESS": "0",
            }
            for one in ("PYTHONDONTWRITEBYTECODE", "ONEFOLD_URL"):
                env.pop(one, None)
            for code, bare in codes.values():
                cost(bare, env), cost(code, env)
            check_nothing_new(JOB, env)
        for _ in range(args.runs):
            for what, (code, bare) in codes.items():
                for name, env in envs.items():
                    found.setdefault((what, name), []).append(cost(code, env))
                    found.setdefault((what, f"{name}, bare"), []).append(cost(bare, env))
    print(f"load {os.getloadavg()[0]:.1f}        cpu: median  smallest   time: median  smallest   (ms)")
    for what in codes:
        added: dict[str, list[float]] = {}
        for name in checkouts:
            mine, bare = found[what, name], found[what, f"{name}, bare"]
            added[name] = [
                of_all([one[at] for one in mine]) - of_all([one[at] for one in bare])
                for at in (0, 1)
                for of_all in (statistics.median, min)
            ]
            print(f"{what:15}{name:7}" + "".join(f"{value:11.1f}" for value in added[name]))
        if args.before:
            ratios = [now / before for now, before in zip(added["now"], added["before"], strict=True)]
            print(f"{what:15}{'ratio':7}" + "".join(f"{ratio:11.2f}" for ratio in ratios))


if __name__ == "__main__":
    main()
