"""A shard without a replica here: nodes answer its reads, and what it writes it appends to the log itself.

Appending needs no node: the record goes to the log under this client's number, as from a replica, and then any node tells the
outcome. Reads are questions (``shard.remote.protocol``), each to whichever replica answers first. So what one replica shows
another one may not have yet, and order is kept here instead: the highest offset that was shown, the *floor*, goes with every
question that says nothing else, and a replica that is behind it waits. A view is one offset, learned from its first answer;
all that follows is asked as of that offset, of any replica.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from onefold import config
from onefold.backoff import Backoff, Deadline
from onefold.codec import CorruptRecord, Op, Record, decode_record
from onefold.env import Env, SystemEnv
from onefold.errors import (
    ASK_LATER,
    InvalidArgument,
    OnefoldError,
    SpaceError,
    Timeout,
    TooOld,
    TooStale,
    Unavailable,
)
from onefold.fold import system
from onefold.fold.api import Fold
from onefold.log.api import Log
from onefold.shard.appender import Turn
from onefold.shard.over_log import ReplicatedShard
from onefold.shard.remote import protocol
from onefold.shard.remote.early_outcome import EarlyOutcome
from onefold.shard.remote.notifications import News
from onefold.shard.remote.protocol import Answer, Ask, Refusal, Standing, What
from onefold.shard.remote.view import RemoteView
from onefold.shard.requirements import Behind, ReadRequirement
from onefold.store import exactly_once

_SHOWN = ReadRequirement(shown=True)
_OLD_TRIES = 3
_ASK_PAUSE_S = (0.01, 0.5)
_WAIT_PAUSE_S = (0.01, 1.0)
"""So many replicas are asked for a version that is older than what they keep: one that started from a snapshot has less."""
_ANSWER_S = 0.5
"""An answer is waited for this much longer than the node may take."""
_QUICK_S = 0.1
_SURFACED_S = 1.0
"""How long is waited for what became of an append without an answer, before it is tried again."""


class Asking(Protocol):
    """How nodes are reached."""

    def __call__(self, request: bytes, timeout: float, *, hedge_s: float) -> bytes:
        """The reply of one replica. When none has come after ``hedge_s`` seconds, another one is asked as well.

        Raises Unavailable (nobody is there) or Timeout (no answer within ``timeout`` seconds).
        """
        ...


class RemoteShard(ReplicatedShard):
    """See ``onefold.shard.api.Shard``. Thread-safe."""

    def __init__(
        self,
        log: Log,
        asking: Asking,
        folds: Sequence[Fold],
        env: Env,
        *,
        url: str,
        read_only: bool = False,
        pause: Callable[[float], None] | None = None,
        turns: Callable[[], Turn] | None = None,
    ) -> None:
        """``log``: is appended to, and read only for what is older than nodes keep. ``folds``: their names and versions are used;
        nothing is applied here. Others: see ``ReplicatedShard``. Asks nobody yet."""
        super().__init__(log, env, url=url, read_only=read_only, pause=pause, turns=turns)
        self._asking = asking
        self._folds = {fold.name for fold in folds}
        self._version_max = min((fold.version for fold in folds), default=1)
        self._version = 1
        self._lock = threading.Lock()
        self._floor = 0
        self._news = News(self._position, self._poll, env)
        self._asked = False
        self._registered: set[str] = {system.SYSTEM_FOLD}
        self._told: tuple[str, Standing] | None = None
        self._append_deadline = 0.0
        self._appending: Record | None = None
        self._early = EarlyOutcome(asking, log, self._read)

    # -- the contract

    @property
    def strong_reads(self) -> bool:
        return False

    @property
    def reads_here(self) -> bool:
        return False

    @property
    def directory(self) -> Path | None:
        return None

    def barrier(self, timeout: float | None = None) -> int:
        return self.ask(protocol.Applied(), ReadRequirement(barrier=True, timeout=timeout))[0]

    def fresh(self, seconds: float, timeout: float | None = None) -> None:
        self.check_usable()
        if not self.freshness.within(seconds, self._env.boot_s()):
            self.ask(protocol.Applied(), ReadRequirement(fresh_s=seconds, timeout=timeout))

    def view(self, at: int | None = None, need: ReadRequirement | None = None) -> Any:
        """See ``Shard.view``."""
        return self._viewing(at, need)

    def peek(
        self, table: str, key: bytes, need: ReadRequirement | None = None, at: int | None = None
    ) -> tuple[bytes | None, int]:
        offset, values = self.ask(protocol.Get(table, (key,)), need, at)
        return values[0], offset

    def outcome(self, request_id: str, need: ReadRequirement | None = None) -> bytes | None:
        kept: bytes | None = self.ask(protocol.Requested(request_id), need)[1]
        return kept

    def reach(self, offset: int, timeout: float | None) -> bool:
        self.check_usable()
        deadline = Deadline.after(timeout, self._env)
        while self._floor < offset:
            left_s = deadline.left_s
            wait_s = config.READ_TIMEOUT_S if left_s is None else max(0.0, left_s)
            try:
                self.ask(protocol.Applied(), ReadRequirement(after=offset, timeout=wait_s))
            except Unavailable:
                if deadline.passed:
                    return False
        return True

    def wait(self, after: int, timeout: float | None) -> int:
        """See ``Shard.wait``. Many short waits cost no more than a long one; one of 0 seconds tells what is known and lets
        the next ones know more."""
        self.check_usable()
        if self._floor <= after:
            if isinstance(self._env, SystemEnv):
                self._news.wait(after, timeout)
            else:
                self._wait_alone(after, timeout)  # a simulator has no threads
        return self._floor

    def member_alive(self, member: str) -> bool | None:
        self.check_usable()
        return True if member == self.member else None  # it may be on any machine

    def close(self) -> None:
        self._closed = True
        self._early.forget()
        self._news.close()
        self._log.close()

    # -- asking

    def ask(self, what: What, need: ReadRequirement | None, at: int | None = None) -> tuple[int, Any]:
        """The offset that the answer shows, and the result. ``need``: None: what was shown here before. ``at``: exactly that
        offset.

        Raises what the node raises, Behind when none is far enough, and Unavailable when none answers; all definite.
        """
        need = need or _SHOWN
        if need.shown and at is None:
            need = need._replace(after=max(need.after, self._floor))
        if need.fresh_s is not None and self.freshness.within(need.fresh_s, self._env.boot_s()):
            # An own record proves it, or a barrier: what it showed is fresh enough.
            need = need._replace(fresh_s=None, after=max(need.after, self._floor))
        began_s = self._env.boot_s()
        offset, result = self._whole(what, need, at)
        if at is None and not isinstance(what, protocol.Known):
            self._show(offset)
            if need.barrier:
                self.freshness.prove(began_s)
        if need.seen is not None:
            need.seen(offset)
        return offset, result

    def _whole(self, what: What, need: ReadRequirement, at: int | None) -> tuple[int, Any]:
        """A result from all its pieces."""
        for _ in range(_OLD_TRIES):
            answer = self._piece(what, need, at)
            pieces, have, offset, digest = [answer.body], len(answer.body), answer.offset, answer.digest
            is_view = not isinstance(what, (protocol.Requested, protocol.Known))
            rest = need._replace(barrier=False, fresh_s=None)
            while have < answer.total and answer.body and answer.digest == digest:
                answer = self._piece(what, rest, offset if is_view else at, skip=have)
                pieces.append(answer.body)
                have += len(answer.body)
            if have == answer.total and answer.digest == digest:
                try:
                    return offset, protocol.decode_body(what, b"".join(pieces))
                except protocol.Garbled as error:
                    raise SpaceError(
                        f"a node of {self._url} gave an answer that this program does not understand: {error}. "
                        "Are all programs of one version?"
                    ) from error
        raise Unavailable(
            f"nodes of {self._url} gave pieces of different answers. Are all of one version? Try again"
        )

    def _piece(self, what: What, need: ReadRequirement, at: int | None, skip: int = 0) -> Answer:
        """Ask until somebody answers or the time is over."""
        self.check_usable()
        timeout_s = config.READ_TIMEOUT_S if need.timeout is None else need.timeout
        deadline, backoff = Deadline.after(timeout_s, self._env), Backoff(*_ASK_PAUSE_S)
        old = 0
        while True:
            left_s = max(0.0, deadline.left_s or 0.0)
            ask = Ask(
                protocol.PROTOCOL,
                self.incarnation,
                what,
                at,
                need.after,
                need.barrier,
                need.fresh_s,
                0.9 * left_s,
                skip,
            )
            answer_s = left_s + min(_ANSWER_S, 0.1 * timeout_s + 0.1)
            # Another node would only wait for the same news.
            hedge_s = answer_s if isinstance(what, protocol.Exchange) else config.ASK_HEDGE_S
            problem = self._ask_once(ask, answer_s, hedge_s)
            if isinstance(problem, Answer):
                return problem
            old += isinstance(problem, TooOld)
            if old >= _OLD_TRIES:
                raise problem
            if deadline.before(backoff.next_s):
                # A question without time for its answer would only hide why the last one failed.
                raise self._given_up(problem, need, timeout_s)
            self._pause(backoff.pause_s())

    def _ask_once(self, ask: Ask, timeout: float, hedge_s: float) -> Answer | OnefoldError:
        """An answer, or why there is none though somebody else may have one. Raises what nobody can answer."""
        try:
            return self._read(self._asking(protocol.encode(ask), timeout, hedge_s=hedge_s))
        except (Unavailable, Timeout) as error:
            return error

    def _read(self, data: bytes) -> Answer | OnefoldError:
        """As ``_ask_once``."""
        try:
            reply = protocol.decode_reply(data)
        except protocol.Garbled as error:
            return Unavailable(f"a reply was garbled: {error}")
        if reply.incarnation != self.incarnation:
            raise SpaceError(
                f"{self._url} was recreated or restored since this program opened it: a node has {reply.incarnation}, this "
                f"program {self.incarnation}. Open it again"
            )
        if isinstance(reply, Refusal):
            if reply.elsewhere:
                return reply.error()
            raise reply.error()
        if reply.fold_version > self._version_max:
            raise SpaceError(
                f"the space is at fold version {reply.fold_version}; this program knows {self._version_max}. "
                "Upgrade: pip install -U onefold"
            )
        self._version = max(self._version, reply.fold_version)
        self._asked = True
        return reply

    def _wait_alone(self, after: int, timeout: float | None) -> None:
        """Wait without other threads, by questions of this one."""
        deadline, backoff = Deadline.after(timeout, self._env), Backoff(*_WAIT_PAUSE_S)
        while self._floor <= after and not self._closed:
            wait_s = deadline.within(config.ASK_POLL_S)
            if self._poll(after, wait_s):
                backoff.reset()
            elif wait_s > 0:
                self._pause(deadline.within(backoff.pause_s()))
            if deadline.passed:
                break

    def _poll(self, after: int, wait_s: float) -> bool:
        """Ask a node to wait for something beyond the offset; whether it answered."""
        ask = Ask(protocol.PROTOCOL, self.incarnation, protocol.Beyond(after), wait_s=wait_s)
        hedge_s = wait_s + config.ASK_HEDGE_S
        answer = self._ask_once(ask, hedge_s + _ANSWER_S, hedge_s)
        if isinstance(answer, Answer):
            self._show(answer.offset)
            return True
        return False

    def _show(self, offset: int) -> None:
        if offset > self._floor:
            with self._lock:
                self._floor = max(self._floor, offset)
            self._news.moved()

    def _given_up(self, problem: OnefoldError, need: ReadRequirement, timeout_s: float) -> OnefoldError:
        if isinstance(problem, Behind):
            return Behind(f"{problem}. None further came within {timeout_s:g} s: try again", problem.applied)
        if isinstance(problem, (TooStale, TooOld)):
            return problem
        if need.fresh_s is not None:
            age_s = self.freshness.age(self._env.boot_s())
            return TooStale(
                f"no node of {self._url} could say within {timeout_s:g} s that what it has is at most {need.fresh_s:g} s old "
                f"({problem}); what was shown here last is complete as of {age_s:.3g} s ago. Try again, or read with a weaker "
                "consistency",
                definite=True,
            )
        return Unavailable(
            f"no node of {self._url} answered within {timeout_s:g} s ({problem}). Try again, or see with `onefold status` "
            "which nodes run",
            definite=True,
        )

    @contextmanager
    def _viewing(self, at: int | None, need: ReadRequirement | None) -> Iterator[RemoteView]:
        self.check_usable()
        if at is not None and at > self._floor and at > self.applied:
            raise InvalidArgument(f"offset {at} is beyond the applied offset {self._floor}")
        view = RemoteView(self.ask, at, need)
        try:
            yield view
        finally:
            view.end()

    # -- for the writer

    def _position(self) -> int:
        return self._floor

    def _look(self) -> int:
        return self.ask(protocol.Applied(), None)[0]

    def before_append(self, deadline: float) -> int:
        """A client's id holds an applied offset, so one must be known."""
        self._told, self._append_deadline = None, deadline
        if not self._asked:
            self.ask(protocol.Applied(), _SHOWN._replace(timeout=max(0.0, deadline - self._env.boot_s())))
        return self._floor

    def catch_up(self, own: tuple[int, bytes] | None = None, deadline: float | None = None) -> int:
        self.check_usable()
        self._told = None
        if own is not None:
            self._await_outcome(*own)
        else:
            with suppress(Unavailable):
                self.ask(protocol.Applied(), ReadRequirement(timeout=self._little(deadline)))
        return self._floor

    def _little(self, deadline: float | None) -> float:
        """Seconds to ask for while an append is in doubt and should be tried again soon."""
        return _SURFACED_S if deadline is None else min(_SURFACED_S, self._left(deadline))

    def _left(self, deadline: float) -> float:
        """Seconds until the deadline, and time for one quick answer at least."""
        return max(_QUICK_S, deadline - self._env.boot_s())

    def announce(self, record: Record, deadline: float) -> None:
        self._appending = record
        self._early.begin(record, deadline - self._env.boot_s())

    def _await_outcome(self, offset: int, data: bytes) -> None:
        """Ask what became of an acknowledged record, and whether it is the one that is there. Raises LogCorrupt and Timeout."""
        record, self._appending = self._appending, None
        if record is None:
            try:
                record = decode_record(data)
            except CorruptRecord as error:
                raise SpaceError(f"this program's own record does not decode: {error}. A bug") from error
        left_s = self._left(self._append_deadline)
        early = self._early.outcome(record, offset, left_s)
        if early is not None:
            self._took_effect(record, offset, early)
            return
        try:
            _, told = self.ask(
                protocol.Known(record.client, offset), ReadRequirement(after=offset, timeout=left_s)
            )
        except Unavailable as error:
            raise Timeout(
                f"the operation is in the log of {self._url} at offset {offset}, and no node has told its outcome in time: "
                f"{error}. {ASK_LATER}"
            ) from error
        standing = Standing(*told)
        if not _is_there(standing, record.number, offset, data):
            self._halt(self._not_there(offset))
            self.check_usable()
        self._took_effect(record, offset, standing)

    def _took_effect(self, record: Record, offset: int, standing: Standing) -> None:
        self._show(offset)
        self._told = record.client, standing
        if standing.number == record.number:
            self._registered.update(op.fold for op in record.ops)

    def known(self, client: str) -> exactly_once.ClientRow | None:
        if self._told is not None and self._told[0] == client:
            standing = self._told[1]
        else:
            requirement = ReadRequirement(timeout=self._little(self._append_deadline))
            try:
                standing = Standing(*self.ask(protocol.Known(client), requirement)[1])
            except Unavailable:
                return None  # not known to have surfaced: it is tried again
            self._show(standing.offset)
        if not standing.number:
            return None
        return exactly_once.ClientRow(standing.number, standing.offset, standing.outcomes)

    def missing(self, ops: Sequence[Op]) -> Op | None:
        """What this program has not seen registered it registers: that is nothing when it was."""
        names = tuple(sorted({op.fold for op in ops} - self._registered))
        for name in names:
            if name not in self._folds:
                raise InvalidArgument(
                    f"no fold {name!r} was given to open_shard; it has {sorted(self._folds)}"
                )
        return system.system_op(system.Register(names)) if names else None

    @property
    def fold_version(self) -> int:
        return self._version

    @property
    def fold_version_max(self) -> int:
        return self._version_max


def _is_there(standing: Standing, number: int, offset: int, data: bytes) -> bool:
    """Whether the record that was acknowledged at the offset is there.

    A node applies what it has checked, so one that it applied there under this client's number is this one. When the client's
    last one is elsewhere, this is a copy of it; then its bytes tell, unless it was trimmed.
    """
    if standing.offset == offset:
        return standing.number == number
    return standing.digest is None or standing.digest == protocol.digest_of(data)
