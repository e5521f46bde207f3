"""A region that pulls from another one through its nodes, all in one process: effects, full syncs, nodes that are behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from kit.remote_world import Delivered
from onefold.available import out
from onefold.available.ops import Admit, Do, Put, available_op
from onefold.available.regions import Known, read_self
from onefold.env import SYSTEM
from onefold.errors import SpaceError, Unavailable
from onefold.folds import region_folds
from onefold.log.jetstream.spaces import RegionLogs, SpaceInfo
from onefold.log.memory import MemoryLog
from onefold.regions import cluster, questions
from onefold.regions.cluster import ClusterNeighbours, ClusterPeers, ClusterTransport
from onefold.regions.runner import Runner
from onefold.shard.api import View
from onefold.shard.memory import MemoryShard
from onefold.shard.remote.server import Server
from onefold.shard.remote.shard import RemoteShard

INFO = SpaceInfo(
    "main",
    "i_0",
    1,
    5,
    regions=("dc1", "dc2"),
    region_logs=(RegionLogs("dc1", "i_1", 3), RegionLogs("dc2", "i_2", 3)),
)


class Region:
    """A log with a program that writes, and two nodes."""

    def __init__(self, number: int) -> None:
        self.log = MemoryLog()
        self.program = MemoryShard(Delivered(self.log), region_folds(0, 1), SYSTEM)
        self.program.submit(
            [available_op(Admit(n, f"dc{n}", here=n == number, founder=True)) for n in (1, 2)]
        )
        self.delivered = [Delivered(self.log) for _ in range(2)]
        self.nodes = [MemoryShard(log, region_folds(0, 1), SYSTEM, replica=True) for log in self.delivered]
        self.servers = [Server(node, exchanging=_answer) for node in self.nodes]

    def put(self, count: int, size: int = 10) -> None:
        for at in range(count):
            self.program.submit([available_op(Do((Put("r", "m", ((b"k%d" % at, b"v" * size),)),)))])

    def known(self) -> Known:
        with self.program.view() as view:
            return read_self(view)


def _answer(view: View, question: bytes, late: bool) -> bytes | None:
    return questions.answer(view, question, SYSTEM.wall_ms(), late=late)


class Link:
    """Stands in for the connection."""

    address = "nats://test/main"
    max_payload = 8 << 20


class Near(ClusterNeighbours):
    """Whose nodes are in this process. ``node``: which of them answers next."""

    def __init__(self, own: Region, other: Region) -> None:
        self.other = other
        self.node: Callable[[], int] = lambda: 0
        self.asked = 0
        super().__init__(Link(), INFO, lambda: own.program, region_folds, SYSTEM)  # type: ignore[arg-type]

    def _open(self, region: str, index: int) -> RemoteShard:
        def ask(request: bytes, timeout: float, *, hedge_s: float) -> bytes:
            self.asked += 1
            return self.other.servers[self.node()].answer(request)

        folds = region_folds(index, 1)
        return RemoteShard(Delivered(self.other.log), ask, folds, SYSTEM, url=f"nats://test/{region}")


@pytest.fixture
def near() -> Iterator[tuple[Region, Region, Near]]:
    here, there = Region(1), Region(2)
    with ExitStack() as stack:
        made = Near(here, there)
        for shard in (here.program, there.program, *here.nodes, *there.nodes):
            stack.callback(shard.close)
        stack.callback(made.close)
        yield here, there, made


def pull(here: Region, near: Near, **more: Any) -> Runner:
    made = Runner(here.program, 0, 2, ClusterTransport(near, "dc2", **more))
    made.step()
    return made


def asking(near: tuple[Region, Region, Near], node: int) -> Near:
    """As another node of the region would ask, which has heard nothing yet."""
    here, there, _ = near
    made = Near(here, there)
    made.node = lambda: node
    return made


def catch_up(there: Region) -> None:
    for node in there.nodes:
        node.catch_up()


def test_effects_come_over(near: tuple[Region, Region, Near]) -> None:
    here, there, neighbours = near
    there.put(20, size=500)
    catch_up(there)
    came: list[int] = []
    assert pull(here, neighbours, came=came.append).pull.state == "linked"
    assert here.known().have() == {2: 20} and here.known().content == there.known().content
    assert len(came) == 1 and 0 < came[0] < 5_000, "compressed"


def test_rows_come_over_when_effects_are_not_kept(
    near: tuple[Region, Region, Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there, neighbours = near
    monkeypatch.setattr(out, "OUT_EFFECTS_MAX", 3)
    there.put(50)
    here.put(1)
    catch_up(there)
    runner = pull(here, neighbours)
    assert here.known().have() == {1: 1, 2: 50}, runner.pull.state
    assert here.known().origins[2].chain == there.known().origins[2].chain
    there.put(1)
    catch_up(there)
    runner.step()
    assert here.known().have()[2] == 51 and runner.pull.state == "linked"


def test_a_node_that_is_behind_its_own_log_takes_no_rows(
    near: tuple[Region, Region, Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes pull for a moment. What one has brought, all are known to know, so it is dropped before the other one asks."""
    here, there, neighbours = near
    there.put(2)
    catch_up(there)
    late = here.nodes[1]
    late.catch_up()
    here.delivered[1].hold()
    pull(here, neighbours)
    monkeypatch.setattr(out, "OUT_EFFECTS_MAX", 3)
    there.put(3)
    catch_up(there)
    assert there.known().dropped[2].seq == 2
    monkeypatch.setattr(ClusterTransport, "sync", lambda *_: pytest.fail("it takes rows"))
    monkeypatch.setattr("onefold.regions.runner.APPEND_S", 0.05)
    runner = Runner(late, 0, 2, ClusterTransport(neighbours, "dc2"))
    with pytest.raises(Unavailable):
        runner.step()
    assert runner.pull.state == "linked", "it knows none of five, and does not know what its log has"
    here.delivered[1].go_on()
    monkeypatch.setattr("onefold.regions.runner.APPEND_S", 60.0)
    runner.step()
    runner.step()
    assert runner.pull.state == "linked" and here.known().have() == {2: 5}


