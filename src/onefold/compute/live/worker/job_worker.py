"""One worker of a live job: in turn it lets each part work, until the job takes no more commits.

A job that one worker can do has one (``standby``). Between rounds it waits for news of the shards that it reads. It commits at
most once in each ``latency`` on average, unless there is a whole batch to read: one commit may come early, so that events which
arrive at that pace do not wait. An idle worker appends nothing.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from onefold import config
from onefold.backoff import Deadline
from onefold.compute.live.bundles import Worker
from onefold.compute.live.client import PASSING, BundleLost, NotRunning
from onefold.compute.live.holds import Holding
from onefold.compute.live.inputs.python_steps import Stopped
from onefold.compute.live.observing import WorkerObserver
from onefold.compute.live.output.forwarder import Forwarder
from onefold.compute.live.worker.part_worker import PartWorker
from onefold.compute.live.worker.standby import Standby
from onefold.compute.tasks.failures import refused_by_machine
from onefold.errors import OnefoldError
from onefold.state.core.waiting import wait_any
from onefold.state.fold.live import rows as live_rows

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.live.client import LiveJob
    from onefold.compute.live.plan import LivePlan
    from onefold.compute.live.runs.run_store import RunReader
    from onefold.compute.results.reading import Results
    from onefold.state.fold.live.rows import GenerationRow

WAIT_S: Final = 0.25
"""How long a worker waits at most before it looks at the job's row and at other workers."""
OBSERVE_S: Final = 0.2
"""How often it looks whether the others live."""


class _PlanChanged(Exception):
    """The job has another plan."""


def trouble_of(error: BaseException) -> str:
    """Why work has to wait, where it may continue after that: what passes, and what the machine refuses, such as room on a disk.
    Empty: the work cannot continue."""
    return str(error) if isinstance(error, PASSING) else refused_by_machine(error)


