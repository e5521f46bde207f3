"""From a job to a run: resolve the sources, cut and pack the input, name the tasks, append one Submit.

Everything that a later process needs to continue is in the log and the blob store before the first task is claimed: the
plan with its functions, the splits, the dispatch order and the seed. Files that the table's last run has read already
keep the pieces that they were cut into then, so their tasks keep their names and their results.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from onefold import config
from onefold.compute.blobs.store import BlobMissing
from onefold.compute.blobs.sweeping import Blobs
from onefold.compute.code import identity
from onefold.compute.jobs import state
from onefold.compute.jobs.ops import StageSpec, Submit
from onefold.compute.plan.nodes import Job, WriteParquet
from onefold.compute.plan.stages import (
    PublishOutput,
    SourceLeaf,
    Split,
    Stage,
    TaskInput,
    Unit,
)
from onefold.compute.plan.stored_job import StoredJob, result_stage_of
from onefold.compute.submission import explanation
from onefold.errors import InvalidPlan, TooLarge

if TYPE_CHECKING:
    from onefold.compute.plan.nodes import Source
    from onefold.compute.sources import Resolved
    from onefold.compute.sources.listing import FileInfo
    from onefold.compute.sources.ranges import Streams
    from onefold.compute.submission.compiler import Compiled
    from onefold.shard.api import Shard

_inputs_encoder = msgspec.msgpack.Encoder()
_inputs_decoder = msgspec.msgpack.Decoder(list[TaskInput])


def decode_inputs(data: bytes) -> list[TaskInput]:
    """The tasks' inputs of one stage, in dispatch order."""
    return _inputs_decoder.decode(data)


class Sources:
    """The job's sources, each resolved once."""

    def __init__(self, streams: Callable[[], Streams] | None) -> None:
        self._streams = streams
        self._resolved: dict[int, tuple[Source, Resolved]] = {}

    def resolve(self, source: Source) -> Resolved:
        """The files and the columns of a source."""
        from onefold.compute import sources

        if id(source) not in self._resolved:
            if source.kind == "stream":
                assert self._streams is not None
                resolved = self._streams().resolve(source)
            else:
                resolved = sources.resolve(source)
            self._resolved[id(source)] = (source, resolved)
        return self._resolved[id(source)][1]

    def schema_of(self, source: Source) -> tuple[tuple[str, object], ...]:
        """The columns of a source, with their types."""
        return self.resolve(source).schema

    def listed(self) -> Iterator[FileInfo]:
        """All files that were resolved."""
        return (file for _, resolved in self._resolved.values() for file in resolved.files)

    def files(self) -> dict[str, str]:
        """The same, with size and modification by path."""
        return {file.path: file.etag for file in self.listed()}

    def bytes_of(self, source: Source) -> int:
        """How large its files are."""
        return sum(file.size for file in self.resolve(source).files)


@dataclass(frozen=True)
class _Previous:
    """The table's last run as far as its tasks can be taken over."""

    run: str | None
    inputs: tuple[tuple[TaskInput, ...], ...] = ()
    done: frozenset[bytes] = frozenset()
    """The names of its finished tasks."""


def prepare(
    job: Job,
    *,
    shard: Shard,
    blobs: Blobs,
    streams: Callable[[], Streams] | None = None,
    run: str,
    seed: int,
    target_splits: int | None,
    on_error: Literal["fail", "skip"],
    max_attempts: int,
) -> tuple[Submit, StoredJob]:
    """Check the job against its input and make the operation that submits it. Writes blobs only. ``streams``: reads
    those that are input.

    Raises InvalidPlan, InvalidArgument, InvalidValue (broken input files) and TooLarge (too many tasks).
    """
    from onefold.compute.submission import compiler, output_overlap

    resolved = Sources(streams)
    compiled = compiler.compile_job(job, schema_of=resolved.schema_of, bytes_of=resolved.bytes_of)
    output_overlap.check(compiled, [file.path for file in resolved.listed()], shard.directory)
    digest = identity.plan_digest(job)
    version = job.sink.version
    previous = _previous(shard, blobs, job, version, digest.hex)

    specs = _stage_specs(
        job, compiled, resolved, previous, digest, blobs, target_splits=target_splits, seed=seed
    )
    fingerprint = explanation.Fingerprint(
        digest.parts, resolved.files(), explanation.types_of(compiled.stages, compiled.sources)
    )
    stored = StoredJob(job, compiled.stages, compiled.columns, compiled.schema)
    submit = Submit(
        run=run,
        table=job.table,
        sink="parquet" if isinstance(job.sink, WriteParquet) else "table",
        mode="continue" if isinstance(job.sink, WriteParquet) else job.sink.mode,
        version=version,
        digest=digest.hex,
        # A folder may be published with other columns than last time; those that are kept are looked at then.
        columns=None if isinstance(job.sink, WriteParquet) else compiled.columns,
        plan=blobs.put(_sealed(stored)),
        seed=seed,
        on_error=on_error,
        max_attempts=max_attempts,
        stages=tuple(specs),
        member=shard.member,
        expect=previous.run,
        explain=blobs.put(explanation.encode(fingerprint)),
    )
    return submit, stored


