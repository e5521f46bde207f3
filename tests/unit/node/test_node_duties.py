"""What a node does for the space: looking again where nodes differ, raising fold versions, trying again what failed."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from onefold.env import SeededEnv
from onefold.errors import LogCorrupt, SpaceError, Unavailable
from onefold.fold.api import NEWEST_VERSION
from onefold.fold.authority import IN_FORCE_VERSION
from onefold.fold.nodes import ops
from onefold.node.divergence import digest_at, reread
from onefold.node.hosting import Hosting
from onefold.node.maintenance import Maintenance, Round
from onefold.node.members.membership import Identity, Membership
from onefold.node.telemetry.logging import JsonLog
from onefold.node.versions import NewestVersion, raise_fold_version
from support.node_members import (
    EVERY,
    World,
    small,  # noqa: F401
    world_of_members,  # noqa: F401
)

# -- looking again


def test_who_cannot_reproduce_what_two_have_alike_halts(world: World) -> None:
    world.order.append("c")
    world.join("a", "b", "c")
    world.write(EVERY + 3)
    world.members["c"].snapshots._shards[1].hashes[EVERY] = "wrong"
    made = world.members["c"].snapshots._shards[1].made
    assert made is not None
    world.members["c"].snapshots._shards[1].made = made._replace(hash="wrong")
    world.look("snapshots")
    world.look("divergence_check")
    assert [sorted(member.halted) for member in world.members.values()] == [[], [], [1]]
    assert "c" in world.members["c"].halted[1]
    assert world.members["a"].events("nodes_diverged") and len(world.members["a"].divergence_check.open) == 1
    assert world.members["a"].events("recheck_finished")[0]["verdict"] == "sound"


def test_of_two_who_differ_nobody_is_believed_without_looking(world: World) -> None:
    world.join("a", "b")
    world.write(EVERY + 3)
    right = world.members["a"].snapshots.said(1, EVERY)
    b = world.members["b"].snapshots._shards[1]
    assert b.made is not None
    b.made, b.hashes[EVERY] = b.made._replace(hash="wrong"), "wrong"
    world.look("snapshots")
    for member in world.members.values():
        member.divergence_check._refold = lambda shard, offset: None
    world.look("divergence_check")
    assert not any(member.halted for member in world.members.values()), "it could not look, and judged"
    for member in world.members.values():
        member.divergence_check._refold = lambda shard, offset: right
        member.divergence_check._judged.clear()
    world.look("divergence_check")
    assert [sorted(member.halted) for member in world.members.values()] == [[], [1]]


def test_a_word_of_an_earlier_copy_is_not_held_against_this_one(world: World) -> None:
    world.order.append("c")
    world.join("a", "b", "c")
    world.write(EVERY + 3)
    c = world.members["c"].membership
    c.say(ops.StateHash("c", c.epoch, 1, EVERY, "of a copy long replaced"))
    for name in ("a", "b"):
        world.members[name].snapshots.look(world.members[name].round())
    world.look("divergence_check")
    assert not world.members["c"].halted


def test_digests_are_reproduced_from_the_log(world: World) -> None:
    world.join("a")
    world.write(40)
    replica = world.members["a"].replicas[1]
    assert reread(replica, 8) == replica.digests()[8].hex()  # type: ignore[arg-type]
    assert reread(replica, 40) == replica.digests()[40].hex()  # type: ignore[arg-type]
    world.logs[1].trim(20)
    assert reread(replica, 24) is None  # type: ignore[arg-type]  # it begins before what is kept
    world.logs[1].lose(30)
    with pytest.raises(LogCorrupt):
        digest_at(replica.log, 24, replica.digests()[24], 32)


# -- versions, maintenance


def test_a_fold_version_is_raised_only_when_every_member_knows_it(world: World) -> None:
    world.join("a", "b")
    now = world.members["a"].round()
    with pytest.raises(SpaceError, match="not known to a, b"):
        raise_fold_version(now.nodes, now.hosted, 2)
    for replica in world.members["a"].replicas.values():
        replica._replica.version_max = 2
    raised = [node._replace(state=_at_version_2(node.state)) for node in now.nodes]
    raise_fold_version(raised, now.hosted, 2)
    assert [replica.fold_version for replica in world.members["a"].replicas.values()] == [2, 2]
    raise_fold_version(raised, now.hosted, 2)  # again: nothing changes
    with pytest.raises(SpaceError, match="Upgrade"):
        Membership(world.members["a"].replicas[0], Identity("old", "eu", "")).join()


def test_the_newest_version_is_raised_once_every_node_knows_it() -> None:
    class Shard:
        version = 1

        @contextmanager
        def view(self) -> Iterator[Any]:
            yield SimpleNamespace(head=lambda: SimpleNamespace(fold_version=self.version))

        def raise_fold_version(self, version: int) -> None:
            self.version = version

    duty = NewestVersion("a", JsonLog("a", stream=io.StringIO()))
    shards = [Shard(), Shard()]
    known = {"a": NEWEST_VERSION, "old": 2}

    def look() -> list[int]:
        nodes = [
            SimpleNamespace(name=name, member=True, state=SimpleNamespace(fold_version_max=version))
            for name, version in known.items()
        ]
        placement = {0: ("a", "old"), 1: ("old", "a")}
        hosted = dict(enumerate(shards))
        duty.look(SimpleNamespace(hosted=hosted, placement=placement, nodes=nodes))  # type: ignore[arg-type]
        return [shard.version for shard in shards]

    assert look() == [1, 1], "who may append what is decided first"
    for shard in shards:
        shard.version = IN_FORCE_VERSION
    assert look() == [2, 2], "a member would stop"
    known["old"] = NEWEST_VERSION
    assert look() == [NEWEST_VERSION, 2], "of the other shard another node is the first"


def _at_version_2(row: Any) -> Any:
    row.fold_version_max = 2
    return row


def test_a_part_that_fails_is_told_and_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.join("a")
    a = world.members["a"]
    tries: list[int] = []
    done: list[int] = []

    class Failing:
        def look(self, now: Round) -> None:
            tries.append(1)
            if len(tries) < 3:
                raise Unavailable("no answer")

    class Other:
        def look(self, now: Round) -> None:
            done.append(1)

    hosting = Hosting.__new__(Hosting)
    monkeypatch.setattr(Hosting, "ready", lambda self: a.replicas)
    maintenance = Maintenance(lambda: hosting, {"failing": Failing(), "other": Other()}, a.log, SeededEnv(0))
    now = a.round()
    try:
        maintenance._latest = (a.membership, now.nodes, now.placement)
        for _ in range(3):
            maintenance._round()
    finally:
        maintenance.close()
    assert len(done) == 3, "one part's failure stopped another"
    assert [len(a.events(event)) for event in ("failing_stalled", "failing_stalled_over")] == [1, 1]
