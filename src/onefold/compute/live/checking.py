"""What of a plan's columns can be known before any record is read: those of its groups, and of inputs with ``schema=``. Pure.

A mistake that can be seen in the plan is refused at its line, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import polars as pl

from onefold.compute.aggregates import ORDER_COLUMN, result_schema
from onefold.compute.live.inputs.preparing import OWN_TYPES, RECORD, TIME
from onefold.compute.live.inputs.python_steps import has_python
from onefold.compute.live.operators.running import RunningAggregate
from onefold.compute.live.plan import MapSink, Operator, Sink, StreamInput, StreamSink
from onefold.compute.live.runs.rows import with_lanes
from onefold.compute.plan.windows import END, START
from onefold.compute.tasks.pipeline import apply_lazy
from onefold.compute.tasks.row_steps import no_stage
from onefold.errors import InvalidPlan
from onefold.state.streams.frames import OWN_COLUMNS

if TYPE_CHECKING:
    from onefold.compute.tasks.row_steps import RowStep

ORDER_TYPES: Final = {ORDER_COLUMN: pl.Struct({"path": pl.String(), "start": pl.Int64(), "row": pl.Int64()})}
"""Of what an aggregate gets that depends on the order of rows."""


def check(inputs: Sequence[StreamInput], operator: Operator | None, sink: Sink) -> None:
    """Raise InvalidPlan for columns that are not there, or are of a type that cannot be what the plan makes of them."""
    if isinstance(sink, StreamSink) and sink.stream in {one.stream for one in inputs}:
        raise InvalidPlan(
            f"into_stream: the job reads {sink.stream!r}, and would read for ever what it writes. Write into another stream"
        )
    before: Mapping[str, Any] | None = None
    for one in inputs:
        if one.schema is not None:
            _check_input(one)
            before = None if has_python([one]) else _after_steps(one)
    known = before if operator is None and len(inputs) == 1 else _of_groups(operator, before)
    if known is not None and isinstance(sink, MapSink | StreamSink) and sink.key is not None:
        _check_key("into_map" if isinstance(sink, MapSink) else "into_stream", sink.key, known)


def _check_input(one: StreamInput) -> None:
    columns = dict(one.schema or ())
    named = ", ".join(map(repr, columns))
    if one.event_time is not None:
        if one.event_time not in columns:
            raise InvalidPlan(
                f"there is no column {one.event_time!r} for event_time=; schema= has {named}. Name one of these, or add it"
            )
        dtype = columns[one.event_time]
        if dtype not in (pl.Date, pl.Datetime):
            raise InvalidPlan(
                f"event_time={one.event_time!r}: schema= says {dtype}, and an event time is a Datetime or a Date"
            )
    unknown = sorted(one.needs - columns.keys())
    if unknown:
        raise InvalidPlan(
            f"the plan names column {unknown[0]!r}; schema= of read_stream has {named}. Correct the plan, or add it there"
        )


def _after_steps(one: StreamInput) -> dict[str, Any]:
    """The columns of an input after its steps. Raises InvalidPlan where a step cannot be."""
    columns = dict(one.schema or ())
    times = pl.Datetime("us") if one.event_time is None else columns[one.event_time]
    try:
        found = after_steps(one.steps, {**columns, **OWN_TYPES, TIME: times})
    except pl.exceptions.PolarsError as error:
        raise InvalidPlan(f"the plan cannot be done with the columns of schema=: {error}") from None
    return {name: dtype for name, dtype in found.items() if name not in (*OWN_COLUMNS, TIME)}


def after_steps(steps: Sequence[RowStep], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that steps without Python functions make of these. Raises PolarsError where a step cannot be."""
    rows = pl.DataFrame(schema={**columns, RECORD: pl.UInt32}).lazy()
    for step in steps:
        rows = apply_lazy(step, rows, no_stage)  # type: ignore[arg-type]
    return {name: dtype for name, dtype in rows.collect_schema().items() if name != RECORD}


def _of_groups(operator: Operator | None, before: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The columns of the rows that groups give; None: not known. A type that is not known is None."""
    if operator is None:
        return None
    found: dict[str, Any] = dict.fromkeys(operator.key_names)
    if before is not None:
        keys = pl.DataFrame(schema=before).lazy().select(operator.keys)
        try:
            schema = keys.collect_schema()
            with_lanes(pl.DataFrame(schema=schema), operator.key_names, 1)
            found |= schema
        except pl.exceptions.PolarsError as error:
            raise InvalidPlan(f"group_by: {error}") from None
        result_schema(pl.Schema({**before, **OWN_TYPES, **ORDER_TYPES}), (), operator.aggregates)
    if not isinstance(operator, RunningAggregate):
        found |= {START: pl.Datetime("us"), END: pl.Datetime("us")}
    return found | dict.fromkeys(name for name, _ in operator.aggregates)


def _check_key(what: str, key: str, known: Mapping[str, Any]) -> None:
    if key not in known:
        raise InvalidPlan(
            f"{what}: there is no column {key!r} for key=; the rows have {', '.join(map(repr, known))}"
        )
    dtype = known[key]
    if dtype is None or not (dtype.is_temporal() or dtype.is_float() or dtype.is_nested()):
        return
    instead = "Name another column"
    if key in (START, END):
        instead = 'Use into("t"), whose rows are read as table.get((window_start, …)), or name another column'
    elif dtype.is_temporal():
        instead = f'Make text of it before, with pl.col({key!r}).dt.to_string("iso"), or name another column'
    raise InvalidPlan(
        f"{what}: column {key!r} is of type {dtype}, and a key is text, a whole number, bytes or a truth value. {instead}"
    )
