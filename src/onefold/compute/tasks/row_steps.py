"""Steps with Python functions on the rows of a live job: each row with the record that it came from and its time.

A record that raises, or whose results fit no column, is a letter, and the others continue without it. ``mark`` says in shared
memory which records are about to be worked on, so the process that runs this one can tell which record it died of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import polars as pl

from onefold.compute.frames.shown_values import shown_value, unreadable_rows
from onefold.compute.frames.values_as_text import safe_repr
from onefold.compute.plan.nodes import Explode, Filter, FlatMap, Map, MapBatches, Select, WithColumns
from onefold.compute.plan.stages import DeadLetter
from onefold.compute.tasks.failures import letter_of
from onefold.compute.tasks.pipeline import apply_lazy
from onefold.compute.tasks.python_steps import BatchStep, RecordStep, Values, records_of
from onefold.errors import InvalidValue

RowStep = Select | WithColumns | Filter | Explode | Map | FlatMap | MapBatches
PYTHON: Final = (Map, FlatMap, MapBatches)
ORIGIN: Final = "__onefold_row"
"""UInt32: the row of the frame that a row came from; null behind ``map_batches``, whose function keeps that to itself."""
_HERE: Final = "__onefold_here"


@dataclass(frozen=True)
class LiveSteps:
    """What is sent to a worker process of a live job: the steps of each input. ``stages``: none."""

    steps: tuple[tuple[RowStep, ...], ...]
    stages: tuple[Any, ...] = ()


@dataclass
class Done:
    """What the steps made of a frame."""

    frames: list[pl.DataFrame] = field(default_factory=list)
    """With ``ORIGIN``, in order."""
    letters: list[tuple[int, DeadLetter]] = field(default_factory=list)
    """(row, why)."""


Mark = Callable[[int, int], None]


def run(steps: Sequence[RowStep], frame: pl.DataFrame, mark: Mark) -> Done:
    """The frame's rows after all steps."""
    done = Done()
    _run(steps, frame, 0, mark, done)
    done.letters.sort(key=lambda letter: letter[0])
    return done


def _run(steps: Sequence[RowStep], frame: pl.DataFrame, first: int, mark: Mark, done: Done) -> None:
    letters: list[tuple[int, DeadLetter]] = []
    try:
        rows = _Rows(frame, first, mark, letters).after(steps)
    except BaseException as error:  # sys.exit() in a function is of its record too
        if frame.height <= 1:
            record = (
                safe_repr({column.name: shown_value(column, 0) for column in frame}) if frame.height else ""
            )
            done.letters.append((first, letter_of(error, "", record)))
            return
        half = frame.height // 2
        _run(steps, frame.head(half), first, mark, done)
        _run(steps, frame.slice(half), first + half, mark, done)
        return
    done.letters += letters
    if rows is not None:
        done.frames.append(rows)


class _Rows:
    """The rows of a frame on their way through the steps."""

    def __init__(
        self, frame: pl.DataFrame, first: int, mark: Mark, letters: list[tuple[int, DeadLetter]]
    ) -> None:
        self._first, self._height, self._mark = first, frame.height, mark
        self._letters = letters
        self._rows: pl.DataFrame | Values = frame
        self._bare = False
        self._origins: list[int | None] = list(range(first, first + frame.height))

    def after(self, steps: Sequence[RowStep]) -> pl.DataFrame | None:
        """The rows after the steps, with ``ORIGIN``; None when there are none and their columns are unknown."""
        for step in steps:
            self._mark(self._first, self._first + self._height)
            if isinstance(step, Map | FlatMap):
                if not self._call(RecordStep(step)):
                    return None
            elif isinstance(step, MapBatches):
                rows = BatchStep(step).call(self._frame())
                self._rows, self._bare, self._origins = rows, False, [None] * rows.height
            else:
                self._query(step)
        return self._frame().with_columns(pl.Series(ORIGIN, self._origins, dtype=pl.UInt32))

    def _frame(self) -> pl.DataFrame:
        return self._rows.to_frame() if isinstance(self._rows, Values) else self._rows

    def _set_unreadable_aside(self) -> None:
        """Rows that cannot become values of Python are letters."""
        if isinstance(self._rows, Values):
            return
        wrong = unreadable_rows(self._rows)
        for position, reason in wrong.items():
            row, error = self._origins[position], InvalidValue(reason)
            if row is None:
                raise error
            values = {column.name: shown_value(column, position) for column in self._rows}
            self._letters.append((row, letter_of(error, "", safe_repr(values))))
        if wrong:
            keep = [position for position in range(self._rows.height) if position not in wrong]
            self._rows, self._origins = self._rows[keep], [self._origins[position] for position in keep]

    def _call(self, step: RecordStep) -> bool:
        self._set_unreadable_aside()
        rows, origins = self._rows, self._origins
        if isinstance(rows, Values):
            records: Sequence[Any] = rows.items
        elif self._bare and rows.width == 1:
            records = rows.to_series().to_list()
        else:
            records = records_of(rows)

        def on_error(position: int, record: Any, error: BaseException) -> None:
            row = origins[position]
            if row is None:
                raise error
            self._letters.append((row, letter_of(error, "", safe_repr(record))))

        def on_record(position: int) -> None:
            row = origins[position]
            if row is not None:
                self._mark(row, row + 1)

        alone = (lambda position: None) if step.is_async else on_record  # noqa: ARG005
        given, positions = step.call_each(records, on_error, alone)
        found = step.gather(given)
        if found is None:
            return False
        self._rows, self._bare = found, step.gives_bare
        self._origins = [origins[position] for position in positions]
        return True

    def _query(self, step: Select | WithColumns | Filter | Explode) -> None:
        rows = self._frame().with_columns(pl.Series(_HERE, self._origins, dtype=pl.UInt32))
        if isinstance(step, Select):
            step = Select(step.input, (*step.exprs, pl.col(_HERE)))
        after = apply_lazy(step, rows.lazy(), no_stage).collect()
        self._rows, self._bare, self._origins = after.drop(_HERE), False, after[_HERE].to_list()


def no_stage(stage: int) -> Any:
    """For ``apply_lazy`` on steps that join nothing."""
    raise AssertionError(f"a live job has no stage {stage}")
