"""What failures cost in a space of several regions: against a table made by hand, and a model that tries every loss."""

from __future__ import annotations

import random

import pytest

from onefold.doctor import region_survival
from onefold.doctor.facts import ClusterFacts, ServerFacts, StreamFacts
from onefold.doctor.region_survival import OverRegions
from onefold.doctor.survival import LEVELS, Copy, NodeAt, Standing, Stream, Survival
from onefold.doctor.survival_facts import over_regions
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.spaces import RegionLogs, SpaceInfo

WEAK = {"session", "prefix", "eventual"}
ALL = {"strong", "bounded", *WEAK}
FAILURES = ["server", "two servers", "link", "region", "region and witness", "region and server"]


def copies(servers: str, down: frozenset[str]) -> tuple[Copy, ...]:
    """``a1 b1``: servers, whose region is the letter."""
    return tuple(Copy(name, name not in down, name[0]) for name in servers.split())


def over(
    consistent: str = "a1 a2 b1 b2 w1",
    own: tuple[str, ...] = ("a1 a2 a3", "b1 b2 b3"),
    down: str = "",
    spare: str = "a3 b3",
    nodes: str = "a b",
) -> OverRegions:
    gone = frozenset(down.split())
    names = {*consistent.split(), *spare.split(), *(name for one in own for name in one.split())} - gone
    log = Stream("shard 0", len(consistent.split()), copies(consistent, gone))
    logs = {one[0]: (Stream("shard 0", len(one.split()), copies(one, gone)),) for one in own}
    members = tuple(NodeAt(f"n{place}", True, frozenset({place})) for place in nodes.split())
    standing = Standing((log,), {name: name[0] for name in sorted(names)}, members)
    return OverRegions(tuple(logs), standing, logs, "w")


def by_failure(one: OverRegions, *, available: bool) -> dict[str, Survival]:
    return {found.failure: found for found in region_survival.survivals(one, available=available)}


def writes(found: Survival) -> str:
    return (found.where or "yes") if found.writes else "no"


def reads(found: dict[str, bool]) -> set[str]:
    assert list(found) == list(LEVELS)
    return {level for level, works in found.items() if works}


def test_consistent_collections_of_two_regions_and_a_witness() -> None:
    found = by_failure(over(), available=False)
    assert list(found) == FAILURES
    assert [writes(one) for one in found.values()] == [
        "yes",
        "yes",
        "majority side",
        "majority side",
        "no",
        "no",
    ]
    assert [reads(one.reads) for one in found.values()] == [ALL, ALL, ALL, ALL, WEAK, WEAK]
    assert [one.kept for one in found.values()] == [True, True, True, True, False, False]
    assert "2 of 5 copies of shard 0 are left at worst, and writes need 3" in found["region and server"].why
    three = by_failure(over("a1 b1 w1"), available=False)
    assert [writes(one) for one in three.values()] == [
        "yes",
        "no",
        "majority side",
        "majority side",
        "no",
        "no",
    ]


def test_available_collections_of_two_regions_and_a_witness() -> None:
    found = by_failure(over(), available=True)
    living = "living regions"
    assert list(found) == FAILURES
    assert [writes(one) for one in found.values()] == ["yes", "yes", "yes", living, living, living]
    assert [reads(one.reads) for one in found.values()] == [ALL - {"strong"}] * 2 + [WEAK] * 4
    assert [one.kept for one in found.values()] == [True, True, True, False, False, False]
    assert "disks" in found["region"].why and "TooStale" in found["link"].why


def test_a_region_whose_logs_have_one_copy() -> None:
    one = over(own=("a1", "b1"))
    found = by_failure(one, available=True)
    living = "living regions"
    assert [writes(one) for one in found.values()] == [living, "no", "yes", living, living, "no"]
    assert not found["server"].kept and "0 of 1 copies of shard 0 of a are left" in found["server"].why
    assert any(
        "The own logs of a, b have one copy" in told
        for told in region_survival.sentences(one, available=True)
    )


def test_what_is_broken_already_counts() -> None:
    one = over(down="a1 a2")
    found = by_failure(one, available=True)
    assert writes(region_survival.as_it_is(one, available=True)) == "living regions"
    assert {writes(found[name]) for name in ("server", "two servers", "link")} == {"living regions"}
    assert writes(found["region"]) == "no", "the other region is the one that takes no writes now"
    now = [told for told in region_survival.sentences(one, available=True) if told.startswith("Now: ")]
    assert len(now) == 1 and "1 of 3 copies of shard 0 of a" in now[0]
    cp = by_failure(one, available=False)
    assert writes(region_survival.as_it_is(one, available=False)) == "yes"
    assert [writes(one) for one in cp.values()] == ["no", "no", "no", "no", "no", "no"]


