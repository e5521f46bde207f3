"""Placement: everybody finds the same, what moves must move, regions and zones are spread over."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onefold.node.members.placement import Candidate, Placement, moved, place

REGIONS = ("eu", "us")
names = st.lists(st.text("abcdefgh0123", min_size=1, max_size=6), min_size=1, max_size=8, unique=True)


@st.composite
def clusters(draw: st.DrawFn) -> list[Candidate]:
    return [
        Candidate(name, draw(st.sampled_from(REGIONS)), draw(st.sampled_from(("z1", "z2", "z3"))))
        for name in draw(names)
    ]


@settings(deadline=None)
@given(clusters(), st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_order_of_nodes_does_not_matter(nodes: list[Candidate], copies: int, rng: object) -> None:
    found = place(8, nodes, copies)
    rng.shuffle(nodes)  # type: ignore[attr-defined]
    assert place(8, nodes, copies) == found


@settings(deadline=None)
@given(clusters(), st.integers(1, 3))
def test_each_region_has_its_copies_in_as_many_zones_as_it_can(nodes: list[Candidate], copies: int) -> None:
    by_name = {node.name: node for node in nodes}
    for hosts in place(8, nodes, copies).values():
        assert len(set(hosts)) == len(hosts)
        for region in {node.region for node in nodes}:
            there = [node for node in nodes if node.region == region]
            chosen = [by_name[name] for name in hosts if by_name[name].region == region]
            assert len(chosen) == min(copies, len(there))
            assert len({node.zone for node in chosen}) == min(copies, len({node.zone for node in there}))


@settings(deadline=None)
@given(clusters(), st.integers(1, 3), st.sampled_from(REGIONS), st.sampled_from(("z1", "z2", "z4")))
def test_a_new_node_moves_only_what_it_takes(
    nodes: list[Candidate], copies: int, region: str, zone: str
) -> None:
    before = place(12, nodes, copies)
    after = place(12, [*nodes, Candidate("newcomer", region, zone)], copies)
    assert moved(before, after).keys() <= {"newcomer"}
    for shard in before:
        assert len(set(before[shard]) - set(after[shard])) <= 1
        kept = [name for name in after[shard] if name != "newcomer"]
        assert kept == [name for name in before[shard] if name in kept], "duties changed hands for nothing"


@settings(deadline=None)
@given(clusters(), st.integers(1, 3), st.data())
def test_a_node_that_goes_moves_only_what_it_had(
    nodes: list[Candidate], copies: int, data: st.DataObject
) -> None:
    gone = data.draw(st.sampled_from(nodes))
    before, after = place(12, nodes, copies), place(12, [node for node in nodes if node != gone], copies)
    for shard, hosts in before.items():
        if gone.name not in hosts:
            assert after[shard] == hosts
        else:
            assert set(hosts) - set(after[shard]) == {gone.name}


def replicas(placement: Placement, name: str) -> int:
    return sum(name in hosts for hosts in placement.values())


@pytest.mark.parametrize("pattern", ["n{}", "node-{}", "w{}", "machine{}.example", "rack1-{}"])
def test_a_fourth_node_takes_about_a_quarter(pattern: str) -> None:
    nodes = [Candidate(pattern.format(number), "eu", "z") for number in range(1, 5)]
    before, after = place(12, nodes[:3]), place(12, nodes)
    assert 3 <= replicas(after, nodes[3].name) <= 9  # of 24
    assert moved(before, after).keys() == {nodes[3].name}
    assert sum(len(hosts) for hosts in after.values()) == 24


def test_shares_are_even_over_many_clusters() -> None:
    shares = []
    for number in range(300):
        nodes = [Candidate(f"c{number}-{one}", "eu", "z") for one in range(4)]
        shares.append(replicas(place(12, nodes), nodes[3].name))
    assert sum(shares) / len(shares) == pytest.approx(6, abs=0.3)
    assert (
        sum(3 <= share <= 9 for share in shares) >= 298
    )  # nearly never less than half or more than half as much again


def test_growing_one_by_one_moves_each_shard_seldom() -> None:
    nodes = [Candidate(f"n{number}", "eu", "z") for number in range(1, 9)]
    steps = [place(64, nodes[:count]) for count in range(2, 9)]
    moves = [sum(len(shards) for shards in moved(a, b).values()) for a, b in pairwise(steps)]
    for count, move in enumerate(moves, 3):
        assert move == replicas(steps[count - 2], f"n{count}")
        assert move == pytest.approx(128 / count, rel=0.5)


def test_no_nodes_host_nothing() -> None:
    assert place(3, []) == {0: (), 1: (), 2: ()}
