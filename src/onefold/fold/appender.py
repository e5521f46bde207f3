"""Group commit: one append in flight per process and shard; what arrives meanwhile is the next batch.

There is no thread of its own: the first submitter of a batch commits it for all (it *leads*), and then passes the lead to
the first that waits. So a single thread pays no hand-over, and many share one disk sync.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from onefold import config
from onefold.codec import Op
from onefold.errors import OnefoldError, TooLarge, Unavailable

_OP_OVERHEAD_BYTES = 32
_RECORD_OVERHEAD_BYTES = 1024
_LINGER_S = 0.0002

Commit = Callable[[Sequence[Op], float | None], Sequence[bytes]]
"""Appends the operations as one record and applies it; returns their outcomes in order. Given a time limit in seconds (None:
as long as it takes), it gives up then."""

Patience = Callable[[], float]
"""How many seconds are left."""


class Turn(Protocol):
    """One caller waits, another lets it go on, once. A simulator has its own."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until ``end``, at most ``timeout`` seconds; whether it came."""
        ...

    def end(self) -> None:
        """Let the waiting one go on."""
        ...


class _LockTurn:
    """A turn between threads: a lock, the cheapest there is."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        return self._lock.acquire(timeout=-1 if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    def end(self) -> None:
        self._lock.release()


class _Submission:
    """What one caller submitted; committed with others, answered alone."""

    __slots__ = ("bytes", "error", "leads", "ops", "outcomes", "patience", "turn")

    def __init__(self, ops: tuple[Op, ...], size: int, patience: Patience | None = None) -> None:
        self.ops = ops
        self.bytes = size
        self.patience = patience
        self.turn: Turn | None = None
        self.leads = False
        self.outcomes: Sequence[bytes] | None = None
        self.error: BaseException | None = None


class Appender:
    """Batches the submissions of threads. Thread-safe."""

    def __init__(self, commit: Commit, turns: Callable[[], Turn] | None = None) -> None:
        """``turns``: makes what a caller waits with; with it nobody lingers (default: threads, and real time)."""
        self._commit = commit
        self._turns = turns or _LockTurn
        self._linger_s = _LINGER_S if turns is None else 0.0
        self._mutex = threading.Lock()
        self._waiting: deque[_Submission] = deque()
        self._busy = False
        self._crowd = 1
        """How many submissions the last batch had."""

    def submit(self, ops: Sequence[Op], patience: Patience | None = None) -> list[bytes]:
        """Commit the operations together, perhaps beside others', and return their outcomes in order. The append that they are in
        starts after this call did.

        ``patience``: for operations that need not happen (barriers). When it ends before their turn has come, Unavailable
        is raised, and they may still happen. One that leads takes only its like along, and gives ``commit`` what is left of its
        patience, so no write is given up with it; a write that leads takes all along, as long as it may take.

        Raises TooLarge before anything is written, and whatever ``commit`` raises.
        """
        mine = _Submission(tuple(ops), _size(ops), patience)
        if not mine.ops:
            return []
        with self._mutex:
            if self._busy:
                mine.turn = self._turns()
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

    def _wait_turn(self, mine: _Submission, turn: Turn) -> None:
        try:
            if not turn.wait(None if mine.patience is None else mine.patience()):
                raise Unavailable("the appends before this one took too long")
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
                left: list[_Submission] = []
                while self._waiting:
                    other = self._waiting.popleft()
                    if mine.patience is not None and other.patience is None:
                        left.append(other)  # a write must not end with a barrier's patience: it leads next
                        continue
                    ops += len(other.ops)
                    size += other.bytes
                    if ops > config.OPERATIONS_PER_RECORD_MAX or size > config.RECORD_BYTES_MAX:
                        left.append(other)
                        break
                    batch.append(other)
                self._waiting.extendleft(reversed(left))
                self._crowd = len(batch)
            self._run(batch)
        finally:
            for other in batch[1:]:
                if other.turn is not None:
                    other.turn.end()
            self._pass_on()

    def _linger(self) -> None:
        """Give those whom the last batch answered the moment they need to come back.

        Without it batches of n - 1 and 1 alternate, as whoever was answered first finds the queue empty. A single
        thread never waits here.
        """
        if self._crowd > 1 and self._linger_s:
            end = time.perf_counter() + self._linger_s
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
            heir.turn.end()

    def _run(self, batch: list[_Submission]) -> None:
        try:
            patience = batch[0].patience
            left = None if patience is None else patience()
            outcomes = self._commit([op for one in batch for op in one.ops], left)
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
