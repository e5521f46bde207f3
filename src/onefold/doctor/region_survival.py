"""Which failures a collection survives in a space of several regions, computed from the copies as they are: pure.

A consistent log takes records where a majority of its copies is. An available collection has logs in each region, and each
takes records by itself. So a failure is judged for every way in which it can happen, and the worst one is reported. *Reads* are
those of programs where writes continue; of programs in the regions that are left, if they continue nowhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from onefold.doctor.survival import LEVELS, Copy, NodeAt, Standing, Stream, Survival, is_kept

MAJORITY_SIDE: Final = "majority side"
LIVING_REGIONS: Final = "living regions"
_WEAK: Final = frozenset({"session", "prefix", "eventual"})
_TOKENS: Final = "a session that has seen more of the other regions gets TooStale"
_ELSEWHERE: Final = "on the other side session, prefix and eventual reads continue, and nothing else"


@dataclass(frozen=True)
class OverRegions:
    """What a collection stands on. ``space``: the consistent logs, and all servers and nodes."""

    regions: tuple[str, ...]
    space: Standing
    own: Mapping[str, tuple[Stream, ...]]
    """The own logs of each region."""
    witness: str

    def servers_of(self, place: str) -> frozenset[str]:
        """All that are known to be there."""
        copies = [copy for one in self._streams() for copy in one.copies]
        there = {name for name, at in self.space.servers.items() if at == place}
        return frozenset(there | {copy.server for copy in copies if copy.place == place})

    def up(self) -> list[tuple[str, str | None]]:
        """The servers that are up or have a current copy, with their places."""
        found: dict[str, str | None] = dict(self.space.servers)
        for one in self._streams():
            found |= {copy.server: copy.place for copy in one.copies if copy.current}
        return sorted(found.items())

    def _streams(self) -> list[Stream]:
        return [*self.space.streams, *(one for streams in self.own.values() for one in streams)]


@dataclass(frozen=True)
class _Loss:
    """One way in which a failure happens."""

    servers: frozenset[str]
    region: str = ""
    """That is lost as a whole, with its nodes and programs."""
    cut: str = ""
    """The region that reaches no other place."""


def survivals(of: OverRegions, *, available: bool) -> list[Survival]:
    """For each failure what it costs: of the consistent logs, or of the regions' own ones."""
    judge = _available if available else _consistent
    return [judge(of, failure, loses, losses) for failure, loses, losses in _failures(of) if losses]


def as_it_is(of: OverRegions, *, available: bool) -> Survival:
    """What works now, without another failure."""
    return (_available if available else _consistent)(of, "none", "nothing more", [_Loss(frozenset())])


def _failures(of: OverRegions) -> Iterator[tuple[str, str, list[_Loss]]]:
    up = of.up()
    yield "server", "a server", [_Loss(frozenset({name})) for name, _ in up]
    pairs = [
        _Loss(frozenset({one, other})) for (one, here), (other, there) in combinations(up, 2) if here != there
    ]
    yield "two servers", "two servers in different places", pairs
    yield "link", "the link between regions", [_Loss(frozenset(), cut=name) for name in of.regions]
    whole = {name: of.servers_of(name) for name in of.regions}
    yield "region", "a region", [_Loss(there, name) for name, there in whole.items()]
    witness = of.servers_of(of.witness)
    with_witness = [_Loss(there | witness, name) for name, there in whole.items()] if witness else []
    yield "region and witness", "a region and the witness", with_witness
    more = [
        _Loss(there | other, name)
        for name, there in whole.items()
        for other in [frozenset({one}) for one, _ in up if one not in there] or [frozenset[str]()]
    ]
    yield "region and server", "a region and one more server", more


# -- consistent collections


def _consistent(of: OverRegions, failure: str, loses: str, losses: Sequence[_Loss]) -> Survival:
    logs = all(_has_majority(of, loss, only_logs=True) for loss in losses)
    writes = logs and all(_has_majority(of, loss) for loss in losses)
    blobs = all(one.left(loss.servers) > 0 for loss in losses for one in of.space.streams if not one.is_log)
    reads = {level: blobs and (logs or level in _WEAK) for level in LEVELS}
    reached = all(_is_answered(of.space.nodes, of.space, loss) for loss in losses)
    kept = all(is_kept(one, loss.servers) for loss in losses for one in of.space.streams)
    partly = any(loss.region or loss.cut for loss in losses)
    why = _worst_copies(of.space.streams, losses)
    if writes and any(loss.cut for loss in losses):
        why += f"; {_ELSEWHERE}"
    return Survival(
        failure,
        writes,
        reads,
        writes and reached,
        {level: works and reached for level, works in reads.items()},
        why if reached else f"{why}; no node is left that programs without a replica could ask",
        kept,
        loses,
        MAJORITY_SIDE if partly else "",
    )


def _has_majority(of: OverRegions, loss: _Loss, *, only_logs: bool = False) -> bool:
    """Whether there is a side on which all streams take records."""
    inside = of.servers_of(loss.cut) if loss.cut else frozenset[str]()
    streams = [one for one in of.space.streams if one.is_log or not only_logs]
    outside_ = all(one.left(loss.servers | inside) >= one.majority for one in streams)
    return outside_ or (bool(inside) and all(_within(one, inside) >= one.majority for one in streams))


def _within(stream: Stream, servers: frozenset[str]) -> int:
    return sum(copy.current and copy.server in servers for copy in stream.copies)


