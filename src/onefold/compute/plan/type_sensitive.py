"""On which columns of a Python step the rest of its task depends by their types, not by their values alone.

The types of a step without ``schema=`` are found task by task. A merge brings them to their common types, so columns that
are only grouped by, aggregated as they are, joined by a shuffle or kept need no more. Expressions, functions that are handed
records, ``agg.fold`` and ``agg.approx_n_unique`` see the types of their own task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from onefold.compute.plan.expressions import tree
from onefold.compute.plan.nodes import Filter, FlatMap, Map, MapBatches, Select, WithColumns
from onefold.compute.plan.stages import (
    Branch,
    BroadcastJoin,
    MapOutput,
    Output,
    PartialOutput,
    ReduceLeaf,
    Stage,
    Step,
)

if TYPE_CHECKING:
    import polars as pl

LEAF: Final = -1
"""The number of the step that a ``ReduceLeaf`` is."""
FLOAT, NUMBER, RECORD, NULLS, EXACT = "fvrnx"
"""How a column matters, from the least: as Float64; as numbers, in which 9 and 9.0 are one; as Python values; by its type, where
a null is a null of any type; by its type.
"""
_ORDER: Final = FLOAT + NUMBER + RECORD + NULLS + EXACT
_BY_VALUE: Final = {"fold": RECORD, "approx_n_unique": NUMBER}
"""Aggregates that are made of Python values: their states do not tell of what types these were."""
_RIGHT: Final = "_right"
"""What a join appends to a name that both sides have."""
_NULL_FUNCTIONS: Final = frozenset(
    {
        "Abs",
        "Ceil",
        "Exp",
        "Floor",
        "Log",
        "Log1p",
        "Negate",
        "Round",
        "RoundSF",
        "Sign",
        "Trigonometry",
        "Pow",
    }
    | {"TemporalExpr", "StringExpr", "Boolean"}
)
"""Functions and families that give null for null, whatever its type, but for those that look at several columns:"""
_OF_SEVERAL: Final = frozenset({"ConcatHorizontal", "Format", "AllHorizontal", "AnyHorizontal"})


@dataclass(frozen=True, slots=True)
class Needs:
    """What matters of a step's columns: how those that are named do, and how all others (None: they do not)."""

    modes: Mapping[str, str]
    rest: str | None = None

    def mode(self, column: str) -> str | None:
        """How this column matters; None when it does not."""
        mode = self.modes.get(column)
        return (
            self.rest
            if mode is None
            else mode
            if self.rest is None
            else max(mode, self.rest, key=_ORDER.index)
        )

    @property
    def all_columns(self) -> bool:
        """Whether it matters which columns there are."""
        return self.rest is not None


def needs_of(branch: Branch, output: Output) -> dict[int, Needs]:
    """Number of a step whose types are found from values -> what matters of them; only steps where something does."""
    starts = [LEAF] if isinstance(branch.leaf, ReduceLeaf) else []
    starts += [
        number
        for number, step in enumerate(branch.steps)
        if isinstance(step, Map | FlatMap | MapBatches) and step.schema is None
    ]
    found = {start: _Walk().run(branch.steps[start + 1 :], output) for start in starts}
    return {start: needs for start, needs in found.items() if needs.modes or needs.rest}


def is_sensitive(stage: Stage) -> bool:
    """Whether tasks of the stage may note types, what their functions gave, or what keys they have met."""
    return any(
        isinstance(branch.leaf, ReduceLeaf)
        or any(isinstance(step, Map | FlatMap | MapBatches) for step in branch.steps)
        for branch in stage.branches
    )


