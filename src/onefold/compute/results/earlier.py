"""Plans of releases that wrote no description, read without running or needing any of the code in them.

Such a plan is a pickle of the job with its functions, which only the Python that wrote it can load. A reader does not need the
functions: everything in the pickle that is neither a plan's own class nor a data type becomes ``Nothing``, and what is left
tells the result's keys, columns, types and aggregates.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from onefold.compute import renames
from onefold.compute.code.functions import stored_by
from onefold.compute.code.references import PLAIN
from onefold.compute.plan.stages import PartialOutput
from onefold.compute.results import description
from onefold.compute.results.description import Description, Maker
from onefold.errors import InvalidValue
from onefold.machine.undisturbed import is_interrupt

if TYPE_CHECKING:
    from onefold.compute.plan.stored_job import StoredJob

_POLARS = frozenset({"Series", "Field", "Categories"})


def describe(data: bytes) -> Description:
    """The description of a stored job that has none. Raises InvalidValue, saying which Python wrote it."""
    python, pickled = stored_by(data)
    try:
        _, stored = _Reader(io.BytesIO(pickled)).load()
        made = description.describe(stored, keys=_keys(stored))
    except Exception as error:  # whatever a pickle of other releases can lead to
        if is_interrupt(error):
            raise
        raise InvalidValue(
            f"the plan, which an earlier release wrote under Python {python}, cannot be read here "
            f"({type(error).__name__}: {error}). Read the table with that release, or run its job again"
        ) from error
    return msgspec.structs.replace(made, made_by=Maker(python, "", ""))


def _keys(stored: StoredJob) -> tuple[str, ...]:
    output = stored.stages[stored.result_stage].output
    if not isinstance(output, PartialOutput):
        return stored.key_columns
    count = len(output.keys)
    if stored.columns is not None and len(stored.columns) == count + len(output.aggs):
        return stored.columns[:count]  # the keys come first
    expressions: Sequence[Any] = output.keys
    return tuple(expression.output_name() for expression in expressions)


class _Inert(type):
    """Whatever is done to the class while a pickle is loaded gives the class again."""

    def __call__(cls, *_: Any, **__: Any) -> Any:
        return cls

    def __setstate__(cls, state: Any) -> None:
        pass

    def __setitem__(cls, key: Any, value: Any) -> None:
        pass

    def append(cls, item: Any) -> None:
        """As of a list."""

    def extend(cls, items: Any) -> None:
        """As of a list."""

    def add(cls, item: Any) -> None:
        """As of a set."""


class Nothing(metaclass=_Inert):
    """Stands for functions, classes and values of the program that submitted the job."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Also when it is the class of an object."""
        return Nothing


class _Expression:
    """A Polars expression that is not decoded: its form changes between versions of Polars, and only a key's name matters."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def output_name(self) -> str:
        """The name of the column that it gives."""
        import polars as pl

        expression = pl.Expr.__new__(pl.Expr)
        expression.__setstate__(self.state)
        return str(expression.meta.output_name())


class _Reader(renames.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = renames.present(module)
        if module in PLAIN and name in PLAIN[module]:
            return super().find_class(module, name)
        if module.startswith("onefold.compute."):
            # Never Nothing: a stage that is not known as one would make another result of the table.
            return super().find_class(module, name)
        if module.partition(".")[0] == "polars":
            if name == "Expr":
                return _Expression
            found = _polars_class(name)
            if found is not None:
                return found
        return Nothing

    def persistent_load(self, pid: Any) -> Any:  # noqa: ARG002
        return Nothing


def _polars_class(name: str) -> Any:
    import polars as pl

    found = getattr(pl, name, None)  # wherever this version of Polars has it
    if isinstance(found, type) and (name in _POLARS or issubclass(found, pl.DataType)):
        return found
    return None