def _stage_specs(
    job: Job,
    compiled: Compiled,
    resolved: Sources,
    previous: _Previous,
    digest: identity.Digest,
    blobs: Blobs,
    *,
    target_splits: int | None,
    seed: int,
) -> list[StageSpec]:
    """The tasks of each stage, and what they read. Raises TooLarge when there are too many."""
    version = job.sink.version
    name = version if version is not None else digest.hex
    result_stage = result_stage_of(compiled.stages)

    specs: list[StageSpec] = []
    names_by_stage: list[tuple[bytes, ...]] = []
    reads: dict[str, set[str]] = {}
    """What the result's tasks read, by their names."""
    for stage in compiled.stages:
        upstream = [task for need in stage.needs for task in names_by_stage[need]]
        gives = (compiled.schema or ()) if stage.index == result_stage else ()

        content = identity.content_of(stage, upstream, gives)

        def task_name(
            item: TaskInput, stage: int = stage.index, content: Callable[[TaskInput], bytes] = content
        ) -> bytes:
            return identity.task_identity(table=job.table, name=name, stage=stage, content=content(item))

        inputs = _stage_inputs(stage, resolved, previous, target_splits, seed, task_name)
        names = tuple(map(task_name, inputs))
        names_by_stage.append(names)
        specs.append(
            StageSpec(
                tasks=names,
                needs=stage.needs,
                inputs=blobs.put(_inputs_encoder.encode(inputs)),
                costs=tuple(sum(unit.cost for unit in item.units) for item in inputs),
            )
        )
        if stage.index == result_stage:
            reads = {
                task.hex(): {unit.path for unit in item.units}
                for task, item in zip(names, inputs, strict=True)
            }
        if isinstance(stage.output, PublishOutput) and stage.output.mode == "append":
            _check_named(digest, version)
            from onefold.compute.publish import folder as publish

            publish.check_append(stage.output, name, reads)
    total = sum(len(spec.tasks) for spec in specs)
    if total > config.TASKS_PER_JOB_MAX:
        raise TooLarge(
            f"the job would have {total} tasks; at most {config.TASKS_PER_JOB_MAX} are allowed. "
            f"Set target_splits to a smaller number."
        )
    return specs


def _check_named(digest: identity.Digest, version: str | None) -> None:
    """Raise InvalidPlan for a job whose tasks are called otherwise in every run, so that each would append everything."""
    unstable = [part for part in digest.parts if part.startswith(identity.UNSTABLE)]
    if unstable and version is None:
        raise InvalidPlan(
            f'write_parquet: mode="append" cannot tell which rows are there already, because '
            f'{unstable[0].removeprefix(identity.UNSTABLE)}; give the job version=, or use mode="replace"'
        )


def _previous(shard: Shard, blobs: Blobs, job: Job, version: str | None, digest: str) -> _Previous:
    with shard.view() as view:
        table = state.read_table(view, job.table)
        if table is None or table.head is None:
            return _Previous(None)
        run = state.read_run(view, table.head)
        if run is None:
            return _Previous(table.head)
        same = run.version == version if version is not None else run.version is None and run.digest == digest
        fresh = not isinstance(job.sink, WriteParquet) and job.sink.mode == "replace"
        if not same or fresh:
            return _Previous(table.head)
        done = frozenset(
            task.identity
            for stage in range(len(run.stages))
            for task in state.read_tasks(view, run.id, stage)
            if task.state == "done"
        )
    try:
        inputs = tuple(tuple(decode_inputs(blobs.get(stage.inputs))) for stage in run.stages)
    except BlobMissing:
        return _Previous(table.head)
    return _Previous(table.head, inputs, done)


