"""Who observes that a worker is gone: any other worker of the job.

A process that is known to be dead is expired at once. One that nobody can see into (on a cluster) is expired when it was
silent for a lease on the observer's boot clock; it beats at a third of that. One that is known to live, and may be stopped, is
expired only when it was silent for a lease *and* has unread input: an idle job appends nothing, so its silence proves nothing.
The same holds for one that does not take its share of lanes that nobody owns and that have unread input: nobody else may.
"""

from __future__ import annotations

from collections.abc import Collection

from onefold import config
from onefold.compute.live.bundles import Worker
from onefold.state.fold.live import bundles as bundle_fold
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import Expire


class WorkerObserver:
    """What one worker has seen of the others."""

    def __init__(self, worker: Worker, lease_s: float = config.LEASE_S) -> None:
        self._worker = worker
        self._lease_s = lease_s
        self._since: dict[str, tuple[int, int, float]] = {}
        """(beats, activity, when they were first seen so)."""
        self._awake_s = worker.job.client.env.boot_s()
        """When this process was last known to run."""
        self._stood_still = False

    def awake(self) -> None:
        """This process runs. Also called by another thread while the worker is long in one step: a worker that was only busy may
        tell who was silent meanwhile, one whose process was stopped may not."""
        now = self._worker.job.client.env.boot_s()
        if now - self._awake_s > self._lease_s / 2:
            self._stood_still = True
        self._awake_s = now

    def look(self, behind: Collection[str]) -> int:
        """Expire the workers that are gone; how many. ``behind``: those with unread input, which they own or are to take."""
        worker, job = self._worker, self._worker.job
        now = job.client.env.boot_s()
        self.awake()
        if self._stood_still:
            self._stood_still = False
            self._since.clear()  # this process was stopped itself: it cannot tell who was silent meanwhile
        with job.local() as view:
            workers = live_rows.workers(view, job.name, worker.generation)
            keys = [key for key, _ in live_rows.parts(view, job.name, worker.generation)]
            bundles = [bundle for key in keys for bundle in live_rows.bundles(view, key)]
        shard, expired = job.client.shards[job.home], 0
        for name, row in workers.items():
            if name == worker.id:
                continue
            active = bundle_fold.activity(bundles, name)
            alive = shard.member_alive(row.member)
            beats, activity, since = self._since.get(name, (-1, -1, now))
            if (beats, activity) != (row.beats, active) or (alive and name not in behind):
                since = now
            self._since[name] = (row.beats, active, since)
            if alive is False or now - since >= self._lease_s:
                died = alive is False
                op = Expire(job.name, worker.generation, name, row.beats, active, died)
                expired += bool(job.submit(op))
        self._since = {name: seen for name, seen in self._since.items() if name in workers}
        return expired
