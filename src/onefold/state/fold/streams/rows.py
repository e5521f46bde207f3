"""How streams are kept: table names and rows.

A partition is a table of **segments**, keyed by their first offset (8 bytes, big endian), and a head row under the empty key. A
segment is one or more **runs**; a run is what one append wrote: (fold time, count, format, frame). Small runs stand in the
segment's row one after the other; a run over ``config.STREAM_INLINE_BYTES_MAX`` is a segment of its own, whose frame is kept in a
second table, so that looking for an offset or a time reads no large rows. So is a run whose frame is a blob: the row has the
blob's name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, cast

import msgspec

from onefold.fold.api import StoreView, prefix_stop
from onefold.state.encoding.keys import decode_key, encode_key

STREAMS = "state/s/streams"
"""What each stream is like: name -> ``StreamRow``."""
GROUPS = "state/s/groups"
"""Consumer groups: (stream, group) -> ``Group``."""
OFFSETS = "state/s/offsets"
"""What they committed: (stream, group), partition -> next offset."""
HOLDS = "state/s/holds"
"""What live jobs have not read yet: (stream, partition, job, generation, part) -> ``Hold``."""
HEAD_KEY = b""
FIRST_KEY = b"\x00"
"""Below every segment's key and above the head's."""
OFFSET_MAX = 1 << 62
HOP_PREFIX = "~live/"
"""Streams whose name begins so belong to live jobs."""

_KEY = struct.Struct(">Q")
_PARTITION = struct.Struct(">H")
_SEGMENT = struct.Struct(">BIqq")
_RUN = struct.Struct(">qIBI")
_HEAD = struct.Struct(">QQQQIqq")
_HOLD = struct.Struct(">QQ")
_INLINE, _BESIDE, _BLOB = 0, 1, 2


class StreamRow(msgspec.Struct, frozen=True, array_like=True):
    """What a stream is like."""

    partitions: int
    retention_ms: int | None
    version: int
    """Counts changes of the retention."""


class Head(NamedTuple):
    """Where a partition stands. ``first`` is at most ``next``, and both only grow."""

    next: int = 0
    first: int = 0
    bytes: int = 0
    """Of all its segments: never below zero."""
    last_base: int = 0
    """The first offset of the last segment."""
    last_bytes: int = 0
    """Bytes of the last segment, when it stands in its row."""
    oldest_ms: int = 0
    """When the first segment was written to last."""
    last_from_ms: int = 0
    """When the last segment was begun."""


class Run(NamedTuple):
    """What one append wrote to a partition."""

    offset: int
    count: int  # type: ignore[assignment]  # the right name; nobody counts within a Run
    time_ms: int
    format: int
    frame: bytes
    """Empty where it is kept elsewhere."""
    size: int = 0
    """Its bytes, wherever they are."""
    blob: str = ""
    """The blob that has it."""


class Segment(NamedTuple):
    """A segment's row, decoded; a frame that is kept next to it is not there yet."""

    base: int
    count: int  # type: ignore[assignment]  # likewise
    first_ms: int
    last_ms: int
    beside: bool
    runs: tuple[Run, ...]


class Hold(NamedTuple):
    """Records that are kept past the retention of their stream."""

    next: int
    """From this offset on."""
    hold_ms: int
    """For so much longer."""


class Holder(NamedTuple):
    """Whose hold it is."""

    stream: str
    partition: int
    job: str
    generation: int
    part: str


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A consumer."""

    id: str
    process: str
    epoch: int


class Group(msgspec.Struct, frozen=True, array_like=True):
    """A consumer group; its members are in the order of their ids."""

    generation: int = 0
    members: tuple[Member, ...] = ()

    def place(self, member: str) -> int | None:
        """The member's place among the members."""
        return next((at for at, other in enumerate(self.members) if other.id == member), None)

    def owns(self, place: int, partition: int) -> bool:
        """Partitions are dealt out in turn."""
        return partition % len(self.members) == place


class _Generation(msgspec.Struct, frozen=True, array_like=True):
    """The beginning of a group's row."""

    generation: int
    members: msgspec.Raw


_generation_decoder = msgspec.msgpack.Decoder(_Generation)
_stream_decoder = msgspec.msgpack.Decoder(StreamRow)
_group_decoder = msgspec.msgpack.Decoder(Group)


def segment_table(stream: str, partition: int) -> str:
    """The table of a partition's segments."""
    return f"state/s/p/{partition}/{stream}"


def frame_table(stream: str, partition: int) -> str:
    """The table of its large frames."""
    return f"state/s/f/{partition}/{stream}"


def segment_key(offset: int) -> bytes:
    """The key of the segment that begins there."""
    return _KEY.pack(offset)


def read_stream(data: bytes | None) -> StreamRow | None:
    """The stream's row."""
    return None if data is None else _stream_decoder.decode(data)


def read_group(data: bytes | None) -> Group:
    """The group's row; of a group that never was, an empty one of generation 0."""
    return Group() if data is None else _group_decoder.decode(data)


def read_generation(data: bytes | None) -> int:
    """The generation in a group's row."""
    return 0 if data is None else _generation_decoder.decode(data).generation


