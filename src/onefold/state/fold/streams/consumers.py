"""Consumer groups in the state fold: who is a member, who owns which partition, and what was committed.

A new generation begins whenever a member comes or goes. Members are in the order of their ids and partitions are dealt out
to them in turn, so every replica deals alike. A commit names its generation, and for each offset the one that it moves from;
so a member that was taken for dead cannot commit, and two commits never cover the same record.
"""

from __future__ import annotations

import msgspec

from onefold import config
from onefold.fold.api import Store, StoreView
from onefold.state.fold.outcomes import Answer, Outcome, Rejected
from onefold.state.fold.streams import rows as stream_rows
from onefold.state.fold.streams.ops import (
    Beat,
    CommitOffsets,
    Expire,
    Join,
    Leave,
    MakeStream,
    Retain,
    StreamOp,
)
from onefold.state.fold.streams.rows import Group, Member

_ID_CHARS_MAX = 100


def refusal(store: StoreView, write: CommitOffsets) -> Rejected | None:
    """Why the offsets cannot be committed, if so."""
    known = stream_rows.read_stream(store.get(stream_rows.STREAMS, write.stream.encode()))
    if known is None or not _is_name(write.group):
        return Rejected("malformed", write.stream[:100])
    group = stream_rows.read_group(
        store.get(stream_rows.GROUPS, stream_rows.group_key(write.stream, write.group))
    )
    place = group.place(write.member)
    rebalanced = Rejected("rebalanced", f"group {write.group} of stream {write.stream}")
    if place is None or group.generation != write.generation:
        return rebalanced
    for partition, before, to in write.moves:
        if not 0 <= partition < known.partitions or not 0 <= to < stream_rows.OFFSET_MAX:
            return Rejected("malformed", write.stream)
        found = store.get(stream_rows.OFFSETS, stream_rows.offset_key(write.stream, write.group, partition))
        if not group.owns(place, partition) or stream_rows.read_offset(found) != before:
            return rebalanced
    return None


def commit_offsets(store: Store, write: CommitOffsets) -> None:
    """Move the offsets."""
    store.put_many(
        stream_rows.OFFSETS,
        [
            (stream_rows.offset_key(write.stream, write.group, partition), stream_rows.write_offset(to))
            for partition, _, to in write.moves
        ],
    )


def apply_op(store: Store, op: StreamOp) -> Outcome:
    """Apply an operation of a consumer group."""
    if isinstance(op, MakeStream | Retain) or not _is_name(op.group) or len(op.member) > _ID_CHARS_MAX:
        return Rejected("malformed", op.stream)
    found = store.get(stream_rows.GROUPS, stream_rows.group_key(op.stream, op.group))
    group = stream_rows.read_group(found)
    if isinstance(op, Join):
        return _join(store, op, group, new=found is None)
    place = group.place(op.member)
    if place is None:
        return Answer(False)
    member = group.members[place]
    others = group.members[:place] + group.members[place + 1 :]
    match op:
        case Leave():
            _put(store, op, Group(group.generation + 1, others))
        case Expire():
            if member.epoch != op.epoch:
                return Answer(False)
            _put(store, op, Group(group.generation + 1, others))
        case Beat():
            alive = Member(member.id, member.process, member.epoch + 1)
            members = (*group.members[:place], alive, *group.members[place + 1 :])
            _put(store, op, Group(group.generation, members))
    return Answer(True)


def _join(store: Store, op: Join, group: Group, *, new: bool) -> Outcome:
    known = stream_rows.read_stream(store.get(stream_rows.STREAMS, op.stream.encode()))
    if known is None:
        return Rejected("no_stream", op.stream)
    limits = all(
        0 <= partition < known.partitions and 0 <= offset < stream_rows.OFFSET_MAX
        for partition, offset in op.start
    )
    if not limits or not op.member or len(op.process) > _ID_CHARS_MAX:
        return Rejected("malformed", op.stream)
    if group.place(op.member) is not None:
        return Answer(group.generation)
    if len(group.members) >= config.CONSUMERS_PER_GROUP_MAX:
        return Rejected("too_many", f"group {op.group} of stream {op.stream}")
    members = sorted((*group.members, Member(op.member, op.process, 0)), key=lambda member: member.id)
    _put(store, op, Group(group.generation + 1, tuple(members)))
    if new and op.start:
        store.put_many(
            stream_rows.OFFSETS,
            [
                (stream_rows.offset_key(op.stream, op.group, partition), stream_rows.write_offset(offset))
                for partition, offset in op.start
            ],
        )
    return Answer(group.generation + 1)


def _put(store: Store, op: Join | Leave | Beat | Expire, group: Group) -> None:
    store.put(stream_rows.GROUPS, stream_rows.group_key(op.stream, op.group), msgspec.msgpack.encode(group))


def _is_name(name: str) -> bool:
    return 0 < len(name.encode()) <= config.NAME_BYTES_MAX
