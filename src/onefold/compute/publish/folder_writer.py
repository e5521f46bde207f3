"""Writing rows as a folder of Parquet files, one Hive folder per partition, with the same columns in all.

Which rows belong together is decided by the columns' own values, never by Python's: two times that differ by a
nanosecond, or by the repeated hour of a clock change, are equal as Python objects and are different partitions.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.frames import values as frames
from onefold.compute.publish import publication_log
from onefold.compute.sources import partition_values
from onefold.errors import InvalidPlan, InvalidValue
from onefold.files import sync

if TYPE_CHECKING:
    import polars as pl

FILE_BYTES_TARGET: Final = 128 * 1024 * 1024
"""Rows wait in memory up to this size, so that files are neither tiny nor huge."""
_OS_ERROR: Final = re.compile(r"\(os error (\d+)\)")
"""How Polars tells what the operating system refused."""
_NAME_REFUSED: Final = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})


@dataclass(frozen=True, slots=True)
class Published:
    """What a run has published: its own files and rows, not those that were kept."""

    files: int
    rows: int


class FolderWriter:
    """Takes rows part by part; ``finish`` writes all but the last file, and ``seal`` that one."""

    def __init__(
        self, folder: Path, by: Iterable[str], run: str, declared: Mapping[str, Any] | None = None
    ) -> None:
        """``declared``: types of the partition columns in files that may be kept, which new values have to fit."""
        self._folder = folder
        self._by = list(by)
        self._run = run
        self._declared = declared
        self._types: dict[str, Any] | None = dict(declared) if declared is not None else None
        self._found: set[str] = set()
        self._values: dict[str, pl.DataFrame] = {}
        """The partition columns' values by folder, as a frame of one row."""
        self._pending: dict[str, list[pl.DataFrame]] = {}
        self._pending_bytes = 0
        self._written: list[tuple[Path, pl.Schema, dict[str, Any]]] = []
        """Files, their columns, and the types of partition columns that they say."""
        self._last: tuple[Path, pl.DataFrame] | None = None
        self._columns: pl.DataFrame | None = None
        self.published = Published(0, 0)
        self._rows = 0

    @property
    def types(self) -> dict[str, Any]:
        """Types of the partition columns so far."""
        return self._types or {}

    @property
    def folders(self) -> set[str]:
        """The partitions that have rows, by folder; also as earlier releases named them."""
        return {
            name
            for folder, row in self._values.items()
            for name in (folder, partition_values.folder_of(row, escape_names=False))
        }

    def add(self, part: pl.DataFrame) -> None:
        """Rows that come next. Raises InvalidPlan and InvalidValue for partition columns that cannot be."""
        if not part.width:
            return
        part = self._with_partitions(part)
        clear = part.clear().drop(self._by)
        self._columns = clear if self._columns is None else frames.concat([self._columns, clear])
        self._rows += part.height
        # Before more comes, so that the last file is always to come.
        while self._pending_bytes > FILE_BYTES_TARGET:
            self._flush(max(self._pending, key=lambda name: _bytes(self._pending[name])))
        if not self._by:
            self._hold("", part)
        elif part.height:
            for group in part.partition_by(self._by, include_key=True, maintain_order=True):
                row = group.select(self._by).head(1)
                folder = partition_values.folder_of(row)
                self._values.setdefault(folder, row)
                self._hold(folder, group.drop(self._by))

    def finish(self, existing: dict[str, Any] | None) -> None:
        """Write what waits but for the last file, which ``seal`` writes, and bring all files to the same columns:
        those of ``existing`` files if there are any.
        """
        import polars as pl

        if self._columns is None:
            return
        for name in self._by:
            if name not in self._found:
                raise InvalidPlan(
                    f"partition_by names {name!r}, which is not a column of the result: {self._columns.columns}"
                )
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

        for path, schema, types in self._written:
            if list(schema.items()) != list(wanted.items()) or types != self.types:
                self._store(path, fitted(pl.read_parquet(path, hive_partitioning=False)))
        if self._pending:
            self._last = (self._path(last), fitted(frames.concat(self._pending.pop(last))))
        else:  # a file without rows still says what columns there are, and who has published
            self._last = (self._path(partition_values.null_folder(self._by)), fitted(self._columns))
        self.published = Published(len(self._written) + 1, self._rows)

    def seal(self, publication: publication_log.Publication) -> None:
        """Write the last file, with what the publication says of itself."""
        if self._last is not None:
            path, frame = self._last
            self._store(path, frame, publication.encode())

    def check_fits(self, existing: dict[str, Any] | None, types: Mapping[str, Any] | None) -> None:
        """Raise InvalidValue when files that are kept have other columns, since another program has published meanwhile."""
        if self._last is None:
            return
        mine = self._last[1].schema
        kept = {name: dtype for name, dtype in (existing or {}).items() if name not in self._by}
        agree = existing is None or kept == dict(mine)
        if types is not None and self._by:
            agree = agree and all(types.get(name) in (dtype, _null()) for name, dtype in self.types.items())
        if not agree:
            raise InvalidValue(
                "another program has published other columns, or other types of them, into the folder meanwhile; "
                "run it again to see how they differ"
            )

    # -- partitions

    def _with_partitions(self, part: pl.DataFrame) -> pl.DataFrame:
        """The part with all partition columns, in the types that hold all parts' values."""
        import polars as pl

        if not self._by:
            return part
        self._found.update(name for name in self._by if name in part.columns)
        # Functions may give a column for some records only: it is null for the others, whichever part they are in.
        part = part.with_columns(pl.lit(None).alias(name) for name in self._by if name not in part.columns)
        if len(self._by) >= part.width:
            raise InvalidPlan(
                "partition_by names every column; one has to be left to be written into the files"
            )
        mine = {name: part.schema[name] for name in self._by}
        partition_values.check_types(self._by, mine)
        types = mine if self._types is None else partition_values.meet(self._types, mine)
        if self._types is not None and types != self._types:
            self._check_declared(types)
            self._retype(types)
        self._types = types
        return _cast(part, types)

    def _check_declared(self, types: Mapping[str, Any]) -> None:
        for name, dtype in (self._declared or {}).items():
            if dtype not in (types[name], _null()):
                raise InvalidValue(
                    f"the result does not fit the files that are kept: the partition column {name!r} is {types[name]}, "
                    f'not {dtype}; cast it, or use mode="replace"'
                )

    def _retype(self, types: Mapping[str, Any]) -> None:
        """Later parts need wider types: rows so far belong to the folders that their values have in those."""
        values, self._values = self._values, {}
        for folder, row in values.items():
            row = _cast(row, types)
            moved = partition_values.folder_of(row)
            self._values.setdefault(moved, row)
            if moved == folder:
                continue
            if folder in self._pending:
                self._pending[moved] = [*self._pending.get(moved, ()), *self._pending.pop(folder)]
            for at, (path, schema, said) in enumerate(self._written):
                if path.parent == self._folder / folder:
                    target = self._in(moved) / path.name
                    path.rename(target)
                    self._written[at] = (target, schema, said)
            with contextlib.suppress(OSError):
                (self._folder / folder).rmdir()

    # -- files

    def _hold(self, folder: str, frame: pl.DataFrame) -> None:
        self._pending.setdefault(folder, []).append(frame)
        self._pending_bytes += int(frame.estimated_size())

    def _flush(self, folder: str) -> None:
        held = self._pending.pop(folder)
        self._pending_bytes -= _bytes(held)
        frame = frames.concat(held)
        path = self._path(folder)
        self._store(path, frame)
        self._written.append((path, frame.schema, self.types))

    def _path(self, folder: str) -> Path:
        return self._in(folder) / publication_log.file_name(self._run, len(self._written))

    def _in(self, folder: str) -> Path:
        """The folder, made if need be."""
        path = self._folder / folder
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in _NAME_REFUSED:
                raise
            raise InvalidValue(
                f"no folder can be made for the partition {folder[:200]!r}: {error.strerror}"
            ) from error
        return path

    def _store(self, path: Path, frame: pl.DataFrame, metadata: dict[str, str] | None = None) -> None:
        import polars as pl

        notes = {**partition_values.encode_types(self.types)} if self._by else {}
        notes |= metadata or {}
        try:
            frame.write_parquet(path, compression="zstd", statistics=True, metadata=notes or None)
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
            told = _OS_ERROR.search(str(error))
            if told is not None:
                raise OSError(int(told[1]), os.strerror(int(told[1])), str(path)) from error
            named = ", ".join(f"{name!r} {frame.schema[name]}" for name in _unwritable(frame.schema))
            reason = str(error).strip().split("\n", 1)[0]
            raise InvalidValue(
                f"the result cannot be written as Parquet{': column ' if named else ''}{named}: {reason}; "
                f"convert it before write_parquet"
            ) from error
        sync(path)


