"""Queues in the state fold.

A take is an operation that the fold answers, so takers and producers never conflict. A message that somebody has carries an
*epoch*, the offset of its take or of its lease's last extension; anyone who ends or extends the lease names the epoch, so a taker
that was given up cannot act on a message that another one has. No lease ends by log time: see ``leases``.
"""

from __future__ import annotations

from typing import Any, get_args

from onefold import config
from onefold.fold.api import NEVER, Context, Store, StoreView
from onefold.state.fold.kind import Kind
from onefold.state.fold.outcomes import Answer, Outcome, Rejected
from onefold.state.fold.queues import rows as q
from onefold.state.fold.queues.ops import (
    QUEUE_RETURNS,
    Ack,
    DropDead,
    Enqueue,
    ExpireLease,
    Extend,
    Forwarded,
    Message,
    Nack,
    QueueOp,
    QueueWrite,
    RetryDead,
    Take,
)
from onefold.state.fold.rows import due_at, due_before, ends_at

LOST = "lost"
"""The reason of a rejection: the lease of that epoch is over."""
TAKER_DIED = "the process that had the message died"
LEASE_ENDED = "the lease ended before the message was acknowledged"


def release(store: Store, context: Context) -> int:
    """Let delayed messages go whose time has come, earliest first, up to a bound for each record. When there is something to do
    next."""
    first = store.first(q.QUEUE_DUE)
    if first is None:
        return NEVER
    stop = due_before(context.now_ms)
    if first >= stop:
        return due_at(first)
    due = list(store.scan(q.QUEUE_DUE, stop=stop, limit=config.EXPIRATIONS_PER_RECORD_MAX))
    all_counts: dict[str, q.Counts] = {}
    for entry, tries in due:
        _, name, number = q.read_due_key(entry)
        table = q.queue_table(name)
        counts = all_counts.get(table)
        if counts is None:
            counts = all_counts[table] = q.read_counts(store, table)
        counts.delayed -= 1
        counts.ready += 1
        store.put(table, q.numbered(q.READY, number), tries)
    for table, counts in all_counts.items():
        q.write_counts(store, table, counts)
    if due:
        store.delete_range(q.QUEUE_DUE, b"", due[-1][0] + b"\x00")
    return context.now_ms  # perhaps there was more of it than one record lets go


def refusal(store: StoreView, write: QueueWrite) -> Rejected | None:  # noqa: ARG001
    """Why the write cannot be done, if so. Depends on the write alone, so a prepared one can always be done later."""
    if not _is_name(write.queue) or not write.messages:
        return Rejected("malformed", write.queue[:100])
    if any(message.key is not None and len(message.key) > config.KEY_BYTES_MAX for message in write.messages):
        return Rejected("malformed", write.queue)
    return None


def apply(store: Store, context: Context, write: QueueWrite) -> object:
    """Do the write; its result."""
    return _enqueue(store, context, write.queue, write.messages)


def apply_op(store: Store, context: Context, op: QueueOp, fold_version: int) -> Outcome:
    """Apply an operation of a taker."""
    if not _is_name(op.queue):
        return Rejected("malformed", op.queue[:100])
    match op:
        case Take():
            return _take(store, context, op)
        case RetryDead():
            return Answer(_retry_dead(store, context, op))
        case DropDead():
            return Answer(_drop_dead(store, op))
        case Forwarded():
            _forwarded(store, op)
            return Answer(None)
    table = q.queue_table(op.queue)
    flight = q.read_flight(store, table, op.number)
    if flight is None or flight.epoch != op.epoch:
        return Rejected(LOST, op.queue)
    match op:
        case Ack():
            _ack(store, context, op)
            return Answer(None)
        case Nack() if not op.counted and fold_version >= QUEUE_RETURNS:
            _give_back(store, context, op, flight)
            return Answer(False)
        case Nack():
            return Answer(_fail(store, context, op, flight, op.error, op.delay_ms))
        case ExpireLease():
            error = TAKER_DIED if op.taker_died else LEASE_ENDED
            return Answer(_fail(store, context, op, flight, error, 0))
        case Extend():
            return Answer(_extend(store, context, op, flight))


def _is_name(name: str) -> bool:
    return 0 < len(name.encode()) <= config.NAME_BYTES_MAX


# -- putting


