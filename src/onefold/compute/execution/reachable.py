"""Whether a task's input is on this machine: the files of a job are where its submitter has them, and perhaps not here."""

from __future__ import annotations

import os
from pathlib import Path

from onefold.compute.plan.stages import PublishOutput, Stage, TaskInput
from onefold.compute.sources import etags, ranges, remote


def why_not(stage: Stage, item: TaskInput) -> str | None:
    """Why a task cannot be done on this machine, naming the file; None when it can.

    URLs are taken as reachable: an object store that does not answer is an error of the task.
    """
    if isinstance(stage.output, PublishOutput) and not remote.is_remote(stage.output.path):
        folder = Path(stage.output.path).parent
        if not folder.is_dir():
            return f"the folder {folder} that the result is published in is not there"
    seen: set[str] = set()
    for unit in item.units:
        if unit.path in seen or remote.is_remote(unit.path) or ranges.is_range(unit.path):
            continue
        seen.add(unit.path)
        try:
            status = os.stat(unit.path)  # noqa: PTH116 - one call for each of perhaps many files
        except FileNotFoundError:
            return f"the file {unit.path} is not there"
        except OSError as error:
            return f"the file {unit.path} cannot be read: {error.strerror}"
        if not os.access(unit.path, os.R_OK):
            return f"the file {unit.path} may not be read"
        try:
            same = etags.is_same(unit.etag, unit.path, status)
        except OSError as error:
            return f"the file {unit.path} cannot be read: {error.strerror}"
        if not same:
            return f"the file {unit.path} is another one (its size, time or inode differ)"
    return None
