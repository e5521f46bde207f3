"""Streams in the state fold: appends, retention, and what a stream is like."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import msgspec

from onefold import config
from onefold.fold.api import Context, Store, StoreView
from onefold.invariants import invariant
from onefold.state.fold import blobs, lock_table
from onefold.state.fold.kind import Kind
from onefold.state.fold.outcomes import Answer, Outcome, Rejected
from onefold.state.fold.streams import consumers as consumer_fold
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import (
    STREAM_BLOBS_VERSION,
    Append,
    AppendBlob,
    CommitOffsets,
    MakeStream,
    Retain,
    StreamOp,
    StreamWrite,
)
from onefold.state.fold.streams.rows import Head, StreamRow

_COUNT_MAX = 1 << 31


def refusal(store: StoreView, write: StreamWrite) -> Rejected | None:
    """Why the write cannot be done, if so."""
    if isinstance(write, CommitOffsets):
        return consumer_fold.refusal(store, write)
    if not _is_name(write.stream) or not 0 < write.count < _COUNT_MAX or not 0 <= write.format <= 255:
        return Rejected("malformed", write.stream[:100])
    if isinstance(write, AppendBlob) and not _is_plain(write):
        return Rejected("malformed", write.stream)
    known = _stream(store, write.stream)
    if known is None:
        return Rejected("no_stream", write.stream)
    if not 0 <= write.partition < known.partitions:
        return Rejected("malformed", write.stream)
    return None


def apply(store: Store, context: Context, write: StreamWrite) -> object:
    """Do the write; its result."""
    if isinstance(write, CommitOffsets):
        consumer_fold.commit_offsets(store, write)
        return None
    return _append(store, context, write)


def apply_op(store: Store, context: Context, op: StreamOp, fold_version: int) -> Outcome:  # noqa: ARG001
    """Apply an operation of streams."""
    if not _is_name(op.stream):
        return Rejected("malformed", op.stream[:100])
    match op:
        case MakeStream():
            return _make(store, op)
        case Retain():
            known = _stream(store, op.stream)
            if known is None or not 0 <= op.partition < known.partitions:
                return Rejected("no_stream", op.stream)
            head = stream_rows.head_of(store, op.stream, op.partition)
            left, removed = _retire(store, context, op.stream, op.partition, head, known.retention_ms)
            if removed:
                _put_head(store, op.stream, op.partition, left)
            return Answer(removed)
        case _:
            return consumer_fold.apply_op(store, op)


def _is_plain(write: AppendBlob) -> bool:
    """Hops keep no blobs: their records go too soon."""
    named = 0 < len(write.blob) <= blobs.BLOB_CHARS_MAX
    return named and 0 < write.size < _COUNT_MAX and not write.stream.startswith(stream_rows.HOP_PREFIX)


def _is_name(name: str) -> bool:
    return 0 < len(name.encode()) <= config.NAME_BYTES_MAX


def _stream(store: StoreView, name: str) -> StreamRow | None:
    return stream_rows.read_stream(store.get(stream_rows.STREAMS, name.encode()))


def _put_head(store: Store, stream: str, partition: int, head: Head) -> None:
    whole = head.first <= head.next and head.bytes >= 0
    invariant(whole, "a partition ends behind its beginning", stream=stream, partition=partition, head=head)
    store.put(
        stream_rows.segment_table(stream, partition), stream_rows.HEAD_KEY, stream_rows.write_head(head)
    )


def _make(store: Store, op: MakeStream) -> Outcome:
    limits = op.retention_ms is None or 0 <= op.retention_ms < stream_rows.OFFSET_MAX
    if not limits or not 0 <= op.version < stream_rows.OFFSET_MAX:
        return Rejected("malformed", op.stream)
    if not 0 < op.partitions <= config.STREAM_PARTITIONS_MAX:
        return Rejected("malformed", op.stream)
    known = _stream(store, op.stream)
    wanted = known
    if known is None:
        wanted = StreamRow(op.partitions, op.retention_ms, max(op.version, 1))
    elif op.version > known.version:
        wanted = StreamRow(known.partitions, op.retention_ms, op.version)
    elif op.version == 0 and op.change and op.retention_ms != known.retention_ms:
        wanted = StreamRow(known.partitions, op.retention_ms, known.version + 1)
    if wanted is None:
        return Rejected("malformed", op.stream)
    if wanted != known:
        store.put(stream_rows.STREAMS, op.stream.encode(), msgspec.msgpack.encode(wanted))
    return Answer([wanted.partitions, wanted.retention_ms, wanted.version])


def _append(store: Store, context: Context, write: Append | AppendBlob) -> tuple[int, int, int]:
    known = _stream(store, write.stream)
    retention_ms = None if known is None else known.retention_ms
    head = stream_rows.head_of(store, write.stream, write.partition)
    head, _ = _retire(store, context, write.stream, write.partition, head, retention_ms)
    head, base = _add(store, write, head, context.now_ms)
    _put_head(store, write.stream, write.partition, head)
    return write.partition, base, context.now_ms


def _add(store: Store, write: Append | AppendBlob, head: Head, now_ms: int) -> tuple[Head, int]:
    """Put the records behind the last; the new head, and the offset of the first of them."""
    table, base = stream_rows.segment_table(write.stream, write.partition), head.next
    size = write.size if isinstance(write, AppendBlob) else len(write.frame)
    was_empty = head.first == head.next
    after = head._replace(next=base + write.count)
    if isinstance(write, AppendBlob):
        row = stream_rows.new_segment_blob(now_ms, write.count, write.format, size, write.blob)
        store.put(table, stream_rows.segment_key(base), row)
        blobs.name(store, write.blob)
        after = after._replace(last_base=base, last_bytes=config.STREAM_MERGE_BYTES_MAX, last_from_ms=now_ms)
        added = size
    elif size > config.STREAM_INLINE_BYTES_MAX:
        row = stream_rows.new_segment_beside(now_ms, write.count, write.format, size)
        store.put(table, stream_rows.segment_key(base), row)
        store.put(
            stream_rows.frame_table(write.stream, write.partition), stream_rows.segment_key(base), write.frame
        )
        after = after._replace(last_base=base, last_bytes=config.STREAM_MERGE_BYTES_MAX, last_from_ms=now_ms)
        added = size
    else:
        run = stream_rows.write_run(now_ms, write.count, write.format, write.frame)
        added = len(run)
        fits = head.last_bytes + added <= config.STREAM_MERGE_BYTES_MAX
        recent = now_ms - head.last_from_ms < config.STREAM_MERGE_MS
        last = None
        if not was_empty and fits and recent:
            last = store.get(table, stream_rows.segment_key(head.last_base))
        if last is not None:
            store.put(
                table,
                stream_rows.segment_key(head.last_base),
                stream_rows.extend_segment(last, run, write.count, now_ms),
            )
            after = after._replace(last_bytes=head.last_bytes + added)
        else:
            store.put(table, stream_rows.segment_key(base), stream_rows.new_segment(run, write.count, now_ms))
            after = after._replace(last_base=base, last_bytes=added, last_from_ms=now_ms)
    if was_empty or after.last_base == head.first:
        after = after._replace(oldest_ms=now_ms)
    return after._replace(bytes=head.bytes + added), base


def _retire(
    store: Store, context: Context, stream: str, partition: int, head: Head, retention_ms: int | None
) -> tuple[Head, int]:
    """Remove segments that are past the retention, oldest first, up to a bound; the new head (not stored), and how many."""
    if retention_ms is None:
        return head, 0
    retired = Retired(store, stream, partition, context.now_ms - retention_ms)
    return _without_first(store, context, stream, partition, head, retired.may_go)


class Retired:
    """What retention removes of a partition at a moment: segments that were written to before it, and of those that a live job
    has not read, the ones that it may not have kept so long. For one pass over them."""

    def __init__(self, view: StoreView, stream: str, partition: int, due_ms: int) -> None:
        self._view = view
        self._place = stream, partition
        self._due_ms = due_ms
        self._holds: list[stream_rows.Hold] | None = None

    def may_go(self, at: Head, count: int) -> bool:
        """Whether the first segment behind that head may, which has so many records."""
        if at.oldest_ms >= self._due_ms:
            return False
        if self._holds is None:  # looked for when something is due only: appends are to be cheap
            self._holds = stream_rows.holds_of(self._view, *self._place)
        return not any(
            hold.next < at.first + count and at.oldest_ms >= self._due_ms - hold.hold_ms
            for hold in self._holds
        )


def is_due(view: StoreView, stream: str, partition: int, retention_ms: int, now_ms: int) -> bool:
    """Whether retention has something to remove then."""
    head = stream_rows.head_of(view, stream, partition)
    if head.first == head.next or head.oldest_ms >= now_ms - retention_ms:
        return False
    row = view.get(stream_rows.segment_table(stream, partition), stream_rows.segment_key(head.first))
    retired = Retired(view, stream, partition, now_ms - retention_ms)
    return row is not None and retired.may_go(head, stream_rows.segment_head(row)[1])


def trim(store: Store, context: Context, stream: str, partition: int, before: int) -> int:
    """Remove segments whose records are all before that offset, up to a bound; how many."""
    head = stream_rows.head_of(store, stream, partition)
    left, removed = _without_first(
        store, context, stream, partition, head, lambda at, count: at.first + count <= before
    )
    if removed:
        _put_head(store, stream, partition, left)
    return removed


def _without_first(
    store: Store,
    context: Context,
    stream: str,
    partition: int,
    head: Head,
    may_go: Callable[[Head, int], bool],
) -> tuple[Head, int]:
    """Remove segments for as long as the first may go. ``may_go``: by the head before it, and its records."""
    removed = 0
    table = stream_rows.segment_table(stream, partition)
    while head.first < head.next and removed < config.STREAM_RETIRE_SEGMENTS_MAX:
        key = stream_rows.segment_key(head.first)
        row = store.get(table, key)
        if row is None or not may_go(head, stream_rows.segment_head(row)[1]):
            break
        beside, count, _, _ = stream_rows.segment_head(row)
        store.delete(table, key)
        if beside:
            store.delete(stream_rows.frame_table(stream, partition), key)
        blob = stream_rows.blob_of(row)
        if blob:
            blobs.unname(store, context, blob)
        first = head.first + count
        following = store.get(table, stream_rows.segment_key(first)) if first < head.next else None
        oldest_ms = 0 if following is None else stream_rows.segment_head(following)[3]
        head = head._replace(
            first=first, bytes=head.bytes - stream_rows.frame_bytes(row), oldest_ms=oldest_ms
        )
        removed += 1
    return head, removed


def want(found: lock_table.Wants, write: StreamWrite) -> None:
    """The locks that the write calls for: none for records, which meet no other write; one for the offsets of a group."""
    if isinstance(write, CommitOffsets):
        place = lock_table.place_of(write)
        lock_table.want_key(found, place, write.group.encode(), lock_table.EXCLUSIVE)


KIND = Kind(
    writes=get_args(StreamWrite),
    refusal=refusal,
    apply=apply,
    want=want,
    operations=get_args(StreamOp),
    apply_op=apply_op,
    naming=(AppendBlob,),
    version=STREAM_BLOBS_VERSION,
    later={AppendBlob: STREAM_BLOBS_VERSION},
)
