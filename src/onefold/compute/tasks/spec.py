"""What one task is: its stage, its input and how it is to be run. Also what stages need of a worker process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onefold import config
from onefold.compute.plan.nodes import FlatMap, Map, MapBatches
from onefold.compute.plan.stages import (
    Failure,
    MapOutput,
    PartialOutput,
    ReduceLeaf,
    Result,
    Stage,
    TaskInput,
)
from onefold.errors import OnefoldError


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One attempt of one task. Running it twice gives the same result (functions that do not are their
    author's).
    """

    stage: Stage
    input: TaskInput
    seed: int = 0
    """64 bits from the task's identity and the run's seed: what ``random`` and ``numpy.random`` start from."""
    inputs: Mapping[int, Sequence[Result]] = field(default_factory=dict)
    """Results of the stages in ``stage.needs``, in dispatch order."""
    isolate: bool = False
    """Find the record that breaks the task: also when a batch raises or the process dies."""
    skip_errors: bool = False
    """Records that break it become dead letters, the others continue."""
    dead_letters_max: int = config.DEAD_LETTERS_PER_TASK_MAX

    @property
    def bytes_in(self) -> int:
        """Input bytes, as progress counts them."""
        return sum(unit.cost for unit in self.input.units)


class TaskError(OnefoldError):
    """An attempt failed; ``failure`` is what is reported to the log."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def has_python(stage: Stage) -> bool:
    """Whether a task of this stage calls functions of the user, so it belongs in a worker process."""
    if isinstance(stage.output, MapOutput):
        return True
    if isinstance(stage.output, PartialOutput) and any(
        aggregate.functions() for _, aggregate in stage.output.aggs
    ):
        return True
    return any(
        isinstance(branch.leaf, ReduceLeaf)
        or any(isinstance(step, Map | FlatMap | MapBatches) for step in branch.steps)
        for branch in stage.branches
    )
