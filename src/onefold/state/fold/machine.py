"""The state fold: one machine for all kinds of collections, so that one operation may change several of them at once."""

from __future__ import annotations

from typing import Final

from onefold.fold.api import NEVER, NEWEST_VERSION, Context, Store
from onefold.state.fold.kinds import BY_OPERATION, KINDS, LATER
from onefold.state.fold.ops import STATE_FOLD, Commit, Decide, Forget, Prepare, Resolve, decode_op
from onefold.state.fold.outcomes import Blocked, Committed, Outcome, Rejected, encode_outcome
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.fold.validation import apply_writes, first_refusal, validate

_COMPLETE: Final = max(kind.version for kind in KINDS)
"""From this fold version on all operations of all kinds are there."""
MALFORMED = encode_outcome(Rejected("malformed"))


class StateFold:
    """See ``onefold.fold.api.Fold``. ``shards``: of the whole space; with one, no transaction ever holds locks."""

    name = STATE_FOLD
    version = NEWEST_VERSION
    history = frozenset(prefix for kind in KINDS for prefix in kind.history)

    def __init__(self, shards: int = 1) -> None:
        self._shard_count = shards

    def advance(self, store: Store, context: Context) -> int:
        """What fold time brings: items end, delayed messages become ready."""
        return min(
            [kind.advance(store, context) for kind in KINDS if kind.advance is not None], default=NEVER
        )

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:
        """Apply one operation. Garbage is ``Rejected("malformed")``."""
        op = decode_op(body)
        if fold_version < _COMPLETE:  # most spaces, so it is done without a call
            parts = op.writes if isinstance(op, (Commit, Prepare)) else (op,)
            if not LATER[fold_version].isdisjoint(map(type, parts)):
                return MALFORMED
        match op:
            case None:
                return MALFORMED
            case Commit():
                outcome = self._commit(store, context, op)
                passing = isinstance(outcome, Blocked) or (isinstance(outcome, Rejected) and not op.last_try)
                return encode_outcome(outcome, passing=passing)
            case Prepare():
                return encode_outcome(shard_fold.prepare(store, context, op))
            case Decide():
                decided = shard_fold.decide(store, context, op)
                return encode_outcome(decided, passing=not shard_fold.is_kept(op, decided))
            case Resolve():
                return encode_outcome(shard_fold.resolve(store, context, op))
            case Forget():
                return encode_outcome(shard_fold.forget(store, context, op))
        return encode_outcome(BY_OPERATION[type(op)].apply_op(store, context, op, fold_version))

    def _commit(self, store: Store, context: Context, op: Commit) -> Outcome:
        if self._shard_count > 1:
            blockers = shard_fold.blockers(store, op.reads, op.spans, op.writes)
            if blockers:
                return Blocked(blockers)
        refused = validate(store, op.reads, op.spans) if op.reads or op.spans else None
        refused = refused or first_refusal(store, op.writes)
        if refused is not None:
            return refused
        return Committed(context.offset, context.index, apply_writes(store, context, op.writes))
