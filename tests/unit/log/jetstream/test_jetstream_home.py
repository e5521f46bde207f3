"""Which servers a link tries first, and when it looks for those of its region."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from onefold import config
from onefold.env import SeededEnv
from onefold.errors import Unavailable
from onefold.log.jetstream.client.home import Home, stay


class FakeConnection:
    """A connection as far as the search for home looks at it."""

    open_questions = 0

    def __init__(self, server: str, name: str) -> None:
        self.server, self.server_name, self.closed = server, name, False

    def close(self) -> None:
        self.closed = True


NAMES = {"h1": "eu-1", "h2": "eu-2", "h3": "us-1", "h4": "witness-1"}


def connection(server: str) -> Any:
    return FakeConnection(server, NAMES[server])


def test_servers_of_the_region_are_tried_first() -> None:
    home = Home("us")
    for server in ("h1", "h3"):
        home.note(connection(server))
    assert home.prefer() and not home.prefer()
    for _ in range(20):
        order = home.in_order(NAMES)
        assert order[0] == "h3" and order[-1] == "h1" and sorted(order) == sorted(NAMES)
    assert sorted(home.candidates(NAMES)) == ["h2", "h3", "h4"], "unknown ones may be in the region"


def test_without_a_region_all_servers_are_alike() -> None:
    for home in (Home(None), Home("us")):
        home.note(connection("h3"))
        if home is not None and home.in_order(NAMES):
            assert {home.in_order(NAMES)[0] for _ in range(200)} == set(NAMES)
    assert not Home(None).prefer()


def test_a_region_that_is_cut_off_costs_one_attempt() -> None:
    """Its servers take no connection and refuse none, so each attempt takes all its time."""
    env = SeededEnv(1)
    home = Home("eu", env)
    for server in NAMES:
        home.note(connection(server))
    home.prefer()
    assert [NAMES[server][:2] for server in home.attempts(NAMES)][:2] == ["eu", "eu"], "refused at once"
    tried = []
    for server in home.attempts(NAMES):
        tried.append(NAMES[server][:2])
        if server in ("h1", "h2"):
            env.advance(config.CONNECT_SERVER_TIMEOUT_S)
    assert (tried[0], sorted(tried[1:3]), tried[3]) == ("eu", ["us", "wi"], "eu")


class Cluster:
    """Servers of which some run, and a link that moves between them."""

    def __init__(self, at: str, running: set[str]) -> None:
        self.running = running
        self.opened: list[Any] = []
        self.current = connection(at)
        self.first = self.current
        self.moves = True
        self.home = Home("us")
        self.home.note(self.current)
        self.home.prefer()

    async def open(self, server: str) -> Any:
        if server not in self.running:
            raise Unavailable(server)
        self.opened.append(connection(server))
        return self.opened[-1]

    async def move(self, old: Any, new: Any) -> bool:
        assert old is self.current
        if self.moves:
            self.current = new
        return self.moves

    async def until(self, what: Any) -> None:
        task = asyncio.ensure_future(
            stay(self.home, lambda: self.current, lambda: NAMES, self.open, self.move)
        )
        try:
            async with asyncio.timeout(60):
                while not what():
                    assert not task.done(), task
                    await asyncio.sleep(0.01)
        finally:
            task.cancel()


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "HOME_LOOK_S", 0.02)


def test_a_link_goes_back_to_its_region_once_a_server_of_it_runs() -> None:
    async def scenario() -> None:
        cluster = Cluster("h1", {"h1", "h2", "h4"})
        await cluster.until(lambda: {one.server for one in cluster.opened} == {"h2", "h4"})
        assert cluster.current is cluster.first
        cluster.running.add("h3")
        await cluster.until(lambda: cluster.first.closed)
        assert cluster.current.server == "h3" and not cluster.current.closed
        others = [one for one in cluster.opened if one is not cluster.current]
        assert all(one.closed for one in others) and len(others) == 2, "each other server was asked once"

    asyncio.run(scenario())


def test_a_link_in_its_region_stays_and_asks_nobody() -> None:
    async def scenario() -> None:
        cluster = Cluster("h3", set(NAMES))
        looks = 0

        def look() -> bool:
            nonlocal looks
            looks += 1
            return looks > 20

        await cluster.until(look)
        assert cluster.opened == [] and cluster.current is cluster.first

    asyncio.run(scenario())


def test_a_move_that_fails_leaves_no_connection_open() -> None:
    async def scenario() -> None:
        cluster = Cluster("h1", set(NAMES))
        cluster.moves = False
        await cluster.until(lambda: sum(one.server == "h3" for one in cluster.opened) > 2)
        await asyncio.sleep(0)
        assert cluster.current is cluster.first and not cluster.first.closed
        assert all(one.closed for one in cluster.opened[:-1])

    asyncio.run(scenario())
