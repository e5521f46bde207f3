"""A stored result as its readers see it: the description, and the stored job only where merging takes its functions."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onefold.compute.blobs.past import BlobFreed
from onefold.compute.blobs.store import BlobMissing, BlobStore, blob_name
from onefold.compute.frames import data_types
from onefold.compute.plan.stages import PartialOutput
from onefold.compute.results import aggregate_data, description
from onefold.errors import InvalidValue

if TYPE_CHECKING:
    from onefold.compute.aggregates import Aggregate
    from onefold.compute.plan.stored_job import StoredJob
    from onefold.compute.results.description import Description


class PlanMissing(BlobMissing):
    """The plan of a run is not among the blobs."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.args = (f"blob {name[:16]}…, which has its plan, is missing; run the job again",)


class StoredResult:
    """What is known of the result of the runs with one plan. Thread-safe."""

    def __init__(self, plan: str, described: Description, job: Callable[[], StoredJob]) -> None:
        """``job`` loads the stored job; it is only called for aggregates that need its functions."""
        self.plan = plan
        self.description = described
        self._job = job

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that identify a row of the result; none for a collected dataset."""
        return self.description.keys

    @property
    def value_columns(self) -> tuple[str, ...]:
        """The names of the aggregates."""
        return tuple(one.name for one in self.description.aggregates)

    @property
    def grouped(self) -> bool:
        """Whether its tasks give partials, which are merged."""
        return self.description.kind == "groups"

    def check_readable(self) -> None:
        """Raise InvalidValue, naming the Python that made it, where this process cannot read the result. Loads no code."""
        described = self.description
        if not described.needs_code:
            _ = self.aggs, self.types
            return
        here = platform.python_version()
        if described.made_by.python.split(".")[:2] != here.split(".")[:2]:
            raise InvalidValue(
                f"agg.fold merges with functions of the program that made the table, which ran under Python "
                f"{described.made_by.python}, and this is {here}. Read it with that Python, or run its job again from here"
            )

    @cached_property
    def aggs(self) -> tuple[tuple[str, Aggregate], ...]:
        """The aggregates by name, to merge and to finish. Raises InvalidValue where this process cannot."""
        described = self.description
        if not described.needs_code:
            return tuple((one.name, aggregate_data.from_data(one)) for one in described.aggregates)
        self.check_readable()
        try:
            stored = self._job()
        except InvalidValue as error:
            raise InvalidValue(f"agg.fold merges with functions of the job, but {error}") from error
        output = stored.stages[described.stage].output
        assert isinstance(output, PartialOutput)
        return output.aggs

    @cached_property
    def output(self) -> PartialOutput:
        """The output of its stage, for readers: keys and aggregates without the expressions that made them."""
        import polars as pl

        return PartialOutput(tuple(pl.lit(None).alias(name) for name in self.key_columns), self.aggs)

    @cached_property
    def types(self) -> tuple[tuple[str, Any], ...] | None:
        """Columns and their types, as far as the plan tells."""
        columns, types = self.description.columns, self.description.types
        if columns is None or types is None:
            return None
        return tuple((name, data_types.from_data(dtype)) for name, dtype in zip(columns, types, strict=True))

    @property
    def empty_schema(self) -> list[tuple[str, Any]]:
        """The columns of the result when it has no rows."""
        import polars as pl

        if self.types is not None:
            return list(self.types)
        return [(name, pl.Null()) for name in self.description.columns or ()]


def read(blobs: BlobStore, plan: str) -> Description:
    """The description of a plan's result. Runs no code of the plan.

    Raises PlanMissing, and InvalidValue for a plan that is damaged, or that another release wrote in a form that cannot be read.
    """
    try:
        data = blobs.get(plan)
    except BlobFreed:
        raise
    except BlobMissing:
        raise PlanMissing(plan) from None
    if blob_name(data) != plan:
        raise InvalidValue(f"blob {plan[:16]}…, which has its plan, is damaged; run the job again")
    found = description.found(data)
    if found is not None:
        return found
    from onefold.compute.results import earlier

    return earlier.describe(data)
