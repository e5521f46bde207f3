"""Three servers of a cluster for all tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from onefold.cluster.servers import LocalServers


@pytest.fixture(name="servers", scope="module")
def three_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("servers"), 3)
    yield found
    found.stop(delete=True)