def _enqueue(store: Store, context: Context, name: str, messages: tuple[Message, ...]) -> int:
    table = q.queue_table(name)
    counts = q.read_counts(store, table)
    first = counts.next
    rows: list[tuple[bytes, bytes]] = []
    exposed_here: dict[bytes, None] = {}
    for message in messages:
        number, key = counts.next, message.key
        counts.next += 1
        if message.dead:
            letter = q.Letter(message.value, key, q.Tries(message.dead, message.errors))
            rows.append((q.numbered(q.DEAD, number), q.encode(letter)))
            counts.dead += 1
            continue
        due_ms = ends_at(context.now_ms, message.delay_ms) or 0 if message.delay_ms else 0
        body = q.Body(message.value, key, due_ms, message.origin, message.errors)
        rows.append((q.numbered(q.MESSAGE, number), q.encode(body)))
        if key is not None:
            marker = q.EXPOSED + key
            if marker in exposed_here or store.get(table, marker) is not None:
                rows.append((q.numbered(q.waiting_prefix(key), number), b""))
                counts.waiting += 1
                continue
            exposed_here[marker] = None
            rows.append((marker, b""))
        if due_ms > context.now_ms:
            store.put(q.QUEUE_DUE, q.due_key(due_ms, name, number), b"")
            counts.delayed += 1
        else:
            rows.append((q.numbered(q.READY, number), b""))
            counts.ready += 1
    rows.append((q.HEAD, counts.encode()))
    store.put_many(table, rows)
    return first


def _expose(
    store: Store,
    context: Context,
    name: str,
    counts: q.Counts,
    number: int,
    due_ms: int,
    tries: q.Tries = q.NEVER_TRIED,
) -> None:
    """Make the message ready, or hold it back until it is due."""
    row = q.encode_tries(tries)
    if due_ms > context.now_ms:
        store.put(q.QUEUE_DUE, q.due_key(due_ms, name, number), row)
        counts.delayed += 1
    else:
        store.put(q.queue_table(name), q.numbered(q.READY, number), row)
        counts.ready += 1


# -- taking and giving back


def _take(store: Store, context: Context, op: Take) -> Outcome:
    for other in (op.dead_letter, op.forward_to):
        if other is not None and (not _is_name(other) or other == op.queue):
            return Rejected("malformed", op.queue)
    table = q.queue_table(op.queue)
    counts = q.read_counts(store, table)
    found = next(store.scan(table, q.READY, q.after_kind(q.READY), limit=1), None) if counts.ready else None
    if found is None:
        return Answer(None)
    number, tries = q.number_of(found[0]), q.read_tries(found[1])
    body = q.read_body(store, table, number)
    flight = q.Flight(
        context.offset, op.member, op.lease_ms, op.max_attempts, tries, op.dead_letter, op.forward_to
    )
    counts.ready -= 1
    counts.flight += 1
    store.delete(table, found[0])
    store.put_many(table, [(q.numbered(q.FLIGHT, number), q.encode(flight)), (q.HEAD, counts.encode())])
    errors = body.errors + tries.errors
    return Answer((number, context.offset, tries.attempts + 1, body.value, body.key, errors))


def _extend(store: Store, context: Context, op: Extend, flight: q.Flight) -> int:
    extended = q.Flight(
        context.offset,
        flight.member,
        op.lease_ms,
        flight.max_attempts,
        flight.tries,
        flight.dead_letter,
        flight.forward_to,
    )
    store.put(q.queue_table(op.queue), q.numbered(q.FLIGHT, op.number), q.encode(extended))
    return context.offset


def _ack(store: Store, context: Context, op: Ack) -> None:
    table = q.queue_table(op.queue)
    counts = q.read_counts(store, table)
    key = q.read_body(store, table, op.number).key
    counts.flight -= 1
    store.delete(table, q.numbered(q.FLIGHT, op.number))
    _remove(store, context, op.queue, counts, op.number, key)
    q.write_counts(store, table, counts)


def _fail(
    store: Store, context: Context, op: Nack | ExpireLease, flight: q.Flight, error: str, delay_ms: int
) -> bool:
    """One more try has failed; whether the message is dead by it."""
    table = q.queue_table(op.queue)
    counts = q.read_counts(store, table)
    tries = flight.tries.failed(error)
    counts.flight -= 1
    store.delete(table, q.numbered(q.FLIGHT, op.number))
    dead = tries.attempts >= flight.max_attempts
    if dead:
        _die(store, context, op.queue, counts, op.number, flight, tries)
    else:
        # Its key's other messages continue waiting behind it: they are given out in order.
        due_ms = ends_at(context.now_ms, delay_ms) or 0 if delay_ms else 0
        _expose(store, context, op.queue, counts, op.number, due_ms, tries)
    q.write_counts(store, table, counts)
    return dead


