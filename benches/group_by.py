"""(a) 20 million rows × 100,000 keys of Parquet, grouped: durable tasks against Polars' streaming engine and PySpark.

All three are warm: a small query has run in the process before. What is timed of Onefold begins with a new space on disk and
ends with the result in memory, every task's result synced to disk.

The keys are the whole numbers from 0 on, which are grouped by direct addressing; with ``--spread`` they are far apart, and the
engine's hash table groups them.

Run: ``python benches/group_by.py`` (``--rows`` for a smaller one). Target: ≤ 1.3 × Polars, ≥ 5 × faster than warm PySpark.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import THREADS, answer, child, compare, once, peers_python, report

FACTOR = int(os.environ.get("GROUP_BY_FACTOR", "1"))
"""What the keys are multiplied by."""


def make_data(folder: Path, rows: int, keys: int) -> None:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(7)
    files = 8
    for part in range(files):
        n = rows // files
        pl.DataFrame(
            {"k": rng.integers(0, keys, n), "v": rng.normal(100, 15, n), "w": rng.integers(0, 1000, n)}
        ).write_parquet(folder / f"part-{part}.parquet", row_group_size=250_000)


def keys() -> Any:
    import polars as pl

    return pl.col("k") if FACTOR == 1 else pl.col("k") * FACTOR


def polars(folder: str) -> None:
    import polars as pl

    warm = (
        pl.scan_parquet(f"{folder}/part-0.parquet")
        .head(1000)
        .group_by("k")
        .agg(n=pl.len(), mean=pl.col("v").mean())
    )
    warm.collect(engine="streaming")
    start = time.perf_counter()
    frame = (
        pl.scan_parquet(f"{folder}/*.parquet")
        .group_by(keys())
        .agg(n=pl.len(), total=pl.col("w").sum(), mean=pl.col("v").mean())
        .collect(engine="streaming")
    )
    answer(time.perf_counter() - start, checksum(frame))


def onefold(folder: str) -> None:
    import polars as pl

    import onefold as of
    from onefold import agg

    with tempfile.TemporaryDirectory() as space:
        # As the peers are: every module imported once, by a job on a few rows.
        few = Path(space) / "few.parquet"
        pl.read_parquet(f"{folder}/part-0.parquet", n_rows=1000).write_parquet(few)
        with of.connect(Path(space) / "warm") as db:
            small = db.read_parquet(few).group_by("k").agg(n=agg.count(), mean=agg.mean("v")).into("t")
            small.run(progress=False).result().to_polars()

        start = time.perf_counter()
        with of.connect(Path(space) / "space") as db:
            frame = (
                db.read_parquet(f"{folder}/*.parquet")
                .group_by(keys())
                .agg(n=agg.count(), total=agg.sum("w"), mean=agg.mean(pl.col("v")))
                .into("by_key")
                .run(progress=False)
                .result()
                .to_polars()
            )
            seconds = time.perf_counter() - start
            answer(seconds, checksum(frame))


def pyspark(folder: str) -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql import functions as f

    spark = (
        SparkSession.builder.master(f"local[{THREADS}]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.shuffle.partitions", str(THREADS * 4))
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.driver.memory", "6g")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")

    def job() -> list[object]:
        frame = spark.read.parquet(f"{folder}/*.parquet").groupBy((f.col("k") * FACTOR).alias("k"))
        return frame.agg(
            f.count("*").alias("n"), f.sum("w").alias("total"), f.mean("v").alias("mean")
        ).collect()

    job()
    start = time.perf_counter()
    rows = job()
    seconds = time.perf_counter() - start
    answer(
        seconds,
        [
            len(rows),
            sum(r.n for r in rows),
            sum(r.total for r in rows),
            round(sum(r.mean for r in rows) / len(rows), 6),
        ],
    )


def checksum(frame: object) -> list[float]:
    import polars as pl

    assert isinstance(frame, pl.DataFrame)
    return [
        frame.height,
        int(frame["n"].sum()),
        int(frame["total"].sum()),
        round(float(frame["mean"].sum()) / frame.height, 6),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--spread", action="store_true", help="keys that are far apart")
    options = parser.parse_args()
    os.environ["GROUP_BY_FACTOR"] = "1000003" if options.spread else "1"
    folder = once(
        f"groups-{options.rows}-{options.keys}", lambda path: make_data(path, options.rows, options.keys)
    )
    times = compare(__file__, "onefold", ["polars"], str(folder), runs=options.runs)
    report("group-by, durable tasks", times["onefold"], "Polars streaming", times["polars"], "<= 1.3")
    python = peers_python()
    if python is None:
        print("PySpark is not installed here (set ONEFOLD_BENCH_PEERS to a Python that has it)")
        return
    spark = child(__file__, "pyspark", str(folder), python=python)["seconds"]
    report("group-by, durable tasks", times["onefold"], "PySpark, warm", spark, "<= 0.20")


MODES = {"polars": polars, "onefold": onefold, "pyspark": pyspark}

if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in MODES:
        MODES[sys.argv[1]](sys.argv[2])
    else:
        main()
