"""Whether what a task gives can be in one result with what the run's other tasks have given.

Where functions make the rows, their types are found from values, task by task. A table whose tasks do not fit together
could never be read, so the task that does not fit fails, and the run with it: as it would if all rows were in one task.
The same holds for the notes of tasks on types that their own later steps depend on (``compute.tasks.found_types``): tasks that
differ in them would give another result than one task with all rows. Notes are announced as columns of nulls.

Two processes may finish tasks at the same time, each before the other's result is on the log. So types are announced before
they are compared, and results are recorded after that: of two announcements one comes later on the log, and the process that
made it sees the other. An announcement says only what none before it says, so most tasks announce nothing. It is an ``Unfit``
of no node; it moves nothing.

A run that takes all these tasks over from earlier ones has none that would compare them; its submitter does, beforehand.
"""

from __future__ import annotations

import hashlib
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from onefold import config
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.frames import data_types
from onefold.compute.frames.common_types import common_schema, common_type
from onefold.compute.jobs import ops, state
from onefold.compute.jobs.submit import taken_over
from onefold.compute.plan.stages import PartialOutput, RowsOutput
from onefold.compute.plan.type_sensitive import is_sensitive
from onefold.compute.submission.submit import decode_inputs
from onefold.compute.tasks import found_types, outputs
from onefold.compute.tasks.found_types import Notes, is_note
from onefold.compute.tasks.spec import has_python
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    from onefold.compute.client import JobClient
    from onefold.compute.jobs.read_rows import Change
    from onefold.compute.plan.stages import Output, Result, Stage
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.tasks.found_types import Note


class _Types:
    """The types and notes that tasks of one stage gave."""

    def __init__(self) -> None:
        self._columns: dict[str, Any] = {}
        self._notes = Notes()

    def add(self, types: Mapping[str, Any]) -> list[tuple[Note, Note]]:
        """Take types in; the notes among them that do not fit. Raises InvalidValue for columns without a common type."""
        columns = {name: dtype for name, dtype in types.items() if not is_note(name)}
        self._columns = common_schema([self._columns, columns])
        return self._notes.add(name for name in types if is_note(name))

    def unsaid(self, types: Mapping[str, Any]) -> dict[str, Any]:
        """Those that say more than these do, or do not fit to them."""
        return {name: dtype for name, dtype in types.items() if not self._says(name, dtype)}

    def _says(self, name: str, dtype: Any) -> bool:
        if is_note(name):
            return name in self._notes
        held = self._columns.get(name)
        # A column of nulls fits to any other.
        return str(dtype) == "Null" or (held is not None and common_type(held, dtype) == held)


class ResultTypes:
    """The types that the tasks of a run's stages have given so far: of this process, and of all others as the log has
    them. Thread-safe.
    """

    def __init__(self, client: JobClient, run: str, stored: StoredJob) -> None:
        self._client = client
        self._run = run
        self._stored = stored
        self._lock = threading.Lock()
        self._sensitive = [is_sensitive(stage) for stage in stored.stages]
        self._begin()

    def _begin(self) -> None:
        self._seen = 0
        self._before: int | None = None
        """Up to this change, tasks that are done may have announced nothing that is kept."""
        self._names: frozenset[str] = frozenset()
        self._announced: defaultdict[int, _Types] = defaultdict(_Types)
        self._types: defaultdict[int, _Types] = defaultdict(_Types)
        self._unlike: list[tuple[int, tuple[Note, Note]]] = []
        """Notes that do not fit, by stage, of which it is still to be seen whether they must."""
        self._wrong: str | None = None

    def check(self, stage: int, result: Result) -> None:
        """Take the types of a task's result in, or raise InvalidValue: then it does not fit to those before it."""
        if not has_python(self._stored.stages[stage]):
            return
        mine = self._of(stage, result)
        with self._lock:
            self._follow()
            unsaid = self._announced[stage].unsaid(mine)
        if unsaid:
            self._announce(stage, unsaid)
        with self._lock:
            if unsaid:
                self._follow()
            self._take(stage, mine)
            self._judge()
            if self._wrong is not None:
                raise InvalidValue(self._wrong)

    def _announce(self, stage: int, types: Mapping[str, Any]) -> None:
        wanted = announcements(stage, types)
        if len(self._names | wanted.keys()) > config.ANNOUNCEMENTS_PER_RUN_MAX:
            raise InvalidValue(
                f"the functions of run {self._run} give rows of too many different types: tasks have announced "
                f"{config.ANNOUNCEMENTS_PER_RUN_MAX} times that theirs differ from those before. Give schema= to the functions"
            )
        if not wanted:
            return
        for outcome in self._client.submit(
            *(ops.Unfit(self._run, name, text, stage) for name, text in wanted.items())
        ):
            if isinstance(outcome, ops.Refused):  # otherwise others would not see these types
                raise InvalidValue(
                    f"the types of a task's result could not be compared with those of others: {outcome.message}"
                )

    def _follow(self) -> None:
        """Take in what is new on the log."""
        with self._client.shard.view() as view:
            names, new = state.announced(view, self._run, self._names)
            if not names >= self._names:  # the run was resumed, which forgets what was announced
                self._begin()
                names, new = state.announced(view, self._run)
            changes = state.changes(view, self._run, self._seen)
        if self._before is None:
            self._before = changes[-1].sequence if changes else 0
        for row in new:
            types = _types_of(row.reason)
            with suppress(InvalidValue):  # which ``_take`` keeps
                self._announced[row.stage].add(types)
            self._take(row.stage, types)
        self._names = names
        for change in changes:
            if change.result is not None and self._is_compared(change):
                with suppress(BlobMissing):  # it is lost, and made again then
                    self._take(change.stage, self._of(change.stage, change.result))
            self._seen = change.sequence

    def _is_compared(self, change: Change) -> bool:
        """Whether what a finished task says is read; it may take a large file, whose task has announced what it says."""
        stage = self._stored.stages[change.stage]
        if not has_python(stage):
            return False
        if isinstance(stage.output, PartialOutput | RowsOutput):
            return True
        assert self._before is not None
        return self._sensitive[change.stage] and (change.reused or change.sequence <= self._before)

    def _take(self, stage: int, types: Mapping[str, Any]) -> None:
        try:
            self._unlike += [(stage, pair) for pair in self._types[stage].add(types)]
        except InvalidValue as error:
            self._wrong = self._wrong or str(error)

    def _judge(self) -> None:
        """Keep what is wrong. A blob store that is away is asked again by the next check."""
        while self._unlike and self._wrong is None:
            number, pair = self._unlike[0]
            with self._client.shard.view() as view:
                run = state.read_run(view, self._run)
            assert run is not None
            error = _error(self._client, self._stored.stages[number], pair, run.stages[number].inputs)
            self._wrong = str(error) if error is not None else None
            del self._unlike[0]

    def _of(self, stage: int, result: Result) -> dict[str, Any]:
        return _types_and_notes(
            self._client, self._stored.stages[stage].output, result, self._sensitive[stage]
        )


