"""How soon an event that was appended can be read in the table of a live job, at 10,000 events a second.

Four processes on one space: one appends frames of events at a steady rate, one runs the live job (a running count), one reads the
table whenever there is a commit, and one follows the stream itself. So both latencies are of the same events in the same run. The
latency of a frame is from the call that appends it until its last event was read.

Targets: embedded, the table's p50 is at most 5 x that of the follower and its p99 at most 10 x. With ``--cluster``, on three
servers and three nodes as ``onefold up`` starts them: the table's p50 is at most 5 x the raw acknowledgement of an append + 20 ms
with ``latency="5ms"``, and + 60 ms with the default.

Run: ``python benches/live_latency.py [--seconds 10] [--rate 10000] [--frame 200] [--latency 5ms] [--cluster]
[--before CHECKOUT]``.
"""

from __future__ import annotations

import bisect
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from common import data_dir
from live_common import checkouts, dispatch, environment_of, loads, parser, verdict

TARGET_P50 = 5.0
TARGET_P99 = 10.0
TARGET_CLUSTER = {"5ms": 20.0, "default": 60.0}
TARGET_CLUSTER_RAW = 5.0
KEYS = 1000
END_S = 60.0


def now_us() -> int:
    """A clock that all processes of this machine share."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000


def percentile(values: list[float], share: float) -> float:
    """The smallest value that this share of all is not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


# -- the processes


def appender(url: str, rate: str, rows: str, seconds: str) -> dict[str, Any]:
    """Append frames of events; when each was given to the call, and when that returned, in microseconds."""
    import polars as pl

    import onefold as of

    count = int(rows)
    every_s = count / float(rate)
    sent: list[int] = []
    acknowledged: list[int] = []
    with of.connect(url) as db:
        stream = db.stream("events")
        print("ready", flush=True)
        sys.stdin.readline()
        due = time.monotonic()
        for number in range(int(float(seconds) / every_s)):
            due += every_s
            frame = pl.DataFrame(
                {"k": [event % KEYS for event in range(number * count, (number + 1) * count)]}
            )
            time.sleep(max(0.0, due - time.monotonic()))
            sent.append(now_us())
            stream.append_many(frame)
            acknowledged.append(now_us())
    return {"sent": sent, "acknowledged": acknowledged}


def worker(url: str, latency: str) -> dict[str, Any]:
    """The job's worker: until a line comes."""
    import onefold as of
    from onefold import agg

    with of.connect(url) as db:
        rows = db.read_stream("events", follow=True)
        job = rows.group_by("k").agg(n=agg.count()).into("t")
        run = job.start(latency=None if latency == "default" else latency)
        used = time.process_time()
        print("ready", flush=True)
        sys.stdin.readline()
        run.catch_up(END_S)
        status = run.status()
        found = {"rows": status.rows, "commits": status.commits, "worker_s": time.process_time() - used}
        run.stop()
    return found


def reader(url: str, events: str) -> dict[str, Any]:
    """(how many events were in the table, when that was read) for each read of it."""
    import onefold as of

    total = int(events)
    found: list[tuple[int, int]] = []
    with of.connect(url) as db:
        table = db.table("t")
        print("ready", flush=True)
        sys.stdin.readline()
        used = time.process_time()
        for snapshot in table.watch(timeout=END_S):
            found.append((int(snapshot.to_polars()["n"].sum() or 0), now_us()))
            if found[-1][0] >= total:
                break
    return {"table": found, "reader_s": time.process_time() - used}


def follower(url: str, events: str) -> dict[str, Any]:
    """(the number of an event, when it was read) for each event of the stream."""
    import onefold as of

    found: list[tuple[int, int]] = []
    with of.connect(url) as db:
        print("ready", flush=True)
        sys.stdin.readline()
        for number, _ in enumerate(db.stream("events").read(follow=True), 1):
            found.append((number, now_us()))
            if number == int(events):
                break
    return {"follower": found}


# -- a run


