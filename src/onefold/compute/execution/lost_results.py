"""Finished tasks whose results are gone: reopened, so that they are run again, before a reader or another task needs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onefold.compute.jobs import ops, state
from onefold.compute.plan.stages import PublishOutput

if TYPE_CHECKING:
    from onefold.compute.client import JobClient

_BATCH = 1000


def reopen(client: JobClient, run: str) -> bool:
    """Reopen finished tasks of a run whose blobs, or whose published folder, are gone; whether there were any.

    Raises what ``JobClient.stored`` raises where the job's plan has to be read.
    """
    with client.shard.view() as view:
        row = state.read_run(view, run)
        if row is None:
            return False
        found = [
            (stage, index, task.result)
            for stage in range(len(row.stages))
            for index, task in state.results(view, run, stage).items()
        ]
    missing = client.blobs.missing(result.blob for _, _, result in found if result.blob is not None)
    if not missing and row.sink != "parquet":
        return False
    stored = client.stored(row.plan)
    lost: list[ops.Operation] = []
    for stage, index, result in found:
        output = stored.stages[stage].output
        if isinstance(output, PublishOutput):
            from onefold.compute.execution import publishing

            gone = not publishing.is_published(client, run, output, stored)
        else:
            gone = result.blob in missing
        if gone:
            lost.append(ops.Lost(run, stage, index, result.blob or ""))
    for start in range(0, len(lost), _BATCH):
        client.submit(*lost[start : start + _BATCH])
    return bool(lost)