class _Walk:
    """From one step on to the next function, or to the end of the task."""

    def __init__(self) -> None:
        self._modes: dict[str, str] = {}
        self._rest: str | None = None
        self._made: dict[str, frozenset[str]] = {}
        """Names that expressions made -> the columns behind them."""
        self._closed = False
        """No column of the step is left under its own name, but for those in ``_made``."""
        self._joined = False

    def run(self, steps: Iterable[Step], output: Output) -> Needs:
        for step in steps:
            match step:
                case Map() | FlatMap():
                    self._all(RECORD)
                    return Needs(self._modes, self._rest)
                case MapBatches():
                    self._all(EXACT)
                    return Needs(self._modes, self._rest)
                case Select(exprs=exprs):
                    self._make(exprs, closed=True)
                case WithColumns(exprs=exprs):
                    self._make(exprs, closed=False)
                case Filter(predicates=predicates):
                    for predicate in predicates:
                        self._use_expr(predicate)
                case BroadcastJoin(on=on):
                    self._use(on, NULLS)
                    self._joined = True
        match output:
            case MapOutput():
                self._all(RECORD)
            case PartialOutput(keys=keys, aggs=aggs):
                for key in keys:
                    self._use_expr(key)
                for _, agg in aggs:
                    if agg.whole_rows:
                        self._all(RECORD)
                    for expr in agg.expressions():
                        self._use_expr(expr)
                        if agg.kind in _BY_VALUE and not expr.meta.has_multiple_outputs():
                            self._use(expr.meta.root_names(), _BY_VALUE[agg.kind])
        return Needs(self._modes, self._rest)

    def _make(self, exprs: Iterable[pl.Expr], *, closed: bool) -> None:
        made: dict[str, frozenset[str]] = {}
        for expr in exprs:
            self._use_expr(expr)
            name = None
            if not expr.meta.has_multiple_outputs():
                name = expr.meta.output_name(raise_if_undetermined=False)
            if isinstance(name, str):
                fixed = _is_cast(tree(expr))  # of one type in every task
                behind = [] if fixed else [self._behind(root) for root in expr.meta.root_names()]
                made[name] = frozenset[str]().union(*behind)
            else:
                closed = False
        self._made = made if closed else {**self._made, **made}
        self._closed = self._closed or closed

    def _use_expr(self, expr: pl.Expr) -> None:
        if expr.meta.has_multiple_outputs():  # which columns, depends on which there are, or of what types
            self._all(EXACT)
            return
        mode = _mode(tree(expr))
        if mode is not None:
            self._use(expr.meta.root_names(), mode)

    def _use(self, names: Iterable[str], mode: str) -> None:
        for name in names:
            for column in self._behind(name):
                self._modes[column] = max(self._modes.get(column, mode), mode, key=_ORDER.index)

    def _all(self, mode: str) -> None:
        self._use(list(self._made), mode)
        if not self._closed:
            self._rest = max(self._rest or mode, mode, key=_ORDER.index)

    def _behind(self, name: str) -> frozenset[str]:
        """The step's columns that a column of now is made of."""
        if name in self._made:
            return self._made[name]
        if self._closed:
            return frozenset()
        return frozenset({name, name.removesuffix(_RIGHT)} if self._joined else {name})


def _mode(node: Any) -> str | None:
    """How the columns in an expression matter to it; None for a column as it is."""
    match node:
        case {"Alias": [inner, _]}:
            return _mode(inner)
        case {"Column": _}:
            return None
        case {"Cast": {"expr": {"Column": _}, "dtype": {"Literal": "Float64"}}}:
            return FLOAT
    return NULLS if _null_gives_null(node) else EXACT


def _is_cast(node: Any) -> bool:
    match node:
        case {"Alias": [inner, _]}:
            return _is_cast(inner)
        case {"Cast": _}:
            return True
    return False


def _null_gives_null(node: Any) -> bool:
    """Whether the expression is the same for a null of any type."""
    match node:
        case {"Column": _} | {"Literal": _}:
            return True
        case {"Alias": [inner, _]} | {"Cast": {"expr": inner}}:
            return _null_gives_null(inner)
        case {"BinaryExpr": {"left": left, "right": right}}:
            return _null_gives_null(left) and _null_gives_null(right)
        case {"Function": {"input": inputs, "function": function}}:
            name, member = (function, None) if isinstance(function, str) else next(iter(function.items()))
            if isinstance(member, dict):
                member = next(iter(member), None)
            return (
                name in _NULL_FUNCTIONS
                and not (isinstance(member, str) and member in _OF_SEVERAL)
                and all(map(_null_gives_null, inputs))
            )
    return False
