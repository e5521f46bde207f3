"""`onefold explain` on a real cluster of two regions and a witness: what it says of each failure comes true.

CI runs one of the failures, another one each day; all of them are run by `.ci/nightly`. A cut of links is tried in folders.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import onefold as of
from onefold.cluster.local import LocalCluster
from onefold.errors import AppendUnknown, Timeout, TooStale, Unavailable, UnsupportedConsistency
from support.command_line import ask

WAIT_S: Final = 120.0
STOPS: Final = (Unavailable, TooStale, AppendUnknown, Timeout, UnsupportedConsistency)
LOST: Final = {
    "server": ["dc1-1"],
    "two servers": ["dc1-1", "dc2-1"],
    "region": ["dc1-1", "dc1-2", "dc1-3"],
    "region and witness": ["dc1-1", "dc1-2", "dc1-3", "witness-1"],
    "region and server": ["dc1-1", "dc1-2", "dc1-3", "dc2-1"],
}
LEVELS: Final = {
    "strong": "strong",
    "bounded": "bounded:50ms",
    "session": "session",
    "prefix": "prefix",
    "eventual": "eventual",
}


def check(what: str, works: bool, do: Callable[[], object]) -> None:
    """That something works, at the latest when elections are over; or that it does not."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            do()
        except STOPS as error:
            if not works:
                return
            if time.monotonic() > deadline:
                pytest.fail(f"{what} does not work: {error}")
            time.sleep(0.1)
        else:
            assert works, f"{what} works"
            return


def explained(name: str, url: str) -> dict[str, Any]:
    said = ask("explain", name, "--json", url=url)  # type: ignore[arg-type]
    assert said.returncode == 0, said.stderr
    (made,) = json.loads(said.stdout)["collections"]
    return made  # type: ignore[no-any-return]


@pytest.mark.moving(13, first=8)  # test_fire.py has the other days
@pytest.mark.parametrize("failure", LOST)
def test_what_explain_says_of_lost_regions_is_true(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    cluster = LocalCluster.up(tmp_path / "c", nodes=2, regions=2)
    try:
        living = ["dc2"] if "region" in failure else ["dc1", "dc2"]
        opened = {region: of.connect(cluster.url(), region=region, timeout=8) for region in living}
        try:
            for region, db in opened.items():
                db.map("users")["k"] = 1
                db.map("carts", mode="available")["k"] = region
            survives = {
                mode: {one["failure"]: one for one in explained(name, cluster.url())["survives"]}
                for mode, name in (("consistent", "users"), ("available", "carts"))
            }
            assert list(survives["available"]) == list(survives["consistent"])
            assert [one for one in survives["available"] if one != "link"] == list(LOST)
            lose(cluster, failure)
            for region, db in opened.items():
                for mode, name in (("consistent", "users"), ("available", "carts")):
                    told = survives[mode][failure]
                    shared: Any = db.map(name, mode=mode)  # type: ignore[call-overload]
                    where = f"{failure}, {mode}, in {region}"
                    check(f"{where}: write", told["writes"] != "no", lambda at=shared: at.put("k", 2))
                    for level, text in LEVELS.items():
                        check(f"{where}: {level} read", told["reads"][level], reading(db, name, mode, text))
            now = explained("carts", cluster.url())
            assert now["mode"] == "available" and now["lag"], "it is explained during the failure too"
        finally:
            for db in opened.values():
                db.close()
    finally:
        cluster.down(delete=True)


def reading(db: of.Database, name: str, mode: Any, level: Any) -> Callable[[], object]:
    return lambda: db.map(name, mode=mode, consistency=level).get("k")  # type: ignore[call-overload]


def lose(cluster: LocalCluster, failure: str) -> None:
    """Kill the servers, and the nodes of a region that is lost."""
    for server in cluster.servers.servers:
        if server.name in LOST[failure]:
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
    for node in cluster.nodes:
        if "region" in failure and node.region == "dc1":
            assert node.pid is not None
            os.kill(node.pid, signal.SIGKILL)
