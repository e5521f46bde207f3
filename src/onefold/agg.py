"""Aggregates for ``group_by(...).agg(...)``: ``from onefold import agg``.

Each can be computed piece by piece and merged, which is why a result is readable while its job runs. ``col`` is a column's
name or a row-local ``pl.Expr``. Nulls, dtypes and overflow are as in Polars.

>>> import polars as pl
>>> from onefold import agg
>>> agg.sum("price").kind
'sum'
>>> agg.max(pl.col("word").str.len_chars()).kind
'max'
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from onefold import config
from onefold.arguments import check_whole, shown
from onefold.compute.aggregates import kll, simple
from onefold.compute.aggregates.base import Aggregate, as_expr
from onefold.compute.aggregates.distinct import ApproxNUnique
from onefold.compute.aggregates.fold import Fold
from onefold.compute.aggregates.frequent import MostFrequent
from onefold.compute.aggregates.moments import Std, Var
from onefold.compute.aggregates.pick import First, Last
from onefold.compute.aggregates.quantile import ApproxQuantile
from onefold.errors import InvalidArgument

if TYPE_CHECKING:
    import polars as pl

S = TypeVar("S")
_DDOF_MAX: Final = 1_000_000

__all__ = [
    "Aggregate",
    "approx_n_unique",
    "approx_quantile",
    "count",
    "first",
    "fold",
    "last",
    "max",
    "mean",
    "min",
    "most_frequent",
    "std",
    "sum",
    "var",
]


def count(col: str | pl.Expr | None = None) -> Aggregate:
    """The number of rows, or of non-null values of ``col``."""
    return simple.Count(None if col is None else _expr(col))


def sum(col: str | pl.Expr) -> Aggregate:
    """The sum of the non-null values; 0 without any."""
    return simple.Sum(_expr(col))


def mean(col: str | pl.Expr) -> Aggregate:
    """The mean of the non-null values; null without any."""
    return simple.Mean(_expr(col))


def min(col: str | pl.Expr) -> Aggregate:
    """The smallest value; nulls are ignored, and NaN unless there is nothing else."""
    return simple.Min(_expr(col))


def max(col: str | pl.Expr) -> Aggregate:
    """The largest value; nulls are ignored, and NaN unless there is nothing else."""
    return simple.Max(_expr(col))


def std(col: str | pl.Expr, ddof: int = 1) -> Aggregate:
    """The standard deviation, with n - ``ddof`` in the divisor; null for ``ddof`` values or fewer."""
    return Std(_expr(col), _whole("ddof", ddof, 0, _DDOF_MAX))


def var(col: str | pl.Expr, ddof: int = 1) -> Aggregate:
    """The variance, with n - ``ddof`` in the divisor; null for ``ddof`` values or fewer."""
    return Var(_expr(col), _whole("ddof", ddof, 0, _DDOF_MAX))


def first(col: str | pl.Expr, by: str | pl.Expr | None = None) -> Aggregate:
    """The value in the first row by file and row, or in the row with the smallest ``by`` (null there: not counted)."""
    return First(_expr(col), None if by is None else _expr(by))


def last(col: str | pl.Expr, by: str | pl.Expr | None = None) -> Aggregate:
    """The value in the last row by file and row, or in the row with the largest ``by`` (null there: not counted)."""
    return Last(_expr(col), None if by is None else _expr(by))


def approx_n_unique(col: str | pl.Expr) -> Aggregate:
    """About how many different values, null being one: exact to some hundreds, then a standard error of 1.6 %."""
    return ApproxNUnique(_expr(col))


def approx_quantile(col: str | pl.Expr, q: float, *, k: int = kll.K) -> Aggregate:
    """The value at quantile ``q`` (0 to 1), nearest rank. Exact up to ``k`` values a group, then a rank error below 1 %."""
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 <= q <= 1:
        raise InvalidArgument(f"q={shown(q)}: a quantile is a number from 0 to 1, such as 0.5 for the median")
    return ApproxQuantile(_expr(col), float(q), _whole("k", k, 8, config.AGGREGATE_K_MAX))


def most_frequent(col: str | pl.Expr, k: int) -> Aggregate:
    """The ``k`` most frequent non-null values: a list of structs {value, count}, largest count first, then by value.

    Exact up to 1024 (or 16 ``k``) different values a group; beyond, counts are never too low.
    """
    return MostFrequent(_expr(col), _whole("k", k, 1, config.AGGREGATE_K_MAX))


def fold(
    initial: Callable[[], S],
    add: Callable[[S, Any], S],
    merge: Callable[[S, S], S],
    *,
    col: str | pl.Expr | None = None,
    dtype: Any = None,
) -> Aggregate:
    """A state of your own: ``add(state, row)`` for each row (a dict), ``merge(a, b)`` of two parts' states.

    With ``col`` its values are added instead of rows. ``merge`` must be associative and not care for the order of the
    parts. ``dtype`` is the Polars dtype of the result's column; without it the column's dtype is what Polars infers.
    """
    for name, function in (("initial", initial), ("add", add), ("merge", merge)):
        if not callable(function):
            raise InvalidArgument(
                f"{name}={function!r}: agg.fold takes three functions, initial(), add(state, row), merge(a, b)"
            )
    return Fold(initial, add, merge, None if col is None else _expr(col), dtype)


def _expr(col: Any) -> pl.Expr:
    import polars as pl

    if not isinstance(col, str | pl.Expr):
        raise InvalidArgument(f"{col!r}: an aggregate takes a column's name or a pl.Expr")
    expr = as_expr(col)
    if expr.meta.has_multiple_outputs():
        shown = repr(col) if isinstance(col, str) else str(col)
        raise InvalidArgument(
            f"{shown} stands for several columns, and an aggregate takes one: name one column for each aggregate. "
            "To count rows, write agg.count() without a column"
        )
    return expr


def __getattr__(name: str) -> Any:
    raise AttributeError(
        f"onefold.agg has no {name!r}; it has {', '.join(item for item in __all__ if item != 'Aggregate')}"
    )


def _whole(name: str, value: int, least: int, most: int) -> int:
    check_whole(name, value, least=least, most=most)
    return value