class JobWorker:
    """Works on a generation. For one thread; ``stop`` and ``beat_if_busy`` may be called from others."""

    def __init__(
        self,
        job: LiveJob,
        generation: int,
        plan: LivePlan,
        blobs: BlobStore,
        reader: RunReader,
        results: Callable[[], Results],
        *,
        blob: str = "",
        shares: bool = True,
        stopping: threading.Event | None = None,
    ) -> None:
        """``blob``: of the plan; empty: whatever it is. ``shares``: it joins others at once (``standby``). ``stopping``: set to
        have ``run`` return soon."""
        self._job = job
        self._blob = blob
        self._generation = generation
        self._latency_s = plan.latency_us / 1e6
        self._env = job.client.env
        self._paced_s = float("-inf")
        """When the next commit would begin if commits came at their pace (the generic cell rate algorithm, ITU-T I.371)."""
        self.worker = Worker(job, generation)
        self._parts = [PartWorker(self.worker, plan, part, blobs, reader, results) for part in plan.parts]
        self.standby = Standby(self.worker, self._parts, self._latency_s, shares=shares)
        self._forwarder = Forwarder(job, generation)
        self._holding = Holding(job, generation, plan.parts)
        self._observer = WorkerObserver(self.worker)
        self._observed_s = 0.0
        self._beat_s = self._env.boot_s()
        self._busy_since: float | None = None
        self.trouble = ""
        """Why it could not work in its last round, and tries again."""
        self._stopped = stopping or threading.Event()
        self.works = False
        """It is a worker of the job, and does not stand by."""
        self.finished = False
        """The job takes no more commits."""
        self.plan_changed = False
        """The job has another plan now."""

    def stop(self) -> None:
        """Have ``run`` return soon, also when it waits for a function of the plan. What it holds is given back."""
        self._stopped.set()
        for part in self._parts:
            part.close()

    def run(self) -> None:
        """Work until ``stop`` or until the job takes no more commits. Raises what work cannot continue after."""
        try:
            while not self._stopped.is_set():
                try:
                    self._busy_since = self._env.boot_s()
                    self._round()
                except BundleLost:
                    for part in self._parts:
                        part.drop_lost()
                except NotRunning:
                    self.finished = True
                    return
                except Stopped:
                    return
                except _PlanChanged:
                    self.plan_changed = True
                    return
                except (*PASSING, OSError) as error:
                    self._passes(error)
        finally:
            for part in self._parts:
                part.close()
            self._give_back()
            for part in self._parts:
                part.wait()

    def _passes(self, error: OnefoldError | OSError) -> None:
        """A round could not be done, and is tried again. Raises an error after which the work cannot continue."""
        why = trouble_of(error)
        if not why:
            raise error
        if not (isinstance(error, OnefoldError) and error.definite):
            for part in self._parts:
                part.drop_doubtful()
        self.trouble = why
        with contextlib.suppress(OnefoldError):  # the next round tells
            self.standby.met_trouble()
        self._stopped.wait(WAIT_S)

    def beat_if_busy(self, busy_s: float) -> None:
        """Say that it lives when a step takes longer than that: others must not take it for stopped, nor it itself. From another
        thread."""
        self._observer.awake()
        if self._busy_since is not None and self.busy_s >= busy_s:
            self.worker.beat()

    @property
    def busy_s(self) -> float:
        """For how long it has been in one step; 0: it waits."""
        since = self._busy_since
        return 0.0 if since is None else self._env.boot_s() - since

    # -- a round

    def _round(self) -> None:
        began_s = self._env.boot_s()
        generation, offset = self._looked()
        self._observe(generation)
        self._holding.look()
        self.works = self.standby.works(generation)
        if not self.works:
            self.trouble, self._busy_since = "", None
            self._stopped.wait(WAIT_S)  # not for news: each commit of the others would be some
            return
        seen = {self._job.home: offset}
        worked = False
        may_read = self._forwarder.waiting_bytes() < config.LIVE_OUTBOX_BYTES_MAX and self._has_room(
            generation
        )
        for part in self._parts:
            if part.waits_for_streams() and generation.state != "draining":
                continue
            worked |= part.work(generation, seen, may_read=may_read)
        worked |= self._forward()
        self.trouble = ""
        self.standby.worked(self._env.boot_s() - began_s)
        if not worked:
            self._busy_since = None
            wait_any(self._job.client, seen, WAIT_S)
            return
        if any(part.is_behind for part in self._parts):
            return  # commits are as large as they may be: nothing is gathered by waiting
        self._paced_s = max(self._paced_s, began_s) + self._latency_s
        left = self._paced_s - self._latency_s - self._env.boot_s()
        if left > 0:
            self._stopped.wait(left)

    def _has_room(self, generation: GenerationRow) -> bool:
        """Whether its open state leaves room for more; others see when that changes. A job that drains reads on: its
        windows close at the end only."""
        held = sum(part.state_bytes for part in self._parts)
        full_bytes = held if held > config.LIVE_STATE_BYTES_MAX and generation.state != "draining" else 0
        if bool(full_bytes) != bool(self.worker.full_bytes):
            self.worker.full_bytes = full_bytes
            self.worker.beat()
        return not full_bytes

    def _looked(self) -> tuple[GenerationRow, int]:
        """The generation's row, and the offset of the home shard that shows it. Raises NotRunning."""
        with self._job.local() as view:
            found, offset = live_rows.generation_of(view, self._job.name, self._generation), view.offset
        if found is None or found.state not in live_rows.ACTIVE:
            raise NotRunning(f"job {self._job.name!r} is over")
        if self._blob and found.plan != self._blob:
            raise _PlanChanged
        return found, offset

    def _forward(self) -> bool:
        """Do in other shards what commits have sent there: the owner of the first lane does, since one is enough."""
        return any(part.has_first_lane for part in self._parts) and self._forwarder.forward()

    def _observe(self, generation: GenerationRow) -> None:
        now = self._env.boot_s()
        if now - self._observed_s < OBSERVE_S:
            return
        self._observed_s = now
        if now - self._beat_s >= config.LEASE_S / 3:
            self._beat_s = now
            if self.worker.needs_beats:
                self.worker.beat()
        with self._job.local() as view:
            workers = live_rows.workers(view, self._job.name, self._generation)
        if workers.keys() - {self.worker.id}:
            self._observer.look({owner for part in self._parts for owner in part.behind(generation)})

    def _give_back(self) -> None:
        """Others may claim what it holds, at once, also of a job that was stopped: it may be started again. Then what its commits
        have sent to other shards is done there, if it can be: otherwise the next worker does that."""
        forwards = any(part.has_first_lane for part in self._parts)
        deadline = Deadline.after(config.LIVE_GIVE_BACK_S, self._env)
        while True:
            try:
                self.worker.leave()
                break
            except PASSING:
                if deadline.passed:
                    return
                self._job.client.shards[self._job.home].pause(deadline.within(WAIT_S))
            except OnefoldError:
                return  # the others see that this process is gone
        with contextlib.suppress(OnefoldError):
            while forwards and not deadline.passed:
                forwards = self._forwarder.forward()
