"""What an append of one frame costs, with its bytes in the record and as a blob that the record names.

Run: ``python benches/stream_frames.py [--rounds 40]``. An embedded space with durable writes (fsync), on the disk of
``data_dir``. Three connections to it take turns: one that keeps every frame in the record, one that stores every frame as a blob,
and one as programs have it (``config.STREAM_BLOB_BYTES_MIN``). Frames are of random numbers, which do not compress. Next to each,
a second program puts small values into a map, and how long one of those takes meanwhile is shown too: a large record keeps the
file's only writer. Target: as programs have it never over 1.1 × the record at 100 KB, and well below it at 1 MB.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

import onefold as of
from common import data_dir
from onefold.state.streams import large_frames

SIZES = (64_000, 100_000, 200_000, 400_000, 1_000_000)
WAYS = ("record", "blob", "as it is")


def connection(folder: Path, way: str) -> of.Database:
    """A connection whose frames go that way."""
    db = of.connect(str(folder))
    client = db.stream("s").client
    frames = large_frames.shared_by(client)
    assert frames is not None
    if way == "record":
        client.shared["large frames"] = None
    elif way == "blob":
        client.shared["large frames"] = dataclasses.replace(frames, frame_bytes=lambda: 0)
    return db


def frame(size: int, seed: int) -> pl.DataFrame:
    """A frame whose stored form has about that size."""
    values = np.random.default_rng(seed).integers(0, 1 << 62, size // 8)
    return pl.DataFrame({"v": values})


def ms(found: list[float]) -> str:
    """Median and 90th percentile."""
    return f"{statistics.median(found) * 1e3:7.1f} {sorted(found)[len(found) * 9 // 10] * 1e3:7.1f}"


def meanwhile(db: of.Database, work: Callable[[], None]) -> tuple[float, list[float]]:
    """How long the work takes, and each put of a small value meanwhile."""
    m, over, puts = db.map("m"), threading.Event(), []

    def put() -> None:
        while not over.is_set():
            began = time.perf_counter()
            m.put("k", 1)
            puts.append(time.perf_counter() - began)

    other = threading.Thread(target=put)
    other.start()
    began = time.perf_counter()
    work()
    took = time.perf_counter() - began
    over.set()
    other.join()
    return took, puts


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=data_dir(), prefix="stream-frames-") as made:
        ways = {way: connection(Path(made), way) for way in WAYS}
        other = of.connect(made)
        for db in ways.values():  # all folders of blobs are there
            for seed in range(20):
                db.stream("s").append_many(frame(400_000, seed))
        print("bytes      way        append p50 p90 ms   another put, p50 p90 ms   × record")
        for size in SIZES:
            alone: dict[str, list[float]] = {way: [] for way in WAYS}
            puts: dict[str, list[float]] = {way: [] for way in WAYS}
            for seed in range(args.rounds):
                rows = frame(size, seed)
                for way in random.sample(WAYS, len(WAYS)):
                    stream = ways[way].stream("s")
                    began = time.perf_counter()
                    stream.append_many(rows)
                    alone[way].append(time.perf_counter() - began)
                    if seed % 4 == 0:
                        puts[way] += meanwhile(other, lambda: (stream.append_many(rows), None)[1])[1]  # noqa: B023
            base = statistics.median(alone["record"])
            for way in WAYS:
                ratio = statistics.median(alone[way]) / base
                print(f"{size:<10} {way:<10} {ms(alone[way])}    {ms(puts[way])}     {ratio:.2f}")
        for db in (*ways.values(), other):
            db.close()


if __name__ == "__main__":
    main()
