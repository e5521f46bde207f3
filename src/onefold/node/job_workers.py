"""Jobs on a node: the workers stand on the node's own replica of shard 0, whichever that is at the moment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onefold import config
from onefold.backoff import Deadline
from onefold.compute.upkeep.keeper import Keeper
from onefold.env import SYSTEM, Env
from onefold.errors import OnefoldError, Unavailable
from onefold.folds import has_live_jobs, names_blobs
from onefold.machine.first_use import first_use

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.bounded.stream_ranges import StreamRanges
    from onefold.compute.code.functions import Code
    from onefold.compute.engine import Engine
    from onefold.compute.live.job.status import LiveStatus
    from onefold.compute.live.worker.node_workers import LiveNodeWorkers
    from onefold.compute.node_worker import NodeWorkers
    from onefold.node.all_shards import AllShards
    from onefold.node.telemetry.logging import JsonLog
    from onefold.shard.api import Shard
    from onefold.state.core.client import StateClient


_DRAIN_TIMEOUT_S = 5.0
"""How long tasks that were in progress when the node began to leave may still take at its end."""


class JobWorkers:
    """What runs tasks on a node (``process.Workers``). A replica that is replaced gets workers of its own."""

    def __init__(
        self,
        replica: Callable[[], Shard | None],
        blobs: BlobStore,
        log: JsonLog,
        *,
        node: str,
        slots: int,
        code: Code,
        env: Env = SYSTEM,
        shards: AllShards | None = None,
    ) -> None:
        """``replica``: that of shard 0, None while there is none. ``blobs`` stays open until ``close``. ``shards``: all of the
        space, which live jobs need; closed with this. None: it works on no live jobs."""
        self._replica = replica
        self._shards = shards
        self._live_shards: tuple[Shard, ...] = ()
        self._live_jobs: LiveNodeWorkers | None = None
        """None while there is no live job to work on."""
        self._others_at = 0.0
        """When to ask other nodes next whether their shards have live jobs, while none is known."""
        self._blobs = blobs
        self._log = log
        self._node = node
        self._slots = slots
        self._code: Code = code
        self._env = env
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._workers: NodeWorkers | None = None
        self._draining = False
        self._live_lock = threading.Lock()
        # Also without jobs: large frames of streams are blobs.
        self._keeper = Keeper(
            self._client, lambda: self._blobs, self._say, env=env, names_blobs=self._names_blobs
        )
        # Looking at live jobs may ask other nodes, which batch jobs must not wait for.
        self._threads = [
            threading.Thread(target=self._repeat, args=(follow,), daemon=True, name=name)
            for follow, name in ((self._try_batch, "onefold-jobs"), (self._try_live, "onefold-live-jobs"))
        ]

    @property
    def busy(self) -> int:
        """How many tasks it works on now."""
        workers = self._workers
        return workers.busy if workers is not None else 0

    def live_jobs(self) -> list[tuple[str, str, LiveStatus | None]]:
        """(job, state, how it stands) of the live jobs of the space; none while this node knows of none, or cannot work on
        them."""
        workers = self._live_jobs
        if workers is None:
            return []
        try:
            return workers.standings()
        except OnefoldError:
            return []  # a shard does not answer now

    def start(self) -> None:
        """Begin to claim tasks."""
        for thread in self._threads:
            thread.start()
        if self._shards is not None:
            self._keeper.start()

    def stop_claims(self) -> None:
        """Claim no more; tasks in progress continue."""
        with self._lock:
            self._draining = True
            workers = self._workers
        if workers is not None:
            workers.stop_claims()
        self._end_live()

    def close(self) -> None:
        """End: tasks in progress get a little time, then they are given back."""
        self.stop_claims()
        self._ending.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()
        self._keeper.close(Deadline.after(_DRAIN_TIMEOUT_S))
        self._end(_DRAIN_TIMEOUT_S)
        if self._shards is not None:
            self._shards.close()
        self._blobs.close()

    # -- inside

    def _repeat(self, follow: Callable[[], None]) -> None:
        while True:
            follow()
            if self._ending.wait(config.NODE_BEAT_S):
                return

    def _try_batch(self) -> None:
        try:
            self._follow()
        except OnefoldError as error:
            self._log.begins("job_workers_unavailable", f"{type(error).__name__}: {error}")
        else:
            self._log.ends("job_workers_unavailable")

    def _try_live(self) -> None:
        try:
            self._follow_live()
        except OnefoldError as error:
            self._log.begins("live_job_workers_unavailable", f"{type(error).__name__}: {error}")
        else:
            self._log.ends("live_job_workers_unavailable")

    def _follow(self) -> None:
        """Have workers on the replica that there is now, and none on an earlier one."""
        replica = self._replica()
        if self._engine is not None and self._engine.shard is replica:
            return
        self._end(0.0)
        if replica is None or self._draining:
            return
        with first_use:
            from onefold.compute.engine import Engine
            from onefold.compute.node_worker import NodeWorkers

        engine = Engine(replica, env=self._env, blobs=self._blobs, code=self._code, owns_space=False)
        engine.streams = self._streams
        workers = NodeWorkers(engine, node=self._node, slots=self._slots, note=self._say)
        with self._lock:
            self._engine, self._workers = engine, workers
            if self._draining:
                return
            workers.start()

    def _streams(self) -> StreamRanges:
        """How tasks read streams of the space. Raises StreamsUnavailable while not all shards are reached."""
        with first_use:
            from onefold.compute.bounded.stream_ranges import StreamRanges
            from onefold.compute.live.inputs.stream_blobs import large_frames
            from onefold.compute.sources.ranges import StreamsUnavailable
        from onefold.state.core.client import StateClient

        shards = self._live_shards  # as the thread for live jobs has reached them last
        if not shards:
            raise StreamsUnavailable("this node does not reach all shards yet, which have the streams")
        client = StateClient(shards)
        client.large_frames = lambda: large_frames(shards[0], lambda: self._blobs)
        return StreamRanges(lambda: client)

    def _follow_live(self) -> None:
        """Have workers for live jobs on the shards as they are reached now, and none while the node leaves."""
        if self._shards is None:
            return
        shards = () if self._draining else self._shards.now() or ()
        if not shards or shards != self._live_shards:
            self._end_live()
            self._shards.close_others(shards)
        if not shards:
            return
        with self._live_lock:
            if self._draining:
                return
            self._live_shards = shards
        if self._live_jobs is None and not self._finds_live_jobs(shards):
            return
        jobs = self._live_workers(shards)
        if jobs is not None:
            jobs.look()

    def _finds_live_jobs(self, shards: Sequence[Shard]) -> bool:
        """Whether there are, or were, live jobs. Shards that other nodes host are asked for from time to time only."""
        now = self._env.boot_s()
        asks = now >= self._others_at
        if any(has_live_jobs(shard) for shard in shards if asks or shard.reads_here):
            return True
        if asks:
            self._others_at = now + config.UPKEEP_LOOK_S
        return False

    def _live_workers(self, shards: tuple[Shard, ...]) -> LiveNodeWorkers | None:
        """Those for these shards; None while the node leaves."""
        with first_use:
            from onefold.compute.live.worker.node_workers import LiveNodeWorkers
            from onefold.compute.loading import load_everything
        load_everything()
        with self._live_lock:
            if self._live_jobs is None and not self._draining:
                self._live_jobs = LiveNodeWorkers(shards, self._blobs, code=self._code, note=self._say)
            return self._live_jobs

    def _names_blobs(self) -> bool:
        """See ``Keeper``. Raises as ``_client``."""
        return any(map(names_blobs, self._reached()))

    def _client(self) -> StateClient:
        """On the shards as they are reached now. Raises Unavailable while not all are."""
        from onefold.state.core.client import StateClient

        return StateClient(self._reached())

    def _reached(self) -> tuple[Shard, ...]:
        shards = self._live_shards  # as the thread for live jobs has reached them last
        if not shards:
            raise Unavailable("this node does not reach all shards now")
        return shards

    def _end_live(self) -> None:
        """No workers for live jobs any more. The lock is not held while it waits for them, nor while others are looked for."""
        with self._live_lock:
            ended, self._live_jobs = self._live_jobs, None
            self._live_shards = ()
            self._others_at = 0.0
        if ended is not None:
            ended.stop()

    def _end(self, timeout_s: float) -> None:
        with self._lock:
            engine, workers = self._engine, self._workers
            self._engine = self._workers = None
        if workers is not None:
            workers.drain(timeout_s)
        if engine is not None:
            engine.close()

    def _say(self, event: str, fields: dict[str, Any]) -> None:
        fields = {name: value for name, value in fields.items() if name != "node"}
        passes = fields.pop("passes", True)
        if not passes or event in (
            "live_rows_given_up",
            "live_job_failed",
            "live_job_refused",
            "live_job_join_failed",
            "run_refused",
            "run_interrupted",
            "run_join_failed",
            "jobs_unreachable",
        ):
            self._log.warning(event, **fields)
        else:
            self._log.info(event, **fields)
