"""Which failures a collection survives, computed from the copies as they are: pure.

A log takes records, and so writes and barriers, while a majority of its copies can be reached. Reads below ``bounded`` need no
log: a program with a replica of its own reads that, and others ask a node. What the loss of so many servers costs is reported for
the worst choice of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Final

LEVELS: Final = ("strong", "bounded", "session", "prefix", "eventual")
_BY_MAJORITY: Final = frozenset({"strong", "bounded"})
_COUNTS: Final = {1: "server", 2: "two servers", 3: "three servers"}
_WORDS: Final = {1: "a server", 2: "two servers", 3: "three servers"}


@dataclass(frozen=True)
class Copy:
    """One copy of a stream. ``current``: it is up and has what was acknowledged. ``place``: of its server, if that is known."""

    server: str
    current: bool
    place: str | None = None


@dataclass(frozen=True)
class Stream:
    """What has to be there: a log, or the stream of blobs. ``replicas``: how many copies it is to have; one that is not in
    ``copies`` does not count as there."""

    name: str
    replicas: int
    copies: tuple[Copy, ...]
    is_log: bool = True

    @property
    def majority(self) -> int:
        """The fewest copies that take a record."""
        return self.replicas // 2 + 1

    def left(self, lost: frozenset[str]) -> int:
        """The current copies without those on the servers that are lost."""
        return sum(copy.current and copy.server not in lost for copy in self.copies)


@dataclass(frozen=True)
class NodeAt:
    """A node that is a member, and where it runs. ``answers``: for all that the collection is made of."""

    name: str
    answers: bool
    places: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Standing:
    """What a collection stands on. ``servers``: all that are up, with their places, where those are known."""

    streams: tuple[Stream, ...]
    servers: dict[str, str | None]
    nodes: tuple[NodeAt, ...] = ()

    @property
    def places(self) -> list[str]:
        """Of servers that keep a copy."""
        return sorted(
            {copy.place for stream in self.streams for copy in stream.copies if copy.place is not None}
        )


@dataclass(frozen=True)
class Survival:
    """What a failure costs. ``reads`` by level; both are of programs with a replica of their own, and ``remote_…`` of those that
    ask nodes."""

    failure: str
    writes: bool
    reads: dict[str, bool]
    remote_writes: bool
    remote_reads: dict[str, bool]
    why: str
    kept: bool = True
    """Whether all that was acknowledged is still there when what failed never comes back."""
    loses: str = field(default="", compare=False)
    """What failed, as words in a sentence."""
    where: str = ""
    """In which part of a space of several regions writes continue; empty: everywhere."""


def survivals(standing: Standing, servers_max: int = 3) -> list[Survival]:
    """For the loss of one server, of two and so on, and of each place, what it costs."""
    return list(_all(standing, servers_max))


def as_it_is(standing: Standing) -> Survival:
    """What works now, without another failure."""
    return _judge(standing, "none", "nothing more", [frozenset()], frozenset())


def _all(standing: Standing, servers_max: int) -> Iterator[Survival]:
    known = sorted({*standing.servers, *(copy.server for one in standing.streams for copy in one.copies)})
    up = [name for name in known if name in standing.servers or _keeps_current(standing, name)]
    for count in range(1, min(servers_max, len(_COUNTS), len(up)) + 1):
        lost = [frozenset(chosen) for chosen in combinations(up, count)]
        yield _judge(standing, _COUNTS[count], _WORDS[count], lost, frozenset())
    for place in standing.places:
        there = {name for name, at in standing.servers.items() if at == place}
        there |= {copy.server for one in standing.streams for copy in one.copies if copy.place == place}
        yield _judge(standing, f"place {place}", f"the place {place}", [frozenset(there)], frozenset({place}))


def _keeps_current(standing: Standing, server: str) -> bool:
    return any(copy.server == server and copy.current for one in standing.streams for copy in one.copies)


def _judge(
    standing: Standing, failure: str, loses: str, choices: Sequence[frozenset[str]], places: frozenset[str]
) -> Survival:
    def always(holds: Callable[[frozenset[str]], bool]) -> bool:
        return all(holds(lost) for lost in choices)

    majority = always(lambda lost: all(one.left(lost) >= one.majority for one in standing.streams))
    logs = always(lambda lost: all(one.left(lost) >= one.majority for one in standing.streams if one.is_log))
    blobs = always(lambda lost: all(one.left(lost) > 0 for one in standing.streams if not one.is_log))
    answered = any(node.answers and not node.places & places for node in standing.nodes)
    reached = answered and always(lambda lost: bool(standing.servers.keys() - lost))
    reads = {level: blobs and (logs or level not in _BY_MAJORITY) for level in LEVELS}
    kept = always(lambda lost: all(is_kept(one, lost) for one in standing.streams))
    return Survival(
        failure,
        majority,
        reads,
        majority and reached,
        {level: works and reached for level, works in reads.items()},
        _why(standing, choices, answered=answered, reached=reached),
        kept,
        loses,
    )


def is_kept(stream: Stream, lost: frozenset[str]) -> bool:
    """Whether any record is sure to have a copy elsewhere: it has at least a majority of them."""
    return sum(copy.server in lost for copy in stream.copies) < stream.majority


def _why(standing: Standing, choices: Sequence[frozenset[str]], *, answered: bool, reached: bool) -> str:
    """The stream that suffers most, in numbers; then the nodes, if they are what is missing."""
    worst = min(
        (
            (one.left(lost) - one.majority, one.left(lost), one)
            for lost in choices
            for one in standing.streams
        ),
        key=lambda found: found[:2],
    )
    _, left, stream = worst
    at_worst = " at worst" if len(choices) > 1 else ""
    text = f"{left} of {stream.replicas} copies of {stream.name} are left{at_worst}, and writes need {stream.majority}"
    if not answered:
        text += "; no node is left that programs without a replica could ask"
    elif not reached:
        text += "; no server is left through which nodes are reached"
    return text


def sentences(standing: Standing) -> list[str]:
    """The copies as they are, and what each failure costs, for people."""
    found = []
    for stream in standing.streams:
        where = ", ".join(_told(copy) for copy in stream.copies) or "servers that are not known now"
        current = stream.left(frozenset())
        found.append(f"{stream.name} has {stream.replicas} copies, {current} of them current: {where}.")
    if not standing.places:
        found.append("In which place each server is is not known here.")
    now = as_it_is(standing)
    if not now.writes or not all(now.reads.values()):
        found.append(f"Now: {_costs(now)} ({now.why}).")
    found += [f"Loss of {one.loses}: {_costs(one)} ({one.why})." for one in survivals(standing)]
    return found


def _told(copy: Copy) -> str:
    place = "" if copy.place is None else f" in {copy.place}"
    return f"{copy.server}{place}{'' if copy.current else ' (away or behind)'}"


def _costs(one: Survival) -> str:
    local = _works(one.writes, one.reads)
    remote = _works(one.remote_writes, one.remote_reads)
    text = local if local == remote else f"{local}; programs without a replica: {remote}"
    if not one.kept:
        text += "; if it never comes back, what was acknowledged last may be lost"
    return text


def _works(writes: bool, reads: dict[str, bool]) -> str:
    works = [level for level, there in reads.items() if there]
    stops = [level for level, there in reads.items() if not there]
    if writes and not stops:
        return "writes and all reads continue"
    if not writes and not works:
        return "no writes and no reads"
    told = "writes continue" if writes else "no writes"
    if not stops:
        return f"{told}; all reads continue"
    if not works:
        return f"{told}; no reads"
    return f"{told}; no {' or '.join(stops)} reads; {', '.join(works)} reads continue"


# -- a space in a folder


def of_folder(*, in_memory: bool, regions: int = 0) -> list[Survival]:
    """Of a space in a folder; ``in_memory``: its file system is one that a crash of the machine empties. ``regions``: of a
    collection that every region can write, how many there are: all of them are in that folder."""
    yes, no = _levels(True, regions), dict.fromkeys(LEVELS, False)
    lasts = "what was acknowledged is synced to its disk"
    if in_memory:
        lasts = "its file system is in memory"
    backup = "`onefold backup` makes a copy for another disk"
    alone = "all regions of a folder are in it" if regions else "it is in this folder alone"
    process = "the kill of any process (kill -9 too)"
    machine = "a crash of the machine, until it is up again"
    found = [
        Survival("process", True, yes, True, yes, "other processes open the same file", True, process),
        Survival("machine", False, no, False, no, lasts, not in_memory, machine),
        Survival("disk", False, no, False, no, f"{alone}: {backup}", False, "the loss of the disk"),
    ]
    if regions > 1:
        why = "each region writes files of its own; bounded reads ask every region that is not evicted"
        reads = yes | {"bounded": False}
        found.insert(
            0, Survival("link", True, reads, True, reads, why, True, "a cut of the link between regions")
        )
    return found


def _levels(works: bool, regions: int) -> dict[str, bool]:
    """No region knows what others write at this moment."""
    return {level: works and not (regions and level == "strong") for level in LEVELS}


def of_memory() -> list[Survival]:
    """Of a space in the memory of its process."""
    no = dict.fromkeys(LEVELS, False)
    why = "it is in this process's memory"
    return [Survival("process", False, no, False, no, why, False, "the end of this process")]


def folder_sentences(found: Sequence[Survival]) -> list[str]:
    """The same for people."""
    told = []
    for one in found:
        works = "everything continues" if one.writes else "no writes and no reads"
        if one.failure == "link":
            works = "everything but bounded reads continues"
        kept = "nothing acknowledged is lost" if one.kept else "all of it is lost"
        told.append(f"After {one.loses}: {works}, {kept} ({one.why}).")
    return told
