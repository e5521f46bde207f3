"""Which nodes host which shard: rendezvous hashing, spread over regions and zones.

Each pair of shard and node has a score. In every region the nodes of the highest scores host the shard, those of different zones
first. So everybody who knows the same nodes finds the same placement, and a node that comes or goes moves only what it takes or
had: in its region it replaces at most one other node of each shard, and no two others change places.

A node's scores are spread evenly over the shards (each shard gets another one of equal steps), not drawn for each by itself: in a
space of few shards the nodes' shares differ about half as much.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from onefold import config


class Candidate(NamedTuple):
    """A node that can host shards."""

    name: str
    region: str
    zone: str


Placement = Mapping[int, tuple[str, ...]]
"""By shard: the nodes that host it. The first has the shard's duties (snapshots, trimming), the next takes over from it."""


def place(shards: int, nodes: Iterable[Candidate], copies: int = config.REPLICA_COPIES) -> Placement:
    """Where the shards 0 to ``shards - 1`` belong, ``copies`` times in each region, as far as it has nodes."""
    scored = [(node, scores(shards, node.name)) for node in nodes]
    return {
        shard: _hosts([(points[shard], node) for node, points in scored], copies) for shard in range(shards)
    }


def scores(shards: int, name: str) -> list[tuple[int, bytes]]:
    """How well a node goes together with each shard: the larger, the better."""
    found = [(0, b"")] * shards
    for step, shard in enumerate(sorted(range(shards), key=lambda shard: _hash("step", shard, name))):
        found[shard] = (step, _hash("score", shard, name))
    return found


def moved(before: Placement, after: Placement) -> dict[str, frozenset[int]]:
    """By node: the shards that it hosts after and did not before."""
    found: dict[str, set[int]] = {}
    for shard, names in after.items():
        for name in set(names) - set(before.get(shard, ())):
            found.setdefault(name, set()).add(shard)
    return {name: frozenset(shards) for name, shards in found.items()}


_Scored = tuple[tuple[int, bytes], Candidate]


def _hosts(scored: Sequence[_Scored], copies: int) -> tuple[str, ...]:
    """The hosts of one shard, best first."""
    ranked = sorted(scored, reverse=True)
    regions: dict[str, dict[str, int]] = {}
    rounds: dict[str, list[tuple[int, _Scored]]] = {}
    for one in ranked:
        zones = regions.setdefault(one[1].region, {})
        # The second node of a zone comes after the first of every other one.
        before = zones.get(one[1].zone, 0)
        zones[one[1].zone] = before + 1
        rounds.setdefault(one[1].region, []).append((before, one))
    chosen: list[_Scored] = []
    for nodes in rounds.values():
        nodes.sort(key=lambda pair: pair[0])  # stable: the higher score first within a round
        chosen += [one for _, one in nodes[:copies]]
    return tuple(node.name for _, node in sorted(chosen, reverse=True))


def _hash(what: str, shard: int, name: str) -> bytes:
    return hashlib.blake2b(f"{what}/{shard}/{name}".encode(), digest_size=16).digest()
