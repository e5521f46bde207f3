"""Checks of what users hand to datasets: each raises at once and names the argument."""

from __future__ import annotations

import inspect
import os
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from onefold.arguments import shown as shown_value
from onefold.compute.plan import schemas
from onefold.compute.plan.nodes import HISTORY, INTO_MAP, INTO_STREAM, WITHOUT_TABLE
from onefold.errors import InvalidArgument, InvalidPlan
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    import polars as pl

    from onefold.compute.aggregates import Aggregate

IntoExpr: TypeAlias = "str | pl.Expr | bool | int | float | Any | None"
"""An expression, the name of a column, or (where it has a name) a constant."""
SchemaLike: TypeAlias = "Mapping[str, Any] | Sequence[tuple[str, Any]] | pl.Schema"
"""Columns and their Polars (or Python) types."""
OWN_PREFIX: Final = "__onefold"
"""Of the columns that Onefold adds to rows while it works on them: a user's column of such a name would be one of them."""

_AGGREGATES = (
    "count, sum, mean, min, max, std, var, first, last, approx_n_unique, approx_quantile, most_frequent, fold"
)


def row_local_exprs(step: str, exprs: Iterable[Any], named: Mapping[str, Any]) -> tuple[pl.Expr, ...]:
    """The expressions of a step in order, each row-local, with names that are not given twice."""
    from onefold.compute.plan.expressions import check_row_local

    given = [_expr(step, item) for item in _flat(exprs)]
    given += [_expr(step, value).alias(name) for name, value in named.items()]
    if not given:
        raise InvalidArgument(f"{step} needs at least one expression or column name")
    for expr in given:
        check_row_local(expr, step)
        _refuse_own(step, expr)
    _refuse_doubles(step, given)
    return tuple(given)


def predicates(given: Iterable[Any], equals: Mapping[str, Any]) -> tuple[pl.Expr, ...]:
    """The predicates of a filter; ``equals`` compares columns with values."""
    import polars as pl

    from onefold.compute.plan.expressions import check_row_local

    tests = [_expr("filter", item) for item in _flat(given)]
    tests += [pl.col(name) == value for name, value in equals.items()]
    if not tests:
        raise InvalidArgument("filter needs at least one predicate")
    for test in tests:
        check_row_local(test, "filter")
        _refuse_own("filter", test)
    return tuple(tests)


def group_keys(keys: Iterable[Any], named: Mapping[str, Any]) -> tuple[pl.Expr, ...]:
    """The keys of a group_by: row-local, one column each, with different names. None at all is one group."""
    from onefold.compute.plan.expressions import check_row_local, names_columns

    given = [_expr("group_by", item) for item in _flat(keys)]
    given += [_expr("group_by", value).alias(name) for name, value in named.items()]
    for key in given:
        check_row_local(key, "group_by")
        if key.meta.has_multiple_outputs() or key.meta.output_name(raise_if_undetermined=False) is None:
            names = [item for item in (*_flat(keys), *named.values()) if isinstance(item, str)]
            shown = next((repr(name) for name in names if _is_pattern(name)), str(key))
            raise InvalidPlan(
                f"group_by: {shown} may stand for several columns; name each key. For one group of all rows, "
                "write group_by() without keys"
            )
        _refuse_own("group_by", key)
        if not names_columns(key):
            raise InvalidPlan(f"group_by: {key} is a constant, so all rows are one group; leave it out")
    _refuse_doubles("group_by", given)
    return tuple(given)


def _is_pattern(name: str) -> bool:
    """Whether Polars takes the name for a pattern of names."""
    import polars as pl

    return pl.col(name).meta.has_multiple_outputs()


def aggregates(
    given: Iterable[Any], named: Mapping[str, Any], keys: Sequence[pl.Expr]
) -> tuple[tuple[str, Aggregate], ...]:
    """The aggregates of a group_by by output name, their expressions row-local."""
    import polars as pl

    from onefold.compute.aggregates import Aggregate, from_polars
    from onefold.compute.plan.expressions import check_row_local

    pairs: list[tuple[str, Aggregate]] = []
    for item in _flat(given):
        if isinstance(item, Aggregate):
            raise InvalidArgument(f"agg: {item!r} needs a name: agg(name=...)")
        if not isinstance(item, pl.Expr):
            raise InvalidArgument(f"agg: {shown(item)} is not an aggregate; {_aggregate_help()}")
        pairs.append(from_polars(item))
    for name, item in named.items():
        if isinstance(item, pl.Expr):
            item = from_polars(item)[1]
        if not isinstance(item, Aggregate):
            raise InvalidArgument(f"agg: {name}={shown(item)} is not an aggregate; {_aggregate_help()}")
        pairs.append((name, item))
    if not pairs:
        raise InvalidArgument(f"agg needs at least one aggregate; {_aggregate_help()}")
    taken = {key.meta.output_name() for key in keys}
    for name, item in pairs:
        if name in taken:
            raise InvalidPlan(
                f"agg: the name {name!r} is taken by a key or another aggregate; give it another one"
            )
        taken.add(name)
        _refuse_own_name("agg", name)
        for expr in item.expressions():
            check_row_local(expr, f"agg {name!r}")
            _refuse_own(f"agg {name!r}", expr)
    return tuple(pairs)


