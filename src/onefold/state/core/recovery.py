"""Continuing transactions over several shards that others began: anyone may, since every step of them is in the logs.

A reader that meets a transaction prepared in its shard asks the home shard. If it is decided there, it may have been
acknowledged, so the reader resolves it first. If it is not, it was not acknowledged before the reader looked, and the old
values are a true answer: the transaction comes after the read. So readers never wait for a coordinator.

A writer that meets its locks does wait: until it is decided, or the coordinator's process is known to be dead, or this client has
watched it for ``config.TRANSACTION_TIMEOUT_S`` of its own clock without a decision. Then it aborts it. That is always safe, since
the first decision wins: a coordinator that was only slow learns that it has lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onefold import config
from onefold.backoff import Deadline
from onefold.errors import SpaceError, Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.state.fold.ops import Decide, Forget, Resolve, StateOp, state_op
from onefold.state.fold.outcomes import Decided, Outcome, decode_outcome
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.fold.shards.fold import Prepared

if TYPE_CHECKING:
    from onefold.shard.api import View
    from onefold.shard.requirements import ReadRequirement
    from onefold.state.core.client import StateClient

_VIEWS_MAX = 1000
_WATCHED_MAX = 10_000
_SWEPT_AT_ONCE = 8
_LOOK_S = 0.01


def settle(
    client: StateClient, shard: int, upto: int | None = None, need: ReadRequirement | None = None
) -> None:
    """Before a read of one key: resolve what is prepared in this shard and decided at its home. One look-up when nothing is
    prepared.

    ``upto``: only what was prepared at or below this offset (reads of a session). ``need``: what the look-up must show. Raises
    Unavailable (definite) when a home shard cannot be asked, and as ``Shard.view``.
    """
    if client.shards[shard].peek(shard_fold.OPEN, shard_fold.OPEN_KEY, need)[0] is not None:
        with settled_view(client, shard, upto):
            pass


@contextmanager
def settled_view(
    client: StateClient, shard_id: int, upto: int | None = None, need: ReadRequirement | None = None
) -> Iterator[View]:
    """A view of the shard in which nothing is prepared that was decided before the view was opened. ``need``: what it must show.

    The home shards are asked *after* it was opened: otherwise a transaction could be decided in between, another one could follow
    it in real time, and the view would show the second without the first.
    """
    shard = client.shards[shard_id]
    for _ in range(_VIEWS_MAX):
        with shard.view(need=need) as view:
            decided = _decided_in(client, shard_id, view, upto) if shard_fold.is_any_prepared(view) else ()
            if not decided:
                yield view
                return
        need = None  # from here on views show at least this one, and what is resolved now
        for transaction, commit in decided:
            _end(client, shard_id, transaction, commit)
    raise Unavailable(
        f"transactions over several shards are decided in shard {shard_id} faster than they can be resolved. Try again"
    )


def unblock(client: StateClient, shard: int, transactions: Sequence[tuple[str, int]]) -> None:
    """These transactions' locks stand in the way in this shard: resolve those that are decided, and abort those watched for
    too long and those whose coordinator is dead. Raises what appending raises."""
    with client.shards[shard].view() as view:
        found = [(one, shard_fold.prepared_of(view, one)) for one, _ in transactions]
    for transaction, prepared in found:
        if prepared is not None:
            _try_to_end(client, shard, transaction, prepared)


def recover(client: StateClient) -> int:
    """Resolve in all shards what is decided, and abort what has a dead coordinator or was watched for too long. Returns how many
    are left undecided."""
    left = 0
    for shard_id, shard in enumerate(client.shards):
        shard.barrier(client.read_time())
        with shard.view() as view:
            found = list(shard_fold.prepared_in(view))
        for transaction, prepared in found:
            left += not _try_to_end(client, shard_id, transaction, prepared)
    for shard_id in range(client.shard_count):
        sweep(client, shard_id, after_offsets=0, limit=None)
    return left


def sweep(
    client: StateClient,
    home: int,
    after_offsets: int = config.DECISION_SWEEP_OFFSETS,
    limit: int | None = _SWEPT_AT_ONCE,
) -> None:
    """Finish what was decided in this shard so many offsets ago and not forgotten since, as its coordinator has ended."""
    with client.shards[home].view() as view:
        kept = shard_fold.decisions(view, limit)
        offset = view.offset
    for transaction, decision in kept:
        if decision.offset + after_offsets <= offset:
            finish(client, transaction, home, decision.participants, commit=decision.commit)


def finish(
    client: StateClient, transaction: str, home: int, participants: Sequence[int], *, commit: bool
) -> None:
    """Resolve a decided transaction in every shard, the home shard last, and forget it. Raises what appending raises."""
    for shard in participants:
        if shard != home and 0 <= shard < client.shard_count:
            _append(client, shard, Resolve(transaction, commit))
    # One record: anyone who sees it forgotten sees it resolved.
    _append(client, home, Resolve(transaction, commit), Forget(transaction))


def look(client: StateClient, transaction: str, home: int) -> shard_fold.Standing:
    """What the home shard knows of a transaction, strongly. Raises Unavailable (definite)."""
    shard = client.shards[home]
    if not shard.strong_reads:
        shard.barrier(client.read_time())
    with shard.view() as view:
        return shard_fold.standing(view, transaction)


def _decided_in(client: StateClient, shard: int, view: View, upto: int | None) -> list[tuple[str, bool]]:
    """What is prepared in the view and decided, with whether to commit it."""
    found = []
    for transaction, prepared in shard_fold.prepared_in(view):
        if upto is not None and prepared.offset > upto:
            continue
        if prepared.home == shard:
            # The view shows both: if it is undecided there, all that the view shows was there before the decision.
            standing = shard_fold.standing(view, transaction)
        elif 0 <= prepared.home < client.shard_count:
            standing = look(client, transaction, prepared.home)
        else:
            standing = "unknown"
        if standing != "undecided":
            found.append((transaction, standing == "committed"))
    return found


def _try_to_end(client: StateClient, shard: int, transaction: str, prepared: Prepared) -> bool:
    """Resolve it here if it is decided, abort it everywhere if it may be; False when it has to be waited for."""
    home = prepared.home
    if not 0 <= home < client.shard_count:
        _end(client, shard, transaction, commit=False)
        return True
    standing = look(client, transaction, home)
    if standing == "undecided":
        if not _may_abort(client, transaction, prepared):
            return False
        decided = _append(client, home, Decide(transaction, commit=False, reason="aborted"))[0]
        commit = isinstance(decided, Decided) and decided.commit
        finish(client, transaction, home, prepared.participants, commit=commit)
    else:
        _end(client, shard, transaction, commit=standing == "committed")
    _watched(client).pop(transaction, None)
    return True


def _may_abort(client: StateClient, transaction: str, prepared: Prepared) -> bool:
    if client.shards[prepared.home].member_alive(prepared.member) is False:
        return True
    watched = _watched(client)
    if len(watched) >= _WATCHED_MAX:
        watched.clear()  # those are only watched for longer
    now_s = client.env.boot_s()
    return now_s - watched.setdefault(transaction, now_s) >= config.TRANSACTION_TIMEOUT_S


def _watched(client: StateClient) -> dict[str, float]:
    """Since when this client has been watching which transactions."""
    watched: dict[str, float] = client.shared.setdefault("watched", {})
    return watched


def _end(client: StateClient, shard_id: int, transaction: str, commit: bool) -> None:
    """Resolve it in this shard; a client that may not write waits until somebody did."""
    try:
        _append(client, shard_id, Resolve(transaction, commit))
        return
    except SpaceError as error:
        let_pass(error)
        cause = error  # opened read-only: anyone who may write does it
    shard, deadline = client.shards[shard_id], Deadline.after(client.read_time(), client.env)
    while not deadline.passed:
        with shard.view() as view:
            if all(transaction != other for other, _ in shard_fold.prepared_in(view)):
                return
        shard.pause(_LOOK_S)
    raise Unavailable(
        f"the transaction {transaction} is decided and not yet done in shard {shard_id}, and this space was opened read-only. "
        "Read again, or open it for writing"
    ) from cause


def _append(client: StateClient, shard: int, *ops: StateOp) -> list[Outcome]:
    submitted = client.shards[shard].submit([state_op(op) for op in ops], client.deadline())
    return [decode_outcome(data) for data in submitted]
