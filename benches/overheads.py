"""(c) Overhead of a task over 500 small files, (d) peak memory when the input doubles, (e) a re-run with nothing new,
and the time that importing and connecting add to a bare interpreter.

Run: ``python benches/overheads.py``. Targets: (c) ≤ 5 ms a task, (d) the peak grows by < 15 % when the input doubles,
(e) < 0.3 s, ``import onefold`` < 150 ms, ``of.connect()`` on a new folder < 60 ms more than ``python -c pass``.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import child, once


def small_files(folder: Path) -> None:
    for number in range(500):
        (folder / f"{number:03}.txt").write_text(f"alpha beta {number}\n" * 20)


def big_file(folder: Path, rows: int) -> None:
    import numpy as np
    import polars as pl

    rng = np.random.default_rng(1)
    for part in range(rows // 2_500_000):
        n = 2_500_000
        pl.DataFrame({"k": rng.integers(0, 1000, n), "v": rng.normal(size=n)}).write_parquet(
            folder / f"part-{part:03}.parquet", row_group_size=100_000
        )


def tasks(folder: str) -> None:
    import polars as pl

    import onefold as of
    from onefold import agg

    pl.LazyFrame({"a": [1]}).collect()
    with tempfile.TemporaryDirectory() as space, of.connect(space) as db:
        job = (
            db.read_text(f"{folder}/*.txt")
            .select(pl.col("line").str.split(" ").alias("word"))
            .explode("word")
            .group_by("word")
            .agg(n=agg.count())
            .into("words")
        )
        start = time.perf_counter()
        run = job.run(progress=False, target_splits=500)
        seconds = time.perf_counter() - start
        assert run.progress().total == 500, run.progress()
        print(json.dumps({"seconds": seconds, "check": 0}))


def memory(folder: str) -> None:
    import onefold as of
    from onefold import agg

    with tempfile.TemporaryDirectory() as space, of.connect(space) as db:
        table = (
            db.read_parquet(f"{folder}/*.parquet")
            .group_by("k")
            .agg(n=agg.count(), total=agg.sum("v"))
            .into("t")
            .run(progress=False, target_splits=int(os.environ["SPLITS"]))
            .result()
        )
        groups = table.to_polars().height
    print(json.dumps({"seconds": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "check": groups}))


def rerun(folder: str) -> None:
    import polars as pl

    start = time.perf_counter()
    import onefold as of
    from onefold import agg

    with of.connect(os.environ["SPACE"]) as db:
        job = (
            db.read_text(f"{folder}/*.txt")
            .select(pl.col("line").str.split(" ").alias("word"))
            .explode("word")
            .group_by("word")
            .agg(n=agg.count())
            .into("words")
        )
        run = job.run(progress=False)
        frame = run.result().to_polars()
        progress = run.progress()
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "check": [progress.reused, progress.total, frame.height],
            }
        )
    )


def added_ms(code: str, bare: str) -> float:
    """Milliseconds that a whole interpreter running ``code`` takes longer than one running ``bare``: median of pairs."""

    def seconds(text: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", text], check=True, capture_output=True)
        return time.perf_counter() - start

    return statistics.median(seconds(code) - seconds(bare) for _ in range(21)) * 1000


def main() -> None:
    folder = once("small-500", small_files)
    seconds = statistics.median(child(__file__, "tasks", str(folder))["seconds"] for _ in range(3))
    print(
        f"(c) 500 small files as 500 tasks: {seconds:.3f} s, {seconds / 500 * 1000:.2f} ms a task   target <= 5 ms"
    )

    peaks = []
    for rows in (20_000_000, 40_000_000):  # as many splits more: a split stays as large as it was
        os.environ["SPLITS"] = str(rows // 1_000_000)
        data = once(f"memory-{rows}", lambda path, rows=rows: big_file(path, rows))
        peaks.append(child(__file__, "memory", str(data))["seconds"])
    print(
        f"(d) peak memory: {peaks[0]:.0f} MB for 20M rows, {peaks[1]:.0f} MB for 40M: "
        f"ratio {peaks[1] / peaks[0]:.2f}   target < 1.15"
    )

    with tempfile.TemporaryDirectory() as space:
        os.environ["SPACE"] = space
        first = child(__file__, "rerun", str(folder))
        again = [child(__file__, "rerun", str(folder)) for _ in range(5)]
        reused, total, _ = again[-1]["check"]  # type: ignore[misc]
        assert reused == total, again[-1]
        print(
            f"(e) re-run with nothing new: {statistics.median(a['seconds'] for a in again):.3f} s "
            f"(first run {first['seconds']:.3f} s)   target < 0.3 s"
        )

    print(
        f"    import onefold: {added_ms('import onefold', 'pass'):.0f} ms over a bare interpreter   target < 150 ms"
    )
    connect = "import onefold, tempfile\nwith tempfile.TemporaryDirectory() as d:\n    onefold.connect(d + '/s').close()"
    empty = "import tempfile\nwith tempfile.TemporaryDirectory() as d: pass"
    print(
        f"    of.connect() on a new folder: {added_ms(connect, empty):.0f} ms over a bare interpreter   target < 60 ms"
    )


MODES = {"tasks": tasks, "memory": memory, "rerun": rerun}

if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in MODES:
        MODES[sys.argv[1]](sys.argv[2])
    else:
        main()
