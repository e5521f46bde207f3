"""Plans: a job as frozen data. Building one reads nothing and runs nothing.

A plan is a tree of nodes with the sources at its leaves and a sink at its root. What a plan means does not depend on how
its input is split: ``select``, ``with_columns`` and ``filter`` hold row-local expressions only, aggregates are mergeable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.aggregates import Aggregate
    from onefold.compute.plan.windows import WindowSpec

SourceKind = Literal["text", "csv", "jsonl", "parquet", "files", "stream"]


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a plan."""


@dataclass(frozen=True, slots=True)
class Source(Node):
    """Files to read: globs, directories, paths or fsspec URLs; of the kind ``stream`` the name of a stream, whose records up
    to the submission are read. ``options`` are sorted (name, value) pairs.
    """

    kind: SourceKind
    paths: tuple[str, ...]
    options: tuple[tuple[str, Any], ...] = ()

    def __repr__(self) -> str:
        # storage_options may hold credentials, which belong in no log.
        shown = ", ".join(f"{name}={value!r}" for name, value in self.options if name != "storage_options")
        return f"Source({self.kind!r}, {self.paths!r}{', ' if shown else ''}{shown})"

    def option(self, name: str, default: Any = None) -> Any:
        """One option, or the default."""
        return dict(self.options).get(name, default)


@dataclass(frozen=True, slots=True)
class StreamSource(Node):
    """A stream of the space that is read for ever. Durations in microseconds."""

    stream: str
    event_time: str | None
    delay_us: int
    idle_us: int | None
    max_ahead_us: int | None
    hold_us: int
    start: Any
    """As for ``Stream.read``."""
    schema: tuple[tuple[str, Any], ...] | None = None
    partitions: tuple[int, ...] | None = None
    since_us: int | None = None
    """Events before this time are those of a history, and left out; None: there is none."""


HISTORY: Final = "@history"
"""The end of the name of the table that holds the history of a live job."""


def history_table(job: str, generation: int = 0) -> str:
    """The table that holds the history of a live job: as users call it, or that of one generation."""
    return f"{job}/{generation}{HISTORY}" if generation else f"{job}{HISTORY}"


INTO_MAP: Final = "map:"
INTO_STREAM: Final = "stream:"
EACH: Final = "each:"
WITHOUT_TABLE: Final = (INTO_MAP, INTO_STREAM, EACH)
"""The beginnings of the names of live jobs that have no table: the name of the map, the stream or the function follows."""


@dataclass(frozen=True, slots=True)
class Seam(Node):
    """Bounded rows before a time, and a stream's from then on."""

    history: Node
    live: Node
    at_us: int | None
    """The event time of the seam; None: it is a position of the stream."""
    time: str
    """The column of event times, in both."""
    position: str = ""
    """The text of that position."""


@dataclass(frozen=True, slots=True)
class Select(Node):
    """Replace the columns by these row-local expressions."""

    input: Node
    exprs: tuple[pl.Expr, ...]


@dataclass(frozen=True, slots=True)
class WithColumns(Node):
    """Add or replace columns by row-local expressions."""

    input: Node
    exprs: tuple[pl.Expr, ...]


@dataclass(frozen=True, slots=True)
class Filter(Node):
    """Keep the rows for which all row-local predicates hold."""

    input: Node
    predicates: tuple[pl.Expr, ...]


@dataclass(frozen=True, slots=True)
class Explode(Node):
    """One row per element of these list columns; an empty list or null gives no row."""

    input: Node
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Map(Node):
    """A Python function (plain or async) of one record, giving a dict or a bare value (column ``value``)."""

    input: Node
    fn: Callable[..., Any]
    schema: tuple[tuple[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class FlatMap(Node):
    """A Python function (plain, generator or async) of one record, giving any number of dicts or bare values."""

    input: Node
    fn: Callable[..., Any]
    schema: tuple[tuple[str, Any], ...] | None = None


@dataclass(frozen=True, slots=True)
class MapBatches(Node):
    """A Python function of a ``pl.DataFrame``, giving a ``pl.DataFrame``. Batches have at most ``batch_rows`` rows."""

    input: Node
    fn: Callable[..., Any]
    schema: tuple[tuple[str, Any], ...] | None = None
    batch_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Window(Node):
    """Assigns each row to its windows of event time, which are the first keys of the group-by above it."""

    input: Node
    spec: WindowSpec


@dataclass(frozen=True, slots=True)
class Union(Node):
    """The rows of all inputs, which have the same columns."""

    inputs: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Join(Node):
    """A hash join of two bounded datasets on equal columns. Null keys match nothing, as in SQL and Polars."""

    left: Node
    right: Node
    on: tuple[str, ...]
    how: Literal["inner", "left"]


@dataclass(frozen=True, slots=True)
class GroupAggregate(Node):
    """Groups by ``keys`` (possibly none: one row) and mergeable aggregates by output name."""

    input: Node
    keys: tuple[pl.Expr, ...]
    aggs: tuple[tuple[str, Aggregate], ...]


@dataclass(frozen=True, slots=True)
class ExpiringAggregate(GroupAggregate):
    """A ``GroupAggregate`` over a stream whose groups are forgotten some time after their newest event."""

    ttl_us: int = 0


@dataclass(frozen=True, slots=True)
class MapReduce(Node):
    """The classic one: map yields (key, value); reduce(key, values) gives the value of the key."""

    input: Node
    map: Callable[..., Any]
    reduce: Callable[..., Any]
    combine: Callable[..., Any] | None = None
    partitions: int | None = None


RowNode = Select | WithColumns | Filter | Explode | Map | FlatMap | MapBatches
"""Steps that work on each row (or batch) by itself: they stay in the task that read it."""
PythonNode = Map | FlatMap | MapBatches
"""Steps that call a Python function: they run in worker processes."""


@dataclass(frozen=True, slots=True)
class Into:
    """The sink that makes a table of the space, readable from the first finished task on."""

    table: str
    mode: Literal["continue", "replace", "error"] = "continue"
    version: str | None = None
    keep: float | None = None


@dataclass(frozen=True, slots=True)
class WriteParquet:
    """The sink that publishes a folder of Parquet files whole or not at all."""

    path: str
    partition_by: tuple[str, ...] = ()
    mode: Literal["replace", "replace_partitions", "append"] = "replace"
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A plan with its sink: what is submitted."""

    plan: Node
    sink: Into | WriteParquet

    @property
    def table(self) -> str:
        """The name under which the job's tasks and result are kept."""
        return self.sink.table if isinstance(self.sink, Into) else f"parquet:{self.sink.path}"
