"""What a consistency level demands of other regions, and waiting for it.

``session``: what the session's tokens have seen is here. ``bounded``: each live region was asked, at a moment that is not longer
ago than the bound by the boot clock of this process, what its last effect was, and that is here. Clocks of other machines prove
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from onefold.available.stamps import covers
from onefold.backoff import Backoff
from onefold.durations import wait_seconds
from onefold.errors import TokenError, TooStale, Unavailable
from onefold.machine.undisturbed import let_pass
from onefold.state.core.guard import check_plain

if TYPE_CHECKING:
    from onefold.available.regions import Known
    from onefold.state.available.client import RegionClient

_AGAIN_S, _AGAIN_S_MAX = 0.02, 0.5


def sync(client: RegionClient, timeout: float | timedelta | str | None) -> None:
    """See ``Database.sync``. A region that does not answer is asked again until the time is over: links come back."""
    check_plain(client.space, "sync()")
    env = client.env
    timeout_s = client.read_time() if timeout is None else wait_seconds(timeout)
    end_s = env.boot_s() + timeout_s
    backoff = Backoff(_AGAIN_S, _AGAIN_S_MAX, env)
    shards = list(range(client.shard_count))
    while True:
        me = client.known(0)  # again each time: one that was evicted meanwhile is not waited for
        others = [number for number in me.voters() if number != me.number]
        try:
            client.levels.catch_up(others, shards, max(0.0, end_s - env.boot_s()), of_s=timeout_s)
            break
        except TooStale as error:
            let_pass(error)
            left_s = end_s - env.boot_s()
            if left_s <= 0:
                raise
            client.shards[0].pause(min(backoff.pause_s(), left_s))
    for shard in shards:
        client.session.observe(shard, client.shards[shard].applied)


class Levels:
    """Of one client. Thread-safe: what is noted only grows."""

    def __init__(self, client: RegionClient) -> None:
        self._client = client
        self._fresh_s: dict[tuple[int, int], float] = {}
        """By shard and region: everything that region had done at this moment of the boot clock is here."""

    def reach(self, shard: int, timeout_s: float) -> None:
        """Wait until what the session has seen elsewhere is here. Raises TooStale, TokenError (definite)."""
        client = self._client
        wanted = client.demanded(shard)
        _check_counts(client.known(shard), wanted, own=False)  # no waiting changes that
        end_s = client.env.boot_s() + timeout_s
        knows_all = self._knows_all(shard, wanted, timeout_s)
        me = self._wait_for(shard, wanted, max(0.0, end_s - client.env.boot_s()))
        if covers(me.have(), wanted):
            client.met(shard, me.have())
            return
        have = me.have()
        _check_counts(me, wanted, own=knows_all)
        missing = {number: seq for number, seq in wanted.items() if have.get(number, 0) < seq}
        raise self._stale(
            me, missing, have, f"what this session has seen did not come within {timeout_s:.3g} s"
        )

    def _knows_all(self, shard_id: int, wanted: Mapping[int, int], timeout_s: float) -> bool:
        """Whether all own effects are here that this region's log has acknowledged. A replica that lacks some of what is wanted
        may be behind its log, and says so only after it has asked."""
        shard = self._client.shards[shard_id]
        me = self._client.known(shard_id)
        if shard.strong_reads or covers(me.have(), {me.number: wanted.get(me.number, 0)}):
            return True
        try:
            shard.barrier(timeout_s)
        except Unavailable as error:
            let_pass(error)
            return False
        return True

    def fresh(self, shard: int, bound_s: float, timeout_s: float) -> None:
        """Wait until everything is here that any live region did more than ``bound_s`` seconds ago.

        Raises TooStale (definite)."""
        client = self._client
        peers = client.region.peers
        me = client.known(shard)
        others = [number for number in me.voters() if number != me.number]
        if peers is None or not others:
            return
        began_s = client.env.boot_s()
        old = [n for n in others if self._fresh_s.get((shard, n), float("-inf")) < began_s - bound_s]
        if old:
            self.catch_up(old, [shard], timeout_s)

    def catch_up(
        self, numbers: list[int], shards: list[int], timeout_s: float, of_s: float | None = None
    ) -> None:
        """Ask these regions what their last effects are, and wait until those are here. ``of_s``: the caller's time, if this has
        what is left of it. Raises TooStale (definite)."""
        client = self._client
        peers = client.region.peers
        if peers is None:
            return
        asked_s = client.env.boot_s()
        latest = peers.latest(timeout_s)
        for shard in shards:
            silent = [number for number in numbers if number not in latest]
            wanted = {number: latest[number].get(shard, 0) for number in numbers if number in latest}
            left_s = max(0.0, asked_s + timeout_s - client.env.boot_s())
            me = self._wait_for(shard, wanted, 0.0 if silent else left_s)
            have = me.have()
            missing = {number: seq for number, seq in wanted.items() if have.get(number, 0) < seq}
            if silent or missing:
                missing |= dict.fromkeys(silent, 0)
                within_s = (client.env.boot_s() - asked_s) if of_s is None else of_s
                raise self._stale(
                    me,
                    missing,
                    have,
                    f"not everything came within {within_s:.3g} s",
                    "Wait longer (timeout=), or do without: reads of the level 'session' show what is known here",
                )
            for number in numbers:
                self._fresh_s[shard, number] = max(asked_s, self._fresh_s.get((shard, number), asked_s))

    def _wait_for(self, shard_id: int, wanted: Mapping[int, int], timeout_s: float) -> Known:
        client = self._client
        shard = client.shards[shard_id]
        end_s = client.env.boot_s() + timeout_s
        while True:
            applied = shard.applied
            me = client.known(shard_id)
            left_s = end_s - client.env.boot_s()
            if covers(me.have(), wanted) or left_s <= 0:
                client.session.observe(
                    shard_id, shard.applied
                )  # later reads of the session see at least this
                return me
            shard.wait(applied, min(left_s, 1.0))

    def _stale(
        self, me: Known, missing: Mapping[int, int], have: Mapping[int, int], why: str, hint: str = ""
    ) -> TooStale:
        parts, names = [], []
        for number, seq in sorted(missing.items()):
            name = me.regions[number].name if number in me.regions else str(number)
            names.append(name)
            behind = seq - have.get(number, 0)
            parts.append(f"{behind} effects of {name} are not here" if seq else f"{name} does not answer")
        silent = self._client.silent_s()
        since = "".join(
            f"; {name} was last heard of {silent[name]:.0f} s ago"
            for name in names
            if silent.get(name) is not None
        )
        hint = hint or (
            "Wait (timeout=), read with consistency='eventual', or continue without what this session saw there: "
            f"db.session.forget({names[0]!r})"
        )
        error = TooStale(f"{why}: {', '.join(parts)}{since}. {hint}")
        error.regions = tuple(names)
        return error


def _check_counts(me: Known, wanted: Mapping[int, int], *, own: bool) -> None:
    """Raises TokenError (definite) for effects that count nowhere. ``own``: those of this region that are not here are lost, and
    not on their way from its log."""
    have = me.have()
    for number, seq in wanted.items():
        region = me.regions.get(number)
        evicted = region is not None and region.final and seq > region.limit
        if have.get(number, 0) < seq and (evicted or (own and number == me.number)):
            name = region.name if region is not None else str(number)
            what = "the region was evicted before" if evicted else "its log lost its end"
            raise TokenError(
                f"the session has seen effect {seq} of region {name}, which counts nowhere: {what}. Continue without: "
                f"db.session.forget({name!r})"
            )
