"""The fold ``ap``: one region's collections that every region can write, from that region's log alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from onefold.available import deciding, following, home, imports, ops, unseen
from onefold.available.ops import (
    Do,
    Outcome,
    Rejected,
    decode_op,
    encode_outcome,
)
from onefold.available.rows import NAMES, ROWS, SHOWN, Working
from onefold.available.sync import staging
from onefold.fold import authority
from onefold.fold.api import NEWEST_VERSION, PASSING, Context, Store

MALFORMED: Final = encode_outcome(Rejected("malformed"))
UNTRUSTED: Final = encode_outcome(Rejected("untrusted"))
PASSING_REASONS: Final = frozenset({"no_region", "not_admitted", "behind", "evicted"})
"""Rejections that say nothing about what was asked for: they are not kept under a request id."""
OPERATIONS: Final[dict[type, Callable[[Working, Any], Outcome]]] = {
    ops.Do: home.do,
    ops.Import: imports.take_in,
    ops.Beat: deciding.beat,
    ops.Admit: deciding.admit,
    ops.Evict: deciding.evict,
    ops.Retire: deciding.retire,
    ops.Reclaim: deciding.reclaim,
    ops.Accept: deciding.accept,
    ops.Cap: deciding.cap,
    ops.SyncBegin: staging.begin,
    ops.SyncRows: staging.rows,
    ops.SyncEnd: staging.end,
    ops.Unseen: unseen.note,
}


class AvailableFold:
    """See ``onefold.fold.api.TimedFold``. All but ``Do`` counts in trusted records only: else a program could forge what another
    region did."""

    name = authority.AVAILABLE_FOLD
    version = NEWEST_VERSION
    history = frozenset({ROWS, NAMES, SHOWN})

    def advance(self, store: Store, context: Context) -> int:
        """What fold time brings: values end."""
        return following.expire(Working(store, context))

    def apply(self, store: Store, context: Context, body: bytes, fold_version: int) -> bytes:  # noqa: ARG002
        """Apply one operation. Garbage is ``Rejected("malformed")``."""
        op = decode_op(body)
        if op is None:
            return MALFORMED
        if not (context.trusted or isinstance(op, Do)):
            authority.count_refusal(
                store, authority.AVAILABLE_FOLD, type(op).__name__, context.offset, context.client
            )
            return UNTRUSTED
        work = Working(store, context)
        outcome = OPERATIONS[type(op)](work, op)
        if isinstance(outcome, Rejected):
            data = encode_outcome(outcome)
            passes = isinstance(op, Do) and (not op.last_try or outcome.reason in PASSING_REASONS)
            return PASSING + data if passes else data
        following.follow(work)
        return encode_outcome(outcome)