def _give_back(store: Store, context: Context, op: Nack, flight: q.Flight) -> None:
    """The message is as it was before it was taken."""
    table = q.queue_table(op.queue)
    counts = q.read_counts(store, table)
    counts.flight -= 1
    store.delete(table, q.numbered(q.FLIGHT, op.number))
    _expose(store, context, op.queue, counts, op.number, 0, flight.tries)
    q.write_counts(store, table, counts)


def _remove(
    store: Store, context: Context, name: str, counts: q.Counts, number: int, key: bytes | None
) -> None:
    """The message is gone: forget it, and expose the next one of its key."""
    table = q.queue_table(name)
    store.delete(table, q.numbered(q.MESSAGE, number))
    if key is None:
        return
    prefix = q.waiting_prefix(key)
    found = next(store.scan(table, prefix, prefix + b"\xff" * 9, limit=1), None)
    if found is None:
        store.delete(table, q.EXPOSED + key)
        return
    following = q.number_of(found[0])
    store.delete(table, found[0])
    counts.waiting -= 1
    _expose(store, context, name, counts, following, q.read_body(store, table, following).due_ms)


# -- dead letters


def _die(
    store: Store,
    context: Context,
    name: str,
    counts: q.Counts,
    number: int,
    flight: q.Flight,
    tries: q.Tries,
) -> None:
    table = q.queue_table(name)
    body = q.read_body(store, table, number)
    _remove(store, context, name, counts, number, body.key)
    if flight.dead_letter is not None:
        origin = (name, number, tries.attempts)
        errors = (*body.errors, *tries.errors)[-config.QUEUE_ERRORS_KEPT :]
        message = Message(body.value, body.key, 0, origin, errors)
        _enqueue(store, context, flight.dead_letter, (message,))
        return
    letter = q.Letter(body.value, body.key, tries, flight.forward_to)
    if flight.forward_to is None:
        counts.dead += 1
        store.put(table, q.numbered(q.DEAD, number), q.encode(letter))
    else:
        counts.outbox += 1
        store.put(table, q.numbered(q.OUTBOX, number), q.encode(letter))


def _retry_dead(store: Store, context: Context, op: RetryDead) -> int:
    table = q.queue_table(op.queue)
    found = q.letters(store, table, q.DEAD, min(op.limit, config.EXPIRATIONS_PER_RECORD_MAX))
    if not found:
        return 0
    counts = q.read_counts(store, table)
    counts.dead -= len(found)
    store.delete_range(table, q.DEAD, q.numbered(q.DEAD, found[-1][0] + 1))
    q.write_counts(store, table, counts)
    again = tuple(Message(letter.value, letter.key, errors=letter.tries.errors) for _, letter in found)
    _enqueue(store, context, op.queue, again)
    return len(found)


def _drop_dead(store: Store, op: DropDead) -> int:
    table = q.queue_table(op.queue)
    limit = min(op.limit, config.EXPIRATIONS_PER_RECORD_MAX)
    found = list(store.scan(table, q.DEAD, q.numbered(q.DEAD, op.through + 1), limit=limit))
    if found:
        counts = q.read_counts(store, table)
        counts.dead -= len(found)
        store.delete_range(table, q.DEAD, found[-1][0] + b"\x00")
        q.write_counts(store, table, counts)
    return len(found)


def _forwarded(store: Store, op: Forwarded) -> None:
    table = q.queue_table(op.queue)
    row = q.numbered(q.OUTBOX, op.number)
    if store.get(table, row) is not None:
        counts = q.read_counts(store, table)
        counts.outbox -= 1
        store.delete(table, row)
        q.write_counts(store, table, counts)


def _want(found: object, write: Any) -> None:
    """No locks: what is put meets no other write."""


KIND = Kind(
    writes=(Enqueue,),
    refusal=refusal,
    apply=apply,
    want=_want,
    operations=get_args(QueueOp),
    apply_op=apply_op,
    advance=release,
    version=QUEUE_RETURNS,
)
