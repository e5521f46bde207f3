"""Whether what a task gives can be in one result with what the run's other tasks have given.

Where functions make the rows, their types are found from values, task by task. A table whose tasks do not fit together
could never be read, so the task that does not fit fails, and the run with it: as it would if all rows were in one task.
The same holds for the notes of tasks on types that their own later steps depend on (``compute.found_types``): tasks that differ
in them would give another result than one task with all rows. Notes are announced as columns of nulls.

Two processes may finish tasks at the same time, each before the other's result is on the log. So types are announced before
they are compared, once for all tasks that give the same, and results are recorded after that: of two announcements one comes
later on the log, and the process that made it sees the other. An announcement is an ``Unfit`` of no node; it moves nothing.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from onefold import config
from onefold.compute import found_types, outputs
from onefold.compute.blobs import BlobMissing
from onefold.compute.common_types import common_schema
from onefold.compute.jobs import ops, state
from onefold.compute.results import data_types
from onefold.compute.stages import PartialOutput, RowsOutput
from onefold.compute.submission import decode_inputs
from onefold.compute.tasks import has_python
from onefold.compute.type_sensitive import is_sensitive
from onefold.errors import InvalidValue

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
        self._sensitive = [is_sensitive(stage) for stage in stored.stages]

    def check(self, stage: int, result: Result) -> None:
        """Take the types of a task's result in, or raise InvalidValue: then it does not fit to those before it."""
        if not has_python(self._stored.stages[stage]):
            return
        with self._lock:
            mine = self._of(stage, result)
            self._announce(stage, mine)
            announced = self._follow().get(stage, {})
            self._types[stage] = common_schema([self._types.get(stage, {}), announced, mine])
            for number, types in self._types.items():  # also of stages whose tasks were all done before
                if self._sensitive[number]:
                    self._compare(number, types)

    def _compare(self, stage: int, types: Mapping[str, Any]) -> None:
        conflict = found_types.conflict(types)
        # The chunks of one task may differ: then it is the only one, and there is nothing to be different from.
        if conflict is not None and self._tasks(stage, conflict[0][0]) > 1:
            raise found_types.explained(*conflict, self._stored.stages[stage])

    def _tasks(self, stage: int, branch: int) -> int:
        with self._engine.space.view() as view:
            run = state.read_run(view, self._run)
        assert run is not None
        inputs = decode_inputs(self._engine.blobs.get(run.stages[stage].inputs))
        return sum(item.branch == branch for item in inputs)

    def _announce(self, stage: int, types: Mapping[str, Any]) -> None:
        wanted = announcements(stage, types)
        with self._engine.space.view() as view:
            known = state.announced(view, self._run)
        missing = [
            ops.Unfit(self._run, name, text, stage) for name, text in wanted.items() if name not in known
        ]
        if missing:
            self._engine.submit(*missing)

    def _follow(self) -> dict[int, dict[str, Any]]:
        """Take in what is on the log; the types that were announced, by stage."""
        with self._engine.space.view() as view:
            changes = state.changes(view, self._run, self._seen)
            announced = state.announced(view, self._run)
        for change in changes:
            self._seen = change.sequence
            if change.result is None or not has_python(self._stored.stages[change.stage]):
                continue
            if not isinstance(self._stored.stages[change.stage].output, PartialOutput | RowsOutput) and not (
                change.reused and self._sensitive[change.stage]
            ):
                continue  # a large file, whose task has announced what it says
            try:
                found = self._of(change.stage, change.result)
            except BlobMissing:  # lost, and made again then
                continue
            self._types[change.stage] = common_schema([self._types.get(change.stage, {}), found])
        found_types: dict[int, dict[str, Any]] = {}
        for stage, text in announced.values():
            found_types[stage] = common_schema([found_types.get(stage, {}), _types_of(text)])
        return found_types

    def _of(self, stage: int, result: Result) -> dict[str, Any]:
        output = self._stored.stages[stage].output
        types = outputs.row_types(result, output, self._engine.blobs)
        if not self._sensitive[stage]:
            return types
        import polars as pl

        return types | dict.fromkeys(outputs.notes(result, output, self._engine.blobs), pl.Null())


def announcements(stage: int, types: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of the announcements that say these types. Types that cannot be written down are left out."""
    texts: list[str] = []
    some: list[Any] = []
    for name, dtype in types.items():
        try:
            one = [name, data_types.to_data(dtype)]
        except InvalidValue:
            continue
        if some and len(_text([*some, one])) > config.FAILURE_TEXT_CHARS_MAX:
            texts.append(_text(some))
            some = []
        some.append(one)
    if some:
        texts.append(_text(some))
    return {
        f"{state.ANNOUNCED}{stage} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}": text
        for text in texts
        if len(text) <= config.FAILURE_TEXT_CHARS_MAX
    }


def _text(types: list[Any]) -> str:
    return msgspec.json.encode(types).decode()


def _types_of(text: str) -> dict[str, Any]:
    return {name: data_types.from_data(data) for name, data in msgspec.json.decode(text)}
