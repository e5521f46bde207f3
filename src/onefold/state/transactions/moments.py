"""One moment of the whole space: an offset of every shard, all of one instant, for what reads several shards.

Everything acknowledged before the call is in it, and each transaction over shards is in it whole or not at all.

Where views show everything that was written (one machine), the shards are pinned by a cut (``space.cuts``). On a cluster replicas
hear of records late, so an instant must be made: shared locks are taken on all maps of every shard, by the ``Prepare`` of an
ordinary transaction over shards that writes nothing; every shard is pinned; the locks are released. While all of them are held
nothing changes, so the pins are of one instant. Writers that meet the locks wait for those few milliseconds. Locks that were
taken are kept while others are waited for: writers never do that, and shared locks go together, so there is no deadlock. If the
reader dies meanwhile, others abort it as any transaction.

A connection that was opened read-only appends nothing, so it takes no locks: neither those of files nor those of maps. On a
cluster the nodes append for it what every strong read has them append: it asks for barriers of all shards, pins them, and asks
for barriers again. Where nothing but such records came in between, the pins are of one instant. It must be lucky with the
writers, and says so if it is not.

Transactions over shards could keep a reader out for ever, each new one before the last has ended. So a reader that has met one
posts a *claim*, a lock on nothing in shard 0. Those that would begin a transaction over shards give way to the claims that
they find, for ``config.GIVE_WAY_S`` at most, and once to each. A reader that needs longer renews its claim. Programs of earlier
versions do not; for them it is a matter of luck and of tries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from types import TracebackType
from typing import Final, Self, TypeVar

from onefold import config
from onefold.backoff import Backoff
from onefold.codec import CorruptRecord, UnknownFormat, decode_record
from onefold.env import SystemEnv
from onefold.errors import Timeout, Unavailable
from onefold.fold import system
from onefold.log.api import Log
from onefold.machine.undisturbed import if_possible, let_pass
from onefold.shard.api import Shard, View
from onefold.shard.requirements import ReadRequirement
from onefold.space import cuts
from onefold.state.core import recovery
from onefold.state.core.client import StateClient, rejection
from onefold.state.core.time_limits import limited
from onefold.state.encoding.keys import encode_prefix
from onefold.state.fold import lock_table, rows
from onefold.state.fold.ops import UNREAD, Prepare, Resolve, Span, StateOp, state_op
from onefold.state.fold.outcomes import Answer, Outcome, Voted, decode_outcome
from onefold.state.fold.shards import fold as shard_fold

T = TypeVar("T")
CLAIM: Final = "\x00claim"
"""The name that claims lock. No map has it."""
_LOCKED_FROM: Final = 10
"""From this try on the files of a folder are locked while they are pinned."""
_CUT_TRIES: Final = 30
_QUIET_TRIES: Final = 60
"""So often a connection opened read-only looks for a moment in which nobody writes on a cluster: each look costs two records a
shard."""
_QUIET_RECORDS: Final = 64
"""So many records are looked at; where there are more, somebody writes."""
_CLAIMED_FROM: Final = 2
_AT_ONCE_MAX: Final = 16
_PAUSE_S, _PAUSE_S_MAX = 0.001, 0.02

_Again = Callable[[], object]


def moment(client: StateClient) -> dict[int, int]:
    """The offset of every shard at one instant between this call and its return. The session notes them.

    Raises Unavailable (definite) when a shard cannot be asked, or when the time is up; TokenAhead.
    """
    env, backoff = client.env, Backoff(_PAUSE_S, _PAUSE_S_MAX, client.env)
    deadline = env.boot_s() + client.read_time()
    reads_only = any(_is_read_only(shard) for shard in client.shards)
    with limited(client, deadline), _Claim(client, deadline) as claim:
        for attempt in count():
            if client.always_strong and (reads_only or attempt < _CUT_TRIES):
                found = _cut(client, deadline, locked=attempt >= _LOCKED_FROM and not reads_only)
            elif reads_only:
                found = _between_barriers(client)
            else:
                found = _under_locks(client, claim, deadline)
            if isinstance(found, dict):
                behind = [
                    shard_id for shard_id, at in client.session.given.items() if found.get(shard_id, 0) < at
                ]
                if not behind:
                    for shard_id, offset in found.items():
                        client.session.observe(shard_id, offset)
                    return found
                for shard_id in behind:
                    client.reach_given(shard_id)
                continue
            if env.boot_s() > deadline or (
                reads_only and not client.always_strong and attempt + 1 >= _QUIET_TRIES
            ):
                break
            if attempt + 1 >= _CLAIMED_FROM and not reads_only:
                claim.post()
            found()
            client.shards[0].pause(backoff.pause_s())
    if reads_only:
        raise Unavailable(
            "the shards could not be read at one moment in time: others write all the time, and a connection that was opened "
            "read-only holds up nobody. Try again when less is written, or open the space without read_only",
            definite=True,
        )
    raise Unavailable(
        "the shards could not be read at one moment in time: transactions over several shards are in the way. Nothing was "
        "written. Try again, or allow more time (timeout=)",
        definite=True,
    )


def give_way(client: StateClient) -> None:
    """Before a transaction over shards begins: let the readers that have claimed a moment have it, for a short time.

    To each claim once: the reader may be dead, and one that is not renews its claim. What stands for long is ended as any
    transaction is.
    """
    shard = client.shards[0]
    if shard.peek(shard_fold.OPEN, shard_fold.OPEN_KEY)[0] is None:
        return
    passed: dict[str, float] = client.shared.setdefault("given_way", {})
    now_s = began_s = client.env.boot_s()
    end_s = min(began_s + config.GIVE_WAY_S, client.deadline())
    backoff = Backoff(_PAUSE_S, _PAUSE_S_MAX)
    first: set[str] | None = None
    while True:
        with shard.view() as view:
            claims = set(lock_table.range_holders(view, CLAIM))
        # Only those that were there before: who comes later waits for this one.
        first = claims - passed.keys() if first is None else first & claims
        if not first or now_s >= end_s:
            break
        shard.pause(backoff.pause_s())
        now_s = client.env.boot_s()
    for gone in passed.keys() - claims:
        passed.pop(gone, None)
    if now_s >= began_s + config.GIVE_WAY_S:
        passed.update(dict.fromkeys(first, now_s))
        _end_old_claims(client, sorted(first))
    old = [
        claim for claim, since_s in list(passed.items()) if now_s - since_s >= config.TRANSACTION_TIMEOUT_S
    ]
    if old:
        passed.update(dict.fromkeys(old, now_s))
        _end_old_claims(client, old)


def _end_old_claims(client: StateClient, claims: Sequence[str]) -> None:
    """End those of dead readers, and those that have been watched for too long; begin to watch the others."""
    with if_possible:
        recovery.unblock(client, 0, [(claim, 0) for claim in claims])


# -- one machine


def _cut(client: StateClient, deadline: float, *, locked: bool) -> dict[int, int] | _Again:
    with ExitStack() as stack:
        try:
            views = cuts.unmoved(
                client.shards,
                lambda shard: shard.view(),
                lambda view: view.offset,
                stack,
                locked=locked,
                until_s=deadline,
            )
        except Timeout as error:
            let_pass(error)
            return _nothing  # others have the files' locks, and the time is over
        if views is None:
            return _nothing
        undone = _undone(views)
        if not undone:
            return {shard_id: view.offset for shard_id, view in enumerate(views)}
    return lambda: _settle(client, undone)


def _is_read_only(shard: Shard) -> bool:
    return bool(getattr(shard, "read_only", False))


# -- a cluster


def _under_locks(client: StateClient, claim: _Claim, deadline: float) -> dict[int, int] | _Again:
    hold = _Hold(client, deadline)
    held = False
    again: _Again = _nothing
    offsets: dict[int, int] = {}
    try:
        if hold.take(claim):
            offsets, again = hold.pin()
    finally:
        held = hold.release()
    return offsets if held and offsets else again


def _between_barriers(client: StateClient) -> dict[int, int] | _Again:
    timeout, shards = client.read_time(), range(client.shard_count)

    def barrier(shard: int) -> int:
        return client.shards[shard].barrier(timeout)

    reached = _each(client, barrier, shards)
    with ExitStack() as stack:
        views = [stack.enter_context(_view_from(client, shard, reached[shard])) for shard in shards]
        offsets = {shard: view.offset for shard, view in enumerate(views)}
        undone = _undone(views)
    if undone:
        return lambda: _settle(client, undone)
    # What was written before all were pinned stands before the records of these.
    ends = _each(client, barrier, shards)
    return (
        offsets
        if all(_is_quiet(client, shard, offsets[shard], ends[shard]) for shard in shards)
        else _nothing
    )


def _is_quiet(client: StateClient, shard: int, after: int, upto: int) -> bool:
    """Whether the records beyond ``after`` to ``upto`` change nothing but the time."""
    if not 0 <= upto - after <= _QUIET_RECORDS:
        return False
    log: Log = client.shards[shard].log  # type: ignore[attr-defined]  # every space whose reads are not strong has one
    while after < upto:
        entries = log.read(after + 1)
        if not entries:
            return False
        for entry in entries:
            if entry.offset > upto:
                break
            try:
                record = decode_record(entry.data)
            except (CorruptRecord, UnknownFormat):
                return False
            if entry.offset != after + 1 or any(op.fold != system.SYSTEM_FOLD for op in record.ops):
                return False
            after = entry.offset
    return True


def _view_from(client: StateClient, shard: int, offset: int) -> AbstractContextManager[View]:
    """A view that shows at least this offset, which was reached."""
    return client.shards[shard].view(need=ReadRequirement(offset, timeout=client.read_time()))


class _Hold:
    """Shared locks on all maps of every shard."""

    def __init__(self, client: StateClient, deadline: float) -> None:
        self._client = client
        self._deadline = deadline
        self._id = client.env.token(16).hex()
        self._shards = tuple(range(client.shard_count))
        self._asked: list[int] = []
        self._maps: dict[int, frozenset[str]] = {}
        self._offsets: dict[int, int] = {}

    def take(self, claim: _Claim) -> bool:
        """Take the locks, the home shard's first; False when somebody has ended it meanwhile. Raises as ``moment``."""

        def take(shard: int) -> bool:
            with limited(self._client, self._deadline):
                return self._take(shard, claim)

        return take(0) and all(_each(self._client, take, self._shards[1:]))

    def pin(self) -> tuple[dict[int, int], _Again]:
        """Pin every shard; the offsets, or none and what to do before the next try."""
        client = self._client
        with ExitStack() as stack:
            views = [
                stack.enter_context(_view_from(client, shard, self._offsets[shard])) for shard in self._shards
            ]
            offsets = {shard: view.offset for shard, view in enumerate(views)}
            undone = _undone(views)
            if undone:
                return {}, lambda: _settle(client, undone)
            if any(_maps(view) - self._maps[shard] for shard, view in enumerate(views)):
                return {}, _nothing  # a new map, which was not locked
        return offsets, _nothing

    def release(self) -> bool:
        """Give the locks up, the home shard's last; whether all of them were still held."""
        others = [shard for shard in self._asked if shard]
        whole = all(_each(self._client, self._release, others))
        if 0 in self._asked:
            whole = self._release(0) and whole
        return whole and len(self._asked) == len(self._shards)

    def _take(self, shard: int, claim: _Claim) -> bool:
        client = self._client
        backoff = Backoff(_PAUSE_S, _PAUSE_S_MAX, client.env)
        self._asked.append(shard)
        while True:
            with client.shards[shard].view() as view:
                maps = _maps(view)
            start, stop = encode_prefix(())
            spans = tuple(Span(name, start, stop, UNREAD) for name in sorted(maps))
            vote = _submit(client, shard, _prepare(client, self._id, self._shards, spans), self._deadline)
            if not isinstance(vote, Voted):
                raise rejection(vote)
            if vote.yes:
                self._maps[shard], self._offsets[shard] = maps, vote.offset
                return True
            if vote.reason == "resolved" or client.env.boot_s() > self._deadline:
                return False
            claim.post()
            recovery.unblock(client, shard, vote.blockers)
            client.shards[shard].pause(backoff.pause_s())

    def _release(self, shard: int) -> bool:
        with if_possible:
            deadline = max(self._deadline, self._client.env.boot_s() + config.RELEASE_S)
            return _submit(self._client, shard, Resolve(self._id, commit=False), deadline) == Answer(True)
        return False


