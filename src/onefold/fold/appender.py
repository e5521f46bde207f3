"""Group commit: one append in flight per process and shard; what arrives meanwhile is the next batch.

There is no thread of its own: the first submitter of a batch commits it for all (it *leads*), and then passes the lead to
the first that waits. So a single thread pays no hand-over, and many share one disk sync.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from onefold import config
from onefold.codec import Op
from onefold.errors import OnefoldError, TooLarge, Unavailable

_OP_OVERHEAD_BYTES = 32
_RECORD_OVERHEAD_BYTES = 1024
_LINGER_S = 0.0002

Commit = Callable[[Sequence[Op]], Sequence[bytes]]
"""Appends the operations as one record and applies it; returns their outcomes in order."""


class _Submission:
    """What one caller submitted; committed with others, answered alone."""

    __slots__ = ("bytes", "error", "leads", "ops", "outcomes", "turn")

    def __init__(self, ops: tuple[Op, ...], size: int) -> None:
        self.ops = ops
        self.bytes = size
        self.turn: threading.Lock | None = None
        self.leads = False
        self.outcomes: Sequence[bytes] | None = None
        self.error: BaseException | None = None


class Appender:
    """Batches the submissions of threads. Thread-safe."""

    def __init__(self, commit: Commit) -> None:
        self._commit = commit
        self._mutex = threading.Lock()
        self._waiting: deque[_Submission] = deque()
        self._busy = False
        self._crowd = 1
        """How many submissions the last batch had."""

    def submit(self, ops: Sequence[Op]) -> list[bytes]:
        """Commit the operations together, perhaps beside others', and return their outcomes in order.

        Raises TooLarge before anything is written, and whatever ``commit`` raises.
        """
        mine = _Submission(tuple(ops), _size(ops))
        if not mine.ops:
            return []
        with self._mutex:
            if self._busy:
                mine.turn = threading.Lock()
                mine.turn.acquire()
                self._waiting.append(mine)
            else:
                self._busy = True
                mine.leads = True
        if mine.turn is not None:
            self._wait_turn(mine, mine.turn)
        if mine.leads:
            self._lead(mine)
        if mine.error is not None:
            raise mine.error
        if mine.outcomes is None:
            raise Unavailable(
                "the batch was interrupted before this operation's outcome was known", definite=False
            )
        return list(mine.outcomes)

    def _wait_turn(self, mine: _Submission, turn: threading.Lock) -> None:
        try:
            turn.acquire()
        except BaseException:  # Ctrl-C while waiting: leave nothing behind that others would wait for
            with self._mutex:
                if mine in self._waiting:
                    self._waiting.remove(mine)
            if mine.leads:
                self._pass_on()
            raise

    def _lead(self, mine: _Submission) -> None:
        batch = [mine]
        try:
            self._linger()
            with self._mutex:
                ops, size = len(mine.ops), mine.bytes
                while self._waiting:
                    ops += len(self._waiting[0].ops)
                    size += self._waiting[0].bytes
                    if ops > config.OPERATIONS_PER_RECORD_MAX or size > config.RECORD_BYTES_MAX:
                        break
                    batch.append(self._waiting.popleft())
                self._crowd = len(batch)
            self._run(batch)
        finally:
            for other in batch[1:]:
                if other.turn is not None:
                    other.turn.release()
            self._pass_on()

    def _linger(self) -> None:
        """Give those whom the last batch answered the moment they need to come back.

        Without it batches of n - 1 and 1 alternate, as whoever was answered first finds the queue empty. A single
        thread never waits here.
        """
        if self._crowd > 1:
            end = time.perf_counter() + _LINGER_S
            while len(self._waiting) + 1 < self._crowd and time.perf_counter() < end:
                time.sleep(0)

    def _pass_on(self) -> None:
        with self._mutex:
            if not self._waiting:
                self._busy = False
                return
            heir = self._waiting.popleft()
            heir.leads = True
        if heir.turn is not None:
            heir.turn.release()

    def _run(self, batch: list[_Submission]) -> None:
        try:
            outcomes = self._commit([op for one in batch for op in one.ops])
        except OnefoldError as error:
            if len(batch) > 1 and error.definite and not isinstance(error, (Unavailable, TimeoutError)):
                # Nothing was written, and it may be the fault of one: each alone, so it spoils nobody else's.
                for one in batch:
                    self._run([one])
                return
            for one in batch:
                one.error = _own_copy(error) if len(batch) > 1 else error
            return
        at = 0
        for one in batch:
            one.outcomes = outcomes[at : at + len(one.ops)]
            at += len(one.ops)


def _own_copy(error: OnefoldError) -> OnefoldError:
    """An error of its own for each thread: one that is raised in several would collect all their tracebacks."""
    copy = type(error)(str(error), definite=error.definite)
    copy.__cause__ = error.__cause__
    return copy


def _size(ops: Sequence[Op]) -> int:
    if len(ops) > config.OPERATIONS_PER_RECORD_MAX:
        raise TooLarge(
            f"{len(ops)} operations at once; the limit is {config.OPERATIONS_PER_RECORD_MAX}. Submit them in parts"
        )
    size = _RECORD_OVERHEAD_BYTES
    for op in ops:
        size += len(op.body) + len(op.fold) + len(op.request_id or "") + _OP_OVERHEAD_BYTES
    if size > config.RECORD_BYTES_MAX:
        raise TooLarge(
            f"{size} bytes of operations; a record takes {config.RECORD_BYTES_MAX}. Submit them in parts, large values as blobs"
        )
    return size
