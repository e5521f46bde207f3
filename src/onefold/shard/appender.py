"""Group commit: one append in flight per process and shard; what arrives meanwhile is the next batch.

There is no thread of its own: the first submitter of a batch commits it for all (it *leads*), and then passes the lead to
the first that waits. So a single thread pays no hand-over, and many share one disk sync.

Every submission has a deadline of its own. One that has not been taken into a batch by then leaves the queue and was certainly
not appended; one whose batch is being appended leaves with an unknown outcome. A failure that passes (no leader, say) is tried
again until the leader's deadline; then the others of its batch, which was certainly not appended, wait for the next leader. Those
that have much more time than a leader are not taken along by it, so that an append in doubt does not end with its time.
"""

from __future__ import annotations

import _thread
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from onefold import config
from onefold.backoff import Backoff, Deadline
from onefold.codec import Op
from onefold.env import Env
from onefold.errors import ASK_LATER, AppendUnknown, OnefoldError, Timeout, TooLarge, Unavailable
from onefold.machine import forks, undisturbed
from onefold.shard.receipts import Receipt

_OP_OVERHEAD_BYTES = 32
_RECORD_OVERHEAD_BYTES = 1024
_LINGER_S_MAX = 0.001
_PAUSE_S, _PAUSE_S_MAX = 0.01, 0.25
_SHARE = 0.1
"""A leader takes along those whose deadline is at most this share of its own time later."""

Commit = Callable[[Sequence[Op], float], Sequence[bytes]]
"""Appends the operations as one record and applies it; returns their outcomes in order. Gives up at the deadline, a moment of the
boot clock."""


class Turn(Protocol):
    """One caller waits, another lets it continue, once. A simulator has its own."""

    def wait(self, timeout: float | None) -> bool:
        """Wait until ``end``, at most ``timeout`` seconds; whether it came."""
        ...

    def end(self) -> None:
        """Let the waiting one continue."""
        ...


