"""Publishing a folder of Parquet files whole or not at all.

The complete new folder is built beside the target: files that stay are hard-linked, new ones written and
synced. Then the two are swapped in one step and the old one is removed. Readers that open the folder see one
whole version; files of different versions have different names, so one that is read by an outdated listing is
missing, never wrong.

The folder's files name the runs that published into it (``publications``): publishing again after a kill finds
its run there and does nothing more.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onefold.compute import folder_swap, frames, publications
from onefold.compute.stages import PublishOutput
from onefold.errors import InvalidArgument, InvalidPlan, InvalidValue

if TYPE_CHECKING:
    import polars as pl

FILE_BYTES_TARGET: Final = 128 * 1024 * 1024
"""Rows wait in memory up to this size, so that files are neither tiny nor huge."""
NULL_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"
_KNOWN_FILES: Final = {"_SUCCESS", "_metadata", "_common_metadata"}
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
"""How Polars tells what the operating system refused."""
_ESCAPED: Final = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{}\[\]^<>|]")


@dataclass(frozen=True, slots=True)
class Published:
    """What a run has published: its own files and rows, not those that were kept."""

    files: int
    rows: int


def publish_folder(
    parts: Iterable[pl.DataFrame], output: PublishOutput, *, run: str, contains: Iterable[str] = ()
) -> Published:
    """Publish these rows as the sink says.

    ``contains``: names of the tasks that the rows come from, for ``contained``.

    ``replace`` makes the folder hold these rows only, ``append`` adds files, ``replace_partitions`` replaces
    the partitions that occur in the rows. Doing it again for the same run changes nothing. Raises
    InvalidArgument for a target that is no local folder or holds files that are not Parquet, InvalidPlan for
    partition columns that are not there, InvalidValue for rows that do not fit together or to the rows that
    are kept, OSError when the disk is full: the folder is as it was then.
    """
    target = local_path(output.path)
    if output.mode == "replace_partitions" and not output.partition_by:
        raise InvalidArgument('write_parquet(mode="replace_partitions") needs partition_by')
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_swap.locked(target.parent):
        folder_swap.recover(target)
        folder_swap.remove_leftovers(target)
        there = publications.read(target)
        before = there.by_run(run)
        if before is not None:
            return Published(*before)
        _check_target(target, output, there)
        staging = folder_swap.Staging(target)
    garbage: Path | None = staging.path
    try:
        writer = _FolderWriter(staging.path, output, run)
        for part in parts:
            writer.add(part)
        writer.finish(_schema_of(target, _kept(target, output, writer.folders)))
        while True:
            base = _version(target)
            there = publications.read(target)
            before = there.by_run(run)
            if before is not None:
                return Published(*before)
            _check_target(target, output, there)
            kept = _kept(target, output, writer.folders)
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
                )
            )
            _sync_folders(staging.path)
            with folder_swap.locked(target.parent):
                if _version(target) == base:
                    garbage = folder_swap.swap_in(staging.path, target)
                    return writer.published
            _unlink(staging.path, kept)  # somebody else has published meanwhile: link what is there now
    finally:
        staging.close()
        if garbage is not None:
            shutil.rmtree(garbage, ignore_errors=True)


def contained(path: str) -> set[str]:
    """Names of the tasks whose rows the folder holds, as its files say; empty when there is no such folder."""
    return publications.read(local_path(path)).contains


def is_published(output: PublishOutput, names: set[str]) -> bool:
    """Whether the folder holds the rows of these tasks, and for ``replace`` no others: nothing is left to do."""
    there = publications.read(local_path(output.path))
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
    _check_target(target, output, publications.read(target))
    return target


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


def _check_target(target: Path, output: PublishOutput, there: publications.Folder) -> None:
    if target.exists() and not target.is_dir():
        raise InvalidArgument(f"{target} is a file; write_parquet publishes a folder")
    if not target.exists():
        return
    if os.path.ismount(target):
        raise InvalidArgument(
            f"{target} is a mount point, which cannot be swapped; publish to a folder in it"
        )
    for file in publications.files_of(target):
        known = file.name.endswith((".parquet", ".crc")) or file.name in _KNOWN_FILES
        if output.mode == "replace" and (file.is_symlink() or not known):
            raise InvalidArgument(
                f"{target} holds {file.relative_to(target)}, which is no Parquet file of a dataset; "
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
            return dict(pl.read_parquet_schema(target / relative))
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
    for file in publications.files_of(target):
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
            _sync_file(copy)


def _unlink(staging: Path, kept: Iterable[Path]) -> None:
    for relative in kept:
        (staging / relative).unlink(missing_ok=True)


def _sync_folders(folder: Path) -> None:
    for directory, _, _ in os.walk(folder, topdown=False):
        folder_swap.sync_directory(Path(directory))


def _sync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# -- what comes new ------------------------------------------------------------------------------------------


class _FolderWriter:
    """Writes rows as Parquet files below a folder, one Hive folder per partition, with the same columns in
    all.
    """

    def __init__(self, folder: Path, output: PublishOutput, run: str) -> None:
        self._folder = folder
        self._by = list(output.partition_by)
        self._run = run
        self._pending: dict[str, list[pl.DataFrame]] = {}
        self._pending_bytes = 0
        self._written: list[tuple[Path, pl.Schema]] = []
        self._last: tuple[Path, pl.DataFrame] | None = None
        self._columns: pl.DataFrame | None = None
        self.folders: set[str] = set()
        self.published = Published(0, 0)
        self._rows = 0

    def add(self, part: pl.DataFrame) -> None:
        """Rows that come next."""
        if not part.width:
            return
        for name in self._by:
            if name not in part.columns:
                raise InvalidPlan(
                    f"partition_by names {name!r}, which is not a column of the result: {part.columns}"
                )
        if len(self._by) >= part.width:
            raise InvalidPlan(
                "partition_by names every column; one has to be left to be written into the files"
            )
        clear = part.clear().drop(self._by)
        self._columns = clear if self._columns is None else frames.concat([self._columns, clear])
        self._rows += part.height
        while (
            self._pending_bytes > FILE_BYTES_TARGET
        ):  # before more comes, so that the last file is always to come
            largest = max(
                self._pending, key=lambda name: sum(held.estimated_size() for held in self._pending[name])
            )
            self._flush(largest)
        if not self._by:
            self._hold("", part)
        elif part.height:
            groups = part.partition_by(self._by, as_dict=True, include_key=True, maintain_order=True)
            for group in groups.values():
                self._hold(self._folder_name(group), group.drop(self._by))

    def finish(self, existing: dict[str, Any] | None) -> None:
        """Write what waits but for the last file, which ``seal`` writes, and bring all files to the same columns:
        those of ``existing`` files if there are any.
        """
        import polars as pl

        if self._columns is None:
            return
        *others, last = self._pending or [""]
        for name in others:
            self._flush(name)
        wanted = dict(self._columns.schema)
        if existing is not None:
            wanted = _fitting(wanted, {k: v for k, v in existing.items() if k not in self._by})

        def fitted(frame: pl.DataFrame) -> pl.DataFrame:
            if list(frame.schema.items()) == list(wanted.items()):
                return frame
            return frame.select(
                (pl.col(name) if name in frame.columns else pl.lit(None)).cast(dtype).alias(name)
                for name, dtype in wanted.items()
            )

        for path, schema in self._written:
            if list(schema.items()) != list(wanted.items()):
                self._store(path, fitted(pl.read_parquet(path, hive_partitioning=False)))
        if self._pending:
            self._last = (self._path(last), fitted(frames.concat(self._pending.pop(last))))
        else:  # a file without rows still says what columns there are, and who has published
            folder = "/".join(f"{name}={NULL_PARTITION}" for name in self._by)
            self._last = (self._path(folder), fitted(self._columns))
        self.published = Published(len(self._written) + 1, self._rows)

    def seal(self, publication: publications.Publication) -> None:
        """Write the last file, with what the publication says of itself."""
        if self._last is not None:
            path, frame = self._last
            self._store(path, frame, publication.encode())

    def _hold(self, folder: str, frame: pl.DataFrame) -> None:
        self.folders.add(folder)
        self._pending.setdefault(folder, []).append(frame)
        self._pending_bytes += int(frame.estimated_size())

    def _flush(self, folder: str) -> None:
        held = self._pending.pop(folder)
        self._pending_bytes -= sum(int(frame.estimated_size()) for frame in held)
        frame = frames.concat(held)
        path = self._path(folder)
        self._store(path, frame)
        self._written.append((path, frame.schema))

    def _path(self, folder: str) -> Path:
        path = self._folder / folder / publications.file_name(self._run, len(self._written))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidValue(
                f"no folder can be made for the partition {folder[:200]!r}: {error.strerror}"
            ) from error
        return path

    def _store(self, path: Path, frame: pl.DataFrame, metadata: dict[str, str] | None = None) -> None:
        import polars as pl

        try:
            frame.write_parquet(path, compression="zstd", statistics=True, metadata=metadata)
        except pl.exceptions.ComputeError as error:
            told = _OS_ERROR.search(str(error))
            if told is None:
                raise
            raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error
        _sync_file(path)

    def _folder_name(self, group: pl.DataFrame) -> str:
        import polars as pl

        row = group.select(pl.col(name).head(1).cast(pl.String) for name in self._by).row(0)
        return "/".join(f"{name}={hive_text(value)}" for name, value in zip(self._by, row, strict=True))


def hive_text(value: str | None) -> str:
    """A partition's value as a folder name: as Spark escapes it, and Polars and Arrow read it."""
    if value is None:
        return NULL_PARTITION
    if value == NULL_PARTITION:
        raise InvalidValue(f"the value {NULL_PARTITION!r} cannot be a partition: it stands for null")
    return _ESCAPED.sub(lambda match: f"%{ord(match.group()):02X}", value)


def _fitting(new: dict[str, Any], existing: dict[str, Any]) -> dict[str, Any]:
    """The existing columns, if the new ones fit in without loss."""
    import polars as pl

    problems = [f"{name!r} is new" for name in new if name not in existing]
    problems += [f"{name!r} is missing" for name in existing if name not in new]
    for name, dtype in new.items():
        if name in existing and dtype != existing[name] and dtype != pl.Null:
            wider = frames.concat(
                [pl.DataFrame(schema={name: existing[name]}), pl.DataFrame(schema={name: dtype})]
            ).schema[name]
            if wider != existing[name]:
                problems.append(f"{name!r} is {dtype}, not {existing[name]}")
    if problems:
        raise InvalidValue(
            f"the result does not fit the files that are kept: column {', '.join(problems)}; "
            f'make the columns the same, or use mode="replace"'
        )
    return existing
