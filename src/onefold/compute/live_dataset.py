"""Datasets over streams: plans whose jobs never end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from onefold import config
from onefold.arguments import check_whole
from onefold.compute import arguments
from onefold.compute.aggregates.base import Aggregate
from onefold.compute.dataset import Dataset, GroupBy
from onefold.compute.live import compiling, seam
from onefold.compute.live.plan import (
    CallbackSink,
    Emit,
    LivePlan,
    MapSink,
    Sink,
    StreamSink,
    TableSink,
)
from onefold.compute.plan.explain import plan_text
from onefold.compute.plan.nodes import (
    EACH,
    INTO_MAP,
    INTO_STREAM,
    ExpiringAggregate,
    GroupAggregate,
    Node,
    Seam,
    StreamSource,
    Union,
)
from onefold.durations import micros
from onefold.errors import InvalidArgument, InvalidPlan
from onefold.state.fold.live.lanes import LANES_MAX
from onefold.state.streams.reading import check_start

if TYPE_CHECKING:
    import polars as pl
    from polars._typing import IntoExpr

    from onefold.compute.live_runs import LiveRun
    from onefold.durations import Duration

LANES_DEFAULT = 64
LATENCY_US_MAX = 3_600_000_000
replayed: dict[str, Any] = {}
"""Jobs that are replayed where a program starts them, and from where: ``onefold replay`` uses it."""


class LiveStarter(Protocol):
    """What turns a live job into work; the database implements it."""

    def lanes_of(self, job: str) -> int | None:
        """How many lanes a job was begun with; None: there is no such job."""

    def latency_us(self) -> int:
        """About how long events wait for a commit where nobody has said."""

    def begin(
        self, plan: LivePlan, starts: tuple[Any, ...], workers: int | None, crossing: Node | None = None
    ) -> LiveRun:
        """Start it, or continue it. ``starts``: of each input, as for ``Stream.read``. ``crossing``: the plan, if it has a
        seam."""

    def replay(self, plan: LivePlan, starts: tuple[Any, ...], workers: int | None) -> LiveRun:
        """Begin a hidden generation of it."""


@dataclass(frozen=True, eq=False)
class LiveDataset(Dataset):
    """Rows of streams, as they come: a plan without a sink. Immutable; made by ``db.read_stream(..., follow=True)``."""

    live: LiveStarter | None = None

    @property
    def unbounded(self) -> bool:
        """Whether its rows never end."""
        return True

    def into(  # type: ignore[override]
        self, table: str, emit: Emit | None = None, keep: Duration | None = None
    ) -> PreparedLiveJob:
        """Make the result a table of the space, which is also the name of the job.

        ``emit``: ``"final"`` shows a window once it is closed, whole or not at all; ``"update"`` also what is open. Default:
        ``"final"`` with a window, otherwise ``"update"``. ``keep``: how long closed windows are kept, in event time (default: for
        as long as the job is there).

        Raises:
            InvalidPlan: definite; ``emit="final"`` or ``keep`` without a window, or what live jobs do not do.
            InvalidArgument: definite; a name or duration that cannot be.
        """
        arguments.live_table(table)
        kept = None if keep is None else micros(keep, "keep")
        if kept is not None and not compiling.is_windowed(self.node):
            raise InvalidPlan(
                "keep= forgets windows that closed so long ago, and there is no window: leave it out. "
                'Groups are forgotten by .agg(..., ttl="7d")'
            )
        return self._job(table, TableSink(table, self._emit(emit), kept))

    def into_map(self, name: str, key: str, emit: Emit | None = None) -> PreparedLiveJob:
        """Put each row into a map, in the commit that counts it: the key is the column ``key``, the value is the row without it.

        Raises:
            InvalidPlan: definite; see ``into``.
            InvalidArgument: definite; names that cannot be.
        """
        arguments.table_name(name)
        arguments.column_name("into_map", key)
        return self._job(f"{INTO_MAP}{name}", MapSink(name, key, self._emit(emit)))

    def into_stream(
        self, name: str, key: str | None = None, emit: Emit | None = None, partitions: int | None = None
    ) -> PreparedLiveJob:
        """Append each row to a stream, in the commit that counts it. ``key``: the column that is the record's key.

        Raises:
            InvalidPlan: definite; see ``into``.
            InvalidArgument: definite; names that cannot be.
        """
        arguments.table_name(name)
        if key is not None:
            arguments.column_name("into_stream", key)
        check_whole("partitions", partitions, least=1, most=config.STREAM_PARTITIONS_MAX, or_none=True)
        if emit is None and not isinstance(self.node, GroupAggregate):
            emit = "final"  # a row that no group changes
        return self._job(f"{INTO_STREAM}{name}", StreamSink(name, key, self._emit(emit), partitions))

    def for_each(
        self, fn: Callable[[Any], Any], batch_rows: int = 1000, name: str | None = None
    ) -> PreparedLiveJob:
        """Call ``fn(frame)`` with Polars frames of at most ``batch_rows`` rows: closed windows, or groups as they change.

        **At least once.** It is called in the workers' processes before the commit that counts the rows, so after a crash, or
        when another worker took over, it gets rows again that it had before. What it does should bear that (a write by key), or
        use ``into_map`` and ``into_stream``, which do not repeat. If it raises, the job fails, or with ``on_error="skip"`` the
        frame is set aside. ``name``: of the job (default: ``each:`` and the name of the function, which must then be one of a
        module: another lambda or method of the same name would continue this job).

        Raises:
            InvalidPlan: definite; see ``into``.
            InvalidArgument: definite; what cannot be called, or a name that cannot be.
        """
        arguments.batch_function("for_each", fn)
        check_whole("batch_rows", batch_rows, least=1, most=config.BATCH_ROWS_MAX)
        job = f"{EACH}{arguments.own_name('for_each', fn)}" if name is None else name
        arguments.each_job(job)
        return self._job(job, CallbackSink(fn, batch_rows))

    def group_by(self, *keys: str | pl.Expr | Iterable[str | pl.Expr], **named: IntoExpr) -> LiveGroupBy:
        """Group by columns or row-local expressions; without keys all rows are one group."""
        return LiveGroupBy(self, arguments.group_keys(keys, named))

    def _emit(self, emit: Emit | None) -> Emit:
        if emit is not None:
            arguments.one_of("emit", emit, ("final", "update"))
        return emit or compiling.default_emit(self.node)

    def _job(self, name: str, sink: Sink) -> PreparedLiveJob:
        compiling.parts_of(self.node, sink, LANES_DEFAULT)  # what it refuses, it refuses at this line
        assert self.live is not None
        return PreparedLiveJob(name, self.node, sink, self.live)


@dataclass(frozen=True, eq=False)
class LiveGroupBy(GroupBy[LiveDataset]):
    """Groups of rows of a stream, waiting for ``.agg(...)``."""

    def agg(
        self,
        *aggregates: pl.Expr | Iterable[pl.Expr],
        ttl: Duration | Aggregate | pl.Expr | None = None,
        **named: Aggregate | pl.Expr,
    ) -> LiveDataset:
        """One row per group, which every commit may change; arguments as of a batch.

        ``ttl``: a group is forgotten when its newest event is that far behind the watermark, and begins again with the next one.
        Without it every group is kept for as long as the job is there.

        Raises:
            InvalidPlan: definite; what cannot be an aggregate.
            InvalidArgument: definite; a ``ttl`` that is not a duration.
        """
        import polars as pl

        if isinstance(ttl, Aggregate | pl.Expr):  # a column of that name
            return super().agg(*aggregates, **{"ttl": ttl, **named})
        if ttl is None:
            return super().agg(*aggregates, **named)
        ttl_us = micros(ttl, "ttl")
        if ttl_us <= 0:
            raise InvalidArgument("ttl must be longer than zero")
        aggs = arguments.aggregates(aggregates, named, self.keys)
        node = ExpiringAggregate(self.dataset._rows("group_by"), self.keys, aggs, ttl_us)
        return self.dataset._then(node)


@dataclass(frozen=True, eq=False)
class PreparedLiveJob:
    """A live plan with its sink. Nothing runs before ``start()``."""

    name: str
    node: Node
    sink: Sink
    starter: LiveStarter

    def start(
        self,
        workers: int | None = None,
        latency: Duration | None = None,
        lanes: int | None = None,
        on_error: Literal["fail", "skip"] = "fail",
    ) -> LiveRun:
        """Begin the job, join it when it runs, or continue it where it stopped; with workers in this process.

        ``workers``: how many (default 1, which stands by while others are enough; several share the job at once; 0: others do).
        ``latency``: about how long events wait for a commit (default 20 ms, on a cluster 50 ms). ``lanes``: pieces that keys are
        spread over, fixed when the job begins (default 64). ``on_error``: a record that cannot be processed fails the job, or is
        set aside.

        Raises:
            Conflict: definite; the job was begun with another plan (says which part differs), or has ended.
            InvalidArgument: definite; arguments that cannot be, or a table that a batch job makes.
            SpaceError: definite; a program of an earlier release has the space open.

        A stream that is not there yet is waited for; ``status().held_by`` says so.
        """
        if self.name in replayed:
            return self.replay(replayed[self.name], workers, latency, lanes, on_error)
        plan = self._plan(workers, latency, lanes, on_error)
        starts = tuple(source.start for source in sources_of(self.node))
        crossing = self.node if seam.seam_of(self.node) is not None else None
        return self.starter.begin(plan, starts, workers, crossing)

    def replay(
        self,
        start: Any = "earliest",
        workers: int | None = None,
        latency: Duration | None = None,
        lanes: int | None = None,
        on_error: Literal["fail", "skip"] = "fail",
    ) -> LiveRun:
        """Compute the job again, by this plan, from ``start`` of its input, into a hidden table next to the present one; then
        ``run.swap()`` makes it the job's. Until then it is read as ``run.result()``, or by the name ``NAME/GENERATION``.

        ``start``: as for ``Stream.read``. The others as for ``start``.

        Raises:
            InvalidPlan: definite; the sink is a map or a stream: what is there cannot be put out a second time.
            Conflict: definite; there is no such job to replay, or a replay of it is there already.
            InvalidArgument: definite; arguments that cannot be.
        """
        if not isinstance(self.sink, TableSink):
            raise InvalidPlan(
                f"{self.name!r} cannot be replayed into the same {self.name.partition(':')[0]}: what it has put out would be put "
                "out again. Start the changed plan into another one, and have its readers follow that"
            )
        if seam.seam_of(self.node) is not None:
            raise InvalidPlan(
                "a job over history and live is not replayed: start the changed plan under another name, and drop this one then"
            )
        found = check_start(start)
        plan = self._plan(workers, latency, lanes, on_error)
        return self.starter.replay(plan, tuple(found for _ in sources_of(self.node)), workers)

    def _plan(
        self,
        workers: int | None,
        latency: Duration | None,
        lanes: int | None,
        on_error: Literal["fail", "skip"],
    ) -> LivePlan:
        """What is stored. Raises InvalidArgument, InvalidPlan."""
        check_whole("lanes", lanes, least=1, most=LANES_MAX, or_none=True)
        arguments.one_of("on_error", on_error, ("fail", "skip"))
        check_whole("workers", workers, least=0, most=config.LIVE_WORKERS_HERE_MAX, or_none=True)
        latency_us = (
            self.starter.latency_us() if latency is None else micros(latency, "latency", LATENCY_US_MAX)
        )
        lanes = lanes or self.starter.lanes_of(self.name) or LANES_DEFAULT
        parts = compiling.parts_of(self.node, self.sink, lanes)
        return LivePlan(self.name, parts, on_error, latency_us)

    def explain(self) -> str:
        """The plan and its sink as text, one line per step."""
        parts = compiling.parts_of(self.node, self.sink, LANES_DEFAULT)
        shown = [f"part {part.name!r}: {part.how}\n" for part in parts] if len(parts) > 1 else []
        return f"{plan_text(self.node)}into {self.sink}\n{''.join(shown)}"

    def __repr__(self) -> str:
        return f"<PreparedLiveJob\n{self.explain()}>"


def sources_of(node: Node) -> list[StreamSource]:
    """The streams that a plan reads, in the order of the inputs of its part."""
    while not isinstance(node, StreamSource | Union):
        if isinstance(node, Seam):
            node = node.live
            continue
        below = getattr(node, "input", None)
        if not isinstance(below, Node):
            raise InvalidArgument("the plan reads no stream")
        node = below
    if isinstance(node, StreamSource):
        return [node]
    return [source for one in node.inputs for source in sources_of(one)]
