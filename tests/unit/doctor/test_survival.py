"""What the loss of servers and places costs: against a table made by hand, and a model that tries every loss."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import pytest

from onefold.doctor import survival
from onefold.doctor.facts import ClusterFacts, ServerFacts, StreamFacts
from onefold.doctor.survival import LEVELS, Copy, NodeAt, Standing, Stream, Survival
from onefold.doctor.survival_facts import is_in_memory, standing_of
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.names import LogNames, blobs_stream
from onefold.log.jetstream.spaces import SpaceInfo

STRONG = {"strong", "bounded"}
WEAK = {"session", "prefix", "eventual"}
ALL = STRONG | WEAK
NODE = (NodeAt("n1", True),)


def copies(number: int, away: int = 0, places: str = "") -> tuple[Copy, ...]:
    """So many, the last ones of them away; ``places``: a letter for each."""
    return tuple(
        Copy(f"s{at + 1}", at < number - away, places[at] if places else None) for at in range(number)
    )


def standing(
    replicas: int, away: int = 0, places: str = "", spare: int = 0, nodes: tuple[NodeAt, ...] = NODE
) -> Standing:
    log = copies(replicas, away, places)
    up = {copy.server: copy.place for copy in log if copy.current}
    up |= {f"x{at + 1}": None for at in range(spare)}
    return Standing((Stream("shard 0", replicas, log),), up, nodes)


def by_failure(one: Standing) -> dict[str, Survival]:
    return {found.failure: found for found in survival.survivals(one)}


def reads(found: dict[str, bool]) -> set[str]:
    assert list(found) == list(LEVELS)
    return {level for level, works in found.items() if works}


@pytest.mark.parametrize(
    ("replicas", "away", "lost", "writes", "strong", "kept"),
    [
        (1, 0, 1, False, False, False),
        (3, 0, 1, True, True, True),
        (3, 0, 2, False, False, False),
        (3, 0, 3, False, False, False),
        (3, 1, 1, False, False, True),
        (3, 1, 2, False, False, False),
        (5, 0, 1, True, True, True),
        (5, 0, 2, True, True, True),
        (5, 0, 3, False, False, False),
        (5, 1, 1, True, True, True),
        (5, 1, 2, False, False, True),
        (5, 2, 1, False, False, True),
    ],
)
def test_copies_that_are_left_decide(
    replicas: int, away: int, lost: int, writes: bool, strong: bool, kept: bool
) -> None:
    name = {1: "server", 2: "two servers", 3: "three servers"}[lost]
    found = by_failure(standing(replicas, away))[name]
    assert (found.writes, found.kept) == (writes, kept)
    assert reads(found.reads) == (ALL if strong else WEAK)
    left = replicas - away - lost
    assert f"{left} of {replicas} copies" in found.why


def test_programs_without_a_replica_need_a_node_and_a_server_to_reach_it_through() -> None:
    assert reads(by_failure(standing(3, nodes=()))["server"].remote_reads) == set()
    assert not by_failure(standing(3, nodes=()))["server"].remote_writes
    assert reads(by_failure(standing(3, nodes=(NodeAt("n", False),)))["server"].remote_reads) == set()
    found = by_failure(standing(3))
    assert reads(found["server"].remote_reads) == ALL and found["server"].remote_writes
    assert reads(found["two servers"].remote_reads) == WEAK
    assert reads(found["three servers"].remote_reads) == set() and reads(found["three servers"].reads) == WEAK
    spare = by_failure(standing(3, spare=2))["three servers"]
    assert reads(spare.remote_reads) == WEAK, "they are reached through servers without a copy"


def test_the_loss_of_a_place() -> None:
    one_each = by_failure(standing(3, places="abc"))
    assert [name for name in one_each if name.startswith("place")] == ["place a", "place b", "place c"]
    assert all(found.writes for name, found in one_each.items() if name.startswith("place"))
    two_in_a = by_failure(standing(3, places="aab"))
    assert (two_in_a["place a"].writes, two_in_a["place b"].writes) == (False, True)
    assert not two_in_a["place a"].kept and two_in_a["place b"].kept
    there = (NodeAt("n1", True, frozenset({"b"})),)
    with_node = by_failure(standing(3, places="aab", nodes=there))
    assert with_node["place b"].writes and not with_node["place b"].remote_writes
    assert reads(with_node["place b"].remote_reads) == set()
    assert reads(with_node["place a"].remote_reads) == WEAK
    away = by_failure(standing(3, away=1, places="abc"))
    assert (away["place a"].writes, away["place c"].writes) == (False, True), (
        "what was lost before is not lost twice"
    )


def test_a_table_needs_its_blobs() -> None:
    log = Stream("shard 0", 3, copies(3))
    blobs = Stream("its blobs", 3, tuple(Copy(f"b{at}", True) for at in range(3)), is_log=False)
    up: dict[str, str | None] = {copy.server: None for copy in (*log.copies, *blobs.copies)}
    found = by_failure(Standing((log, blobs), up, NODE))
    assert not found["two servers"].writes and reads(found["two servers"].reads) == WEAK
    assert reads(found["three servers"].reads) == set(), "all copies of the blobs may be on them"


def test_every_loss_tried() -> None:
    seed = 20261128
    rng = random.Random(seed)
    for _ in range(300):
        replicas = rng.choice((1, 3, 5))
        servers = [f"s{at}" for at in range(replicas + rng.randint(0, 2))]
        down = set(rng.sample(servers, rng.randint(0, min(2, len(servers) - 1))))
        streams = []
        for at in range(rng.randint(1, 3)):
            chosen = rng.sample(servers, replicas)
            kept = tuple(Copy(name, name not in down and rng.random() < 0.9) for name in chosen)
            streams.append(Stream(f"shard {at}", replicas, kept))
        up: dict[str, str | None] = {name: None for name in servers if name not in down}
        found = by_failure(Standing(tuple(streams), up, NODE))
        for count, name in ((1, "server"), (2, "two servers"), (3, "three servers")):
            if len(up) < count:
                assert name not in found, seed
                continue
            takes = True
            for lost in combinations(sorted(up), count):
                for stream in streams:
                    alive = [copy for copy in stream.copies if copy.current and copy.server not in lost]
                    takes = takes and 2 * len(alive) > replicas
            assert found[name].writes is takes, (seed, name, streams)
            assert reads(found[name].reads) == (ALL if takes else WEAK)


# -- gathering


def info(leader: str | None, *others: str, away: tuple[str, ...] = ()) -> dict[str, object]:
    replicas = [
        {"name": name, "current": name not in away, "offline": name in away, "active": 1} for name in others
    ]
    return {
        "config": {"num_replicas": 1 + len(others)},
        "state": {"messages": 1, "first_seq": 1, "last_seq": 1},
        "cluster": {"leader": leader, "replicas": replicas},
    }


def facts(*streams: StreamFacts, places: bool = True) -> ClusterFacts:
    space = SpaceInfo("s", "i_1", 2, 3)
    servers = [
        ServerFacts(f"s{at}", f"h:{at}", details={"tags": [f"az:p{at}"]} if places else None)
        for at in (1, 2, 3)
    ]
    return ClusterFacts(parse_address("nats://h:1/s"), servers, space, None, list(streams), places)


def test_what_is_known_of_the_servers_and_nodes_is_what_is_judged() -> None:
    logs = [LogNames("s", "i_1", shard) for shard in (0, 1)]
    first = StreamFacts(logs[0].stream, logs[0], info("s1", "s2", "s3", away=("s3",)))
    second = StreamFacts(logs[1].stream, logs[1], info("s2", "s1", "s3"))
    blobs = StreamFacts(blobs_stream("s"), None, info("s1", "s2", "s3"))
    found = standing_of(facts(first, second, blobs), [], [0])
    assert [one.name for one in found.streams] == ["shard 0"]
    assert [copy.current for copy in found.streams[0].copies] == [True, True, False]
    assert found.places == ["p1", "p2", "p3"]
    assert not by_failure(found)["server"].writes
    assert by_failure(standing_of(facts(first, second, blobs), [], [1]))["server"].writes
    table = standing_of(facts(first, second, blobs, places=False), [], [0], with_blobs=True)
    assert [one.name for one in table.streams] == ["shard 0", "its blobs"] and table.places == []
    gone = StreamFacts(logs[0].stream, logs[0], None, "no leader")
    now = survival.as_it_is(standing_of(facts(gone), [], [0]))
    assert not now.writes and reads(now.reads) == WEAK


def test_a_folder(tmp_path: Path) -> None:
    found = {one.failure: one for one in survival.of_folder(in_memory=False)}
    assert [(one.writes, one.kept) for one in found.values()] == [(True, True), (False, True), (False, False)]
    assert not {one.failure: one for one in survival.of_folder(in_memory=True)}["machine"].kept
    shm = Path("/dev/shm")
    if shm.is_dir():
        assert is_in_memory(shm)
    assert isinstance(is_in_memory(tmp_path), bool)
    assert not is_in_memory(Path("/proc"))
