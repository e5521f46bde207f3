"""Finding the records that break a task when its process dies of them.

Exceptions are traced to their record inside the worker (see ``pipeline.Pipeline.run_tracked``). When the
worker dies, it has said in shared memory which records it was about to work on. Those before it are done
again, the suspects are tried by themselves, halved until they are one record, and the rest continues. A record
is to blame when the worker dies of it alone, twice: a death that comes from elsewhere (an operator's ``kill
-9``, memory that ran out after many records) leaves nothing to blame, and the task simply gives its whole
result.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Final

from onefold.compute.plan.stages import DeadLetter, Failure, Result
from onefold.compute.tasks import outputs
from onefold.compute.tasks.kernels import too_many_dead
from onefold.compute.tasks.spec import TaskError, TaskSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from onefold.compute.blobs.store import BlobStore
    from onefold.compute.tasks.executor import OnRows, ProcessExecutor

DEATHS_MAX: Final = 1_000
"""More deaths of workers over one task, or one batch, than this are no poison records but a broken machine or job."""
_DEATHS_TO_BLAME: Final = 2


class Suspects:
    """The ranges of records that are still to be run while workers die of some."""

    def __init__(self, todo: list[tuple[int, int]]) -> None:
        self.todo = todo
        """The next one is the last."""
        self.died = 0
        """How often a worker has died."""
        self._alone: Counter[int] = Counter()

    def narrow(self, lo: int, hi: int, marked: Callable[[], tuple[int, int]], base: int = 0) -> bool:
        """The worker died of [lo, hi): put back what is to be run of it. Whether it is one record, which is to blame.
        ``marked``: what it was about to work on, counted from ``base``."""
        self.died += 1
        if hi - lo > 1:
            marked_lo, marked_hi = marked()
            self.todo += reversed(_pieces(lo, hi, base + marked_lo, base + marked_hi))
            return False
        self._alone[lo] += 1
        if self._alone[lo] >= _DEATHS_TO_BLAME:
            return True
        self.todo.append((lo, hi))
        return False


def run_isolated(
    executor: ProcessExecutor, spec: TaskSpec, blobs: BlobStore, on_rows: OnRows | None = None
) -> Result:
    """Run a task without the records that break it.

    With ``skip_errors`` they become dead letters; else the first of them fails the task: TaskError, final,
    with the record and where it is.
    """
    began = time.monotonic()
    total = executor.count(spec)
    suspects = Suspects([(0, total)])
    parts: list[Result] = []
    dead: list[DeadLetter] = []
    while suspects.todo:
        lo, hi = suspects.todo.pop()
        whole = (lo, hi) == (0, total)
        try:
            part = executor.run_rows(spec, None if whole else (lo, hi), on_rows)
        except TaskError as error:
            if not error.failure.died or executor.closed:
                raise
            if hi == lo:
                raise  # no record is to blame
            blamed = suspects.narrow(lo, hi, executor.marked)
            if suspects.died > DEATHS_MAX:
                raise TaskError(_too_many(suspects.died, error.failure)) from None
            if blamed:
                letter = _blame(executor, spec, lo, error.failure)
                if not spec.skip_errors:
                    raise TaskError(_final(letter, error.failure)) from None
                dead.append(letter)
        else:
            parts.append(part)
            dead += part.dead
        if len(dead) > spec.dead_letters_max:
            raise TaskError(too_many_dead(spec, dead[-1], "WorkerDied"))
    if len(parts) == 1 and not dead and not suspects.died:
        return parts[0]
    inline, blob, rows_out = outputs.merge_parts(spec.stage.output, parts, blobs)
    return Result(
        inline=inline,
        blob=blob,
        rows_in=total,
        bytes_in=spec.bytes_in,
        rows_out=rows_out,
        elapsed_ms=int((time.monotonic() - began) * 1000),
        dead=tuple(dead),
    )


def _pieces(lo: int, hi: int, marked_lo: int, marked_hi: int) -> list[tuple[int, int]]:
    """The ranges to run instead of [lo, hi), in order: before the suspects, the suspects, after them."""
    marked_lo, marked_hi = max(lo, marked_lo), min(hi, marked_hi)
    if marked_lo >= marked_hi or (marked_lo, marked_hi) == (lo, hi):
        middle = (lo + hi) // 2
        return [(lo, middle), (middle, hi)]
    pieces = [(lo, marked_lo), (marked_lo, marked_hi), (marked_hi, hi)]
    return [piece for piece in pieces if piece[0] < piece[1]]


def _blame(executor: ProcessExecutor, spec: TaskSpec, row: int, failure: Failure) -> DeadLetter:
    try:
        record, location = executor.peek(spec, row)
    except TaskError:
        record, location = "", f"record {row} of the task"
    return DeadLetter(location, record, f"{failure.message} while it worked on this record")


def _too_many(died: int, last: Failure) -> Failure:
    return Failure(
        message=f"worker processes died {died} times over one task; the last one {last.message}",
        died=True,
        final=True,
        kind="WorkerDied",
    )


def _final(letter: DeadLetter, failure: Failure) -> Failure:
    return Failure(
        message=letter.error,
        record=letter.record,
        location=letter.location,
        died=True,
        final=True,
        kind=failure.kind,
    )
