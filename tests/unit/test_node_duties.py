"""What a node does for the space: snapshots that two agree about, archives, trimming never too far, looking again."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from onefold import config
from onefold.codec import Op
from onefold.compute.blob_backends import DirectoryBackend
from onefold.env import SYSTEM, SeededEnv
from onefold.errors import InvalidArgument, LogCorrupt, SpaceError, Unavailable
from onefold.fold.log_space import LogSpace
from onefold.fold.nodes import ops, state
from onefold.fold.nodes.state import SnapshotAt
from onefold.fold.replica import next_digest
from onefold.fold.system import Tick, system_op
from onefold.folds import folds as space_folds
from onefold.log.api import Entry
from onefold.log.memory import MemoryLog
from onefold.node import snapshots as snapshots_module
from onefold.node.archive import read_archive, write_archive
from onefold.node.duties import Round, Upkeep
from onefold.node.hosting import Hosting
from onefold.node.logging import JsonLog
from onefold.node.membership import Identity, Membership
from onefold.node.placement import Placement
from onefold.node.snapshots import Snapshots, fetch_first, in_log
from onefold.node.testimony import Testimony as Comparing
from onefold.node.testimony import digest_at, reread
from onefold.node.tracing import NoTracing
from onefold.node.trimming import Trimming
from onefold.node.vault import Vault, place_of
from onefold.node.versions import raise_fold_version
from onefold.state.ops import Commit, Put, state_op

EVERY = 32


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "SNAPSHOT_EVERY_OFFSETS", EVERY)
    monkeypatch.setattr(config, "DIGEST_EVERY_OFFSETS", 8)


class Replica(LogSpace):
    """A replica in memory that comes to rest at boundaries, as persistent ones do."""

    boundary: Callable[[int, Any], None] | None = None

    def _apply_some(self, own: tuple[int, bytes] | None) -> None:
        before = self._replica.head.applied
        stop = (before // EVERY + 1) * EVERY
        held, self._log = self._log, self._log._log.hold(stop)  # type: ignore[attr-defined]
        try:
            super()._apply_some(own)
        finally:
            self._log = held
        if self.boundary is not None and self._replica.head.applied % EVERY == 0:
            self._con.execute("BEGIN")
            self.boundary(self._replica.head.applied, self._con)
            if self._con.in_transaction:
                self._con.execute("ROLLBACK")

    @property
    def history(self) -> frozenset[str]:
        return self._replica.history

    def digests(self) -> Mapping[int, bytes]:
        with self._opened:
            return dict(self._con.execute("SELECT offset, digest FROM digests").fetchall())  # type: ignore[arg-type]


class Member:
    """A node's duties over logs in memory, driven step by step."""

    def __init__(self, name: str, logs: list[MemoryLog], folder: Path, order: list[str]) -> None:
        self.name = name
        self.said = io.StringIO()
        self.log = JsonLog(name, stream=self.said)
        self.order = order
        self.vault = Vault(DirectoryBackend(folder / "vault"), folder / name / "scratch", apart=True)
        self.snapshots = Snapshots(name, self.vault, self.log, NoTracing(), SYSTEM)
        self.trimming = Trimming(name, self.vault, self.log, NoTracing(), SYSTEM)
        self.halted: dict[int, str] = {}
        self.testimony = Comparing(
            name, self.log, NoTracing(), hashed=self.snapshots.said, refold=lambda shard, at: None,
            halt=self.halted.__setitem__,
        )  # fmt: skip
        self.replicas: dict[int, Replica] = {}
        for shard, log in enumerate(logs):
            replica = Replica(log.hold(1 << 60), space_folds(shard, len(logs)), SYSTEM, replica=True)
            replica.boundary = lambda offset, con, shard=shard: self.at_boundary(shard, offset, con)
            self.replicas[shard] = replica
        self.membership = Membership(self.replicas[0], Identity(name, "eu", ""))
        self.membership.join()

    def at_boundary(self, shard: int, offset: int, con: Any) -> None:
        history = self.replicas[shard].history
        self.snapshots.at_boundary(
            shard,
            offset,
            con,
            history=history,
            incarnation=self.replicas[shard].incarnation,
            hosts=self.order,
        )

    def round(self) -> Round:
        for replica in self.replicas.values():
            replica.catch_up()
        placement: Placement = {shard: tuple(self.order) for shard in self.replicas}
        with self.replicas[0].view() as view:
            nodes = state.read_nodes(view)
        return Round(self.membership, nodes, placement, self.replicas, SYSTEM.boot_s(), self.replicas[0].view)  # type: ignore[arg-type]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.said.getvalue().splitlines()) if line["event"] == event]

    def close(self) -> None:
        for replica in self.replicas.values():
            replica.close()


