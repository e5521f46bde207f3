"""Shuffle files: what a task leaves for each reduce partition, in one blob.

Layout: blocks of Arrow IPC streams, those of partition 0 first; one more stream without rows that holds the
columns; the footer, a msgpack map; its length in 4 bytes, little endian; 8 bytes of magic. The footer lists
for each partition its blocks as (offset, length, rows), so a reducer reads its ranges only, a block at a
time.

Which partition a row belongs to depends on its keys' values alone, never on Polars' own hash (which differs
between releases). These are numbers by their value as a float64, so that 1 and 1.0 meet whatever their column types;
text and bytes by CRC-32; dates and times by their microseconds. Each is mixed by the finaliser of SplitMix64
(Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from onefold.compute.blobs.store import BlobMissing, BlobStore
from onefold.compute.frames import values as frames
from onefold.compute.plan.stages import Result
from onefold.errors import InvalidPlan, LogCorrupt

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import polars as pl

_MAGIC: Final = b"1FSHUF01"
BLOCK_ROWS: Final = 65_536
"""Most rows of one block of a shuffled frame."""


class _Footer(msgspec.Struct, frozen=True, array_like=True):
    schema: tuple[int, int]
    partitions: tuple[tuple[tuple[int, int, int], ...], ...]


class _NotedFooter(msgspec.Struct, frozen=True, array_like=True):
    """The footer with notes (see ``compute.tasks.found_types``). Only files that have some get it, so others keep their bytes."""

    schema: tuple[int, int]
    partitions: tuple[tuple[tuple[int, int, int], ...], ...]
    notes: tuple[str, ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_NotedFooter)


# -- which partition -----------------------------------------------------------------------------------------


def partition_numbers(frame: pl.DataFrame, keys: Sequence[str], partitions: int) -> npt.NDArray[np.uint16]:
    """Each row's partition; rows with a null key go where the null's hash says. Raises InvalidPlan for odd
    key types.
    """
    import numpy as np

    total = np.zeros(frame.height, dtype=np.uint64)
    for name in keys:
        if name not in frame.columns:
            raise InvalidPlan(f"there is no key column {name!r} to shuffle by; there are {frame.columns}")
        with np.errstate(over="ignore"):
            total = _mix(total * np.uint64(31) + _hash(frame[name]))
    return (total % np.uint64(partitions)).astype(np.uint16)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    import numpy as np

    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _hash(series: pl.Series) -> npt.NDArray[np.uint64]:
    import numpy as np
    import polars as pl

    dtype = series.dtype
    if dtype == pl.Null:
        return np.zeros(len(series), dtype=np.uint64)
    if dtype.is_numeric() or dtype == pl.Boolean:
        numbers = series.cast(pl.Float64, strict=False)
        if numbers.null_count():
            numbers = numbers.fill_null(0.0)
        values = numbers.to_numpy().astype(np.float64) + 0.0  # -0.0 is 0.0
        values[np.isnan(values)] = np.nan
        hashed = _mix(np.ascontiguousarray(values).view(np.uint64))
    elif dtype in (pl.Date, pl.Datetime):
        hashed = _mix(_integers(series.cast(pl.Datetime("us", getattr(dtype, "time_zone", None)))))
    elif dtype == pl.Duration:
        hashed = _mix(_integers(series.cast(pl.Duration("us"))))
    elif dtype == pl.Time:
        hashed = _mix(_integers(series))
    elif dtype in (pl.String, pl.Categorical, pl.Enum, pl.Binary):
        data = (
            (series if dtype == pl.Binary else series.cast(pl.String).cast(pl.Binary))
            .fill_null(b"")
            .to_list()
        )
        hashed = _mix(np.fromiter(map(zlib.crc32, data), dtype=np.uint64, count=len(data)))
    elif dtype == pl.Struct:
        hashed = np.zeros(len(series), dtype=np.uint64)
        for field in series.struct.fields:
            with np.errstate(over="ignore"):
                hashed = _mix(hashed * np.uint64(31) + _hash(series.struct.field(field)))
    else:
        raise InvalidPlan(
            f"column {series.name!r} of type {dtype} cannot be a key; use text, bytes, numbers or dates"
        )
    if series.null_count():
        hashed = hashed.copy()
        hashed[series.is_null().to_numpy()] = 0
    return hashed


def _integers(series: pl.Series) -> npt.NDArray[np.uint64]:
    import numpy as np
    import polars as pl

    values = series.to_physical().cast(pl.Int64).fill_null(0).to_numpy()
    return np.ascontiguousarray(values, dtype=np.int64).view(np.uint64)


# -- writing -------------------------------------------------------------------------------------------------


class ShuffleWriter:
    """Writes one shuffle file. Partitions must be given in ascending order; ``close`` gives the blob's name."""

    def __init__(self, blobs: BlobStore, partitions: int) -> None:
        self._blobs = blobs
        self._path = blobs.temporary()
        self._file = self._path.open("wb")
        self._blocks: list[list[tuple[int, int, int]]] = [[] for _ in range(partitions)]
        self._schema: pl.DataFrame | None = None
        self.rows = 0
        self.notes: Sequence[str] = ()

    def add(self, partition: int, frame: pl.DataFrame) -> None:
        """Append one block to a partition."""
        if self._schema is None:
            self._schema = frame.clear()
        if frame.height:
            offset, length = self._stream(frame)
            self._blocks[partition].append((offset, length, frame.height))
            self.rows += frame.height

    def columns(self, frame: pl.DataFrame) -> None:
        """Say what the columns are, for files that may get no row."""
        if self._schema is None:
            self._schema = frame.clear()

    def close(self) -> str:
        """Finish the file; returns the name of its blob once it is durable."""
        import polars as pl

        try:
            schema = self._stream(self._schema if self._schema is not None else pl.DataFrame())
            blocks = tuple(tuple(blocks) for blocks in self._blocks)
            footer = _encoder.encode(
                _NotedFooter(schema, blocks, tuple(self.notes)) if self.notes else _Footer(schema, blocks)
            )
            self._file.write(footer + len(footer).to_bytes(4, "little") + _MAGIC)
            self._file.close()
            return self._blobs.put_file(self._path)
        except BaseException:
            self.abandon()
            raise

    def abandon(self) -> None:
        """Throw the unfinished file away."""
        with contextlib.suppress(OSError):  # what is still to be written may not fit on the disk
            self._file.close()
        self._path.unlink(missing_ok=True)

    def _stream(self, frame: pl.DataFrame) -> tuple[int, int]:
        offset = self._file.tell()
        buffer = BytesIO()
        frame.write_ipc_stream(buffer, compression="lz4")
        self._file.write(buffer.getbuffer())
        return offset, self._file.tell() - offset


