"""Whether what a task gives can be in one result with what the run's other tasks have given.

Where functions make the rows, their types are found from values, task by task. A table whose tasks do not fit together
could never be read, so the task that does not fit fails, and the run with it: as it would if all rows were in one task.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from onefold.compute import outputs
from onefold.compute.blobs import BlobMissing
from onefold.compute.common_types import common_schema
from onefold.compute.jobs import state
from onefold.compute.tasks import has_python

if TYPE_CHECKING:
    from onefold.compute.engine import Engine
    from onefold.compute.stages import Result
    from onefold.compute.submission import StoredJob


class ResultTypes:
    """The types that the tasks of a run's stages have given so far: of this process, and of all others as the log has
    them. Thread-safe.
    """

    def __init__(self, engine: Engine, run: str, stored: StoredJob) -> None:
        self._engine = engine
        self._run = run
        self._stored = stored
        self._lock = threading.Lock()
        self._seen = 0
        self._types: dict[int, dict[str, Any]] = {}

    def check(self, stage: int, result: Result) -> None:
        """Take the types of a task's result in, or raise InvalidValue: then it does not fit to those before it."""
        if not has_python(self._stored.stages[stage]):
            return
        with self._lock:
            self._follow()
            mine = self._of(stage, result)
            self._types[stage] = common_schema([self._types.get(stage, {}), mine])

    def _follow(self) -> None:
        with self._engine.space.view() as view:
            changes = state.changes(view, self._run, self._seen)
        for change in changes:
            self._seen = change.sequence
            if change.result is None or not has_python(self._stored.stages[change.stage]):
                continue
            try:
                found = self._of(change.stage, change.result)
            except BlobMissing:  # lost, and made again then
                continue
            self._types[change.stage] = common_schema([self._types.get(change.stage, {}), found])

    def _of(self, stage: int, result: Result) -> dict[str, Any]:
        return outputs.row_types(result, self._stored.stages[stage].output, self._engine.blobs)
