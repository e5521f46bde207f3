"""(b) Identifiers counted over ≥ 200 MB of real source text, with expressions and with a Python function per line.

Run: ``python benches/identifiers.py``. Targets: expressions ≤ 1.3 × Polars; a Python function on 2 processes ≤ 1.2 × a
hand-written multiprocessing Counter and ≥ 3 × faster than PySpark's RDD and Dask's bag. The start of worker processes is part
of what is timed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from common import THREADS, answer, child, compare, peers_python, report, source_text

PATTERN = r"[A-Za-z_][A-Za-z0-9_]*"
WORKERS = 2


def polars(folder: str) -> None:
    import polars as pl

    pl.LazyFrame({"line": ["a b"]}).select(pl.col("line").str.extract_all(PATTERN)).collect(
        engine="streaming"
    )
    start = time.perf_counter()
    frame = (
        pl.scan_csv(
            f"{folder}/*.txt",
            has_header=False,
            separator="\x01",
            quote_char=None,
            schema={"line": pl.String},
            truncate_ragged_lines=True,
        )
        .select(pl.col("line").str.extract_all(PATTERN).alias("word"))
        .explode("word")
        .drop_nulls()
        .group_by("word")
        .agg(n=pl.len())
        .collect(engine="streaming")
    )
    answer(time.perf_counter() - start, [frame.height, int(frame["n"].sum())])


def expressions(folder: str) -> None:
    import polars as pl

    import onefold as of
    from onefold import agg

    with tempfile.TemporaryDirectory() as space:
        # As Polars is: every module imported once, by a job on one line.
        line = Path(space) / "line.txt"
        line.write_text("a b")
        with of.connect(Path(space) / "warm") as db:
            db.read_text(line).group_by("line").agg(n=agg.count()).into("t").run(
                progress=False
            ).result().to_polars()

        start = time.perf_counter()
        with of.connect(Path(space) / "space") as db:
            frame = (
                db.read_text(f"{folder}/*.txt")
                .select(pl.col("line").str.extract_all(PATTERN).alias("word"))
                .explode("word")
                .group_by("word")
                .agg(n=agg.count())
                .into("words")
                .run(progress=False)
                .result()
                .to_polars()
            )
            answer(time.perf_counter() - start, [frame.height, int(frame["n"].sum())])


def python(folder: str) -> None:
    import onefold as of
    from onefold import agg

    find = re.compile(PATTERN).findall
    with tempfile.TemporaryDirectory() as space:
        start = time.perf_counter()
        with of.connect(space) as db:
            frame = (
                db.read_text(f"{folder}/*.txt")
                .flat_map(lambda record: find(record["line"]))
                .group_by("value")
                .agg(n=agg.count())
                .into("words")
                .run(progress=False, workers=WORKERS)
                .result()
                .to_polars()
            )
            answer(time.perf_counter() - start, [frame.height, int(frame["n"].sum())])


def _count(path: str) -> Counter[str]:
    find = re.compile(PATTERN).findall
    counts: Counter[str] = Counter()
    with open(path, encoding="utf8") as file:
        for line in file:
            counts.update(find(line))
    return counts


def multiprocessing(folder: str) -> None:
    import multiprocessing as mp

    start = time.perf_counter()
    total: Counter[str] = Counter()
    with mp.Pool(WORKERS) as pool:
        for counts in pool.imap_unordered(_count, [str(path) for path in sorted(Path(folder).glob("*.txt"))]):
            total.update(counts)
    answer(time.perf_counter() - start, [len(total), total.total()])


def pyspark(folder: str) -> None:
    from pyspark import SparkConf, SparkContext

    conf = SparkConf().setMaster(f"local[{WORKERS}]").set("spark.ui.enabled", "false")
    conf = (
        conf.set("spark.driver.bindAddress", "127.0.0.1")
        .set("spark.driver.host", "127.0.0.1")
        .set("spark.driver.memory", "6g")
    )
    context = SparkContext(conf=conf)
    context.setLogLevel("ERROR")
    find = re.compile(PATTERN).findall
    context.parallelize(range(100), WORKERS).map(lambda x: x + 1).sum()
    start = time.perf_counter()
    rows = (
        context.textFile(f"{folder}/*.txt")
        .flatMap(find)
        .map(lambda word: (word, 1))
        .reduceByKey(lambda a, b: a + b)
        .collect()
    )
    answer(time.perf_counter() - start, [len(rows), sum(n for _, n in rows)])


def dask(folder: str) -> None:
    import dask
    import dask.bag as db

    find = re.compile(PATTERN).findall
    start = time.perf_counter()
    with dask.config.set(scheduler="processes", num_workers=WORKERS):
        rows = db.read_text(f"{folder}/*.txt").map(find).flatten().frequencies().compute()
    answer(time.perf_counter() - start, [len(rows), sum(n for _, n in rows)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    folder = str(source_text(options.megabytes))
    times = compare(__file__, "expressions", ["polars"], folder, runs=options.runs, threads=THREADS)
    report("identifiers, expressions", times["expressions"], "Polars streaming", times["polars"], "<= 1.3")
    times = compare(__file__, "python", ["multiprocessing"], folder, runs=options.runs, threads=THREADS)
    report(
        "identifiers, Python function",
        times["python"],
        "multiprocessing Counter",
        times["multiprocessing"],
        "<= 1.2",
    )
    peers = peers_python()
    if peers is None:
        print("PySpark and Dask are not installed here (set ONEFOLD_BENCH_PEERS to a Python that has them)")
        return
    for mode, label in (("pyspark", "PySpark RDD"), ("dask", "Dask bag")):
        seconds = child(__file__, mode, folder, python=peers)["seconds"]
        report("identifiers, Python function", times["python"], label, seconds, "<= 0.33")


MODES = {
    "polars": polars,
    "expressions": expressions,
    "python": python,
    "multiprocessing": multiprocessing,
    "pyspark": pyspark,
    "dask": dask,
}

if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in MODES:
        MODES[sys.argv[1]](sys.argv[2])
    else:
        main()
