"""Bounded rows before a time or a position, a stream's from then on: one plan over both. Pure.

The rows before the seam are a batch job over any splits in any order, with a table of its own. The live job leaves out what is
before the seam, and has the batch job as one more input: a single record, which is there once the batch job is done. It holds
everything until then, so nothing closes that the history is part of; then what crosses the seam enters the state in the same
commit that says so, for the lanes of each bundle once. A seam at a position says nothing of times: the history is taken
whole, and all of its groups enter.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import polars as pl

from onefold.compute.live.event_time import time_of
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.plan import MapSink, Operator, Sink, StreamInput, StreamSink, TableSink
from onefold.compute.plan.explain import plan_text
from onefold.compute.plan.nodes import (
    INTO_MAP,
    INTO_STREAM,
    Filter,
    Into,
    Job,
    Node,
    Seam,
    Window,
    WithColumns,
    history_table,
)
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    from collections.abc import Iterator


def seam_of(node: Node) -> Seam | None:
    """The seam of a plan, if it has one."""
    return next((one for one in _chain(node) if isinstance(one, Seam)), None)


def check(seam: Seam, operator: Operator | None, sink: Sink) -> None:
    """Raise InvalidPlan for what is not put together over a seam."""
    if operator is None:
        raise InvalidPlan("concat: a plan over history and live needs a group_by with aggregates")
    if not isinstance(sink, TableSink | MapSink | StreamSink):
        raise InvalidPlan("concat: a plan over history and live goes into a table, a map or a stream")
    if (
        seam.at_us is not None
        and not isinstance(operator, RunningAggregate)
        and operator.spec.kind == "tumbling"
        and not isinstance(sink, TableSink)
    ):
        raise InvalidPlan(
            "concat: tumbling windows go into a table, where those that end by the seam are read from the history; into a map or "
            "a stream with a position of the stream as at=, since the live job then closes all windows of the history"
        )
    if isinstance(operator, RunningAggregate) and operator.ttl_us is not None:
        raise InvalidPlan("concat: groups with ttl= cannot have a history; leave ttl= out")
    ordered = [name for name, one in operator.aggregates if one.needs_order]
    if ordered:
        raise InvalidPlan(
            f"concat: {ordered[0]!r} asks for the order of rows, which files and a stream have each in their own way; give it by="
        )


def history_input(seam: Seam, sink: Sink) -> StreamInput:
    """The history as an input of the live job."""
    match sink:
        case TableSink(table=table):
            table = history_table(table)
        case MapSink(map=name):
            table = history_table(f"{INTO_MAP}{name}")
        case StreamSink(stream=name):
            table = history_table(f"{INTO_STREAM}{name}")
        case _:
            raise AssertionError("checked before")
    return StreamInput(table, None, idle_us=None, history=table, since_us=seam.at_us)


def signature(seam: Seam) -> tuple[tuple[str, str], ...]:
    """What the state depends on, of the seam."""
    return (
        ("seam", seam.position or str(time_of(seam.at_us))),
        ("history", " ".join(plan_text(seam.history).split())),
    )


def history_job(node: Node, table: str, time: pl.Expr | None) -> Job:
    """The batch job of a plan with a seam. ``time``: gives the history's times the type of the stream's; None: they have it."""
    seam = seam_of(node)
    assert seam is not None
    return Job(_of_history(node, seam, time), Into(history_table(table)))


def _of_history(node: Node, seam: Seam, time: pl.Expr | None) -> Node:
    if node is seam:
        rows = seam.history if time is None else WithColumns(seam.history, (time,))
        if seam.at_us is None:
            return rows
        before = (pl.col(seam.time).dt.epoch("us") < seam.at_us).fill_null(True)
        return Filter(rows, (before,))
    changes: dict[str, Any] = {"input": _of_history(node.input, seam, time)}  # type: ignore[attr-defined]
    if isinstance(node, Window):
        spec = replace(node.spec, on=seam.time)
        if spec.kind == "sliding":  # by slices: a window is put together from those of both
            spec = replace(spec, kind="tumbling", length_us=spec.slice_us, every_us=0)
        changes["spec"] = spec
    return replace(node, **changes)


def _chain(node: Node) -> Iterator[Node]:
    """A node and those below it, down to where several meet."""
    below: Node | None = node
    while below is not None:
        yield below
        found = getattr(below, "input", None)
        below = found if isinstance(found, Node) else None
