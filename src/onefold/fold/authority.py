"""Who may append what: the operations that only nodes (and the admin, who begins logs) may append.

Every program of a space can append records, and anyone who can append can write any bytes. So operations that say what only a
node knows count only in *trusted* records: on a cluster those published on a subject of its own, on which the servers take
nothing of a program (``log.jetstream``). The engine marks such entries when it reads them, and each replica judges alike. In
embedded spaces anyone who can append can write the file too: there every record is trusted.

This is in force from fold version 2 on, which a new cluster's logs begin with. An earlier cluster comes to it by ``onefold init``
and its nodes (``node.versions``). Raising the fold version takes a trusted record whatever version is in force.
What is refused is noted from there on too: before, replicas of earlier releases may fold the same log, and must come to the same
rows.

The clients of trusted records have ids of their own (``ids.client_id``), so no program can take a node's next number from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from onefold.codec import Op, Record, encode_record
from onefold.env import Env
from onefold.fold import system
from onefold.fold.api import Store, StoreView
from onefold.ids import client_id

IN_FORCE_VERSION: Final = 2
"""From this fold version on what is said here holds."""
NODE_FOLDS: Final = frozenset({"nodes"})
"""Folds all of whose operations are for nodes alone."""
AVAILABLE_FOLD: Final = "ap"
"""The fold of regions' own logs. Of its operations only ``Do`` is for programs."""
_DO: Final = b"\xa2do"
"""The tag of that one, as it is encoded: the first element of an array."""
PROGRAM_FOLDS: Final = frozenset({"jobs", "state"})
"""Folds that any program may register. Others could be ones that no program has, and an operation for such a fold stops every
replica. In a region's own log that holds of all: its replicas have no others than its first record names."""
_SYSTEM_TABLE: Final = f"{system.SYSTEM_FOLD}/untrusted"
_NODES_TABLE: Final = "nodes/untrusted"
_AVAILABLE_TABLE: Final = f"{AVAILABLE_FOLD}/untrusted"
UNTRUSTED_TABLES: Final = (_SYSTEM_TABLE, _NODES_TABLE, _AVAILABLE_TABLE)
"""What was refused, of kind ``Untrusted``."""


class Untrusted(msgspec.Struct, array_like=True, frozen=True):
    """Operations of one kind that were refused since they were not in a trusted record. A row of the table ``…/untrusted``."""

    count: int = 0
    offset: int = 0
    """Of the last one."""
    client: str = ""
    """Which appended that one."""


class RefusedOps(NamedTuple):
    """The same, of all kinds: ``kinds`` by name, as ``nodes.Join``."""

    total: int
    offset: int
    kinds: dict[str, int]


def in_force(fold_version: int) -> bool:
    """Whether operations for nodes count in trusted records only."""
    return fold_version >= IN_FORCE_VERSION


def system_op_allowed(
    op: system.SystemOp, *, trusted: bool, fold_version: int, of_region: bool = False
) -> bool:
    """Whether an operation of the space itself counts in such a record. ``of_region``: of a region's own log, as the folds that
    are registered there say."""
    if trusted:
        return True
    match op:
        case system.RaiseFoldVersion():
            return False
        case system.Trim() | system.ExpireClients():
            return not in_force(fold_version)
        case system.Register(names):
            return not in_force(fold_version) or (not of_region and PROGRAM_FOLDS.issuperset(names))
        case system.Tick():
            return True


def needs_trust(ops: Sequence[Op], fold_version: int) -> bool:
    """Whether a record with these operations must be a trusted one to count in full."""
    for op in ops:
        if op.fold in NODE_FOLDS:
            if in_force(fold_version):
                return True
        elif op.fold == AVAILABLE_FOLD:
            if not op.body.startswith(_DO, 1):
                return True
        elif op.fold == system.SYSTEM_FOLD:
            found = system.decode(op.body)
            if found is not None and not system_op_allowed(found, trusted=False, fold_version=fold_version):
                return True
    return False


def count_refusal(store: Store, fold: str, kind: str, offset: int, client: str) -> None:
    """Note that an operation was refused. ``fold``: whose turn it is."""
    table = (
        _NODES_TABLE if fold in NODE_FOLDS else _AVAILABLE_TABLE if fold == AVAILABLE_FOLD else _SYSTEM_TABLE
    )
    data = store.get(table, kind.encode())
    before = Untrusted() if data is None else _decoder.decode(data)
    store.put(table, kind.encode(), msgspec.msgpack.encode(Untrusted(before.count + 1, offset, client[:64])))


def refused_ops(view: StoreView) -> RefusedOps:
    """What was refused of one shard so far."""
    kinds: dict[str, int] = {}
    newest = 0
    for table in UNTRUSTED_TABLES:
        for key, data in view.scan(table):
            row = _decoder.decode(data)
            kinds[f"{table.partition('/')[0]}.{key.decode()}"] = row.count
            newest = max(newest, row.offset)
    return RefusedOps(sum(kinds.values()), newest, kinds)


def first_record(env: Env, after: int = 0) -> bytes:
    """The record with which a new log of a cluster begins: from it on what is said here is in force. ``after``: the offset that
    the log continues from."""
    op = system.system_op(system.RaiseFoldVersion(IN_FORCE_VERSION))
    return encode_record(Record(client_id(after, env), 1, env.wall_ms(), (op,)))


_decoder = msgspec.msgpack.Decoder(Untrusted)
