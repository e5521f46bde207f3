"""A worker of a live job for the kill test: ``DIR UPTO LEASE_S``. Works until everything up to there is committed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import onefold as of
from onefold.compute.live.bundles import Worker
from onefold.compute.live.client import BundleLost, LiveJob
from onefold.compute.live.observing import WorkerObserver
from onefold.state.fold.live import rows
from support.live_counting import count


def bundles(job):
    with job.view() as view:
        return rows.bundles(view, rows.part_key(job.name, 1, "count"))


def step(worker, observer, upto):
    """Whether there is more to do."""
    left = [one for one in bundles(worker.job) if one.row.positions[0].next < upto]
    observer.look({one.row.owner for one in left})
    try:
        for held in worker.claim("count"):
            at = held.row.positions[0].next
            if at < upto:
                batch = count(held, min(upto, at + 4))
                worker.job.client.shards[0].pause(0.01)  # killed and stopped here, above all
                if held.commit(batch).wanted:
                    worker.give("count")
        worker.fuse("count")
    except BundleLost:
        worker.refresh("count")
    return bool(left)


def main():
    directory, upto, lease_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    with of.connect(directory) as db:
        worker = Worker(LiveJob(db._state, "job"), 1)
        observer = WorkerObserver(worker, lease_s)
        while step(worker, observer, upto):
            pass


main()
