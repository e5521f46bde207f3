"""Spaces on three real servers for the JetStream engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kit.cluster.log_ground import Ground, Shard
from onefold.cluster.servers import LocalServers


@pytest.fixture(name="ground", scope="module")
def ground_of_three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    servers = LocalServers.start(tmp_path_factory.mktemp("servers"), 3, secure=False)
    yield Ground(servers)
    servers.stop(delete=True)


@pytest.fixture(name="space")
def space_on_ground(ground: Ground) -> Iterator[Shard]:
    with ground.space() as space:
        yield space