def _worst_copies(streams: Sequence[Stream], losses: Sequence[_Loss]) -> str:
    """The stream that suffers most, in numbers."""
    _, left, at = min(
        ((one.left(loss.servers) - one.majority, one.left(loss.servers), index))
        for loss in losses
        for index, one in enumerate(streams)
    )
    stream = streams[at]
    at_worst = " at worst" if len(losses) > 1 else ""
    if any(loss.cut for loss in losses):
        most = min(_reached_side(stream, loss) for loss in losses)
        return (
            f"the side with most has {most} of {stream.replicas} copies of {stream.name}{at_worst}, and writes need "
            f"{stream.majority}"
        )
    return f"{left} of {stream.replicas} copies of {stream.name} are left{at_worst}, and writes need {stream.majority}"


def _reached_side(stream: Stream, loss: _Loss) -> int:
    inside = sum(copy.current and copy.place == loss.cut for copy in stream.copies)
    return max(inside, stream.left(loss.servers) - inside)


def _is_answered(nodes: Sequence[NodeAt], space: Standing, loss: _Loss) -> bool:
    away = {loss.region, loss.cut} - {""}
    return bool(space.servers.keys() - loss.servers) and any(
        node.answers and not node.places & away for node in nodes
    )


# -- available collections


def _available(of: OverRegions, failure: str, loses: str, losses: Sequence[_Loss]) -> Survival:
    writing = [_writing(of, loss) for loss in losses]
    worst = min(range(len(losses)), key=lambda at: len(writing[at]))
    everywhere = all(len(found) == len(of.regions) for found in writing)
    writes = all(writing)
    left = all(any(name != loss.region for name in of.regions) for loss in losses)
    linked = not any(loss.cut for loss in losses)
    reads = {level: left and level in _WEAK for level in LEVELS}
    reads["bounded"] = everywhere and linked
    reached = all(
        all(_has_node(of, region, loss) for region in found)
        for loss, found in zip(losses, writing, strict=True)
    )
    kept = all(is_kept(one, loss.servers) for loss in losses for own in of.own.values() for one in own)
    why = _why(of, losses[worst], writing[worst], kept=kept)
    return Survival(
        failure,
        writes,
        reads,
        writes and reached,
        {level: works and reached for level, works in reads.items()},
        why if reached else f"{why}; a region has no node that programs without a replica could ask",
        kept,
        loses,
        "" if everywhere else LIVING_REGIONS,
    )


def _writing(of: OverRegions, loss: _Loss) -> list[str]:
    """The regions that take writes: their own logs have a majority."""
    return [
        name
        for name in of.regions
        if name != loss.region and all(one.left(loss.servers) >= one.majority for one in of.own[name])
    ]


def _has_node(of: OverRegions, region: str, loss: _Loss) -> bool:
    there = any(region in node.places for node in of.space.nodes)
    return there and bool(of.space.servers.keys() - loss.servers)


def _why(of: OverRegions, loss: _Loss, writing: Sequence[str], *, kept: bool) -> str:
    told = []
    for name in of.regions:
        if name in writing or name == loss.region:
            continue
        one = min(of.own[name], key=lambda one: one.left(loss.servers) - one.majority)
        told.append(
            f"{one.left(loss.servers)} of {one.replicas} copies of {one.name} of {name} are left at worst, and writes need "
            f"{one.majority}"
        )
    if not told:
        told.append("each region has logs of its own, with all copies inside it")
    if loss.cut or loss.region:
        told += ["bounded reads ask every region that is not evicted", _TOKENS]
    if not kept:
        told.append("what no other region had taken of a lost log is lost with its disks")
    return "; ".join(told)


# -- for people


def sentences(of: OverRegions, *, available: bool) -> list[str]:
    """The copies as they are, and what each failure costs."""
    found = []
    groups = {f" of {name}": of.own[name] for name in of.regions} if available else {"": of.space.streams}
    for whose, streams in groups.items():
        for one in streams:
            where = ", ".join(_told(copy) for copy in one.copies) or "servers that are not known now"
            current = one.left(frozenset())
            found.append(f"{one.name}{whose} has {one.replicas} copies, {current} of them current: {where}.")
    alone = [name for name in of.regions if available and any(one.replicas == 1 for one in of.own[name])]
    if alone:
        found.append(
            f"The own logs of {', '.join(alone)} have one copy, and are lost with its server: in a region of three servers they "
            "have three."
        )
    now = as_it_is(of, available=available)
    if not now.writes or now.where:
        found.append(f"Now: {_costs(now)} ({now.why}).")
    found += [
        f"Loss of {one.loses}: {_costs(one)} ({one.why})." for one in survivals(of, available=available)
    ]
    return found


def _told(copy: Copy) -> str:
    place = "" if copy.place is None else f" in {copy.place}"
    return f"{copy.server}{place}{'' if copy.current else ' (away or behind)'}"


_WHERE: Final = {
    "": "writes continue",
    MAJORITY_SIDE: "writes continue on the side with a majority of the copies",
    LIVING_REGIONS: "writes continue in the regions that are left",
}


def _costs(one: Survival) -> str:
    works = [level for level, there in one.reads.items() if there]
    told = _WHERE[one.where] if one.writes else "no writes"
    told += f"; {', '.join(works)} reads continue" if works else "; no reads"
    if one.writes and not one.remote_writes:
        told += "; not for programs without a replica"
    if not one.kept:
        told += "; if it never comes back, what was acknowledged last may be lost"
    return told
