"""A node's work on jobs: it finds running runs in shard 0, joins those that it can do, and leaves when it is drained.

Nobody tells a node what to do. It sees runs in the folded log, claims their tasks like any other worker, and what it holds
when it dies is claimed by others once its lease is over. A run that it cannot do (another Python or other packages, code that
it must not run) it leaves alone, and says why in the log, where those who wait for the run can read it.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onefold import config
from onefold.backoff import Deadline
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.code import needs as requirements
from onefold.compute.execution.runner import Runner, cores
from onefold.compute.execution.slots import Host, Slots
from onefold.compute.jobs import ops, state
from onefold.compute.loading import load_everything
from onefold.errors import InvalidValue, OnefoldError
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    from onefold.compute.engine import Engine
    from onefold.compute.execution.slots import Note

_IDLE_WAIT_S = 1.0


@dataclass(frozen=True)
class NodeStatus:
    """What a node does at this moment."""

    slots: int
    busy: int
    """Tasks that it works on."""
    runs: tuple[str, ...]
    """Runs that it works on."""
    refused: dict[str, str]
    """Running runs that it does not work on -> why."""
    problem: str | None
    """Why the last look failed; None when it did not."""


class NodeWorkers:
    """Works on the space's runs until ``stop`` or ``drain``. Thread-safe. The engine is its owner's and stays open."""

    def __init__(
        self, engine: Engine, *, node: str, slots: int | None = None, note: Note | None = None
    ) -> None:
        """``node``: its name, which errors show. ``slots``: tasks at a time (default: the cores of this process)."""
        self._engine = engine
        self._host = Host(node, Slots(slots if slots is not None else cores()))
        self._note = note or (lambda _event, _fields: None)
        self._stopping = threading.Event()
        self._draining = threading.Event()
        self._kicked = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name="onefold-node-workers")
        self._lock = threading.Lock()
        self._runners: dict[str, Runner] = {}
        self._refused: dict[str, str] = {}
        self._again_at: dict[str, float] = {}
        """When to look again at a run whose runner stopped or could not start."""
        self._garbage: tuple[float, frozenset[str]] = (0.0, frozenset())
        self._problem: str | None = None

    # -- from outside

    def start(self) -> None:
        """Begin; returns at once."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it looks for work or works."""
        return self._thread.is_alive()

    @property
    def busy(self) -> int:
        """How many tasks it works on now."""
        return self._host.slots.in_use

    def status(self) -> NodeStatus:
        """What it does at this moment."""
        with self._lock:
            runs = tuple(run for run, runner in self._runners.items() if runner.alive)
            return NodeStatus(self._host.slots.count, self.busy, runs, dict(self._refused), self._problem)

    def worker_pids(self) -> list[int]:
        """Process ids of its worker processes."""
        with self._lock:
            return [pid for runner in self._runners.values() for pid in runner.worker_pids]

    def stop_claims(self) -> None:
        """Claim no more; tasks in progress continue."""
        self._draining.set()
        self._kicked.set()
        with self._lock:
            runners = list(self._runners.values())
        for runner in runners:
            runner.leave()

    def drain(self, timeout: float = config.DRAIN_TIMEOUT_S) -> bool:
        """Finish the tasks in progress within ``timeout`` seconds, give back the others, and end. Whether all were finished."""
        self.stop_claims()
        deadline = Deadline.after(timeout, self._engine.env)
        with self._lock:
            runners = list(self._runners.values())
        for runner in runners:
            runner.join(deadline.within(timeout))
        whole = not any(runner.alive for runner in runners)
        self.stop()
        return whole

    def stop(self) -> None:
        """Give claims back, end the workers, and end."""
        self._draining.set()
        self._stopping.set()
        self._kicked.set()
        with self._lock:
            runners = list(self._runners.values())
        for runner in runners:
            runner.stop()
        for runner in runners:
            runner.join()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        for run in list(self._runners):
            self._engine.forget(run)

    def close(self) -> None:
        """As ``stop``."""
        self.stop()

    # -- the looking thread

    def _live(self) -> None:
        seen = -1
        while not self._draining.is_set():
            try:
                offset = self._engine.shard.applied
                if offset != seen or self._overdue():
                    self._look()
                    seen = offset
                self._sweep()
                self._problem = None
            except OnefoldError as error:
                self._tell("jobs_unreachable", error=str(error))
                self._problem = str(error)
                seen = -1
                self._draining.wait(config.NODE_RETRY_S)
                continue
            self._kicked.wait(config.NODE_RUN_LOOK_S)
            if not self._overdue():
                with contextlib.suppress(OnefoldError):
                    self._engine.shard.wait(seen, _IDLE_WAIT_S)

    def _overdue(self) -> bool:
        """Whether there is something to do that no record tells: a runner that ended, a run to be looked at again."""
        now = self._engine.env.boot_s()
        with self._lock:
            return any(not runner.alive for runner in self._runners.values()) or any(
                at <= now for at in self._again_at.values()
            )

    def _look(self) -> None:
        """Drop what has ended, join what runs."""
        with self._engine.shard.view() as view:
            running = state.running(view)
        self._drop(set(running))
        now = self._engine.env.boot_s()
        for run in running:
            if self._draining.is_set() or len(self._runners) >= config.NODE_RUNS_MAX:
                return
            if run not in self._runners and run not in self._refused and self._again_at.get(run, 0.0) <= now:
                self._again_at.pop(run, None)
                self._join(run)

    def _drop(self, running: set[str]) -> None:
        for run in self._refused.keys() - running:
            del self._refused[run]
        for run in self._again_at.keys() - running:
            del self._again_at[run]
        for run, runner in list(self._runners.items()):
            if runner.alive:
                continue
            with self._lock:
                del self._runners[run]
            if run not in running:
                self._tell("run_left", run=run)
                self._engine.forget(run)
            elif runner.gave_up:
                self._refuse(run, "too many of its tasks need what is not on this machine")
            else:
                if runner.error is not None:
                    self._tell("run_interrupted", run=run, error=str(runner.error))
                self._later(run)

    def _later(self, run: str) -> None:
        self._again_at[run] = self._engine.env.boot_s() + config.NODE_RETRY_S

    def _join(self, run: str) -> None:
        with self._engine.shard.view() as view:
            row = state.read_run(view, run)
            said = {one.node for one in state.unfit(view, run)}
        if row is None or row.state != "running":
            return
        load_everything()  # before threads of this run and those of live jobs import it piece by piece
        try:
            why = self._why_not(row.plan)
            if why is None:
                self._engine.work(run, self._host.slots.count, self._host)
        except BlobMissing as error:
            self._refuse(run, f"its plan cannot be had: {error}")
            return
        except OnefoldError as error:  # the blob store does not answer, say
            self._tell("run_join_failed", run=run, error=str(error))
            self._later(run)
            return
        if why is not None:
            self._refuse(run, why)
            return
        if self._host.node in said:  # of an earlier life of this node, with other packages
            self._engine.submit(ops.Unfit(run, self._host.node, ""))
        runner = self._engine.runner(run)
        if runner is not None:
            with self._lock:
                self._runners[run] = runner
            if self._draining.is_set():
                runner.leave()
            self._tell("run_joined", run=run, table=row.table)

    def _why_not(self, plan: str) -> str | None:
        """Why this node does not work on a run with this plan."""
        data = self._engine.blobs.get(plan)
        needed = requirements.sealed(data)
        if needed is not None:
            different = requirements.mismatch(needed)
            if different is not None:
                return (
                    f"the job was submitted with {different}: install the same on the node, "
                    "or submit it with what the node has"
                )
        try:
            self._engine.stored(plan)
        except InvalidValue as error:
            return str(error)
        except Exception as error:  # unpickling runs code of users
            if is_interrupt(error):
                raise
            return f"the job's functions cannot be loaded: {type(error).__name__}: {error}"
        return None

    def _refuse(self, run: str, why: str) -> None:
        self._refused[run] = why
        self._tell("run_refused", run=run, why=why)
        self._engine.submit(ops.Unfit(run, self._host.node, why))

    def _sweep(self) -> None:
        """Remove blobs that nothing has named for a while: what was just unnamed may be about to be named again."""
        now = self._engine.env.boot_s()
        last, before = self._garbage
        if not self._engine.blobs.shared or now - last < config.GARBAGE_SWEEP_S:
            return
        swept = self._engine.garbage.sweep(before)
        self._garbage = now, frozenset(self._engine.garbage.names())
        if swept:
            self._tell("blobs_swept", count=swept)

    def _tell(self, event: str, **fields: Any) -> None:
        self._note(event, {"node": self._host.node, **fields})
