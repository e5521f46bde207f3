"""The engine: what a connection needs to start, follow and read jobs.

It joins the client (log, fold and blobs), the results with their caches, the garbage, and the runners of this process.
Everything it decides about a job is an operation in the log; what it keeps in memory can be thrown away at any time.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from onefold.compute.blobs import places as blob_places
from onefold.compute.blobs.store import BlobStore
from onefold.compute.client import JobClient
from onefold.compute.garbage import Garbage
from onefold.compute.jobs import state
from onefold.compute.jobs.ops import DROP_VERSION, DropTable, Refused
from onefold.compute.results.reading import Results
from onefold.env import SYSTEM, Env
from onefold.errors import Conflict, SpaceError
from onefold.machine.undisturbed import undisturbed
from onefold.shard.fold_version import reach_version

if TYPE_CHECKING:
    from onefold.compute.code.functions import Code
    from onefold.compute.execution.runner import Runner
    from onefold.compute.execution.slots import Host
    from onefold.shard.api import Shard


class Engine(JobClient):
    """A client that also works on runs, reads results and sweeps. One per open space. Thread-safe."""

    def __init__(
        self,
        shard: Shard,
        *,
        env: Env = SYSTEM,
        blobs: BlobStore | None = None,
        code: Code = "pickle",
        owns_space: bool = True,
        tidies: bool = True,
    ) -> None:
        """``blobs``: instead of the space's own. ``code``: which functions of jobs this process runs (``functions.load``).
        ``owns_space``: whether closing closes the space too. ``tidies``: whether it removes files that dead processes left."""
        self._owns_space, self._owns_blobs = owns_space, blobs is None
        self._scratch: Path | None = None
        super().__init__(
            shard, env=env, code=code, blobs=blobs if blobs is not None else self._own_blobs(shard)
        )
        if tidies and not getattr(shard, "read_only", False):
            self.blobs.sweep_temporary()
        self.results = Results(self)
        self.garbage = Garbage(self)
        self._runners: dict[str, Runner] = {}
        self._left_to_others: set[str] = set()
        """Runs that this process asked others to work on."""
        self.check_name: Callable[[str], None] | None = None
        """Called with the name of a table before a job into it begins; it raises where that is something else's."""
        self.free_name: Callable[[str], None] | None = None
        """Called when the jobs fold refuses a name as reserved: it frees the name, or raises as ``check_name``."""
        self._lock = threading.RLock()
        self._closed = False
        # A program that ends without closing gives its claims back all the same, and leaves no scratch files.
        atexit.register(_close_at_exit, weakref.ref(self), os.getpid())

    def _own_blobs(self, shard: Shard) -> BlobStore:
        blobs = blob_places.store_of(shard)
        if blobs is not None:
            return blobs
        if shard.directory is not None:
            return BlobStore(shard.directory / "blobs", read_only=bool(getattr(shard, "read_only", False)))
        import tempfile

        self._scratch = Path(tempfile.mkdtemp(prefix="onefold-"))
        return BlobStore(self._scratch / "blobs")

    def work(self, run: str, workers: int | None = None, host: Host | None = None) -> None:
        """Begin to work on a run in this process, unless that is being done or nothing is left to do.

        ``workers=0``: leave it to other processes. ``host``: the node that works on it.
        """
        undisturbed(partial(self._work, run, workers, host))

    def _work(self, run: str, workers: int | None, host: Host | None) -> None:
        from onefold.compute.execution.runner import Runner

        with self._lock:
            self.check_open()
            if workers == 0:
                self._left_to_others.add(run)
                return
            self._left_to_others.discard(run)
            with self.shard.view() as view:
                row = state.read_run(view, run)
            if row is None or row.state != "running":
                return
            runner = self._runners.get(run)
            if runner is not None and runner.alive:
                return
            self._runners[run] = runner = Runner(self, self.results, self.garbage, run, workers, host)
            runner.start()

    def runner(self, run: str) -> Runner | None:
        """This process's runner of a run."""
        with self._lock:
            return self._runners.get(run)

    def forget(self, run: str) -> None:
        """Keep nothing in memory of a run that has ended. For processes that live long."""
        with self._lock:
            runner = self._runners.get(run)
            if runner is not None and runner.alive:
                return
            self._runners.pop(run, None)
            self._left_to_others.discard(run)
            with self.shard.view() as view:
                row = state.read_run(view, run)
            if row is not None:
                self.drop_stored(row.plan)
                self.results.drop(row.plan)

    def drop_table(self, table: str) -> bool:
        """Forget a table with its runs. Whether there was one. Raises Conflict while one runs."""
        with self.shard.view() as view:
            if state.read_table(view, table) is None:
                return False
        if not reach_version(self.shard, DROP_VERSION):
            raise SpaceError(
                f"tables are dropped from fold version {DROP_VERSION} on, and a program or node of an earlier release has this "
                "space open. Upgrade it (pip install -U onefold), or stop it"
            )
        (outcome,) = self.submit(DropTable(table))
        if isinstance(outcome, Refused):
            if outcome.code == "running":
                raise Conflict(outcome.message)
            return False
        if not self.blobs.shared:
            self.garbage.sweep()
        return True

    def close(self) -> None:
        """Stop this process's work (claims are given back, runs can be resumed) and release everything."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            runners = list(self._runners.values())
        for runner in runners:
            runner.stop()
        if self._owns_blobs:
            self.blobs.close()  # gives up what is being tried again, so that nobody waits for it
        for runner in runners:
            runner.join()
        if self._owns_space:
            self.shard.close()
        if self._scratch is not None:
            import shutil

            shutil.rmtree(self._scratch, ignore_errors=True)

    def check_open(self) -> None:
        """Raise SpaceError once it is closed."""
        if self._closed:
            raise SpaceError("this connection is closed; call onefold.connect() again")

    def abandoned(self, run: str) -> bool:
        """Whether a run has no live process: its submitter and all owners of its claims are known to be dead."""
        with self.shard.view() as view:
            row = state.read_run(view, run)
            if row is None:
                return True
            members = {row.member} | {claim.member for claim in state.claims(view, run)}
        mine = self._runners.get(run)
        if (mine is not None and mine.alive) or run in self._left_to_others:
            return False
        members.discard(self.shard.member)
        return all(self.shard.member_alive(member) is False for member in members)

    def nobody_works(self, table: str) -> bool:
        """Whether the last run of a table has no live process."""
        with self.shard.view() as view:
            row = state.read_table(view, table)
        return row is None or self.abandoned(row.head)


def _close_at_exit(engine: weakref.ref[Engine], pid: int) -> None:
    found = engine()
    if found is not None and os.getpid() == pid:  # a forked child has nothing of it to give back
        found.close()
