"""The nodes fold: who is a member of the space, and what they agree about, decided by applying operations in log order.

The life of a node: Join gives its name an epoch, Beats say that it lives, Drain that it is about to go, Leave that it went,
Expire that others have not heard of it. What a node says counts only under the epoch in force, so a zombie can do no harm: it
is notified that it is one, and joins again.

What nodes report: log digests and state hashes at the same offsets. Two nodes with the same hash make a state *agreed*; a
snapshot of an agreed state is what others start from and what trimming may rely on.

What is decided on regions is in ``regions``.
"""

from __future__ import annotations

from onefold import config
from onefold.fold import authority
from onefold.fold.api import NEWEST_VERSION, Context, Store, prefix_stop
from onefold.fold.nodes import regions, rows
from onefold.fold.nodes.ops import (
    NODES_FOLD,
    REGIONS_VERSION,
    Accepted,
    Archived,
    Beat,
    Drain,
    Expire,
    Join,
    Leave,
    NodeOperation,
    Operation,
    Outcome,
    Refused,
    RegionOperation,
    StateHash,
    Swept,
    decode_op,
    encode_outcome,
)
from onefold.fold.nodes.rows import AgreedState, ArchiveState, HashState, NodeState, decode, encode

_TEXT_CHARS_MAX = 200


class NodesFold:
    """See ``onefold.fold.api.Fold``. Belongs to shard 0. A refused operation writes nothing."""

    name = NODES_FOLD
    version = NEWEST_VERSION
    history: frozenset[str] = frozenset()

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        """Apply one operation."""
        op = decode_op(body)
        if isinstance(op, RegionOperation) and fold_version < REGIONS_VERSION:
            op = None
        wrong = "these bytes are no operation of the nodes fold" if op is None else malformed(op)
        if op is None or wrong:
            return encode_outcome(Refused("malformed", wrong))
        if not context.trusted and authority.in_force(fold_version):
            kind = type(op).__name__
            authority.count_refusal(store, NODES_FOLD, kind, context.offset, context.client)
            return encode_outcome(
                Refused("untrusted", f"only nodes may append {kind}. Use a node's credential")
            )
        if isinstance(op, RegionOperation):
            return encode_outcome(regions.decide(store, op))
        return encode_outcome(_apply(store, context, op, fold_version))


def _apply(store: Store, context: Context, op: NodeOperation, fold_version: int) -> Outcome:
    if isinstance(op, Join):
        return _join(store, context, op, fold_version)
    node = _in_force(store, op.name, op.epoch)
    if isinstance(node, Refused):
        return node
    match op:
        case Beat():
            node.beats += 1
            node.hosted, node.halted, node.busy = op.hosted, op.halted, op.busy
            _save(store, context, op.name, node)
            _store_digests(store, op)
            for shard, _ in op.halted:
                _retract(store, context, shard, op.name)
        case Drain():
            node.state = rows.DRAINING
            _save(store, context, op.name, node)
        case Leave():
            _end(store, context, op.name, node, rows.LEFT)
        case Expire():
            _end(store, context, op.name, node, rows.EXPIRED)
        case StateHash():
            return _hash(store, context, op)
        case Archived():
            return _archive(store, context, op)
        case Swept():
            return _sweep(store, op)
    return Accepted()


# -- members


def _join(store: Store, context: Context, op: Join, fold_version: int) -> Outcome:
    if op.fold_version_max < fold_version:
        return Refused(
            "too_old",
            f"the space is at fold version {fold_version}, and node {op.name} knows {op.fold_version_max}. "
            "Upgrade it: pip install -U onefold",
        )
    key = op.name.encode()
    before = store.get(rows.NODE, key)
    known = None if before is None else decode(before, NodeState)
    if known is not None and known.instance == op.instance and known.state in rows.MEMBERS:
        return Accepted(epoch=known.epoch)
    if known is None and not _make_room(store):
        return Refused(
            "too_many", f"the space has {config.NODES_MAX} nodes, which is the most. Stop some first"
        )
    node = NodeState(
        context.offset, op.instance, rows.LIVE, op.region, op.zone, op.program, op.python, op.fold_version_max,
        op.slots, context.now_ms,
    )  # fmt: skip
    _save(store, context, op.name, node)
    return Accepted(epoch=node.epoch)


def _make_room(store: Store) -> bool:
    """Forget the node that went longest ago when there are too many to know; False when all are members."""
    known = [(decode(data, NodeState), key) for key, data in store.scan(rows.NODE)]
    if len(known) < config.NODES_MAX:
        return True
    gone = [(node.changed, key) for node, key in known if node.state not in rows.MEMBERS]
    if not gone:
        return False
    store.delete(rows.NODE, min(gone)[1])
    return True


def _in_force(store: Store, name: str, epoch: int) -> NodeState | Refused:
    """The node, if that epoch of it is in force."""
    data = store.get(rows.NODE, name.encode())
    if data is None:
        return Refused("unknown", f"there is no node {name!r}")
    node = decode(data, NodeState)
    if node.epoch != epoch:
        return Refused("replaced", f"another process is the node {name!r} since offset {node.epoch}")
    if node.state == rows.EXPIRED:
        return Refused(
            "expired", f"node {name!r} was silent for too long; it was expired at offset {node.changed}"
        )
    if node.state == rows.LEFT:
        return Refused("left", f"node {name!r} has left at offset {node.changed}")
    return node


