"""The columns and types of a live table's rows, and of the records that it set aside, as far as they are known without any row.

The columns of an input are known once a commit has said what its records hold, or by ``schema=``. What a Python function makes of
them is not known before there is a row: such a column is of type Null.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from onefold.compute.aggregates import result_schema
from onefold.compute.live.checking import ORDER_TYPES, after_steps
from onefold.compute.live.inputs.preparing import (
    AS_READ,
    OWN_TYPES,
    REASON,
    TIME,
    Schema,
    Schemas,
    event_times,
)
from onefold.compute.live.inputs.python_steps import has_python
from onefold.compute.plan.windows import END, START
from onefold.errors import OnefoldError
from onefold.machine.undisturbed import let_pass

if TYPE_CHECKING:
    from collections.abc import Mapping

    from onefold.compute.live.plan import LivePart, StreamInput


def aside_schemas(part: LivePart, said: bytes, kind: str) -> list[dict[str, Any]]:
    """The columns of the records that are set aside, for each input. ``said``: by the commits of the part."""
    last = {REASON: pl.String(), **({AS_READ: pl.String()} if kind == "dead" else {})}
    inputs = zip(part.inputs, _schemas(part, said), strict=True)
    return [{**(schema.columns or {}), **OWN_TYPES, **last} for one, schema in inputs if not one.history]


def row_types(part: LivePart, said: bytes) -> dict[str, Any]:
    """The types of the table's columns that are known."""
    schemas = _schemas(part, said)
    time = _time_type(part, schemas)
    found = {START: time, END: time} if part.windowed and time is not None else {}
    if part.operator is None or has_python(part.inputs):
        return found
    first = part.inputs[0]
    columns = {} if schemas[0].columns is None else _after_steps(first, schemas[0].columns, time)
    operator = part.operator
    wanted: list[tuple[tuple[pl.Expr, ...], tuple[Any, ...]]] = [((key,), ()) for key in operator.keys]
    wanted += [((), (one,)) for one in operator.aggregates]
    for keys, aggregates in wanted:  # one by one: others are known where one is not
        try:
            made = result_schema(pl.Schema({**columns, **ORDER_TYPES}), keys, aggregates)
        except (OnefoldError, pl.exceptions.PolarsError) as error:
            let_pass(error)
            continue
        found |= {name: dtype for name, dtype in made.items() if dtype != pl.Unknown}
    return found


def _schemas(part: LivePart, said: bytes) -> list[Schema]:
    found = Schemas(part.inputs, part.window)
    found.load(0, said)
    return found.of


def _time_type(part: LivePart, schemas: list[Schema]) -> Any | None:
    """The type of the event times of all inputs; None: not known yet."""
    times, one, columns = schemas[0].times, part.inputs[0], schemas[0].columns
    if times.shared or one.hop_of:
        return times.dtype
    if one.event_time is not None and (columns is None or columns.get(one.event_time, pl.Null) == pl.Null):
        return None
    empty = pl.DataFrame(schema={**(columns or {}), **OWN_TYPES})
    try:
        return times.fitted(event_times(empty, one.event_time))[0].dtype
    except OnefoldError as error:
        let_pass(error)
        return None


def _after_steps(one: StreamInput, columns: Mapping[str, Any], time: Any | None) -> dict[str, Any]:
    own = {**OWN_TYPES, **({} if time is None else {TIME: time})}
    try:
        return after_steps(one.steps, {**columns, **own})
    except pl.exceptions.PolarsError:
        return {}