class _LockTurn:
    """A turn between threads: a lock, the cheapest there is."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, timeout: float | None) -> bool:
        if timeout is None:
            return self._lock.acquire()
        return self._lock.acquire(True, timeout if timeout < threading.TIMEOUT_MAX else threading.TIMEOUT_MAX)

    def end(self) -> None:
        self._lock.release()


_TAKEN, _HEIR, _GIVEN_UP = "taken", "leads next", "given up"


class _Submission:
    """What one caller submitted; committed with others, answered alone."""

    # Defaults of the class: most are never changed, and there is one submission for each write.
    turn: Turn | None = None
    leads = False
    outcomes: Sequence[bytes] | None = None
    error: BaseException | None = None
    cause: OnefoldError | None = None
    """What the last try that certainly failed ended with."""
    look_up: Callable[[], Sequence[bytes] | None] | None = None
    """After its commit was broken off: reads what became of it."""
    gone = False
    """Its caller's time was up: it is not appended any more."""
    over = False
    """Its caller has an answer, and has passed the lead on if it led."""
    broken = False
    """Its caller was interrupted."""
    backoff: Backoff | None = None
    """Of one that leads and has failed for now."""

    def __init__(self, appender: Appender, ops: tuple[Op, ...], size: int, deadline: float) -> None:
        self._appender = appender
        self._decided: dict[int, str] = {}
        self.ops = ops
        self.bytes = size
        self.deadline = deadline
        self.main = appender.interruptible and _thread.get_ident() == forks.main_thread
        """Whether its caller can be interrupted anywhere."""

    @property
    def answered(self) -> bool:
        """Whether what became of it is known."""
        return self.outcomes is not None or self.error is not None

    def take(self, why: str = _TAKEN) -> bool:
        """It will be committed now, or leads. False when its caller has given up before."""
        return not self.gone and self._decided.setdefault(0, why) is why

    def put_back(self, cause: OnefoldError) -> None:
        """It was taken, and was certainly not committed: it waits again."""
        self.cause = cause
        self._decided = {}

    @property
    def inherits(self) -> bool:
        """Whether the lead was given to it."""
        return self._decided.get(0) is _HEIR

    def give_up(self) -> bool:
        """It will never be committed. False when it was taken before."""
        return self._decided.setdefault(0, _GIVEN_UP) is _GIVEN_UP

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
        env: Env,
        turns: Callable[[], Turn] | None = None,
        mend: Callable[[Sequence[Op]], Callable[[], Sequence[bytes] | None] | None] | None = None,
        *,
        passes: Callable[[OnefoldError], bool] = lambda _: False,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """``turns``: makes what a caller waits with; with it nobody lingers (default: threads, and real time). ``mend``: ends a
        commit of these operations that was broken off, without waiting for anything; what it returns reads their outcomes, later,
        if they were appended (None: they were not). Without it ``submit`` must not be called where it can be interrupted.
        ``passes``: whether after this error nothing was written and trying again may succeed. ``pause``: waits between two tries,
        given seconds."""
        self._commit = commit
        self._env = env
        self._passes = passes
        self._pause = pause
        self._turns = turns or _LockTurn
        self._lingers = turns is None
        self._took_s = 0.0
        """How long the last commit for several took."""
        self._mend_commit = mend
        self.interruptible = mend is not None
        self._leader: dict[int, object] = {}
        """Who leads, if anybody does."""
        self._waiting: deque[_Submission] = deque()
        """Taken from by who leads, and by those who give up."""
        self._crowd = 1
        """How many submissions the last batch had, and how many came too late for it."""

    def submit(
        self, ops: Sequence[Op], deadline: float | None = None, receipt: Receipt | None = None
    ) -> list[bytes]:
        """Commit the operations together, perhaps with other callers', and return their outcomes in order. The append that they
        are in starts after this call did. A failure that passes is tried again until the deadline.

        ``deadline``: a moment of the boot clock; default: ``config.APPEND_RETRY_S`` from now. ``receipt``: tells what became of
        it when the caller is interrupted.

        Raises TooLarge before anything is written, and whatever ``commit`` raises; Timeout (definite) when the deadline came
        before the operations were appended, AppendUnknown when it came while they were; Unavailable (definite) in a signal
        handler that has interrupted a write of the same space.
        """
        if deadline is None:
            deadline = self._env.boot_s() + config.APPEND_RETRY_S
        mine = _Submission(self, tuple(ops), _size(ops), deadline)
        if not mine.ops:
            return []
        if receipt is not None:
            receipt.submission = mine
        try:
            if self._leader.setdefault(0, mine) is mine:
                mine.leads = True
                self._lead(mine)
                mine.over = True
            else:
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
        while True:  # somebody has led a moment ago
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
            answered = mine.outcomes is not None or mine.error is not None
            if not mine.leads and not answered:
                # It was called without an answer, by one that stopped leading when this one had just begun to wait.
                mine.leads = self._leader.setdefault(0, mine) is mine
                answered = mine.answered
            if mine.leads and answered:
                self._pass_on(mine)  # it was in the batch of the last one
            elif mine.leads:
                self._lead(mine)
            if mine.leads or answered:
                break
        mine.over = True

    def _wait_turn(self, mine: _Submission, turn: Turn) -> None:
        try:
            left_s = mine.deadline - self._env.boot_s()
            if not turn.wait(left_s if left_s > 0 else 0.0):
                self._time_is_up(mine, turn)
        except BaseException:  # leave nothing behind that others would wait for
            with contextlib.suppress(ValueError):
                self._waiting.remove(mine)
            if not mine.main and not mine.gone and not mine.give_up() and not mine.answered:
                self._leave_lead(mine)
            raise

    def _time_is_up(self, mine: _Submission, turn: Turn) -> None:
        """Raises what its caller gets, except when it was answered, or the lead was given to it, at the same moment."""
        mine.gone = True
        if mine.give_up():
            raise _too_late(mine.cause)
        if mine.inherits:
            mine.gone = False
            turn.wait(None)
        elif not mine.answered:
            raise AppendUnknown(
                f"the time was up while the operation was being appended; it may be in the log, or may surface later. {ASK_LATER}"
            )

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
            while self._fails_for_now(mine, batch):
                self._pause_within(mine)
            del self._leader[0]
            if self._waiting:
                undisturbed.mend_later(mine)  # has the next one lead
            return
        try:
            if self._crowd > 1 and self._lingers:
                self._linger()
            started = time.perf_counter()
            self._gather(mine, batch)
            while self._fails_for_now(mine, batch):
                self._pause_within(mine)
                self._gather(mine, batch)
            # Those that came meanwhile too: else they would be in one batch, and others too late for it, again and again.
            self._crowd = len(batch) + len(self._waiting)
            self._took_s = time.perf_counter() - started
        finally:
            for other in batch[1:]:
                if other.outcomes is None and other.error is None:
                    other.error = Unavailable(
                        "the batch was interrupted before this operation's outcome was known", definite=False
                    )
                turn = other.turn
                if turn is not None:
                    turn.end()
            self._pass_on(mine)

    def _pause_within(self, mine: _Submission) -> None:
        """Wait before the next try: the last one is made when the leader's time is up, not one pause before."""
        if mine.backoff is None:
            mine.backoff = Backoff(_PAUSE_S, _PAUSE_S_MAX)
        self._pause(Deadline(mine.deadline, self._env).within(mine.backoff.pause_s()))

    def _fails_for_now(self, mine: _Submission, batch: list[_Submission]) -> bool:
        """Commit the batch. Whether that certainly failed, for a reason that passes, and the leader has time to try again;
        otherwise those that are left in the batch have an answer."""
        if self._env.boot_s() > mine.deadline:
            mine.error = _too_late(mine.cause)
            self._put_back(batch, mine.cause or mine.error)
            return False
        error = self._run(batch)
        if error is None:
            return False
        if error.definite and self._passes(error):
            mine.cause = error
            self._put_back(batch, error)
            if self._env.boot_s() < mine.deadline:
                return True
            mine.error = error
        elif len(batch) > 1 and error.definite and not isinstance(error, (Unavailable, TimeoutError)):
            # Nothing was written, and it may be the fault of one: each alone, so it spoils nobody else's.
            for one in batch:
                one.error = self._run([one])
        else:
            for one in batch:
                one.error = _own_copy(error) if len(batch) > 1 else error
        return False

    def _put_back(self, batch: list[_Submission], cause: OnefoldError) -> None:
        """All but the leader wait again, before those that came later. Those whose callers have left are dropped."""
        for one in reversed(batch[1:]):
            if one.gone:
                one.error = _own_copy(cause)
            else:
                one.put_back(cause)
                self._waiting.appendleft(one)
        del batch[1:]

    def _gather(self, mine: _Submission, batch: list[_Submission]) -> None:
        """Take along what waits."""
        if not self._waiting:
            self._crowd = len(batch)
            return
        latest = mine.deadline + _SHARE * max(0.0, mine.deadline - self._env.boot_s())
        ops, size = len(mine.ops), mine.bytes
        left: list[_Submission] = []
        while self._waiting:
            try:
                other = self._waiting.popleft()
            except IndexError:
                break  # it has given up
            if other.deadline > latest:
                left.append(other)  # an append in doubt must not end so much before its time: it leads next
                continue
            ops += len(other.ops)
            size += other.bytes
            if ops > config.OPERATIONS_PER_RECORD_MAX or size > config.RECORD_BYTES_MAX:
                left.append(other)
                break
            if (
                not other.gone and other._decided.setdefault(0, _TAKEN) is _TAKEN
            ):  # as ``take``, without a call
                batch.append(other)
        self._waiting.extendleft(reversed(left))
        self._crowd = len(batch)

    def _linger(self) -> None:
        """Give those whom the last batch answered the moment they need to come back.

        Without it batches of n - 1 and 1 alternate, as the callers answered first find the queue empty. At most as long as a
        commit takes, which is what one that comes too late has to wait. A single thread never waits here.
        """
        end = time.perf_counter() + min(self._took_s, _LINGER_S_MAX)
        while len(self._waiting) + 1 < self._crowd and time.perf_counter() < end:
            time.sleep(0)

    def _pass_on(self, leader: object) -> None:
        """Have the next one lead. By who leads, where it cannot be interrupted."""
        while True:
            called: list[_Submission] = []
            if self._waiting:
                heir = self._next()
                if heir is not None:
                    self._leader[0] = heir
                    heir.leads = True
                    if heir.turn is not None:
                        heir.turn.end()
                    return
                with contextlib.suppress(IndexError):
                    while True:
                        called.append(self._waiting.popleft())  # of the main thread: it takes the lead itself
            del self._leader[0]
            for one in called:
                if one.turn is not None:
                    one.turn.end()
            if not self._waiting or self._leader.setdefault(0, leader) is not leader:
                return

    def _next(self) -> _Submission | None:
        for one in list(self._waiting):
            if not one.main:
                with contextlib.suppress(ValueError):
                    self._waiting.remove(one)
                    if one.take(_HEIR):
                        return one
        return None

    def _leave_lead(self, mine: _Submission) -> None:
        """Pass on the lead that was given to one that has stopped waiting for it. When it was taken into a batch instead, there
        is nothing to pass on."""
        try:
            if mine.turn is not None:
                mine.turn.wait(None)
        finally:  # its thread may be stopped in this wait too
            if mine.leads:
                self._pass_on(mine)

    def mend(self, broken: _Submission) -> None:
        """Pass on the lead of a submission whose caller was interrupted. Not by an interrupted thread."""
        try:
            if self._leader.get(0) is broken:
                try:
                    if self._mend_commit is not None:
                        broken.look_up = self._mend_commit(broken.ops)
                finally:
                    del self._leader[0]
        finally:  # those that wait have nobody else to answer them
            me = object()
            if self._waiting and self._leader.setdefault(0, me) is me:
                self._pass_on(me)

    def _run(self, batch: list[_Submission]) -> OnefoldError | None:
        """Commit the batch and note its outcomes; or what it failed with."""
        if len(batch) == 1:
            one = batch[0]
            try:
                one.outcomes = self._commit(one.ops, one.deadline)
            except OnefoldError as error:
                undisturbed.let_pass(error)  # it is mended
                return error
            return None
        try:
            outcomes = self._commit([op for one in batch for op in one.ops], batch[0].deadline)
        except OnefoldError as error:
            undisturbed.let_pass(error)
            return error
        at = 0
        for one in batch:
            one.outcomes = outcomes[at : at + len(one.ops)]
            at += len(one.ops)
        return None


def _too_late(cause: OnefoldError | None) -> OnefoldError:
    """The error of one whose time was up before it was appended."""
    if cause is not None:
        return _own_copy(cause)
    return Timeout(
        "the appends before this one took too long; nothing was written. Try again, or allow more time (timeout=)",
        definite=True,
    )


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
        size += len(op.body) + len(op.fold) + _OP_OVERHEAD_BYTES
        if op.request_id is not None:
            size += len(op.request_id)
    if size > config.RECORD_BYTES_MAX:
        raise TooLarge(
            f"{size} bytes of operations; a record takes {config.RECORD_BYTES_MAX}. Submit them in parts, large values as blobs"
        )
    return size