def write_frame(
    frame: pl.DataFrame, keys: Sequence[str], partitions: int, blobs: BlobStore, notes: Sequence[str] = ()
) -> str:
    """Store a frame cut by its keys; rows of a partition keep their order. Returns the blob's name."""
    import numpy as np

    numbers = partition_numbers(frame, keys, partitions)
    order = np.argsort(numbers, kind="stable")
    bounds = np.concatenate(([0], np.cumsum(np.bincount(numbers, minlength=partitions))))
    ordered = frame[order] if frame.height else frame
    writer = ShuffleWriter(blobs, partitions)
    writer.notes = notes
    try:
        writer.columns(frame)
        for partition in range(partitions):
            part = ordered.slice(int(bounds[partition]), int(bounds[partition + 1] - bounds[partition]))
            for block in part.iter_slices(BLOCK_ROWS) if part.height else ():
                writer.add(partition, block)
    except BaseException:
        writer.abandon()
        raise
    return writer.close()


# -- reading -------------------------------------------------------------------------------------------------


class ShuffleFile:
    """One shuffle file, read range by range. Raises BlobMissing, and LogCorrupt for bytes that are not such a
    file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        try:
            end = self._file.seek(0, os.SEEK_END)
            tail = self._range(max(0, end - 12), 12)
            if tail[4:] != _MAGIC:
                raise LogCorrupt(f"{path} is not a shuffle file, or is cut short")
            length = int.from_bytes(tail[:4], "little")
            self._footer = _decoder.decode(self._range(end - 12 - length, length))
        except BaseException:
            self._file.close()
            raise

    def blocks(self, partition: int) -> Iterator[pl.DataFrame]:
        """The partition's blocks in the order in which they were written, one in memory at a time."""
        for offset, length, _ in self._footer.partitions[partition]:
            yield self._frame(offset, length)

    def columns(self) -> pl.DataFrame:
        """No rows, with the file's columns."""
        return self._frame(*self._footer.schema)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the task that made it noted (see ``compute.tasks.found_types``)."""
        return self._footer.notes

    @property
    def partitions(self) -> int:
        """How many partitions it has."""
        return len(self._footer.partitions)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> ShuffleFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _range(self, offset: int, length: int) -> bytes:
        data = os.pread(self._file.fileno(), length, offset)
        while len(data) < length:
            more = os.pread(self._file.fileno(), length - len(data), offset + len(data))
            if not more:
                raise LogCorrupt(f"{self._path} is cut short")
            data += more
        return data

    def _frame(self, offset: int, length: int) -> pl.DataFrame:
        import polars as pl

        return pl.read_ipc_stream(BytesIO(self._range(offset, length)))


def read_partition(results: Iterable[Result], partition: int, blobs: BlobStore) -> pl.DataFrame:
    """One partition of a shuffled stage: its tasks' rows in dispatch order. Without a column when no task had
    any.
    """
    parts: list[pl.DataFrame] = []
    for result in results:
        if result.blob is None:
            continue
        with open_file(blobs, result.blob) as file:
            parts.append(file.columns())
            parts.extend(file.blocks(partition))
    return frames.concat(parts)


def open_file(blobs: BlobStore, name: str) -> ShuffleFile:
    """The shuffle file of this name; raises BlobMissing."""
    try:
        return ShuffleFile(blobs.open_path(name))
    except FileNotFoundError:
        raise BlobMissing(name) from None


def concat_files(names: Sequence[str], blobs: BlobStore, notes: Sequence[str] = ()) -> str:
    """One shuffle file out of several of the same columns: each partition's blocks in the order of the files."""
    files: list[ShuffleFile] = []
    try:
        files.extend(open_file(blobs, name) for name in names)
        common = frames.concat([file.columns() for file in files])
        writer = ShuffleWriter(blobs, files[0].partitions)
        writer.notes = notes
        try:
            writer.columns(common)
            for partition in range(files[0].partitions):
                for file in files:
                    for block in file.blocks(partition):
                        writer.add(partition, frames.concat([common, block]))
        except BaseException:
            writer.abandon()
            raise
        return writer.close()
    finally:
        for file in files:
            file.close()


def describe(path: Path) -> dict[str, Any]:
    """Rows by partition, for people and tests."""
    with ShuffleFile(path) as file:
        return {"partitions": [sum(rows for _, _, rows in blocks) for blocks in file._footer.partitions]}
