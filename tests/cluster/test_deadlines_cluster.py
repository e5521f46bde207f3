"""Time limits on a real cluster: without a majority calls end in time; while a leader is elected writes wait."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from kit.cluster.log_ground import until
from onefold.cli.cluster.describing import facts
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.env import SYSTEM

LIMIT_S = 3.0
SLACK_S = 30.0
"""A busy machine ends later; what has no deadline takes far longer."""


def test_calls_end_in_time_and_writes_sit_out_elections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    servers = LocalServers.start(tmp_path / "servers", 3, spaces=["main"])
    try:
        set_up_space(servers.url("main", "admin"))
        url = servers.url("main")
        with of.connect(url, timeout=120) as db, of.connect(url, timeout=LIMIT_S) as quick:
            m, hasty = db.map("m"), quick.map("m")
            m["k"] = 1
            until(lambda: hasty.put("k", 1))  # a busy machine may need longer, once
            leader = next(one.leader for one in facts(url).streams if one.log is not None)
            at = next(number for number, one in enumerate(servers.servers) if one.name == leader)
            stop, problems, written = threading.Event(), [], [0]

            def write() -> None:
                while not stop.is_set():
                    try:
                        m["k"] = written[0]
                    except of.OnefoldError as error:
                        problems.append(error)
                    written[0] += 1

            writer = threading.Thread(target=write)
            writer.start()
            servers.kill(at)
            before = written[0]
            while written[0] < before + 20:
                assert writer.is_alive()
                threading.Event().wait(0.01)
            stop.set()
            writer.join()
            assert not [error for error in problems if error.definite], "writes wait for a leader"
            other = next(number for number in range(3) if number != at)
            servers.stop_server(other)
            calls: list[Any] = [
                lambda: hasty.put("k", 1),
                lambda: hasty.get("k"),
                lambda: hasty.modify("k", lambda old: old),
                lambda: quick.queue("q").take(timeout=0),
            ]
            for call in calls:
                began = SYSTEM.boot_s()
                with pytest.raises(of.OnefoldError):
                    call()
                assert 0.5 * LIMIT_S <= SYSTEM.boot_s() - began <= LIMIT_S + SLACK_S
            servers.cont(other)
    finally:
        servers.stop(delete=True)
