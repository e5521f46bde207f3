"""Live jobs as one kind of collection of the state fold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from onefold.fold.api import Context, Store, StoreView
from onefold.state.fold import blobs, lock_table
from onefold.state.fold.kind import Kind
from onefold.state.fold.live import bundles, commit, holds, hops, jobs, outbox
from onefold.state.fold.live import rows as live_rows
from onefold.state.fold.live.ops import (
    ENDINGS_VERSION,
    LIVE_VERSION,
    NAMES_VERSION,
    AddInputs,
    Beat,
    Cancel,
    Claim,
    Drain,
    DropCursors,
    DropJob,
    Expire,
    FenceStart,
    Forwarded,
    Fuse,
    Give,
    HoldInput,
    LaneCommit,
    Leave,
    LiveOp,
    LiveWrite,
    Replay,
    StartJob,
    Stop,
    Swap,
    Sweep,
    TrimHop,
)
from onefold.state.fold.outcomes import Answer, Outcome, Rejected


def refusal(store: StoreView, write: LiveWrite) -> Rejected | None:
    """Why the write cannot be done, if so."""
    return commit.refusal(store, write) if isinstance(write, LaneCommit) else outbox.refusal(store, write)


def apply(store: Store, context: Context, write: LiveWrite) -> object:
    """Do the write; its result."""
    if isinstance(write, LaneCommit):
        return commit.apply(store, context, write)
    outbox.move(store, write)
    return None


def apply_op(store: Store, context: Context, op: LiveOp, fold_version: int) -> Outcome:
    """Apply an operation of live jobs."""
    if isinstance(op, Sweep):
        return Answer(blobs.sweep(store, op.blobs))
    if not all(live_rows.is_name(name) for name in _names(op)):
        return Rejected("malformed", op.job[:100])
    match op:
        case StartJob():
            return jobs.start(store, context, op)
        case FenceStart():
            return jobs.fence(store, op)
        case AddInputs():
            return bundles.add_inputs(store, op)
        case Claim():
            return bundles.claim(store, op, fold_version)
        case Beat():
            return bundles.beat(store, op)
        case Give():
            return bundles.give(store, op)
        case Fuse():
            return bundles.fuse(store, op)
        case Expire():
            return bundles.expire(store, op)
        case Leave():
            return bundles.leave(store, op)
        case Stop():
            return jobs.stop(store, op, fold_version)
        case Drain():
            return jobs.drain(store, op)
        case Replay():
            return jobs.replay(store, context, op)
        case Swap():
            return jobs.swap(store, op)
        case Cancel():
            return jobs.cancel(store, context, op)
        case DropJob():
            return jobs.drop(store, context, op, fold_version)
        case Forwarded():
            removed = outbox.forwarded(store, op)
            commit.finish(store, op.job, op.generation)
            return Answer(removed)
        case DropCursors():
            return Answer(outbox.drop_cursors(store, op))
        case TrimHop():
            return Answer(hops.trim(store, context, op))
        case HoldInput():
            return holds.hold(store, op, fold_version)


def _names(op: LiveOp) -> Iterator[str]:
    """The names in an operation, which are parts of keys. Those of parts that are made are looked at where they are made."""
    for field in ("job", "part", "worker", "owner"):
        if hasattr(op, field):
            yield getattr(op, field)


def want(found: lock_table.Wants, write: LiveWrite) -> None:
    """No locks: these writes meet no others, and no transaction over several shards has them."""


KIND = Kind(
    writes=get_args(LiveWrite),
    refusal=refusal,
    apply=apply,
    want=want,
    operations=get_args(LiveOp),
    apply_op=apply_op,
    single=get_args(LiveWrite),
    version=NAMES_VERSION,
    since=LIVE_VERSION,
    later={FenceStart: NAMES_VERSION, DropCursors: ENDINGS_VERSION},
)
