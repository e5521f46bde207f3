"""Regions of a folder in one process: made, opened, closed, and what they learn of each other."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import onefold as of
from onefold.backup.backup import backup, restore
from onefold.doctor.embedded import check_space
from onefold.errors import InvalidArgument, SpaceError
from onefold.fold.nodes.ops import EvictRegion, RegionIs, RejoinRegion, decode_region_outcome, nodes_op
from onefold.folds import folds
from onefold.ids import REGIONS_MAX
from onefold.regions.folder import OpenRegion
from support.region_folder import Folder, converged, delete, do, get, known, put, until


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Folder]:
    made = Folder(tmp_path / "space", request.param)
    yield made
    made.close()


@pytest.fixture
def one(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "space", 1)
    yield made
    made.close()


def exchanges() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "onefold-exchange"]


def files(folder: Path) -> dict[Path, bytes]:
    """All files but those in which SQLite notes who reads."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm"))
    return {path: path.read_bytes() for path in found}


def test_a_folder_without_regions_gets_a_local_one(folder: Folder) -> None:
    region = folder.open(None)
    assert (region.name, region.number) == ("local", 1)
    assert put(region, "k", "v").region == 1
    assert region.peers is None
    assert exchanges() == [], "nothing runs where there is one region"
    assert folder.open(None).name == "local"


def test_effects_reach_the_other_region(folder: Folder) -> None:
    eu = folder.open("eu")
    put(eu, "before", "1")
    us = folder.open("us")
    assert (eu.number, us.number) == (1, 2)
    until(lambda: get(us, "before") == "1")
    for shard in range(len(folder.shards)):
        put(eu, "a", "eu", shard)
        put(us, "b", "us", shard)
        until(lambda shard=shard: get(us, "a", shard) == "eu" and get(eu, "b", shard) == "us")
    until(lambda: converged(eu, us))


def test_three_regions_converge_and_collect_what_is_gone(folder: Folder) -> None:
    regions = [folder.open(name) for name in ("eu", "us", "asia")]
    for number, region in enumerate(regions):
        put(region, f"k{number}", "v")
    until(lambda: converged(*regions) and get(regions[0], "k2") == "v")
    delete(regions[1], "k0")
    until(lambda: get(regions[2], "k0") is None)
    until(lambda: not any(known(region).gone_rows for region in regions), "gone rows are collected")


