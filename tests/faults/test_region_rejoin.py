"""A region that was evicted comes again in a folder, with kills at every step: what nobody took of it counts once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from faults.region_rejoin import PLACES
from kit.environment import with_tests
from onefold.testing import links
from support.command_line import ask
from support.region_folder import until

pytestmark = pytest.mark.faults
PROGRAM = Path(__file__).with_name("region_rejoin.py")


@pytest.fixture
def evicted(tmp_path: Path) -> Path:
    """What us has written during a cut, and nobody has taken."""
    at = tmp_path / "space"
    with of.connect(at, region="eu") as eu, of.connect(at, region="us") as us:
        for db in (eu, us):
            db.counters("likes").add("page", 10)
            db.map("m", mode="available")[db._available.region.name] = "before"
        eu.map("m", mode="available")["both"] = "before"
        eu.sync()
        us.sync()
        links.cut(at, "eu", "us")
        us.counters("likes").add("page", 5)
        us.counters("likes").add("page", 2, request_id="sale-7")
        us.sets("tags").add("t", "a", "b")
        us.map("m", mode="available")["us"] = "unseen"
        us.map("m", mode="available")["both"] = "us"
        us.map("m", mode="available")["new"] = [1]
        del us.map("m", mode="available")["eu"]
        eu.map("m", mode="available")["both"] = "eu"
        assert ask("region", "evict", "us", "--region", "eu", url=at).returncode == 0
        links.heal(at)
    return at


def rejoin(space: Path) -> dict[str, Any]:
    result = ask("region", "rejoin", "us", "--json", url=space)
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


def check(space: Path) -> None:
    """Everything counts once, in both regions, in the file and among the conflicts."""
    with of.connect(space, region="eu") as eu, of.connect(space, region="us") as us:
        eu.sync()
        us.sync()
        for db in (eu, us):
            assert db.counters("likes").get("page") == 27
            assert db.sets("tags").get("t") == {"a", "b"}
            found = dict(db.map("m", mode="available").items())
            assert found == {"us": "unseen", "both": "eu", "new": [1], "eu": "before"}
        assert us.counters("likes").add("page", 2, request_id="sale-7") == 27, "it is known as done"
        listed = Counter(
            (one.collection, str(one.key), str(one.dropped)) for one in us.conflicts() if one.unseen
        )
        assert len(listed) == 8 and set(listed.values()) == {1}, listed
        until(lambda: {one.name: one.state for one in us.regions()} == {"us": "here", "eu": "linked"})
    lines = [
        json.loads(line)
        for line in (space / "regions" / "us.2" / "unseen.jsonl").read_text("utf-8").splitlines()
    ]
    told = {(one["collection"], one["key"], json.dumps(one["write"])): one["again"] for one in lines}
    assert len(told) == len(lines) == 8
    assert {key for key, again in told.items() if not again} == {
        ("m", "both", '{"put": "us"}'),
        ("m", "eu", '{"delete": true}'),
    }


def test_what_nobody_took_comes_back(evicted: Path) -> None:
    found = rejoin(evicted)
    assert found == {
        "name": "us",
        "number": 3,
        "files": [str(evicted / "regions" / "us.2" / "unseen.jsonl")],
        "writes": 8,
        "again": 6,
        "missing": 0,
    }
    check(evicted)
    result = ask("region", "rejoin", "us", url=evicted)
    assert result.returncode == 1 and "was not evicted" in result.stderr


@pytest.mark.parametrize("when", ["before:1", "after:1", "before:4", "after:4"])
@pytest.mark.parametrize("place", PLACES)
def test_a_kill_at_any_step_is_continued(evicted: Path, place: str, when: str) -> None:
    if when.endswith("4") and "unseen._do_again" not in place and "unseen._lines" not in place:
        pytest.skip("it is called once")
    command = [sys.executable, PROGRAM, evicted, "us", f"{place}:{when}"]
    killed = subprocess.run(command, env=with_tests(), capture_output=True, timeout=120, check=False)
    assert killed.returncode == -9, killed.stderr
    rejoin_or_done(evicted, last=place.endswith("finish") and when == "after:1")
    check(evicted)


def rejoin_or_done(space: Path, *, last: bool) -> None:
    if last:
        assert "was not evicted" in ask("region", "rejoin", "us", url=space).stderr
    else:
        rejoin(space)


def test_a_region_that_is_not_evicted_or_not_there_does_not_come_again(tmp_path: Path) -> None:
    with of.connect(tmp_path, region="eu") as eu, of.connect(tmp_path, region="us"):
        eu.counters("n").add("k")
    result = ask("region", "rejoin", "us", url=tmp_path)
    assert result.returncode == 1 and "was not evicted" in result.stderr
    result = ask("region", "rejoin", "de", url=tmp_path)
    assert result.returncode == 1 and "there is no region de" in result.stderr
