"""The workers of live jobs in this process: threads, each with a worker of its own.

A worker that finds that its job has another plan now (the program was changed and started again, here or elsewhere) ends, and
another one begins with that plan.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from onefold import config
from onefold.backoff import NEVER, Deadline
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.live.client import PASSING, NotRunning, OtherPlan
from onefold.compute.live.holds import release_if_it_can, release_if_over
from onefold.compute.live.runs.run_store import RunReader
from onefold.compute.live.worker.job_worker import WAIT_S, JobWorker, trouble_of
from onefold.compute.tasks.failures import one_line
from onefold.errors import JobFailed, LogCorrupt, OnefoldError
from onefold.machine.undisturbed import if_possible
from onefold.state.core import time_limits
from onefold.state.core.time_limits import limited_step
from onefold.state.fold.live.ops import Leave

if TYPE_CHECKING:
    from onefold.compute.execution.slots import Note
    from onefold.compute.live.client import Found
    from onefold.compute.live.job.stored import LiveJobs


class _Slot:
    """One worker, and its thread."""

    def __init__(self, jobs: LiveJobs, reader: RunReader, found: Found, note: Note, *, shares: bool) -> None:
        self._jobs = jobs
        self._reader = reader
        self._found = found
        self._note = note
        self._shares = shares
        self._stopping = threading.Event()
        self._worker: JobWorker | None = None
        self._waits = ""
        """Why it could not begin when it tried last, and tries again."""
        self._plan = ""
        """The blob of the plan that it works with."""
        self.thread = threading.Thread(target=self._run, name=f"onefold-live-{found.job.name}", daemon=True)

    def share(self) -> None:
        """Have it work next to others at once."""
        self._shares = True
        worker = self._worker
        if worker is not None:
            worker.standby.shares = True

    def stop(self) -> None:
        """Have it end soon. What it holds is given back."""
        self._stopping.set()
        worker = self._worker
        if worker is not None:
            worker.stop()

    def has_ended(self, deadline: Deadline) -> bool:
        """Whether it ends until then. One that a signal handler kept from beginning has."""
        if self.thread.ident is not None and self.thread is not threading.current_thread():
            self.thread.join(deadline.within(threading.TIMEOUT_MAX))
        return not self.thread.is_alive()

    def give_up(self, deadline: Deadline) -> None:
        """It is busy, with a function of the user, say: others may claim what it holds, and its next commit is refused."""
        worker = self._worker
        if worker is not None:
            with if_possible, limited_step(self._found.job.client, deadline):  # it is expired instead
                self._found.job.submit(Leave(self._found.job.name, self._found.generation, worker.worker.id))

    def beat_if_busy(self, busy_s: float) -> None:
        """See ``JobWorker``."""
        worker = self._worker
        if worker is not None and self.thread.is_alive():
            worker.beat_if_busy(busy_s)

    def busy_s(self) -> float:
        """See ``JobWorker``."""
        worker = self._worker
        return 0.0 if worker is None else worker.busy_s

    def trouble(self) -> str:
        """See ``JobWorker``."""
        worker = self._worker
        return self._waits if worker is None else worker.trouble

    def _run(self) -> None:
        while self._works():
            pass
        # It may have set a hold after the end of its job, and it may be the last to work on live jobs.
        with contextlib.suppress(Exception):  # the connection may close below it
            release_if_over(self._found.job, self._found.generation)

    def _works(self) -> bool:
        """Work until there is nothing more to do; whether to begin again."""
        try:
            return self._work()
        except NotRunning:
            return False
        except LogCorrupt as error:  # of this process's copy: it is not the job that is broken
            self._note("live_job_refused", {"job": self._found.id, "why": str(error)})
            return False
        except BaseException as error:
            if self._stopping.is_set() and not isinstance(error, JobFailed):
                return False  # the connection closes below it
            self._waits = trouble_of(error)
            if self._waits:  # before it could begin
                return not self._stopping.wait(WAIT_S)
            message = str(error) if isinstance(error, JobFailed) else one_line(error)
            self._note("live_job_failed", {"job": self._found.id, "error": message})
            return self._fail(message)

    def _fail(self, message: str) -> bool:
        """The job failed with the plan that this worker had; whether it has another one now, to begin again with."""
        found = self._found
        while True:
            try:
                found.job.stop(found.generation, "failed", message, self._plan)
            except PASSING:
                if not self._stopping.wait(WAIT_S):
                    continue
            except OtherPlan:
                return True  # the program was corrected meanwhile
            except OnefoldError:
                pass  # it is over
            return False

    def _work(self) -> bool:
        """Work with the plan that the job has now; whether it has another one then."""
        row = self._found.job.generation(self._found.generation, strong=False)
        if row is None or self._stopping.is_set():
            return False
        self._plan = row.plan
        try:
            plan = self._jobs.plan(row.plan)
        except OnefoldError as error:
            if isinstance(error, PASSING) and not isinstance(error, BlobMissing):
                raise
            # Of another Python, say: other processes can do it, and this one cannot.
            self._note("live_job_refused", {"job": self._found.id, "why": str(error)})
            return False
        self._worker = worker = JobWorker(
            self._found.job,
            self._found.generation,
            plan,
            self._jobs.blobs,
            self._reader,
            self._jobs.results,
            blob=row.plan,
            shares=self._shares,
            stopping=self._stopping,
        )
        if self._shares:  # said to this slot while it made its worker
            worker.standby.shares = True
        worker.run()
        return worker.plan_changed


class LocalWorkers:
    """All workers of this process. Thread-safe."""

    def __init__(
        self, jobs: LiveJobs, note: Note | None = None, keep_swept: Callable[[], None] = lambda: None
    ) -> None:
        """``keep_swept``: see ``LiveHost``."""
        self._jobs = jobs
        self._keep_swept = keep_swept
        self._note: Note = note or (lambda _event, _fields: None)
        self.reader = RunReader(jobs.blobs)
        """Runs that this process has read."""
        self._slots: dict[str, list[_Slot]] = {}
        self._left: set[str] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="onefold-live-beats", daemon=True)

    def work(self, found: Found, count: int) -> None:
        """Have so many workers of this process work on a generation; there are never more. 0: others do. One stands by while
        others are enough, and several share the work with them at once."""
        with self._lock:
            if self._closed.is_set():
                return
            if count == 0:
                self._left.add(found.id)
                return
            self._left.discard(found.id)
            mine = self._slots.setdefault(found.id, [])
            mine[:] = [one for one in mine if one.thread.is_alive()]
            for one in mine if count > 1 else ():
                one.share()
            for _ in range(count - len(mine)):
                slot = _Slot(self._jobs, self.reader, found, self._note, shares=count > 1)
                mine.append(slot)
                slot.thread.start()
            if self._beats.ident is None:
                self._beats.start()
        self._keep_swept()

    def count(self, found: Found) -> int:
        """How many threads of this process work on it."""
        with self._lock:
            return sum(slot.thread.is_alive() for slot in self._slots.get(found.id, ()))

    def busy_s(self, found: Found) -> float | None:
        """For how long one of them has been in one step; None: there is none."""
        with self._lock:
            busy = [slot.busy_s() for slot in self._slots.get(found.id, ()) if slot.thread.is_alive()]
        return max(busy, default=None)

    def trouble(self, found: Found) -> str:
        """Why one of them cannot work now, and tries again; empty: nothing keeps them."""
        with self._lock:
            slots = [slot for slot in self._slots.get(found.id, ()) if slot.thread.is_alive()]
        return next((trouble for slot in slots if (trouble := slot.trouble())), "")

    def left_to_others(self, found: Found) -> bool:
        """Whether this process has asked others to work on it."""
        return found.id in self._left

    def stop(self, job: str, generation: int, wait_s: float | None = None) -> None:
        """End this process's workers of a generation, and wait for them, so long at most (None: ``config.LIVE_END_WAIT_S``): one
        that is busy for longer ends by itself later, and holds nothing any more."""
        with self._lock:
            mine = self._slots.pop(f"{job}/{generation}", [])
        longest_s = config.LIVE_END_WAIT_S if wait_s is None else wait_s
        client = self._jobs.client
        _end(mine, Deadline.after(time_limits.wait_s(client, longest_s), client.env))

    def end(self, job: str, generation: int, deadline: Deadline = NEVER) -> None:
        """The same for a generation that is over: nothing is kept for it any more of what it reads. ``deadline``: of the call."""
        self.stop(job, generation, deadline.within(config.LIVE_END_WAIT_S))
        with limited_step(self._jobs.client, deadline):
            release_if_it_can(self._jobs.client)
        self._keep_swept()  # what it leaves may be the last that there is of live jobs

    def close(self) -> None:
        """End all workers, and wait for them as ``stop`` does: what they hold is given back. The jobs continue with others."""
        with self._lock:
            self._closed.set()
            mine = [slot for slots in self._slots.values() for slot in slots]
            self._slots.clear()
        deadline = Deadline.after(config.LIVE_END_WAIT_S)
        _end(mine, deadline)
        if self._beats.ident is not None:
            self._beats.join(deadline.within(config.LIVE_END_WAIT_S))

    def _beat(self) -> None:
        """Say for workers that are long in one step that they live: what stops a process stops this thread too."""
        every_s = config.LEASE_S / 3
        while not self._closed.wait(every_s):
            with self._lock:
                slots = [slot for slots in self._slots.values() for slot in slots]
            for slot in slots:
                with contextlib.suppress(OnefoldError):  # the next one tells, or the others take over
                    slot.beat_if_busy(every_s)


def _end(slots: list[_Slot], deadline: Deadline) -> None:
    for slot in slots:
        slot.stop()
    for slot in [slot for slot in slots if not slot.has_ended(deadline)]:
        slot.give_up(deadline)
