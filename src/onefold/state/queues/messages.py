"""A message that was taken from a queue."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from onefold import config
from onefold.durations import seconds
from onefold.errors import Conflict, InvalidArgument, InvalidKey, InvalidValue, Unavailable
from onefold.machine import undisturbed
from onefold.machine.undisturbed import Held, best_effort
from onefold.shard.receipts import Receipt
from onefold.state.core.client import rejection
from onefold.state.core.handover import HERE, carried_out, is_broken_off
from onefold.state.core.time_limits import cleaning_up, end_of
from onefold.state.encoding.keys import Key, decode_key
from onefold.state.encoding.values import ValueCodec
from onefold.state.fold.outcomes import Answer, Outcome, Rejected, decode_outcome
from onefold.state.fold.queues import ops as queue_ops

if TYPE_CHECKING:
    from onefold.state.queues.queue import Queue

T = TypeVar("T")

_MS_MAX = 1 << 50
_LOOK_S = 0.05
_LeaseOp = queue_ops.Ack | queue_ops.Nack | queue_ops.Extend


class Message(Generic[T]):
    """A message and the lease on it. Thread-safe.

    From the last ``extend`` (or the taking) on it is this process's for the lease's length at least. Afterwards it may be given
    to somebody else; then ``ack``, ``nack`` and ``extend`` raise Conflict.
    """

    __slots__ = ("__weakref__", "_data", "_ended", "_epoch", "_key", "_lease_s", "_mutex", "_queue", "_value")

    def __init__(self, queue: Queue[T], answer: Any, lease_s: float) -> None:
        """``received`` makes them. ``answer``: of the fold."""
        self._queue = queue
        self._data = answer
        self._epoch = int(answer[1])
        self._lease_s = lease_s
        self._ended = False
        self._mutex = Held()
        self._key: Key = None
        self._value: Any = None

    def read(self) -> None:
        """Raises InvalidValue, which names queue and message."""
        self._key = shown_key(self._data[4])
        self._value = read_value(self._queue.codec, self._queue.name, self.id, self._data[3])

    @property
    def queue(self) -> Queue[T]:
        """The queue that it was taken from."""
        return self._queue

    @property
    def id(self) -> int:
        """Its number in the queue: what ``put`` returned."""
        return int(self._data[0])

    @property
    def value(self) -> T:
        """What was put; a copy of this message's own."""
        found: T = self._value
        return found

    @property
    def key(self) -> Key:
        """The key it was put with."""
        return self._key

    @property
    def attempt(self) -> int:
        """How often it was given out, this time included."""
        return int(self._data[2])

    @property
    def errors(self) -> tuple[str, ...]:
        """What the latest tries before this one ended with, oldest first."""
        return tuple(self._data[5])

    @property
    def ended(self) -> bool:
        """Whether this process has acknowledged it, given it back or found that it has lost it."""
        return self._ended

    @property
    def renew_every_s(self) -> float:
        """How often it is extended under ``get(renew=True)``."""
        return self._lease_s / 3

    def renew(self) -> bool:
        """Extend it if it has not ended; False when it has.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._change(lambda: None if self._ended else self._extension(self._lease_s))
        return not self._ended

    def extend(self, lease: float | timedelta | str | None = None) -> None:
        """The lease starts again now, with the queue's length or this one.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            InvalidArgument: definite; it was ended before, or the lease is not valid.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        lease_s = self._lease_s if lease is None else seconds(lease, "lease")
        if lease_s <= 0:
            raise InvalidArgument(f"lease must be longer than nothing; got {lease!r}")
        self._queue.client.check_process()
        self._change(lambda: self._extension(lease_s, open_only=True))

    def ack(self) -> None:
        """It is done with and never given out again. Leaving the ``with`` block does this.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            InvalidArgument: definite; it was ended before.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        self._queue.client.check_process()
        self._change(self._acknowledgement)

    def _acknowledgement(self) -> queue_ops.Ack:
        self._check_open()
        return queue_ops.Ack(self._queue.name, int(self._data[0]), self._epoch)

    def nack(self, *, error: str = "given back", delay: float | timedelta | str | None = None) -> None:
        """Give it back as a failed attempt: it is given out again, after ``delay``, or goes to the dead letters.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            InvalidArgument: definite; it was ended before.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        delay_ms = 0 if delay is None else min(round(seconds(delay, "delay") * 1000), _MS_MAX)
        self._queue.client.check_process()
        text = str(error)[: config.QUEUE_ERROR_CHARS_MAX].encode(errors="replace").decode()

        def refusal() -> queue_ops.Nack:
            self._check_open()
            return queue_ops.Nack(self._queue.name, self.id, self._epoch, text, delay_ms)

        self._change(refusal)
        self._queue.forward_dead()

    def give_back(self) -> None:
        """Nobody was given it: it is as before it was taken, without a failed try. In a space that programs of an earlier release
        have open too, it counts as one.

        Raises:
            Conflict: definite; the lease was over before, so the message is or will be given to somebody else.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        counted = not self._queue.client.reach_version(self._queue.shard, queue_ops.QUEUE_RETURNS)

        def returned() -> queue_ops.Nack | None:
            if self._ended:
                return None
            return queue_ops.Nack(self._queue.name, self.id, self._epoch, "nobody got it", 0, counted)

        self._change(returned)
        if counted:
            self._queue.forward_dead()

    def _extension(self, lease_s: float, *, open_only: bool = False) -> queue_ops.Extend:
        if open_only:
            self._check_open()
        lease_ms = min(max(1, round(lease_s * 1000)), _MS_MAX)
        return queue_ops.Extend(self._queue.name, self.id, self._epoch, lease_ms)

    def _change(self, operation: Callable[[], _LeaseOp | None]) -> None:
        """One change of the lease after the other, to its end also when the caller is interrupted: what it did is known here.
        ``operation``: what is to be submitted, called when nobody else changes the lease."""
        change = _Change(self)
        try:
            carried_out(self._queue.client, self._queue.shard, partial(change.make, operation))
        except BaseException:
            # Nothing is called before this: a handler that runs now would leave everything as it is.
            change.broken = True
            undisturbed.mend_later(change)
            raise

    def _submit(self, op: _LeaseOp, receipt: Receipt | None = None) -> Outcome:
        client, shard = self._queue.client, self._queue.shard
        if isinstance(op, queue_ops.Extend) or end_of(client) is None:
            return client.submit(shard, op, receipt=receipt)
        with cleaning_up(client):
            return client.submit(shard, op, receipt=receipt)

    def _apply(self, op: _LeaseOp, outcome: Outcome) -> None:
        """Note what became of it. Raises Conflict when the lease was over."""
        ends = not isinstance(op, queue_ops.Extend)
        if isinstance(outcome, Answer):
            self._ended = self._ended or ends
            if not ends:
                self._epoch = int(outcome.value)
            return
        failure = rejection(outcome)
        if isinstance(failure, Conflict):
            self._ended = self._ended or ends
            raise self._lost()
        raise failure

    def _check_open(self) -> None:
        if self._ended:
            raise InvalidArgument(
                f"message {self.id} of queue {self._queue.name!r} was acknowledged or given back before"
            )

    def _lost(self) -> Conflict:
        return Conflict(
            f"the lease of message {self.id} of queue {self._queue.name!r} ended before this (attempt {self.attempt}), so it is "
            "or was given to somebody else; this attempt counts as failed. Make the queue's lease longer than the work, or call "
            "msg.extend() or get(renew=True)"
        )

    def __repr__(self) -> str:
        return f"<Message {self.id} of {self._queue.name!r}, attempt {self.attempt}>"


class _Change(Receipt):
    """A change of the lease of a message. When it is broken off it comes to its end, in a thread of its own, and until then
    nobody else changes the lease."""

    __slots__ = ("_message", "broken", "by", "op")

    def __init__(self, message: Message[Any]) -> None:
        self.submission = None
        self._message = message
        self.by: object = None
        """Who makes it; see ``carried_out``."""
        self.op: _LeaseOp | None = None
        self.broken = False
        """Its caller was interrupted."""

    def make(self, operation: Callable[[], _LeaseOp | None], by: object) -> None:
        """Submit the operation when nobody else changes the lease, and note what became of it."""
        message, self.by = self._message, by
        mutex = message._mutex
        try:
            if not mutex.take(self):
                self._wait()
            self.op = op = operation()
            if op is not None:
                message._apply(op, message._submit(op, self))
        except BaseException as error:
            if not is_broken_off(by, error):
                mutex.release(self)
            raise
        mutex.release(self)

    def _wait(self) -> None:
        """The main thread cannot wait for itself, and would in a signal handler that has interrupted such a change."""
        mutex = self._message._mutex
        if self.by is not HERE:
            mutex.acquire(self)
            return
        while not mutex.acquire(self, _LOOK_S):
            holder = mutex.holder()
            if isinstance(holder, _Change) and holder.by is HERE and not holder.broken:
                raise Unavailable(
                    "a signal handler cannot end or extend a message while that is under way; nothing was done. Let the handler "
                    "set a flag",
                    definite=True,
                )

    def mend(self) -> None:
        """Bring it to its end, unless it was not begun, has come there, or comes there by itself."""
        if self.by is HERE and self._message._mutex.held_by(self):
            undisturbed.mend_apart(self._finish)

    def _finish(self) -> None:
        op, message = self.op, self._message
        try:
            if op is None:
                return
            outcomes = self.outcomes()  # what cannot be ended ends with its lease
            outcome = None if outcomes is None else decode_outcome(outcomes[0])
            if isinstance(outcome, (Answer, Rejected)):
                message._apply(op, outcome)
            elif not isinstance(op, queue_ops.Extend):
                message._apply(op, message._submit(op))
        finally:
            message._mutex.release(self)


def received(message: Message[T]) -> Message[T]:
    """A message that was taken. It is read at once: what cannot be read fails in the `with` line and not at a random place of the
    block, and is nobody's then.

    A queue with a type gives it back as it was, for a handle without one to take. Without a type nobody here could read it: that
    counts as a failed attempt, so that it does not hold up the queue forever.

    Raises InvalidValue, which names queue and message.
    """
    queue = message._queue
    try:
        message.read()
    except Exception as error:
        if undisturbed.is_interrupt(error):
            raise  # the message is not to blame, and is given back by who was interrupted
        # What cannot be given back ends with its lease.
        with best_effort, cleaning_up(queue.client):
            if queue.typed:
                message.give_back()
            else:
                message.nack(error=f"{type(error).__name__}: {error}")
        raise
    return message


def read_value(codec: ValueCodec[T], queue: str, number: int, data: bytes) -> T:
    """The value of a message. Raises InvalidValue, which names queue and message."""
    try:
        return codec.decode(data)
    except InvalidValue as error:
        found = InvalidValue(f"queue {queue!r}, message {number}: {error}")
        found.queue, found.id = queue, number
        raise found from None


def shown_key(key: bytes | None) -> Key:
    """The key as it was given; its bytes when they encode none; None when there was none."""
    if key is None:
        return None
    try:
        return decode_key(key)
    except InvalidKey:
        return key
