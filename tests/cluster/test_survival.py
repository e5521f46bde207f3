"""`onefold explain` on a real cluster: servers are killed, and what it said comes true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold.cli.cluster.describing import facts
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.errors import AppendUnknown, TooStale, Unavailable
from onefold.state.core.consistency import bounded
from support.command_line import ask

LEVELS: dict[str, Any] = {
    "strong": "strong",
    "bounded": 0.05,
    "session": "session",
    "prefix": "prefix",
    "eventual": "eventual",
}


def what_works(db: of.Database) -> tuple[str, dict[str, bool]]:
    """Whether a write and a read of each level do."""
    shared, found = db.map("m"), {}
    for level, consistency in LEVELS.items():
        given = bounded(consistency) if level == "bounded" else consistency
        try:
            assert shared.get("k", consistency=given) == 1
            found[level] = True
        except (Unavailable, TooStale):
            found[level] = False
    try:
        shared["other"] = 1
    except (Unavailable, AppendUnknown):
        return "no", found
    return "yes", found


def test_what_explain_says_of_lost_servers_is_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    servers = LocalServers.start(tmp_path / "servers", 3, spaces=["main"])
    try:
        set_up_space(servers.url("main", "admin"))
        url: Any = servers.url("main")
        with of.connect(servers.url("main")) as db:
            db.map("m")["k"] = db.map("m")["other"] = 1
            said = ask("explain", "m", "--json", url=url)
            assert said.returncode == 0, said.stderr
            (made,) = json.loads(said.stdout)["collections"]
            survives = {one["failure"]: one for one in made["survives"]}
            assert list(survives) == ["server", "two servers", "three servers"]
            text = ask("explain", "m", url=url).stdout
            assert "this machine" not in text and "3 of them current" in text
            assert not any(survives["server"]["remote"]["reads"].values()), "there is no node"
        # Only from here on: what is asked above must not run into them on a busy machine.
        for limit in ("APPEND_RETRY_S", "APPEND_ACK_TIMEOUT_S", "READ_TIMEOUT_S"):
            monkeypatch.setattr(f"onefold.config.{limit}", 1.0)
        with of.connect(servers.url("main"), timeout=10) as db:
            leader = next(one.leader for one in facts(servers.url("main")).streams if one.log is not None)
            follower, other = [at for at, one in enumerate(servers.servers) if one.name != leader]
            servers.kill(follower)
            assert what_works(db) == (survives["server"]["writes"], survives["server"]["reads"])
            servers.kill(other)
            assert what_works(db) == (survives["two servers"]["writes"], survives["two servers"]["reads"])
        # It says so too when it can be asked only what this machine knows.
        said = ask("explain", "m", "--json", url=url)
        assert said.returncode == 0, said.stderr
        answer = json.loads(said.stdout)
        (now,) = answer["collections"]
        assert answer["unread"] and (now["kind"], now["count"]) == ("map", 2)
        assert [(one["failure"], one["writes"]) for one in now["survives"]] == [("server", "no")]
        assert now["survives"][0]["reads"] == survives["two servers"]["reads"]
    finally:
        servers.stop(delete=True)
