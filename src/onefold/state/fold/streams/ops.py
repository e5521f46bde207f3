"""Operations of streams and of their consumer groups: see ``state.fold.streams.fold`` and ``state.fold.streams.consumers``.

A stream's number of partitions is decided in its home shard, where its groups live too. Each partition lives in a shard of its
own choice (``state.streams.layout``), and that shard holds a copy of what the stream is like.
"""

from __future__ import annotations

from typing import Final

from onefold.state.fold.kind import Operation, Write

STREAM_BLOBS_VERSION: Final = 4
"""The fold version from which frames may be in blobs."""


class Append(Write, frozen=True, array_like=True, tag="app"):
    """Append ``count`` records to a partition. Blind. Result: (partition, offset of the first of them, fold time in ms).

    Rejected as ``no_stream`` where the stream is not known.
    """

    stream: str
    partition: int
    count: int
    frame: bytes
    """See ``state.streams.frames``; the fold does not look into it."""
    format: int = 0


class AppendBlob(Write, frozen=True, array_like=True, tag="appb"):
    """The same of a frame that is in a blob, which was durable before. Blind. Result: as of ``Append``.

    The partition names the blob until retention removes the records. No other append has the same blob. Exists from fold version
    ``STREAM_BLOBS_VERSION`` on.
    """

    stream: str
    partition: int
    count: int
    blob: str
    size: int
    """Bytes of the frame."""
    format: int = 0


class CommitOffsets(Write, frozen=True, array_like=True, tag="soff"):
    """Move a group's offsets. Result: None.

    Rejected as ``rebalanced`` when the member is not in that generation of the group, when a partition is not the member's, and
    when an offset is not what the member moved it from: so what is committed together with it happens once for each record.
    """

    stream: str
    group: str
    member: str
    generation: int
    moves: tuple[tuple[int, int, int], ...]
    """(partition, from, to); from is -1 where nothing was committed before."""


class MakeStream(Operation, frozen=True, array_like=True, tag="smake"):
    """Say what a stream is like. Answer: [partitions, retention_ms, version] as it is then.

    In the home shard (``version`` 0): make the stream unless it is there; ``change`` its retention if it is. In other shards:
    copy the home's word, unless a newer one is there.
    """

    stream: str
    partitions: int
    retention_ms: int | None = None
    change: bool = False
    version: int = 0


class Retain(Operation, frozen=True, array_like=True, tag="retain"):
    """Remove what is past its retention. Answer: how many segments were removed."""

    stream: str
    partition: int


class Join(Operation, frozen=True, array_like=True, tag="sjoin"):
    """Become a member of a group. Answer: the generation.

    ``start``: (partition, offset) where a group that is new begins; from the first record where it says nothing.
    """

    stream: str
    group: str
    member: str
    process: str
    """Whom ``Shard.member_alive`` can be asked about."""
    start: tuple[tuple[int, int], ...] = ()


class Leave(Operation, frozen=True, array_like=True, tag="sleave"):
    """Leave a group. Answer: whether the member was there."""

    stream: str
    group: str
    member: str


class Beat(Operation, frozen=True, array_like=True, tag="sbeat"):
    """Show that the member is alive: its epoch moves. Answer: whether it is still a member."""

    stream: str
    group: str
    member: str


class Expire(Operation, frozen=True, array_like=True, tag="sexp"):
    """Remove a member that was silent, if it has still the epoch that was seen. Answer: whether it was removed."""

    stream: str
    group: str
    member: str
    epoch: int


StreamWrite = Append | AppendBlob | CommitOffsets
StreamOp = MakeStream | Retain | Join | Leave | Beat | Expire
