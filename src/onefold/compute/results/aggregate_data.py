"""Aggregates as plain data: what merging and finishing their states takes, without the expressions that made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from onefold.compute.frames import data_types
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    from onefold.compute.aggregates import Aggregate

STATE: Final = 1
"""Version of the state columns of all aggregates. One whose states change gets a number of its own, and code for both."""


class AggregateData(msgspec.Struct, frozen=True, array_like=True):
    """One aggregate of a stored result."""

    name: str
    """The column."""
    kind: str
    parameters: dict[str, Any] = {}
    state: int = STATE
    """Version of its state columns."""


@dataclass(frozen=True)
class _Kind:
    parameters: tuple[str, ...] = ()
    """Attributes of the aggregate that its merges and its value depend on."""


_KINDS: Final = {
    "count": _Kind(),
    "sum": _Kind(),
    "mean": _Kind(),
    "min": _Kind(),
    "max": _Kind(),
    "var": _Kind(("ddof",)),
    "std": _Kind(("ddof",)),
    "first": _Kind(),
    "last": _Kind(),
    "approx_n_unique": _Kind(("log2_buckets",)),
    "approx_quantile": _Kind(("q", "k")),
    "most_frequent": _Kind(("k",)),
}
_ORDERED: Final = ("first", "last")


def to_data(name: str, aggregate: Aggregate) -> AggregateData:
    """The aggregate as data."""
    kind = _KINDS.get(aggregate.kind)
    parameters = {field: getattr(aggregate, field) for field in kind.parameters} if kind is not None else {}
    if aggregate.kind in _ORDERED:
        parameters["by"] = getattr(aggregate, "by", None) is not None
    dtype = getattr(aggregate, "dtype", None)
    if aggregate.kind == "fold" and dtype is not None:
        parameters["dtype"] = data_types.to_data(dtype)
    return AggregateData(name, aggregate.kind, parameters)


def needs_code(data: AggregateData) -> bool:
    """Whether only the stored job knows how its states are merged: ``agg.fold``, whose merge is a function of the user's."""
    return data.kind not in _KINDS


def from_data(data: AggregateData) -> Aggregate:
    """An aggregate that merges and finishes such states, and cannot make new ones. Not for those that need code.

    Raises InvalidValue for states of a later release.
    """
    import polars as pl

    from onefold.compute.aggregates.distinct import ApproxNUnique
    from onefold.compute.aggregates.frequent import MostFrequent
    from onefold.compute.aggregates.moments import Std, Var
    from onefold.compute.aggregates.pick import First, Last
    from onefold.compute.aggregates.quantile import ApproxQuantile
    from onefold.compute.aggregates.simple import Count, Max, Mean, Min, Sum

    classes: dict[str, Any] = {
        "count": Count, "sum": Sum, "mean": Mean, "min": Min, "max": Max, "var": Var, "std": Std, "first": First, "last": Last,
        "approx_n_unique": ApproxNUnique, "approx_quantile": ApproxQuantile, "most_frequent": MostFrequent,
    }  # fmt: skip
    if data.state != STATE:
        raise InvalidValue(
            f"the states of column {data.name!r} (agg.{data.kind}) have format {data.state}, which a later release writes; "
            "update this one"
        )
    parameters = dict(data.parameters)
    if data.kind in _ORDERED:
        parameters["by"] = pl.lit(None) if parameters.get("by") else None
    try:
        found: Aggregate = classes[data.kind](pl.lit(None), **parameters)
    except (KeyError, TypeError) as error:
        raise InvalidValue(
            f"agg.{data.kind} of column {data.name!r} with {data.parameters} is unknown here: a later release wrote it; "
            "update this one"
        ) from error
    return found
