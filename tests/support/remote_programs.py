"""Programs without a replica, in a world whose nodes can be stopped or get no records."""

import time
from contextlib import closing

import pytest

from kit.remote_world import RemoteWorld
from onefold import config
from onefold.state.fold import rows

TABLE = rows.map_table("m")
SOON_S = 60.0


@pytest.fixture(autouse=True)
def _hedge_soon(monkeypatch):
    monkeypatch.setattr(config, "ASK_HEDGE_S", 0.02)


@pytest.fixture(name="world")
def remote_world():
    with closing(RemoteWorld()) as made:
        yield made


@pytest.fixture(name="db")
def remote_program(world):
    with world.connect(timeout=5.0) as opened:
        yield opened


@pytest.fixture(name="other")
def other_program(world):
    """Another program."""
    with world.connect() as opened:
        yield opened


def until(holds):
    deadline = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


def stop_nodes(world):
    world.servers.clear()


def hold(world, *nodes):
    for node in nodes:
        for delivered in world.delivered[node]:
            delivered.hold()


def go_on(world):
    for node in world.delivered:
        for delivered in node:
            delivered.go_on()
