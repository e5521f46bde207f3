"""A space in a folder and its regions, opened below the handles that programs have."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onefold.available import reading
from onefold.available.kinds.places import REGISTER, place_of
from onefold.available.ops import Committed, Delete, Do, Put, available_op, decode_outcome
from onefold.available.regions import Known, read_self
from onefold.env import SYSTEM
from onefold.folds import folds, region_folds
from onefold.regions.folder import OpenRegion, open_folder
from onefold.shard.api import Shard
from onefold.space.open_space import open_shards

WAIT_S = 100.0


class Folder:
    """A space in a folder, and its regions as they are opened."""

    def __init__(self, path: Path, shards: int | None = None, **options: Any) -> None:
        self.path = path
        self.shards = open_shards(path, folds, shards=shards, **options)
        self.regions: list[OpenRegion] = []

    def open(self, region: str | None, **options: Any) -> OpenRegion:
        found = open_folder(self.shards, self.path, region, SYSTEM, folds=region_folds, **options)
        self.regions.append(found)
        return found

    def close(self) -> None:
        for region in self.regions:
            region.close()
        for shard in self.shards:
            shard.close()


def until(found: Callable[[], Any], what: str = "") -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := found()):
        assert time.monotonic() < deadline, f"it did not come to that: {what}"
        time.sleep(0.005)
    return value


def do(shard: Shard, *requests: Any, request_id: str | None = None) -> Any:
    return decode_outcome(shard.submit([available_op(Do(requests), request_id)])[0])


def put(region: OpenRegion, key: str, value: str, shard: int = 0) -> Committed:
    outcome = do(region.shards[shard], Put("r", "m", ((key.encode(), value.encode()),)))
    assert isinstance(outcome, Committed), outcome
    return outcome


def delete(region: OpenRegion, key: str, shard: int = 0) -> None:
    assert isinstance(do(region.shards[shard], Delete("r", "m", (key.encode(),))), Committed)


def get(region: OpenRegion, key: str, shard: int = 0) -> str | None:
    with region.shards[shard].view() as view:
        found = reading.get(view, place_of(REGISTER, "m"), key.encode())
    return None if found is None else bytes(found).decode()  # type: ignore[arg-type]


def known(region: OpenRegion, shard: int = 0) -> Known:
    with region.shards[shard].view() as view:
        return read_self(view)


def converged(*regions: OpenRegion) -> bool:
    """Whether all have the same vectors; then their contents are the same too."""
    for shard in range(len(regions[0].shards)):
        seen = [known(region, shard) for region in regions]
        if any(one.have() != seen[0].have() for one in seen):
            return False
        assert all(one.content == seen[0].content for one in seen), "equal vectors and other rows"
    return True
