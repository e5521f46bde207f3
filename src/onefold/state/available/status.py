"""Which regions there are, and how this one stands with each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from onefold.available import reading
from onefold.shard.requirements import ReadRequirement
from onefold.state.available.lag import Lag

if TYPE_CHECKING:
    from onefold.regions.peers import LinkIs
    from onefold.state.available.client import RegionClient

RegionState = Literal["here", "linked", "cut", "held", "behind", "lost", "diverged", "evicted"]
BEHIND_S: Final = 5.0
"""A region that answers is reported as behind when something has been on its way to or from it for longer than this."""
_ANSWER_S: Final = 1.0
"""How long regions have for an answer."""


@dataclass(frozen=True, slots=True)
class Region:
    """A region of the space, as seen from the one in which this program works."""

    name: str
    state: RegionState
    """``here``: the region of this connection. ``linked``: it answers. ``behind``: it answers, and something has been on its way
    for more than a few seconds, or does not come. ``cut``: it does not answer. ``held``: its clock is
    ahead, so its latest writes wait. ``lost``: the log of one of the two has lost its end, so they exchange nothing.
    ``diverged``: likewise, they have other writes under the same numbers, or other rows. Then evict the region whose disks were
    put back, and have it rejoin. ``evicted``: it does not count any more."""
    behind_writes: int = 0
    """How many writes are not exchanged yet, as far as that is known here: of that region, those that are not here; of this one
    and of others, those that are here and that it is not known to have."""
    behind_s: float = 0.0
    """How long the first of those has been on its way for certain, in seconds."""
    clock_ahead_s: float = 0.0
    """Of one that is held: how far its clock is ahead of this region's."""
    gone_bytes: int = 0
    """Of this region: how much of what is deleted is still kept, since others may not know of it yet."""


class _Pending:
    """Effects of others that were not here when they were asked: (seq, moment of the boot clock) by region and shard."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], tuple[int, float]] = {}

    def since_s(self, region: int, shard: int, have: int, latest: int, now_s: float) -> float:
        """For how long something of that region has been missing here for certain."""
        seq, at_s = self._seen.get((region, shard), (0, now_s))
        if have >= seq:
            seq, at_s = latest, now_s
            self._seen[region, shard] = seq, at_s
        return now_s - at_s if have < seq else 0.0


class Seen(NamedTuple):
    """The regions, and what this one counts."""

    regions: list[Region]
    conflicts: int
    """How many conflicts this region ever met."""


def list_regions(client: RegionClient) -> list[Region]:
    """This region first, then the others by name. One that came again is listed once, as what it is now.

    Raises Unavailable (definite) when the region's state cannot be read.
    """
    return look(client).regions


def look(client: RegionClient) -> Seen:
    """The same, with what ``onefold status`` shows besides. Raises as ``list_regions``."""
    peers = client.region.peers
    latest: Mapping[int, Mapping[int, int]] = {} if peers is None else peers.latest(_ANSWER_S)
    links = {} if peers is None else {link.number: link.state for link in peers.links()}
    pending: _Pending = client.shared.setdefault("pending", _Pending())
    now_ms = client.env.wall_ms()
    names: dict[str, int] = {}
    lags: dict[int, Lag] = {}
    mine, gone_bytes, conflicts, retired = 0, 0, 0, False
    for shard, log in enumerate(client.shards):
        need = ReadRequirement(client.session.floor(shard), timeout=client.read_time())
        with log.view(need=need) as view:
            status = reading.status(view, now_ms)
            mine, retired = status.number, retired or status.retired
            gone_bytes += status.gone_bytes
            conflicts += status.conflicts
            for region in status.regions:
                names[region.name] = max(region.number, names.get(region.name, 0))
                lag = lags.setdefault(region.number, Lag())
                lag.note_state(region)
                if region.number != mine and region.state in ("live", "held"):
                    seq = latest.get(region.number, {}).get(shard, 0)
                    lag.note_view(view, region.number)
                    have = status.have.get(region.number, 0)
                    missing_s = pending.since_s(region.number, shard, have, seq, client.env.boot_s())
                    lag.note(seq - have, now_ms - round(missing_s * 1000))
    others = {name: number for name, number in names.items() if number != mine}
    listed = [
        _described(name, lags[number], links.get(number, "cut") if number in latest else "cut", now_ms)
        for name, number in sorted(others.items())
    ]
    if not mine:
        return Seen(listed, conflicts)
    own = client.region.name
    here = Region(own, "evicted" if retired else "here", gone_bytes=gone_bytes)
    return Seen([here, *listed], conflicts)


def _described(name: str, lag: Lag, link: LinkIs, now_ms: int) -> Region:
    behind_s = lag.behind_s(now_ms)
    state: RegionState
    if lag.states & {"evicted", "evicting"}:
        return Region(name, "evicted")
    if "held" in lag.states:
        state = "held"
    elif link in ("cut", "lost", "diverged"):
        state = link
    elif link == "differs":
        state = "diverged"
    else:
        state = "behind" if link != "linked" or behind_s > BEHIND_S else "linked"
    return Region(name, state, lag.writes, behind_s, lag.ahead_ms / 1000)