def _save(store: Store, context: Context, name: str, node: NodeState) -> None:
    node.changed, node.changed_ms = context.offset, context.now_ms
    store.put(rows.NODE, name.encode(), encode(node))


def _end(store: Store, context: Context, name: str, node: NodeState, state: str) -> None:
    node.state, node.hosted, node.halted, node.busy = state, (), (), 0
    _save(store, context, name, node)


# -- reported digests and hashes


def _store_digests(store: Store, op: Beat) -> None:
    """Keep the digests of the latest offsets of each shard; older ones are compared no more."""
    for shard, offset, digest in op.digests:
        prefix = rows.shard_key(shard)
        newest = offset
        for key, _ in store.scan(rows.DIGEST, prefix, prefix_stop(prefix), limit=1, reverse=True):
            newest = max(newest, rows.read_place(key)[1])
        oldest = newest - config.DIGESTS_KEPT * config.DIGEST_EVERY_OFFSETS
        if offset > oldest:
            store.put(rows.DIGEST, rows.place_key(shard, offset, op.name), digest)
            store.delete_range(rows.DIGEST, prefix, rows.place_key(shard, max(0, oldest) + 1))


def _retract(store: Store, context: Context, shard: int, name: str) -> None:
    """A copy that has halted reports nothing more, and its earlier reports no longer count."""
    prefix = rows.shard_key(shard)
    for table in (rows.DIGEST, rows.HASH):
        for key, data in list(store.scan(table, prefix, prefix_stop(prefix))):
            if rows.read_place(key)[2] == name:
                store.delete(table, key)
                if table == rows.HASH and (blob := decode(data, HashState).blob):
                    _drop_blob(store, context, blob)


def _hash(store: Store, context: Context, op: StateHash) -> Outcome:
    prefix = rows.shard_key(op.shard)
    kept = sorted({rows.read_place(key)[1] for key, _ in store.scan(rows.HASH, prefix, prefix_stop(prefix))})
    if len(kept) >= config.HASHES_KEPT and op.offset < kept[-config.HASHES_KEPT]:
        return Refused("conflict", f"shard {op.shard} has later states than that of offset {op.offset}")
    key = rows.place_key(op.shard, op.offset, op.name)
    before = store.get(rows.HASH, key)
    store.put(rows.HASH, key, encode(HashState(op.hash, op.blob, op.bytes)))
    if op.blob:
        store.delete(rows.GARBAGE, op.blob.encode())
    _settle(store, op.shard, op.offset)
    if before is not None and decode(before, HashState).blob:
        _drop_blob(store, context, decode(before, HashState).blob)
    _forget_old(store, context, op.shard)
    return Accepted()


def _settle(store: Store, shard: int, offset: int) -> None:
    """What two nodes say alike is agreed; the first hash that two have said stays."""
    place = rows.place_key(shard, offset)
    said = [decode(data, HashState) for _, data in store.scan(rows.HASH, place, prefix_stop(place))]
    before = store.get(rows.AGREED, place)
    if before is not None:
        agreed = decode(before, AgreedState)
    else:
        hashes = [one.hash for one in said]
        twice = next((one for one in hashes if hashes.count(one) >= config.HASHES_TO_AGREE), None)
        if twice is None:
            return
        agreed = AgreedState(twice)
    if not agreed.blob:
        made = next((one for one in said if one.blob and one.hash == agreed.hash), None)
        if made is not None:
            agreed = AgreedState(agreed.hash, made.blob, made.bytes)
    store.put(rows.AGREED, place, encode(agreed))


def _forget_old(store: Store, context: Context, shard: int) -> None:
    """Keep the latest states that were said, and the latest agreed ones of which there is a snapshot."""
    prefix = rows.shard_key(shard)
    stop = prefix_stop(prefix)
    said = sorted({rows.read_place(key)[1] for key, _ in store.scan(rows.HASH, prefix, stop)})
    oldest = said[-config.HASHES_KEPT] if len(said) > config.HASHES_KEPT else 0
    agreed = [(key, decode(data, AgreedState)) for key, data in store.scan(rows.AGREED, prefix, stop)]
    made = [key for key, state in agreed if state.blob]
    old_made = set(made[: -config.SNAPSHOTS_KEPT])
    dropped: set[str] = set()
    for key, state in agreed:
        if key in old_made or (not state.blob and rows.read_place(key)[1] < oldest):
            store.delete(rows.AGREED, key)
            dropped.add(state.blob)
    for key, data in list(store.scan(rows.HASH, prefix, rows.place_key(shard, oldest))):
        store.delete(rows.HASH, key)
        dropped.add(decode(data, HashState).blob)
    if old_made:  # what is older than the snapshots that are kept needs none of its own
        for key, data in list(store.scan(rows.HASH, prefix, made[-config.SNAPSHOTS_KEPT])):
            said_there = decode(data, HashState)
            if said_there.blob:
                store.put(rows.HASH, key, encode(HashState(said_there.hash)))
                dropped.add(said_there.blob)
    for blob in sorted(dropped - {""}):
        _drop_blob(store, context, blob)


