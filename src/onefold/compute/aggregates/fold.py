"""Any Python state as an aggregate."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import cloudpickle
import polars as pl

from onefold.compute import renames
from onefold.compute.aggregates.base import Aggregate, State
from onefold.machine.undisturbed import is_interrupt


class MergeRaised(Exception):
    """The user's merge function raised; ``__cause__`` is what."""


@dataclass(frozen=True, eq=False)
class Fold(Aggregate):
    """A state of the user's: ``initial()`` per group and split, ``add(state, row)`` per row in the split's
        order, and ``merge(a, b)`` of two splits' states. The value is the state.
     Splits are merged in their random dispatch order, so the result is only well defined if ``merge`` is
    associative and does not care for the order. With ``column`` values are added instead of rows (dicts), nulls
    included.
    """

    kind: ClassVar[str] = "fold"
    native: ClassVar[bool] = False
    initial: Callable[[], Any]
    add: Callable[[Any, Any], Any]
    merge: Callable[[Any, Any], Any]
    column: pl.Expr | None = None
    dtype: Any = None

    def expressions(self) -> tuple[pl.Expr, ...]:
        return () if self.column is None else (self.column,)

    def functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.initial, self.add, self.merge)

    def options(self) -> tuple[Hashable, ...]:
        return (None if self.dtype is None else str(self.dtype),)

    @property
    def whole_rows(self) -> bool:
        return self.column is None

    def collect(self, groups: pl.Series, inputs: Sequence[pl.Series], count: int) -> State:
        states: list[Any] = [self.initial() for _ in range(count)]
        add = self.add
        for group, row in zip(groups.to_list(), inputs[0].to_list(), strict=True):
            states[group] = add(states[group], row)
        return {"p": pl.Series([_dumps(state) for state in states], dtype=pl.Binary)}

    def combine(self, left: State, right: State) -> State:
        pairs = zip(left["p"].to_list(), right["p"].to_list(), strict=True)
        merged = [_dumps(self._merged(renames.loads_value(a), renames.loads_value(b))) for a, b in pairs]
        return {"p": pl.Series(merged, dtype=pl.Binary)}

    def _merged(self, a: Any, b: Any) -> Any:
        try:
            return self.merge(a, b)
        except Exception as error:
            if is_interrupt(error):
                raise
            raise MergeRaised(f"{type(error).__name__}: {error}") from error

    def finish(self, state: State) -> pl.Series:
        values = [renames.loads_value(data) for data in state["p"].to_list()]
        if self.dtype is not None:
            return pl.Series(values, dtype=self.dtype)
        try:
            return pl.Series(values, strict=False)
        except (TypeError, ValueError, OverflowError, pl.exceptions.PolarsError):
            return pl.Series(values, dtype=pl.Object)

    def reference(self, inputs: Sequence[str]) -> pl.Expr:  # noqa: ARG002
        return pl.lit(None, dtype=self.dtype)


_PLAIN = (int, float, str, bytes, bool, type(None))


def _dumps(state: Any) -> bytes:
    # cloudpickle carries classes of the user's program, which other processes do not have; plain values need
    # no such care.
    if type(state) in _PLAIN:
        return pickle.dumps(state, protocol=5)
    return bytes(cloudpickle.dumps(state, protocol=5))
