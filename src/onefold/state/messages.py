"""A message that was taken from a queue."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from onefold import config
from onefold.durations import seconds
from onefold.errors import Conflict, InvalidArgument, InvalidKey, InvalidValue
from onefold.state import queue_ops
from onefold.state.handover import apart
from onefold.state.keys import Key, decode_key
from onefold.state.time_limits import cleaning_up
from onefold.state.values import ValueCodec

if TYPE_CHECKING:
    from onefold.state.queues import Queue

T = TypeVar("T")

_MS_MAX = 1 << 50


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
        self._mutex = threading.Lock()
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
        """Extend it if it has not ended; False when it has."""
        with self._mutex:
            if not self._ended:
                self._extend(self._lease_s)
            return not self._ended

    def extend(self, lease: float | timedelta | str | None = None) -> None:
        """The lease starts again now, with the queue's length or this one. Raises Conflict (definite) when it is over."""
        lease_s = self._lease_s if lease is None else seconds(lease, "lease")
        if lease_s <= 0:
            raise InvalidArgument(f"lease must be longer than nothing; got {lease!r}")
        self._queue.client.check_process()
        self._apart(lambda: self._extend(lease_s))

    def ack(self) -> None:
        """It is done with and never given out again. Leaving the ``with`` block does this.

        Raises Conflict (definite) when the lease is over: then it is or will be given to somebody else."""
        client = self._queue.client
        client.check_process()
        apart(client, self._ack)

    def _ack(self) -> None:
        with self._mutex:
            self._check_open()
            self._end(queue_ops.Ack(self._queue.name, self.id, self._epoch))

    def nack(self, *, error: str = "given back", delay: float | timedelta | str | None = None) -> None:
        """Give it back as a failed attempt: it is given out again, after ``delay``, or goes to the dead letters.

        Raises Conflict (definite) when the lease is over."""
        delay_ms = 0 if delay is None else min(round(seconds(delay, "delay") * 1000), _MS_MAX)
        self._queue.client.check_process()
        text = str(error)[: config.QUEUE_ERROR_CHARS_MAX].encode(errors="replace").decode()
        self._apart(lambda: self._end(queue_ops.Nack(self._queue.name, self.id, self._epoch, text, delay_ms)))
        self._queue.forward_dead()

    def give_back(self) -> None:
        """Nobody was given it: it is as before it was taken, without a failed try. In a space that programs of an earlier release
        have open too, it counts as one.

        Raises Conflict (definite) when the lease is over."""
        counted = not self._queue.client.reach_version(self._queue.shard, queue_ops.QUEUE_RETURNS)
        with self._mutex:
            if not self._ended:
                self._end(queue_ops.Nack(self._queue.name, self.id, self._epoch, "nobody got it", 0, counted))
        if counted:
            self._queue.forward_dead()

    def _apart(self, work: Callable[[], None]) -> None:
        """One change of the lease after the other, to its end also when the caller is interrupted: what it did is known here."""

        def alone() -> None:
            with self._mutex:
                self._check_open()
                work()

        apart(self._queue.client, alone)

    def _end(self, op: queue_ops.Ack | queue_ops.Nack) -> None:
        try:
            with cleaning_up(self._queue.client):
                self._queue.submit(op)
        except Conflict:
            self._ended = True
            raise self._lost() from None
        self._ended = True

    def _extend(self, lease_s: float) -> None:
        lease_ms = min(max(1, round(lease_s * 1000)), _MS_MAX)
        op = queue_ops.Extend(self._queue.name, self.id, self._epoch, lease_ms)
        try:
            self._epoch = int(self._queue.submit(op))
        except Conflict:
            raise self._lost() from None

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


def received(queue: Queue[T], answer: Any, lease_s: float) -> Message[T]:
    """The message of a take's answer. It is read at once: what cannot be read fails in the `with` line and not at a random place
    of the block, and is nobody's then.

    A queue with a type gives it back as it was, for a handle without one to take. Without a type nobody here could read it: that
    counts as a failed attempt, so that it does not hold up the queue forever.

    Raises InvalidValue, which names queue and message.
    """
    message = Message(queue, answer, lease_s)
    try:
        message.read()
    except Exception as error:
        # What cannot be given back ends with its lease.
        with contextlib.suppress(Exception), cleaning_up(queue.client):
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