def test_a_node_that_is_behind_is_no_sign_of_a_loss(
    near: tuple[Region, Region, Near], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_BARRIER_S", 0.05)
    here, there, neighbours = near
    there.put(3)
    catch_up(there)
    there.delivered[1].hold()
    there.put(2)
    there.nodes[0].catch_up()
    pull(here, neighbours)
    assert here.known().have() == {2: 5}
    runner = Runner(here.program, 0, 2, ClusterTransport(asking(near, node=1), "dc2"))
    with pytest.raises(Unavailable):
        runner.step()
    assert runner.pull.state == "linked", "it has three of five, and cannot know"
    there.delivered[1].go_on()
    runner.step()
    assert runner.pull.state == "linked"


def test_a_region_that_has_lost_its_end_is_told_apart(near: tuple[Region, Region, Near]) -> None:
    here, there, neighbours = near
    there.put(3)
    catch_up(there)
    pull(here, neighbours)
    restored = asking((here, Region(2), neighbours), node=0)  # under its old number
    assert pull(here, restored).pull.state == "lost"
    assert [link.state for link in ClusterPeers(restored, [here.program]).links()] == ["lost"]


def test_programs_learn_of_the_others(near: tuple[Region, Region, Near]) -> None:
    here, there, neighbours = near
    peers = ClusterPeers(neighbours, [here.program])
    there.put(4)
    assert peers.latest(5.0) == {2: {0: 4}}
    (link,) = peers.links()
    assert (link.number, link.name, link.silent_s, link.state) == (2, "dc2", 0.0, "linked")


def test_a_region_that_does_not_answer_is_missing(near: tuple[Region, Region, Near]) -> None:
    here, _, neighbours = near
    peers = ClusterPeers(neighbours, [here.program])

    def away() -> int:
        raise Unavailable("no node is there")

    neighbours.node = away
    assert peers.latest(0.05) == {}
    (link,) = peers.links()
    assert link.state == "cut" and link.silent_s >= 0.05, "it never answered since this program asks"
    (later,) = peers.links()
    assert later.silent_s > link.silent_s
    neighbours.close()
    with pytest.raises(SpaceError, match="closed"):
        neighbours.shard("dc2", 0)
