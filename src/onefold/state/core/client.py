"""The core under all handles of shared state: operations go out here, and views come in at their consistency level.

One for each open database. Handles (maps, queues, transactions, ...) keep no state of their own beyond what they are called;
the synchronous and the asynchronous API stand on the same core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from onefold import config
from onefold.backoff import Backoff
from onefold.codec import Op
from onefold.env import SystemEnv
from onefold.errors import (
    Conflict,
    InvalidArgument,
    InvalidValue,
    OnefoldError,
    SpaceError,
    TokenAhead,
    TooOld,
    Unavailable,
)
from onefold.fold import system
from onefold.machine import forks
from onefold.shard.api import Shard, View
from onefold.shard.fold_version import reach_version
from onefold.shard.receipts import Receipt
from onefold.shard.requirements import Behind, ReadRequirement
from onefold.state.core.consistency import STRONG, Level
from onefold.state.core.time_limits import deadline_of, end_of, limited
from onefold.state.core.tokens import Session
from onefold.state.encoding.keys import shard_of
from onefold.state.fold import rows
from onefold.state.fold.kinds import Write
from onefold.state.fold.ops import Commit, Read, Span, StateOp, state_op
from onefold.state.fold.outcomes import Blocked, Committed, Outcome, Rejected, decode_outcome

_WEAK = ("prefix", "eventual")
_TICKS_IN_VAIN_MAX = 8
_PAUSE_S, _PAUSE_S_MAX = 0.001, 0.1


class StateClient:
    """Thread-safe."""

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        level: Level = STRONG,
        timeout: float | None = None,
        token: str | None = None,
    ) -> None:
        """``shards``: of the space. ``level``: the connection's default. ``timeout``: seconds that a call may take (default:
        ``config.READ_TIMEOUT_S`` for a read, ``config.APPEND_RETRY_S`` for a write). ``token``: the session to
        continue. Raises TokenError."""
        self._pid = forks.process
        self.shards = tuple(shards)
        self.shard_count = len(self.shards)
        self.env = self.shards[0].env
        self.level = level
        self.timeout = config.READ_TIMEOUT_S if timeout is None else timeout
        self.write_timeout = config.APPEND_RETRY_S if timeout is None else timeout
        self.limited = timeout is not None
        """Whether the connection was given a time limit."""
        self.always_strong = all(shard.strong_reads for shard in self.shards)
        self.mends_here = tuple(
            shard.gives_receipts and isinstance(self.env, SystemEnv) for shard in self.shards
        )
        """Of each shard, whether what is submitted in the main thread can be interrupted there, and is mended then."""
        self.shared: dict[str, Any] = {}
        """What this client's handles share, such as the cache of session reads."""
        self.large_frames: Callable[[], Any] = lambda: None
        """Makes what its handles do with large frames, when the first of them asks (``state.streams.large_frames``). Without it
        they stay in the records."""
        self.session = Session(
            self.shards[0].incarnation,
            self.shard_count,
            token,
            present=self.present if self.always_strong else None,
        )

    @property
    def shows_all(self) -> bool:
        """Whether every view shows what a strong one does: nothing has to be waited for, nor to be settled."""
        return self.always_strong and self.shard_count == 1 and not self.session.given

    @property
    def forked(self) -> bool:
        """Whether this process was forked after this was made."""
        return self._pid != forks.process

    def check_process(self) -> None:
        """Raises SpaceError in a process that was forked after this was made. Before anything else: the locks of
        threads that were not forked along are never released there."""
        if self._pid != forks.process:
            raise forks.opened_before(self.shards[0].url)

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise InvalidArgument(
            f"a handle on {self.shards[0].url} cannot be sent to another process or stored: it holds open files. Send the URL "
            "(and `db.session.token`), and connect there"
        )

    def receipt(self, shard: int) -> Receipt | None:
        """For what is submitted to the shard and may be interrupted; None where that comes to its end by itself."""
        return Receipt() if self.mends_here[shard] else None

    # -- where things are

    def shard_of(self, key: bytes) -> int:
        """The shard of an encoded key: all keys with the same first element, of all maps, are in one."""
        return shard_of(key, self.shard_count) if self.shard_count > 1 else 0

    def present(self, shards: Iterable[int] | None = None) -> Mapping[int, int]:
        """The applied offsets of these shards (default: all)."""
        wanted = range(self.shard_count) if shards is None else shards
        return {shard: self.shards[shard].applied for shard in wanted}

    # -- time

    def deadline(self) -> float:
        """The moment of the boot clock until which a write that begins now may be tried."""
        return deadline_of(self)

    def read_time(self, timeout: float | None = None) -> float:
        """Seconds that a read which begins now may wait. ``timeout``: instead of the connection's."""
        timeout = self.timeout if timeout is None else timeout
        end_s = end_of(self)
        return timeout if end_s is None else max(0.0, min(timeout, end_s - self.env.boot_s()))

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

    def tick(self, shard: int) -> None:
        """Append a record that does nothing but carry this client's time."""
        self.shards[shard].submit([system.system_op(system.Tick())], self.deadline())

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

    def reach_version(self, shard: int, version: int) -> bool:
        """Whether folds apply by this version in the shard; raises it where it is this program's to raise (embedded, and every
        program that has the space open knows it)."""
        return reach_version(self.shards[shard], version)

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

    def _requirement(
        self,
        shard: int,
        level: Level,
        timeout: float | None = None,
        seen: Callable[[int], None] | None = None,
    ) -> ReadRequirement:
        """What a view must show at the level."""
        given, kind = self.session.given, level.kind
        if self.always_strong and (not given or kind in _WEAK):
            return ReadRequirement(seen=seen)
        timeout = self.read_time(timeout)
        if self.always_strong:
            return ReadRequirement(given.get(shard, 0), timeout=timeout, seen=seen)
        match kind:
            case "strong":
                return ReadRequirement(given.get(shard, 0), barrier=True, timeout=timeout, seen=seen)
            case "bounded":
                return ReadRequirement(fresh_s=level.seconds, timeout=timeout, seen=seen)
            case "session":
                return ReadRequirement(self.session.floor(shard), timeout=timeout, seen=seen)
        # A prefix only grows; what converges may come from anybody.
        return ReadRequirement(shown=kind == "prefix", timeout=timeout, seen=seen)

    @contextmanager
    def _plain(self, shard_id: int, level: Level, timeout: float | None) -> Iterator[View]:
        need = self._requirement(
            shard_id, level, timeout, lambda offset: self.session.observe(shard_id, offset)
        )
        try:
            with self.shards[shard_id].view(need=need) as view:
                yield view
        except Behind as error:
            self._explain(shard_id, need, error)
            raise

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

    def _explain(self, shard_id: int, need: ReadRequirement, error: Behind) -> None:
        """Raises what says that something which the session has seen did not arrive, if that was needed."""
        if need.after:
            raise self._not_reached(shard_id, need.after, error.applied, need.timeout or 0.0) from error

    def _settled_upto(self, shard: int, level: Level) -> int | None:
        """A session's read resolves only what the session has seen prepared, so that it needs no other shard without cause."""
        return self.session.floor(shard) if level.kind == "session" and not self.always_strong else None

    def reach_given(self, shard: int) -> None:
        """Wait until the shard shows what the token that the session began with has seen. Raises TokenAhead."""
        self._reach(self.shards[shard], shard, self.session.given.get(shard, 0), self.read_time())

    def _reach(self, shard: Shard, shard_id: int, offset: int, timeout: float) -> None:
        if offset and not shard.reach(offset, timeout):
            raise self._not_reached(shard_id, offset, shard.applied, timeout)

    def _not_reached(self, shard: int, offset: int, applied: int, timeout: float) -> Unavailable:
        if offset <= self.session.given.get(shard, 0):
            return TokenAhead(
                f"the session token has seen offset {offset} of shard {shard}; nothing beyond {applied} came within "
                f"{timeout:g} s. Wait longer (timeout=), or start without the token"
            )
        return Unavailable(
            f"what this session has seen (offset {offset} of shard {shard}) did not arrive here within {timeout:g} s. "
            "Try again, or read with consistency='eventual'"
        )

    def close(self) -> None:
        """Close every shard."""
        for shard in self.shards:
            shard.close()


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