def run(checkout: Path, url: str, latency: str, options: Any) -> dict[str, Any]:
    """All three, one after the other made ready, and then at once."""
    events = int(options.seconds / (options.frame / options.rate)) * options.frame
    prepare = f"import onefold as of\nwith of.connect({url!r}) as db:\n    db.stream('events').create()"
    environment = environment_of(checkout)
    subprocess.run([sys.executable, "-c", prepare], check=True, env=environment)
    started: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, arguments in (
            ("worker", [latency]),
            ("reader", [str(events)]),
            ("follower", [str(events)]),
            ("appender", [str(options.rate), str(options.frame), str(options.seconds)]),
        ):
            started[name] = process = subprocess.Popen(
                [sys.executable, __file__, "--mode", name, url, *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            )  # fmt: skip
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit(f"the {name} did not start")
        found: dict[str, Any] = {}
        for name in ("reader", "follower", "appender", "worker"):
            said = started[name].stdin
            assert said is not None
            if name == "worker":
                for other in ("appender", "follower", "reader"):
                    found |= last_line(started[other])
            said.write("go\n")
            said.flush()
        found |= last_line(started["worker"])
    finally:
        for process in started.values():
            process.kill()
            process.wait()
    if found["rows"] != events:
        raise SystemExit(f"{events} events were to be counted: {found['rows']} were")
    return found


def latencies(found: dict[str, Any], by: str, rows: int, warm_s: float) -> list[float]:
    """Milliseconds from the append of each frame until its last event was read, without those of the first seconds."""
    seen, times = [count for count, _ in found[by]], [at for _, at in found[by]]
    taken = []
    for number, sent in enumerate(found["sent"]):
        place = bisect.bisect_left(seen, (number + 1) * rows)
        if sent - found["sent"][0] >= warm_s * 1e6:
            taken.append((times[place] - sent) / 1000)
    return taken


def last_line(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What a mode found."""
    assert process.stdout is not None
    text = process.stdout.readlines()
    if not text:
        raise SystemExit(f"a process failed: {process.args}")
    found: dict[str, Any] = json.loads(text[-1])
    return found


def shown(name: str, values: list[float]) -> tuple[float, float]:
    """Print a line; p50 and p99."""
    p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
    print(
        f"  {name:44} p50 {p50:8.2f}   p90 {percentile(values, 0.9):8.2f}   p99 {p99:8.2f}   max {max(values):8.2f} ms"
    )
    return p50, p99


def judged(options: Any, name: str, checkout: Path, url: str, latency: str) -> bool:
    """One run, printed."""
    found = run(checkout, url, latency, options)
    print(
        f"{name}, latency {latency}: {found['rows']} events at {options.rate}/s in frames of {options.frame}, "
        f"{found['commits']} commits, {len(found['table'])} reads of the table; processor time "
        f"a second: job {found['worker_s'] / options.seconds:.2f}, reader {found['reader_s'] / options.seconds:.2f}; {loads()}"
    )
    waits = zip(found["sent"], found["acknowledged"], strict=True)
    raw, _ = shown("append called -> acknowledged", [(end - begin) / 1000 for begin, end in waits])
    p50, p99 = shown(
        "append called -> read by a follower", latencies(found, "follower", options.frame, options.warm)
    )
    table_p50, table_p99 = shown(
        "append called -> read in the table", latencies(found, "table", options.frame, options.warm)
    )
    if options.cluster:
        bound = TARGET_CLUSTER_RAW * raw + TARGET_CLUSTER[latency]
        return verdict(f"  p50 of the table, {latency}", table_p50, bound, at_most=True, unit="ms")
    met = verdict("  p50, over that of the follower", table_p50 / p50, TARGET_P50, at_most=True)
    return verdict("  p99, over that of the follower", table_p99 / p99, TARGET_P99, at_most=True) and met


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--seconds", type=float, default=10.0)
    command.add_argument("--rate", type=int, default=10_000)
    command.add_argument("--frame", type=int, default=200, help="events that are appended at once")
    command.add_argument("--warm", type=float, default=2.0, help="seconds at the beginning that do not count")
    command.add_argument("--latency", default="default", help="of the job, without --cluster")
    command.add_argument("--cluster", action="store_true")
    options = command.parse_args()
    met = True
    for name, checkout in checkouts(options.before).items():
        for latency in ("5ms", "default") if options.cluster else (options.latency,):
            with ExitStack() as stack:
                made = tempfile.TemporaryDirectory(dir=data_dir(), prefix="live-latency-")
                url = stack.enter_context(space(options, Path(stack.enter_context(made))))
                now = judged(options, name, checkout, url, latency)
                met = met and (now or name != "now")
    raise SystemExit(0 if met else 1)


def space(options: Any, folder: Path) -> Any:
    """A folder, or the URL of a cluster that is there meanwhile."""
    if not options.cluster:
        return nullcontext(str(folder / "space"))
    from cluster import cluster

    @contextmanager
    def url() -> Iterator[str]:
        with cluster(folder / "cluster") as (found, _):
            yield found

    return url()


if __name__ == "__main__":
    dispatch({"appender": appender, "worker": worker, "reader": reader, "follower": follower}, main)
