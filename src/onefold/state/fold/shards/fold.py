"""Transactions over several shards, in the fold of each shard: two-phase commit whose every step is a record.

Source: Gray, "Notes on Data Base Operating Systems", 1978 (two-phase commit); Mohan, Lindsay and Obermarck, "Transaction
Management in the R* Distributed Database Management System", ACM TODS 11(4), 1986 (presumed abort). Here the logs take the
place of the coordinator's memory, so anyone can continue with a transaction whose coordinator has died.

The coordinator appends ``Prepare`` to the home shard *first*, then to the others; when all have voted yes,
``Decide(commit)`` to the home shard; then ``Resolve`` to all, and ``Forget``. What makes this safe however late a step
arrives, and however little is remembered:

- A transaction is committed only by its ``Decide(commit)``, only while it is prepared in its home shard, and only if no
  ``Decide(abort)`` came before. Once the home shard has resolved it, no later ``Decide`` can commit it.
- Only the coordinator sends ``Decide(commit)``, and only after every ``Prepare`` was answered with yes. A record is applied
  at most once and a ``Prepare`` is never sent again, so a ``Prepare`` that arrives late is one without an answer: of a
  transaction that nobody will ever commit. If it still finds a tombstone it is refused. If not, it takes locks until an
  observer aborts it; its writes are never done.
- Who finds a transaction prepared in a shard, and nothing of it in its home shard, knows that it was aborted: home was prepared
  first, and forgets a commit only after all others have resolved it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, Final, Literal, cast

import msgspec

from onefold import config
from onefold.fold.api import Context, Store, StoreView
from onefold.state.fold import blobs, lock_table
from onefold.state.fold.kinds import NAMING, SINGLE, Write
from onefold.state.fold.ops import UNREAD, Decide, Forget, Prepare, Read, Resolve, Span
from onefold.state.fold.outcomes import Answer, Committed, Decided, Outcome, Rejected, Voted
from onefold.state.fold.validation import apply_writes, first_refusal, validate, wants

OPEN: Final = "state/x/open"
"""One row, there while anything is prepared: how many are."""
OPEN_KEY: Final = b"n"
_PREPARED: Final = "state/x/prepared"
_PARTS: Final = "state/x/parts"
_DECIDED: Final = "state/x/decided"
_ENDED: Final = "state/x/ended"
_ENDED_AT: Final = "state/x/ended_at"
_ID_BYTES_MAX: Final = 64
_PRUNED_AT_ONCE: Final = 4
_COUNT = struct.Struct(">Q")
_AT = struct.Struct(">QI")

Standing = Literal["committed", "aborted", "undecided", "unknown"]


class Prepared(msgspec.Struct, frozen=True, array_like=True):
    """A transaction that waits in a shard for its decision."""

    home: int
    participants: tuple[int, ...]
    member: str
    offset: int
    index: int


class Decision(msgspec.Struct, frozen=True, array_like=True):
    """What was decided in the home shard, and where."""

    commit: bool
    offset: int
    index: int
    participants: tuple[int, ...]
    reason: str = ""
    detail: str = ""
    key: bytes = b""


class _Parts(msgspec.Struct, frozen=True, array_like=True):
    reads: tuple[Read, ...]
    spans: tuple[Span, ...]
    writes: tuple[Write, ...]


class _Ended(msgspec.Struct, frozen=True, array_like=True):
    commit: bool
    offset: int
    index: int
    results: tuple[Any, ...] = ()


_encode = msgspec.msgpack.Encoder().encode
_prepared = msgspec.msgpack.Decoder(Prepared)
_decision = msgspec.msgpack.Decoder(Decision)
_parts = msgspec.msgpack.Decoder(_Parts)
_ended = msgspec.msgpack.Decoder(_Ended)

# -- looking


def is_any_prepared(view: StoreView) -> bool:
    """Whether any transaction is prepared here. One look-up."""
    return view.get(OPEN, OPEN_KEY) is not None


def prepared_in(view: StoreView) -> Iterator[tuple[str, Prepared]]:
    """The transactions that are prepared here."""
    for key, value in view.scan(_PREPARED):
        yield key.decode(), _prepared.decode(value)


def prepared_of(view: StoreView, transaction: str) -> Prepared | None:
    """What is known of a transaction if it is prepared here."""
    found = view.get(_PREPARED, transaction.encode())
    return None if found is None else _prepared.decode(found)


def standing(view: StoreView, transaction: str) -> Standing:
    """What the home shard knows of a transaction. If it is prepared in another shard, ``unknown`` means aborted."""
    key = transaction.encode()
    found = view.get(_DECIDED, key)
    if found is not None:
        return "committed" if _decision.decode(found).commit else "aborted"
    if view.get(_PREPARED, key) is not None:
        return "undecided"
    found = view.get(_ENDED, key)
    if found is not None:
        return "committed" if _ended.decode(found).commit else "aborted"
    return "unknown"


def decisions(view: StoreView, limit: int | None = None) -> list[tuple[str, Decision]]:
    """The decisions that are kept here, or some of them."""
    return [(key.decode(), _decision.decode(value)) for key, value in view.scan(_DECIDED, limit=limit)]


def blockers(
    store: StoreView, reads: tuple[Read, ...], spans: tuple[Span, ...], writes: tuple[Write, ...]
) -> tuple[tuple[str, int], ...]:
    """The prepared transactions, each with its home, whose locks these would meet; some of them when there are many."""
    if not is_any_prepared(store):
        return ()
    return _met(store, wants(reads, spans, writes))


def is_kept(op: Decide, outcome: Outcome) -> bool:
    """Whether the outcome is kept under the operation's request id: a decision to commit, and an abort that is meant to be
    final."""
    return isinstance(outcome, Decided) and (outcome.commit or (op.keep and not op.commit))


# -- the steps


def prepare(store: Store, context: Context, op: Prepare) -> Outcome:
    """Vote, and lock. A no leaves nothing behind. Asked again, the vote is the same."""
    key = op.transaction.encode()
    if not 0 < len(key) <= _ID_BYTES_MAX or not _is_plain(op):
        return Rejected("malformed", "transaction")
    found = store.get(_PREPARED, key)
    if found is not None:
        return Voted(True, _prepared.decode(found).offset)
    if store.get(_ENDED, key) is not None or store.get(_DECIDED, key) is not None:
        return Voted(False, context.offset, "resolved")
    wanted = wants(op.reads, op.spans, op.writes)
    count = _count(store)
    if count:
        in_the_way = _met(store, wanted)
        if in_the_way:
            return Voted(False, context.offset, "locked", blockers=in_the_way)
        if count >= config.PREPARED_TRANSACTIONS_MAX:
            return Voted(False, context.offset, "busy")
    refused = validate(
        store,
        tuple(read for read in op.reads if read.offset != UNREAD),
        tuple(span for span in op.spans if span.offset != UNREAD),
    ) or first_refusal(store, op.writes)
    if refused is not None:
        return Voted(False, context.offset, refused.reason, refused.detail, refused.key)
    at = (context.offset, context.index)
    store.put(_PREPARED, key, _encode(Prepared(op.home, op.participants, op.member, *at)))
    store.put(_PARTS, key, _encode(_Parts(op.reads, op.spans, op.writes)))
    store.put(OPEN, OPEN_KEY, _COUNT.pack(count + 1))
    lock_table.take(store, op.transaction, at, wanted)
    for write in op.writes:
        if type(write) in NAMING:
            blobs.name(store, cast("Any", write).blob)
    return Voted(True, context.offset)


def decide(store: Store, context: Context, op: Decide) -> Outcome:
    """In the home shard: the first decision wins. A transaction that is not prepared here cannot be committed any more."""
    key = op.transaction.encode()
    found = store.get(_DECIDED, key)
    if found is not None:
        return _decided(op.transaction, _decision.decode(found))
    found = store.get(_ENDED, key)
    if found is not None:
        ended = _ended.decode(found)
        return Decided(op.transaction, ended.commit, ended.offset, ended.index)
    found = store.get(_PREPARED, key)
    participants = () if found is None else _prepared.decode(found).participants
    why = ("", "", b"") if op.commit else (op.reason, op.detail, op.key)
    decision = Decision(op.commit and found is not None, context.offset, context.index, participants, *why)
    if found is None:
        return msgspec.structs.replace(_decided(op.transaction, decision), known=False)
    store.put(_DECIDED, key, _encode(decision))
    return _decided(op.transaction, decision)


def resolve(store: Store, context: Context, op: Resolve) -> Outcome:
    """Do the writes or forget them; give up the locks. Done again, it changes nothing and answers alike."""
    key = op.transaction.encode()
    if not 0 < len(key) <= _ID_BYTES_MAX:
        return Rejected("malformed", "transaction")
    found = store.get(_PREPARED, key)
    if found is None:
        before = store.get(_ENDED, key)
        if before is not None:
            return _resolved(_ended.decode(before), released=False)
        return _resolved(_end(store, context, key, op.commit, ()), released=False)
    decided = store.get(_DECIDED, key)
    decision = None if decided is None else _decision.decode(decided)
    if decision is not None and decision.commit != op.commit:
        return Rejected("decided")
    prepared, parts = _prepared.decode(found), _parts.decode(store.get(_PARTS, key) or b"")
    results = apply_writes(store, context, parts.writes) if op.commit else ()
    wanted = wants(parts.reads, parts.spans, parts.writes)
    for write in parts.writes:
        if type(write) in NAMING:
            blobs.unname(store, context, cast("Any", write).blob)
    lock_table.give_up(store, op.transaction, (prepared.offset, prepared.index), wanted)
    store.delete(_PREPARED, key)
    store.delete(_PARTS, key)
    left = _count(store) - 1
    if left > 0:
        store.put(OPEN, OPEN_KEY, _COUNT.pack(left))
    else:
        store.delete(OPEN, OPEN_KEY)
    if decision is not None and not decision.commit:
        store.delete(_DECIDED, key)  # from now on nothing can commit it, with or without this
    return _resolved(_end(store, context, key, op.commit, results), released=True)


def forget(store: Store, context: Context, op: Forget) -> Outcome:  # noqa: ARG001
    """The decision is no longer needed."""
    key = op.transaction.encode()
    if store.get(_PREPARED, key) is None:
        store.delete(_DECIDED, key)
    return Answer(None)


def _is_plain(op: Prepare) -> bool:
    of_several = SINGLE.isdisjoint(map(type, op.writes))
    return of_several and 0 < len(op.participants) <= config.SHARDS_MAX and op.home in op.participants


def _count(store: StoreView) -> int:
    found = store.get(OPEN, OPEN_KEY)
    return 0 if found is None else int(_COUNT.unpack(found)[0])


def _met(store: StoreView, wanted: lock_table.Wants) -> tuple[tuple[str, int], ...]:
    holders = lock_table.met(store, wanted, limit=config.BLOCKERS_TOLD_MAX)
    found = ((holder, prepared_of(store, holder)) for holder in holders)
    return tuple((holder, prepared.home) for holder, prepared in found if prepared is not None)


def _decided(transaction: str, decision: Decision) -> Decided:
    return Decided(
        transaction,
        decision.commit,
        decision.offset,
        decision.index,
        reason=decision.reason,
        detail=decision.detail,
        key=decision.key,
        participants=decision.participants,
    )


def _end(store: Store, context: Context, key: bytes, commit: bool, results: tuple[object, ...]) -> _Ended:
    """Leave a tombstone, and remove some that are old enough."""
    oldest = _AT.pack(max(0, context.offset - config.TOMBSTONE_OFFSETS), 0)
    for at, old in list(store.scan(_ENDED_AT, stop=oldest, limit=_PRUNED_AT_ONCE)):
        store.delete(_ENDED_AT, at)
        store.delete(_ENDED, old)
    ended = _Ended(commit, context.offset, context.index, results)
    store.put(_ENDED, key, _encode(ended))
    store.put(_ENDED_AT, _AT.pack(context.offset, context.index), key)
    return ended


def _resolved(ended: _Ended, *, released: bool) -> Outcome:
    if ended.commit:
        return Committed(ended.offset, ended.index, ended.results)
    return Answer(released)
