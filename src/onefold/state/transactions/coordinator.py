"""One try of a transaction over several shards: the coordinator drives it through the logs.

The steps and why they are safe are in ``state.fold.shards.fold``; what happens when this process dies on the way is in
``recovery``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from onefold import config
from onefold.errors import ASK_LATER, AppendUnknown, OnefoldError, Unavailable
from onefold.machine.undisturbed import if_possible, is_interrupt, let_pass
from onefold.state.core import recovery
from onefold.state.core.client import StateClient, rejection
from onefold.state.fold.kinds import Write
from onefold.state.fold.ops import Decide, Forget, Prepare, Read, Resolve, Span, StateOp, state_op
from onefold.state.fold.outcomes import Answer, Committed, Decided, Outcome, Rejected, Voted, decode_outcome
from onefold.state.fold.shards import fold as shard_fold
from onefold.state.transactions import moments
from onefold.state.transactions.attempt import Earlier

_PASSING: Final = ("locked", "busy", "aborted", "resolved")
"""Votes and decisions against a transaction that say nothing about what it read."""


class ShardPart(NamedTuple):
    """What a transaction reads and writes in one shard."""

    reads: tuple[Read, ...] = ()
    spans: tuple[Span, ...] = ()
    writes: tuple[Write, ...] = ()


class Lost(Exception):
    """This try did not commit, for a reason that passes."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Coordinator:
    """One try of one transaction, under an id of its own."""

    def __init__(
        self,
        client: StateClient,
        home: int,
        parts: Mapping[int, ShardPart],
        request_id: str | None,
        last_try: bool,
    ) -> None:
        self._client = client
        self._home = home
        self._parts = parts
        self._request_id = request_id
        self._last_try = last_try
        self._id = client.env.token(16).hex()
        self._others = sorted(shard for shard in parts if shard != home)
        self._reached: list[int] = []
        """Shards to which Prepare was sent and that have not voted no."""
        self._offsets: dict[int, int] = {}

    def run(self) -> dict[int, Committed]:
        """Commit. Raises Lost (with everything given up) and as ``commit_over_shards``."""
        refused = self.prepare()
        if refused is not None:
            return self._refuse(*refused)
        if self._request_id is None and not any(part.writes for part in self._parts.values()):
            # All that was read was as it was read, and locked, at one moment: that is all there is to decide.
            if not self.give_up():
                raise Lost("aborted")
            return {shard: Committed(offset, 0) for shard, offset in sorted(self._offsets.items())}
        return self._resolve(self._decide())

    def prepare(self) -> tuple[int, Voted] | None:
        """Ask every shard, the home shard first; the first no, if any. Whatever it raises is definite, and given up
        everywhere."""
        moments.give_way(self._client)
        for shard in (self._home, *self._others):
            self._reached.append(shard)
            part = self._parts[shard]
            op = Prepare(
                self._id,
                self._home,
                (self._home, *self._others),
                part.reads,
                part.spans,
                part.writes,
                self._client.shards[self._home].member,
            )
            try:
                vote = self._append(shard, op)[0]
            except OnefoldError as error:
                if is_interrupt(error):
                    self.give_up()
                    raise
                # Without the Decide that is not sent now, it cannot commit; what may still surface is refused or given up.
                if error.definite:
                    self._reached.remove(shard)
                self.give_up()
                if error.definite:
                    raise
                raise Unavailable(
                    f"shard {shard} gave no answer, so the transaction was given up; nothing was written: {error}. Try again"
                ) from error
            except BaseException:
                self.give_up()  # or its locks would stand until somebody has watched them for long enough
                raise
            if not isinstance(vote, Voted):
                self._reached.remove(shard)
                self.give_up()
                raise rejection(vote)
            if not vote.yes:
                self._reached.remove(shard)
                return shard, vote
            self._offsets[shard] = vote.offset
            self._client.session.observe(shard, vote.offset)
        return None

    def give_up(self) -> bool:
        """Release what is locked; whether every lock was still held. It must not be decided, or be decided so. What cannot be
        reached is left to the process that meets it."""
        whole = True
        for shard in self._reached:
            released: Outcome | None = None
            with if_possible:
                released = self._append(shard, Resolve(self._id, commit=False), grace_s=config.RELEASE_S)[0]
            whole = whole and released == Answer(True)
        return whole

    def _refuse(self, shard: int, vote: Voted) -> dict[int, Committed]:
        """Give up and raise the rejection; unless another one of the same request has committed: then that is its outcome."""
        if vote.reason in _PASSING:
            self.give_up()
            recovery.unblock(self._client, shard, vote.blockers)
            raise Lost(vote.reason)
        if self._request_id is not None and self._last_try:
            # The rejection is this request's outcome from now on, unless it has one already.
            op = Decide(self._id, False, True, vote.reason, vote.detail, vote.key)
            kept: Outcome | None = None
            with if_possible:
                kept = self._append(self._home, op, request_id=self._request_id, grace_s=config.RELEASE_S)[0]
            if kept is not None and not (isinstance(kept, Decided) and kept.transaction == self._id):
                self.give_up()
                return earlier(self._client, self._home, kept)
        self.give_up()
        raise rejection(Rejected(vote.reason, vote.detail, vote.key))

    def _decide(self) -> dict[int, Committed] | Decided:
        """Decide to commit; what an earlier transaction of the same request id committed, if there was one."""
        try:
            answer = self._append(self._home, Decide(self._id, commit=True), request_id=self._request_id)[0]
        except OnefoldError as error:
            let_pass(error)  # it may be decided: anyone who meets it continues
            if error.definite:
                self.give_up()
                raise
            answer = self._ask(error)
        if isinstance(answer, Decided) and answer.transaction == self._id:
            if answer.commit:
                return answer
            self.give_up()
            raise Lost("aborted")
        # The request was decided before, so this Decide was not done; nobody else sends one.
        self.give_up()
        return earlier(self._client, self._home, answer)

    def _ask(self, error: OnefoldError) -> Outcome:
        """The outcome of the Decide is unknown: an abort after it brings out what was decided, since the first wins."""
        unknown = AppendUnknown(
            f"shard {self._home} gave no answer to the decision of the transaction {self._id}; it may be committed: {error}. "
            f"{ASK_LATER}"
        )
        try:
            # Mostly the time was up when the answer did not come.
            answer = self._append(
                self._home, Decide(self._id, commit=False, reason="aborted"), grace_s=config.RELEASE_S
            )[0]
        except OnefoldError as again:
            let_pass(again)
            raise unknown from again
        if isinstance(answer, Decided) and not answer.known:
            raise unknown from error
        return answer

    def _resolve(self, decided: dict[int, Committed] | Decided) -> dict[int, Committed]:
        """Tell every shard. It is committed, so nothing that fails here matters: anyone who meets it continues."""
        if not isinstance(decided, Decided):
            return decided
        client, home, done = self._client, self._home, {}
        client.session.observe(home, decided.offset)
        for shard in self._others:
            with if_possible:
                done[shard] = self._append(shard, Resolve(self._id, commit=True), grace_s=config.RELEASE_S)[0]
        last: tuple[StateOp, ...] = (Resolve(self._id, commit=True),)
        if len(done) == len(self._others):
            last = (*last, Forget(self._id))
        with if_possible:
            done[home] = self._append(home, *last, grace_s=config.RELEASE_S)[0]
        with if_possible:
            recovery.sweep(client, home)
        return {shard: self._committed(shard, done.get(shard)) for shard in sorted(self._parts)}

    def _committed(self, shard: int, outcome: Outcome | None) -> Committed:
        if isinstance(outcome, Committed):
            self._client.session.observe(shard, outcome.offset)
            return outcome
        # Committed and not resolved yet: where it will stand and what it gives is not known.
        return Committed(self._offsets[shard], 0, (None,) * len(self._parts[shard].writes))

    def _append(
        self, shard: int, *ops: StateOp, request_id: str | None = None, grace_s: float = 0.0
    ) -> list[Outcome]:
        wrapped = [state_op(op, request_id) for op in ops]
        deadline = max(self._client.deadline(), self._client.env.boot_s() + grace_s)
        return [decode_outcome(data) for data in self._client.shards[shard].submit(wrapped, deadline)]


def earlier(client: StateClient, home: int, kept: Outcome) -> Earlier:
    """What this request's earlier transaction committed. It is resolved on the way, if its coordinator has not come to that."""
    if isinstance(kept, Committed):
        return Earlier({home: kept})
    if not isinstance(kept, Decided):
        raise rejection(kept)
    if not kept.commit:
        raise rejection(Rejected(kept.reason or "aborted", kept.detail, kept.key))
    found = Earlier({home: Committed(kept.offset, kept.index)})
    for shard in kept.participants:
        with if_possible:
            with client.shards[shard].view() as view:
                remembered = shard_fold.standing(view, kept.transaction) != "unknown"
            if remembered:
                op = state_op(Resolve(kept.transaction, commit=True))
                outcome = decode_outcome(client.shards[shard].submit([op], client.deadline())[0])
                if isinstance(outcome, Committed):
                    client.session.observe(shard, outcome.offset)
                    found[shard] = outcome
    return found
