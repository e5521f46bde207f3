"""How fast a live job counts, embedded, every event durable before it is counted and every commit durable.

1. **Windowed counts** (10 s of event time, a count and a sum for each key) of a stream that is there, from ``start`` until all of
   it is committed, for 1,000, 100,000 and 1M keys. Compared with a program that decodes the same frames of the same stream and
   groups them all by one query in memory, without any durability. The tables are compared. Target: >= 0.5 x as fast.
2. **Cost of an event** of a long stream over that of a short one. Target: <= 2 x.
3. **A Python function for each event**, by two workers and by one. Target: >= 1.6 x as fast; that needs two processors that are
   free, so what two processes without any of this make of the same calls is printed too.
4. **Appending frames**, compared with writing and syncing the same bytes (the frames as Arrow has them, before they are packed),
   frame by frame. Target: >= 0.5 x. What is left of it over the packed bytes that the space then takes is printed too.

Run: ``python benches/live_speed.py [--only counts,cost,function,append] [--events 2000000] [--long 10000000] [--full]
[--before CHECKOUT]``. ``--full``: the long stream has 50M events. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import data_dir, together_s
from live_common import (
    FRAME_ROWS,
    WINDOW,
    Clock,
    checkouts,
    dispatch,
    events,
    fill,
    loads,
    mode,
    parser,
    same,
    verdict,
)

TARGET_COUNTS = 0.5
TARGET_COST = 2.0
TARGET_FUNCTION = 1.6
TARGET_APPEND = 0.5
PATIENCE = "1500s"
COST_KEYS = 10_000
FUNCTION_PARTITIONS = 8
ROUNDS = 60
WARM_SHARE = 0.25


def check_of(frame: Any) -> list[int]:
    """Numbers by which two tables of windows, keys, counts and sums are compared."""
    import polars as pl

    mixed = frame.select(
        (
            pl.col("window_start").dt.epoch("us") // 1_000_000 * 31
            + pl.col("k") * 7
            + pl.col("n") * 1009
            + pl.col("total")
        )
        % 1_000_003
    ).to_series()
    return [frame.height, int(frame["n"].sum()), int(frame["total"].sum()), int((mixed * mixed).sum())]


def started(db: Any, stream: str, table: str, workers: int = 1) -> Any:
    """The job, running."""
    import onefold as of
    from onefold import agg

    rows = db.read_stream(stream, follow=True, event_time="at", idle=None, max_ahead=None)
    counted = rows.window(of.window.tumbling(WINDOW)).group_by("k").agg(n=agg.count(), total=agg.sum("v"))
    return counted.into(table, emit="update").start(workers=workers)


# -- modes: each in a process of its own


def make(folder: str, count: str, keys: str) -> dict[str, Any]:
    """A space with a stream of events, and a short one to warm up with."""
    import onefold as of

    with of.connect(folder) as db:
        fill(db, "warm", FRAME_ROWS, int(keys))
        return {"seconds": fill(db, "events", int(count), int(keys))}


def live(folder: str, table: str) -> dict[str, Any]:
    """The job, until the end of the stream is committed."""
    import onefold as of

    with of.connect(folder) as db:
        started(db, "warm", f"warm-{table}").catch_up(PATIENCE).stop()
        clock = Clock()
        run = started(db, "events", table).catch_up(PATIENCE)
        found = clock.found()
        found["check"] = check_of(run.result().to_polars(final=False))
        found["commits"] = run.status().commits
        run.cancel()
        return found


def memory(folder: str) -> dict[str, Any]:
    """The same counts by one query over all frames, in memory."""
    import polars as pl

    import onefold as of

    def counted(frames: list[pl.DataFrame]) -> pl.DataFrame:
        window = pl.col("at").dt.truncate(WINDOW).alias("window_start")
        rows = pl.concat(frames).lazy().group_by(window, "k")
        return rows.agg(n=pl.len(), total=pl.col("v").sum()).collect()

    with of.connect(folder) as db:
        counted(list(db.stream("warm").read_frames()))
        clock = Clock()
        table = counted(list(db.stream("events").read_frames()))
        return clock.found() | {"check": check_of(table)}


def hashed(record: dict[str, Any]) -> dict[str, Any]:
    """A function that takes about ten microseconds."""
    value = record["v"] + 1
    for _ in range(ROUNDS):
        value = (value * 1_103_515_245 + 12_345) & 0x7FFFFFFF
    return {"at": record["at"], "k": record["k"], "v": value & 15}


def make_function(folder: str, count: str) -> dict[str, Any]:
    """A space with a stream of several partitions."""
    import onefold as of

    with of.connect(folder) as db:
        return {"seconds": fill(db, "events", int(count), 1000, FUNCTION_PARTITIONS)}


def function(folder: str, count: str, workers: str) -> dict[str, Any]:
    """A function for each event, by so many workers. The clock starts when a part is done: all have begun by then."""
    import onefold as of
    from onefold import agg

    with of.connect(folder) as db:
        rows = db.read_stream("events", follow=True, event_time="at", idle=None, max_ahead=None).map(hashed)
        counted = rows.group_by("k").agg(n=agg.count(), total=agg.sum("v"))
        table = f"by{workers}-{time.time_ns()}"
        run = counted.into(table).start(workers=int(workers))
        while (first := run.status().rows) < WARM_SHARE * int(count):
            time.sleep(0.01)
        clock = Clock()
        run.catch_up(PATIENCE)
        found = clock.found(run.result().to_polars().sum().rows())
        run.cancel()
        return found | {"each": found["seconds"] / (int(count) - first)}


def bare(count: str) -> dict[str, Any]:
    """The same calls without anything else."""
    record = {"at": None, "k": 1, "v": 3}
    print("ready", flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    for _ in range(int(count)):
        hashed(record)
    return {"seconds": time.perf_counter() - began}


def append(folder: str, count: str) -> dict[str, Any]:
    """Frames appended, and the bytes that one then takes in the stream."""
    import onefold as of

    frames = [events(first, FRAME_ROWS, 1000) for first in range(0, int(count), FRAME_ROWS)]
    with of.connect(folder) as db:
        stream = db.stream("events")
        stream.append_many(frames[0])
        before = size_of(folder)
        began = time.perf_counter()
        for frame in frames:
            stream.append_many(frame)
        seconds = time.perf_counter() - began
    given = sum(frame.estimated_size() for frame in frames)
    return {"seconds": seconds, "bytes": given, "packed": size_of(folder) - before, "frames": len(frames)}


def plain(folder: str, size: str, frames: str) -> dict[str, Any]:
    """As many bytes, written and synced in as many pieces."""
    piece = os.urandom(int(size) // int(frames))
    with (Path(folder) / "plain").open("wb", buffering=0) as file:
        began = time.perf_counter()
        for _ in range(int(frames)):
            file.write(piece)
            os.fsync(file.fileno())
        seconds = time.perf_counter() - began
    (Path(folder) / "plain").unlink()
    return {"seconds": seconds}


def size_of(folder: str) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


# -- what is compared


def counts(options: Any, scratch: Path) -> bool:
    """1. for each number of keys."""
    met = True
    for keys in options.keys:
        folder = scratch / f"counts-{keys}"
        mode(__file__, checkouts(None)["now"], "make", folder, options.events, keys)
        found: dict[str, list[dict[str, Any]]] = {}
        for turn in range(options.runs):
            for name, checkout in checkouts(options.before).items():
                found.setdefault(name, []).append(mode(__file__, checkout, "live", folder, f"{name}-{turn}"))
                found.setdefault("memory", []).append(mode(__file__, checkout, "memory", folder))
        same([one for several in found.values() for one in several])
        now, base = (median(found[name], "seconds") for name in ("now", "memory"))
        used = median(found["memory"], "processor") / median(found["now"], "processor")
        more = (
            f"   ({options.events / now / 1e6:.2f}M events/s, in memory {options.events / base / 1e6:.2f}M/s; processor time "
            f"{used:.2f} x; {found['now'][0]['commits']} commits)"
        )
        if "before" in found:
            more += f"   before {base / median(found['before'], 'seconds'):.2f} x"
        met &= verdict(
            f"windowed counts, {keys:,} keys, over in memory", base / now, TARGET_COUNTS, more=more
        )
    return met


def cost(options: Any, scratch: Path) -> bool:
    """2."""
    each: dict[int, float] = {}
    long = 50_000_000 if options.full else options.long
    for count in (long // 10 if long < 10_000_000 else 1_000_000, long):
        folder = scratch / f"cost-{count}"
        mode(__file__, checkouts(None)["now"], "make", folder, count, COST_KEYS)
        runs = options.runs if count <= 10_000_000 else 1
        found = [mode(__file__, checkouts(None)["now"], "live", folder, f"t{turn}") for turn in range(runs)]
        each[count] = median(found, "seconds") / count * 1e6
    (short, first), (_, last) = each.items()
    more = f"   ({first:.3f} and {last:.3f} us)"
    return verdict(
        f"cost of an event, {long / 1e6:g}M events over {short / 1e6:g}M",
        last / first,
        TARGET_COST,
        at_most=True,
        more=more,
    )


def functions(options: Any, scratch: Path) -> bool:
    """3."""
    now, folder, count = checkouts(None)["now"], scratch / "function", options.calls
    mode(__file__, now, "make_function", folder, count)
    found: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
    alone: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(options.runs):
        for workers, several in found.items():
            several.append(mode(__file__, now, "function", folder, count, workers))
            alone[workers].append(bare_s(count, workers))
    same([*found[1], *found[2]])
    one, two = (median(found[workers], "each") for workers in (1, 2))
    processes = statistics.median(alone[1]) / statistics.median(alone[2])
    more = f"   ({1 / one:,.0f} and {1 / two:,.0f} events/s; two bare processes {processes:.2f} x)"
    return verdict("a Python function, two workers over one", one / two, TARGET_FUNCTION, more=more)


def bare_s(count: int, processes: int) -> float:
    """How long so many processes take for all calls, from when all are there."""
    command = [sys.executable, __file__, "--mode", "bare", str(count // processes)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return together_s([command] * processes, environment)


def appends(options: Any, scratch: Path) -> bool:
    """4."""
    now = checkouts(None)["now"]
    seconds: dict[str, list[float]] = {"ours": [], "bytes": [], "packed": []}
    found: dict[str, Any] = {}
    for turn in range(options.runs):
        found = mode(__file__, now, "append", scratch / f"append-{turn}", options.events)
        seconds["ours"].append(found["seconds"])
        for what in ("bytes", "packed"):
            plainly = mode(__file__, now, "plain", scratch, found[what], found["frames"])
            seconds[what].append(plainly["seconds"])
    mine, same_bytes, packed = (statistics.median(several) for several in seconds.values())
    more = (
        f"   ({options.events / mine / 1e6:.2f}M events/s in frames of {FRAME_ROWS:,}, {found['bytes'] / options.events:.1f} "
        f"bytes each; {packed / mine:.2f} x over the {found['packed'] / options.events:.1f} bytes that the space takes)"
    )
    return verdict(
        "appending frames, over writing and syncing their bytes", same_bytes / mine, TARGET_APPEND, more=more
    )


def median(found: list[dict[str, Any]], name: str) -> float:
    """Of the runs of one mode."""
    return statistics.median(one[name] for one in found)


PARTS = {"counts": counts, "cost": cost, "function": functions, "append": appends}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--only", default=",".join(PARTS), help="which of them, with commas")
    made.add_argument("--events", type=int, default=2_000_000)
    made.add_argument("--keys", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    made.add_argument("--long", type=int, default=10_000_000)
    made.add_argument("--full", action="store_true", help="a long stream of 50M events")
    made.add_argument("--calls", type=int, default=400_000)
    options = made.parse_args()
    print(f"{loads()}; embedded, every record and commit synced")
    with tempfile.TemporaryDirectory(dir=data_dir(), prefix="live-speed-") as scratch:
        met = [PARTS[name](options, Path(scratch)) for name in options.only.split(",")]
    raise SystemExit(0 if all(met) else 1)


MODES = {
    "make": make, "live": live, "memory": memory, "make_function": make_function, "function": function,
    "bare": bare, "append": append, "plain": plain,
}  # fmt: skip

if __name__ == "__main__":
    dispatch(MODES, main)