def column_names(step: str, columns: Iterable[Any]) -> tuple[str, ...]:
    """Column names, given one by one or in a list; different ones."""
    names = tuple(_flat(columns))
    for name in names:
        if not isinstance(name, str):
            raise InvalidArgument(f"{step} takes the names of columns; got {shown(name)}")
    if not names:
        raise InvalidArgument(f"{step} needs at least one column name")
    for name in names:
        _refuse_own_name(step, name)
        if names.count(name) > 1:
            raise InvalidArgument(f"{step}: column {name!r} is given twice")
    return names


def column_name(step: str, name: Any) -> None:
    """Check the name of one column."""
    if not isinstance(name, str):
        raise InvalidArgument(f"{step}: key must be the name of one column; got {shown(name)}")
    _refuse_own_name(step, name)


def schema(step: str, given: SchemaLike | None) -> tuple[tuple[str, Any], ...] | None:
    """A schema argument as (column, Polars data type) pairs."""
    import polars as pl

    if given is None:
        return None
    try:
        items = schemas.specified(given)
        pairs = tuple((name, dtype() if isinstance(dtype, type) else dtype) for name, dtype in items.items())
    except Exception as error:
        if is_interrupt(error):
            raise
        raise InvalidArgument(
            f'{step}: schema must be columns and their Polars types, such as {{"n": pl.Int64}}; got '
            f"{shown(given)} "
            f"({error})"
        ) from error
    for name, dtype in pairs:
        if not isinstance(name, str) or not isinstance(dtype, pl.DataType):
            raise InvalidArgument(
                f"{step}: schema has {name!r}: {shown(dtype)}, which is not a column and a Polars type"
            )
    if not pairs:
        raise InvalidArgument(f"{step}: schema has no columns")
    return pairs


def record_function(step: str, fn: Any, *, many: bool = False) -> None:
    """A function of one record, plain or async; generators only where it may give ``many``."""
    _takes(step, fn, 1, "one record")
    called = _called(fn)
    if inspect.isasyncgenfunction(called):
        raise InvalidArgument(
            f"{step}: {shown(fn)} is an async generator; make it return a list, or yield without async"
        )
    if not many and inspect.isgeneratorfunction(called):
        raise InvalidArgument(f"{step}: {shown(fn)} yields, so it may give many records; use .flat_map(fn)")


def batch_function(step: str, fn: Any) -> None:
    """A plain function of a frame."""
    _takes(step, fn, 1, "one pl.DataFrame")
    called = _called(fn)
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise InvalidArgument(
            f"{step}: {shown(fn)} is async; only .map(fn) and .flat_map(fn) take async functions"
        )
    if inspect.isgeneratorfunction(called):
        raise InvalidArgument(f"{step}: {shown(fn)} yields; return one pl.DataFrame per batch")


def own_name(step: str, fn: Any) -> str:
    """The name of a function of a module. Raises InvalidArgument for what has none of its own: a lambda, a function inside of
    another, a method, an object that is called."""
    name = getattr(fn, "__qualname__", "")
    if not isinstance(fn, FunctionType | BuiltinFunctionType) or "." in name or "<" in name:
        raise InvalidArgument(
            f"{step}: name the job with name=, since {shown(fn)} is not a function of a module, and another of that name "
            'would continue this job: for_each(fn, name="send_mail")'
        )
    return str(name)


def reduce_function(name: str, fn: Any) -> None:
    """A plain function of a key and its values."""
    _takes(name, fn, 2, "a key and its values")
    called = _called(fn)
    if inspect.iscoroutinefunction(called) or inspect.isasyncgenfunction(called):
        raise InvalidArgument(f"{name}: {shown(fn)} is async; it must be a plain function")
    if inspect.isgeneratorfunction(called):
        raise InvalidArgument(f"{name}: {shown(fn)} yields; return the value of the key")


def table_name(name: Any) -> None:
    """Text without control characters or slashes, which appears in file names and on the command line."""
    _text("table", name)
    if "/" in name or "\\" in name or name.strip() != name or name in (".", ".."):
        raise InvalidArgument(f"table {name!r} must not hold slashes or begin or end with a space")
    if len(name.encode()) > 200:
        raise InvalidArgument(f"table {name[:40]!r}… is longer than 200 bytes")


def new_table(name: Any) -> None:
    """The same for a table that a program's own job makes: not one of those that hold the histories of live jobs."""
    table_name(name)
    if name.endswith(HISTORY):
        raise InvalidArgument(
            f"table {name!r}: names that end in {HISTORY!r} are those of the histories of live jobs; choose another one"
        )


def live_table(name: Any) -> None:
    """The same for a table that is a live job's: its name is that of the job too, and no map's, stream's or function's."""
    new_table(name)
    _refuse_begin("table", name, WITHOUT_TABLE)


