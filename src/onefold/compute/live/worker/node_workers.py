"""A node's work on live jobs: it sees in the folded log which jobs run, and works on those that it can do.

Nobody tells a node what to do. A job that it cannot do (another Python or other packages, code that it must not run) it leaves to
others, and says why in its log. What it holds when it dies is claimed by others once its lease is over.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onefold import config
from onefold.compute.code import needs as requirements
from onefold.compute.live.client import all_generations
from onefold.compute.live.inputs.stream_blobs import large_frames
from onefold.compute.live.job.status import LiveStatus, standings
from onefold.compute.live.job.stored import LiveJobs
from onefold.compute.live.worker.local_workers import LocalWorkers
from onefold.errors import InvalidValue, OnefoldError
from onefold.machine.undisturbed import is_interrupt
from onefold.state.core.client import StateClient
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.code.functions import Code
    from onefold.compute.execution.slots import Note
    from onefold.compute.live.client import Found, Listed
    from onefold.shard.api import Shard


class LiveNodeWorkers:
    """Works on the space's live jobs, one worker for each, until ``stop``. For one thread, but for ``stop`` and ``standings``.

    The shards are their owner's.
    """

    def __init__(self, shards: Sequence[Shard], blobs: BlobStore, *, code: Code, note: Note) -> None:
        client = StateClient(shards)
        client.large_frames = lambda: large_frames(shards[0], lambda: blobs)
        self._jobs = LiveJobs(lambda: client, lambda: blobs, code)
        self._workers = LocalWorkers(self._jobs, note)
        self._note = note
        self._joined: dict[str, Found] = {}
        self._refused: dict[str, str] = {}
        """Job -> the plan that it was refused with."""
        self._running_in: frozenset[int] = frozenset()
        """Shards of jobs that run."""
        self._others_at = 0.0
        """When to ask other nodes next for jobs in their other shards."""

    def look(self) -> None:
        """Join jobs that run, and leave those that do not any more."""
        running: dict[str, tuple[Found, str]] = {}
        for found, _, row in self._listed():
            if row.state in live_rows.ACTIVE:
                running[found.id] = found, row.plan
        self._running_in = frozenset(found.job.home for found, _ in running.values())
        for name in self._joined.keys() - running.keys():
            left = self._joined.pop(name)
            self._workers.stop(left.job.name, left.generation, config.LIVE_LEFT_WAIT_S)
            self._note("live_job_left", {"job": name})
        for name in self._refused.keys() - running.keys():
            del self._refused[name]
        for name, (found, plan) in running.items():
            if self._refused.get(name) == plan:
                continue
            if name in self._joined and self._workers.count(found):
                continue
            self._join(found, plan)

    def _listed(self) -> list[Listed]:
        """All jobs. Shards that other nodes host are left out most of the time, while no job of theirs runs."""
        client = self._jobs.client
        now = client.env.boot_s()
        asks = now >= self._others_at
        asked = [
            number
            for number, shard in enumerate(client.shards)
            if asks or shard.reads_here or number in self._running_in
        ]
        listed = all_generations(client, strong=False, shards=asked)
        if asks:
            self._others_at = now + config.UPKEEP_LOOK_S
        return listed

    def standings(self) -> list[tuple[str, str, LiveStatus | None]]:
        """See ``status.standings``. For any thread."""
        return list(standings(self._jobs))

    def stop(self) -> None:
        """Give back what it holds, and end, within ``config.LIVE_END_WAIT_S``."""
        self._workers.close()

    def _join(self, found: Found, plan: str) -> None:
        try:
            why = self._why_not(plan)
        except OnefoldError as error:  # the blob store does not answer, say: looked at again
            self._note("live_job_join_failed", {"job": found.id, "error": str(error)})
            return
        if why is not None:
            self._refused[found.id] = plan
            self._joined.pop(found.id, None)
            self._note("live_job_refused", {"job": found.id, "why": why})
            return
        self._refused.pop(found.id, None)
        self._workers.work(found, 1)
        if found.id not in self._joined:
            self._joined[found.id] = found
            self._note("live_job_joined", {"job": found.id})

    def _why_not(self, plan: str) -> str | None:
        """Why this node does not work on a job with this plan."""
        needed = requirements.sealed(self._jobs.blobs.get(plan))
        different = None if needed is None else requirements.mismatch(needed)
        if different is not None:
            return f"the job was started with {different}: install the same on the node, or start it with what the node has"
        try:
            self._jobs.plan(plan)
        except InvalidValue as error:
            return str(error)
        except OnefoldError:
            raise
        except Exception as error:  # unpickling runs code of users
            if is_interrupt(error):
                raise
            return f"the job's functions cannot be loaded: {type(error).__name__}: {error}"
        return None
