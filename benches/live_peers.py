"""Windowed counts of a stream by peers, next to a live job: a count and a sum for each key and window of 10 s, over 2M events
with 1,000 or 100,000 keys.

Onefold reads a durable embedded stream, and every commit is synced. Spark Structured Streaming reads the same events from Parquet
files of 20,000 events, ``--files`` of them in a micro-batch, with a checkpoint, and writes what changed to Parquet files. Bytewax
is given them as dicts in one process, with recovery. Each is warm: a small stream was counted in the process before. They take
turns, each in a process of its own; medians; the results are compared.

Target: >= 5 x the better of Spark and Flink where installed (Flink is not run here). A Python that has ``pyspark`` (with Java) or
``bytewax`` is looked for in ``ONEFOLD_BENCH_PEERS``, and then this one.

Run: ``python benches/live_peers.py [--events 2000000] [--keys 1000 100000] [--files 10] [--runs 3]``. Exits
with 1 when the target is missed.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import live_speed
from common import THREADS, data_dir
from live_common import FRAME_ROWS, HERE, WINDOW, Clock, dispatch, events, loads, mode, parser, same, verdict

TARGET = 5.0


# -- modes


def make_files(folder: str, count: str, keys: str) -> dict[str, Any]:
    """The events as Parquet files: some to warm up with, and all."""
    for name, most in (("warm", FRAME_ROWS), ("events", int(count))):
        path = Path(folder) / name
        path.mkdir(parents=True)
        for number, first in enumerate(range(0, most, FRAME_ROWS)):
            frame = events(first, min(FRAME_ROWS, most - first), int(keys))
            frame.write_parquet(path / f"part-{number:05}.parquet")
    return {}


def spark(folder: str, files: str) -> dict[str, Any]:
    """Spark Structured Streaming, until everything that is there was processed."""
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    session = (
        SparkSession.builder.master(f"local[{THREADS}]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", str(THREADS))
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "4g")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")

    out = tempfile.mkdtemp(dir=folder)

    def counted(name: str) -> None:
        path = f"{folder}/{name}"
        rows = session.readStream.schema(session.read.parquet(path).schema)
        rows = rows.option("maxFilesPerTrigger", int(files)).parquet(path)
        grouped = rows.withWatermark("at", "0 seconds").groupBy(f.window("at", "10 seconds"), "k")
        updates = grouped.agg(f.count("*").alias("n"), f.sum("v").alias("total")).writeStream.outputMode(
            "update"
        )
        written = updates.foreachBatch(lambda batch, _: batch.write.mode("append").parquet(f"{out}/{name}"))
        checkpoint = tempfile.mkdtemp(dir=out)
        written.option("checkpointLocation", checkpoint).trigger(availableNow=True).start().awaitTermination()

    counted("warm")
    clock = Clock()
    counted("events")
    found = clock.found()
    last = session.read.parquet(f"{out}/events").groupBy("window", "k")
    sums = (
        last.agg(f.max("n").alias("n"), f.max("total").alias("total"))
        .agg(f.count("*"), f.sum("n"), f.sum("total"))
        .collect()[0]
    )
    session.stop()
    return found | {"check": list(sums)}


def bytewax(folder: str) -> dict[str, Any]:
    """Bytewax, in one process, from records in memory, with recovery."""
    from datetime import UTC, datetime, timedelta

    import bytewax.operators as op
    import bytewax.operators.windowing as win
    import polars as pl
    from bytewax.dataflow import Dataflow
    from bytewax.recovery import RecoveryConfig, init_db_dir
    from bytewax.testing import TestingSink, TestingSource, run_main

    def counted(name: str) -> list[Any]:
        rows = [
            row for path in sorted(Path(folder, name).iterdir()) for row in pl.read_parquet(path).to_dicts()
        ]
        recovery, out = Path(tempfile.mkdtemp(dir=folder)), []
        init_db_dir(recovery, 1)
        flow = Dataflow(name)
        keyed = op.key_on("key", op.input("in", flow, TestingSource(rows, 1000)), lambda row: str(row["k"]))
        clock = win.EventClock(ts_getter=lambda row: row["at"], wait_for_system_duration=timedelta(0))
        windower = win.TumblingWindower(
            length=timedelta(seconds=10), align_to=datetime(2026, 1, 1, tzinfo=UTC)
        )

        def fold(state: list[int], row: dict[str, Any]) -> list[int]:
            return [state[0] + 1, state[1] + row["v"]]

        def merge(one: list[int], two: list[int]) -> list[int]:
            return [one[0] + two[0], one[1] + two[1]]

        windowed = win.fold_window("count", keyed, clock, windower, lambda: [0, 0], fold, merge)
        op.output("out", windowed.down, TestingSink(out))
        timing.append(Clock())
        run_main(flow, epoch_interval=timedelta(seconds=1), recovery_config=RecoveryConfig(str(recovery)))
        return out

    timing: list[Clock] = []
    counted("warm")
    rows = counted("events")
    found = timing[-1].found()
    return found | {
        "check": [len(rows), sum(row[1][1][0] for row in rows), sum(row[1][1][1] for row in rows)]
    }


# -- what is compared


def python_with(module: str) -> str | None:
    """A Python that has it."""
    for python in filter(None, (os.environ.get("ONEFOLD_BENCH_PEERS"), sys.executable)):
        if (
            subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False).returncode
            == 0
        ):
            return python
    return None


def peers() -> dict[str, str]:
    """Those that are here, and with which Python; says what is not."""
    found: dict[str, str] = {}
    for name, module in (("spark", "pyspark"), ("bytewax", "bytewax")):
        python = python_with(module)
        if python is None:
            print(
                f"{name} is skipped: {module} is not installed here (set ONEFOLD_BENCH_PEERS to a Python that has it)"
            )
        elif name == "spark" and shutil.which("java") is None:
            print("spark is skipped: there is no Java")
        else:
            found[name] = python
    return found


def peer(name: str, python: str, folder: Path, files: int, timeout_s: float) -> dict[str, Any] | None:
    """What a peer found; None: it did not end in time."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "POLARS_MAX_THREADS": str(THREADS)}
    command = [python, __file__, "--mode", name, str(folder), *([str(files)] if name == "spark" else [])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        raise SystemExit(f"{name} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--events", type=int, default=2_000_000)
    command.add_argument("--keys", type=int, nargs="+", default=[1_000, 100_000])
    command.add_argument("--files", type=int, default=10, help="of a micro-batch of Spark")
    command.add_argument(
        "--timeout", type=float, default=300.0, help="seconds after which a peer is given up"
    )
    options = command.parse_args()
    print(f"{loads()}; windows of {WINDOW}; Onefold embedded, every record and commit synced")
    others = peers()
    met = True
    for keys in options.keys:
        with tempfile.TemporaryDirectory(dir=data_dir(), prefix="live-peers-") as made:
            met &= compared(options, keys, Path(made), others)
    raise SystemExit(0 if met else 1)


def compared(options: Any, keys: int, folder: Path, others: dict[str, str]) -> bool:
    """All of them, in turn."""
    mode(live_speed.__file__, HERE, "make", folder / "space", options.events, keys)
    mode(__file__, HERE, "make_files", folder / "files", options.events, keys)
    found: dict[str, list[dict[str, Any]]] = {"onefold": []}
    for turn in range(options.runs):
        ours = mode(live_speed.__file__, HERE, "live", folder / "space", f"t{turn}")
        found["onefold"].append(ours | {"check": ours["check"][:3]})
        for name, python in list(others.items()):
            result = peer(name, python, folder / "files", options.files, options.timeout)
            if result is None:
                print(f"{name} with {keys:,} keys is given up after {options.timeout:.0f} s")
                del others[name]
            else:
                found.setdefault(name, []).append(result)
    same([one for name, several in found.items() if name != "bytewax" for one in several])
    rate = {
        name: options.events / statistics.median(one["seconds"] for one in several)
        for name, several in found.items()
    }
    for name, per_s in rate.items():
        used = statistics.median(one["processor"] for one in found[name])
        note = "" if name == "spark" else f", {used:.2f} s of processor time"
        print(f"  {name:10} {per_s:12,.0f} events/s{note}")
    if "spark" not in rate:
        return True
    return verdict(f"windowed counts, {keys:,} keys, over Spark", rate["onefold"] / rate["spark"], TARGET)


MODES = {"make_files": make_files, "spark": spark, "bytewax": bytewax}

if __name__ == "__main__":
    dispatch(MODES, main)
