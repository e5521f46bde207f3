"""From a dataset over streams and a sink to the parts of a live job, with every check that needs no data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from onefold.compute.aggregates import Aggregate
from onefold.compute.frames.named import is_pattern
from onefold.compute.live import checking, seam
from onefold.compute.live.client import SINK
from onefold.compute.live.inputs.preparing import TIME
from onefold.compute.live.inputs.python_steps import has_python
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.operators.sessions import SessionAggregate
from onefold.compute.live.operators.windowed import WindowedAggregate
from onefold.compute.live.plan import (
    OP,
    Emit,
    HopSink,
    LivePart,
    MapSink,
    Operator,
    Sink,
    StreamInput,
    StreamSink,
    TableSink,
)
from onefold.compute.plan.nodes import (
    ExpiringAggregate,
    Explode,
    Filter,
    FlatMap,
    GroupAggregate,
    Map,
    MapBatches,
    Node,
    Seam,
    Select,
    StreamSource,
    Union,
    Window,
    WithColumns,
)
from onefold.errors import InvalidPlan
from onefold.state.streams.frames import OWN_COLUMNS

if TYPE_CHECKING:
    import polars as pl

PART = "main"
STEPS = "steps"
"""The part before a hop."""
_STEPS = (Select, WithColumns, Filter, Explode, Map, FlatMap, MapBatches)


def parts_of(node: Node, sink: Sink, lanes: int) -> tuple[LivePart, ...]:
    """The parts of a plan: one, or two with a hop where functions of Python come before a key. Every worker of a keyed part reads
    all of its input, and the functions must not run once for each of them. Raises InvalidPlan for what live jobs do not do."""
    operator: Operator | None = None
    below = node
    if isinstance(node, GroupAggregate):
        below = node.input
        window = below if isinstance(below, Window) else None
        if window is not None:
            below = window.input
        operator = _operator(node, window, lanes)
    elif isinstance(node, Window):
        raise InvalidPlan("window: group the windows: .window(...).group_by(...).agg(...)")
    inputs = tuple(_input(one, operator) for one in _branches(below))
    _check_sink(sink, operator)
    checking.check(inputs, operator, sink)
    signature = (*_signature(inputs, node, operator), (SINK, _kind_and_name(sink)))
    found = seam.seam_of(node)
    history: tuple[StreamInput, ...] = ()
    if found is not None:
        seam.check(found, operator, sink)
        signature = (*signature, *seam.signature(found))
        history = (seam.history_input(found, sink),)
    if operator is None or not has_python(inputs):
        return (LivePart(PART, (*inputs, *history), operator, sink, lanes, signature),)
    steps = LivePart(STEPS, inputs, None, HopSink(PART), lanes, _signature(inputs, node, None))
    hop = StreamInput(inputs[0].stream, None, needs=_needs((), operator), hop_of=STEPS)
    return (steps, LivePart(PART, (hop, *history), operator, sink, lanes, signature))


def _operator(node: GroupAggregate, window: Window | None, lanes: int) -> Operator:
    if window is None:
        ttl_us = node.ttl_us if isinstance(node, ExpiringAggregate) else None
        return RunningAggregate(node.keys, node.aggs, lanes, ttl_us, TIME)
    spec = window.spec
    if spec.on is not None:
        raise InvalidPlan(
            f"window: on={spec.on!r} names the time of bounded data; a stream has event_time= in read_stream. Leave it out"
        )
    keys = node.keys[2:]  # without the window
    if spec.kind == "session":
        return SessionAggregate(spec, TIME, keys, node.aggs, lanes)
    return WindowedAggregate(spec, TIME, keys, node.aggs, lanes)


def _branches(node: Node) -> Sequence[tuple[StreamSource, tuple[Any, ...]]]:
    """Each source with the steps on its rows, in their order."""
    steps: list[Any] = []
    while not isinstance(node, StreamSource):
        if isinstance(node, Union):
            above = tuple(reversed(steps))
            if any(seam.seam_of(one) is not None for one in node.inputs):
                raise InvalidPlan("concat joins two inputs, not one of several: use union on its live side")
            return [(source, (*below, *above)) for one in node.inputs for source, below in _branches(one)]
        if isinstance(node, Seam):
            node = node.live
            continue
        if not isinstance(node, _STEPS):
            raise InvalidPlan(f"{type(node).__name__} is not a step that live jobs have")
        steps.append(node)
        node = node.input
    return [(node, tuple(reversed(steps)))]


def _input(branch: tuple[StreamSource, tuple[Any, ...]], operator: Operator | None) -> StreamInput:
    source, steps = branch
    bare = tuple(
        type(step)(Node(), *(getattr(step, name) for name in step.__slots__ if name != "input"))
        for step in steps
    )
    return StreamInput(
        source.stream,
        source.event_time,
        source.delay_us,
        source.idle_us,
        source.max_ahead_us,
        source.hold_us,
        source.schema,
        source.partitions,
        bare,
        needs=_needs(bare, operator),
        since_us=source.since_us,
    )


def _needs(steps: Sequence[Any], operator: Operator | None) -> frozenset[str]:
    """The columns of the input that the plan names: those of its expressions that no step before them makes. What a function of
    Python looks at is not known, nor are the columns that it gives."""
    needed: set[str] = set()
    made: set[str] = {*OWN_COLUMNS, TIME}
    for step in steps:
        if isinstance(step, Explode):
            needed |= set(step.columns) - made
        elif isinstance(step, Select | WithColumns | Filter):
            exprs = step.predicates if isinstance(step, Filter) else step.exprs
            needed |= _roots(exprs) - made
            if isinstance(step, Select):
                return frozenset(needed)
            if isinstance(step, WithColumns):
                made |= {expr.meta.output_name(raise_if_undetermined=False) or "" for expr in exprs}
        else:
            return frozenset(needed)
    if operator is not None:
        needed |= _roots(operator.keys) - made
        needed |= _roots([expr for _, one in operator.aggregates for expr in one.expressions()]) - made
    return frozenset(needed)


def _roots(exprs: Iterable[pl.Expr]) -> set[str]:
    names = {name for expr in exprs for name in expr.meta.root_names()}
    return {name for name in names if not is_pattern(name) and name != "*"}


def _check_sink(sink: Sink, operator: Operator | None) -> None:
    emit: Emit | None = getattr(sink, "emit", None)
    if emit == "final" and isinstance(operator, RunningAggregate):
        raise InvalidPlan(
            'emit="final" needs a window: without one a group is never final. Use .window(...), or emit="update"'
        )
    if isinstance(sink, StreamSink) and emit == "update" and operator is not None:
        names = [*operator.key_names, *(name for name, _ in operator.aggregates)]
        if OP in names:
            raise InvalidPlan(
                f'into_stream: with emit="update" the column {OP!r} says whether a record puts or deletes; rename the plan\'s own'
            )


def _signature(
    inputs: Sequence[StreamInput], node: Node, operator: Operator | None
) -> tuple[tuple[str, str], ...]:
    """What the state depends on, by names that users know."""
    several = len(inputs) > 1
    found: list[tuple[str, str]] = []
    for number, one in enumerate(inputs):
        which = f" {number + 1}" if several else ""
        found += [
            (f"input{which}", one.stream),
            (f"event time{which}", one.event_time or "that of the append"),
        ]
    if operator is None or not isinstance(node, GroupAggregate):
        return (*found, ("keys", "none"))
    found += [("keys", ", ".join(map(str, operator.keys)))]
    window = "none" if isinstance(operator, RunningAggregate) else str(operator.spec)
    found += [("window", window)]
    if isinstance(operator, RunningAggregate) and operator.ttl_us is not None:
        found += [("ttl", f"{operator.ttl_us / 1e6:g}s")]
    found += [("aggregate " + name, _described(aggregate)) for name, aggregate in operator.aggregates]
    return tuple(found)


def _kind_and_name(sink: Sink) -> str:
    match sink:
        case TableSink(table=name):
            return f"table {name!r}"
        case MapSink(map=name):
            return f"map {name!r}"
        case StreamSink(stream=name):
            return f"stream {name!r}"
    return "for_each"  # which has the name of the job


def _described(aggregate: Aggregate) -> str:
    kind, expressions, functions, options = aggregate.describe()
    named = ", ".join(getattr(one, "__qualname__", "function") for one in functions)
    return f"{kind}({', '.join(map(str, expressions))}) {named} {options or ''}".strip()


def default_emit(node: Node) -> Emit:
    """``final`` with a window, otherwise ``update``."""
    return "final" if is_windowed(node) else "update"


def is_windowed(node: Node) -> bool:
    """Whether the rows of a plan are those of windows."""
    return isinstance(node, GroupAggregate) and isinstance(node.input, Window)
