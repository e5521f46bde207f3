"""The core under all handles of shared state: operations go out here, and views come in at their consistency level.

One for each open database. Handles (maps, queues, transactions, ...) keep no state of their own beyond what they are called;
the synchronous and the asynchronous API stand on the same core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from onefold import config
from onefold.backoff import Backoff
from onefold.codec import Op
from onefold.errors import (
    Conflict,
    InvalidArgument,
    InvalidValue,
    OnefoldError,
    SpaceError,
    TooOld,
    Unavailable,
)
from onefold.shard.api import Shard, View
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import Behind
from onefold.state.core.consistency import STRONG, Level
from onefold.state.core.shards_client import ShardsClient
from onefold.state.core.time_limits import deadline_of, limited
from onefold.state.core.tokens import Session
from onefold.state.fold import rows
from onefold.state.fold.kinds import Write
from onefold.state.fold.ops import Commit, Read, Span, StateOp, state_op
from onefold.state.fold.outcomes import Blocked, Committed, Outcome, Rejected, decode_outcome

_WEAK = ("prefix", "eventual")
_TICKS_IN_VAIN_MAX = 8
_PAUSE_S, _PAUSE_S_MAX = 0.001, 0.1


class StateClient(ShardsClient):
    """Thread-safe."""

    session: Session

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        level: Level = STRONG,
        timeout: float | None = None,
        token: str | None = None,
    ) -> None:
        """``shards``: of the space. ``level``: the connection's default. ``timeout``: as ``ShardsClient``. ``token``: the session
        to continue. Raises TokenError."""
        super().__init__(shards, level=level, timeout=timeout)
        self.large_frames: Callable[[], Any] = lambda: None
        """Makes what its handles do with large frames, when the first of them asks (``state.streams.large_frames``). Without it
        they stay in the records."""
        self.session = Session(
            self.shards[0].incarnation,
            self.shard_count,
            token,
            present=self.present if self.always_strong else None,
        )

    # -- writing

    def submit(
        self, shard: int, op: StateOp, request_id: str | None = None, receipt: Receipt | None = None
    ) -> Outcome:
        """Submit one operation until it is not blocked; its outcome. What the outcome saw is noted in the session. ``receipt``:
        as ``Shard.submit``.

        Raises what ``Shard.submit`` raises; Unavailable (definite) when a transaction over several shards blocks it until the
        deadline.
        """
        wrapped = state_op(op, request_id)
        deadline = deadline_of(self)
        outcome = self.submit_once(shard, wrapped, deadline, receipt)
        if not isinstance(outcome, Blocked):
            return outcome
        from onefold.state.core import recovery

        backoff = Backoff(_PAUSE_S, _PAUSE_S_MAX, self.env)
        with limited(self, deadline):
            while isinstance(outcome, Blocked):
                if self.env.boot_s() > deadline:
                    raise Unavailable(
                        f"a transaction over several shards ({outcome.transactions[0][0]}) blocks this for too long; nothing "
                        "was written. Try again"
                    )
                recovery.unblock(self, shard, outcome.transactions)
                self.shards[shard].pause(backoff.pause_s())
                outcome = self.submit_once(shard, wrapped, deadline, receipt)
        return outcome

    def submit_together(self, shard: int, ops: Sequence[Op]) -> list[Outcome]:
        """Submit operations that no transaction can block, in one record; their outcomes."""
        return [decode_outcome(data) for data in self.shards[shard].submit(ops, self.deadline())]

    def submit_once(
        self, shard: int, op: Op, deadline: float | None = None, receipt: Receipt | None = None
    ) -> Outcome:
        """Submit one operation, whatever becomes of it."""
        if deadline is None:
            deadline = self.deadline()
        outcome = decode_outcome(self.shards[shard].submit([op], deadline, receipt)[0])
        if isinstance(outcome, Committed):
            self.session.observe(shard, outcome.offset)
        return outcome

    def commit(
        self,
        shard: int,
        writes: tuple[Write, ...],
        reads: tuple[Read, ...] = (),
        spans: tuple[Span, ...] = (),
        request_id: str | None = None,
        *,
        last_try: bool = True,
    ) -> Committed:
        """Commit in one shard. Raises Conflict, and what ``rejection`` makes of other refusals (all definite)."""
        outcome = self.submit(shard, Commit(reads, spans, writes, last_try), request_id)
        if isinstance(outcome, Committed):
            return outcome
        raise rejection(outcome)

    def settle_due(self, shard_id: int) -> int | None:
        """Let end what is due by this client's clock, so that expiry works when nothing else happens. The offset at which nothing
        was due any more; None when that cannot be waited for."""
        shard = self.shards[shard_id]
        before: tuple[bytes, bytes] | None = None
        in_vain = 0
        for _ in range(1000):
            wall_ms = self.env.wall_ms()
            with shard.view() as view:
                due = next(view.scan(rows.DUE, stop=rows.due_before(wall_ms), limit=1), None)
                if due is None:
                    return view.offset
                if self.shard_count > 1 and self._all_locked(view, wall_ms):
                    return None
            if due == before:
                in_vain += 1
                if in_vain > _TICKS_IN_VAIN_MAX:
                    return None  # this clock is ahead of the log's, which decides: ever more ticks would change nothing
                shard.pause(0.001)  # a record stamped as the one before it ends nothing
            before = due
            self.tick(shard_id)
        return None

    def _all_locked(self, view: View, wall_ms: int) -> bool:
        """Whether what is due is under locks of prepared transactions: then no tick ends it, but the end of those."""
        from onefold.state.fold import lock_table

        if not lock_table.is_any_held(view):
            return False
        limit = config.EXPIRATIONS_PER_RECORD_MAX
        due = view.scan(rows.DUE, stop=rows.due_before(wall_ms), limit=limit)
        return all(lock_table.is_held(view, *rows.read_due_key(entry)[1:]) for entry, _ in due)

    # -- reading

    def view(
        self, shard_id: int, level: Level | None = None, timeout: float | None = None
    ) -> AbstractContextManager[View]:
        """A view of the shard that meets the level (default: the connection's). In a space of several shards nothing is
        prepared in it that was decided before, unless the level is a weak one.

        Raises, all definite: Unavailable (``strong``, ``session``), TooStale (``bounded``), TokenAhead (the session's token is
        from a future that does not come). They come when the block begins or, where nodes are asked, with its first read.
        """
        level = self.level if level is None else level
        if self.shard_count > 1 and level.kind not in _WEAK:
            return self._settled(shard_id, level, timeout)
        return self._plain(shard_id, level, timeout)

    def peek(
        self, shard: int, table: str, key: bytes, level: Level | None = None, timeout: float | None = None
    ) -> bytes | None:
        """One key's row at the level: the cheapest read. Raises as ``view``."""
        return self.peek_with_offset(shard, table, key, level, timeout)[0]

    def peek_with_offset(
        self, shard_id: int, table: str, key: bytes, level: Level | None = None, timeout: float | None = None
    ) -> tuple[bytes | None, int]:
        """As ``peek``, and the offset that it shows."""
        shard = self.shards[shard_id]
        if self.shows_all:
            found = shard.peek(table, key)
        else:
            level = self.level if level is None else level
            need = self._requirement(shard_id, level, timeout)
            try:
                if self.shard_count > 1 and level.kind not in _WEAK:
                    from onefold.state.core import recovery

                    # What this looks at meets the requirement, and nothing older is shown from then on.
                    recovery.settle(self, shard_id, self._settled_upto(shard_id, level), need)
                    found = shard.peek(table, key)
                else:
                    found = shard.peek(table, key, need)
            except Behind as error:
                self._explain(shard_id, need, error)
                raise
        self.session.observe(shard_id, found[1])  # so that no later session read is behind this one
        return found

    def outcome(self, shard_id: int, request_id: str) -> bytes | None:
        """What the shard keeps under the request id, strongly. Raises as ``view``."""
        need = self._requirement(shard_id, STRONG)
        try:
            kept = self.shards[shard_id].outcome(request_id, need)
        except Behind as error:
            self._explain(shard_id, need, error)
            raise
        if self.shard_count > 1:
            from onefold.state.core import recovery

            recovery.settle(self, shard_id)
        return kept

    @contextmanager
    def _settled(self, shard_id: int, level: Level, timeout: float | None) -> Iterator[View]:
        from onefold.state.core import recovery

        need = self._requirement(shard_id, level, timeout)
        upto = self._settled_upto(shard_id, level)
        try:
            with recovery.settled_view(self, shard_id, upto, need) as view:
                self.session.observe(shard_id, view.offset)
                yield view
        except Behind as error:
            self._explain(shard_id, need, error)
            raise

    def _settled_upto(self, shard: int, level: Level) -> int | None:
        """A session's read resolves only what the session has seen prepared, so that it needs no other shard without cause."""
        return self.session.floor(shard) if level.kind == "session" and not self.always_strong else None


def rejection(outcome: Outcome) -> OnefoldError:
    """The error for an outcome that is not a success; all are definite."""
    if not isinstance(outcome, Rejected):
        return SpaceError(f"an unexpected outcome: {outcome}. Are all programs of this space of one version?")
    where = f" in {outcome.detail!r}" if outcome.detail else ""
    match outcome.reason:
        case "conflict":
            return Conflict(
                f"{shown_key(outcome.key)}{where} was changed by somebody else; nothing was written. Read again and retry"
            )
        case "too_old":
            return TooOld(
                f"the transaction read{where} so long ago that its changes can no longer be checked; nothing was written. "
                "Run it again, shorter"
            )
        case "not_a_number":
            return InvalidValue(
                f"{shown_key(outcome.key)}{where} holds no number, so it cannot be incremented"
            )
        case "rebalanced":
            return Conflict(
                f"partitions of the consumer group{where} were given to other members; nothing was written. "
                "Continue iterating: records come again from the last commit"
            )
        case "malformed":
            return InvalidArgument(f"the space refused the operation as malformed{where}")
        case reason:
            return Conflict(f"refused: {reason}{where}. Nothing was written")


def shown_key(key: bytes) -> str:
    """An encoded key as people wrote it."""
    from onefold.state.encoding.keys import decode_key

    try:
        return repr(decode_key(key))
    except ValueError:
        return repr(key)
