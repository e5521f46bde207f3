"""A process for the kill tests of live jobs: it works on all jobs of ``jobs`` until it is killed, or until a line comes in.

``DIR LEASE SEED [MERGE_MS]``: with a seed other than 0 it kills itself in one of its first commits, before, during or after the
operation.
"""

import itertools
import os
import select
import signal
import sys
import threading
from random import Random

from onefold import config

if __name__ == "__main__":
    config.LEASE_S = float(sys.argv[2])
    config.LIVE_BEHIND_S = 0.0  # workers share every job at once
    if len(sys.argv) > 4:
        config.STREAM_MERGE_MS = int(sys.argv[4])

import onefold as of
from onefold import agg


def jobs(db):
    """The jobs, by sink."""
    rows = db.read_stream(
        "clicks", follow=True, event_time="at", watermark_delay="5s", idle=None, max_ahead=None
    )
    windows = rows.window(of.window.tumbling("10s")).group_by("page")
    sessions = rows.window(of.window.session("1s")).group_by("page")
    aggregates = {"n": agg.count(), "total": agg.sum("v")}
    return {
        "table": windows.agg(**aggregates).into("windows"),
        "sessions": sessions.agg(**aggregates).into("sessions"),
        "map": rows.group_by("page").agg(**aggregates).into_map("pages", key="page"),
        "stream": windows.agg(**aggregates).into_stream("out", key="page"),
    }


def die_in_a_commit(random):
    """Kill this process in one of its next commits, of whichever job."""
    from onefold.compute.live.bundles import HeldBundle

    last = random.randint(2, 9)
    moment = random.choice(("before", "during", "after"))
    commit, counted = HeldBundle.commit, itertools.count(1)

    def dying(self, delta):
        is_due = next(counted) >= last
        if is_due and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if is_due and moment == "during":
            threading.Timer(random.random() * 0.003, os.kill, (os.getpid(), signal.SIGKILL)).start()
        accepted = commit(self, delta)
        if is_due and moment == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return accepted

    HeldBundle.commit = dying


if __name__ == "__main__":
    if sys.argv[3] != "0":
        die_in_a_commit(Random(sys.argv[3]))
    with of.connect(sys.argv[1]) as db:
        for job in jobs(db).values():
            job.start(latency=0)
        print("up", flush=True)
        while not select.select([sys.stdin], [], [], 0.1)[0]:
            pass  # Polars' signal handler has the kernel begin a read again, so an interrupt would not end one
