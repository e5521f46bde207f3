"""Which columns of a source a stage uses, and their types: what inference over all files decides.

The types of CSV and JSON lines, and of partition folders, are inferred over all files of a job, so one more file may
change how the others are read. A task's result depends on the types of the columns that its plan uses, and of no others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from onefold.compute.plan.nodes import Explode, Filter, Select, WithColumns
from onefold.compute.plan.stages import Branch, BroadcastJoin, Output, PartialOutput, SourceLeaf, Step

if TYPE_CHECKING:
    import polars as pl

Used = frozenset[str] | None
"""Names of columns; None: all that there are."""
_RIGHT = "_right"
"""What a join appends to a name that both sides have."""


def used_types(branch: Branch, output: Output) -> tuple[tuple[str, str], ...]:
    """(column, type) of the columns of the branch's source that its rows and their output depend on.

    In the order of the columns where all are used (their order is the result's then), else by name. Empty for a branch
    that reads what other stages made: the names of those stages' tasks have their types.
    """
    leaf = branch.leaf
    if not isinstance(leaf, SourceLeaf):
        return ()
    used = _of_output(output)
    for step in reversed(branch.steps):
        used = _before(step, used)
    if used is None:
        return tuple((name, repr(dtype)) for name, dtype in leaf.schema)
    return tuple(sorted((name, repr(dtype)) for name, dtype in leaf.schema if name in used))


def _of_output(output: Output) -> Used:
    if not isinstance(output, PartialOutput) or any(agg.whole_rows for _, agg in output.aggs):
        return None
    return _roots([*output.keys, *(expr for _, agg in output.aggs for expr in agg.expressions())])


def _before(step: Step, used: Used) -> Used:
    """What a step needs of the rows before it, when ``used`` is used of those after it."""
    match step:
        case Select(exprs=exprs):
            return _roots(exprs if used is None else [expr for expr in exprs if _makes(expr, used)])
        case WithColumns(exprs=exprs):
            if used is None:
                return None
            made = [expr for expr in exprs if _makes(expr, used)]
            names = {_name(expr) for expr in made}
            return _both(used - {name for name in names if name is not None}, _roots(made))
        case Filter(predicates=predicates):
            return _both(used, _roots(predicates))
        case Explode(columns=columns):
            return _both(used, frozenset(columns))
        case BroadcastJoin(on=on):
            # A name of the other side is left as it is, unless this side has it too: then both count.
            return _both(_both(used, frozenset(on)), _without_suffix(used))
    return None  # a function is handed whole records


def _both(one: Used, other: Used) -> Used:
    return None if one is None or other is None else one | other


def _without_suffix(used: Used) -> Used:
    return None if used is None else frozenset(name.removesuffix(_RIGHT) for name in used)


def _roots(exprs: Iterable[pl.Expr]) -> Used:
    """The columns that these expressions read; None where that depends on which columns there are."""
    names: set[str] = set()
    for expr in exprs:
        if expr.meta.has_multiple_outputs():  # also selectors inside of an expression
            return None
        names.update(expr.meta.root_names())
    return frozenset(names)


def _makes(expr: pl.Expr, used: frozenset[str]) -> bool:
    """Whether a column that is used may be made by this expression."""
    name = _name(expr)
    return name is None or name in used


def _name(expr: pl.Expr) -> str | None:
    if expr.meta.has_multiple_outputs():
        return None
    name: Any = expr.meta.output_name(raise_if_undetermined=False)
    return name if isinstance(name, str) else None