def test_an_idle_region_hears_of_an_effect_soon(one: Folder) -> None:
    eu, us = one.open("eu"), one.open("us")
    delays = []
    for number in range(15):
        time.sleep(0.02)  # idle, not a wait for a state
        began = time.monotonic()
        seq = put(eu, "k", str(number)).seq
        until(lambda seq=seq: known(us).have().get(1) == seq)
        delays.append(time.monotonic() - began)
    assert sorted(delays)[len(delays) // 2] < 0.5, delays


def test_closing_leaves_no_thread_file_or_lock(folder: Folder) -> None:
    eu, us = folder.open("eu"), folder.open("us")
    put(us, "k", "v")
    eu.close()
    us.close()
    us.close()
    assert exchanges() == []
    for region in ("eu", "us"):
        for shard in range(len(folder.shards)):
            place = folder.path / "regions" / region
            place = place if shard == 0 else place / "shards" / str(shard)
            assert list((place / "wake").iterdir()) == [] and list((place / "members").iterdir()) == []
    assert list((folder.path / "regions" / ".wake").iterdir()) == []
    again = folder.open("eu")
    assert until(lambda: get(again, "k")) == "v"


def test_a_region_that_was_alone_notices_the_second_one(one: Folder) -> None:
    eu = one.open("eu")
    put(eu, "a", "1")
    other = Folder(one.path)
    us = other.open("us")
    put(us, "b", "2")
    other.close()
    assert exchanges() == []

    def heard() -> bool:
        eu.look()
        return get(eu, "b") == "2"

    until(heard)
    assert eu.peers is not None


def test_names_that_are_refused_make_nothing(one: Folder) -> None:
    for name in ("", "a/b", "x" * 33, "witness", "..", "ü"):
        with pytest.raises(InvalidArgument, match="region"):
            one.open(name)
    assert not (one.path / "regions").exists()
    one.open("eu")
    with pytest.raises(InvalidArgument, match="apart from case"):
        one.open("EU")


def test_several_regions_have_to_be_named(one: Folder) -> None:
    one.open("eu")
    assert one.open(None).name == "eu"
    one.open("us")
    with pytest.raises(InvalidArgument, match="eu, us"):
        one.open(None)


def test_no_more_regions_than_a_space_may_have(one: Folder) -> None:
    from onefold.fold.nodes.ops import AddRegion

    one.open("r0")
    for number in range(1, REGIONS_MAX):
        one.shards[0].submit([nodes_op(AddRegion(f"r{number}"))])
    with pytest.raises(InvalidArgument, match=f"{REGIONS_MAX} regions at most"):
        one.open("more")
    assert not (one.path / "regions" / "more").exists()


def test_what_may_make_nothing_makes_nothing(one: Folder) -> None:
    for options in ({"create": False}, {"read_only": True}):
        for name in (None, "eu"):
            with pytest.raises(SpaceError, match="there is no region"):
                one.open(name, **options)
    assert not (one.path / "regions").exists()
    with one.shards[0].view() as view:
        assert view.head().applied == 0


def test_a_read_only_region_is_read_and_writes_nothing(one: Folder) -> None:
    eu = one.open("eu")
    put(eu, "k", "v")
    one.open("us").close()
    eu.close()
    before = files(one.path / "regions")
    reader = one.open("eu", read_only=True)
    assert get(reader, "k") == "v"
    peers = reader.peers
    assert peers is not None and [link.name for link in peers.links()] == ["us"]
    assert peers.latest(10.0).keys() == {2}
    assert exchanges() == []
    assert files(one.path / "regions") == before


def test_a_region_that_is_lost_is_not_made_again(one: Folder) -> None:
    one.open("eu").close()
    shutil.rmtree(one.path / "regions" / "eu")
    for options in ({}, {"create": False}, {"read_only": True}):
        with pytest.raises(SpaceError, match="was lost"):
            one.open("eu", **options)
    assert not (one.path / "regions" / "eu").exists()


def test_the_folder_of_another_region_is_refused(one: Folder, tmp_path: Path) -> None:
    one.open("eu").close()
    other = Folder(tmp_path / "other")
    other.open("eu").close()
    other.close()
    shutil.rmtree(one.path / "regions" / "eu")
    shutil.copytree(tmp_path / "other" / "regions" / "eu", one.path / "regions" / "eu")
    with pytest.raises(SpaceError, match="another one was put there"):
        one.open("eu")


def test_the_folder_of_a_region_is_not_opened_as_a_space(one: Folder) -> None:
    one.open("eu").close()
    place = one.path / "regions" / "eu"
    for options in ({}, {"read_only": True}):
        with pytest.raises(SpaceError, match=r"folder of a region.*region='eu'"):
            of.connect(place, **options)
    eu = one.open("eu")
    put(eu, "k", "v")


def test_backup_and_doctor_leave_regions_out(one: Folder, tmp_path: Path) -> None:
    eu = one.open("eu")
    put(eu, "k", "v")
    one.open("us")
    with of.connect(one.path) as db:
        db.map("m")["k"] = 1
        checks = check_space(db._shards, folds)
        assert {check.status for check in checks} <= {"ok", "warn"}, checks
        backup(db._shards, tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again", folds)
    again = Folder(tmp_path / "again")
    try:
        assert not (tmp_path / "again" / "regions").exists()
        us = again.open("us")
        assert us.number == 2 and get(us, "k") is None, "a restored space makes its regions again"
        put(us, "l", "v")
        eu = again.open("eu")
        until(lambda: get(eu, "l") == "v" and converged(eu, us))
    finally:
        again.close()


def test_a_space_without_regions_stays_as_it_was(one: Folder) -> None:
    with one.shards[0].view() as view:
        assert view.head().fold_version == 1
    one.open("eu")
    with one.shards[0].view() as view:
        assert view.head().fold_version == 5


def test_peers_say_how_far_they_are(folder: Folder) -> None:
    eu, us = folder.open("eu"), folder.open("us")
    last = len(folder.shards) - 1
    seq = put(us, "k", "v", last).seq
    peers = eu.peers
    assert peers is not None
    assert peers.latest(60.0)[2][last] == seq
    assert [(link.number, link.name, link.state) for link in peers.links()] == [(2, "us", "linked")]


def lose_the_end(one: Folder) -> tuple[OpenRegion, OpenRegion]:
    """The log of us loses two effects that eu knows: an older copy of its folder is put there."""
    us_folder, kept = one.path / "regions" / "us", one.path.parent / "kept"
    eu, us = one.open("eu"), one.open("us")
    put(us, "k", "1")
    until(lambda: converged(eu, us) and get(eu, "k") == "1")
    us.close()
    eu.close()
    shutil.copytree(us_folder, kept)
    eu, us = one.open("eu"), one.open("us")
    put(us, "k", "2")
    put(us, "l", "2")
    until(lambda: get(eu, "l") == "2")
    us.close()
    eu.close()
    shutil.rmtree(us_folder)
    kept.rename(us_folder)
    return one.open("eu"), one.open("us")


def link_states(region: OpenRegion) -> set[str]:
    assert region.peers is not None
    return {link.state for link in region.peers.links()}


def test_a_region_that_lost_its_end_is_an_alarm_and_both_serve(one: Folder) -> None:
    eu, us = lose_the_end(one)
    assert link_states(eu) == link_states(us) == {"lost"}
    put(eu, "e", "v")
    before = known(us).have()
    time.sleep(2.5)  # as long as the longest pause between tries
    assert known(us).have() == before and get(us, "e") is None, "nothing is repaired in silence"
    assert get(us, "k") == "1" and get(eu, "k") == "2", "both serve what they have"


def test_other_effects_under_the_same_numbers_are_an_alarm(one: Folder) -> None:
    eu, us = lose_the_end(one)
    while known(us).have()[2] < known(eu).have()[2]:
        put(us, "m", "other")
    until(lambda: link_states(eu) == link_states(us) == {"diverged"})
    put(us, "n", "other")
    time.sleep(1)
    assert get(eu, "m") is None and get(eu, "n") is None


def test_a_region_that_lost_its_end_is_evicted_and_rejoins(one: Folder) -> None:
    eu, us = lose_the_end(one)
    put(us, "m", "unseen")
    decide(one, EvictRegion("us"))
    until(lambda: known(us).retired and known(eu).regions[2].out)
    us.close()
    decide(one, RejoinRegion("us"))
    until(lambda: not list((one.path / "regions" / "us" / "members").iterdir()))
    us = one.open("us")
    put(us, "n", "v")
    until(lambda: converged(eu, us) and get(eu, "n") == "v")
    assert get(us, "k") == get(us, "l") == "2"


def decide(folder: Folder, op: EvictRegion | RejoinRegion) -> int:
    outcome = decode_region_outcome(folder.shards[0].submit([nodes_op(op)])[0])
    assert isinstance(outcome, RegionIs), outcome
    return outcome.number


def test_an_evicted_region_is_read_only_and_comes_again(folder: Folder) -> None:
    eu, us = folder.open("eu"), folder.open("us")
    put(us, "k", "before")
    until(lambda: get(eu, "k") == "before")
    decide(folder, EvictRegion("us"))
    until(lambda: all(known(us, shard).retired for shard in range(len(folder.shards))))
    until(lambda: known(eu).regions[2].out, "it counts no more")
    assert do(us.shards[0]).reason == "evicted"
    assert eu.peers is None
    us.close()
    us = folder.open("us", create=False)
    assert us.number == 2 and get(us, "k") == "before", "it can still be read"
    us.close()
    assert decide(folder, RejoinRegion("us")) == 3
    with pytest.raises(SpaceError, match="not complete yet"):
        folder.open("us", create=False)
    us = folder.open("us")
    assert us.number == 3 and (folder.path / "regions" / "us.2").is_dir()
    until(lambda: get(us, "k") == "before")
    put(us, "k", "after")
    until(lambda: get(eu, "k") == "after")
    until(lambda: converged(eu, us))


def test_a_region_that_is_in_use_does_not_come_again(one: Folder) -> None:
    one.open("eu")
    us = one.open("us")
    decide(one, EvictRegion("us"))
    until(lambda: known(us).retired)
    decide(one, RejoinRegion("us"))
    with pytest.raises(SpaceError, match="still have it open"):
        one.open("us")
    us.close()
    until(lambda: not list((one.path / "regions" / "us" / "members").iterdir()), "the exchange leaves it")
    assert one.open("us").number == 3
