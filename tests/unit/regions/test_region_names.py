"""What stands beside the regions of a folder has no name that a region can have."""

from __future__ import annotations

from pathlib import Path

import pytest

import onefold as of
from onefold.ids import is_region


@pytest.mark.parametrize("name", ["wake", "making", "links", "shards", "members", "regions", "x" * 32])
def test_any_name_can_be_a_region(tmp_path: Path, name: str) -> None:
    with of.connect(tmp_path, region="eu") as eu, of.connect(tmp_path, region=name) as other:
        other.map("m", mode="available")["k"] = 1
        eu.sync(timeout=60)
        assert eu.map("m", mode="available")["k"] == 1
        beside = {path.name for path in (tmp_path / "regions").iterdir()} - {"eu", name}
    assert beside and not any(is_region(one) for one in beside), beside