class _Claim:
    """The wish of a reader that transactions over shards give way to it."""

    def __init__(self, client: StateClient, deadline: float) -> None:
        self._client = client
        self._deadline = deadline
        self._id = ""
        self._renew_s = 0.0

    def post(self) -> None:
        """Tell the others, and again when they have given way and it was not enough."""
        now_s = self._client.env.boot_s()
        if self._id and now_s < self._renew_s:
            return
        self._withdraw()
        self._id = self._client.env.token(16).hex()
        self._renew_s = now_s + 2 * config.GIVE_WAY_S
        span = Span(CLAIM, b"", b"\xff", UNREAD)
        with if_possible:
            _submit(self._client, 0, _prepare(self._client, self._id, (0,), (span,)), self._deadline)

    def _withdraw(self) -> None:
        if self._id:
            with if_possible:
                deadline = max(self._deadline, self._client.env.boot_s() + config.RELEASE_S)
                _submit(self._client, 0, Resolve(self._id, commit=False), deadline)
            self._id = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._withdraw()


# -- both


def _undone(views: Sequence[View]) -> list[int]:
    """The shards in which something is prepared that is committed at its home, in views of one instant."""
    found = []
    for shard, view in enumerate(views):
        if shard_fold.is_any_prepared(view) and any(
            0 <= prepared.home < len(views)
            and shard_fold.standing(views[prepared.home], transaction) == "committed"
            for transaction, prepared in shard_fold.prepared_in(view)
        ):
            found.append(shard)
    return found


def _settle(client: StateClient, shards: Sequence[int]) -> None:
    for shard in shards:
        recovery.settle(client, shard)


def _nothing() -> None:
    """There is nothing to do before the next try."""


def _maps(view: View) -> frozenset[str]:
    return frozenset(table.removeprefix(rows.MAPS) for table in view.tables(rows.MAPS))


def _prepare(client: StateClient, name: str, shards: tuple[int, ...], spans: tuple[Span, ...]) -> Prepare:
    return Prepare(name, 0, shards, (), spans, (), client.shards[0].member)


def _submit(client: StateClient, shard: int, op: StateOp, deadline: float) -> Outcome:
    return decode_outcome(client.shards[shard].submit([state_op(op)], deadline)[0])


def _each(client: StateClient, do: Callable[[int], T], shards: Sequence[int]) -> list[T]:
    """Do it in these shards, at the same time where there are threads."""
    if len(shards) > 1 and isinstance(client.env, SystemEnv):
        with ThreadPoolExecutor(min(len(shards), _AT_ONCE_MAX), "onefold-moment") as pool:
            return list(pool.map(do, shards))
    return [do(shard) for shard in shards]
