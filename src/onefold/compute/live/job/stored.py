"""Live jobs by their names, with their plans.

A job's name is that of its table. ``name/generation`` names one of its generations: the hidden one of a replay, or the one that a
swap has replaced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from onefold.compute.blobs.store import had_later
from onefold.compute.code import functions
from onefold.compute.live.client import Found, Listed, all_generations, generation_by_name
from onefold.compute.live.plan import LivePlan
from onefold.errors import InvalidArgument, InvalidValue

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.client import JobClient
    from onefold.compute.code.functions import Code
    from onefold.compute.results.reading import Results
    from onefold.state.core.client import StateClient


class LiveJobs:
    """The live jobs of a space. Thread-safe."""

    def __init__(
        self,
        client: Callable[[], StateClient],
        blobs: Callable[[], BlobStore],
        code: Code = "pickle",
    ) -> None:
        """``code``: which functions of jobs this process runs (``functions.load``)."""
        self._client = client
        self._blobs = blobs
        self._code: Code = code
        self._plans: dict[str, LivePlan] = {}
        self._batch: JobClient | None = None
        self._results: Results | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> StateClient:
        """The state of the space."""
        return self._client()

    @property
    def blobs(self) -> BlobStore:
        """Where plans and large runs are."""
        return self._blobs()

    def batch(self) -> JobClient:
        """The space's batch jobs: among them the histories of live ones."""
        from onefold.compute.client import JobClient

        client = self.client
        with self._lock:
            if self._batch is None:
                self._batch = JobClient(client.shards[0], env=client.env, blobs=self.blobs, code=self._code)
            return self._batch

    def results(self) -> Results:
        """Their results."""
        from onefold.compute.results.reading import Results

        client = self.batch()
        with self._lock:
            if self._results is None:
                self._results = Results(client)
            return self._results

    def find(self, name: str, *, strong: bool = True) -> Found | None:
        """A job's present generation by the job's name, or any by ``name/generation``; None: there is none such.

        ``strong``: at the connection's level; otherwise what is here is enough.
        """
        return generation_by_name(self.client, name, strong=strong)

    def get(self, name: str) -> Found:
        """As ``find``. Raises InvalidArgument when there is none such. Definite."""
        found = self.find(name)
        if found is None:
            raise InvalidArgument(f"there is no live job {name!r}; db.runs() lists them")
        return found

    def all(self, *, strong: bool = True) -> list[Listed]:
        """All generations of all jobs, by name. ``strong``: as for ``find``."""
        return all_generations(self.client, strong=strong)

    def plan_of(self, found: Found) -> LivePlan:
        """The plan of a generation.

        Raises InvalidArgument when it was dropped, InvalidValue when this process cannot load its functions. Definite.
        """
        row = found.job.generation(found.generation, strong=False)
        if row is None:
            raise InvalidArgument(f"live job {found.id} was dropped")
        return self.plan(row.plan)

    def remember(self, blob: str, plan: LivePlan) -> None:
        """The program's own plan is what its workers run: a function that it gave sees the program's variables."""
        with self._lock:
            self._plans[blob] = plan

    def plan(self, blob: str) -> LivePlan:
        """The plan in a blob. Raises InvalidValue, and what the blob store raises. Definite."""
        with self._lock:
            known = self._plans.get(blob)
        if known is None:
            with had_later(blob):
                data = self.blobs.get(blob)
            loaded = functions.load(data, code=self._code)
            if not isinstance(loaded, LivePlan):
                raise InvalidValue(f"blob {blob[:16]}…, which has the plan of a live job, is damaged")
            with self._lock:
                known = self._plans.setdefault(blob, loaded)
        return known
