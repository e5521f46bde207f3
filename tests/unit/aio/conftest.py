"""What several files of tests under asyncio need."""

import pytest

import onefold as of


@pytest.fixture(params=["memory", "folder", "shards"])
def opened(request, tmp_path):
    """Makes a connection."""
    if request.param == "memory":
        return lambda: of.aio.connect("memory://")
    options = {"shards": 3} if request.param == "shards" else {}
    return lambda: of.aio.connect(tmp_path / "space", **options)
