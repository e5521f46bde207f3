"""A live job as frozen data: what is read, what is done with each row, what is kept by key, and where it goes.

A **part** is: inputs → row-local steps → at most one keyed operator → a sink. It is stored in the plan's blob with the user's
functions, so any process can work on it. What its state depends on is its **signature**: a plan with the same signature
continues the state, whatever else has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from onefold.compute.live.operators.of_windows import OfWindows
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.operators.sessions import SessionAggregate
from onefold.compute.live.operators.windowed import WindowedAggregate
from onefold.compute.plan.nodes import HISTORY, history_table
from onefold.compute.plan.windows import WindowSpec, last_closed_us

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onefold.compute.plan.nodes import Job
    from onefold.compute.tasks.row_steps import RowStep

OP: Final = "op"
"""The column of a stream with ``emit="update"`` that says whether a record puts or deletes."""
Emit = Literal["final", "update"]
Operator = WindowedAggregate | SessionAggregate | RunningAggregate


@dataclass(frozen=True, slots=True)
class StreamInput:
    """A stream that is read for ever. Durations in microseconds."""

    stream: str
    event_time: str | None
    """The column of event times; None: the time of the append."""
    delay_us: int = 0
    idle_us: int | None = 10_000_000
    max_ahead_us: int | None = 60_000_000
    hold_us: int = 86_400_000_000
    schema: tuple[tuple[str, Any], ...] | None = None
    partitions: tuple[int, ...] | None = None
    """Only these; None: all."""
    steps: tuple[RowStep, ...] = ()
    """On the rows of this input."""
    start: Any = "earliest"
    """Where it begins: as for ``Stream.read``."""
    needs: frozenset[str] = frozenset()
    """Columns that the plan names, of those that its steps do not make."""
    hop_of: str = ""
    """The part that writes it; ``stream`` is then for messages only. Empty: a stream of the space."""
    since_us: int | None = None
    """Events before this time are left out, and counted: they are those of a history."""
    history: str = ""
    """The table of the batch job that computes what was before ``since_us``: not a stream, but one record, which is all of it.
    As users call it: ``history_of`` is that of a generation."""

    @property
    def by_append(self) -> bool:
        """Whether the time of its events is that of their append: processing time."""
        return self.event_time is None and not self.hop_of and not self.history

    @property
    def first_offsets(self) -> Mapping[int, int]:
        """By partition: records before these offsets are left out, and counted, since they are those of a history."""
        return {}

    def history_of(self, generation: int) -> str:  # noqa: ARG002
        """The table of the history of a generation. Jobs of release 0.4.0 have one table for all of them."""
        return self.history


@dataclass(frozen=True, slots=True)
class HistoryInput(StreamInput):
    """A history with the batch job that computes it, so that any process can begin it. Each generation has a table of its own:
    what a slow process does to that of a job which was dropped touches no other."""

    job: Job | None = field(default=None, compare=False)
    of_job: bool = False
    """A program of release 0.4.0 began the job: its table is that of all generations."""

    def history_of(self, generation: int) -> str:
        """See ``StreamInput``."""
        return self.history if self.of_job else history_table(self.history.removesuffix(HISTORY), generation)


@dataclass(frozen=True, slots=True)
class StreamFrom(StreamInput):
    """A stream of which the records before a position are left out, and counted: they are those of a history."""

    first: tuple[tuple[int, int], ...] = ()
    """(partition, offset of the first record that is taken in)."""

    @property
    def first_offsets(self) -> Mapping[int, int]:
        """See ``StreamInput``."""
        return dict(self.first)


@dataclass(frozen=True, slots=True)
class TableSink:
    """A table of the space."""

    table: str
    emit: Emit
    keep_us: int | None = None
    """How long rows of closed windows are kept, in event time; None: for as long as the job is there."""


@dataclass(frozen=True, slots=True)
class MapSink:
    """A map: the value is the row without its key column."""

    map: str
    key: str
    emit: Emit


@dataclass(frozen=True, slots=True)
class StreamSink:
    """A stream."""

    stream: str
    key: str | None
    emit: Emit
    partitions: int | None = None


@dataclass(frozen=True, slots=True)
class CallbackSink:
    """A function that gets frames of at most ``batch_rows``. At least once."""

    fn: Callable[..., Any]
    batch_rows: int


@dataclass(frozen=True, slots=True)
class HopSink:
    """The stream that the next part reads."""

    reader: str
    """That part."""


Sink = TableSink | MapSink | StreamSink | CallbackSink | HopSink


@dataclass(frozen=True, slots=True)
class LivePart:
    """Inputs, one keyed operator at most, and a sink."""

    name: str
    inputs: tuple[StreamInput, ...]
    operator: Operator | None
    sink: Sink
    lanes: int
    signature: tuple[tuple[str, str], ...]

    @property
    def how(self) -> str:
        """How it is worked on, for ``explain``."""
        spread = "partition" if self.operator is None else "key"
        source = "the hop" if self.inputs[0].hop_of else ", ".join(repr(one.stream) for one in self.inputs)
        goes = f", into a hop to {self.sink.reader!r}" if isinstance(self.sink, HopSink) else ""
        return f"reads {source}, {self.lanes} lanes by {spread}{goes}"

    @property
    def history(self) -> tuple[int, StreamInput] | None:
        """Which input is a history, if one is."""
        return next(((number, one) for number, one in enumerate(self.inputs) if one.history), None)

    @property
    def windowed(self) -> bool:
        """Whether its groups become final."""
        return isinstance(self.operator, OfWindows)

    @property
    def default_emit(self) -> Emit:
        """``final`` with a window, otherwise ``update``."""
        return "final" if self.windowed else "update"

    @property
    def window(self) -> WindowSpec | None:
        """The windows that its rows get into."""
        return self.operator.spec if isinstance(self.operator, OfWindows) else None

    @property
    def delays_us(self) -> dict[int, int]:
        """How far the watermark is behind the events of each input."""
        return {number: one.delay_us for number, one in enumerate(self.inputs)}

    @property
    def lateness_us(self) -> int:
        """How long after its end a window takes events."""
        return 0 if self.window is None else self.window.lateness_us

    def closed_us(self, watermark_us: int | None) -> int | None:
        """Windows that end then, or earlier, are closed at a watermark; None: none is."""
        if watermark_us is None or self.window is None:
            return watermark_us
        return last_closed_us(watermark_us, self.window)


@dataclass(frozen=True, slots=True)
class LivePlan:
    """What is stored for a live job."""

    job: str
    parts: tuple[LivePart, ...]
    on_error: Literal["fail", "skip"] = "fail"
    latency_us: int = 20_000
