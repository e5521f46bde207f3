"""Snapshots that two nodes agree about: stored once, archives, trimming never too far, found by newcomers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onefold import config
from onefold.codec import Op
from onefold.env import SYSTEM
from onefold.errors import InvalidArgument, LogCorrupt, SpaceError
from onefold.fold.nodes import ops, state
from onefold.fold.nodes.state import SnapshotAt
from onefold.fold.system import Tick, system_op
from onefold.folds import folds as space_folds
from onefold.log.api import Entry
from onefold.node.snapshots import snapshots as snapshots_module
from onefold.node.snapshots.archive import read_archive, write_archive
from onefold.node.snapshots.snapshots import Snapshots, fetch_first, in_log
from onefold.node.snapshots.store import place_of
from onefold.node.snapshots.trimming import Trimming
from onefold.shard.memory import MemoryShard
from onefold.store.replica import next_digest
from support.node_members import (
    EVERY,
    World,
    small,  # noqa: F401
    world_of_members,  # noqa: F401
)

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
    vault = world.members["a"].vault
    vault.drop(gone.blob, vault.hide(gone.blob))
    world.look("trimming")
    assert world.logs[1].first == 1
    (said,) = world.members["a"].events("log_trim_blocked")
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
    resumed = MemoryShard(log.hold(1 << 60), space_folds(0, 2), SYSTEM, snapshot=path)
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


# -- archives, vaults, what cannot be read


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
