"""Stages: what a plan becomes so that tasks can run it.

A stage is a set of tasks that may run in any order. It has *branches* (more than one after a union), each a leaf that
gives rows (splits of a source, or a partition of what earlier stages shuffled) and the row steps on it, and one *output*.
Stages only need the outputs of stages with a lower index.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from onefold.compute.plan.nodes import RowNode, Source

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.aggregates import Aggregate


class Unit(msgspec.Struct, frozen=True, array_like=True, order=True):
    """The smallest piece of input: a row range of a Parquet file, a byte range of a line file, or a whole file.

    ``start``/``stop`` are rows for Parquet and bytes otherwise. A line belongs to the range in which its first byte is.
    """

    path: str
    start: int
    stop: int
    size: int
    """Bytes of the whole file."""
    etag: str
    """Changes when the file changes: local files ``mtime_ns-size-inode``, object stores their ETag."""
    cost: int
    """Input bytes of this unit (compressed where the file is), for packing and progress."""


Split = tuple[Unit, ...]
"""What one task reads, in this order."""


@dataclass(frozen=True, slots=True)
class SourceLeaf:
    """Rows of a source. ``schema``: column -> Polars data type, fixed at submission (None for ``map``-less raw files)."""

    source: Source
    schema: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class JoinLeaf:
    """Partition p of two shuffled stages, joined."""

    left: int
    right: int
    on: tuple[str, ...]
    how: Literal["inner", "left"]
    partitions: int


@dataclass(frozen=True, slots=True)
class ReduceLeaf:
    """Partition p of a map stage, grouped by key and reduced. Gives the columns ``key``, ``value``."""

    stage: int
    reduce: Callable[..., Any]
    partitions: int


@dataclass(frozen=True, slots=True)
class SessionLeaf:
    """Partition p of a stage that is shuffled by key: its rows with the start and the end of their sessions, in order of time."""

    stage: int
    keys: tuple[str, ...]
    """Columns of the shuffle only."""
    on: str
    gap_us: int
    partitions: int


@dataclass(frozen=True, slots=True)
class BroadcastJoin:
    """A row step: join each row with the whole output of an earlier ``RowsOutput`` stage.

    ``small_is``: on which side of the join the broadcast rows stand ("left" only for inner joins).
    """

    stage: int
    on: tuple[str, ...]
    how: Literal["inner", "left"]
    small_is: Literal["right", "left"] = "right"


Step = RowNode | BroadcastJoin


@dataclass(frozen=True, slots=True)
class Branch:
    """A leaf and the steps on its rows. (The ``input`` of the step nodes is not used here.)"""

    leaf: SourceLeaf | JoinLeaf | ReduceLeaf | SessionLeaf
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class PartialOutput:
    """Each task gives one mergeable partial frame of its groups."""

    keys: tuple[pl.Expr, ...]
    aggs: tuple[tuple[str, Aggregate], ...]


@dataclass(frozen=True, slots=True)
class RowsOutput:
    """Each task gives its rows."""


@dataclass(frozen=True, slots=True)
class ShuffleOutput:
    """Each task gives one Arrow IPC file of its rows, cut by the hash of ``keys`` into ``partitions`` with an offset footer."""

    keys: tuple[str, ...]
    partitions: int


@dataclass(frozen=True, slots=True)
class MapOutput:
    """Each task maps its records to (key, value) pairs, combines them where it can, and shuffles them by key."""

    map: Callable[..., Any]
    combine: Callable[..., Any] | None
    partitions: int


@dataclass(frozen=True, slots=True)
class PublishOutput:
    """One task that makes the sink's folder out of the stage below: a Parquet dataset published whole."""

    path: str
    partition_by: tuple[str, ...]
    mode: Literal["replace", "replace_partitions", "append"]


Output = PartialOutput | RowsOutput | ShuffleOutput | MapOutput | PublishOutput


@dataclass(frozen=True, slots=True)
class Stage:
    """A set of tasks with one output. ``needs`` are the stages whose outputs its tasks read."""

    index: int
    branches: tuple[Branch, ...]
    output: Output
    needs: tuple[int, ...] = ()


class TaskInput(msgspec.Struct, frozen=True, array_like=True):
    """Which part of a stage one task does: a split of a source branch, or a partition of a shuffled one."""

    branch: int
    units: tuple[Unit, ...] = ()
    partition: int | None = None


class DeadLetter(msgspec.Struct, frozen=True, array_like=True):
    """A record that could not be processed, kept with the reason."""

    location: str
    """File and line or row, as far as known: ``logs/a.txt: row 17 from byte 0``."""
    record: str
    """The record's repr, cut to 2,000 characters."""
    error: str
    """The exception's one line."""
    traceback: str = ""


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What a finished task leaves: a small result inline, a larger one as a blob, and what it cost."""

    inline: bytes | None = None
    blob: str | None = None
    """Content hash of the blob (see ``onefold.compute.blobs.store``)."""
    rows_in: int = 0
    bytes_in: int = 0
    rows_out: int = 0
    elapsed_ms: int = 0
    dead: tuple[DeadLetter, ...] = ()


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why an attempt failed."""

    message: str
    """One line."""
    traceback: str = ""
    record: str | None = None
    location: str | None = None
    died: bool = False
    """The worker process died (killed, out of memory, segmentation fault): nothing is known of the record."""
    final: bool = False
    """Isolated down to this record: more attempts cannot help."""
    kind: str = ""
    """The exception's class name."""
