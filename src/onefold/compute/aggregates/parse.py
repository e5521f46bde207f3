"""Plain Polars aggregations, taken as mergeable ones where they are."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from onefold.compute.aggregates.base import Aggregate
from onefold.compute.aggregates.simple import Count, Max, Mean, Min, Sum
from onefold.errors import InvalidPlan


def from_polars(expr: pl.Expr) -> tuple[str, Aggregate]:
    """The output name and the aggregate of ``pl.len()`` or of ``sum``, ``mean``, ``min``, ``max``, ``count``
        of an expression.
     ``alias`` names the output. Raises InvalidPlan for anything else: what it means would depend on how the input
    is split.
    """
    if not isinstance(expr, pl.Expr):
        raise InvalidPlan(f"unknown aggregate {expr!r}: use onefold.agg, such as n=agg.count()")
    unknown = InvalidPlan(f"unknown aggregate {expr}: use onefold.agg, such as agg.sum(...) or agg.std(...)")
    if expr.meta.has_multiple_outputs():
        raise InvalidPlan(f"{expr} gives several columns: name them one by one with onefold.agg")
    bare, tree = expr, _tree(expr)
    while isinstance(tree, dict) and "Alias" in tree:
        bare, tree = bare.meta.pop()[0], tree["Alias"][0]
    if tree == "Len":
        return expr.meta.output_name(), Count()
    found = tree.get("Agg") if isinstance(tree, dict) else None
    if not isinstance(found, dict) or len(found) != 1:
        raise unknown
    kind, body = next(iter(found.items()))
    options = body if isinstance(body, dict) else {}
    inner = bare.meta.pop()[0]
    agg: Aggregate | None = None
    if kind == "Sum":
        agg = Sum(inner)
    elif kind == "Mean":
        agg = Mean(inner)
    elif kind in ("Min", "Max") and options.get("propagate_nans") is False:
        agg = Min(inner) if kind == "Min" else Max(inner)
    elif kind == "Count" and "include_nulls" in options:
        agg = Count() if options["include_nulls"] else Count(inner)
    if agg is None:
        raise unknown
    return expr.meta.output_name(), agg


def _tree(expr: pl.Expr) -> Any:
    try:
        return json.loads(expr.meta.serialize(format="json"))
    except (pl.exceptions.PolarsError, ValueError):
        return None