def _stage_inputs(
    stage: Stage,
    resolved: Sources,
    previous: _Previous,
    target_splits: int | None,
    seed: int,
    task_name: Callable[[TaskInput], bytes],
) -> list[TaskInput]:
    from onefold.compute.submission import splitting
    from onefold.compute.tasks.spec import has_python

    if isinstance(stage.output, PublishOutput):
        return [TaskInput(0)]
    least = config.SPLITS_DEFAULT_MIN if has_python(stage) else config.SPLITS_EXPRESSIONS_MIN
    before = previous.inputs[stage.index] if stage.index < len(previous.inputs) else ()
    kept: list[TaskInput] = []
    fresh: list[TaskInput] = []
    # Only what is called as it was: types that were inferred again, or another side of a join, make it another task.
    finished = {item for item in before if previous.done and task_name(item) in previous.done}
    for number, branch in enumerate(stage.branches):
        leaf = branch.leaf
        if isinstance(leaf, SourceLeaf):
            old = [item.units for item in before if item.branch == number and item.units]
            splits_kept, splits_new = _splits(
                leaf.source, resolved.resolve(leaf.source), old, target_splits, least, seed
            )
            kept.extend(TaskInput(number, split) for split in splits_kept)
            fresh.extend(TaskInput(number, split) for split in splits_new)
        else:
            fresh.extend(TaskInput(number, partition=partition) for partition in range(leaf.partitions))
    # Finished tasks are an exact total and come first, in their old order; all that is open is one random permutation,
    # so that a contiguous prefix of it is a random sample.
    position = {item: index for index, item in enumerate(before)}
    exact = sorted((item for item in kept if item in finished), key=position.__getitem__)
    open_ = [item for item in kept if item not in finished] + fresh
    return exact + [open_[index] for index in splitting.dispatch_order(len(open_), seed)]


def _splits(
    source: Source,
    resolved: Resolved,
    previous: Sequence[Split],
    target_splits: int | None,
    least: int,
    seed: int,
) -> tuple[list[Split], list[Split]]:
    from onefold.compute import sources

    split_bytes = config.SPLIT_BYTES_TARGET
    if source.kind == "stream":
        kept, made = sources.ranges.cut(
            resolved,
            previous,
            split_bytes=split_bytes,
            min_units=least if target_splits is None else target_splits,
        )
        return _packed(previous, kept, made, target_splits, least, seed)
    cut_before: dict[tuple[str, int, str], list[Unit]] = {}
    for split in previous:
        for unit in split:
            cut_before.setdefault((unit.path, unit.size, unit.etag), []).append(unit)
    known_units: list[Unit] = []
    new_files = []
    for file in resolved.files:
        known = cut_before.get((file.path, file.size, file.etag))
        if known is None:
            new_files.append(file)
        else:
            known_units.extend(known)
    new_bytes = sum(file.size for file in new_files)
    fresh = sources.units_of(
        source,
        resolved._replace(files=tuple(new_files)),
        split_bytes=split_bytes
        if target_splits is None
        else max(1, min(split_bytes, new_bytes // target_splits)),
        min_units=least if target_splits is None else target_splits,
    )
    return _packed(previous, known_units, fresh, target_splits, least, seed)


def _packed(
    previous: Sequence[Split],
    kept: list[Unit],
    new_units: list[Unit],
    target_splits: int | None,
    least: int,
    seed: int,
) -> tuple[list[Split], list[Split]]:
    """(earlier splits that are as they were, new ones)."""
    from onefold.compute.submission import splitting

    units = [*kept, *new_units]
    if target_splits is None:
        target = splitting.default_target(sum(unit.cost for unit in new_units), len(new_units), least)
    else:
        target = target_splits
    return splitting.repack(previous, units, target_splits=max(1, target), seed=seed)


def _sealed(job: StoredJob) -> bytes:
    """The job in bytes, with what readers need of its result and what it needs of those who run it."""
    from onefold.compute.code import functions
    from onefold.compute.code import needs as requirements
    from onefold.compute.results import description

    pickled = description.attached(functions.dump(job), description.describe(job))
    return requirements.seal(pickled, requirements.of_job(job))
