"""Spaces of both engines with a ledger in them."""

from contextlib import closing

import pytest

from kit.ledger import Ledger, lines
from onefold.space.open_shard import open_shard

SOON_S = 60


@pytest.fixture(name="space", params=["memory", "sqlite"])
def space_of_either_engine(request, tmp_path):
    url = "memory://" if request.param == "memory" else tmp_path / "space"
    with closing(open_shard(url, [Ledger()])) as opened:
        yield opened


def ledger_of(space):
    with space.view() as view:
        return lines(view)
