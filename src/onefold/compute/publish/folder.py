"""Publishing a folder of Parquet files whole or not at all.

The complete new folder is built next to the target: files that stay are hard-linked, new ones written and
synced. Then the two are swapped in one step and the old one is removed. Readers that open the folder see one
whole version; files of different versions have different names, so one that is read by an outdated listing is
missing, never wrong.

The folder's files name the runs that published into it (``publication_log``): publishing again after a kill finds
its run there and does nothing more.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.plan.stages import PublishOutput
from onefold.compute.publish import atomic_swap, publication_log
from onefold.compute.publish.folder_writer import FolderWriter, Published
from onefold.errors import InvalidArgument, InvalidValue
from onefold.files import sync

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Published", "check", "contained", "is_published", "local_path", "publish_folder", "published_by"]

_KNOWN_FILES: Final = {"_SUCCESS", "_metadata", "_common_metadata"}


class Overtaken(Exception):
    """Another program has appended rows of the same tasks since ``contained`` was asked; nothing was published."""


def publish_folder(
    parts: Iterable[pl.DataFrame],
    output: PublishOutput,
    *,
    run: str,
    contains: Iterable[str] = (),
    inputs: Mapping[str, list[str]] | None = None,
) -> Published:
    """Publish these rows as the sink says.

    ``contains``: names of the tasks that the rows come from, for ``contained``. ``inputs``: digests of what they read, by
    name, for ``check_append``.

    ``replace`` makes the folder hold these rows only, ``append`` adds files, ``replace_partitions`` replaces
    the partitions that occur in the rows. Doing it again for the same run changes nothing. Raises
    InvalidArgument for a target that is not a local folder or holds files that are not Parquet, InvalidPlan for
    partition columns that are not there, InvalidValue for rows that do not fit together or to the rows that
    are kept, OSError when the disk is full, Overtaken (``append``): the folder is as it was then.
    """
    contains = frozenset(contains)
    target = local_path(output.path)
    if output.mode == "replace_partitions" and not output.partition_by:
        raise InvalidArgument('write_parquet(mode="replace_partitions") needs partition_by')
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_swap.locked(target.parent):
        atomic_swap.recover(target)
        atomic_swap.remove_leftovers(target)
        there = publication_log.read(target)
        before = there.by_run(run)
        if before is not None:
            return Published(*before)
        _check_target(target, output, there)
        declared = there.types if output.mode != "replace" else None
        staging = atomic_swap.Staging(target)
    garbage: Path | None = staging.path
    try:
        writer = FolderWriter(staging.path, output.partition_by, run, declared)
        for part in parts:
            writer.add(part)
        writer.finish(_schema_of(target, _kept(target, output, writer.folders)))
        while True:
            base = _version(target)
            there = publication_log.read(target)
            before = there.by_run(run)
            if before is not None:
                return Published(*before)
            if output.mode == "append" and not there.contains.isdisjoint(contains):
                raise Overtaken
            _check_target(target, output, there)
            kept = _kept(target, output, writer.folders)
            writer.check_fits(_schema_of(target, kept), there.types if kept else None)
            _link(target, staging.path, kept)
            writer.seal(
                there.successor(
                    run=run,
                    files=writer.published.files,
                    rows=writer.published.rows,
                    partition_by=output.partition_by,
                    contains=contains,
                    kept=kept,
                    replaces_all=output.mode == "replace",
                    inputs=inputs,
                )
            )
            _sync_folders(staging.path)
            with atomic_swap.locked(target.parent):
                if _version(target) == base:
                    garbage = atomic_swap.swap_in(staging.path, target)
                    return writer.published
            _unlink(staging.path, kept)  # somebody else has published meanwhile: link what is there now
    finally:
        staging.close()
        if garbage is not None:
            shutil.rmtree(garbage, ignore_errors=True)


def contained(path: str) -> set[str]:
    """Names of the tasks whose rows the folder holds, as its files say; empty when there is no such folder."""
    return publication_log.read(local_path(path)).contains


def published_by(path: str, run: str) -> Published | None:
    """What a run has published into the folder, as its files say; None when it has not."""
    there = publication_log.read(local_path(path)).by_run(run)
    return Published(*there) if there is not None else None


def is_published(output: PublishOutput, names: set[str]) -> bool:
    """Whether the folder holds the rows of these tasks, and for ``replace`` no others: nothing is left to do."""
    there = publication_log.read(local_path(output.path))
    if output.mode == "append":
        return there.contains >= names
    mine = [
        known for known in there.publications.values() if not names or not names.isdisjoint(known.contains)
    ]
    whole = bool(mine) and all(there.complete(known) for known in mine) and there.contains >= names
    if output.mode == "replace_partitions":
        return whole
    alone = len(mine) == 1 and sum(there.counts.values()) + there.others == mine[0].files
    return whole and alone and there.contains == names


def check(output: PublishOutput) -> Path:
    """The target folder, when rows may be published there as things are now. Changes nothing; raises InvalidArgument."""
    target = local_path(output.path)
    there = next(folder for folder in target.parents if folder.exists())
    if not there.is_dir():
        raise InvalidArgument(f"{target} cannot be made: {there} is a file. Choose another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidArgument(
            f"{target} cannot be published: {there} may not be written to. Choose another folder"
        )
    _check_target(target, output, publication_log.read(target))
    return target


def check_append(output: PublishOutput, job: str, reads: Mapping[str, Iterable[str]]) -> None:
    """Raise InvalidArgument when appending would add rows of a file of which the folder holds rows of the same job (its
    version or digest). ``reads``: the paths that each task reads, by the task's name.

    A task that the folder does not hold would add all its rows, also those that came from the same file under another name
    of the task: of a file that has changed since, or whose rows are joined, typed or cut in another way.
    """
    there = publication_log.read(local_path(output.path))
    held = {path for name, paths in there.inputs.items() if name not in reads for path in paths}
    if not held:
        return
    contained = there.contains
    for name, paths in reads.items():
        for path in () if name in contained else sorted(paths):
            if publication_log.digest_of(job, path) in held:
                raise InvalidArgument(
                    f'{output.path} holds rows of {path} already, and mode="append" would add its rows again: the file '
                    f"has changed since, or a file that was read with it, the types of its columns or what it is joined "
                    f'with. Use mode="replace", or append other files only'
                )


def local_path(path: str) -> Path:
    """The local folder that a path or ``file://`` URL names. Raises InvalidArgument for other URLs."""
    if path.startswith("file://"):
        path = path.removeprefix("file://")
    elif re.match(r"^[A-Za-z][A-Za-z0-9+.-]*://", path):
        scheme = path.split("://", 1)[0]
        raise InvalidArgument(
            f"write_parquet publishes folders of a local file system; {scheme}:// has no way to swap a folder whole. "
            f"Write to a local folder and copy it, or read the table with db.table(...)"
        )
    return Path(path).expanduser().resolve()


