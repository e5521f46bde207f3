"""Spaces with something in them, and calls on them that must be refused."""

import pytest

import onefold as of
from onefold.errors import OnefoldError

SPACES = {"memory": ("memory://", 1), "one shard": (None, 1), "three shards": (None, 3)}


@pytest.fixture(params=SPACES, name="db")
def filled_db(request, tmp_path):
    url, shards = SPACES[request.param]
    with of.connect(url or tmp_path / "space", shards=shards) as opened:
        opened.map("m")["there"] = 1
        opened.queue("q").put("there")
        opened.stream("s", partitions=2).append("there")
        yield opened


def refuses(error, operation, db=None):
    """It raises that error, of this tree and definite, with a message of a sensible length; nothing was written."""
    before = [] if db is None else [space.applied for space in db._shards]
    with pytest.raises(error) as caught:
        operation()
    assert isinstance(caught.value, OnefoldError), f"{type(caught.value).__name__}: {caught.value}"
    assert caught.value.definite is True
    assert 10 < len(str(caught.value)) < 1000, str(caught.value)
    if db is not None:
        assert [space.applied for space in db._shards] == before, "something was written"
    return str(caught.value)
