"""Jobs on a node: the workers stand on the node's own replica of shard 0, whichever that is at the moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from onefold import config
from onefold.env import SYSTEM, Env
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.code.functions import Code
    from onefold.compute.engine import Engine
    from onefold.compute.node_worker import NodeWorkers
    from onefold.node.telemetry.logging import JsonLog
    from onefold.shard.api import Shard


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
    ) -> None:
        """``replica``: that of shard 0, None while there is none. ``blobs`` stays open until ``close``."""
        self._replica = replica
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
        self._thread = threading.Thread(target=self._live, daemon=True, name="onefold-jobs")

    @property
    def busy(self) -> int:
        """How many tasks it works on now."""
        workers = self._workers
        return workers.busy if workers is not None else 0

    def start(self) -> None:
        """Begin to claim tasks."""
        self._thread.start()

    def stop_claims(self) -> None:
        """Claim no more; tasks in progress continue."""
        with self._lock:
            self._draining = True
            workers = self._workers
        if workers is not None:
            workers.stop_claims()

    def close(self) -> None:
        """End: tasks in progress get a little time, then they are given back."""
        self.stop_claims()
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._end(_DRAIN_TIMEOUT_S)
        self._blobs.close()

    # -- inside

    def _live(self) -> None:
        while True:
            try:
                self._follow()
            except OnefoldError as error:
                self._log.begins("job_workers_unavailable", f"{type(error).__name__}: {error}")
            else:
                self._log.ends("job_workers_unavailable")
            if self._ending.wait(config.NODE_BEAT_S):
                return

    def _follow(self) -> None:
        """Have workers on the replica that there is now, and none on an earlier one."""
        replica = self._replica()
        if self._engine is not None and self._engine.shard is replica:
            return
        self._end(0.0)
        if replica is None or self._draining:
            return
        from onefold.compute.engine import Engine
        from onefold.compute.node_worker import NodeWorkers

        engine = Engine(replica, env=self._env, blobs=self._blobs, code=self._code, owns_space=False)
        workers = NodeWorkers(engine, node=self._node, slots=self._slots, note=self._say)
        with self._lock:
            self._engine, self._workers = engine, workers
            if self._draining:
                return
            workers.start()

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
        if event in ("run_refused", "run_interrupted", "run_join_failed", "jobs_unreachable"):
            self._log.warning(event, **fields)
        else:
            self._log.info(event, **fields)