def check_taken_over(client: JobClient, operation: ops.Submit, stored: StoredJob) -> None:
    """Raise InvalidValue where a run would take over results of several earlier runs that do not fit together, and has no
    task with Python of its own that would find it. To be called before it is submitted.
    """
    python = [stage for stage in stored.stages if has_python(stage)]
    if not python or operation.expect is None:
        return
    with client.shard.view() as view:
        before = state.read_run(view, operation.expect)
        if before is not None and before.state == "done":
            return  # what earlier runs left is given up then, and its own tasks have been compared
        taken = taken_over(view, operation)
        if any(len(taken[stage.index]) < len(operation.stages[stage.index].tasks) for stage in python):
            return
        results = state.results_by_id(
            view, {name for stage in python for name in taken[stage.index].values()}
        )
    for stage in python:
        sensitive = is_sensitive(stage)
        if not sensitive and not isinstance(stage.output, PartialOutput | RowsOutput):
            continue
        types = _Types()
        try:
            for name in taken[stage.index].values():
                for pair in types.add(_types_and_notes(client, stage.output, results[name], sensitive)):
                    error = _error(client, stage, pair, operation.stages[stage.index].inputs)
                    if error is not None:
                        raise error
        except BlobMissing:  # its task is run again, and compared then
            return
        except InvalidValue as error:
            raise InvalidValue(
                f"the job for {operation.table!r} was not submitted: all its tasks were finished by earlier runs, over "
                f"other files each, and their results do not fit together: {error}"
            ) from error


def _error(client: JobClient, stage: Stage, pair: tuple[Note, Note], inputs: str) -> InvalidValue | None:
    """The error for two notes that do not fit together, if they must. ``inputs``: the blob of the stage's inputs."""
    if found_types.whatever_follows(pair[0]):
        return found_types.explained(*pair, stage)
    branch = pair[0][0]
    tasks = sum(item.branch == branch for item in decode_inputs(client.blobs.get(inputs)))
    # The chunks of one task may differ: then it is the only one, and there is nothing to be different from.
    return found_types.explained(*pair, stage) if tasks > 1 else None


def _types_and_notes(client: JobClient, output: Output, result: Result, sensitive: bool) -> dict[str, Any]:
    """The types that a result says, with its notes as columns of nulls where they matter. Raises BlobMissing."""
    types, notes = outputs.head(result, output, client.blobs)
    if not sensitive:
        return types
    import polars as pl

    return types | dict.fromkeys(notes, pl.Null())


def announcements(stage: int, types: Mapping[str, Any]) -> dict[str, str]:
    """Name -> text of the announcements that say these types. Types that cannot be written down are left out."""
    limit = config.FAILURE_TEXT_CHARS_MAX
    texts: list[str] = []
    size = limit
    for name, dtype in types.items():
        try:
            data = data_types.to_data(dtype)
        except InvalidValue:
            continue
        for part in _parts(data, limit - len(_text(name)) - len("[[,]]")):
            one = _text([name, part])
            if size + len(one) + len(",[]") > limit:
                texts.append(one)
                size = len(one)
            else:
                texts[-1] += f",{one}"
                size += len(one) + len(",")
    return {
        f"{state.ANNOUNCED}{stage} {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}": f"[{text}]"
        for text in texts
        if len(text) + len("[]") <= limit
    }


def _parts(data: Any, chars: int) -> Iterator[Any]:
    """Types that are together the one that is given, for one whose text is longer than ``chars``."""
    if len(_text(data)) <= chars:
        yield data
        return
    match data:
        case ["Struct", [[name, inner]]]:
            for part in _parts(inner, chars - len(_text(data)) + len(_text(inner))):
                yield ["Struct", [[name, part]]]
        case ["Struct", [_, *_] as fields]:
            middle = len(fields) // 2
            yield from _parts(["Struct", fields[:middle]], chars)
            yield from _parts(["Struct", fields[middle:]], chars)
        case ["List" | "Array", inner, *size]:
            for part in _parts(inner, chars - len(_text(data)) + len(_text(inner))):
                yield [data[0], part, *size]
        case _:
            yield data


def _text(data: Any) -> str:
    return msgspec.json.encode(data).decode()


def _types_of(text: str) -> dict[str, Any]:
    return {name: data_types.from_data(data) for name, data in msgspec.json.decode(text)}
