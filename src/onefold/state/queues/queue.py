"""Queues: durable, with leases, attempts and dead letters.

``Queue`` is what ``db.queue(name)`` gives; ``with q.get() as msg`` takes a message. Every message is delivered at least once:
acknowledged when the block ends, given out again when it raises or when its taker falls silent. While a lease lasts nobody else
gets the message, and once an acknowledgement has returned nobody ever does.

Order: by number, as they were put. Messages with the same ``key`` are given out one at a time, each after the one before it was
acknowledged (or is dead); a delayed or failed one holds back those behind it. Messages without a key are independent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

from onefold import config
from onefold.arguments import check_flag, check_whole
from onefold.durations import seconds, wait_seconds
from onefold.errors import InvalidArgument, SpaceError
from onefold.machine import undisturbed
from onefold.machine.undisturbed import best_effort, if_possible
from onefold.shard.receipts import Receipt
from onefold.state.core import guard
from onefold.state.core.cancelling import Gate
from onefold.state.core.client import StateClient, rejection
from onefold.state.core.handover import HERE, Handover, carried_out, is_broken_off
from onefold.state.core.leases import keeper
from onefold.state.core.time_limits import one_call
from onefold.state.core.waiting import Pause
from onefold.state.encoding.keys import encode_key
from onefold.state.encoding.names import check_name, check_request_id
from onefold.state.encoding.values import ValueCodec
from onefold.state.fold.outcomes import Answer, decode_outcome
from onefold.state.fold.queues import ops as queue_ops
from onefold.state.fold.queues import rows as q
from onefold.state.queues.dead_letters import DeadLetter, read_letter
from onefold.state.queues.in_transaction import TxQueue, duration_ms, enqueue
from onefold.state.queues.messages import Message
from onefold.state.queues.taking import Taking
from onefold.state.queues.watcher import QueueWatcher

__all__ = ["DeadLetter", "Delivery", "Queue", "QueueCounts", "TxQueue"]

T = TypeVar("T")
_Duration = float | timedelta | str


class QueueCounts(NamedTuple):
    """How many messages are where."""

    ready: int
    delayed: int
    waiting: int
    """Behind another message of their key."""
    in_flight: int
    """Taken, and neither acknowledged nor given back."""
    dead: int
    """Dead letters that are kept aside."""


class Queue(Generic[T]):
    """A durable queue of a space. Thread-safe, and shared by all programs that open the space."""

    def __init__(
        self,
        client: StateClient,
        name: str,
        *,
        lease: _Duration = "30s",
        max_attempts: int = 5,
        dead_letter: str | None = None,
        type: type[T] | None = None,
    ) -> None:
        """Programs call ``db.queue``. ``lease``, ``max_attempts`` and ``dead_letter`` hold for what is taken through this handle.

        Raises InvalidArgument."""
        self.client = client
        """The core under this handle."""
        self._name = check_name("queue", name)
        self._lease_s = _positive(lease, "lease")
        self._lease_ms = max(1, duration_ms(self._lease_s))
        check_whole("max_attempts", max_attempts, least=1)
        self._max_attempts = min(max_attempts, 1 << 50)
        self._dead_letter = None if dead_letter is None else check_name("queue", dead_letter)
        if dead_letter == name:
            raise InvalidArgument(f"the dead letters of queue {name!r} cannot go into itself; name another")
        self.codec: ValueCodec[T] = ValueCodec(type)
        """What encodes and decodes its values."""
        self.typed = type is not None
        """Whether this handle has a type."""
        self.shard = client.shard_of(encode_key(name))
        """Where it is."""
        self._table = q.queue_table(name)
        self._watcher = QueueWatcher(client, name, self.shard)

    @property
    def name(self) -> str:
        """Its name."""
        return self._name

    def __repr__(self) -> str:
        return f"<Queue {self._name!r}>"

    def put(
        self,
        value: T,
        *,
        key: object = None,
        delay: _Duration | None = None,
        request_id: str | None = None,
    ) -> int:
        """Put a message; durable when this returns. Its number in the queue, which is its ``id``.

        ``key``: messages with the same key are given out one at a time, in order. ``delay``: it is not given out before.
        ``request_id``: it is put at most once under this name.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        return self.put_many((value,), key=key, delay=delay, request_id=request_id)[0]

    def put_many(
        self,
        values: Iterable[T],
        *,
        key: object = None,
        delay: _Duration | None = None,
        request_id: str | None = None,
    ) -> Sequence[int]:
        """Put messages in this order, all or none, in one record; their ids. Otherwise as ``put``.

        Raises:
            InvalidKey, InvalidValue, TooLarge, InvalidArgument: definite; a key, a value or an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        guard.check_plain(self.client, f"queue({self._name!r})")
        check_request_id(request_id)
        write = enqueue(self._name, values, key, delay, self.codec)
        if not write.messages:
            return range(0)
        done = self.client.commit(self.shard, (write,), request_id=request_id)
        if not done.results or not isinstance(done.results[0], int):
            raise InvalidArgument(
                f"request_id {request_id!r} was used by another operation before; nothing was put. Use a new one"
            )
        first = done.results[0]
        return range(first, first + len(write.messages))

    # -- taking

    def get(self, timeout: _Duration | None = None, *, renew: bool = False) -> Delivery[T]:
        """The next message, for a ``with`` block: ``with q.get(timeout="5s") as msg``; ``msg`` is None when none came in time.

        It is acknowledged when the block ends and given back when the block raises. When the lease was over before the
        acknowledgement, leaving the block raises Conflict: the message was or will be given to somebody else.

        ``timeout``: None waits for ever, 0 not at all. ``renew``: extend the lease in the background while the block runs.

        Entering the block raises InvalidValue, which names queue and message, when the value is not of the queue's type. The
        message is back in the queue then, as it was before, and a handle without ``type`` takes it.

        Raises:
            InvalidValue: definite, when the block is entered; the value is not of the queue's type. It names queue and
                message.
            Conflict: definite, when the block is left; the lease was over before.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        check_flag("renew", renew)
        return Delivery(self, None if timeout is None else wait_seconds(timeout), renew=renew)

    def take(self, timeout: _Duration | None = None) -> Message[T] | None:
        """The next message, to be ended by ``msg.ack()`` or ``msg.nack()``; None when none came in time. ``get`` is safer.

        Raises:
            InvalidValue: definite; the value is not of the queue's type. It names queue and message.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; nothing was taken.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; a message may be taken until its
                lease ends.
        """
        handover = self.handover()
        try:
            self.take_for(handover, None if timeout is None else wait_seconds(timeout))
            return handover.result
        except BaseException:
            handover.unwanted = True
            undisturbed.mend_later(handover)
            raise

    def handover(self) -> Handover[Message[T]]:
        """For ``take_for``: what its caller does not get is as before it was taken."""
        receipt = self.client.receipt(self.shard)
        return Handover(self.client, Message.give_back, receipt, self._found)

    def _found(self, receipt: Receipt) -> Message[T] | None:
        """What an interrupted take has taken."""
        outcomes = receipt.outcomes()
        outcome = None if outcomes is None else decode_outcome(outcomes[0])
        if not isinstance(outcome, Answer) or outcome.value is None:
            return None
        return Message(self, outcome.value, self._lease_s)

    def take_for(self, handover: Handover[Message[T]], timeout: float | None) -> None:
        """Wait for the next message and put it into the handover, which the caller gives up when it is interrupted."""
        guard.check_plain(self.client, f"queue({self._name!r})")
        taking = self.taking(timeout)
        while (pause := taking.look(handover)) is not None:
            taking.wait(pause)

    def taking(self, timeout: float | None, gate: Gate | None = None) -> Taking:
        """A wait for the next message, for those who make its looks themselves. ``gate``: by which it is given up from
        elsewhere; its looks take nothing from then on."""
        return Taking(self, self._watcher, timeout, gate)

    def look_for(self, taking: Taking) -> tuple[Message[T] | None, Pause | None]:
        """One look of such a wait: the message, if it was taken, and what to wait for before the next look, if there is one."""
        handover = self.handover()
        try:
            pause = taking.look(handover)
            return handover.result, pause
        except BaseException:
            handover.unwanted = True
            undisturbed.mend_later(handover)
            raise

    def take_one(self, handover: Handover[Message[T]]) -> Message[T] | None:
        """Take the next message now; None when none is ready. ``handover``: knows of it from then on."""
        forward = self._dead_letter is not None and self._dead_shard() != self.shard
        op = queue_ops.Take(
            self._name,
            self.client.shards[self.shard].member,
            self._lease_ms,
            self._max_attempts,
            None if forward else self._dead_letter,
            self._dead_letter if forward else None,
        )
        answer = self.submit(op, handover.receipt)
        if answer is None:
            return None
        message = handover.taken = Message(self, answer, self._lease_s)
        return message

    # -- what is in it

    @one_call
    def __len__(self) -> int:
        """How many messages are still to be acknowledged: ready, delayed, waiting behind another of their key, or in flight. Dead
        letters are not among them."""
        return self._counts().live

    @one_call
    def counts(self) -> QueueCounts:
        """How many messages are where.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        counts = self._counts()
        return QueueCounts(counts.ready, counts.delayed, counts.waiting, counts.flight, counts.dead)

    @one_call
    def dead(self, limit: int = 1000) -> list[DeadLetter[T]]:
        """The dead letters of this queue, by number, at most ``limit``: those that are kept aside and, with ``dead_letter``,
        those that are in that queue and not yet acknowledged there.

        One whose value does not fit the queue's type hides no other: its ``problem`` says why, and its ``value`` raises that.

        Raises:
            InvalidArgument: definite; an argument is not valid.
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, TooStale, TokenAhead: definite; it cannot be read at this consistency level now.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        guard.check_plain(self.client, f"queue({self._name!r})")
        check_whole("limit", limit, least=1)
        self._observe()
        with self.client.view(self.shard) as view:
            found = [
                *q.letters(view, self._table, q.DEAD, limit),
                *q.letters(view, self._table, q.OUTBOX, limit),
            ]
        letters = [
            self._letter(number, letter.value, letter.key, letter.tries.attempts, letter.tries.errors)
            for number, letter in found
        ]
        if self._dead_letter is not None:
            with self.client.view(self._dead_shard()) as view:
                for body in q.bodies(view, q.queue_table(self._dead_letter)):
                    if len(letters) < limit and body.origin is not None and body.origin[0] == self._name:
                        _, number, attempts = body.origin
                        letters.append(self._letter(number, body.value, body.key, attempts, body.errors))
        letters.sort(key=lambda letter: letter.id)
        return letters[:limit]

    @one_call
    def retry_dead(self) -> int:
        """Put the dead letters that are kept aside back at the end of the queue, as new messages; how many they were.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        guard.check_plain(self.client, f"queue({self._name!r})")
        return self._in_parts(queue_ops.RetryDead(self._name, config.EXPIRATIONS_PER_RECORD_MAX))

    @one_call
    def drop_dead(self) -> int:
        """Forget the dead letters that are kept aside; how many they were.

        Raises:
            TransactionError: definite; inside a transaction's block, whose own handles are to be used.
            Unavailable, SpaceError: definite; it could not be written.
            Timeout, AppendUnknown: indefinite, unless ``definite`` says otherwise; it may have been written.
        """
        guard.check_plain(self.client, f"queue({self._name!r})")
        limit = config.EXPIRATIONS_PER_RECORD_MAX
        with self.client.view(self.shard) as view:
            end = q.read_counts(view, self._table).next
        return self._in_parts(queue_ops.DropDead(self._name, end, limit))

    def _in_parts(self, op: queue_ops.RetryDead | queue_ops.DropDead) -> int:
        total = 0
        while True:
            done = int(self.submit(op))
            total += done
            if done < op.limit:
                return total

    def _letter(
        self, number: int, value: bytes, key: bytes | None, attempts: int, errors: tuple[str, ...]
    ) -> DeadLetter[T]:
        return read_letter(self.codec, self._name, number, value, key, attempts, errors)

    def _counts(self) -> q.Counts:
        guard.check_plain(self.client, f"queue({self._name!r})")
        self._observe()
        return q.Counts(self.client.peek(self.shard, self._table, q.HEAD))

    # -- leases

    def _observe(self) -> None:
        """Give up leases that are over, so that counts and dead letters move on although nobody takes."""
        try:
            while self._watcher.settle(self._watcher.look()):
                pass
        except SpaceError as error:  # opened read-only: others will
            undisturbed.let_pass(error)

    def forward_dead(self) -> None:
        """Move what has become a dead letter on to its queue in another shard, whose takers do not look here."""
        if self._dead_letter is not None and self._dead_shard() != self.shard:
            with if_possible:  # it stays here, and anyone who looks at the queue moves it
                self._observe()

    def _dead_shard(self) -> int:
        return (
            self.shard if self._dead_letter is None else self.client.shard_of(encode_key(self._dead_letter))
        )

    # -- for messages

    def submit(self, op: queue_ops.QueueOp, receipt: Receipt | None = None) -> Any:
        """What the fold answers. Raises Conflict (definite) when the lease that the operation names is over."""
        outcome = self.client.submit(self.shard, op, receipt=receipt)
        if isinstance(outcome, Answer):
            return outcome.value
        raise rejection(outcome)


class Delivery(Generic[T]):
    """What ``Queue.get`` gives, for one ``with`` block at a time."""

    __slots__ = ("_end", "_queue", "_renew", "_timeout")

    def __init__(self, queue: Queue[T], timeout: float | None, *, renew: bool) -> None:
        self._queue = queue
        self._timeout = timeout
        self._renew = renew
        self._end = _NO_END

    def __enter__(self) -> Message[T] | None:
        if self._end.message is not None:
            raise InvalidArgument("this delivery is in use; call get() for each message")
        queue = self._queue
        handover = queue.handover()
        try:
            queue.take_for(handover, self._timeout)
            message = handover.result
            if message is not None and self._renew:
                keeper(queue.client).renewer.add(message)
            self._end = _End(message, renewed=self._renew)
            return message
        except BaseException:
            self._end = _NO_END
            handover.unwanted = True
            undisturbed.mend_later(handover)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = self._end
        try:
            end.error = error
            self._end = _NO_END
            if end.message is None:
                return
            carried_out(self._queue.client, self._queue.shard, end.reach)
        except BaseException:
            undisturbed.mend_later(end)
            raise

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"get() gives what a `with` block needs, not a message: with q.get() as msg: msg.{name}"
        )


class _End:
    """The end of a block, which is reached also when it is interrupted."""

    __slots__ = ("_begun", "_over", "_renewed", "error", "message")

    def __init__(self, message: Message[Any] | None, *, renewed: bool) -> None:
        self.message = message
        self.error: BaseException | None = None
        """What the block raised."""
        self._renewed = renewed
        self._begun: dict[int, object] = {}
        """Who reaches it: the first."""
        self._over = False

    def mend(self) -> None:
        """Reach it in a thread of its own, unless another does or it was reached."""
        if self.message is not None and not self._over and self._begun.setdefault(0, HERE) is HERE:
            undisturbed.mend_apart(self._reach)

    def reach(self, by: object) -> None:
        """Acknowledge the message, or give it back when the block raised; once. ``by``: see ``carried_out``."""
        if self._begun.setdefault(0, by) is not by:
            return
        try:
            self._reach()
        except BaseException as failure:
            self._over = not is_broken_off(by, failure)
            raise
        self._over = True

    def _reach(self) -> None:
        message, error = self.message, self.error
        if message is None:
            return
        client = message._queue.client
        if error is None:
            client.check_process()
        if self._renewed and not client.forked:
            keeper(client).renewer.remove(message)
        if message.ended:
            return  # by msg.ack() or msg.nack() in the block
        if error is None:
            message.ack()
            return
        with best_effort:  # the block's own error is the one to see; the lease ends by itself
            message.nack(error=f"{type(error).__name__}: {error}")


_NO_END = _End(None, renewed=False)


def _positive(value: _Duration, name: str) -> float:
    found = seconds(value, name)
    if found <= 0:
        raise InvalidArgument(f"{name} must be longer than nothing; got {value!r}")
    return found
