"""A program that runs a job and is killed with SIGKILL at one chosen append or blob write: a helper of test_job_kill.py.

``crash_job.py SPACE INPUT OUT POINT``: POINT is ``append:K:before``, ``append:K:after``, ``blob:K:before``, ``blob:K:after`` (the
K-th call in this process) or ``none``. Every record that a function sees is noted in ``OUT/seen``, one file a process.
"""

import itertools
import os
import signal
import sys
from pathlib import Path

import onefold as of
from onefold import agg
from onefold.compute.blobs.store import BlobStore
from onefold.compute.engine import Engine


def crash_at(point: str) -> None:
    """Arrange that this process dies at the point."""
    if point == "none":
        return
    what, number, when = point.split(":")
    owner, name = (Engine, "submit") if what == "append" else (BlobStore, "put")
    original = getattr(owner, name)
    calls = itertools.count(1)

    def wrapped(self, *args):  # type: ignore[no-untyped-def]
        mine = next(calls)  # other threads call meanwhile
        if mine == int(number) and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(self, *args)
        if mine == int(number) and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, wrapped)


def main() -> None:
    space, source, out, point, sink, python = sys.argv[1:]
    crash_at(point)
    seen = Path(out) / "seen"
    seen.mkdir(parents=True, exist_ok=True)

    def words(record):  # type: ignore[no-untyped-def]
        with (seen / str(os.getpid())).open("a") as file:
            file.write(record["line"] + "\n")
        return record["line"].split()

    with of.connect(space) as db:
        rows = db.read_text(f"{source}/*.txt")
        if python == "python":
            grouped = rows.flat_map(words).group_by("value")
        else:
            import polars as pl

            grouped = (
                rows.select(pl.col("line").str.split(" ").alias("value")).explode("value").group_by("value")
            )
        counted = grouped.agg(n=agg.count())
        job = counted.into("words") if sink == "table" else counted.write_parquet(f"{out}/parquet")
        run = job.run(progress=False, workers=2)
        progress = run.progress()
        print(progress.done, progress.total, progress.reused, progress.rows)


main()
