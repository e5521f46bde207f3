"""Nodes of one process over logs in memory: joining, placement, expiry, coming back, draining, halting."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import pytest

from onefold import config
from onefold.codec import Op
from onefold.env import SYSTEM
from onefold.errors import LogCorrupt, SpaceError, Unavailable
from onefold.fold.nodes import ops, rows
from onefold.fold.nodes.state import Node as NodeRow
from onefold.log.memory import MemoryLog
from onefold.node.hosting import Hosting, Plan, handed_over, placement_of, plan
from onefold.node.members.membership import Identity, Membership, NodeReplaced
from onefold.node.members.placement import place
from onefold.node.process import Phase
from onefold.node.telemetry.logging import JsonLog
from onefold.node.telemetry.tracing import NoTracing
from support.memory_nodes import SHARDS, MemoryGround, Replica, World, short_lease, wait_for, world

__all__ = ["short_lease", "world"]

# -- planning, pure


def row(name: str, *hosted: int, state: str = rows.LIVE) -> NodeRow:
    shards = tuple((shard, 1) for shard in hosted)
    return NodeRow(name, rows.NodeState(1, "i", state, "eu", "z", "", "", 1, 0, 0, 0, 0, 0, shards))


def test_a_copy_is_dropped_only_when_it_is_ready_where_it_belongs() -> None:
    placement = {0: ("a", "b"), 1: ("b", "c"), 2: ("a", "b")}
    nodes = [row("a", 0, 1, 2), row("b", 0, 1), row("c", 0)]
    assert plan("a", placement, nodes, {0, 1, 2}) == Plan(frozenset(), frozenset())
    nodes[2] = row("c", 0, 1)
    assert plan("a", placement, nodes, {0, 1, 2}) == Plan(frozenset(), frozenset({1}))
    assert plan("c", placement, nodes, {0}) == Plan(frozenset({1}), frozenset())


def test_shard_0_is_everywhere_and_never_dropped() -> None:
    placement = {0: ("a", "b")}
    nodes = [row("a", 0), row("b", 0), row("c", 0)]
    assert plan("c", placement, nodes, {0}) == Plan(frozenset(), frozenset())
    assert plan("c", placement, nodes, frozenset()) == Plan(frozenset({0}), frozenset())


def test_who_leaves_gets_nothing_and_who_is_alone_keeps_all() -> None:
    nodes = [row("a"), row("b", state=rows.DRAINING), row("c", state=rows.EXPIRED)]
    assert set(placement_of(4, nodes).values()) == {("a",)}
    assert set(placement_of(4, nodes[1:]).values()) == {("b",)}


def test_a_leaving_node_waits_for_all_who_take_over() -> None:
    placement = place(3, [])
    placement = {0: ("a", "b"), 1: ("a", "b"), 2: ("a", "b")}
    leaving = row("c", 0, 1, state=rows.DRAINING)
    assert not handed_over("c", placement, [row("a", 0), row("b", 0, 1), leaving], {0, 1})
    assert handed_over("c", placement, [row("a", 0, 1), row("b", 0, 1), leaving], {0, 1})
    assert handed_over("c", placement, [leaving], {0, 1})  # nobody is there to wait for
    assert handed_over("c", placement, [leaving, row("d", state=rows.DRAINING)], {0, 1})


# -- living


def test_three_nodes_share_the_shards_and_a_fourth_takes_its_part(world: World) -> None:
    for name in ("n1", "n2", "n3"):
        world.start(name)
    wait_for(world.settled)
    assert [len(names) for names in world.hosts().values()] == [3, 2, 2, 2, 2, 2]
    before = world.hosts()
    for running in world.nodes.values():
        running.ground.removed.clear()
    world.start("n4")
    wait_for(world.settled)
    after = world.hosts()
    for shard in range(1, SHARDS):
        assert after[shard] - before[shard] <= {"n4"}
    assert after != before
    for name, running in world.nodes.items():
        assert running.ground.serving == {shard for shard, names in after.items() if name in names}
        assert set(running.ground.removed) == {
            shard for shard, names in before.items() if name in names and name not in after[shard]
        }


def test_while_a_copy_moves_somebody_always_answers(world: World) -> None:
    for name in ("n1", "n2"):
        world.start(name)
    wait_for(world.settled)
    seen_none = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            answering = [running.ground.serving.copy() for running in world.nodes.copy().values()]
            seen_none.extend(shard for shard in range(SHARDS) if sum(shard in one for one in answering) < 2)
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    world.start("n3")
    wait_for(world.settled)
    world.start("n4")
    wait_for(world.settled)
    world.nodes["n2"].node.stop()
    wait_for(lambda: world.states()["n2"] == "left")
    done.set()
    watcher.join()
    assert not seen_none, "a shard had fewer than its two copies while one moved"


def test_a_silent_node_is_expired_and_comes_back_as_another(
    world: World, short_lease: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("n1", "n2", "n3"):
        world.start(name)
    wait_for(world.settled)
    node = world.nodes["n2"].node
    epoch = world.rows()["n2"].state.epoch
    stopped = threading.Event()
    look = node._look
    monkeypatch.setattr(node, "_look", lambda: (stopped.wait(), look()))  # as a stopped process
    wait_for(lambda: world.states()["n2"] == "expired")
    wait_for(lambda: all("n2" not in names for names in world.hosts().values()))
    wait_for(lambda: all(len(names) == 2 for names in list(world.hosts().values())))
    before = {name: world.rows()[name].state.epoch for name in ("n1", "n3")}
    stopped.set()
    wait_for(world.settled)
    rows_ = world.rows()
    assert rows_["n2"].state.epoch > epoch
    assert {name: rows_[name].state.epoch for name in before} == before, "the one who was away accused others"
    assert "expired_by_peer" in world.nodes["n2"].events()


def test_a_leaving_node_hands_over_first(world: World) -> None:
    for name in ("n1", "n2", "n3"):
        world.start(name)
    wait_for(world.settled)
    world.nodes["n3"].ground.removed.clear()
    world.nodes["n3"].end()
    assert world.states() == {"n1": "live", "n2": "live", "n3": "left"}
    assert world.hosts() == {shard: {"n1", "n2"} for shard in range(SHARDS)}, (
        "it left before others were ready"
    )
    assert world.nodes["n3"].node.phase is Phase.ENDED
    assert world.nodes["n3"].ground.removed == [], "what is stored serves the next start"


def test_the_last_node_leaves_at_once(world: World) -> None:
    running = world.start("n1")
    wait_for(world.settled)
    running.end()
    assert world.states() == {"n1": "left"}
    assert running.failed is None


def test_of_two_processes_of_one_name_the_later_stays(world: World) -> None:
    first = world.start("n1")
    wait_for(world.settled)
    world.start("n1")
    wait_for(lambda: first.failed)
    assert isinstance(first.failed, NodeReplaced)
    assert "--name" in str(first.failed)
    wait_for(world.settled)
    first.end()


def test_a_shard_that_comes_back_waits_for_the_end_of_its_old_copy() -> None:
    """A copy is dropped while it is still being opened, and its shard comes back: its end must not remove the new one."""
    go_on, opening = threading.Event(), threading.Event()
    stood: list[str] = []

    class Ground(MemoryGround):
        def open_replica(self, shard: int) -> Replica:
            stood.append("open")
            if len(stood) == 1:
                opening.set()
                go_on.wait()
            return super().open_replica(shard)

        def remove(self, shard: int) -> None:
            stood.append("remove")
            super().remove(shard)

    ground, changed = Ground([MemoryLog(), MemoryLog()]), threading.Event()
    hosting = Hosting(ground, JsonLog("n", stream=io.StringIO()), NoTracing(), changed=changed.set)
    try:
        hosting.apply(Plan(frozenset({1}), frozenset()))
        opening.wait()
        hosting.apply(Plan(frozenset(), frozenset({1})))
        hosting.apply(Plan(frozenset({1}), frozenset()))
        assert stood == ["open"] and not hosting.shards
        go_on.set()
        assert changed.wait(60)
        hosting.apply(Plan(frozenset({1}), frozenset()))
        wait_for(hosting.ready)
        assert stood == ["open", "remove", "open"] and ground.stored == {1}
    finally:
        go_on.set()
        hosting.close()


def test_a_halted_replica_is_told_and_the_rest_goes_on(world: World) -> None:
    world.start("n1")
    wait_for(world.settled)
    running = world.nodes["n1"]
    running.ground.opened[3]._halt(LogCorrupt("a hole"))
    wait_for(lambda: world.rows()["n1"].state.halted == ((3, "a hole"),))
    assert world.rows()["n1"].shards == {0, 1, 2, 4, 5}
    assert running.ground.serving == {0, 1, 2, 4, 5}
    wait_for(lambda: running.node.ready()["waiting"] == ["shard 3 is halted"])
    assert not running.node.ready()["ok"]
    assert running.node.live()["ok"]
    assert "replica_halted" in running.events()


def test_a_replica_that_cannot_be_opened_yet_is_tried_again(world: World) -> None:
    tries: list[int] = []

    def opening(shard: int) -> None:
        if shard == 2 and len(tries) < 2:
            tries.append(shard)
            raise Unavailable("no answer")

    ground = MemoryGround(world.logs, opening=opening)
    running = world.start("n1", ground=ground)
    wait_for(world.settled)
    assert len(tries) == 2
    assert {"shard_2_stalled", "shard_2_stalled_over"} <= set(running.events())


def test_a_replica_that_can_never_be_opened_is_halted(world: World) -> None:
    def opening(shard: int) -> None:
        if shard == 2:
            raise SpaceError("upgrade")

    running = world.start("n1", ground=MemoryGround(world.logs, opening=opening))
    wait_for(lambda: world.rows().get("n1") and world.rows()["n1"].state.halted)
    wait_for(lambda: running.node.ready()["waiting"] == ["shard 2 is halted"])


def test_nothing_is_ready_before_it_has_what_was_acknowledged(world: World) -> None:
    let = threading.Event()
    running = world.start(
        "n1", ground=MemoryGround(world.logs, opening=lambda shard: let.wait() if shard == 4 else None)
    )
    wait_for(lambda: world.hosts()[5] == {"n1"})
    assert "shard 4 is opening" in running.node.ready()["waiting"]
    assert 4 not in running.ground.serving
    let.set()
    wait_for(world.settled)


def test_digests_are_reported(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "DIGEST_EVERY_OFFSETS", 16)
    for name in ("n1", "n2"):
        world.start(name)
    wait_for(world.settled)

    def said() -> list[Any]:
        world.space.catch_up()
        with world.space.view() as view:
            return [rows.read_place(key) for key, _ in view.scan(rows.DIGEST)]

    wait_for(lambda: {(0, 32, "n1"), (0, 32, "n2")} <= set(said()))


def test_it_lives_through_a_log_that_does_not_answer(world: World, short_lease: None) -> None:
    running = world.start("n1")
    wait_for(world.settled)
    submit = running.ground.opened[0].submit

    def refuse(batch: Any) -> Any:
        raise Unavailable("no quorum")

    running.ground.opened[0].submit = refuse  # type: ignore[method-assign]
    wait_for(lambda: not running.node.ready()["ok"])
    assert "log_unreachable" in running.events()
    running.ground.opened[0].submit = submit  # type: ignore[method-assign]
    wait_for(world.settled)
    assert "log_unreachable_over" in running.events()


def test_garbage_for_the_nodes_fold_harms_nobody(world: World) -> None:
    world.start("n1")
    wait_for(world.settled)
    world.space.submit([Op(ops.NODES_FOLD, b"\xc1garbage")])
    beats = world.rows()["n1"].state.beats
    wait_for(lambda: world.rows()["n1"].state.beats > beats)


# -- beats


class Ahead:
    """The system's clocks; the boot clock is ahead."""

    ahead_s = 0.0
    wall_ms = staticmethod(SYSTEM.wall_ms)
    token = staticmethod(SYSTEM.token)

    def boot_s(self) -> float:
        return SYSTEM.boot_s() + self.ahead_s


def test_a_beat_that_is_nearly_due_comes_with_those_of_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ahead()
    monkeypatch.setattr(config, "NODE_BEAT_S", 1000.0)
    monkeypatch.setattr(config, "NODE_LEASE_S", 100_000.0)
    node = world.start("n1", env=clock).node
    other = Membership(world.space, Identity("n2", "eu", "a"))
    other.join()
    wait_for(lambda: "n2" in node._others and node.beats)
    world.space.catch_up()

    def beat() -> None:
        seen = node._others["n2"]
        assert other.beat({0: 1}, [], {}, 0)
        wait_for(lambda: node._others["n2"] > seen)

    beat()  # whatever comes before is over: what n2 answers for changes nothing any more
    before = node.beats
    beat()
    assert node.beats == before, "its own is not due for long"
    clock.ahead_s = 600.0
    beat()
    wait_for(lambda: node.beats == before + 1)
