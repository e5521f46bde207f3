"""Folders that a job writes and must not read: the space itself, and where it publishes.

A target that holds input would be replaced by what was made of it. One where the source would find it is read by the
next run, so that each run would add to its own result.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from onefold.compute.plan.stages import PublishOutput
from onefold.compute.sources import listing, partition_values, ranges, remote
from onefold.errors import InvalidArgument

if TYPE_CHECKING:
    from onefold.compute.plan.nodes import Source
    from onefold.compute.submission.compiler import Compiled


def check(compiled: Compiled, files: Iterable[str], space: Path | None) -> None:
    """Raise InvalidArgument when the job reads what it writes, or could not publish. ``files``: all that it reads."""
    real = functools.lru_cache(os.path.realpath)
    folders = {real(os.path.dirname(file)) for file in files if _is_local(file)}  # noqa: PTH120
    if space is not None:
        _refuse(folders, space, "the space itself; keep the space in another folder")
    for stage in compiled.stages:
        if isinstance(stage.output, PublishOutput):
            from onefold.compute.publish import folder as publish

            target = publish.check(stage.output)
            _refuse(folders, target, "the folder that it publishes; choose another folder")
            for source in compiled.sources:
                _check_next_run(source, target, stage.output)


def _is_local(file: str) -> bool:
    return not remote.is_remote(file) and not ranges.is_range(file)


def _refuse(folders: Iterable[str], folder: Path, what: str) -> None:
    top = os.path.realpath(folder)
    for read in folders:
        if read == top or read.startswith(top + os.sep):
            raise InvalidArgument(f"the job reads files of {folder}, {what}")


def _check_next_run(source: Source, target: Path, output: PublishOutput) -> None:
    folders = partition_values.null_folder(output.partition_by).split("/") if output.partition_by else ()
    published = (*target.parts, *folders, "x-00000.parquet")
    for given in source.paths if source.kind != "stream" else ():
        if not remote.is_remote(given) and _finds(source, given, published):
            raise InvalidArgument(
                f"read_{source.kind}({given!r}) would read what this job publishes in {target} when it runs again; "
                f"publish outside of what is read, or name the files that are read more exactly"
            )


def _finds(source: Source, given: str, file: tuple[str, ...]) -> bool:
    path = listing.absolute(given)
    if os.path.isdir(path):  # noqa: PTH112
        top = Path(path).resolve().parts
        return file[: len(top)] == top and listing.wanted(source.kind, file[len(top) :])
    return not os.path.exists(path) and _matches(Path(path).parts, file)  # noqa: PTH110


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a glob finds a path, both from the root."""
    if not pattern or not parts:
        return not pattern and not parts
    head, rest = pattern[0], pattern[1:]
    if head == "**":
        if not rest or _matches(rest, parts):
            return True
        return not parts[0].startswith(".") and _matches(pattern, parts[1:])
    hidden = parts[0].startswith(".") and not head.startswith(".")
    return not hidden and fnmatchcase(parts[0], head) and _matches(rest, parts[1:])