@dataclass
class World:
    folder: Path
    logs: list[MemoryLog] = field(default_factory=lambda: [MemoryLog(), MemoryLog()])
    members: dict[str, Member] = field(default_factory=dict)
    order: list[str] = field(default_factory=lambda: ["a", "b"])

    def join(self, *names: str) -> None:
        for name in names:
            self.members[name] = Member(name, self.logs, self.folder, self.order)

    def write(self, upto: int, shard: int = 1) -> None:
        """Append to a shard's log up to an offset, and let everybody apply it."""
        space = self.members[self.order[0]].replicas[shard]
        while space.catch_up() < upto:
            put = Put("m", ((f"k{space.applied}".encode(), b"v"),))
            space.submit([state_op(Commit((), (), (put,)))])
        for member in self.members.values():
            member.round()

    def look(self, *parts: str) -> None:
        for member in self.members.values():
            for part in parts or ("snapshots", "trimming"):
                getattr(member, part).look(member.round())

    def snapshots(self, shard: int = 1) -> list[SnapshotAt]:
        member = self.members[self.order[0]]
        with member.round().view() as view:
            return state.snapshots(view, shard)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for member in made.members.values():
        member.close()


# -- snapshots and trimming


def test_a_snapshot_is_stored_once_two_agree_by_the_first_node(world: World) -> None:
    world.join("a", "b")
    world.write(EVERY + 3)
    world.members["a"].snapshots.look(world.members["a"].round())
    assert world.snapshots() == []
    world.look("snapshots")  # b says the same
    world.look("snapshots")
    (made,) = world.snapshots()
    assert made.offset == EVERY
    assert world.members["a"].vault.has(made.blob)
    assert [member.snapshots.counts.stored for member in world.members.values()] == [1, 0]
    assert not list(world.members["a"].vault.scratch.iterdir())


