"""What every mergeable aggregate is: a partial per split, a merge of two partials, a final value.

An aggregate's *state* is a few columns of the partial frame, one row per group, named ``{name}:{suffix}``.
States of two partials are only ever combined row by row for groups that both have; a group that one of them
lacks keeps its state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl

State = dict[str, pl.Series]
"""The state of one aggregate: suffix -> column, one row per group."""

ORDER_COLUMN = "__onefold_order"
"""``struct {path: String, start: Int64, row: Int64}``: where a row came from. A task adds it to its rows when
some aggregate has ``needs_order``.
"""


@dataclass(frozen=True, eq=False)
class Aggregate:
    """One mergeable aggregate. Frozen, picklable by cloudpickle, equal when ``describe()`` is."""

    kind: ClassVar[str]
    native: ClassVar[bool] = True
    """The partial state is made by Polars expressions alone; otherwise by ``collect`` on rows in memory."""

    def expressions(self) -> tuple[pl.Expr, ...]:
        """The inputs, which must be row-local."""
        return ()

    def functions(self) -> tuple[Callable[..., Any], ...]:
        """Python functions that the aggregate calls."""
        return ()

    def options(self) -> tuple[Hashable, ...]:
        """Plain values that change what the aggregate means."""
        return ()

    @property
    def needs_order(self) -> bool:
        """Rows must carry ``ORDER_COLUMN``."""
        return False

    @property
    def whole_rows(self) -> bool:
        """The input is the whole row, as one struct, instead of ``expressions()``."""
        return False

    def describe(self) -> tuple[Any, ...]:
        """``(kind, expressions, functions, options)``, for digests and equality."""
        return (self.kind, self.expressions(), self.functions(), self.options())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Aggregate) or self.kind != other.kind or self.options() != other.options():
            return False
        mine, theirs = self.expressions(), other.expressions()
        return (
            self.functions() == other.functions()
            and len(mine) == len(theirs)
            and all(a.meta.eq(b) for a, b in zip(mine, theirs, strict=True))
        )

    def __hash__(self) -> int:
        return hash((self.kind, self.options(), len(self.expressions())))

    def derived(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:  # noqa: ARG002
        """Native aggregates: more input columns, computed from the inputs of the whole split: name ->
        expression.
        """
        return {}

    def states(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:
        """Native aggregates: suffix -> aggregation over the input columns, for ``group_by().agg`` and
        ``select``.
        """
        raise NotImplementedError

    def bounds(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:  # noqa: ARG002
        """Native aggregates: ``lo`` and ``hi``, the extremes of the whole split, whatever the group, for ``is_exact``."""
        return {}

    def is_exact(self, state: State, bounds: Mapping[str, Any]) -> bool:  # noqa: ARG002
        """Whether what ``states`` gave is right for certain; otherwise it is computed again, with ``witness``."""
        return True

    def witness(self, inputs: Sequence[str], dtypes: Sequence[pl.DataType]) -> dict[str, pl.Expr]:  # noqa: ARG002
        """Native aggregates: more states, from which ``settled`` makes right ones."""
        return {}

    def settled(self, state: State) -> State:
        """The states without those of ``witness``. Raises InvalidValue where no state can be right."""
        return state

    def fits(self, left: State, right: State) -> bool:  # noqa: ARG002
        """Whether ``combine`` of any rows of these two has room in the types of their columns."""
        return True

    def widened(self, state: State) -> State:
        """The same states with room for what ``fits`` found too large."""
        return state

    def collect(self, groups: pl.Series, inputs: Sequence[pl.Series], count: int) -> State:
        """Other aggregates: the states of ``count`` groups, where row i belongs to group ``groups[i]``
        (UInt32).
        """
        raise NotImplementedError

    def combine(self, left: State, right: State) -> State:
        """The states of groups that both sides have, row by row. Same suffixes and dtypes in and out.
        Associative up to float rounding; left is the lower range of the merge tree.
        """
        raise NotImplementedError

    def finish(self, state: State) -> pl.Series:
        """The value per group, as Polars would give it."""
        raise NotImplementedError

    def reference(self, inputs: Sequence[str]) -> pl.Expr:
        """An aggregation over the input columns with the dtype (and the dtype errors) of the final value."""
        raise NotImplementedError

    def totals(self, state: State) -> tuple[pl.Series, pl.Series] | None:  # noqa: ARG002
        """Per group the split total of the value and the number of non-null values, or None: no interval."""
        return None


@dataclass(frozen=True, eq=False)
class ColumnAggregate(Aggregate):
    """An aggregate of one row-local expression."""

    column: pl.Expr

    def expressions(self) -> tuple[pl.Expr, ...]:
        return (self.column,)


def as_expr(column: str | pl.Expr) -> pl.Expr:
    """A column name or an expression, as an expression."""
    return pl.col(column) if isinstance(column, str) else column


def nulls(name: str, dtype: Any, rows: int) -> pl.Series:
    """A column without values: it keeps a type."""
    return pl.Series(name, [None], dtype=dtype).new_from_index(0, rows)


def zero_filled(values: pl.Series) -> pl.Series:
    """Nulls as zero: a split in which a column was of dtype Null contributes nothing to a sum."""
    if values.null_count() == 0 or values.dtype == pl.Null:
        return values
    zero = pl.Series(values.name, [0], dtype=pl.Int64).cast(values.dtype)
    return values.zip_with(values.is_not_null(), zero.new_from_index(0, len(values)))


def as_index(counts: pl.Series) -> pl.Series:
    """Counts in the dtype that Polars gives them, unless one does not fit: then they stay 64 bits wide."""
    top = counts.max()
    fits = not isinstance(top, int) or top < 2**32
    return counts.cast(pl.get_index_type()) if fits else counts


def scattered(groups: pl.Series, values: pl.Series, count: int) -> pl.Series:
    """A column of ``count`` rows with ``values[i]`` at row ``groups[i]`` and null elsewhere. Each group at
    most once.
    """
    found = pl.DataFrame([groups.alias("g"), values.alias("v")])
    every = pl.DataFrame({"g": pl.arange(0, count, dtype=pl.UInt32, eager=True)})
    return every.join(found, on="g", how="left", maintain_order="left")["v"]


def replaced(column: pl.Series, rows: Sequence[int] | pl.Series, values: pl.Series) -> pl.Series:
    """The column with ``values`` at these rows."""
    index = pl.arange(0, len(column), dtype=pl.UInt32, eager=True)
    new = pl.arange(len(column), len(column) + len(values), dtype=pl.UInt32, eager=True)
    return pl.concat([column, values.cast(column.dtype)]).gather(index.scatter(rows, new))
