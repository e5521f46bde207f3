"""Ranges of streams as input of a batch job.

A unit is a range of offsets of one partition. Records are immutable, so the range says all, and its task keeps its name for as
long as retention leaves it. The process that runs a task writes the rows of its ranges into scratch files just before
(``Taken``), since a worker process reads files and has no state; what a task reads is such a file, named in the unit's ``etag``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import msgspec

from onefold import config
from onefold.compute.plan.stages import DeadLetter, Unit
from onefold.errors import Unavailable

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.plan.nodes import Source
    from onefold.compute.plan.stages import Split
    from onefold.compute.sources.resolving import Resolved

    Schema = Sequence[tuple[str, pl.DataType]]

PLACE: Final = ("_partition", "_offset", "_time", "_key")
"""The columns that each record has besides its own: those of ``state.streams.frames``, which jobs over files do not know."""
TIME: Final = "_time"
"""The one of its append."""
_SCHEME: Final = "stream:"
ROWS_MAX: Final = 65_536
"""Records of a unit."""
_ROWS_MIN: Final = 1_024
"""A unit has no fewer, unless there are no more."""
_PIECES_MAX: Final = 16
"""So many units that follow one another without filling one are cut again."""


class StreamsUnavailable(Unavailable):
    """The streams of the space cannot be read here now: the task is to be tried later, or by another process."""


class Taken(NamedTuple):
    """The rows of a task's units, on this machine."""

    units: tuple[Unit, ...]
    """The same ranges, in order; ``etag`` is the file with their rows."""
    dead: tuple[DeadLetter, ...]
    """Records that cannot be rows of the source."""

    def remove(self) -> None:
        """Remove the files."""
        for unit in self.units:
            Path(unit.etag).unlink(missing_ok=True)


class Streams(Protocol):
    """How sources that are streams are read."""

    def resolve(self, source: Source) -> Resolved:
        """The partitions as files (see ``partition_path``) and the columns of the records that are there now.

        Raises InvalidArgument when there is no such stream, or nothing tells its columns; TooOld, Unavailable.
        """

    def take(self, source: Source, schema: Schema, units: Sequence[Unit], folder: Path) -> Taken:
        """Write the rows of these ranges into files in a folder.

        Raises TooOld when retention has removed some, StreamsUnavailable, OSError.
        """


def is_range(path: str) -> bool:
    """Whether a unit with this path is of a stream."""
    return path.startswith(_SCHEME)


def partition_path(stream: str, partition: int) -> str:
    """A partition, where a file has its path."""
    return f"{_SCHEME}{stream}/{partition:05}"


def place_of(path: str) -> tuple[str, int]:
    """(stream, partition) of a partition's path, or of a unit's."""
    name = path.removeprefix(_SCHEME)
    if "#" in name.rpartition("/")[2]:
        name = name.rpartition("#")[0]
    stream, _, partition = name.rpartition("/")
    return stream, int(partition)


def etag_of(first: int, stop: int) -> str:
    """What a partition holds, where a file has its etag."""
    return f"{first}-{stop}"


def unit_of(partition: str, start: int, stop: int, cost: int) -> Unit:
    """A range of a partition. Its path sorts as its offsets do."""
    return Unit(f"{partition}#{start:019}", start, stop, stop - start, "", cost)


def cut(
    resolved: Resolved, previous: Sequence[Split], *, split_bytes: int, min_units: int
) -> tuple[list[Unit], list[Unit]]:
    """(units of an earlier run that are as they were, new units) that cover what the partitions hold now."""
    known: dict[str, list[Unit]] = {}
    for unit in {unit for split in previous for unit in split}:
        known.setdefault(unit.path.rpartition("#")[0], []).append(unit)
    kept: list[Unit] = []
    gaps: list[tuple[str, int, int, float]] = []
    for file in resolved.files:
        first, stop = map(int, file.etag.split("-"))
        each = file.size / max(1, stop - first)
        at = first
        for unit in _whole(known.get(file.path, [])):
            if at <= unit.start and unit.stop <= stop:
                if at < unit.start:
                    gaps.append((file.path, at, unit.start, each))
                kept.append(unit)
                at = unit.stop
        if at < stop:
            gaps.append((file.path, at, stop, each))
    rows = sum(stop - start for _, start, stop, _ in gaps)
    target = max(min(ROWS_MAX, -(-rows // max(1, min_units))), _ROWS_MIN)
    fresh: list[Unit] = []
    for path, start, stop, each in gaps:
        step = max(1, min(target, int(split_bytes / max(each, 1.0))))
        for low in range(start, stop, step):
            high = min(stop, low + step)
            fresh.append(unit_of(path, low, high, max(1, round((high - low) * each))))
    return kept, fresh


def _whole(units: Sequence[Unit]) -> list[Unit]:
    """Units of a partition in order, without those that a run of small ones would make too many of."""
    found: list[Unit] = []
    small: list[Unit] = []
    for unit in sorted(units, key=lambda one: one.start):
        if small and (unit.start != small[-1].stop or unit.size >= _ROWS_MIN):
            found += small
            small = []
        if unit.size >= _ROWS_MIN:
            found.append(unit)
            continue
        small.append(unit)
        if len(small) >= _PIECES_MAX:
            small = []
    return found + small


def scan(schema: Schema, units: Sequence[Unit]) -> pl.LazyFrame:
    """The rows of taken units, in this order."""
    import polars as pl

    names = [name for name, _ in schema]
    frames = [pl.scan_ipc(unit.etag).select(names) for unit in units]
    return pl.concat(frames) if frames else pl.LazyFrame(schema=dict(schema))


def frames(schema: Schema, unit: Unit) -> Iterator[pl.DataFrame]:
    """The rows of a taken unit, a bounded piece at a time."""
    import polars as pl

    frame = pl.read_ipc(unit.etag).select([name for name, _ in schema])
    yield from frame.iter_slices(config.STREAM_SOURCE_BATCH_ROWS)


def locate(unit: Unit, row: int) -> str:
    """The place of a row of a taken unit, for messages."""
    import polars as pl

    stream, partition = place_of(unit.path)
    offset = pl.scan_ipc(unit.etag).select("_offset").slice(row, 1).collect().item()
    return place_text(stream, partition, offset)


def place_text(stream: str, partition: int, offset: int) -> str:
    """The place of a record, for messages."""
    return f"stream {stream!r}, partition {partition}, offset {offset}"


def taken_unit(unit: Unit, start: int, stop: int, file: Path) -> Unit:
    """A part of a range, whose rows are in this file."""
    path = f"{unit.path.rpartition('#')[0]}#{start:019}"
    return msgspec.structs.replace(unit, path=path, start=start, stop=stop, etag=str(file), cost=0)
