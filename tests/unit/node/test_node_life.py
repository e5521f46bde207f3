"""A node that hosts the logs of the space and those of its region: neither waits for the other, and both end together."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from prometheus_client import generate_latest

from onefold.errors import Unavailable
from onefold.folds import region_folds
from onefold.log.memory import MemoryLog
from onefold.node.life import Life
from onefold.node.members.membership import Identity, Membership, NodeReplaced
from onefold.node.metrics import REGION_PREFIX, NodeMetrics, registry_of
from onefold.node.process import Node, Phase
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import Labelled, OtelTracing
from support.memory_nodes import SHARDS, MemoryGround, World, wait_for, world

__all__ = ["world"]


class Both:
    """A node with both kinds of logs, in a thread."""

    def __init__(self, space: MemoryGround, region: MemoryGround) -> None:
        self.said = io.StringIO()
        self.log = JsonLog("n1", stream=self.said)
        identity = Identity("n1", "eu", "a")
        self.space = Node(space, identity, self.log)
        self.region = Node(region, identity, self.log.about(logs="eu"))
        self.life = Life(self.space, self.region)
        self.failed: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.life.run()
        except BaseException as error:
            self.failed = error

    def end(self) -> None:
        self.life.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def both(space: MemoryGround, region: MemoryGround) -> Iterator[Both]:
    made = Both(space, region)
    try:
        yield made
    finally:
        made.end()


def of_region() -> MemoryGround:
    return MemoryGround([MemoryLog() for _ in range(SHARDS)], folds=region_folds)


def without_majority(shard: int) -> None:
    raise Unavailable(f"the log of shard {shard} has no leader")


def test_a_region_is_hosted_while_the_space_has_no_majority(world: World) -> None:
    dead, region = MemoryGround(world.logs, opening=without_majority), of_region()
    with both(dead, region) as node:
        wait_for(lambda: node.region.ready()["ok"] and region.serving == set(range(SHARDS)))
        assert not dead.serving
        assert node.space.phase is Phase.STARTING
        found = node.life.ready()
        assert not found["ok"] and found["waiting"] and found["region"]["ok"], found
        assert found["region"]["shards"] == list(range(SHARDS))
        assert node.life.live()["ok"]
        dead.opening = lambda _: None
        wait_for(lambda: node.life.ready()["ok"])
    assert node.failed is None and not region.serving and not dead.serving
    assert node.region.phase is node.space.phase is Phase.ENDED


def test_the_space_is_hosted_while_the_region_has_no_majority(world: World) -> None:
    region = of_region()
    region.opening = without_majority
    with both(MemoryGround(world.logs), region) as node:
        wait_for(lambda: node.space.ready()["ok"])
        found = node.life.ready()
        assert not found["ok"] and not found["waiting"] and not found["region"]["ok"], found
    assert node.failed is None


@pytest.mark.parametrize("which", ["space", "region"])
def test_a_node_ends_as_a_whole_when_it_was_replaced(world: World, which: str) -> None:
    grounds = {"space": MemoryGround(world.logs), "region": of_region()}
    node = Both(grounds["space"], grounds["region"])
    wait_for(lambda: node.life.ready()["ok"])
    Membership(grounds[which].opened[0], Identity("n1", "eu", "a")).join()
    node.thread.join(60)
    assert not node.thread.is_alive() and isinstance(node.failed, NodeReplaced)
    assert not grounds["space"].serving and not grounds["region"].serving


def test_lines_of_the_log_tell_which_logs_they_are_about(world: World) -> None:
    region = of_region()
    with both(MemoryGround(world.logs), region) as node:
        wait_for(lambda: node.life.ready()["ok"] and region.serving == set(range(SHARDS)))
    lines = [json.loads(line) for line in node.said.getvalue().splitlines()]
    joined = [line.get("logs") for line in lines if line["event"] == "joined"]
    assert sorted(joined, key=str) == [None, "eu"]
    assert {line["shard"] for line in lines if line["event"] == "replica_ready" and line.get("logs")} == {
        *range(SHARDS)
    }


def test_conditions_of_one_do_not_end_those_of_the_other() -> None:
    log = JsonLog("n1", stream=io.StringIO())
    other = log.about(logs="eu")
    log.begins("log_unreachable", "no leader")
    other.begins("log_unreachable", "no leader")
    other.ends("log_unreachable")
    assert log.lasting == ["log_unreachable"] and other.lasting == []


def test_metrics_of_a_region_have_names_of_their_own(world: World) -> None:
    region = of_region()
    with both(MemoryGround(world.logs), region) as node:
        wait_for(lambda: node.life.ready()["ok"] and region.serving == set(range(SHARDS)))
        registry = registry_of(
            NodeMetrics(node.space, "main"), NodeMetrics(node.region, "main", prefix=REGION_PREFIX)
        )
        text = generate_latest(registry).decode().splitlines()
    samples = dict(line.rsplit(" ", 1) for line in text if not line.startswith("#"))
    assert samples["onefold_node_ready"] == samples["onefold_region_node_ready"] == "1.0"
    assert float(samples["onefold_region_node_heartbeats_total"]) > 0
    assert samples['onefold_region_shard_ready{shard="5"}'] == "1.0"
    assert samples['onefold_region_gone_bytes{shard="5"}'] == "0.0"
    assert not [name for name in samples if name.startswith(("onefold_region_tasks", "onefold_region_live_"))]
    assert "onefold_node_beats_total" in samples and "onefold_region_node_beats_total" not in samples


def test_spans_of_a_region_are_labelled() -> None:
    found = []

    class Tracer:
        def start_as_current_span(self, name: str, attributes: dict[str, object]) -> object:
            found.append((name, attributes))
            return _nothing()

    with Labelled(OtelTracing(Tracer()), logs="eu").span("trim", shard=1):
        pass
    assert found == [("onefold.trim", {"onefold.logs": "eu", "onefold.shard": 1})]


@contextmanager
def _nothing() -> Iterator[None]:
    yield
