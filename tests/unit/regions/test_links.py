"""Links that are cut and healed, and clocks that are off, between regions of a folder."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onefold.available.ops import Accept
from onefold.available.reading import status
from onefold.available.stamps import CLOCK_AHEAD_MAX_MS, clock_at, ms_of
from onefold.errors import InvalidArgument, SpaceError
from onefold.regions.folder import OpenRegion
from onefold.regions.runner import append
from onefold.testing import links
from support.region_folder import Folder, converged, get, known, put, until

HOUR_MS = 3_600_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "space", 2)
    yield made
    made.close()


@pytest.fixture
def two(folder: Folder) -> tuple[OpenRegion, OpenRegion]:
    return folder.open("eu"), folder.open("us")


def states(region: OpenRegion) -> dict[str, str]:
    peers = region.peers
    assert peers is not None
    return {link.name: link.state for link in peers.links()}


def test_both_sides_go_on_while_a_link_is_cut(folder: Folder, two: tuple[OpenRegion, OpenRegion]) -> None:
    eu, us = two
    put(eu, "k", "1")
    until(lambda: get(us, "k") == "1")
    links.cut(folder.path, "eu", "us")
    until(lambda: states(eu) == {"us": "cut"} and states(us) == {"eu": "cut"})
    put(eu, "a", "eu")
    put(us, "b", "us")
    assert eu.peers is not None and eu.peers.latest(10.0) == {}, "nobody answers"
    time.sleep(2.5)  # as long as the longest pause between tries: nothing comes
    assert get(us, "a") is None and get(eu, "b") is None
    assert eu.peers.links()[0].silent_s > 2
    links.heal(folder.path)
    began = time.monotonic()
    until(lambda: get(us, "a") == "eu" and get(eu, "b") == "us" and converged(eu, us))
    assert time.monotonic() - began < 30
    until(lambda: states(eu) == {"us": "linked"} and states(us) == {"eu": "linked"})
    assert eu.peers.links()[0].silent_s == 0
    assert not (folder.path / "regions" / "links.json").exists()


def test_a_link_that_is_cut_one_way_lets_the_other_one_pass(
    folder: Folder, two: tuple[OpenRegion, OpenRegion]
) -> None:
    eu, us = two
    links.cut(folder.path, "eu", "us", one_way=True)
    until(lambda: states(us) == {"eu": "cut"})
    assert states(eu) == {"us": "linked"}
    put(eu, "a", "eu")
    put(us, "b", "us")
    until(lambda: get(eu, "b") == "us")
    assert get(us, "a") is None
    links.heal(folder.path, "us", "eu")
    until(lambda: get(us, "a") == "eu" and converged(eu, us))


def test_nothing_passes_that_is_written_after_a_cut(
    folder: Folder, two: tuple[OpenRegion, OpenRegion]
) -> None:
    eu, us = two
    for number in range(20):
        links.cut(folder.path, "eu", "us", one_way=True)
        put(eu, f"a{number}", "eu")
        put(us, f"b{number}", "us")
        until(lambda number=number: get(eu, f"b{number}") == "us", "the exchange has run since")
        assert get(us, f"a{number}") is None
        assert us.peers is not None and us.peers.latest(10.0) == {}
        links.heal(folder.path)
        until(lambda: converged(eu, us))


def test_effects_go_round_a_link_that_is_cut(folder: Folder) -> None:
    eu, us, asia = (folder.open(name) for name in ("eu", "us", "asia"))
    links.cut(folder.path, "eu", "us")
    put(eu, "a", "eu")
    put(us, "b", "us")
    until(lambda: converged(eu, us, asia) and get(us, "a") == "eu" and get(eu, "b") == "us")
    assert states(eu) == {"us": "cut", "asia": "linked"}


def test_a_region_that_is_made_behind_a_cut_link_waits(
    folder: Folder, two: tuple[OpenRegion, OpenRegion]
) -> None:
    eu, us = two
    folder.open("asia").close()
    asia = folder.open("asia")
    put(asia, "k", "1")
    links.cut(folder.path, "eu", "us")
    put(us, "k", "2")
    until(lambda: get(eu, "k") == "2", "by way of asia")


def test_a_clock_that_is_ahead_wins_nothing_elsewhere(
    folder: Folder, two: tuple[OpenRegion, OpenRegion]
) -> None:
    eu, us = two
    put(us, "k", "before")
    until(lambda: get(eu, "k") == "before")
    links.clock(folder.path, "us", ahead="1h")
    until(lambda: us.shards[0].env.wall_ms() > eu.shards[0].env.wall_ms() + HOUR_MS // 2)
    held = put(us, "k", "from the future").hlc
    until(lambda: known(eu).regions[2].held == held, "it is held")
    put(eu, "k", "now")
    until(lambda: get(us, "k") == "from the future" and known(us).have().get(1), "effects of others go on")
    assert get(eu, "k") == "now", "it waits"
    until(lambda: known(us).cap_ms > 0, "the clock is capped")
    assert known(us).cap_ms <= eu.shards[0].env.wall_ms() + CLOCK_AHEAD_MAX_MS
    later = put(us, "l", "soon").hlc
    assert ms_of(later) - ms_of(held) < 60_000, "it does not run further ahead"
    applied = eu.shards[0].applied
    time.sleep(3)  # more than one pause between tries
    assert eu.shards[0].applied <= applied + 3, "what is held is not appended again and again"
    with eu.shards[0].view() as view:
        found = status(view, eu.shards[0].env.wall_ms()).regions[1]
    assert found.state == "held" and found.ahead_ms > HOUR_MS // 2
    for shard in eu.shards:
        append(shard, Accept(2, later + clock_at(HOUR_MS)))  # with the beats that follow
    until(lambda: get(eu, "k") == "from the future" and get(eu, "l") == "soon", "accepted")
    until(lambda: converged(eu, us))


def test_effects_that_were_held_come_when_time_is_there(
    folder: Folder, two: tuple[OpenRegion, OpenRegion]
) -> None:
    eu, us = two
    links.clock(folder.path, "us", ahead="1h")
    until(lambda: us.shards[0].env.wall_ms() > eu.shards[0].env.wall_ms() + HOUR_MS // 2)
    put(us, "k", "v")
    until(lambda: known(eu).regions[2].held)
    links.clock(folder.path, "eu", ahead="1h")
    until(lambda: get(eu, "k") == "v")
    links.clock(folder.path, "eu", ahead=0)
    links.clock(folder.path, "us", ahead=0)
    until(lambda: us.shards[0].env.wall_ms() < time.time() * 1000 + 60_000)
    put(us, "l", "v")
    until(lambda: get(eu, "l") == "v" and converged(eu, us))


def test_what_is_cut_counts_for_regions_that_are_opened_later(folder: Folder) -> None:
    for name in ("eu", "us"):
        folder.open(name).close()
    links.cut(folder.path, "us", "eu", one_way=True)
    eu, us = folder.open("eu"), folder.open("us")
    put(us, "k", "v")
    until(lambda: states(eu) == {"us": "cut"})
    assert get(eu, "k") is None
    links.heal(folder.path)
    until(lambda: get(eu, "k") == "v")


def test_cutting_and_healing_again_changes_nothing(
    folder: Folder, two: tuple[OpenRegion, OpenRegion]
) -> None:
    links.cut(folder.path, "eu", "us")
    file = folder.path / "regions" / "links.json"
    before = file.read_bytes()
    links.cut(str(folder.path), "us", "eu")
    assert file.read_bytes() == before, "since when stays"
    links.clock(folder.path, "eu", ahead=5)
    links.heal(folder.path, "eu", "us")
    links.heal(folder.path)
    assert b"cut" in file.read_bytes() and b"us" not in file.read_bytes(), "clocks stay"
    links.clock(folder.path, "eu", ahead="0s")
    assert not file.exists()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: links.cut(path, "eu", "mars"), "no region 'mars'.*it has: eu, us"),
        (lambda path: links.cut(path, "mars", "eu"), "no region 'mars'"),
        (lambda path: links.cut(path, "eu", "eu"), "both are 'eu'"),
        (lambda path: links.cut(path, "eu", "a/b"), "cannot be the name"),
        (lambda path: links.cut(path, "eu", None), "cannot be the name"),
        (lambda path: links.cut(path, "eu", "us", one_way=1), "one_way must be"),
        (lambda path: links.cut(path / "nowhere", "eu", "us"), "no space in"),
        (lambda path: links.cut(5, "eu", "us"), "folder must be"),
        (lambda path: links.cut("nats://host:4222/main", "eu", "us"), "a folder is needed"),
        (lambda path: links.heal(path / "regions" / "..", "eu"), "two ends"),
        (lambda path: links.heal(path, "eu", "mars"), "no region 'mars'"),
        (lambda path: links.heal(path / "nowhere"), "no space in"),
        (lambda path: links.clock(path, "us", ahead=-1), "zero or more"),
        (lambda path: links.clock(path, "us", ahead="-1h"), "duration"),
        (lambda path: links.clock(path, "us", ahead=True), "seconds"),
        (lambda path: links.clock(path, "us", ahead=float("nan")), "finite"),
        (lambda path: links.clock(path, "us", ahead=1e13), "hundred years"),
        (lambda path: links.clock(path, "mars", ahead=1), "no region 'mars'"),
    ],
)
def test_wrong_arguments_change_nothing(
    folder: Folder, two: tuple[OpenRegion, OpenRegion], call: object, message: str
) -> None:
    with pytest.raises((InvalidArgument, SpaceError), match=message):
        call(folder.path)  # type: ignore[operator]
    assert not (folder.path / "regions" / "links.json").exists()


def test_a_space_without_regions_has_nothing_to_heal(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "space")
    try:
        links.heal(folder.path)
        with pytest.raises(InvalidArgument, match="it has: none"):
            links.cut(folder.path, "eu", "us")
        assert not (folder.path / "regions").exists()
    finally:
        folder.close()