def each_job(name: Any) -> None:
    """The name of a job of ``for_each``. One that begins as those of functions do may be such a job's, which continues."""
    table_name(name)
    _refuse_begin("for_each: job", name, (INTO_MAP, INTO_STREAM))


def _refuse_begin(what: str, name: str, begins: Sequence[str]) -> None:
    if name.startswith(tuple(begins)):
        raise InvalidArgument(
            f"{what} {name!r}: names that begin with {' or '.join(map(repr, begins))} are those of live jobs that have no table; "
            "choose another one"
        )


def version(given: Any) -> None:
    """A version is short text, or None."""
    if given is not None:
        _text("version", given)


def folder(path: Any) -> str:
    """A folder or URL as text."""
    try:
        text = os.fspath(path)
    except TypeError as error:
        raise InvalidArgument(f"path must be a folder or URL; got {shown(path)}") from error
    _text("path", text)
    return str(text)


def one_of(name: str, value: Any, choices: Sequence[str]) -> None:
    """One of these words."""
    if value not in choices:
        raise InvalidArgument(f"{name} must be one of {', '.join(map(repr, choices))}; got {shown(value)}")


def timeout(given: Any) -> float | None:
    """How long to wait in seconds; None is for ever."""
    from onefold.durations import wait_seconds

    return None if given is None else wait_seconds(given)


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise InvalidArgument(f"{name} must be text that is not empty; got {shown(value)}")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in value):
        raise InvalidArgument(f"{name} {value!r} must not hold control characters")


def _expr(step: str, item: Any) -> pl.Expr:
    import polars as pl

    if isinstance(item, pl.Expr):
        return item
    if isinstance(item, str):
        return pl.col(item)
    if item is None or isinstance(item, bool | int | float):
        return pl.lit(item)
    if callable(item):
        raise InvalidArgument(f"{step} takes expressions, not functions; use .map(fn) for {shown(item)}")
    if hasattr(item, "then"):
        raise InvalidArgument(f"{step}: pl.when(...) needs .then(...)")
    try:
        return pl.lit(item)
    except Exception as error:
        if is_interrupt(error):
            raise
        from onefold.compute.plan.windows import WindowSpec

        if isinstance(item, WindowSpec):
            raise InvalidArgument(
                f"{step} takes no window: write .window(...), and then .group_by(...)"
            ) from error
        raise InvalidArgument(f"{step} takes expressions and column names; got {shown(item)}") from error


def _flat(items: Iterable[Any]) -> Iterable[Any]:
    for item in items:
        if isinstance(item, list | tuple | set | frozenset) or inspect.isgenerator(item):
            yield from item
        else:
            yield item


def _refuse_own(step: str, expr: pl.Expr) -> None:
    """Raise InvalidPlan for an expression that reads or makes a column of Onefold's own."""
    for name in (*expr.meta.root_names(), expr.meta.output_name(raise_if_undetermined=False)):
        _refuse_own_name(step, name or "")


def _refuse_own_name(step: str, name: str) -> None:
    if name.startswith(OWN_PREFIX):
        raise InvalidPlan(
            f"{step}: column {name!r}: names that begin with {OWN_PREFIX!r} are Onefold's own; choose another one"
        )


def _refuse_doubles(step: str, exprs: Sequence[pl.Expr]) -> None:
    seen: set[str] = set()
    for expr in exprs:
        if expr.meta.has_multiple_outputs():
            continue
        name = expr.meta.output_name(raise_if_undetermined=False)
        if name is not None and name in seen:
            raise InvalidPlan(
                f"{step}: column {name!r} is made twice; give one of them another name with .alias(...)"
            )
        if name is not None:
            seen.add(name)


def _called(fn: Any) -> Any:
    """The function that runs when ``fn`` is called: through partials, methods and callable objects."""
    while hasattr(fn, "func") and not inspect.isfunction(fn) and not inspect.ismethod(fn):
        fn = fn.func
    if inspect.isroutine(fn) or inspect.isclass(fn):
        return fn
    return getattr(type(fn), "__call__", fn)  # noqa: B004


def _takes(step: str, fn: Any, count: int, what: str) -> None:
    if not callable(fn):
        raise InvalidArgument(f"{step} takes a function of {what}; got {shown(fn)}")
    try:
        signature: inspect.Signature | None = inspect.signature(fn)
    except (TypeError, ValueError):
        signature = None  # Some built-in functions do not tell.
    if signature is None:
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        raise InvalidArgument(
            f"{step} calls its function with {what}, but {shown(fn)} has the signature {signature}"
        ) from error


def _aggregate_help() -> str:
    return f"use onefold.agg ({_AGGREGATES}), or pl.len() and sum, mean, min or max of a column"


def shown(value: Any) -> str:
    """A value as messages quote it: short, with its type."""
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return f"{getattr(value, '__qualname__', None) or repr(value)[:80]}"
    return f"{shown_value(value, 80)} ({type(value).__name__})"
