"""A process for the kill tests of a history: it works on the job of ``job`` and dies at the commit in which the history enters.

``DIR FILES MOMENT NUMBER``: before or after the so manieth of these commits, one of each bundle.
"""

import itertools
import os
import signal
import sys
import threading
from datetime import UTC, datetime

import onefold as of
from onefold import agg

AT = datetime(2026, 1, 1, 0, 0, 35, tzinfo=UTC)


def job(db, files):
    """Windows of ten seconds, of which one crosses the seam. All are open when the history enters, so that twice would show."""
    live = db.read_stream(
        "clicks", follow=True, event_time="at", watermark_delay="1m", idle=None, max_ahead=None
    )
    windows = db.concat(db.read_parquet(files), live, at=AT).window(of.window.tumbling("10s"))
    return windows.group_by("page").agg(n=agg.count(), total=agg.sum("v")).into("windows")


def die_when_it_enters(db, moment, number):
    """Kill this process at the commit that moves the position of the history. None enters before two workers have lanes."""
    from onefold.compute.live.bundles import HeldBundle
    from onefold.compute.live.history import History

    commit, partial, counted, lock = HeldBundle.commit, History.partial, itertools.count(1), threading.Lock()

    def once_there_are_two(self):
        return partial(self) if len(db.table("windows").contents().bundles) > 1 else None

    def dying(self, delta):
        if not any(one.input == 1 for one in delta.positions):
            return commit(self, delta)
        with lock:
            is_due = next(counted) == number
            if is_due and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            accepted = commit(self, delta)
            if is_due and moment == "after":
                os.kill(os.getpid(), signal.SIGKILL)
        return accepted

    History.partial = once_there_are_two
    HeldBundle.commit = dying


if __name__ == "__main__":
    with of.connect(sys.argv[1]) as db:
        die_when_it_enters(db, sys.argv[3], int(sys.argv[4]))
        job(db, sys.argv[2]).start(workers=2)
        threading.Event().wait(60)
