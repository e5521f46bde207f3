"""Columns and types after each step, worked out by Polars on empty frames before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onefold.compute.plan.nodes import Explode, Filter, FlatMap, Map, MapBatches, RowNode, Select, WithColumns
from onefold.errors import InvalidPlan

if TYPE_CHECKING:
    import polars as pl

Schema = tuple[tuple[str, Any], ...]
"""(column, Polars data type) in order."""

Names = tuple[str, ...]


def specified(given: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> pl.Schema:
    """The schema, in which a type may stand without its parameters where Polars' readers have defaults for them.

    Raises what ``pl.Schema`` raises, and what a frame of it does.
    """
    import polars as pl

    defaults: dict[type, Any] = {kind: kind() for kind in (pl.Datetime, pl.Duration, pl.Categorical)}
    pairs = given.items() if isinstance(given, Mapping) else given
    schema = pl.Schema(
        (name, defaults.get(dtype, dtype) if isinstance(dtype, type) else dtype) for name, dtype in pairs
    )
    pl.DataFrame(schema=schema)  # a time zone is looked up only when there is a column
    return schema


def describe(step: object) -> str:
    """What the user called to make this step."""
    for kind, name in (
        (Select, "select"),
        (WithColumns, "with_columns"),
        (Filter, "filter"),
        (Explode, "explode"),
        (FlatMap, "flat_map"),
        (MapBatches, "map_batches"),
        (Map, "map"),
    ):
        if isinstance(step, kind):
            return name
    return type(step).__name__.lower()


def schema_after(schema: Schema | None, steps: Sequence[RowNode]) -> Schema | None:
    """The schema after these steps, or None from a Python function without ``schema=`` on.

    Raises InvalidPlan that names the step, the column that is missing and those that are there.
    """
    for step in steps:
        schema = _after(schema, step)
    return schema


def evaluate(schema: Schema, exprs: Sequence[pl.Expr], where: str) -> Schema:
    """Names and types of these expressions over rows of this schema. Raises InvalidPlan."""
    import polars as pl

    return _collect(pl.LazyFrame(schema=dict(schema)).select(*exprs), schema, where)


def names_after(names: Names | None, steps: Sequence[RowNode]) -> Names | None:
    """The column names after these steps as far as they can be determined without knowing the types."""
    for step in steps:
        match step:
            case Select():
                names = output_names(step.exprs)
            case WithColumns():
                made = output_names(step.exprs)
                known = names is not None and made is not None
                names = tuple(dict.fromkeys((*names, *made))) if known and names and made else None
            case Map() | FlatMap() | MapBatches():
                names = tuple(name for name, _ in step.schema) if step.schema is not None else None
            case _:
                pass
    return names


def output_names(exprs: Sequence[pl.Expr]) -> Names | None:
    """The columns that these expressions make, or None when that depends on the schema (selectors)."""
    names = []
    for expr in exprs:
        name = (
            None if expr.meta.has_multiple_outputs() else expr.meta.output_name(raise_if_undetermined=False)
        )
        if name is None:
            return None
        names.append(name)
    return tuple(names)


def _after(schema: Schema | None, step: RowNode) -> Schema | None:
    import polars as pl

    if isinstance(step, Map | FlatMap | MapBatches):
        return step.schema
    if schema is None:
        return None
    frame = pl.LazyFrame(schema=dict(schema))
    where = describe(step)
    match step:
        case Select():
            frame = frame.select(*step.exprs)
        case WithColumns():
            frame = frame.with_columns(*step.exprs)
        case Filter():
            types = _collect(
                frame.select(pl.struct(expr).alias(str(i)) for i, expr in enumerate(step.predicates)),
                schema,
                where,
            )
            for (_, dtype), predicate in zip(types, step.predicates, strict=True):
                wrong = [field for field in dtype.fields if field.dtype not in (pl.Boolean, pl.Null)]
                if wrong:
                    raise InvalidPlan(
                        f"{where}: {predicate} is {wrong[0].dtype}, but a filter needs true or false; "
                        f"compare it with something"
                    )
            return schema
        case Explode():
            known = dict(schema)
            for column in step.columns:
                if column not in known:
                    raise InvalidPlan(f"{where}: {missing(column, known)}")
                if not isinstance(known[column], pl.List | pl.Array):
                    raise InvalidPlan(
                        f"{where}: column {column!r} is {known[column]}, not a list; "
                        f"make one first, for example with str.split or str.extract_all"
                    )
            frame = frame.explode(*step.columns)
    after = _collect(frame, schema, where)
    if not after:
        raise InvalidPlan(f"{where}: no columns are left")
    return after


def _collect(frame: pl.LazyFrame, schema: Schema, where: str) -> Schema:
    import polars as pl

    try:
        # Some operations on a wrong type are found only by running them, if on no rows.
        return tuple(frame.collect().schema.items())
    except pl.exceptions.PanicException:
        return tuple(
            frame.collect_schema().items()
        )  # Polars itself stumbles over no rows, which is not a mistake.
    except pl.exceptions.ColumnNotFoundError as error:
        named = re.search(r'"([^"]*)"', str(error))
        name = named.group(1) if named else str(error).splitlines()[0]
        raise InvalidPlan(f"{where}: {missing(name, dict(schema))}") from error
    except pl.exceptions.PolarsError as error:
        raise InvalidPlan(
            f"{where}: {str(error).splitlines()[0]}; the columns are: {listed(schema)}"
        ) from error


def missing(column: str, there: Sequence[str] | dict[str, Any]) -> str:
    """The sentence for a column that is not there."""
    return f"column {column!r} is not there; there are: {', '.join(map(repr, there)) or 'none'}"


def listed(schema: Schema) -> str:
    """``'a' Int64, 'b' String``."""
    return ", ".join(f"{name!r} {dtype}" for name, dtype in schema)
