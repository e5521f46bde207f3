"""Loading a stored job without running any code that it carries: for nodes with ``code="reference"``.

A stored job is a pickle, and a pickle may call anything while it is loaded. Here it can call nothing but the constructors of
plans, stages, aggregates and Polars' types. A function of an installed package stands in the pickle as a name; it becomes an
inert ``Reference`` first, and the function itself when all is loaded. Whatever else the pickle wants to call is refused, which
is what functions of the submitting program, lambdas and closures need.
"""

from __future__ import annotations

import importlib
import io
import pickle
import sys
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, FunctionType
from typing import Any, Final

from onefold.compute import renames
from onefold.compute.code.user_code import is_user_module
from onefold.compute.plan.stages import MapOutput, PartialOutput, ReduceLeaf
from onefold.errors import InvalidValue

OWN: Final = (
    "onefold.compute.plan.nodes",
    "onefold.compute.plan.stages",
    "onefold.compute.plan.stored_job",
    "onefold.compute.plan.windows",
    "onefold.compute.live.plan",
    "onefold.compute.live.operators",
    "onefold.compute.aggregates",
    "onefold.state.encoding.positions",
)
"""Modules (and packages) whose classes make up a stored job, by their present names."""
_POLARS: Final = frozenset({"Expr", "Series", "Field", "Categories"})
PLAIN: Final = {
    "builtins": frozenset({"set", "frozenset", "complex", "bytearray"}),
    "datetime": frozenset({"date", "datetime", "time", "timedelta", "timezone"}),
    "decimal": frozenset({"Decimal"}),
    "zoneinfo": frozenset({"ZoneInfo._unpickle", "ZoneInfo"}),
}
_POLARS_CODE: Final = (b"PLPYFN", b"PLPYUDF")
"""How pickled functions begin inside of Polars' own form of expressions."""


class CodeRefused(InvalidValue):
    """The stored job carries code, and this process takes none."""


class Reference:
    """The name of something that is not looked up until the job is loaded."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise CodeRefused(
            "this job carries code of its own (functions of the program that submitted it, lambdas or closures), and this node "
            "runs only functions of installed packages. Put them into a package that the nodes have, or use nodes that take code"
        )

    def function(self) -> Any:
        """The function or class that is meant. Raises CodeRefused when this node has no such thing, or must not run it."""
        top = self.module.partition(".")[0]
        if top in sys.stdlib_module_names:
            raise CodeRefused(
                f"this node runs no functions of Python's own library, such as {self.module}.{self.name}, for jobs; "
                f"call it from a function of an installed package"
            )
        try:
            found: Any = importlib.import_module(self.module)
            for part in self.name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError) as error:
            raise CodeRefused(
                f"{self.module}.{self.name} is not installed here: {error}. Install the package on the nodes"
            ) from error
        if is_user_module(self.module):
            raise CodeRefused(
                f"{self.module} is not an installed package here; this node runs functions of those only"
            )
        if not isinstance(found, FunctionType | BuiltinFunctionType | type):
            raise CodeRefused(f"{self.module}.{self.name} is not a function")
        return found


def load(pickled: bytes) -> Any:
    """The (modules, job) that the bytes hold. Raises CodeRefused, and what unpickling raises for broken bytes."""
    if any(mark in pickled for mark in _POLARS_CODE):
        raise CodeRefused(
            "this job carries a Python function inside of a Polars expression, and this node takes no code"
        )
    modules, job = _Unpickler(io.BytesIO(pickled)).load()
    if modules:
        raise CodeRefused(
            f"this job carries modules of its own ({', '.join(sorted(modules))}), and this node takes no code"
        )
    job = _resolved(job, {})
    _check_data(job)
    return {}, job


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = renames.present(module)
        if module in PLAIN and name in PLAIN[module]:
            return super().find_class(module, name)
        if any(module == own or module.startswith(own + ".") for own in OWN):
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        if module.partition(".")[0] == "polars":
            found = super().find_class(module, name)
            if isinstance(found, type) and (name in _POLARS or _is_data_type(found)):
                return found
        return Reference(module, name)

    def persistent_load(self, pid: Any) -> Any:
        raise CodeRefused(f"this job refers to {pid!r}, which no stored job does")


def _is_data_type(found: type) -> bool:
    import polars as pl

    return issubclass(found, pl.DataType)


def _resolved(item: Any, done: dict[int, tuple[Any, Any]]) -> Any:
    """The item with functions instead of references, in tuples, lists, dicts and frozen dataclasses."""
    if isinstance(item, Reference):
        return item.function()
    if id(item) in done:
        return done[id(item)][1]
    done[id(item)] = item, item
    if type(item) is tuple:
        parts = [_resolved(part, done) for part in item]
        if any(after is not before for after, before in zip(parts, item, strict=True)):
            done[id(item)] = item, tuple(parts)
        return done[id(item)][1]
    if type(item) is list:
        item[:] = [_resolved(part, done) for part in item]
    elif type(item) is dict:
        item.update({key: _resolved(value, done) for key, value in item.items()})
    elif is_dataclass(item) and not isinstance(item, type):
        for part in fields(item):
            before = getattr(item, part.name, None)
            after = _resolved(before, done)
            if after is not before:
                object.__setattr__(item, part.name, after)
    return item


def _check_data(job: Any) -> None:
    """Refuse jobs whose tasks hand pickled values to each other: those are code as well for who reads them."""
    from onefold.compute.aggregates.fold import Fold

    for part in getattr(job, "parts", ()):  # of a live job
        if any(isinstance(one, Fold) for _, one in getattr(part.operator, "aggregates", ())):
            raise CodeRefused(
                "agg.fold keeps pickled Python values as its state, and this node takes none. Use the other aggregates, or "
                "nodes that take code"
            )
    for stage in getattr(job, "stages", () if hasattr(job, "parts") else job):
        pairs = isinstance(stage.output, MapOutput) or any(
            isinstance(branch.leaf, ReduceLeaf) for branch in stage.branches
        )
        states = isinstance(stage.output, PartialOutput) and any(
            isinstance(aggregate, Fold) for _, aggregate in stage.output.aggs
        )
        if pairs or states:
            raise CodeRefused(
                f"{'map_reduce' if pairs else 'agg.fold'} hands pickled Python values from task to task, and this node takes "
                f"none. Use group_by and the other aggregates, or nodes that take code"
            )
