"""A job as it is stored: its plan and the stages that it was compiled into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onefold.compute.plan.nodes import Job
from onefold.compute.plan.stages import PartialOutput, PublishOutput, ReduceLeaf, Stage


@dataclass(frozen=True)
class StoredJob:
    """What the plan blob holds: enough for any process to continue with the run."""

    job: Job
    stages: tuple[Stage, ...]
    columns: tuple[str, ...] | None
    schema: tuple[tuple[str, Any], ...] | None = None
    """Result columns and their types as far as the plan tells them."""

    @property
    def result_stage(self) -> int:
        """The stage whose tasks make up the result (publishing a folder comes after it)."""
        return result_stage_of(self.stages)

    @property
    def key_columns(self) -> tuple[str, ...]:
        """The columns that identify a row of the result; none for a collected dataset."""
        stage = self.stages[self.result_stage]
        if isinstance(stage.output, PartialOutput):
            return tuple(key.meta.output_name() for key in stage.output.keys)
        if any(isinstance(branch.leaf, ReduceLeaf) for branch in stage.branches):
            return ("key",)
        return ()


def result_stage_of(stages: Sequence[Stage]) -> int:
    return max(stage.index for stage in stages if not isinstance(stage.output, PublishOutput))
