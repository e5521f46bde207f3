"""Whether what a task gives can be in one result with what the run's other tasks have given.

Where functions make the rows, their types are found from values, task by task. A table whose tasks do not fit together
could never be read, so the task that does not fit fails, and the run with it: as it would if all rows were in one task.
The same holds for the notes of tasks on types that their own later steps depend on (``compute.tasks.found_types``): tasks that
differ in them would give another result than one task with all rows. Notes are announced as columns of nulls.

Two processes may finish tasks at the same time, each before the other's result is on the log. So types are announced before
they are compared, once for all tasks that give the same, and results are recorded after that: of two announcements one comes
later on the log, and the process that made it sees the other. An announcement is an ``Unfit`` of no node; it moves nothing.

A run that takes all these tasks over from earlier ones has none that would compare them; its submitter does, beforehand.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from onefold import config
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.frames import data_types
from onefold.compute.frames.common_types import common_schema
from onefold.compute.jobs import ops, state
from onefold.compute.jobs.submit import taken_over
from onefold.compute.plan.stages import PartialOutput, RowsOutput
from onefold.compute.plan.type_sensitive import is_sensitive
from onefold.compute.submission.submit import decode_inputs
from onefold.compute.tasks import found_types, outputs
from onefold.compute.tasks.spec import has_python
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    from onefold.compute.client import JobClient
    from onefold.compute.plan.stages import Output, Result, Stage
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.fold.api import StoreView


class ResultTypes:
    """The types that the tasks of a run's stages have given so far: of this process, and of all others as the log has
    them. Thread-safe.
    """

    def __init__(self, client: JobClient, run: str, stored: StoredJob) -> None:
        self._client = client
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
        with self._client.shard.view() as view:
            run = state.read_run(view, self._run)
        assert run is not None
        _compare(self._client, self._stored.stages[stage], types, run.stages[stage].inputs)

    def _announce(self, stage: int, types: Mapping[str, Any]) -> None:
        wanted = announcements(stage, types)
        with self._client.shard.view() as view:
            known = state.announced(view, self._run)
        missing = [
            ops.Unfit(self._run, name, text, stage) for name, text in wanted.items() if name not in known
        ]
        if missing:
            self._client.submit(*missing)

    def _follow(self) -> dict[int, dict[str, Any]]:
        """Take in what is on the log; the types that were announced, by stage."""
        with self._client.shard.view() as view:
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
        return _types_and_notes(
            self._client, self._stored.stages[stage].output, result, self._sensitive[stage]
        )


def check_taken_over(client: JobClient, operation: ops.Submit, stored: StoredJob) -> None:
    """Raise InvalidValue where a run would take over results of several earlier runs that do not fit together, and has no
    task with Python of its own that would find it. To be called before it is submitted.
    """
    python = [stage for stage in stored.stages if has_python(stage)]
    if not python:
        return
    with client.shard.view() as view:
        taken = taken_over(view, operation)
        if any(len(taken[stage.index]) < len(operation.stages[stage.index].tasks) for stage in python):
            return
        if _all_of_one_run(view, operation, [stage.index for stage in python]):
            return
        results = state.results_by_id(
            view, {name for stage in python for name in taken[stage.index].values()}
        )
    for stage in python:
        sensitive = is_sensitive(stage)
        if not sensitive and not isinstance(stage.output, PartialOutput | RowsOutput):
            continue
        types: dict[str, Any] = {}
        try:
            for name in taken[stage.index].values():
                found = _types_and_notes(client, stage.output, results[name], sensitive)
                types = common_schema([types, found])
            if sensitive:
                _compare(client, stage, types, operation.stages[stage.index].inputs)
        except BlobMissing:  # its task is run again, and compared then
            return
        except InvalidValue as error:
            raise InvalidValue(
                f"the job for {operation.table!r} was not submitted: all its tasks were finished by earlier runs, over "
                f"other files each, and their results do not fit together: {error}"
            ) from error


def _all_of_one_run(view: StoreView, operation: ops.Submit, stages: Iterable[int]) -> bool:
    """Whether the run before, which is done, has had all these tasks: then they have been compared."""
    before = state.read_run(view, operation.expect) if operation.expect is not None else None
    if before is None or before.state != "done" or len(before.stages) != len(operation.stages):
        return False
    return all(
        {task.identity for task in state.read_tasks(view, before.id, stage)}.issuperset(
            operation.stages[stage].tasks
        )
        for stage in stages
    )


def _compare(client: JobClient, stage: Stage, types: Mapping[str, Any], inputs: str) -> None:
    """Raise InvalidValue for notes that do not fit together. ``inputs``: the blob of the stage's inputs."""
    conflict = found_types.conflict(types)
    if conflict is None:
        return
    if found_types.whatever_follows(conflict[0]):
        raise found_types.explained(*conflict, stage)
    branch = conflict[0][0]
    tasks = sum(item.branch == branch for item in decode_inputs(client.blobs.get(inputs)))
    # The chunks of one task may differ: then it is the only one, and there is nothing to be different from.
    if tasks > 1:
        raise found_types.explained(*conflict, stage)


def _types_and_notes(client: JobClient, output: Output, result: Result, sensitive: bool) -> dict[str, Any]:
    """The types that a result says, with its notes as columns of nulls where they matter. Raises BlobMissing."""
    types = outputs.row_types(result, output, client.blobs)
    if not sensitive:
        return types
    import polars as pl

    return types | dict.fromkeys(outputs.notes(result, output, client.blobs), pl.Null())


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
