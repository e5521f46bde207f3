"""What commits send to other shards: kept in the home shard until a forwarder has done it there, each message once.

Messages of a generation for one shard are numbered in the order of commits. The forwarder does them in the target shard, in one
``Commit`` with a ``MoveCursor``, which is refused unless the cursor stands where it believes. ``Forwarded`` then removes them.
A client's own request numbers would not do: they must be contiguous for a shard, and clients are forgotten.
"""

from __future__ import annotations

from onefold import config
from onefold.fold.api import Store, StoreView
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import DropCursors, Forwarded, MoveCursor, Outgoing
from onefold.state.fold.live.rows import OutboxHead
from onefold.state.fold.outcomes import Rejected


def add(store: Store, generation: bytes, messages: tuple[Outgoing, ...]) -> int:
    """Put messages behind the last ones; bytes that now wait in the fullest of the shards' outboxes that got one."""
    fullest = 0
    heads: dict[int, OutboxHead] = {}
    for message in messages:
        head = heads.get(message.shard)
        if head is None:
            head = live_rows.outbox_head_of(store, live_rows.outbox_head_key(generation, message.shard))
        store.put(
            live_rows.OUTBOX, live_rows.outbox_key(generation, message.shard, head.next), message.writes
        )
        heads[message.shard] = OutboxHead(head.first, head.next + 1, head.size + len(message.writes))
    for shard, head in heads.items():
        store.put(
            live_rows.OUTBOX_HEADS, live_rows.outbox_head_key(generation, shard), live_rows.encode(head)
        )
        fullest = max(fullest, head.size)
    return fullest


def refusal(store: StoreView, write: MoveCursor) -> Rejected | None:
    """Why the cursor cannot be moved, if so."""
    if not live_rows.is_name(write.job) or write.to <= write.before:
        return Rejected("malformed", write.job[:100])
    key = cursor_key(write.job, write.generation, write.home)
    if write.generation < live_rows.dropped_below(store, write.job, write.home):
        return Rejected("over", f"{write.job} (generation {write.generation}) was dropped")
    if live_rows.is_old_cursor(store, key, write.since):
        return Rejected("forwarded", f"{write.job} was begun again")
    at = live_rows.cursor_of(store, key, write.since)
    return None if at == write.before else Rejected("forwarded", f"{write.job} is done up to {at} here")


def move(store: Store, write: MoveCursor) -> None:
    """Move the cursor."""
    live_rows.write_cursor(store, cursor_key(write.job, write.generation, write.home), write.since, write.to)


def drop_cursors(store: Store, op: DropCursors) -> bool:
    """Remove the cursors of generations that are dropped; whether there are more."""
    if op.below > live_rows.dropped_below(store, op.job, op.home):
        live_rows.put_dropped_below(store, op.job, op.home, op.below)
    due = [
        one for one in live_rows.cursors(store, op.job) if one.home == op.home and one.generation < op.below
    ]
    for one in due[: config.LIVE_DROPPED_RUNS_MAX]:
        store.delete(live_rows.CURSORS, cursor_key(op.job, one.generation, op.home))
    return len(due) > config.LIVE_DROPPED_RUNS_MAX


def forwarded(store: Store, op: Forwarded) -> int:
    """Remove what is done; how many messages."""
    generation = live_rows.generation_key(op.job, op.generation)
    key = live_rows.outbox_head_key(generation, op.shard)
    head = live_rows.outbox_head_of(store, key)
    upto = min(op.through + 1, head.next)
    if upto <= head.first:
        return 0
    start = live_rows.outbox_key(generation, op.shard, head.first)
    stop = live_rows.outbox_key(generation, op.shard, upto)
    removed = sum(len(writes) for _, writes in store.scan(live_rows.OUTBOX, start, stop))
    store.delete_range(live_rows.OUTBOX, start, stop)
    store.put(live_rows.OUTBOX_HEADS, key, live_rows.encode(OutboxHead(upto, head.next, head.size - removed)))
    return upto - head.first


def cursor_key(job: str, generation: int, home: int) -> bytes:
    """The key of a cursor in a target shard. ``home`` is in it: numbers are of one home shard's outbox."""
    return live_rows.outbox_head_key(live_rows.generation_key(job, generation), home)


def is_empty(store: StoreView, generation: bytes) -> bool:
    """Whether everything that the generation's commits sent to other shards is done there."""
    return all(head.first == head.next for _, head in live_rows.outbox_heads(store, generation))


def left(view: StoreView) -> list[tuple[str, int]]:
    """(job, generation) of those that were cancelled or dropped, and of which something still waits: no worker does it any more.
    Where nothing waits at all, that costs a look."""
    if next(iter(view.scan(live_rows.OUTBOX, limit=1)), None) is None:
        return []
    return [
        (name, number)
        for name, _ in live_rows.jobs(view)
        for number, row in live_rows.generations(view, name)
        if row.state in ("cancelled", "dropped")
        and not is_empty(view, live_rows.generation_key(name, number))
    ]
