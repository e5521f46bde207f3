"""Operations of queues: see ``state.fold.queues.fold``."""

from __future__ import annotations

import msgspec

from onefold.state.fold.kind import Natural, Operation, Positive, Write

QUEUE_RETURNS = 2
"""The fold version from which a message can be given back without a failed try."""


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message: its value's bytes, the key that orders it among others, and how long it is held back."""

    value: bytes
    key: bytes | None = None
    delay_ms: Natural = 0
    origin: tuple[str, Natural, Natural] | None = None
    """Of a dead letter: the queue it died in, its number there, and how often it had been tried."""
    errors: tuple[str, ...] = ()
    """Of a dead letter: what its tries ended with."""
    dead: Natural = 0
    """More than zero: it is a dead letter of this queue itself, after so many tries (imported from elsewhere)."""


class Enqueue(Write, frozen=True, array_like=True, tag="enq"):
    """Put messages into a queue. Blind; may be part of a transaction. Result: the number of the first of them."""

    queue: str
    messages: tuple[Message, ...]


class Take(Operation, frozen=True, array_like=True, tag="take"):
    """Take the next message. Answer: (number, epoch, attempt, value, key, errors), or None when none is ready."""

    queue: str
    member: str
    """The process that takes it (``Shard.member``): when it is known to be dead, its lease ends."""
    lease_ms: Positive
    max_attempts: Positive
    dead_letter: str | None = None
    """The queue of this shard that gets it after the last attempt; None: it is kept aside."""
    forward_to: str | None = None
    """The same, in another shard: it is kept aside until a client has forwarded it."""


class Ack(Operation, frozen=True, array_like=True, tag="ack"):
    """The message is done with. Rejected (``lost``) unless the epoch is that of its present lease. Answer: None."""

    queue: str
    number: Natural
    epoch: Natural


class Nack(Operation, frozen=True, array_like=True, tag="nack"):
    """The try has failed: give the message out again, after the delay, or never. Rejected (``lost``) as ``Ack``.

    Answer: whether the message is dead.
    """

    queue: str
    number: Natural
    epoch: Natural
    error: str
    delay_ms: Natural = 0
    counted: bool = True
    """False: nobody was given the message, so this was no try, and it is as before it was taken. Only from fold version
    ``QUEUE_RETURNS`` on; before, it is a failed try like others."""


class Extend(Operation, frozen=True, array_like=True, tag="ext"):
    """The lease starts again. Rejected (``lost``) as ``Ack``. Answer: the new epoch."""

    queue: str
    number: Natural
    epoch: Natural
    lease_ms: Positive


class ExpireLease(Operation, frozen=True, array_like=True, tag="explease"):
    """An observer saw no sign of the taker for the lease's length, or knows it to be dead.

    Rejected (``lost``) as ``Ack``, so it ends only the lease that the observer saw. Answer: whether the message is dead.
    """

    queue: str
    number: Natural
    epoch: Natural
    taker_died: bool


class RetryDead(Operation, frozen=True, array_like=True, tag="retrydead"):
    """Put dead letters that are kept aside back at the end of the queue, oldest first. Answer: how many."""

    queue: str
    limit: Positive


class DropDead(Operation, frozen=True, array_like=True, tag="dropdead"):
    """Forget the dead letters up to this number that are kept aside. Answer: how many."""

    queue: str
    through: Natural
    limit: Positive


class Forwarded(Operation, frozen=True, array_like=True, tag="fwd"):
    """The dead letter of that number is in its queue in another shard. Answer: None."""

    queue: str
    number: Natural


QueueWrite = Enqueue
QueueOp = Take | Ack | Nack | Extend | ExpireLease | RetryDead | DropDead | Forwarded
