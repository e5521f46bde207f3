"""What ``onefold doctor`` looks at between regions: links that exchange nothing, clocks, and what is kept for others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from onefold.display import words
from onefold.doctor.embedded import Check
from onefold.errors import OnefoldError

if TYPE_CHECKING:
    from onefold.db import Database
    from onefold.regions.peers import LinkState
    from onefold.state.available.client import RegionClient
    from onefold.state.available.status import Region

GONE_BYTES_MAX: Final = 1_000_000
"""Deleted items that take less than this may be kept for a region that is away without a word."""
_REJOIN: Final = (
    "Both serve what they have, and exchange nothing. Evict the region whose disks were put back or damaged, "
    "and have it rejoin"
)
_ALARMS: Final = {
    "lost": "effects that one of the two knows are missing in the log of the other one, which has lost its end",
    "diverged": "they have other effects under the same numbers",
    "differs": "they know the same effects and have other rows",
}


def check_regions_of(db: Database) -> Iterator[Check]:
    """How the region of this connection, else the first one, stands with the others, if there are any. Asks them; changes
    nothing."""
    from onefold.regions.decisions import region_names

    try:
        names = region_names(db._shards)
        if names and db._default_region is None:
            db._default_region = names[0]
        if names:
            yield from check_regions(db._available)
    except OnefoldError as error:
        yield Check("regions", "skipped", f"cannot be read: {error}".rstrip("."))


def check_regions(client: RegionClient) -> Iterator[Check]:
    """The same of a region that is open. Raises as ``db.regions``."""
    from onefold.state.available.status import look

    regions = look(client).regions
    peers = client.region.peers
    links = {} if peers is None else {link.name: link for link in peers.links()}
    at_rest = client.shards[0].directory is not None
    yield from judge(regions, links, at_rest=at_rest)


def judge(
    regions: Sequence[Region], links: Mapping[str, LinkState], *, at_rest: bool = False
) -> Iterator[Check]:
    """The checks. ``links``: by the name of the other region. ``at_rest``: nothing is exchanged while no program has the folder
    open. Pure."""
    yield _exchange(regions, links, at_rest=at_rest)
    yield _clocks(regions)
    yield _collection(regions, links)


def _others(regions: Sequence[Region]) -> list[Region]:
    return [one for one in regions if one.state not in ("here", "evicted")]


def _exchange(regions: Sequence[Region], links: Mapping[str, LinkState], *, at_rest: bool) -> Check:
    here = regions[0] if regions else None
    if here is not None and here.state == "evicted" and here.name not in links:
        advice = "It takes no writes of available collections. `onefold region rejoin` brings it back under a new number"
        return Check("regions", "problem", f"this region, {here.name}, was evicted", advice)
    alarms = [f"{link.name}: {_ALARMS[link.state]}" for link in links.values() if link.state in _ALARMS]
    if alarms:
        return Check("regions", "problem", "; ".join(alarms), _REJOIN)
    silent = [
        f"{one.name} does not answer{_silence(links.get(one.name))}; {one.behind_writes:,} writes are not exchanged with it"
        for one in _others(regions)
        if one.state == "cut"
    ]
    if silent:
        advice = (
            "Look at the network, or start it. What is not exchanged is lost if the disks that have it are"
        )
        return Check("regions", "warn", "; ".join(silent), advice)
    behind = [
        f"{one.name} is behind: {one.behind_writes:,} writes, the first {words.duration(one.behind_s)} ago"
        for one in _others(regions)
        if one.state == "behind" and one.behind_writes
    ]
    if behind and not at_rest:
        advice = "Look again: after a cut it catches up. If it does not, see the log of the nodes"
        return Check("regions", "warn", "; ".join(behind), advice)
    names = ", ".join(one.name for one in regions if one.state != "evicted")
    gone = ", ".join(one.name for one in regions if one.state == "evicted")
    return Check(
        "regions", "ok", f"{names} exchange what they write" + (f"; {gone} was evicted" if gone else "")
    )


def _silence(link: LinkState | None) -> str:
    return "" if link is None or not link.silent_s else f" since {words.duration(link.silent_s)} ago"


def _clocks(regions: Sequence[Region]) -> Check:
    held = [
        f"{one.name} is {words.duration(one.clock_ahead_s)} ahead" for one in regions if one.state == "held"
    ]
    if not held:
        return Check("regions' clocks", "ok", "no region's writes wait for a clock")
    advice = (
        "Set its clock. What it wrote arrives by itself when time gets there, or with `onefold region accept`"
    )
    return Check("regions' clocks", "warn", f"writes wait here: {'; '.join(held)}", advice)


def _collection(regions: Sequence[Region], links: Mapping[str, LinkState]) -> Check:
    kept = sum(one.gone_bytes for one in regions)
    away = [one for one in _others(regions) if one.state in ("cut", "held", "lost", "diverged")]
    found = f"{words.size(kept)} of deleted items are kept"
    if not away or kept < GONE_BYTES_MAX:
        return Check(
            "deleted items", "ok", f"{found} until all regions know of it" if kept else "none are kept"
        )
    who = ", ".join(f"{one.name} ({one.state}{_silence(links.get(one.name))})" for one in away)
    advice = "They are dropped when it is back, or evicted: `onefold region evict`"
    return Check("deleted items", "warn", f"{found}, since a region may not know of it: {who}", advice)