def _drop_blob(store: Store, context: Context, blob: str) -> None:
    """Put a snapshot on the garbage list, unless something still names it."""
    named = {decode(data, HashState).blob for _, data in store.scan(rows.HASH)}
    named |= {decode(data, AgreedState).blob for _, data in store.scan(rows.AGREED)}
    if blob not in named:
        store.put(rows.GARBAGE, blob.encode(), encode(context.offset))


# -- the archive


def _archive(store: Store, context: Context, op: Archived) -> Outcome:
    prefix = rows.shard_key(op.shard)
    end = None
    for _, data in store.scan(rows.ARCHIVE, prefix, prefix_stop(prefix), limit=1, reverse=True):
        end = decode(data, ArchiveState).stop
    if end is not None and op.start != end + 1:
        return Refused(
            "conflict", f"shard {op.shard} is archived up to offset {end}; {op.start} does not follow"
        )
    store.put(
        rows.ARCHIVE, rows.place_key(op.shard, op.start), encode(ArchiveState(op.stop, op.blob, op.bytes))
    )
    kept = list(store.scan(rows.ARCHIVE, prefix, prefix_stop(prefix)))
    for key, data in kept[: -config.ARCHIVES_KEPT]:
        store.delete(rows.ARCHIVE, key)
        store.put(rows.GARBAGE, decode(data, ArchiveState).blob.encode(), encode(context.offset))
    return Accepted()


def _sweep(store: Store, op: Swept) -> Outcome:
    free = tuple(
        blob for blob in dict.fromkeys(op.blobs) if store.get(rows.GARBAGE, blob.encode()) is not None
    )
    for blob in free:
        store.delete(rows.GARBAGE, blob.encode())
    return Accepted(blobs=free)


# -- what makes sense


def malformed(op: Operation) -> str:
    """Why an operation makes no sense, whatever the state; empty when it does."""
    if isinstance(op, RegionOperation):
        return regions.malformed(op)
    if not _is_name(op.name):
        return "a node's name has 1 to 64 characters: letters, digits, '-', '_' and '.'"
    if isinstance(op, Join):
        texts = (op.instance, op.region, op.zone, op.program, op.python)
        if not all(_is_text(text) for text in texts) or not op.instance or not op.region:
            return "a node has an instance and a region, and no text of it is too long"
        if not 1 <= op.fold_version_max < rows.NUMBER_MAX or not 0 <= op.slots < rows.NUMBER_MAX:
            return "a node's fold version or its slots make no sense"
        return ""
    if not 1 <= op.epoch < rows.NUMBER_MAX:
        return "an epoch is the offset of a Join"
    match op:
        case Beat():
            return _malformed_beat(op)
        case StateHash():
            if not _is_place(op.shard, op.offset) or not _is_text(op.hash) or not op.hash:
                return "a state hash belongs to a shard and an offset"
            if not _is_text(op.blob) or not 0 <= op.bytes < rows.NUMBER_MAX:
                return "a snapshot is a named blob with a size"
        case Archived():
            if not _is_place(op.shard, op.start) or not op.start <= op.stop < rows.NUMBER_MAX:
                return "an archive is of a range of offsets of a shard"
            if not op.blob or not _is_text(op.blob) or not 0 <= op.bytes < rows.NUMBER_MAX:
                return "an archive is a named blob with a size"
        case Swept():
            if len(op.blobs) > config.SWEPT_BLOBS_MAX or not all(
                _is_text(blob) and blob for blob in op.blobs
            ):
                return f"at most {config.SWEPT_BLOBS_MAX} blobs are swept at a time"
    return ""


def _malformed_beat(op: Beat) -> str:
    if max(len(op.hosted), len(op.halted)) > config.SHARDS_MAX or not 0 <= op.busy < rows.NUMBER_MAX:
        return "a node hosts no more shards than a space has"
    if not all(
        0 <= shard < config.SHARDS_MAX and 0 <= applied < rows.NUMBER_MAX for shard, applied in op.hosted
    ):
        return "what a node hosts is a shard with an offset"
    if not all(
        0 <= shard < config.SHARDS_MAX and len(why) <= config.HALT_REASON_CHARS_MAX
        for shard, why in op.halted
    ):
        return "what halted is a shard with a reason"
    if len(op.digests) > config.SHARDS_MAX:
        return "too many digests in one beat"
    if not all(_is_place(shard, offset) and len(digest) == 16 for shard, offset, digest in op.digests):
        return "a digest is of a shard and an offset, and has 16 bytes"
    return ""


_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def _is_name(name: str) -> bool:
    return 0 < len(name) <= 64 and _NAME.issuperset(name)


def _is_text(text: str) -> bool:
    return len(text) <= _TEXT_CHARS_MAX


def _is_place(shard: int, offset: int) -> bool:
    return 0 <= shard < config.SHARDS_MAX and 1 <= offset < rows.NUMBER_MAX
