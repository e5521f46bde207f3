"""Which logs a node has led from a region, and how often it asks."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from onefold import config
from onefold.errors import Unavailable
from onefold.log.jetstream.names import STREAM_INFO, STREAM_STEPDOWN
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.node.leaders import Leaders
from onefold.node.telemetry.logging import JsonLog

SPACE = SpaceInfo("s", "i_1", 2, 5, regions=("eu", "us"))
LOGS = ["OF_s_i_1_0", "OF_s_i_1_1"]
BLOBS = "OBJ_of_s_blobs"
OTHERS = ["eu-1", "eu-2", "us-1", "us-2"]


class Servers:
    """Answers for the servers. ``leaders``: by stream; ``gone``: servers that are away; ``asked``: who was to lead what."""

    def __init__(self) -> None:
        self.leaders = dict.fromkeys([*LOGS, BLOBS], "eu-1")
        self.gone: set[str] = set()
        self.silent: set[str] = set()
        self.asked: list[tuple[str, str]] = []
        self.looks = 0

    def run(self, work: Callable[[], Coroutine[Any, Any, Any]], _timeout: float) -> Any:
        coroutine = work()
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError

    async def ask(self, subject: str, payload: bytes, **_: Any) -> Any:
        if subject.startswith(STREAM_STEPDOWN):
            (tag,) = json.loads(payload)["placement"]["tags"]
            self.asked.append((subject.removeprefix(STREAM_STEPDOWN), tag))
            return SimpleNamespace(data=b'{"success": true}')
        stream = subject.removeprefix(STREAM_INFO)
        self.looks += 1
        if stream in self.silent:
            raise Unavailable(stream)
        replicas = [
            {"name": name, "current": name not in self.gone, "offline": name in self.gone, "active": 1000}
            for name in [*OTHERS, "witness-1"]
            if name != self.leaders[stream]
        ]
        found = {
            "config": {"num_replicas": 5},
            "cluster": {"leader": self.leaders[stream], "replicas": replicas},
        }
        return SimpleNamespace(data=json.dumps(found).encode())


@pytest.fixture
def servers() -> Servers:
    return Servers()


def round_at(now_s: float, first: str = "n1") -> Any:
    return SimpleNamespace(
        hosted={0: None, 1: None}, placement={0: (first, "n2"), 1: (first, "n2")}, now_s=now_s
    )


def duty(servers: Servers, info: SpaceInfo = SPACE) -> Leaders:
    return Leaders("n1", servers, info, JsonLog("n1", stream=io.StringIO()))  # type: ignore[arg-type]


def test_a_log_that_the_witness_leads_goes_to_the_first_region(servers: Servers) -> None:
    servers.leaders[LOGS[1]] = servers.leaders[BLOBS] = "witness-1"
    duty(servers).look(round_at(0))
    assert servers.asked == [(BLOBS, "region:eu"), (LOGS[1], "region:eu")]


def test_a_region_that_is_away_is_not_asked_to_lead(servers: Servers) -> None:
    servers.leaders[LOGS[0]] = "witness-1"
    servers.gone = {"eu-1", "eu-2"}
    duty(servers).look(round_at(0))
    assert servers.asked == [(LOGS[0], "region:us")]
    servers.gone = set(OTHERS)
    duty(servers).look(round_at(0))
    assert len(servers.asked) == 1, "nobody could lead it"


def test_each_log_is_asked_at_most_once_a_minute(servers: Servers) -> None:
    servers.leaders[LOGS[0]] = "witness-1"
    leaders = duty(servers)
    for now_s in range(0, 300, 5):
        leaders.look(round_at(now_s))
    assert len(servers.asked) == 300 // config.LEADER_MOVE_S
    servers.looks = 0
    leaders.look(round_at(1000))
    leaders.look(round_at(1001))
    assert servers.looks == 3, "nor is it looked at more often than it needs"


def test_a_log_that_does_not_answer_hinders_no_other(servers: Servers) -> None:
    servers.silent = {LOGS[0]}
    servers.leaders[LOGS[1]] = "witness-1"
    with pytest.raises(Unavailable):
        duty(servers).look(round_at(0))
    assert servers.asked == [(LOGS[1], "region:eu")]


def test_only_the_first_node_of_a_shard_asks(servers: Servers) -> None:
    servers.leaders[LOGS[0]] = "witness-1"
    duty(servers).look(round_at(0, first="n2"))
    assert servers.looks == 0


def test_a_space_of_one_region_is_led_from_anywhere(servers: Servers) -> None:
    servers.leaders[LOGS[0]] = "witness-1"
    duty(servers, SpaceInfo("s", "i_1", 2, 3)).look(round_at(0))
    assert servers.looks == 0
