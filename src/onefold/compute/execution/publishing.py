"""Publishing a run's result: from the finished tasks to a folder of Parquet.

What is in a folder is determined by the files in it (see ``publish.publication_log``), not by the log. So a folder that somebody
removed is made again, and ``append`` adds exactly the tasks whose rows are not there yet, no matter who died when.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from onefold.compute.jobs import state
from onefold.compute.plan.stages import PartialOutput, PublishOutput, Result
from onefold.compute.publish import folder as publish
from onefold.compute.publish import publication_log
from onefold.compute.sources import partition_values
from onefold.compute.submission.submit import decode_inputs
from onefold.errors import Unavailable

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.client import JobClient
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.results.reading import Results


def publish_result(
    client: JobClient, results: Results, run: str, output: PublishOutput, stored: StoredJob
) -> Result:
    """Make the folder from the run's finished result stage. Doing it again changes nothing.

    Raises what ``publish.folder.publish_folder`` raises, and BlobMissing.
    """
    started = time.monotonic()
    stage = stored.result_stage
    with client.shard.view() as view:
        row = state.read_run(view, run)
        finished = state.results(view, run, stage)
        names = {task.index: task.identity.hex() for task in state.read_tasks(view, run, stage)}
    if row is None:
        raise Unavailable(f"run {run} is gone")
    result = results.result_of(row.plan)

    def parts(wanted: Sequence[int]) -> Iterator[pl.DataFrame]:
        if result.grouped:
            yield results.finished({index: task.result for index, task in finished.items()}, result)
            return
        yield results.rows([], result)  # no rows, but the columns
        for index in wanted:
            frame = results.partial(finished[index].result)
            if frame is not None:
                yield frame

    job = row.version or row.digest
    read = decode_inputs(client.blobs.get(row.stages[stage].inputs))
    made: publish.Published | None = None
    while made is None:
        there = publish.contained(output.path) if output.mode == "append" else set()
        wanted = [index for index in sorted(finished) if names[index] not in there]
        if output.mode == "append" and finished and not wanted:
            # This run, by a process that was killed since, or another one has published it all.
            made = publish.published_by(output.path, run) or publish.Published(0, 0)
            break
        with suppress(publish.Overtaken):  # then there is less to add
            made = publish.publish_folder(
                parts(wanted),
                output,
                run=run,
                contains=[names[index] for index in wanted],
                inputs={
                    names[index]: sorted(
                        {publication_log.digest_of(job, unit.path) for unit in read[index].units}
                    )
                    for index in wanted
                },
            )
    note = msgspec.msgpack.encode({"path": output.path, "run": run, "files": made.files, "rows": made.rows})
    return Result(
        blob=client.blobs.put(
            note
        ),  # a blob, so that the task can be reopened by its name when the folder has gone
        rows_out=made.rows,
        elapsed_ms=int((time.monotonic() - started) * 1000),
    )


def check_partitions(results: Results, stage: int, result: Result, stored: StoredJob) -> None:
    """Raise InvalidValue, or InvalidPlan for a type, when values that a task gives make no folders of the publication.

    So the first task that gives one fails, and not the publication after all others. Aggregates have their values at the end.
    """
    sink = stored.stages[-1].output
    if stage != stored.result_stage or not isinstance(sink, PublishOutput) or not sink.partition_by:
        return
    if result.blob is None and result.inline is None:
        return
    frame = results.partial(result, sink.partition_by)
    final = stored.key_columns if isinstance(stored.stages[stage].output, PartialOutput) else None
    if frame is None:
        return
    names = [name for name in sink.partition_by if name in frame.columns and (final is None or name in final)]
    partition_values.check_values(frame.select(names))


def is_published(client: JobClient, run: str, output: PublishOutput, stored: StoredJob) -> bool:
    """Whether the folder holds what the run's result stage gives."""
    with client.shard.view() as view:
        names = {task.identity.hex() for task in state.read_tasks(view, run, stored.result_stage)}
    return publish.is_published(output, names)
