"""Steps with Python functions before the key of a live job: in a worker process of their own, by which a record can die alone.

The process says in shared memory which records it is about to work on. When it ends, what came before them is done again, the
suspects are tried by themselves and halved down to one record, and the rest continues. A record is to blame when the process dies
of it alone twice.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import polars as pl

from onefold.compute.code import functions
from onefold.compute.live.inputs.preparing import RECORD, TIME, event_times
from onefold.compute.plan.nodes import MapBatches
from onefold.compute.tasks.executor import ProcessExecutor
from onefold.compute.tasks.isolate import DEATHS_MAX, Suspects
from onefold.compute.tasks.row_steps import ORIGIN, PYTHON, LiveSteps
from onefold.compute.tasks.spec import TaskError
from onefold.errors import InvalidValue, JobFailed

if TYPE_CHECKING:
    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.live.inputs.made_types import MadeTypes
    from onefold.compute.live.plan import StreamInput
    from onefold.compute.plan.stages import DeadLetter

_ALONE_MAX: Final = 8
"""So many records of the first batch are worked on one by one, so that what their functions give has the types of the first."""
_GROWTH: Final = 8
"""Each range of a batch has so many times the records of those before it, where the first one that breaks fails the job."""
_HIDDEN: Final = (TIME, RECORD)


class Stopped(Exception):
    """The worker process was ended while it worked, since its job takes no more of it."""


def has_python(inputs: Sequence[StreamInput]) -> bool:
    """Whether any step calls a Python function."""
    return any(isinstance(step, PYTHON) for one in inputs for step in one.steps)


class PythonSteps:
    """The steps of a part's inputs, in one worker process. ``close`` may be called from another thread."""

    def __init__(self, inputs: Sequence[StreamInput], blobs: BlobStore, *, stops: bool = False) -> None:
        """``stops``: at the first record that breaks."""
        self._stops = stops
        self._inputs = tuple(inputs)
        plan = functions.dump(LiveSteps(tuple(one.steps for one in inputs)))
        self._in_batches = [any(isinstance(step, MapBatches) for step in one.steps) for one in self._inputs]
        self._executor = ProcessExecutor(plan, blobs)

    def close(self) -> None:
        """End the worker process; what it works on raises ``Stopped``."""
        self._executor.close()

    def run(self, number: int, types: MadeTypes, rows: pl.DataFrame) -> tuple[pl.DataFrame, dict[int, str]]:
        """The rows of an input (with ``TIME`` and ``RECORD``) after its steps, and the records that broke, with the reason.
        ``types``: of its columns, which are said by the first record that gives a row: until then each is worked on alone. With
        ``stops`` the first that broke, and the rows before it.

        Raises Stopped, and JobFailed for functions that cannot be loaded or lose the event time.
        """
        frames: list[pl.DataFrame] = []
        broken: dict[int, str] = {}
        alone = not types.columns and not self._in_batches[number]
        suspects = Suspects(_begun(rows.height, alone=alone, growing=self._stops))
        while suspects.todo and not (self._stops and broken):
            lo, hi = suspects.todo.pop()
            piece = rows.slice(lo, hi - lo)
            try:
                done = self._executor.rows(number, _encoded(piece.drop(_HIDDEN)))
            except TaskError as error:
                if self._executor.closed:
                    raise Stopped from None
                if not error.failure.died:
                    raise JobFailed(
                        f"{error.failure.message}\n{error.failure.traceback or ''}".strip()
                    ) from None
                blamed = suspects.narrow(lo, hi, self._executor.marked, base=lo)
                if suspects.died > DEATHS_MAX:
                    raise JobFailed(
                        f"worker processes died {DEATHS_MAX} times over one batch; the last one {error.failure.message}"
                    ) from None
                if blamed:
                    broken[int(piece[RECORD][0])] = f"{error.failure.message} while it worked on this record"
                continue
            for encoded in done.frames:
                frame, wrong = pl.read_ipc_stream(encoded), dict[int, str]()
                if not self._in_batches[
                    number
                ]:  # nobody knows the record that a row of map_batches came from
                    frame, wrong = types.fitted(frame)
                placed = self._placed(number, frame, piece)
                frames.append(placed)
                broken |= {int(placed[RECORD][row]): reason for row, reason in wrong.items()}
            broken |= {int(piece[RECORD][row]): _reason(letter) for row, letter in done.letters}
        if not frames:
            return rows.clear().select(_HIDDEN), broken
        made = pl.concat(frames, how="diagonal_relaxed") if len(frames) > 1 else frames[0]
        if broken:
            made = made.filter((~pl.col(RECORD).is_in(sorted(broken))).fill_null(True))
        return made, broken

    def _placed(self, number: int, made: pl.DataFrame, piece: pl.DataFrame) -> pl.DataFrame:
        """Rows with the time and the record that each came from."""
        at, rows = made[ORIGIN], made.drop(ORIGIN)
        times, records = piece[TIME].gather(at), piece[RECORD].gather(at)
        if rows.height and at.null_count():
            times = self._times_of_batches(number, rows, piece)
        return rows.with_columns(times.alias(TIME), records.alias(RECORD))

    def _times_of_batches(self, number: int, rows: pl.DataFrame, piece: pl.DataFrame) -> pl.Series:
        """The times of rows that a function of ``map_batches`` gave: nobody else knows which records they came from."""
        name = self._inputs[number].event_time
        if name is None:
            newest = piece[TIME].max()
            return pl.Series(TIME, [newest], dtype=piece[TIME].dtype).new_from_index(0, rows.height)
        try:
            return event_times(rows, name).cast(piece[TIME].dtype)
        except InvalidValue as error:
            raise JobFailed(
                f"the function of map_batches must keep the event time of its rows: {error}"
            ) from None


def _begun(height: int, *, alone: bool, growing: bool) -> list[tuple[int, int]]:
    """The ranges of [0, height) to run, the first one last. ``alone``: the first few records each by itself. ``growing``: small
    ones first, so that what fails at once does not take as long as a batch."""
    first = min(height, _ALONE_MAX) if alone else 0
    found = [(row, row + 1) for row in range(first)]
    while first < height:
        stop = min(height, max(1, first) * _GROWTH) if growing else height
        found.append((first, stop))
        first = stop
    return found[::-1]


def _encoded(frame: pl.DataFrame) -> bytes:
    out = io.BytesIO()
    frame.write_ipc_stream(out)
    return out.getvalue()


def _reason(letter: DeadLetter) -> str:
    record = f" for {letter.record}" if letter.record else ""
    return f"{letter.error}{record}\n{letter.traceback or ''}".strip()