def check_columns(schema: Mapping[str, Any]) -> None:
    """Raise InvalidPlan for a column of a type that a Parquet file cannot hold."""
    for name, dtype in schema.items():
        if holds_nothing(dtype):
            raise InvalidPlan(
                f"write_parquet: column {name!r} is {dtype}, which a Parquet file cannot hold; drop or convert it"
            )


def holds_nothing(dtype: Any) -> bool:
    """Whether the type is, or has inside, a struct without fields or Python objects: Parquet has no form for them."""
    import polars as pl

    if isinstance(dtype, pl.Struct):
        return not dtype.fields or any(holds_nothing(field.dtype) for field in dtype.fields)
    if isinstance(dtype, pl.List | pl.Array):
        return holds_nothing(dtype.inner)
    return isinstance(dtype, pl.Object)


def _unwritable(schema: Mapping[str, Any]) -> Iterator[str]:
    """Names of the columns that cannot be written even without a row."""
    import polars as pl

    for name, dtype in schema.items():
        try:
            pl.DataFrame(schema={name: dtype}).write_parquet(io.BytesIO())
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
            yield name


def _cast(frame: pl.DataFrame, types: Mapping[str, Any]) -> pl.DataFrame:
    return frame.with_columns(frame.get_column(name).cast(dtype) for name, dtype in types.items())


def _bytes(held: Iterable[pl.DataFrame]) -> int:
    return sum(int(frame.estimated_size()) for frame in held)


def _null() -> Any:
    import polars as pl

    return pl.Null()


def _fitting(new: dict[str, Any], existing: dict[str, Any]) -> dict[str, Any]:
    """The existing columns, if the new ones fit in without loss."""
    import polars as pl

    problems = [f"{name!r} is new" for name in new if name not in existing]
    problems += [f"{name!r} is missing" for name in existing if name not in new]
    for name, dtype in new.items():
        if name in existing and dtype != existing[name] and dtype != pl.Null:
            parts = [pl.DataFrame(schema={name: existing[name]}), pl.DataFrame(schema={name: dtype})]
            try:
                wider = frames.concat(parts).schema[name]
            except InvalidValue:
                wider = None
            if wider != existing[name]:
                problems.append(f"{name!r} is {dtype}, not {existing[name]}")
    if problems:
        raise InvalidValue(
            f"the result does not fit the files that are kept: column {', '.join(problems)}; "
            f'make the columns the same, or use mode="replace"'
        )
    return existing
