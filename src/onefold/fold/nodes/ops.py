"""What is said to the nodes fold, and what it answers.

Every decision about nodes is made by folding these operations in shard 0: who is a member, which epoch of a name is in force,
which snapshots two nodes agree about, how far a log is archived. Nodes and observers only ask.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from onefold.codec import Op, decode_anywhere

NODES_FOLD = "nodes"
"""The name of the fold."""


class Join(msgspec.Struct, frozen=True, array_like=True, tag="join"):
    """A process begins as the node ``name``. It gets a new epoch, and anyone who had the name before is out of it."""

    name: str
    instance: str
    """Of this process: asking again after a lost answer gives the same epoch."""
    region: str
    zone: str
    program: str
    """Onefold's version there, for people."""
    python: str
    fold_version_max: int
    """The highest fold version that it can apply."""
    slots: int
    """How many tasks it works on at a time."""


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """A node lives, and says what it has: observers see its count of beats move."""

    name: str
    epoch: int
    hosted: tuple[tuple[int, int], ...]
    """(shard, applied offset) of each shard that it answers reads of now."""
    digests: tuple[tuple[int, int, bytes], ...] = ()
    """(shard, offset, the log's digest there), at multiples of ``config.DIGEST_EVERY_OFFSETS``; each is said once."""
    halted: tuple[tuple[int, str], ...] = ()
    """(shard, why) of its replicas that serve no more."""
    busy: int = 0
    """How many tasks it works on now."""


class Drain(msgspec.Struct, frozen=True, array_like=True, tag="drain"):
    """A node is about to leave: others take over its shards, and it still answers until they have."""

    name: str
    epoch: int


class Leave(msgspec.Struct, frozen=True, array_like=True, tag="leave"):
    """A node is gone, of its own will."""

    name: str
    epoch: int


class Expire(msgspec.Struct, frozen=True, array_like=True, tag="expire"):
    """An observer saw no beat of a node for a lease on its own boot clock. Accepted only while that epoch is in force."""

    name: str
    epoch: int


class StateHash(msgspec.Struct, frozen=True, array_like=True, tag="hash"):
    """The hash of a shard's state at an offset, as a node has computed it, and perhaps the snapshot that it made there."""

    name: str
    epoch: int
    shard: int
    offset: int
    hash: str
    blob: str = ""
    """The snapshot in the blob store; empty: this node made none."""
    bytes: int = 0
    """The size of that snapshot."""


class Archived(msgspec.Struct, frozen=True, array_like=True, tag="archived"):
    """The records ``start`` to ``stop`` (both included) of a shard's log are in the blob store."""

    name: str
    epoch: int
    shard: int
    start: int
    stop: int
    blob: str
    bytes: int


class Swept(msgspec.Struct, frozen=True, array_like=True, tag="swept"):
    """Take blobs off the garbage list, to delete them. ``Accepted.blobs`` says which of them may be deleted now."""

    name: str
    epoch: int
    blobs: tuple[str, ...]


class AddRegion(msgspec.Struct, frozen=True, array_like=True, tag="add_region"):
    """The space has this region. One that it has already gets the same number again."""

    name: str
    founder: bool = False
    """Begun together with the first one, before anything was written in any: on a cluster, the regions that it was made with."""


class EvictRegion(msgspec.Struct, frozen=True, array_like=True, tag="evict_region"):
    """A region is gone: the others agree how far its effects count, and wait for it no longer."""

    name: str
    heir: str = ""
    """Who gets its rights in bounded counters; empty: nobody."""


class RejoinRegion(msgspec.Struct, frozen=True, array_like=True, tag="rejoin_region"):
    """An evicted region comes again, under a new number and with an empty log."""

    name: str


RegionOperation = AddRegion | EvictRegion | RejoinRegion
REGIONS_VERSION: Final = 5
"""From this fold version on there are operations on regions. Before it they are bytes that are no operation."""
NodeOperation = Join | Beat | Drain | Leave | Expire | StateHash | Archived | Swept
Operation = NodeOperation | RegionOperation


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="ok"):
    """The operation took effect."""

    epoch: int = 0
    """Of a ``Join``: what the node says in all that follows."""
    blobs: tuple[str, ...] = ()
    """Of ``Swept``."""


class RegionIs(msgspec.Struct, frozen=True, array_like=True, tag="region"):
    """An operation on a region took effect, or had before."""

    number: int
    """Of the region, in the logs of all regions."""


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="no"):
    """The operation had no effect. ``code`` is for programs, ``message`` for people."""

    code: Literal[
        "malformed", "unknown", "replaced", "expired", "left", "too_old", "too_many", "conflict", "untrusted"
    ]
    message: str


Outcome = Accepted | Refused
RegionOutcome = RegionIs | Refused

_ops: msgspec.msgpack.Decoder[Operation] = msgspec.msgpack.Decoder(Operation)
_region_outcomes: msgspec.msgpack.Decoder[RegionOutcome] = msgspec.msgpack.Decoder(RegionOutcome)
_outcomes: msgspec.msgpack.Decoder[Outcome] = msgspec.msgpack.Decoder(Outcome)
_encoder = msgspec.msgpack.Encoder()


def nodes_op(op: Operation) -> Op:
    """The operation to submit."""
    return Op(NODES_FOLD, _encoder.encode(op))


def decode_op(body: bytes) -> Operation | None:
    """The operation in these bytes, or None for garbage."""
    try:
        return decode_anywhere(_ops.decode, body)
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return None


def encode_outcome(outcome: Outcome | RegionOutcome) -> bytes:
    """The outcome's bytes."""
    return _encoder.encode(outcome)


def decode_outcome(data: bytes) -> Outcome:
    """The outcome of an operation of a node in these bytes. Raises ValueError for bytes that are none."""
    return _outcomes.decode(data)


def decode_region_outcome(data: bytes) -> RegionOutcome:
    """The outcome of an operation on a region in these bytes. Raises ValueError for bytes that are none."""
    return _region_outcomes.decode(data)
