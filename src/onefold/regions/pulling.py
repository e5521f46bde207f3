"""What one region asks of another one, and what it does with the answer: decisions alone, for every transport. Pure.

One ``Pull`` is for one shard, by one region from one other. Its driver asks, gives it the answer, appends what it says, and gives
it the outcome. ``runner`` does that step by step.

Effects whose clock is too far ahead wait where they came from. They are looked at again from time to time, and appended when they
can be taken: an hour of refused records would fill the log. For a region whose own effects wait so
elsewhere, ``cap`` says up to what its clock counts for a while.
"""

from __future__ import annotations

from typing import Final

from onefold.available import exchange, ops
from onefold.available.effects import Effect, decode_effect
from onefold.available.exchange import Reply
from onefold.available.ops import Imported, Outcome, Rejected
from onefold.available.regions import Known
from onefold.available.stamps import CLOCK_AHEAD_MAX_MS, covers, ms_of
from onefold.backoff import Backoff
from onefold.regions.peers import LinkIs

RETRY_S: Final = (0.1, 2.0)
"""The first pause after a failure, and the longest one."""
BEAT_S: Final = 2.0
"""A region that owes an effect without writes makes one no more often than this."""
CAP_RENEW_MS: Final = 5_000
"""So long before its end a cap on the own clock is renewed, and it lasts for twice as long."""
BYTES_MIN: Final = 65_536
"""So much is asked for at least; and while effects wait there that would come again with every answer."""
_BYTES_FIRST: Final = 262_144
_APPEND_S: Final = (0.05, 0.2)
"""Appends that take less time than this get larger, and those that take more get smaller: programs wait behind them."""


class Pull:
    """See above. ``now_s``: of a clock that never goes back; ``now_ms``: fold time as the next record will see it."""

    def __init__(self, number: int) -> None:
        """``number``: the other region's."""
        self.number = number
        self.state: LinkIs = "linked"
        self.again_s: float | None = 0.0
        """When to ask again; None: when something changes there. 0: at once."""
        self.waiting = False
        """Whether effects were left there that cannot be taken yet."""
        self._backoff = Backoff(*RETRY_S)
        self._bytes = _BYTES_FIRST

    @property
    def bytes_max(self) -> int:
        """How much to ask for."""
        return BYTES_MIN if self.waiting else self._bytes

    def may_ask(self, me: Known) -> bool:
        """Whether anything can be taken from it: it is known here, and not evicted."""
        region = me.regions.get(self.number)
        return bool(me.number) and region is not None and not region.round

    def failed(self, now_s: float) -> None:
        """It did not answer, or nothing could be appended here."""
        self.again_s = now_s + self._backoff.pause_s()

    def cap(self, me: Known, reply: Reply, now_ms: int) -> ops.Cap | None:
        """What limits the own clock, if the other region holds effects of this one and it is due."""
        if not reply.held or not reply.now_ms:
            return None
        limit_ms = reply.now_ms + CLOCK_AHEAD_MAX_MS
        if now_ms <= limit_ms or now_ms < me.cap_until_ms - CAP_RENEW_MS:
            return None
        return ops.Cap(limit_ms, now_ms + 2 * CAP_RENEW_MS)

    def heard(
        self, me: Known, reply: Reply, now_s: float, now_ms: int, *, lost: bool = False
    ) -> ops.Import | None:
        """What to append of an answer. ``state`` is ``behind`` when a full sync is needed instead. ``lost``: this region has
        certainly lost effects of its own (``says_lost``)."""
        self.again_s = None
        if lost:
            self.state = "lost"
            return None
        if reply.held and now_ms > reply.now_ms + CLOCK_AHEAD_MAX_MS:
            self.again_s = now_s + CAP_RENEW_MS / 1000
        if reply.state == "sync":
            self.state = "behind"
            return None
        if reply.state in ("lost", "diverged", "differs"):
            self.state = reply.state
            return None
        self.state = "linked"
        if reply.state == "same":
            self._backoff.reset()
            self.waiting = False
            return None
        taken = reply.effects
        if self.waiting:
            taken = _takeable(me, reply, now_ms)
            self.waiting = len(taken) < len(reply.effects)
        if not taken:
            self._look_at(now_s + RETRY_S[1])  # time passes, and effects may be accepted meanwhile
            return None
        self.again_s = now_s
        return ops.Import(reply.number, taken, reply.chains)

    def imported(self, outcome: Outcome, now_s: float, took_s: float | None = None) -> None:
        """What became of it. ``took_s``: how long the append took."""
        if took_s is not None and took_s > _APPEND_S[1]:
            self._bytes = max(BYTES_MIN, self._bytes // 2)
        elif took_s is not None and took_s < _APPEND_S[0]:
            self._bytes = min(exchange.EXCHANGE_BYTES_MAX, self._bytes * 2)
        if isinstance(outcome, Imported):
            sorted_out, self.waiting = self.waiting, self.waiting or bool(outcome.waiting)
            self.again_s = now_s
            if outcome.taken:
                self._backoff.reset()
            elif sorted_out:
                self.failed(now_s)
        elif isinstance(outcome, Rejected) and outcome.reason == "diverged":
            self.state, self.again_s = "diverged", None
        else:
            self.failed(now_s)  # it is not known here yet, or evicted: decisions on regions come

    def _look_at(self, moment_s: float) -> None:
        self.again_s = moment_s if self.again_s is None else min(self.again_s, moment_s)


def _takeable(me: Known, reply: Reply, now_ms: int) -> tuple[bytes, ...]:
    """Those effects that the fold will take, and one that is held if that was not noted yet."""
    have = me.have()
    found: list[bytes] = []
    for data in reply.effects:
        effect = decode_effect(data)
        if effect is None:
            return reply.effects  # the fold says what is wrong
        number = effect.origin
        if number not in me.regions or effect.seq != have.get(number, 0) + 1:
            continue
        if not covers(have, effect.deps) or _is_beyond(me, effect):
            continue
        if not _is_held(me, effect, now_ms):
            have[number] = effect.seq
        elif me.regions[number].held == effect.hlc:
            continue
        found.append(data)
    return tuple(found)


def says_lost(me: Known, reply: Reply) -> bool:
    """Whether the other region knows more effects of this one than are known here. If all that was acknowledged here is known,
    this region's log has lost its end."""
    return reply.have.get(me.number, 0) > me.have().get(me.number, 0)


class Beats:
    """When one shard of a region makes an effect without writes."""

    def __init__(self) -> None:
        self._last = -1
        self._since_s = 0.0

    def due_s(self, me: Known, now_s: float) -> float | None:
        """When one is due, if nothing else is written until then; None: nothing waits for one."""
        own = me.origins.get(me.number)
        seq = 0 if own is None else own.seq
        if seq != self._last:
            self._last, self._since_s = seq, now_s
        if not me.owes_beat() or not _has_unsaid(me):
            return None
        return self._since_s + BEAT_S

    def made(self, now_s: float) -> None:
        """One was made."""
        self._since_s = now_s


def _has_unsaid(me: Known) -> bool:
    """Whether anything is known here of which the latest own effect says nothing. Else another one would say nothing new."""
    said = me.seen_by(me.number)
    return any(said.get(number, 0) < seq for number, seq in me.have().items())


def _is_beyond(me: Known, effect: Effect) -> bool:
    region = me.regions[effect.origin]
    return region.final and effect.seq > region.limit


def _is_held(me: Known, effect: Effect, now_ms: int) -> bool:
    ahead = ms_of(effect.hlc) > now_ms + CLOCK_AHEAD_MAX_MS
    return ahead and effect.hlc > me.regions[effect.origin].accepted
