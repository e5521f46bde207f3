"""The engine: what a connection needs to start, follow and read jobs.

It joins the space (log and fold), the blob store, the runners of this process and the caches of readers. Everything it
decides about a job is an operation in the log; what it keeps in memory can be thrown away at any time.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from onefold import config
from onefold.codec import Op
from onefold.compute.blobs import places as blob_places
from onefold.compute.blobs import sweeping
from onefold.compute.blobs.store import BlobStore, BlobsUnavailable, blob_name
from onefold.compute.jobs import ops, state
from onefold.compute.plan.stages import Result
from onefold.env import SYSTEM, Env
from onefold.errors import (
    Conflict,
    InvalidArgument,
    InvalidPlan,
    InvalidValue,
    LogCorrupt,
    SpaceError,
)
from onefold.machine.undisturbed import undisturbed

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.code.functions import Code
    from onefold.compute.execution.runner import Runner
    from onefold.compute.execution.slots import Host
    from onefold.compute.plan.nodes import Job
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.results.merge import MergeCache
    from onefold.compute.results.stored import StoredResult
    from onefold.compute.runs import Run
    from onefold.shard.api import Shard

_encoder = msgspec.msgpack.Encoder()
_outcome_decoder = msgspec.msgpack.Decoder(ops.Outcome)
_SUBMIT_TRIES = 5
_SWEEP_BATCH = 1000


class Engine:
    """Jobs on one open space. Thread-safe."""

    def __init__(
        self,
        shard: Shard,
        *,
        env: Env = SYSTEM,
        blobs: BlobStore | None = None,
        code: Code = "pickle",
        owns_space: bool = True,
    ) -> None:
        """``blobs``: instead of the space's own. ``code``: which functions of jobs this process runs (``functions.load``).
        ``owns_space``: whether closing closes the space too."""
        self.shard = shard
        self.env = env
        self.code = code
        self._owns_space, self._owns_blobs = owns_space, blobs is None
        self._scratch: Path | None = None
        blobs = blobs if blobs is not None else blob_places.store_of(shard)
        if blobs is not None:
            self.blobs = blobs
        elif shard.directory is None:
            import tempfile

            self._scratch = Path(tempfile.mkdtemp(prefix="onefold-"))
            self.blobs = BlobStore(self._scratch / "blobs")
        else:
            self.blobs = BlobStore(shard.directory / "blobs")
        self.blobs.sweep_temporary()
        self._stored: dict[str, StoredJob] = {}
        self._results: dict[str, StoredResult] = {}
        self._unchecked: list[ops.Done] = []
        """Recorded results whose blobs could not be looked for."""
        self._runners: dict[str, Runner] = {}
        self._left_to_others: set[str] = set()
        """Runs that this process asked others to work on."""
        self._lock = threading.RLock()
        self._caches: dict[str, MergeCache] = {}
        self._closed = False
        # A program that ends without closing gives its claims back all the same, and leaves no scratch files.
        atexit.register(_close_at_exit, weakref.ref(self), os.getpid())

    # -- operations -------------------------------------------------------------------------------------------------

    def submit(self, *operations: ops.Operation) -> list[ops.Accepted | ops.Refused]:
        """Append operations of the jobs fold in one record and return their outcomes."""
        outcomes = self.shard.submit([Op("jobs", _encoder.encode(operation)) for operation in operations])
        return [_outcome_decoder.decode(outcome) for outcome in outcomes]

    def start(
        self,
        job: Job,
        *,
        workers: int | None = None,
        seed: int = 7,
        target_splits: int | None = None,
        on_error: Literal["fail", "skip"] = "fail",
        max_attempts: int = config.MAX_ATTEMPTS,
        submitting: Callable[[str], None] | None = None,
    ) -> Run:
        """Submit a job and begin to work on it in the background; see ``PreparedJob.start`` for the arguments.

        ``submitting`` hears the id of each run before the log does. When a signal handler raises meanwhile, a run whose id
        was heard may be on the log, and worked on.
        """
        from onefold.compute import launching
        from onefold.compute.execution.runner import worker_count
        from onefold.compute.runs import Run, leave_to_nodes

        self._check_open()
        workers = 0 if leave_to_nodes else worker_count(workers)
        for _ in range(_SUBMIT_TRIES):
            stored_blobs = sweeping.Remembered(self.blobs)
            operation, stored = undisturbed(
                partial(
                    launching.prepared,
                    self,
                    job,
                    stored_blobs,
                    seed=seed,
                    target_splits=target_splits,
                    on_error=on_error,
                    max_attempts=max_attempts,
                )
            )
            if submitting is not None:
                submitting(operation.run)
            outcome = launching.submitted(self, operation, stored, stored_blobs, workers)
            if isinstance(outcome, ops.Accepted):
                return Run(self, outcome.run)
            if outcome.code in ("table_exists", "different_columns"):
                raise InvalidArgument(outcome.message)
            if outcome.code != "conflict":
                raise Conflict(outcome.message)
        raise Conflict(f"other programs keep starting jobs into {job.table!r}; try again when they are done")

    def work(self, run: str, workers: int | None = None, host: Host | None = None) -> None:
        """Begin to work on a run in this process, unless that is being done or nothing is left to do.

        ``workers=0``: leave it to other processes. ``host``: the node that works on it.
        """
        undisturbed(partial(self._work, run, workers, host))

    def _work(self, run: str, workers: int | None, host: Host | None) -> None:
        from onefold.compute.execution.runner import Runner

        with self._lock:
            self._check_open()
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
            self._runners[run] = runner = Runner(self, run, workers, host)
            runner.start()

    def runner(self, run: str) -> Runner | None:
        """This process's runner of a run."""
        with self._lock:
            return self._runners.get(run)

    def keep_stored(self, plan: str, stored: StoredJob) -> None:
        """Keep in memory what a plan blob holds."""
        with self._lock:
            self._stored.setdefault(plan, stored)

    def stored(self, plan: str) -> StoredJob:
        """The stored job behind a plan blob."""
        with self._lock:
            known = self._stored.get(plan)
        if known is None:
            from onefold.compute.code import functions

            data = self.blobs.get(plan)
            if blob_name(data) != plan:
                raise InvalidValue(
                    f"blob {plan[:16]}…, which has the job's plan, is damaged; run the job again"
                )
            known = functions.load(data, code=self.code)
            with self._lock:
                self._stored[plan] = known
        return known

    def result_of(self, plan: str) -> StoredResult:
        """What readers need to know of the result of runs with this plan. Loads no code. Raises InvalidValue, PlanMissing."""
        with self._lock:
            known = self._results.get(plan)
            stored = self._stored.get(plan)
        if known is None:
            from onefold.compute.results import description
            from onefold.compute.results.stored import StoredResult, read

            described = description.describe(stored) if stored is not None else read(self.blobs, plan)
            with self._lock:
                known = self._results.setdefault(
                    plan, StoredResult(plan, described, partial(self.stored, plan))
                )
        return known

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
                self._stored.pop(row.plan, None)
                self._results.pop(row.plan, None)
                self._caches.pop(row.plan, None)

    def garbage(self) -> set[str]:
        """Blobs that nothing names any more."""
        with self.shard.view() as view:
            return set(state.garbage(view))

    def sweep(self, only: Set[str] | None = None) -> int:
        """Delete blobs that nothing names any more (``only``: of these); returns how many. See ``sweeping``."""
        garbage = self.garbage()
        names = tuple(sorted(garbage if only is None else garbage & only))
        removed = 0
        for start in range(0, len(names), _SWEEP_BATCH):
            batch = names[start : start + _SWEEP_BATCH]
            removed += sweeping.sweep(self.blobs, batch, self._swept, self._named)
        sweeping.tidy(self.blobs, garbage, self._named)
        return removed

    def _swept(self, names: Sequence[str]) -> tuple[str, ...]:
        (outcome,) = self.submit(ops.Swept(tuple(names)))
        return outcome.blobs if isinstance(outcome, ops.Accepted) else ()

    def _named(self, names: Iterable[str]) -> frozenset[str]:
        with self.shard.view() as view:
            return state.named(view, names)

    def keep_named(self, report: Sequence[ops.Operation], outcomes: Sequence[ops.Outcome]) -> bool:
        """Look whether the blobs of results that have just been recorded are still there, and reopen the tasks of those that were
        swept before the record. To be called after every record with ``Done``; whether a task was reopened."""
        with self._lock:
            waiting, self._unchecked = self._unchecked, []
        waiting += [
            operation
            for operation, outcome in zip(report, outcomes, strict=False)
            if isinstance(operation, ops.Done) and isinstance(outcome, ops.Accepted)
        ]
        lost: list[ops.Operation] = []
        for done in waiting:
            blob = done.result.blob
            try:
                if blob is not None and not self.blobs.keeps(blob):
                    lost.append(ops.Lost(done.run, done.stage, done.index, blob))
            except BlobsUnavailable:  # nothing is known of it: looked for again after the next record
                with self._lock:
                    self._unchecked.append(done)
        return bool(lost) and any(isinstance(one, ops.Accepted) for one in self.submit(*lost))

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

    # -- results ----------------------------------------------------------------------------------------------------

    def partial(self, result: Result) -> pl.DataFrame | None:
        """A task's frame: its partial or its rows; None when it left nothing. Raises BlobMissing."""
        from onefold.compute.tasks.outputs import load_frame

        return load_frame(result, self.blobs)

    def finished(
        self, results: Mapping[int, Result], stored: StoredResult, *, whole: bool = True
    ) -> pl.DataFrame:
        """The merged and finished frame of an aggregation's tasks, by dispatch index; ``whole``: of all of them."""

        import polars as pl

        from onefold.compute import aggregates
        from onefold.compute.results import merge

        if not stored.grouped:
            raise InvalidPlan("the result is rows, not groups")
        keys, aggs = stored.key_columns, stored.aggs
        with self._lock:
            cache = self._caches.setdefault(stored.plan, merge.MergeCache())
        leaves = {
            index: merge.Leaf(content_name(result), partial(self._leaf, result))
            for index, result in results.items()
            if not is_empty(result)
        }
        self.blobs.prefetch(result.blob for result in results.values() if result.blob is not None)
        merged = None
        # A table that is still being made is read again after every task: the tree's cache serves that better.
        at_once = whole and not len(cache) and aggregates.adds_up(aggs)
        if at_once and self._stored_bytes(results.values()) <= config.MERGE_AT_ONCE_BYTES_MAX:
            merged = aggregates.merge_all({index: leaf.load() for index, leaf in leaves.items()}, keys, aggs)
        if merged is None:
            merged = merge.merge_tree(leaves, lambda a, b: aggregates.merge_pair(a, b, keys, aggs), cache)
        if merged is None:
            return pl.DataFrame(schema=stored.empty_schema)
        return aggregates.final(merged, keys, aggs)

    def _stored_bytes(self, results: Iterable[Result]) -> int:
        paths = (self.blobs.path(result.blob) for result in results if result.blob is not None)
        return sum(path.stat().st_size for path in paths if path.exists())

    def _leaf(self, result: Result) -> pl.DataFrame:
        frame = self.partial(result)
        if frame is None:
            raise LogCorrupt("a result that is said to have rows has none")
        return frame

    def rows(self, results: Sequence[Result], stored: StoredResult) -> pl.DataFrame:
        """The rows of a collected dataset's tasks, in dispatch order.

        Columns whose type was found from values may differ between tasks; they meet in their supertype, and InvalidValue
        is raised where there is none.
        """
        import polars as pl

        from onefold.compute.frames import values as frames

        self.blobs.prefetch(result.blob for result in results if result.blob is not None)
        parts = [frame for frame in map(self.partial, results) if frame is not None]
        if not parts:
            return pl.DataFrame(schema=stored.empty_schema)
        return frames.concat(parts)

    def columns_of(self, result: Result) -> list[str]:
        """The columns of a task's rows, of which only the beginning is read. Raises BlobMissing, InvalidValue."""
        from onefold.compute import aggregates

        stored = self.blobs.open_path(result.blob) if result.blob is not None else result.inline
        return [] if stored is None else aggregates.read_schema(stored).names()

    def scan_rows(self, results: Sequence[Result], stored: StoredResult) -> pl.LazyFrame:
        """The same as a lazy frame that reads a task's rows when they are wanted, where the plan tells their types."""
        import polars as pl
        from polars.io.plugins import register_io_source

        if stored.types is None or not results:
            return self.rows(results, stored).lazy()

        def read(
            with_columns: list[str] | None,
            predicate: pl.Expr | None,
            n_rows: int | None,
            batch_size: int | None,  # noqa: ARG001 - Polars passes it
        ) -> Iterator[pl.DataFrame]:
            left = n_rows
            for result in results:
                frame = self.partial(result)
                if frame is None:
                    continue
                if left is not None:
                    frame = frame.head(left)
                    left -= frame.height
                if predicate is not None:
                    frame = frame.filter(predicate)
                yield frame.select(with_columns) if with_columns is not None else frame
                if left == 0:
                    return

        return register_io_source(read, schema=pl.Schema(stored.empty_schema))

    def result_frames(self, run: str) -> Iterator[pl.DataFrame]:
        """The whole result of a run whose result stage is complete: one frame for groups, one a task for rows."""
        with self.shard.view() as view:
            row = state.read_run(view, run)
            if row is None:
                raise InvalidArgument(f"there is no run {run!r}")
            stored = self.result_of(row.plan)
            results = {i: t.result for i, t in state.results(view, run, row.result_stage).items()}
        if stored.grouped:
            yield self.finished(results, stored)
        else:
            for index in sorted(results):
                frame = self.partial(results[index])
                if frame is not None:
                    yield frame

    # -- helpers ----------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise SpaceError("this connection is closed; call onefold.connect() again")

    def catch_up(self) -> None:
        """Let the views that follow show all that was acknowledged before, by any machine. Raises Unavailable."""
        if not self.shard.strong_reads:
            self.shard.barrier()

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


def is_empty(result: Result) -> bool:
    """Whether a task left no frame at all."""
    return result.blob is None and result.inline is None


def _close_at_exit(engine: weakref.ref[Engine], pid: int) -> None:
    found = engine()
    if found is not None and os.getpid() == pid:  # a forked child has nothing of it to give back
        found.close()


def content_name(result: Result) -> str:
    """Names a result by its content."""
    return result.blob if result.blob is not None else blob_name(result.inline or b"")
