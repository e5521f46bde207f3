"""Tasks over ranges of streams: their rows are written into scratch files for the executor, and removed behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from onefold import config
from onefold.compute.plan.stages import Failure, Result, SourceLeaf

if TYPE_CHECKING:
    from onefold.compute.client import JobClient
    from onefold.compute.sources.ranges import Taken
    from onefold.compute.tasks.executor import Executor, OnRows
    from onefold.compute.tasks.spec import TaskSpec

_KIND = "InvalidValue"


def run(executor: Executor, spec: TaskSpec, client: JobClient, on_rows: OnRows | None) -> Result:
    """Have an executor run a task, which may read ranges of streams.

    Raises as ``Executor.run``; TooOld when retention has removed a range, StreamsUnavailable, OSError.
    """
    leaf = spec.stage.branches[spec.input.branch].leaf
    if not isinstance(leaf, SourceLeaf) or leaf.source.kind != "stream" or client.streams is None:
        return executor.run(spec, on_rows)
    folder = client.blobs.scratch.temporary().parent
    taken = client.streams().take(leaf.source, leaf.schema, spec.input.units, folder)
    try:
        if taken.dead:
            _check(taken, spec)
        local = msgspec.structs.replace(spec.input, units=taken.units)
        made = executor.run(replace(spec, input=local), on_rows)
    finally:
        taken.remove()
    return msgspec.structs.replace(
        made,
        rows_in=made.rows_in + len(taken.dead),
        bytes_in=spec.bytes_in,
        dead=(*taken.dead, *made.dead),
    )


def _check(taken: Taken, spec: TaskSpec) -> None:
    """Raise TaskError when records that cannot be rows are not to be set aside, or are too many."""
    from onefold.compute.tasks.kernels import too_many_dead
    from onefold.compute.tasks.spec import TaskError

    letter = taken.dead[0]
    if not spec.skip_errors:
        raise TaskError(
            Failure(
                message=f"{letter.location}: {letter.error}",
                record=letter.record,
                location=letter.location,
                final=True,
                kind=_KIND,
            )
        )
    chars = sum(len(one.location) + len(one.record) + len(one.error) for one in taken.dead)
    too_long = chars > config.DEAD_LETTERS_CHARS_PER_TASK_MAX
    if len(taken.dead) > spec.dead_letters_max or too_long:
        raise TaskError(too_many_dead(spec, taken.dead[-1], _KIND, too_long=too_long))