# -- what is there already -----------------------------------------------------------------------------------


def _check_target(target: Path, output: PublishOutput, there: publication_log.Folder) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidArgument(f"{target} is a file; write_parquet publishes a folder")
    if not target.exists():
        return
    if os.path.ismount(target):
        raise InvalidArgument(
            f"{target} is a mount point, which cannot be swapped; publish to a folder in it"
        )
    for file in publication_log.files_of(target):
        known = file.name.endswith((".parquet", ".crc")) or file.name in _KNOWN_FILES
        if output.mode == "replace" and (file.is_symlink() or not known):
            raise InvalidArgument(
                f"{target} holds {file.relative_to(target)}, which is not a Parquet file of a dataset; "
                f"write_parquet will not delete it. Choose another folder, or move that file away"
            )
    before = there.partition_by
    if output.mode != "replace" and before is not None and before != list(output.partition_by):
        raise InvalidArgument(
            f"{target} is partitioned by {before}, not by {list(output.partition_by)}; "
            f'use the same partition_by, or mode="replace"'
        )


def _schema_of(target: Path, kept: Iterable[Path]) -> dict[str, Any] | None:
    """Columns of the files that are kept; None when none is."""
    import polars as pl

    for relative in kept:
        if relative.name.endswith(".parquet"):
            try:
                return dict(pl.read_parquet_schema(target / relative))
            except FileNotFoundError:
                continue  # the folder is being replaced by another publisher: the version check finds it
            except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
                reason = str(error).strip().split("\n", 1)[0]
                raise InvalidValue(
                    f"{target / relative}, which would be kept, is not a Parquet file that can be read: {reason}; "
                    f'remove it, or use mode="replace"'
                ) from error
    return None


def _version(target: Path) -> tuple[int, int, int] | None:
    """Changes whenever another folder takes the target's place, or somebody adds a file at its top."""
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns


def _kept(target: Path, output: PublishOutput, folders: set[str]) -> list[Path]:
    """Files of the old folder that are in the new one too, relative to the target."""
    if output.mode == "replace" or not target.is_dir():
        return []
    kept = []
    for file in publication_log.files_of(target):
        relative = file.relative_to(target)
        replaced = output.mode == "replace_partitions" and str(relative.parent) in folders
        if not replaced:
            kept.append(relative)
    return kept


def _link(target: Path, staging: Path, kept: Iterable[Path]) -> None:
    for relative in kept:
        source, copy = target / relative, staging / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
            continue
        try:
            os.link(source, copy)
        except FileNotFoundError:
            continue  # the folder is being replaced by somebody: the version check tells
        except OSError:
            shutil.copy2(source, copy)
            sync(copy)


def _unlink(staging: Path, kept: Iterable[Path]) -> None:
    for relative in kept:
        (staging / relative).unlink(missing_ok=True)


def _sync_folders(folder: Path) -> None:
    for directory, _, _ in os.walk(folder, topdown=False):
        sync(Path(directory))
