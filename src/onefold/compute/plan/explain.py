"""Plans as text for people: one line per step, inputs indented below what reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from onefold.compute.plan.nodes import (
    Explode,
    Filter,
    FlatMap,
    GroupAggregate,
    Into,
    Job,
    Join,
    Map,
    MapBatches,
    MapReduce,
    Node,
    Seam,
    Select,
    Source,
    StreamSource,
    Union,
    Window,
    WithColumns,
)

_WIDTH = 120
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def job_text(job: Job) -> str:
    """The sink, and the plan below it in the order in which it runs."""
    sink = job.sink
    if isinstance(sink, Into):
        last = f"into table {sink.table!r} (mode {sink.mode}"
    else:
        folders = f", partition_by {', '.join(sink.partition_by)}" if sink.partition_by else ""
        last = f"write_parquet {sink.path!r} (mode {sink.mode}{folders}"
    version = f", version {sink.version!r})" if sink.version is not None else ")"
    return f"{plan_text(job.plan)}{last}{version}\n"


def plan_text(node: Node) -> str:
    """The plan in the order in which it runs; each line ends with a newline."""
    lines: list[str] = []
    _lines(node, 0, lines)
    return "".join(f"{line[:_WIDTH]}\n" for line in lines)


def _lines(node: Node, depth: int, lines: list[str]) -> None:
    chain: list[Node] = []
    while True:
        chain.append(node)
        below = getattr(node, "input", None)
        if not isinstance(below, Node):
            break
        node = below
    pad = "  " * depth
    for part in reversed(chain):
        if isinstance(part, Union):
            for number, item in enumerate(part.inputs, 1):
                lines.append(f"{pad}input {number} of union:")
                _lines(item, depth + 1, lines)
        elif isinstance(part, Seam):
            for side, item in (("history", part.history), ("live", part.live)):
                lines.append(f"{pad}{side} side of concat:")
                _lines(item, depth + 1, lines)
        elif isinstance(part, Join):
            for side, item in (("left", part.left), ("right", part.right)):
                lines.append(f"{pad}{side} side of join:")
                _lines(item, depth + 1, lines)
        lines.append(pad + step_text(part))


def step_text(node: Node) -> str:
    """One step as the user wrote it, roughly."""
    match node:
        case Source():
            options = "".join(
                f", {name}={value!r:.30}" for name, value in node.options if name != "storage_options"
            )
            shown = map(repr, node.paths) if node.kind == "stream" else node.paths
            return f"read_{node.kind} {', '.join(shown)}{options}"
        case StreamSource():
            time = "its append" if node.event_time is None else node.event_time
            return f"read_stream {node.stream!r} (follow, event time {time}, delay {node.delay_us / 1e6:g}s)"
        case Select():
            return f"select {_listed(node.exprs)}"
        case WithColumns():
            return f"with_columns {_listed(node.exprs)}"
        case Window():
            on = "" if node.spec.on is None else f" of {node.spec.on}"
            return f"window {node.spec}{on}"
        case Filter():
            return f"filter {_listed(node.predicates)}"
        case Explode():
            return f"explode {', '.join(node.columns)}"
        case Map():
            return f"map {function_name(node.fn)}"
        case FlatMap():
            return f"flat_map {function_name(node.fn)}"
        case MapBatches():
            return f"map_batches {function_name(node.fn)}"
        case Seam():
            if node.at_us is None:
                return f"concat of history and live at position {node.position}"
            return f"concat of history and live at {node.time} {_EPOCH + timedelta(microseconds=node.at_us)}"
        case Union():
            return f"union of {len(node.inputs)}"
        case Join():
            return f"join on {', '.join(node.on)} ({node.how})"
        case GroupAggregate():
            aggs = ", ".join(f"{name}={_aggregate(agg)}" for name, agg in node.aggs)
            return f"group_by {_listed(node.keys) or '(all rows)'} agg {aggs}"
        case MapReduce():
            return f"map_reduce map={function_name(node.map)} reduce={function_name(node.reduce)}"
        case _:
            return type(node).__name__


def function_name(fn: Any) -> str:
    """A function's name for people."""
    inner = fn
    while hasattr(inner, "func") and not hasattr(inner, "__qualname__"):
        inner = inner.func
    name = getattr(inner, "__qualname__", None) or type(inner).__name__
    return str(name).rpartition("<locals>.")[2]


def _aggregate(agg: Any) -> str:
    kind, exprs, functions, options = agg.describe()
    arguments = [_listed(exprs), *map(function_name, functions), *map(repr, options)]
    return f"{kind}({', '.join(filter(None, arguments))})"


def _listed(exprs: tuple[Any, ...]) -> str:
    return ", ".join(" ".join(str(expr).split()) for expr in exprs)
