"""Which node pulls which shard from which other region, and how many bytes it takes in a second."""

from __future__ import annotations

from collections import Counter

import msgspec

from onefold.env import SYSTEM
from onefold.fold.nodes import rows
from onefold.fold.nodes.state import Node
from onefold.node.hosting import placement_of
from onefold.node.regions.exchange import Pace, beats_of, pulls_of

SHARDS = 12
OTHERS = [(1, "dc1"), (3, "dc3")]


def node(name: str, *hosted: int, state: str = rows.LIVE) -> Node:
    shards = tuple((shard, 1) for shard in hosted)
    return Node(name, rows.NodeState(1, "i", state, "eu", "z", "", "", 1, 0, 0, 0, 0, 0, shards))


def settled(*names: str) -> list[Node]:
    """Nodes that answer for what is placed on them."""
    placement = placement_of(SHARDS, [node(name) for name in names])
    return [
        node(name, *(shard for shard in range(SHARDS) if name in placement[shard] or shard == 0))
        for name in names
    ]


def chosen(nodes: list[Node]) -> dict[tuple[int, str, int], list[str]]:
    placement = placement_of(SHARDS, nodes)
    found: dict[tuple[int, str, int], list[str]] = {}
    for one in nodes:
        for pull in pulls_of(one.name, OTHERS, nodes, placement):
            found.setdefault(pull, []).append(one.name)
    return found


def test_one_node_pulls_each_shard_from_each_region() -> None:
    nodes = settled("a", "b", "c", "d", "e")
    found = chosen(nodes)
    assert set(found) == {(number, name, shard) for number, name in OTHERS for shard in range(SHARDS)}
    assert all(len(names) == 1 for names in found.values())
    share = Counter(names[0] for names in found.values())
    assert len(share) >= 4 and max(share.values()) <= 12, share
    placement = placement_of(SHARDS, nodes)
    assert all(names[0] in placement[shard] for (_, _, shard), names in found.items())
    beats = [shard for one in nodes for shard in beats_of(one.name, nodes, placement)]
    assert sorted(beats) == list(range(SHARDS))


def test_another_takes_over_from_one_that_is_gone_and_the_rest_stays() -> None:
    nodes = settled("a", "b", "c", "d", "e")
    before = chosen(nodes)
    gone = next(iter(before.values()))[0]
    left = [one if one.name != gone else _with(one, rows.EXPIRED) for one in nodes]
    after = chosen(left)
    assert set(after) == set(before), "the other host of each shard answers already"
    assert all(gone not in names and len(names) == 1 for names in after.values())
    assert all(after[pull] == names for pull, names in before.items() if names != [gone])


def test_only_nodes_that_answer_pull_and_those_that_leave_only_when_there_is_no_other() -> None:
    a, b = settled("a", "b")
    assert all(names == ["a"] for names in chosen([a, node("b")]).values())
    assert all(names == ["a"] for names in chosen([a, _with(b, rows.DRAINING)]).values())
    leaving = [_with(a, rows.DRAINING), _with(b, rows.DRAINING)]
    assert set(chosen(leaving)) == {
        (number, name, shard) for number, name in OTHERS for shard in range(SHARDS)
    }
    assert chosen([node("a"), node("b")]) == {}


def test_what_comes_too_fast_waits() -> None:
    waited: list[float] = []
    pace = Pace(1000, SYSTEM, waited.append)
    for _ in range(3):
        pace.came(100_000)
    assert len(waited) == 2, "the first one has its turn at once"
    assert 99 < waited[0] <= 100 and 199 < waited[1] <= 200


def _with(one: Node, state: str) -> Node:
    return one._replace(state=msgspec.structs.replace(one.state, state=state))
