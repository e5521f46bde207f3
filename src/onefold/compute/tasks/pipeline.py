"""The row steps of a branch, run on one chunk of its rows after another.

Two ways to run a chunk. *Fast*: consecutive expression steps are one lazy query, functions get whole lists of
records. *Tracked*: step by step, with the number of the input row that each row came from, so that a record
that raises can be named. A chunk that breaks in a way that names no record (a batch function, an expression,
a value that fits no column) is cut into smaller ones down to one record. The fast way falls back to the tracked one to
explain a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

from onefold.compute.frames.values_as_text import safe_repr
from onefold.compute.plan.nodes import Explode, Filter, FlatMap, Map, MapBatches, Select, WithColumns
from onefold.compute.plan.stages import BroadcastJoin, DeadLetter, Step
from onefold.compute.tasks import joins
from onefold.compute.tasks.failures import LocatedError, RecordError, cause_of, letter_of
from onefold.compute.tasks.found_types import Found
from onefold.compute.tasks.python_steps import BatchStep, PairStep, RecordStep, Values, records_of

if TYPE_CHECKING:
    import polars as pl

_ORIGIN = "__onefold_origin__"

ExprStep = Select | WithColumns | Filter | Explode | BroadcastJoin
OnLetter = Callable[[DeadLetter, str], None]
_SMALLER: Final = 8
"""A piece that breaks is cut to this part of it."""
SmallFrames = Callable[[int], "pl.DataFrame"]
"""Stage index -> the whole output of that stage, for broadcast joins."""


def apply_lazy(step: ExprStep, rows: pl.LazyFrame, small: SmallFrames) -> pl.LazyFrame:
    """One expression step as part of a lazy query; rows keep their order."""
    import polars as pl

    match step:
        case Select(exprs=exprs):
            if all(not expr.meta.root_names() and not expr.meta.has_multiple_outputs() for expr in exprs):
                # Only literals: Polars would give one row whatever the input, and so one per split.
                return rows.with_columns(*exprs).select(expr.meta.output_name() for expr in exprs)
            return rows.select(*exprs)
        case WithColumns(exprs=exprs):
            return rows.with_columns(*exprs)
        case Filter(predicates=predicates):
            return rows.filter(*predicates)
        case Explode(columns=columns):
            types = rows.collect_schema()
            nulls = [column for column in columns if types.get(column) == pl.Null]
            if nulls:  # of lists that are all null
                rows = rows.with_columns(pl.col(nulls).cast(pl.List(pl.Null)))
            return rows.explode(*columns, empty_as_null=False, keep_nulls=False)
        case BroadcastJoin():
            return joins.broadcast(step, rows, small(step.stage))


@dataclass(slots=True)
class Tracked:
    """Rows and, for each, the input row it came from."""

    rows: pl.DataFrame | Values
    origins: list[int]


class Pipeline:
    """The steps of one branch for one task."""

    def __init__(
        self,
        steps: Sequence[Step],
        small: SmallFrames,
        pairs: Callable[..., Any] | None = None,
        found: Found | None = None,
    ) -> None:
        """``pairs``: the map function of a map stage, which comes after all steps and gives (key, value)
        pairs. ``found`` notes the types of what functions give.
        """
        self._small = small
        self._found = found if found is not None else Found(0, {})
        self._numbers: list[int] = []
        self._gives_pairs = pairs is not None
        self._parts: list[list[ExprStep] | RecordStep | BatchStep] = []
        for number, step in enumerate(steps):
            before = len(self._parts)
            match step:
                case Map() | FlatMap():
                    self._parts.append(RecordStep(step))
                case MapBatches():
                    self._parts.append(BatchStep(step))
                case _ if self._parts and isinstance(self._parts[-1], list):
                    self._parts[-1].append(step)
                case _:
                    self._parts.append([step])
            if len(self._parts) > before:
                self._numbers.append(number)
        if pairs is not None:
            self._parts.append(PairStep(pairs))
            self._numbers.append(len(steps))

    @property
    def batch_rows(self) -> int:
        """The most rows that a ``map_batches`` of it asks for at a time."""
        return max((part.batch_rows for part in self._parts if isinstance(part, BatchStep)), default=0)

    def run(self, frame: pl.DataFrame) -> pl.DataFrame | Values | None:
        """A chunk's rows after all steps; None when there are none and their columns are unknown."""
        rows: pl.DataFrame | Values | None = frame
        bare = False
        self._found.again()
        aligned = True  # row i is still made of the chunk's row i
        for index, part in enumerate(self._parts):
            assert rows is not None
            if isinstance(part, RecordStep):
                try:
                    given = part.call(_records(rows, bare))
                except RecordError as error:
                    error.row = error.position if aligned else None
                    raise
                rows = part.gather(given)
                bare = part.gives_bare
                aligned = aligned and not part.is_flat
            elif isinstance(part, BatchStep):
                rows = part.call(_frame(rows))
                bare = aligned = False
            else:
                lazy = _frame(rows).lazy()
                for step in part:
                    lazy = apply_lazy(step, lazy, self._small)
                rows = lazy.collect()
                bare = False
                aligned = aligned and all(isinstance(step, Select | WithColumns) for step in part)
            if rows is None:
                break
            rows = self._noted(index, rows)
        self._found.through()
        return rows

    def _noted(self, index: int, rows: pl.DataFrame | Values) -> pl.DataFrame | Values:
        follows = self._parts[index + 1] if index + 1 < len(self._parts) else None
        part = self._parts[index]
        step, stays_bare = self._numbers[index], isinstance(follows, RecordStep)
        if isinstance(part, RecordStep) and not isinstance(part, PairStep):
            self._found.form(step, part.form, part.name)
        rows = self._found.take(step, rows, stays_bare=stays_bare)
        if isinstance(part, RecordStep | BatchStep) and not isinstance(part, PairStep):
            if isinstance(rows, Values) and not stays_bare:
                rows = rows.to_frame()
            if not isinstance(rows, Values):
                self._found.decimals(step, rows)
        return rows

    def run_tracked(
        self,
        frame: pl.DataFrame,
        first: int,
        locate: Callable[[int], str],
        on_letter: OnLetter,
        mark: Callable[[int, int], None],
        *,
        stop_at_first: bool = False,
    ) -> Iterator[pl.DataFrame | Values]:
        """The chunk's rows after all steps, in order, in as many pieces as it had to be cut into.

        ``first``: number of the chunk's first row. ``on_letter`` gets (letter, kind) of each record that
        breaks it and raises or returns; ``stop_at_first``: it raises, so no other record is worked on. ``mark(lo, hi)`` gets
        the range of input rows that are about to be worked on.

        A piece that breaks without naming a record is cut to an eighth, and pieces grow again while they work: each
        record is worked on a bounded number of times on average, also if every one of them is broken.
        """
        stop_at_first = stop_at_first or on_letter is raise_letter
        at, size = 0, frame.height
        while True:
            piece = frame.slice(at, size)
            letters: list[tuple[int, DeadLetter, str]] = []

            def keep(row: int, letter: DeadLetter, kind: str, held: list[Any] = letters) -> None:
                if stop_at_first:
                    on_letter(msgspec.structs.replace(letter, location=locate(row)), kind)
                held.append((row, letter, kind))

            tracked: Tracked | None = None
            failed: BaseException | None = None
            whole = False
            try:
                tracked = self._tracked(piece, first + at, keep, mark)
                whole = True
                self._found.through()
            except LocatedError:
                raise
            except BaseException as error:
                if whole and not stop_at_first:
                    # Records that do not fit together: none of them is skipped, since which comes later depends on the split.
                    raise
                failed = error
            if failed is not None and piece.height > 1:
                size = max(1, piece.height // _SMALLER)
                continue
            if failed is not None:  # outside of the handler: what comes next is not "during handling" of it
                letter = letter_of(failed, locate(first + at), _record_text(piece))
                on_letter(letter, type(cause_of(failed)).__name__)
            else:
                # Only now, so that rows are asked for in order.
                for row, letter, kind in letters:
                    on_letter(msgspec.structs.replace(letter, location=locate(row)), kind)
                if tracked is not None:
                    yield tracked.rows
                size = piece.height * 2
            at += piece.height
            if at >= frame.height:
                return

    def _tracked(
        self,
        frame: pl.DataFrame,
        first: int,
        on_letter: Callable[[int, DeadLetter, str], None],
        mark: Callable[[int, int], None],
    ) -> Tracked | None:
        """``on_letter`` gets the input row with each letter, which says no place yet."""
        mark(first, first + frame.height)
        tracked = Tracked(frame, list(range(first, first + frame.height)))
        bare = False
        self._found.again()
        for index, part in enumerate(self._parts):
            origins = tracked.origins
            if isinstance(part, RecordStep):
                records = _records(tracked.rows, bare)

                def on_error(
                    position: int, record: object, error: BaseException, origins: list[int] = origins
                ) -> None:
                    on_letter(
                        origins[position], letter_of(error, "", safe_repr(record)), type(error).__name__
                    )

                def on_record(position: int, origins: list[int] = origins) -> None:
                    if origins:
                        mark(origins[position], origins[position] + 1)

                asynchronous = part.is_async
                given, positions = part.call_each(
                    records, on_error, (lambda _: None) if asynchronous else on_record
                )
                rows = part.gather(given)
                if rows is None:
                    return None
                rows = self._noted(index, rows)
                tracked = Tracked(rows, [origins[position] for position in positions])
                bare = part.gives_bare
                continue
            if not isinstance(part, list):
                mark(first, first + frame.height)
                batch = part.call(_frame(tracked.rows))
                # Which rows of a batch came from which is the function's secret; one record at a time it is
                # known.
                tracked = Tracked(self._noted(index, batch), [first] * batch.height)
            else:
                mark(first, first + frame.height)
                for step in part:
                    tracked = self._tracked_expr(step, _frame(tracked.rows), tracked.origins)
            bare = False
        if isinstance(tracked.rows, Values) and not self._gives_pairs:
            tracked.rows = tracked.rows.to_frame()
        return tracked

    def _tracked_expr(self, step: ExprStep, rows: pl.DataFrame, origins: list[int]) -> Tracked:
        import polars as pl

        if isinstance(step, Select | WithColumns):  # row-local: as many rows as before
            return Tracked(apply_lazy(step, rows.lazy(), self._small).collect(), origins)
        column = pl.Series(_ORIGIN, origins, dtype=pl.Int64)
        if isinstance(step, Filter):
            keep = rows.select(pl.all_horizontal(*step.predicates)).to_series()
            return Tracked(rows.filter(keep), column.filter(keep).to_list())
        after = apply_lazy(step, rows.with_columns(column).lazy(), self._small).collect()
        return Tracked(after.drop(_ORIGIN), after[_ORIGIN].to_list())


def raise_letter(letter: DeadLetter, kind: str) -> None:
    """An ``on_letter`` for jobs that fail at the first record that breaks them."""
    raise LocatedError(letter, kind)


def _record_text(frame: pl.DataFrame) -> str:
    return safe_repr(records_of(frame)[0]) if frame.height else ""


def _frame(rows: pl.DataFrame | Values) -> pl.DataFrame:
    return rows.to_frame() if isinstance(rows, Values) else rows


def _records(rows: pl.DataFrame | Values, bare: bool) -> list[object]:
    if isinstance(rows, Values):
        return rows.items
    if bare and rows.width == 1:
        return rows.to_series().to_list()
    return records_of(rows)  # type: ignore[return-value]