def test_the_second_node_stores_it_when_the_first_does_not(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.join("a", "b")
    world.write(EVERY + 3)
    monkeypatch.setattr(Snapshots, "_store", _unless("a", Snapshots._store))
    for _ in range(3):
        world.look("snapshots")
    assert world.snapshots() == []
    monkeypatch.setattr(config, "SNAPSHOT_TAKEOVER_S", 0.0)
    world.look("snapshots")
    assert len(world.snapshots()) == 1
    assert world.members["b"].snapshots.counts.stored == 1


def _unless(name: str, store: Callable[..., None]) -> Callable[..., None]:
    def run(self: Snapshots, *args: Any) -> None:
        if self._name != name:
            store(self, *args)

    return run


def test_logs_are_archived_and_trimmed_below_the_older_of_two_snapshots(world: World) -> None:
    world.join("a", "b")
    for at in range(1, 4):
        world.write(at * EVERY + 3)
        for _ in range(3):
            world.look()
    kept = [one.offset for one in world.snapshots()]
    assert kept == [2 * EVERY, 3 * EVERY]
    assert world.logs[1].first == 2 * EVERY + 1
    member = world.members["a"]
    with member.round().view() as view:
        ranges = [(one.start, one.stop, one.blob) for one in state.archives(view, 1)]
    assert [(start, stop) for start, stop, _ in ranges] == [(1, 32), (33, 64), (65, 96)]
    archived = [entry for *_, blob in ranges for entry in read_archive(member.vault.fetch(blob))]  # type: ignore[arg-type]
    assert [entry.offset for entry in archived] == list(range(1, 97))
    digest = b""
    for entry in archived:
        digest = next_digest(digest, entry.data)
    assert digest == member.replicas[1].digests()[96], "the archive has other bytes than the log had"
    assert world.members["b"].trimming.counts.trimmed == 0  # it is not the first of the shard


def test_nothing_is_trimmed_without_agreement(world: World) -> None:
    world.join("a", "b")
    for at in range(1, 5):
        world.write(at * EVERY + 3)
        world.members["a"].snapshots.look(world.members["a"].round())  # b never says a word
        world.members["a"].trimming.look(world.members["a"].round())
    assert [log.first for log in world.logs] == [1, 1]


def test_nothing_is_trimmed_whose_snapshot_is_not_there(world: World) -> None:
    world.join("a", "b")
    for at in (1, 2):
        world.write(at * EVERY + 3)
        for _ in range(2):
            world.look("snapshots")
    gone = world.snapshots()[0]
    world.members["a"].vault.delete(gone.blob)
    world.look("trimming")
    assert world.logs[1].first == 1
    (said,) = world.members["a"].events("log_not_trimmed")
    assert said["level"] == "error"
    assert f"offset {gone.offset}" in said["reason"]


def test_nothing_is_trimmed_that_is_not_archived(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.join("a", "b")
    monkeypatch.setattr(Trimming, "_archive", lambda *_: None)
    for at in (1, 2, 3):
        world.write(at * EVERY + 3)
        for _ in range(3):
            world.look()
    assert len(world.snapshots()) == 2
    assert world.logs[1].first == 1


def test_a_trim_that_was_decided_and_not_done_is_done_later(world: World) -> None:
    world.join("a", "b")
    for at in (1, 2):
        world.write(at * EVERY + 3)
        for _ in range(2):
            world.look("snapshots")
    a = world.members["a"]
    log = a.replicas[1].log
    trim, log.trim = log.trim, lambda before: None  # type: ignore[method-assign]  # it dies between record and purge
    a.trimming.look(a.round())
    assert world.logs[1].first == 1
    log.trim = trim  # type: ignore[method-assign]
    a.trimming.look(a.round())
    assert world.logs[1].first == EVERY + 1


def test_snapshots_that_nothing_names_are_deleted(world: World) -> None:
    world.join("a", "b")
    for at in range(1, 9):
        world.write(at * EVERY + 3)
        for _ in range(3):
            world.look()
    world.look()
    vault = world.members["a"].vault
    with world.members["a"].round().view() as view:
        named = {one.blob for one in state.snapshots(view, 1)} | {one.blob for one in state.archives(view, 1)}
        named |= {one.blob for one in state.snapshots(view, 0)} | {
            one.blob for one in state.archives(view, 0)
        }
    there = {path.name for path in (world.folder / "vault").glob("??/*")}
    assert named <= there
    assert there == named
    assert all(vault.has(blob) for blob in named)


# -- finding a snapshot


def test_a_newcomer_finds_the_snapshot_of_shard_0_in_its_log(world: World) -> None:
    world.join("a", "b")
    log = world.logs[0]
    assert in_log(log.hold(1 << 60)) is None
    for at in range(1, 4):
        world.write(at * EVERY + 3, shard=0)
        for _ in range(3):
            world.look()
        world.write(at * EVERY + 12, shard=0)
    found = in_log(log.hold(1 << 60))
    assert found == world.snapshots(0)[-1]
    assert log.first > 1
    assert found is not None and found.offset >= log.first - 1
    path = fetch_first(world.members["b"].vault, [found], world.members["b"].log)
    assert path is not None
    resumed = LogSpace(log.hold(1 << 60), space_folds(0, 2), SYSTEM, snapshot=path)
    world.members["a"].round()
    assert resumed.state_digest() == world.members["a"].replicas[0].state_digest()


def test_one_word_is_no_agreement_in_the_log_either(world: World) -> None:
    world.join("a")
    a = world.members["a"].membership
    for _ in range(3):
        a.say(ops.StateHash("a", a.epoch, 0, EVERY, "h", "blob", 5))
    assert in_log(world.logs[0].hold(1 << 60)) is None
    world.members["a"].replicas[0].submit([Op("nodes", b"\xc1")])
    world.logs[0].append(b"garbage")
    assert in_log(world.logs[0].hold(1 << 60)) is None


def test_a_snapshot_that_is_gone_or_damaged_is_passed_over(world: World, tmp_path: Path) -> None:
    world.join("a")
    a = world.members["a"]
    (tmp_path / "one").write_bytes(b"good")
    good = a.vault.store(tmp_path / "one")
    (tmp_path / "two").write_bytes(b"damaged")
    bad = a.vault.store(tmp_path / "two")
    (tmp_path / "vault" / bad.blob[:2] / bad.blob).write_bytes(b"other")
    candidates = [
        SnapshotAt(1, 96, "h", "f" * 64, 1),
        SnapshotAt(1, 64, "h", bad.blob, 1),
        SnapshotAt(1, 32, "h", *good),
    ]
    path = fetch_first(a.vault, candidates, a.log)
    assert path is not None and path.read_bytes() == b"good"
    assert a.events("snapshot_missing") and a.events("snapshot_unusable")
    assert fetch_first(a.vault, candidates[:2], a.log) is None


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
    world.look("testimony")
    assert [sorted(member.halted) for member in world.members.values()] == [[], [], [1]]
    assert "c" in world.members["c"].halted[1]
    assert world.members["a"].events("nodes_differ") and len(world.members["a"].testimony.open) == 1
    assert world.members["a"].events("looked_again")[0]["verdict"] == "sound"


def test_of_two_who_differ_nobody_is_believed_without_looking(world: World) -> None:
    world.join("a", "b")
    world.write(EVERY + 3)
    right = world.members["a"].snapshots.said(1, EVERY)
    b = world.members["b"].snapshots._shards[1]
    assert b.made is not None
    b.made, b.hashes[EVERY] = b.made._replace(hash="wrong"), "wrong"
    world.look("snapshots")
    for member in world.members.values():
        member.testimony._refold = lambda shard, offset: None
    world.look("testimony")
    assert not any(member.halted for member in world.members.values()), "it could not look, and judged"
    for member in world.members.values():
        member.testimony._refold = lambda shard, offset: right
        member.testimony._judged.clear()
    world.look("testimony")
    assert [sorted(member.halted) for member in world.members.values()] == [[], [1]]


def test_a_word_of_an_earlier_copy_is_not_held_against_this_one(world: World) -> None:
    world.order.append("c")
    world.join("a", "b", "c")
    world.write(EVERY + 3)
    c = world.members["c"].membership
    c.say(ops.StateHash("c", c.epoch, 1, EVERY, "of a copy long replaced"))
    for name in ("a", "b"):
        world.members[name].snapshots.look(world.members[name].round())
    world.look("testimony")
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


# -- archives, vaults, versions, upkeep


def test_an_archive_gives_back_what_went_in(tmp_path: Path) -> None:
    entries = [Entry(offset, bytes([offset]) * (offset * 1000), offset * 7) for offset in range(5, 60)]
    assert write_archive(tmp_path / "a", entries) == (5, 59)
    assert list(read_archive(tmp_path / "a")) == entries


def test_an_archive_has_no_gap_and_is_not_empty(tmp_path: Path) -> None:
    with pytest.raises(LogCorrupt, match="offset 2 is missing"):
        write_archive(tmp_path / "a", [Entry(1, b"x", 0), Entry(3, b"x", 0)])
    with pytest.raises(LogCorrupt, match="nothing"):
        write_archive(tmp_path / "a", [])


@pytest.mark.parametrize("cut", [0, 3, 12, 400])
def test_a_cut_archive_is_told(tmp_path: Path, cut: int) -> None:
    noise = random.Random(3).randbytes
    write_archive(tmp_path / "a", [Entry(offset, noise(500), 0) for offset in range(1, 40)])
    data = (tmp_path / "a").read_bytes()
    (tmp_path / "a").write_bytes(data[:cut] if cut < 100 else data[:-cut])
    with pytest.raises(LogCorrupt):
        list(read_archive(tmp_path / "a"))


def test_where_snapshots_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert place_of("jetstream") == "jetstream"
    assert place_of("vault") == f"dir:{tmp_path}/vault"
    assert place_of("dir:/x") == "dir:/x"
    assert place_of("s3://bucket/p") == "s3://bucket/p"
    for text in ("", "dir:relative", "s3://user:secret@bucket/p", "file:///x"):
        with pytest.raises(InvalidArgument) as caught:
            place_of(text)
        assert "secret" not in str(caught.value)


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
    upkeep = Upkeep(lambda: hosting, {"failing": Failing(), "other": Other()}, a.log, SeededEnv(0))
    now = a.round()
    try:
        upkeep._latest = (a.membership, now.nodes, now.placement)
        for _ in range(3):
            upkeep._round()
    finally:
        upkeep.close()
    assert len(done) == 3, "one part's failure stopped another"
    assert [len(a.events(event)) for event in ("failing_waits", "failing_waits_over")] == [1, 1]


def test_a_state_that_cannot_be_read_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.join("a")
    monkeypatch.setattr(snapshots_module, "write_snapshot", _raise)
    world.write(EVERY + 1)
    a = world.members["a"]
    assert a.events("snapshot_failed")[0]["level"] == "error"
    assert a.snapshots.counts.failed >= 1
    a.replicas[1].submit([system_op(Tick())])


def _raise(*_: Any) -> None:
    raise SpaceError("the snapshot cannot be written: disk full")
