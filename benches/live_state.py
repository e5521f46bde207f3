"""What the state of a live job with many open keys costs: a restart, and a small commit.

1. **Restart**: a job with 1M open keys is begun again in a new process: from ``start`` until an event that waited for it is
   committed, its state loaded from the space. Compared with loading the same groups from one IPC file, as Polars writes it (lz4).
   Both take turns, each in a process of its own, in which another small job, or a small file, was loaded before. Target: <= 3 x.
2. **A commit** of 10 events: bytes of its record and of its blobs with 1M open keys, over the same with 1,000. Compaction is
   counted apart. Target: <= 2 x.

Run: ``python benches/live_state.py [--keys 1000000] [--runs 5] [--before CHECKOUT]``. Exits with 1 when a target is missed.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from common import data_dir
from live_common import START_US, Clock, checkouts, dispatch, loads, mode, parser, verdict

TARGET_RESTART = 3.0
TARGET_COMMIT = 2.0
FEW_KEYS = 1000
COMMITS = 24
PATIENCE = "600s"
PIECE = 50_000


def started(db: Any, name: str) -> Any:
    """A running count and sum for each key."""
    import onefold as of
    from onefold import agg

    assert of
    rows = db.read_stream(name, follow=True, event_time="at", idle=None, max_ahead=None)
    return rows.group_by("k").agg(n=agg.count(), total=agg.sum("v")).into(f"by-{name}").start()


def each_once(first: int, count: int) -> Any:
    """An event for each of so many keys."""
    import numpy as np
    import polars as pl

    numbers = np.arange(first, first + count)
    at = pl.Series(START_US + numbers).cast(pl.Datetime("us", "UTC"))
    return pl.DataFrame({"at": at, "k": numbers, "v": numbers % 10})


def run_sizes(run: Any) -> dict[Any, int]:
    """The bytes of all runs of its state, by their names. The key under which compaction puts a run is that of the commit."""
    from onefold.state.fold.live import rows as live_rows

    with run._job.local() as view:
        keys = [key for key, _ in live_rows.parts(view, run.name, run._generation)]
        return {found.id: found.row.size for key in keys for found in live_rows.runs(view, key)}


# -- modes


def make(folder: str, keys: str) -> dict[str, Any]:
    """A space whose job has so many open keys, a small one to warm up with, and the groups as one IPC file."""
    import onefold as of

    with of.connect(folder) as db:
        for name, count in (("small", FEW_KEYS), ("large", int(keys))):
            for first in range(0, count, PIECE):
                db.stream(name).append_many(each_once(first, min(PIECE, count - first)))
            run = started(db, name).catch_up(PATIENCE)
            run.result().to_polars().write_ipc(f"{folder}/{name}.arrow", compression="lz4")
            run.stop()
            db.stream(name).append({"at": each_once(0, 1)["at"][0], "k": 0, "v": 1})
    return {}


def restart(folder: str, keys: str) -> dict[str, Any]:
    """From ``start`` until the one event that waits is committed; another one waits then."""
    import onefold as of

    found: dict[str, Any] = {}
    with of.connect(folder) as db:
        for name in ("small", "large"):
            clock = Clock()
            run = started(db, name).catch_up(PATIENCE)
            found = clock.found()
            if name == "large":
                found["check"] = len(run.result()) == int(keys)
            run.stop()
            db.stream(name).append({"at": each_once(0, 1)["at"][0], "k": 0, "v": 1})
    return found


def load(folder: str) -> dict[str, Any]:
    """The groups from one IPC file."""
    import polars as pl

    pl.read_ipc(f"{folder}/small.arrow")
    clock = Clock()
    frame = pl.read_ipc(f"{folder}/large.arrow")
    return clock.found(frame.height)


def commit(folder: str, keys: str) -> dict[str, Any]:
    """The bytes of commits of 10 events each, with so many open keys: of the runs that they add, and of those of compaction."""
    import onefold as of

    with of.connect(folder) as db:
        stream = db.stream("events")
        count = int(keys)
        for first in range(0, count, PIECE):
            stream.append_many(each_once(first, min(PIECE, count - first)))
        run = started(db, "events").catch_up(PATIENCE)
        added: list[int] = []
        merged = 0
        before = set(run_sizes(run))
        for number in range(COMMITS):
            stream.append_many(each_once(number * 10, 10))
            run.catch_up(PATIENCE)
            after = run_sizes(run)
            new = [size for name, size in after.items() if name not in before]
            added.append(min(new))
            merged += sum(new) - min(new)
            before = set(after)
        run.stop()
        return {"bytes": statistics.median(added), "merged": merged}


# -- what is compared


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--keys", type=int, default=1_000_000)
    command.add_argument("--only", default="restart,commit")
    options = command.parse_args()
    print(f"{loads()}; embedded, every record and commit synced")
    with tempfile.TemporaryDirectory(dir=data_dir(), prefix="live-state-") as made:
        parts = {"restart": restarts, "commit": commits}
        met = [parts[name](options, Path(made)) for name in options.only.split(",")]
    raise SystemExit(0 if all(met) else 1)


def restarts(options: Any, scratch: Path) -> bool:
    """1."""
    found: dict[str, list[float]] = {"file": []}
    used: dict[str, list[float]] = {"file": []}
    versions = checkouts(options.before)
    for name, checkout in versions.items():
        mode(__file__, checkout, "make", scratch / name, options.keys)
    for _ in range(options.runs):
        for name, checkout in versions.items():
            one = mode(__file__, checkout, "restart", scratch / name, options.keys)
            if not one["check"]:
                raise SystemExit("the job has lost keys")
            found.setdefault(name, []).append(one["seconds"])
            used.setdefault(name, []).append(one["processor"])
        one = mode(__file__, versions["now"], "load", scratch / "now")
        found["file"].append(one["seconds"])
        used["file"].append(one["processor"])
    ms = {name: statistics.median(times) * 1000 for name, times in found.items()}
    processor = statistics.median(used["now"]) / max(statistics.median(used["file"]), 0.01)
    more = f"   ({ms['now']:.0f} ms over {ms['file']:.0f} ms; processor time {processor:.1f} x)"
    if "before" in ms:
        more += f"   before {ms['before'] / ms['file']:.2f} x"
    what = f"restart with {options.keys:,} keys, over one IPC file"
    return verdict(what, ms["now"] / ms["file"], TARGET_RESTART, at_most=True, more=more)


def commits(options: Any, scratch: Path) -> bool:
    """2."""
    now = checkouts(None)["now"]
    few, many = (
        mode(__file__, now, "commit", scratch / f"commit-{keys}", keys) for keys in (FEW_KEYS, options.keys)
    )
    ratio = many["bytes"] / few["bytes"]
    more = f"   ({few['bytes']:.0f} and {many['bytes']:.0f} bytes; compaction of {COMMITS} commits {many['merged']:,} bytes)"
    what = f"a commit of 10 events, {options.keys:,} keys over {FEW_KEYS:,}"
    return verdict(what, ratio, TARGET_COMMIT, at_most=True, more=more)


MODES = {"make": make, "restart": restart, "load": load, "commit": commit}

if __name__ == "__main__":
    dispatch(MODES, main)
