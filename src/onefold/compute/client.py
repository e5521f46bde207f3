"""The log and the blobs of one space, as everything that works on jobs uses them.

A client decides nothing: it appends operations of the jobs fold and returns what the fold said. What it keeps in memory can
be read again from the blobs at any time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from onefold.codec import Op
from onefold.compute.blobs.store import blob_name
from onefold.compute.jobs import ops
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.code.functions import Code
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.sources.ranges import Streams
    from onefold.env import Env
    from onefold.shard.api import Shard

_encoder = msgspec.msgpack.Encoder()
_outcome_decoder = msgspec.msgpack.Decoder(ops.Outcome)


class JobClient:
    """Operations of the jobs fold, and the plans behind runs. Thread-safe."""

    def __init__(self, shard: Shard, *, env: Env, blobs: BlobStore, code: Code) -> None:
        """``code``: which functions of jobs this process runs (``functions.load``)."""
        self.shard = shard
        self.env = env
        self.blobs = blobs
        self.code = code
        self.streams: Callable[[], Streams] | None = None
        """How jobs read streams of the space; set by the owner, which has the state of its shards."""
        self._stored: dict[str, StoredJob] = {}
        self._stored_lock = threading.Lock()

    def submit(
        self, *operations: ops.Operation, deadline: float | None = None
    ) -> list[ops.Accepted | ops.Refused]:
        """Append operations of the jobs fold in one record and return their outcomes. ``deadline``: as of ``Shard.submit``."""
        encoded = [Op("jobs", _encoder.encode(operation)) for operation in operations]
        outcomes = self.shard.submit(encoded, deadline)
        return [_outcome_decoder.decode(outcome) for outcome in outcomes]

    def catch_up(self) -> None:
        """Let the views that follow show all that was acknowledged before, by any machine. Raises Unavailable."""
        if not self.shard.strong_reads:
            self.shard.barrier()

    # -- plans ------------------------------------------------------------------------------------------------------

    def stored(self, plan: str) -> StoredJob:
        """The stored job behind a plan blob. Raises InvalidValue, BlobMissing."""
        known = self.kept_stored(plan)
        if known is None:
            from onefold.compute.code import functions

            data = self.blobs.get(plan)
            if blob_name(data) != plan:
                raise InvalidValue(
                    f"blob {plan[:16]}…, which has the job's plan, is damaged; run the job again"
                )
            known = functions.load(data, code=self.code)
            with self._stored_lock:
                self._stored[plan] = known
        return known

    def kept_stored(self, plan: str) -> StoredJob | None:
        """The stored job behind a plan blob, if it is in memory."""
        with self._stored_lock:
            return self._stored.get(plan)

    def keep_stored(self, plan: str, stored: StoredJob) -> None:
        """Keep in memory what a plan blob holds."""
        with self._stored_lock:
            self._stored.setdefault(plan, stored)

    def drop_stored(self, plan: str) -> None:
        """Keep it no longer."""
        with self._stored_lock:
            self._stored.pop(plan, None)