def test_programs_without_a_replica_need_a_node_in_their_region() -> None:
    found = by_failure(over(nodes="a"), available=True)
    assert not found["server"].remote_writes and not reads(found["server"].remote_reads)
    assert found["server"].writes
    cp = by_failure(over(nodes="a"), available=False)
    assert cp["server"].remote_writes and not cp["region"].remote_writes and cp["region"].writes


def test_three_regions_have_no_witness_to_lose() -> None:
    one = over("a1 a2 b1 b2 c1", ("a1 a2 a3", "b1 b2 b3", "c1 c2 c3"), spare="", nodes="a b c")
    for available in (False, True):
        found = by_failure(one, available=available)
        assert list(found) == [name for name in FAILURES if name != "region and witness"]
    assert writes(by_failure(one, available=False)["region"]) == "majority side"
    assert writes(by_failure(one, available=True)["region and server"]) == "living regions"


@pytest.mark.parametrize("seed", range(60))
def test_every_loss_tried(seed: int) -> None:
    rng = random.Random(seed)
    servers = [f"{place}{at}" for place in "ab" for at in range(1, rng.randint(2, 4))] + ["w1"]
    down = rng.sample(servers, rng.randint(0, 2))
    own = tuple(" ".join(name for name in servers if name[0] == place) for place in "ab")
    consistent = " ".join(sorted(rng.sample(servers, 3)))
    one = over(consistent, own, " ".join(down), spare="w1")
    up = [name for name in servers if name not in down]

    def takes(log: str, lost: set[str]) -> bool:
        left = [name for name in log.split() if name in up and name not in lost]
        return 2 * len(left) > len(log.split())

    cases = {
        "server": [{name} for name in up],
        "region": [{name for name in servers if name[0] == place} for place in "ab"],
        "region and witness": [{name for name in servers if name[0] in (place, "w")} for place in "ab"],
        "region and server": [
            {name for name in servers if name[0] == place} | {other}
            for place in "ab"
            for other in up
            if other[0] != place
        ],
    }
    for available in (False, True):
        found = by_failure(one, available=available)
        for failure, losses in cases.items():
            if failure not in found:
                continue
            if available:
                works = all(any(takes(log, lost) for log in own) for lost in losses)
            else:
                works = all(takes(consistent, lost) for lost in losses)
            assert found[failure].writes is works, (failure, available, one)


def test_copies_of_each_region_are_gathered_from_its_streams() -> None:
    logs = (RegionLogs("eu", "i_eu", 3), RegionLogs("us", "i_us", 1))
    space = SpaceInfo("s", "i_1", 1, 3, regions=("eu", "us"), region_logs=logs)
    names = ["eu-1", "eu-2", "eu-3", "us-1", "witness-1"]
    servers = [ServerFacts(name, f"h:{at}", place=name[:-2]) for at, name in enumerate(names)]

    def stream(incarnation: str, region: str, *there: str) -> StreamFacts:
        log = LogNames("s", incarnation, 0)
        cluster = {
            "leader": there[0],
            "replicas": [{"name": name, "current": True, "active": 1} for name in there[1:]],
        }
        info = {"config": {"num_replicas": len(there)}, "cluster": cluster, "state": {}}
        return StreamFacts(log.stream, log, info, region=region)

    streams = [
        stream("i_1", "", "eu-1", "us-1", "witness-1"),
        stream("i_eu", "eu", "eu-1", "eu-2", "eu-3"),
        stream("i_us", "us", "us-1"),
    ]
    facts = ClusterFacts(parse_address("nats://h:1/s"), servers, space, None, streams, False)
    found = over_regions(facts, [], [0])
    assert found.regions == ("eu", "us") and found.servers_of("eu") == {"eu-1", "eu-2", "eu-3"}
    assert [copy.server for copy in found.space.streams[0].copies] == ["eu-1", "us-1", "witness-1"]
    assert {name: len(one[0].copies) for name, one in found.own.items()} == {"eu": 3, "us": 1}
    assert over_regions(facts, [], [0], evicted=["us"]).regions == ("eu",)
