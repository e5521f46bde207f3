"""Group commit: one append in flight per process and shard; what arrives meanwhile is the next batch.

There is no thread of its own: the first submitter of a batch commits it for all (it *leads*), and then passes the lead to
the first that waits. So a single thread pays no hand-over, and many share one disk sync.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from onefold import config
from onefold.codec import Op
from onefold.errors import OnefoldError, TooLarge, Unavailable
from onefold.log import undisturbed

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


_TAKEN, _GIVEN_UP = "taken", "given up"


class _Submission:
    """What one caller submitted; committed with others, answered alone."""

    __slots__ = (
        "_appender",
        "_decided",
        "broken",
        "bytes",
        "error",
        "leads",
        "main",
        "ops",
        "outcomes",
        "over",
        "patience",
        "turn",
    )

    def __init__(
        self, appender: Appender, ops: tuple[Op, ...], size: int, patience: Patience | None = None
    ) -> None:
        self._appender = appender
        self._decided: dict[int, str] = {}
        self.ops = ops
        self.bytes = size
        self.patience = patience
        self.turn: Turn | None = None
        self.leads = False
        self.outcomes: Sequence[bytes] | None = None
        self.error: BaseException | None = None
        self.over = False
        """Its caller has an answer, and has passed the lead on if it led."""
        self.broken = False
        """Its caller was interrupted."""
        self.main = appender.interruptible and undisturbed.in_main_thread()
        """Whether its caller can be interrupted anywhere."""

    @property
    def answered(self) -> bool:
        """Whether what became of it is known."""
        return self.outcomes is not None or self.error is not None

    def take(self) -> bool:
        """It will be committed now. False when its caller has given up before."""
        return self._decided.setdefault(0, _TAKEN) is _TAKEN

    def give_up(self) -> bool:
        """It will never be committed. False when it was taken before."""
        return self._decided.setdefault(0, _GIVEN_UP) is _GIVEN_UP

    def end_turn(self) -> None:
        """Let its caller continue."""
        if self.turn is not None:
            self.turn.end()

    def mend(self) -> None:
        self._appender.mend(self)


class Appender:
    """Batches the submissions of threads. Thread-safe.

    Who leads is one entry of a dict, taken and noted in one step. So when the main thread is interrupted while it leads, ``mend``
    knows that and passes the lead on. The main thread leads for itself alone, and only takes the lead when nobody has it: then an
    interrupt spoils nobody else's submission.
    """

    def __init__(
        self,
        commit: Commit,
        turns: Callable[[], Turn] | None = None,
        mend: Callable[[], None] | None = None,
    ) -> None:
        """``turns``: makes what a caller waits with; with it nobody lingers (default: threads, and real time). ``mend``: ends a
        commit that was broken off; without it ``submit`` must not be called where it can be interrupted."""
        self._commit = commit
        self._turns = turns or _LockTurn
        self._linger_s = _LINGER_S if turns is None else 0.0
        self._mend_commit = mend
        self.interruptible = mend is not None
        self._leader: dict[int, object] = {}
        """Who leads, if anybody does."""
        self._waiting: deque[_Submission] = deque()
        """Taken from by who leads, and by those who give up."""
        self._crowd = 1
        """How many submissions the last batch had."""

    def submit(self, ops: Sequence[Op], patience: Patience | None = None) -> list[bytes]:
        """Commit the operations together, perhaps beside others', and return their outcomes in order. The append that they are in
        starts after this call did.

        ``patience``: for operations that need not happen (barriers). When it ends before their turn has come, Unavailable
        is raised, and they may still happen. One that leads takes only its like along, and gives ``commit`` what is left of its
        patience, so no write is given up with it; a write that leads takes all along, as long as it may take.

        Raises TooLarge before anything is written, and whatever ``commit`` raises; Unavailable (definite) in a signal handler
        that has interrupted a write of the same space.
        """
        mine = _Submission(self, tuple(ops), _size(ops), patience)
        if not mine.ops:
            return []
        try:
            self._submit(mine)
        except BaseException:
            # Nothing is called before this: a handler that runs now would leave everything as it is.
            if mine.main and not mine.over:
                mine.broken = True
                undisturbed.mend_later(mine)
            raise
        if mine.error is not None:
            raise mine.error
        if mine.outcomes is None:
            raise Unavailable(
                "the batch was interrupted before this operation's outcome was known", definite=False
            )
        return list(mine.outcomes)

    def _submit(self, mine: _Submission) -> None:
        while not mine.answered:
            mine.leads = self._leader.setdefault(0, mine) is mine
            if not mine.leads:
                if mine.main:
                    self._check_not_within()
                turn = mine.turn = self._turns()
                self._waiting.append(mine)
                # Who led may have stopped before it saw this one.
                if self._leader.setdefault(0, mine) is mine:
                    mine.leads = True
                    with contextlib.suppress(ValueError):
                        self._waiting.remove(mine)
                else:
                    self._wait_turn(mine, turn)
            if mine.leads and mine.answered:
                self._pass_on(mine)  # it was in the batch of the last one
            elif mine.leads:
                self._lead(mine)
                break
            elif not mine.main:
                break
        mine.over = True

    def _wait_turn(self, mine: _Submission, turn: Turn) -> None:
        try:
            if not turn.wait(None if mine.patience is None else mine.patience()):
                raise Unavailable("the appends before this one took too long")
        except BaseException:  # leave nothing behind that others would wait for
            with contextlib.suppress(ValueError):
                self._waiting.remove(mine)
            if not mine.main and not mine.give_up() and not mine.answered:
                self._leave_lead(mine)
            raise

    def _check_not_within(self) -> None:
        """The main thread cannot wait for itself, and would in a signal handler that has interrupted what leads."""
        leader = self._leader.get(0)
        if isinstance(leader, _Submission) and leader.main and not leader.broken:
            raise Unavailable(
                "a signal handler cannot write while the write that it has interrupted is under way; nothing was written. "
                "Let the handler set a flag, or write in another thread",
                definite=True,
            )

    def _lead(self, mine: _Submission) -> None:
        batch = [mine]
        if mine.main:
            self._run(batch)
            del self._leader[0]
            if self._waiting:
                undisturbed.mend_later(mine)  # has the next one lead
            return
        try:
            self._linger()
            self._gather(mine, batch)
            self._run(batch)
        finally:
            for other in batch[1:]:
                if not other.answered:
                    other.error = Unavailable(
                        "the batch was interrupted before this operation's outcome was known", definite=False
                    )
                other.end_turn()
            self._pass_on(mine)

    def _gather(self, mine: _Submission, batch: list[_Submission]) -> None:
        """Take along what waits."""
        ops, size = len(mine.ops), mine.bytes
        left: list[_Submission] = []
        while self._waiting:
            try:
                other = self._waiting.popleft()
            except IndexError:
                break  # it has given up
            if mine.patience is not None and other.patience is None:
                left.append(other)  # a write must not end with a barrier's patience: it leads next
                continue
            ops += len(other.ops)
            size += other.bytes
            if ops > config.OPERATIONS_PER_RECORD_MAX or size > config.RECORD_BYTES_MAX:
                left.append(other)
                break
            if other.take():
                batch.append(other)
        self._waiting.extendleft(reversed(left))
        self._crowd = len(batch)

    def _linger(self) -> None:
        """Give those whom the last batch answered the moment they need to come back.

        Without it batches of n - 1 and 1 alternate, as whoever was answered first finds the queue empty. A single
        thread never waits here.
        """
        if self._crowd > 1 and self._linger_s:
            end = time.perf_counter() + self._linger_s
            while len(self._waiting) + 1 < self._crowd and time.perf_counter() < end:
                time.sleep(0)

    def _pass_on(self, leader: object) -> None:
        """Have the next one lead. By who leads, where it cannot be interrupted."""
        while True:
            heir = self._next()
            if heir is not None:
                self._leader[0] = heir
                heir.leads = True
                heir.end_turn()
                return
            called = []
            with contextlib.suppress(IndexError):
                while True:
                    called.append(self._waiting.popleft())  # of the main thread: it takes the lead itself
            del self._leader[0]
            for one in called:
                one.end_turn()
            if not self._waiting or self._leader.setdefault(0, leader) is not leader:
                return

    def _next(self) -> _Submission | None:
        for one in list(self._waiting):
            if not one.main:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(one)
                    if one.take():
                        return one
        return None

    def _leave_lead(self, mine: _Submission) -> None:
        """Pass on the lead that was given to one that has stopped waiting for it. When it was taken into a batch instead, there
        is nothing to pass on."""
        if mine.turn is not None:
            mine.turn.wait(None)
        if mine.leads:
            self._pass_on(mine)

    def mend(self, broken: _Submission) -> None:
        """Pass on the lead of a submission whose caller was interrupted. Not by an interrupted thread."""
        if self._leader.get(0) is broken:
            try:
                if self._mend_commit is not None:
                    self._mend_commit()
            finally:
                del self._leader[0]
        me = object()
        if self._waiting and self._leader.setdefault(0, me) is me:
            self._pass_on(me)

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
