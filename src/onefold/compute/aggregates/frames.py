"""Partial and final frames of a group-by.

A partial frame has one row per group, sorted by the keys unless it is large: the key columns, then the state columns
``{name}:{suffix}`` of each aggregate. Without keys it has exactly one row, also when there are no input rows.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Literal

import polars as pl

from onefold.compute.aggregates import whole_sums
from onefold.compute.aggregates.adding import direct_table
from onefold.compute.aggregates.adding.direct_table import DirectTable
from onefold.compute.aggregates.align import LEFT_UNSORTED_ROWS, in_key_order, merge_pair, state_of
from onefold.compute.aggregates.base import ORDER_COLUMN, Aggregate
from onefold.compute.frames.float_keys import joinable, without_negative_zero
from onefold.compute.frames.named import frame_of
from onefold.errors import InvalidPlan, InvalidValue
from onefold.invariants import invariant

Aggs = Sequence[tuple[str, Aggregate]]
Engine = Literal["auto", "in-memory", "streaming"]

_GROUP, _INPUT = "__onefold_group", "__onefold_in"
_Native = tuple[str, Aggregate, Sequence[str], Sequence[pl.DataType]]
"""A native aggregate: its name, itself, its input columns and their types."""
_DOUBTED_MAX = 100
_doubted_lock = threading.Lock()
_doubted: dict[Aggregate, None] = {}
"""Aggregates that could not be shown to be exact over the last rows. Their next rows, another split of the same data mostly, are
read once, with ``witness`` at once. It changes how often rows are read, and no result.
"""


def _nothing() -> None:
    pass


def partial(
    rows: pl.LazyFrame,
    keys: Sequence[pl.Expr],
    aggs: Aggs,
    *,
    engine: Engine = "auto",
    again: Callable[[], None] = _nothing,
) -> pl.DataFrame:
    """The partial frame of these rows.

    Null is a key like any other, so is NaN, and -0.0 is 0.0. ``engine="auto"`` is Polars' streaming engine,
    which takes half the time of the in-memory one. ``again`` is called before the rows are read a second time,
    as for sums that may have wrapped around. Raises InvalidPlan when a key or an aggregate does not fit the
    rows' schema, InvalidValue for a sum that no type holds.
    """
    chosen: Any = "streaming" if engine == "auto" else engine
    key_names, inputs, projected = _projected(rows, keys, aggs)
    schema = projected.collect_schema()
    floats = [name for name in key_names if schema[name].is_float()]
    if floats:
        # Polars keeps the first zero of a group, which would depend on how the rows are split.
        projected = projected.with_columns(without_negative_zero(name, schema[name]) for name in floats)
    dtypes = [[schema[column] for column in columns] for columns in inputs]
    collected = [not agg.native for _, agg in aggs]
    derived = {
        column: expr
        for (_, agg), columns, types in zip(aggs, inputs, dtypes, strict=True)
        for column, expr in agg.derived(columns, types).items()
    }
    if derived:
        projected = projected.with_columns(**derived)
    if any(collected):
        projected = projected.collect(engine=chosen).lazy()
        again = _nothing  # what is read a second time is in memory
    table = direct_table.table_for(key_names, aggs, inputs, schema) if chosen == "streaming" else None
    grouped = _grouped(projected, key_names, aggs, inputs, dtypes, chosen, again, table)
    if table is not None and (direct := table.partial(grouped)) is not None:
        return merge_pair(direct, grouped, key_names, aggs) if grouped.height else direct
    if not any(collected):
        return grouped
    frame = projected.collect()
    groups = _group_numbers(frame, grouped, key_names)
    columns = {name: grouped[name] for name in grouped.columns} if key_names or not all(collected) else {}
    for (name, agg), used in zip(aggs, inputs, strict=True):
        if agg.native:
            continue
        for suffix, series in agg.collect(groups, [frame[column] for column in used], grouped.height).items():
            columns[f"{name}:{suffix}"] = series.alias(f"{name}:{suffix}")
    return frame_of(columns.values())


def _grouped(
    projected: pl.LazyFrame,
    keys: Sequence[str],
    aggs: Aggs,
    inputs: Sequence[Sequence[str]],
    dtypes: Sequence[Sequence[pl.DataType]],
    engine: Any,
    again: Callable[[], None],
    table: DirectTable | None,
) -> pl.DataFrame:
    """The states of the native aggregates by group, without the rows that the table took."""
    native: list[_Native] = [
        (name, agg, columns, types)
        for (name, agg), columns, types in zip(aggs, inputs, dtypes, strict=True)
        if agg.native
    ]
    states = [
        expr.alias(f"{name}:{suffix}")
        for name, agg, columns, types in native
        for suffix, expr in agg.states(columns, types).items()
    ]
    bounds = [
        expr.alias(f"{name}:{suffix}")
        for name, agg, columns, types in native
        for suffix, expr in agg.bounds(columns, types).items()
    ]
    if not bounds and table is None:
        return _in_order(_collected(_query(projected, keys, states), engine), keys)
    with _doubted_lock:
        early = [item for item in native if item[1] in _doubted]
    passed, seen = _watched(projected, bounds, table)
    grouped = _collected(_query(passed, keys, [*states, *_witnesses(early)]), engine)
    extremes = _extremes(seen)
    doubtful = [
        item for item in native if not item[1].is_exact(state_of(grouped, item[0]), extremes.get(item[0], {}))
    ]
    _remember_doubts(early, doubtful)
    if not all(item in early for item in doubtful):
        again()
        if table is not None:
            table.forget()
        grouped = _collected(_query(projected, keys, [*states, *_witnesses(doubtful)]), engine)
    elif not early:
        return _in_order(grouped, keys)
    return _in_order(_settled(grouped, aggs), keys)


def _remember_doubts(before: Sequence[_Native], now: Sequence[_Native]) -> None:
    with _doubted_lock:
        for _, agg, _, _ in before:
            _doubted.pop(agg, None)
        for _, agg, _, _ in now:
            _doubted[agg] = None
        while len(_doubted) > _DOUBTED_MAX:
            del _doubted[next(iter(_doubted))]


def _witnesses(natives: Sequence[_Native]) -> list[pl.Expr]:
    return [
        expr.alias(f"{name}:{suffix}")
        for name, agg, columns, types in natives
        for suffix, expr in agg.witness(columns, types).items()
    ]


def _query(projected: pl.LazyFrame, keys: Sequence[str], states: Sequence[pl.Expr]) -> pl.LazyFrame:
    return projected.group_by(keys).agg(states) if keys else projected.select(states or [pl.len()])


def _in_order(grouped: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    if keys and grouped.height < LEFT_UNSORTED_ROWS:
        # Sorting afterwards takes half the time of a sort inside the streaming plan.
        return grouped.sort(keys)
    return grouped


def _watched(
    rows: pl.LazyFrame, bounds: Sequence[pl.Expr], table: DirectTable | None
) -> tuple[pl.LazyFrame, list[pl.DataFrame]]:
    """The same rows but those that the table takes, and where the bounds of each batch of them are noted as it passes. A query of
    its own would read the rows twice."""
    seen: list[pl.DataFrame] = []

    def note(frame: pl.DataFrame) -> pl.DataFrame:
        if table is not None and table.take(frame):
            return frame.clear()
        if bounds:
            seen.append(frame.select(bounds))
        return frame

    passed = rows.map_batches(note, projection_pushdown=False, streamable=True, validate_output_schema=False)
    return passed, seen


def _extremes(seen: Sequence[pl.DataFrame]) -> dict[str, dict[str, Any]]:
    """Of each aggregate by its name: the extremes of all batches."""
    found: dict[str, dict[str, Any]] = {}
    for column in pl.concat(seen).iter_columns() if seen else ():
        name, _, suffix = column.name.rpartition(":")
        found.setdefault(name, {})[suffix] = column.min() if suffix == "lo" else column.max()
    return found


def _collected(query: pl.LazyFrame, engine: Any) -> pl.DataFrame:
    try:
        return query.collect(engine=engine)
    except pl.exceptions.ComputeError as error:
        if "overflow in decimal" in str(error):
            raise whole_sums.decimals_too_large() from error
        raise


def _settled(grouped: pl.DataFrame, aggs: Aggs) -> pl.DataFrame:
    """The partial with the states that its aggregates keep. Raises InvalidValue."""
    for name, agg in aggs:
        if not agg.native:
            continue
        before = state_of(grouped, name)
        try:
            after = agg.settled(before)
        except InvalidValue as error:
            raise InvalidValue(f"column {name!r}: {error}") from error
        if after is not before:
            gone = [f"{name}:{suffix}" for suffix in before if suffix not in after]
            kept = [series.alias(f"{name}:{suffix}") for suffix, series in after.items()]
            grouped = grouped.drop(gone).with_columns(kept)
    return grouped


def final(
    partial: pl.DataFrame,
    keys: Sequence[str],
    aggs: Aggs,
    schema: pl.Schema | None = None,
    *,
    in_order: bool = True,
) -> pl.DataFrame:
    """The user's frame: the keys and one column per aggregate, with the values and dtypes of Polars' own
        group-by.
     Sorted by the keys, unless ``in_order`` is false. With ``schema`` (see ``result_schema``) columns are cast to it, which only
    matters when no split had a value of some column. A count that does not fit into 32 bits makes its column UInt64.
    """
    partial = in_key_order(partial, keys) if in_order else partial
    columns = [partial[key] for key in keys]
    columns += [agg.finish(state_of(partial, name)).alias(name) for name, agg in aggs]
    frame = frame_of(columns)
    if schema is None:
        return frame
    casts = [
        pl.col(name).cast(dtype)
        for name, dtype in schema.items()
        if name in frame.columns and dtype != pl.Unknown and _narrower(frame.schema[name], dtype)
    ]
    return frame.with_columns(casts)


def _narrower(found: pl.DataType, wanted: pl.DataType) -> bool:
    if wanted.is_integer() and found in (pl.Int64, pl.Int128) and found != wanted:
        return False  # a sum that its own type does not hold
    return found != wanted and not (found == pl.UInt64 and wanted == pl.UInt32)


def empty_partial(input_schema: pl.Schema, keys: Sequence[pl.Expr], aggs: Aggs) -> pl.DataFrame:
    """The partial frame of no rows: no groups, or the one group of a group-by without keys."""
    return partial(pl.LazyFrame(schema=input_schema), keys, aggs, engine="in-memory")


def result_schema(input_schema: pl.Schema, keys: Sequence[pl.Expr], aggs: Aggs) -> pl.Schema:
    """Names and dtypes of the final frame. The dtype of a ``fold`` that does not state one is ``pl.Unknown``.

    Raises InvalidPlan naming the output column whose expression does not fit the input.
    """
    key_names, inputs, projected = _projected(pl.LazyFrame(schema=input_schema), keys, aggs)
    schema = dict(projected.select(key_names).collect_schema()) if key_names else {}
    for (name, agg), columns in zip(aggs, inputs, strict=True):
        try:
            empty = projected.select(columns).collect()
            if agg.kind == "fold" and agg.options() == (None,):
                schema[name] = pl.Unknown()
                continue
            # Resolved, not run: Polars panics on the quantile of an empty column of dates.
            schema[name] = next(iter(empty.lazy().select(agg.reference(columns)).collect_schema().values()))
            if not agg.native:
                agg.collect(pl.Series([], dtype=pl.UInt32), [empty[column] for column in columns], 0)
        except InvalidPlan as error:
            raise InvalidPlan(f"column {name!r}: {error}") from error
        except pl.exceptions.PolarsError as error:
            raise InvalidPlan(
                f"column {name!r}: agg.{agg.kind} does not work here: {_line(error)}"
            ) from error
    return pl.Schema(schema)


def totals(partial: pl.DataFrame, keys: Sequence[str], aggs: Aggs, name: str) -> pl.DataFrame | None:
    """What intervals are computed from: the key columns, ``s`` and ``c`` (Float64) of one split's partial.

    ``s`` is the split's total of the value (the sum for sum and mean, the count for count) and ``c`` the number
    of non-null values. None for aggregates that have no such interval.
    """
    agg = dict(aggs)[name]
    found = agg.totals(state_of(partial, name))
    if found is None:
        return None
    return frame_of([*(partial[key] for key in keys), found[0].alias("s"), found[1].alias("c")])


def _projected(
    rows: pl.LazyFrame, keys: Sequence[pl.Expr], aggs: Aggs
) -> tuple[list[str], list[list[str]], pl.LazyFrame]:
    """Key names, input columns per aggregate, and the rows with exactly these columns.

    Inputs are computed as columns before grouping: inside an aggregation a literal would be one value and not
    one per row.
    """
    key_names, key_columns = _keys(rows, keys)
    _check_names(key_names, aggs)
    if not key_names and not aggs:
        raise InvalidPlan(
            "a group-by without keys and without aggregates has no columns: add one, such as n=agg.count()"
        )
    columns: list[pl.Expr] = []
    inputs: list[list[str]] = []
    for index, (name, agg) in enumerate(aggs):
        exprs = list(agg.expressions())
        if agg.whole_rows:
            exprs.append(pl.struct(pl.all().exclude(ORDER_COLUMN)))
        if agg.needs_order:
            exprs.append(pl.col(ORDER_COLUMN))
        used = [f"{_INPUT}_{index}_{i}" for i in range(len(exprs))]
        named = [expr.alias(column) for expr, column in zip(exprs, used, strict=True)]
        try:
            rows.select(named).collect_schema()
        except pl.exceptions.PolarsError as error:
            raise InvalidPlan(f"column {name!r} does not fit its input: {_line(error)}") from error
        columns += named
        inputs.append(used)
    if not columns and not key_columns:
        return key_names, inputs, rows
    return key_names, inputs, rows.select(*key_columns, *columns)


def _keys(rows: pl.LazyFrame, keys: Sequence[pl.Expr]) -> tuple[list[str], list[pl.Expr]]:
    if not keys:
        return [], []
    try:
        schema = rows.select(keys).collect_schema()
    except pl.exceptions.PolarsError as error:
        raise InvalidPlan(f"the keys of a group-by do not fit its input: {_line(error)}") from error
    if all(not dtype.is_float() for dtype in schema.values()) or len(schema) != len(keys):
        return list(schema), list(keys)
    # -0.0 and 0.0 are one group: which of them stands for it must not depend on the split.
    columns = [
        key + pl.lit(0.0, dtype=dtype) if dtype.is_float() else key
        for key, dtype in zip(keys, schema.values(), strict=True)
    ]
    return list(schema), columns


def _check_names(keys: Sequence[str], aggs: Aggs) -> None:
    names = [*keys, *(name for name, _ in aggs)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidPlan(
            f"column {twice[0]!r} would come out twice: give keys and aggregates different names"
        )
    for name, _ in aggs:
        clash = [key for key in keys if key.startswith(f"{name}:")]
        if clash:
            raise InvalidPlan(
                f"key {clash[0]!r} would clash with the state of {name!r}: give it another name"
            )


def _group_numbers(frame: pl.DataFrame, grouped: pl.DataFrame, keys: Sequence[str]) -> pl.Series:
    """Per row the number of its group's row in ``grouped``."""
    if not keys:
        return pl.repeat(0, frame.height, dtype=pl.UInt32, eager=True)
    rows, on = joinable(frame.select(keys), keys)
    numbered, _ = joinable(grouped.select(keys), keys)
    found = rows.join(
        numbered.with_row_index(_GROUP), on=on, how="left", nulls_equal=True, maintain_order="left"
    )[_GROUP]
    complete = not found.null_count() and len(found) == frame.height
    invariant(complete, "every row is in one group", keys=keys, polars=pl.__version__, rows=frame.height)
    return found


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