def group_key(stream: str, group: str) -> bytes:
    """The key of a group."""
    return encode_key((stream, group))


def offset_key(stream: str, group: str, partition: int) -> bytes:
    """The key of a committed offset."""
    return group_key(stream, group) + _PARTITION.pack(partition)


def write_offset(offset: int) -> bytes:
    """A committed offset's row."""
    return _KEY.pack(offset)


def read_offset(data: bytes | None) -> int:
    """The committed offset; -1: none."""
    return -1 if data is None else int(_KEY.unpack(data)[0])


def hold_key(holder: Holder) -> bytes:
    """The key of a hold."""
    return encode_key(tuple(holder))


def write_hold(hold: Hold) -> bytes:
    """A hold's row."""
    return _HOLD.pack(*hold)


def hold_of(view: StoreView, holder: Holder) -> Hold | None:
    """A hold; None: there is none."""
    found = view.get(HOLDS, hold_key(holder))
    return None if found is None else Hold(*_HOLD.unpack(found))


def holds_of(view: StoreView, stream: str, partition: int) -> list[Hold]:
    """The holds of a partition."""
    prefix = encode_key((stream, partition))
    return [Hold(*_HOLD.unpack(row)) for _, row in view.scan(HOLDS, prefix, prefix_stop(prefix))]


def holders(view: StoreView) -> Iterator[Holder]:
    """Whose holds there are in this shard."""
    for key, _ in view.scan(HOLDS):
        stream, partition, job, generation, part = cast("tuple[str, int, str, int, str]", decode_key(key))
        yield Holder(stream, partition, job, generation, part)


def read_head(data: bytes | None) -> Head:
    """The head; of a partition that never was written to, an empty one."""
    return Head() if data is None else Head(*_HEAD.unpack(data))


def write_head(head: Head) -> bytes:
    """The head's row."""
    return _HEAD.pack(*head)


def write_run(time_ms: int, count: int, kind: int, frame: bytes) -> bytes:
    """A run, as it stands in a segment's row."""
    return _RUN.pack(time_ms, count, kind, len(frame)) + frame


def new_segment(run: bytes, count: int, time_ms: int) -> bytes:
    """The row of a segment of one run."""
    return _SEGMENT.pack(_INLINE, count, time_ms, time_ms) + run


def new_segment_beside(time_ms: int, count: int, kind: int, length: int) -> bytes:
    """The row of a segment whose frame is kept in the other table."""
    return _SEGMENT.pack(_BESIDE, count, time_ms, time_ms) + _RUN.pack(time_ms, count, kind, length)


def new_segment_blob(time_ms: int, count: int, kind: int, length: int, blob: str) -> bytes:
    """The row of a segment whose frame is in a blob."""
    return (
        _SEGMENT.pack(_BLOB, count, time_ms, time_ms)
        + _RUN.pack(time_ms, count, kind, length)
        + blob.encode()
    )


def extend_segment(row: bytes, run: bytes, count: int, time_ms: int) -> bytes:
    """The row with one run more."""
    beside, before, first_ms, _ = _SEGMENT.unpack_from(row)
    return _SEGMENT.pack(beside, before + count, first_ms, time_ms) + row[_SEGMENT.size :] + run


def frame_bytes(segment: bytes) -> int:
    """How many bytes of frames belong to a segment's row."""
    beside = segment[0] != _INLINE
    return int(_RUN.unpack_from(segment, _SEGMENT.size)[3]) if beside else len(segment) - _SEGMENT.size


def blob_of(segment: bytes) -> str:
    """The blob that has the frame of a segment; empty: none."""
    return segment[_SEGMENT.size + _RUN.size :].decode() if segment[0] == _BLOB else ""


def segment_head(row: bytes) -> tuple[bool, int, int, int]:
    """(frame kept next to it, count, time of the first run, time of the last)."""
    beside, count, first_ms, last_ms = _SEGMENT.unpack_from(row)
    return beside == _BESIDE, count, first_ms, last_ms


def read_segment(key: bytes, row: bytes) -> Segment:
    """The segment; a frame that is kept next to it is given as empty."""
    (base,) = _KEY.unpack(key)
    beside, count, first_ms, last_ms = segment_head(row)
    blob = blob_of(row)
    if blob:
        time_ms, records, kind, length = _RUN.unpack_from(row, _SEGMENT.size)
        return Segment(
            base, count, first_ms, last_ms, False, (Run(base, records, time_ms, kind, b"", length, blob),)
        )
    runs: list[Run] = []
    at, offset = _SEGMENT.size, base
    while at < len(row):
        time_ms, records, kind, length = _RUN.unpack_from(row, at)
        at += _RUN.size
        frame = b"" if beside else row[at : at + length]
        runs.append(Run(offset, records, time_ms, kind, frame, length))
        at += 0 if beside else length
        offset += records
    return Segment(base, count, first_ms, last_ms, beside, tuple(runs))


def head_of(view: StoreView, stream: str, partition: int) -> Head:
    """Where a partition stands."""
    return read_head(view.get(segment_table(stream, partition), HEAD_KEY))
