"""Taking from a counter with a floor, and moving rights between regions.

What one region has no right to take, it asks others for by a *wish*, an effect that reaches them with the exchange. A region that
has rights gives some when it imports the wish, and that they arrive here is an effect of that region. So the one who waits looks
whenever something is applied here, until its time is over.

It does not wait for what cannot come. All regions are asked what their last effect was. If what is known here of the counter is
neither less nor more than that, and they have too little between them, then there was a moment during the call at which too
little was left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from onefold.arguments import shown
from onefold.available import ops, regions
from onefold.available.kinds.places import BOUNDED, place_of
from onefold.available.kinds.shares import Shares
from onefold.available.rows import load_row
from onefold.available.stamps import covers
from onefold.backoff import Backoff, Deadline
from onefold.errors import PASSING, BelowFloor, InvalidArgument
from onefold.machine.undisturbed import let_pass
from onefold.shard.requirements import ReadRequirement
from onefold.state.core.client import shown_key
from onefold.state.core.time_limits import cleaning_up, limited_step
from onefold.state.core.waiting import Anything, Awaited, Pause

if TYPE_CHECKING:
    from onefold.available.regions import Known
    from onefold.state.available.client import RegionClient

_LOOK_S: Final = 1.0
"""So long after the last look there is another one, whatever came: an open wish of somebody else may have ended."""
_ANSWER_S: Final = 0.5
"""How long other regions have for saying what their last effect is ..."""
_ASK_S, _ASK_S_MAX = 0.05, 5.0
"""... and how long it takes, at first and at most, until those are asked again that did not answer."""


class _State(NamedTuple):
    """What is known here of one counter."""

    me: Known
    row: Shares
    floor: int

    def rights(self, region: int) -> int:
        """What a region may take."""
        return self.row.rights(region, self.floor, self.me.heirs())

    @property
    def here(self) -> int:
        """What this one may take."""
        return self.rights(self.me.number)

    def others(self) -> dict[str, int]:
        """What each other region may take that can give some of it, by name, the most first."""
        found = {
            self.me.regions[number].name: self.rights(number)
            for number in self.me.voters()
            if number != self.me.number
        }
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    def wish(self, now_ms: int = 0) -> int:
        """The rights that this region wishes to have, in a wish that is open then; 0 without one."""
        share = self.row.regions.get(self.me.number)
        wish = None if share is None else share.wish
        return 0 if wish is None or wish.until_ms <= now_ms else wish.need


class Taking:
    """``add`` of a negative number, step by step. One thread at a time."""

    def __init__(
        self, client: RegionClient, name: str, floor: int, key: bytes, n: int, request_id: str | None
    ) -> None:
        """``n``: how much is to be taken. The time begins to run here."""
        self.client = client
        self.shard = client.shard_of(key)
        self._name, self._floor, self._key, self._n = name, floor, key, n
        self._request_id = request_id
        self._began_s = client.env.boot_s()
        self._deadline = Deadline(client.deadline(), client.env)
        self._offset = 0
        self._tried = False
        self._latest: Mapping[int, Mapping[int, int]] = {}
        """By region, its last effects as of a moment since this began."""
        self._ask_s = -math.inf
        self._backoff = Backoff(_ASK_S, _ASK_S_MAX, client.env)

    def look(self) -> int | None:
        """Take it, if that is possible now: the new value. None: it has to be waited for. Nothing is taken twice: what is tried
        again was refused before.

        Raises BelowFloor when it cannot be, or the time is over; and what ``RegionClient.do`` raises."""
        with limited_step(self.client, self._deadline):
            if not self._tried:
                self._tried = True
                taken = self._take()
                if taken is not None:
                    return taken
            self._offset = self.client.shards[self.shard].applied
            state = self._state()
            if state.here >= self._n:
                taken = self._take()
                if taken is not None:
                    return taken
                state = self._state()
            certain = self._is_certain(state)
            if not certain and not self._deadline.passed:
                self._wish(state)
                return None
        self._withdraw(state)
        raise self._refused(state, certain=certain)

    @property
    def pause(self) -> Pause:
        """Until when there is nothing to look for."""
        return Pause((Awaited(self.shard, Anything(), self._offset),), in_s=self._deadline.within(_LOOK_S))

    def wait(self) -> None:
        """Wait so long."""
        self.client.shards[self.shard].wait(self._offset, self._deadline.within(_LOOK_S))

    def _take(self) -> int | None:
        request = ops.Change(self._name, self._floor, self._key, -self._n)
        try:
            # A refusal is not kept under the request id: what is tried again would get the kept one.
            done = self.client.do(self.shard, (request,), request_id=self._request_id, last_try=False)
        except BelowFloor as error:
            let_pass(error)
            return None
        (result,) = done.results or (None,)
        if isinstance(result, bool) or not isinstance(result, int):
            raise InvalidArgument(
                f"request_id {self._request_id!r} was used by another operation before. Use a new one"
            )
        return result

    def _state(self) -> _State:
        client = self.client
        need = ReadRequirement(client.session.floor(self.shard), timeout=client.read_time())
        with client.shards[self.shard].view(need=need) as view:
            row = load_row(view, place_of(BOUNDED, self._name, self._floor), self._key)
            return _State(regions.read_self(view), cast(Shares, row), self._floor)

    # -- what cannot come

    def _is_certain(self, state: _State) -> bool:
        """Whether all regions had too little between them at some moment of this call. Not while one is being evicted, which is
        not asked any more: what it gave away last may be on its way."""
        me = state.me
        if sum(map(state.rights, me.voters())) >= self._n:
            return False
        others = [number for number in me.live() if number != me.number]
        if not others:
            return True
        now_s = self.client.env.boot_s()
        if (
            not self._is_latest(state, others)
            and now_s >= self._ask_s
            and self.client.region.peers is not None
        ):
            self._latest = self.client.region.peers.latest(self._deadline.within(_ANSWER_S))
            self._ask_s = self.client.env.boot_s() + self._backoff.pause_s()
        return self._is_latest(state, others)

    def _is_latest(self, state: _State, others: list[int]) -> bool:
        """Whether the counter is known here as those regions had it when they were asked."""
        if any(number not in self._latest for number in others):
            return False
        latest = {number: self._latest[number].get(self.shard, 0) for number in others}
        shares = state.row.regions
        return covers(state.me.have(), latest) and all(
            number not in shares or shares[number].seq <= seq for number, seq in latest.items()
        )

    # -- wishes

    def _wish(self, state: _State) -> None:
        """Ask the others, unless that would be of no use, or is done already."""
        others = state.others()
        now_ms = self.client.env.wall_ms()
        if not others or sum(others.values()) <= 0 or state.wish(now_ms) >= self._n:
            return
        left_ms = math.ceil(max(0.0, self._deadline.left_s or 0.0) * 1000)
        self._do_wish(self._n, left_ms)

    def _withdraw(self, state: _State) -> None:
        """Ask for it no more, also where the wish is over by this clock. Others who wait here for less ask again when they see
        that."""
        if 0 < state.wish() <= self._n:
            with cleaning_up(self.client):
                self._do_wish(0, 0)

    def _do_wish(self, need: int, ttl_ms: int) -> None:
        request = ops.Wish(self._name, self._floor, self._key, need, ttl_ms)
        try:
            self.client.do(self.shard, (request,))
        except PASSING as error:
            let_pass(
                error
            )  # it ends by itself; whether the counter can be taken from does not depend on the answer

    def _refused(self, state: _State, *, certain: bool) -> BelowFloor:
        value, here, others = state.row.value(), state.here, state.others()
        elsewhere = ", ".join(f"{name} {rights}" for name, rights in others.items() if rights > 0)
        if certain or not others:
            why = "that is all there is"
        else:
            silent = self.client.silent_s()
            heard = [
                f"{name} was last heard of {silent[name]:.0f} s ago" for name in others if name in silent
            ]
            waited = f"no more came within {self.client.env.boot_s() - self._began_s:.1f} s"
            why = "; ".join([waited, *heard])
        error = BelowFloor(
            f"{shown_key(self._key)} in {self._name!r}: {self._n} cannot be taken. This region may take {here}, others "
            f"{elsewhere or 'nothing'}, as far as it is known here; {why}. Nothing was taken. Take less, or try again"
        )
        error.value, error.here = value, here
        return error


def take(taking: Taking) -> int:
    """All of it, in this thread. Raises as ``Taking.look``."""
    while True:
        found = taking.look()
        if found is not None:
            return found
        taking.wait()


def region_to_give(client: RegionClient, shard: int, name: str) -> int:
    """The number of the region with this name, to which rights can be given. Raises InvalidArgument for others."""
    me = client.known(shard)
    own = me.regions[me.number].name if me.number in me.regions else client.region.name
    others = {me.regions[number].name: number for number in me.voters() if number != me.number}
    if not isinstance(name, str):
        raise InvalidArgument(f"`to` must be the name of a region; got {shown(name)}")
    if name in others:
        return others[name]
    there_are = f"there are {', '.join(sorted(others))}" if others else "there is no other region"
    if name == own:
        raise InvalidArgument(f"{name!r} is this region, which has its rights already; {there_are}")
    if any(region.name == name for region in me.regions.values()):
        raise InvalidArgument(f"region {name!r} was evicted, so nothing can be given to it; {there_are}")
    raise InvalidArgument(f"there is no region {name!r:.60} to give something to; {there_are}")
