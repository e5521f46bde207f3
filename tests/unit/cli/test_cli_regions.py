"""Regions that go and come, from the command line."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold.testing import links
from support.command_line import ask
from support.region_folder import until


@pytest.fixture(params=[1, 2], ids=["one shard", "two shards"])
def space(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    at = tmp_path / "space"
    with of.connect(at, region="eu", shards=request.param) as eu, of.connect(at, region="us") as us:
        eu.counters("stock", floor=0).add("sku", 6)
        us.map("m", mode="available")["k"] = "us"
        eu.sync()
        us.sync()
    return at


def said(space: Path, *args: str) -> Any:
    result = ask(*args, "--json", url=space)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def states(space: Path, mine: str) -> dict[str, str]:
    return {one["name"]: one["state"] for one in said(space, "region", "list", "--region", mine)}


def test_an_evicted_region_says_so_and_the_others_go_on(space: Path) -> None:
    found = said(space, "region", "evict", "us")
    assert (found["name"], found["number"], found["missing"]) == ("us", 2, [])
    assert all(isinstance(seq, int) for seq in found["final"])
    assert states(space, "eu") == {"eu": "here", "us": "evicted"}
    with of.connect(space, region="us") as us:
        with pytest.raises(of.Unavailable, match="onefold region rejoin us"):
            us.map("m", mode="available")["k"] = "new"
        assert us.map("m", mode="available")["k"] == "us", "it is read"
        assert us.regions()[0].state == "evicted"
    with of.connect(space, region="eu") as eu:
        eu.map("m", mode="available")["k"] = "eu"
        eu.sync(timeout=10)


def test_a_program_that_runs_hears_of_its_eviction(space: Path) -> None:
    with of.connect(space, region="us") as us:
        carts = us.map("m", mode="available")
        carts["k"] = "1"
        said(space, "region", "evict", "us")

        def refused() -> bool:
            try:
                carts["k"] = "2"
            except of.Unavailable as error:
                return "evicted" in str(error)
            return False

        until(refused)
        assert us.regions()[0].state == "evicted"


def test_rights_of_an_evicted_region_are_reclaimed(space: Path) -> None:
    with of.connect(space, region="eu") as eu, of.connect(space, region="us") as us:
        stock = eu.counters("stock", floor=0)
        stock.move("sku", 4, to="us")
        eu.sync()
        us.sync()
        assert (stock.here("sku"), us.counters("stock", floor=0).here("sku")) == (2, 4)
    said(space, "region", "evict", "us", "--reclaim-quota", "--region", "eu")
    with of.connect(space, region="eu") as eu:
        assert eu.counters("stock", floor=0).here("sku") == 6


def test_what_is_not_agreed_is_told(space: Path) -> None:
    with of.connect(space, region="asia") as asia:
        asia.map("m", mode="available")["x"] = 1
        asia.sync()
        links.cut(space, "eu", "asia")
        import onefold.cli.collections.changing_regions as commands

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(commands, "AGREE_S", 0.2)
            found = run_here(space, "region", "evict", "us", "--json")
        assert found["missing"] == ["asia"] and None in found["final"]
        links.heal(space)
    with of.connect(space, region="eu") as eu:
        until(lambda: eu._available.known(0).regions[2].final)


def test_a_token_that_saw_what_counts_nowhere_is_refused_at_once(space: Path) -> None:
    links.cut(space, "eu", "us")
    with of.connect(space, region="us") as us:
        us.map("m", mode="available").update({n: n for n in range(10)})
        token = us.session.token
    said(space, "region", "evict", "us", "--region", "eu")
    with of.connect(space, region="eu", session=token, timeout=60) as eu:
        began = time.monotonic()
        with pytest.raises(of.TokenError, match="the region was evicted"):
            [eu.map("m", mode="available").get(n) for n in range(10)]
        assert time.monotonic() - began < 30, "it does not wait for the whole timeout"
        eu.session.forget("us")
        assert eu.map("m", mode="available").get(1) is None


def run_here(space: Path, *args: str) -> Any:
    from typer.testing import CliRunner

    from onefold.cli.app import app

    result = CliRunner().invoke(app, [*args, "--url", str(space)])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["evict", "us", "--region", "us"], "evicted by another one"),
        (["evict", "de"], "there is no region de"),
        (["accept", "us"], "nothing of region us waits"),
        (["accept", "de"], "no other region de"),
        (["accept", "eu", "--region", "eu"], "no other region eu"),
    ],
)
def test_what_cannot_be_done_is_refused(space: Path, args: list[str], message: str) -> None:
    result = ask("region", *args, url=space)
    assert result.returncode in (1, 2) and message in " ".join(result.stderr.split()), result.stderr
    assert states(space, "eu") == {"eu": "here", "us": "linked"}


def test_an_eviction_is_not_done_twice_and_not_of_the_last(space: Path) -> None:
    said(space, "region", "evict", "us")
    result = ask("region", "evict", "us", url=space)
    assert result.returncode == 1 and "was evicted before" in result.stderr
    result = ask("region", "evict", "eu", url=space)
    assert result.returncode == 1 and "only one" in result.stderr


def lose_the_end(space: Path) -> None:
    """The disk of us is put back from a copy, and eu knows more of us than us does."""
    place, copy = space / "regions" / "us", space / "copy"
    shutil.copytree(place, copy)
    with of.connect(space, region="us") as us, of.connect(space, region="eu") as eu:
        us.map("m", mode="available").update(dict.fromkeys(range(10), "known to eu"))
        eu.sync()
        us.sync()
    shutil.rmtree(place)
    copy.rename(place)


def test_a_region_that_lost_its_end_says_so(space: Path) -> None:
    lose_the_end(space)
    assert states(space, "eu") == {"eu": "here", "us": "lost"}
    assert states(space, "us") == {"us": "here", "eu": "lost"}
    with of.connect(space, region="us") as us:
        us.map("m", mode="available").update(dict.fromkeys(range(40), "other"))
        assert us.map("m", mode="available")[1] == "other", "it serves on"
    with of.connect(space, region="eu") as eu:
        assert eu.map("m", mode="available")[1] == "known to eu"
    assert states(space, "eu")["us"] in ("lost", "diverged")


@pytest.fixture
def shifted(space: Path) -> Iterator[Path]:
    links.clock(space, "us", ahead="1h")
    yield space
    links.clock(space, "us", ahead=0)


def test_what_waits_for_a_clock_is_accepted(shifted: Path) -> None:
    with of.connect(shifted, region="eu") as eu:
        links.cut(shifted, "eu", "us")
        with of.connect(shifted, region="us") as us:
            for n in range(20):
                us.map("m", mode="available")[f"k{n}"] = n
        links.heal(shifted)
        until(lambda: eu.regions()[1].state == "held")
        found = said(shifted, "region", "accept", "us", "--region", "eu")
        assert 3000 < found["ahead_s"] < 3700
        until(lambda: all(eu.map("m", mode="available").get(f"k{n}") == n for n in range(20)))


def test_a_region_that_lost_its_end_or_its_folder_comes_again(space: Path) -> None:
    lose_the_end(space)
    with of.connect(space, region="us") as us:
        us.counters("likes").add("page", 3)
    said(space, "region", "evict", "us")
    found = said(space, "region", "rejoin", "us")
    assert (found["number"], found["again"]) == (3, 0)
    lines = [json.loads(line) for line in Path(found["files"][0]).read_text("utf-8").splitlines()]
    assert any(line["write"] == {"add": 3} for line in lines)
    shutil.rmtree(space / "regions" / "us")
    result = ask("region", "list", "--region", "us", url=space)
    assert result.returncode == 1 and "onefold region evict us" in result.stderr
    said(space, "region", "evict", "us")
    assert said(space, "region", "rejoin", "us")["number"] == 4
    with of.connect(space, region="us") as us:
        us.sync()
        assert us.map("m", mode="available")[1] == "known to eu"
        us.map("m", mode="available")["after"] = 1
