"""Regions of a folder in one process: made, opened, and what they learn of each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onefold.available import reading
from onefold.available.kinds.places import REGISTER, place_of
from onefold.available.ops import Committed, Do, Put, available_op, decode_outcome
from onefold.available.regions import Known, read_self
from onefold.env import SYSTEM
from onefold.folds import folds, region_folds
from onefold.regions.folder import OpenRegion, open_folder
from onefold.shard.api import Shard
from onefold.space.open_space import open_shards

WAIT_S = 60.0


class Folder:
    """A space in a folder, and its regions as they are opened."""

    def __init__(self, path: Path, shards: int = 1) -> None:
        self.path = path
        self.shards = open_shards(path, folds, shards=shards)
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


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    made = Folder(tmp_path / "space")
    yield made
    made.close()


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.005)
    return value


def do(shard: Shard, *requests: Any, request_id: str | None = None) -> Any:
    return decode_outcome(shard.submit([available_op(Do(requests), request_id)])[0])


def put(region: OpenRegion, key: str, value: str, shard: int = 0) -> Committed:
    outcome = do(region.shards[shard], Put("r", "m", ((key.encode(), value.encode()),)))
    assert isinstance(outcome, Committed), outcome
    return outcome


def get(region: OpenRegion, key: str, shard: int = 0) -> Any:
    with region.shards[shard].view() as view:
        return reading.get(view, place_of(REGISTER, "m"), key.encode())


def known(region: OpenRegion, shard: int = 0) -> Known:
    with region.shards[shard].view() as view:
        return read_self(view)


def test_a_folder_without_regions_gets_a_local_one(folder: Folder) -> None:
    region = folder.open(None)
    assert (region.name, region.number) == ("local", 1)
    assert put(region, "k", "v").region == 1
    assert region.peers is None
    assert not [thread for thread in threading.enumerate() if thread.name == "onefold-exchange"]
    assert folder.open(None).name == "local"


def test_effects_reach_the_other_region(folder: Folder) -> None:
    eu = folder.open("eu")
    put(eu, "before", "1")
    us = folder.open("us")
    assert (eu.number, us.number) == (1, 2)
    until(lambda: get(us, "before") == b"1")
    put(eu, "a", "eu")
    put(us, "b", "us")
    until(lambda: get(us, "a") == b"eu" and get(eu, "b") == b"us")
    until(lambda: known(eu).have() == known(us).have() and known(eu).content == known(us).content)


def test_an_idle_region_hears_of_an_effect_soon(folder: Folder) -> None:
    eu, us = folder.open("eu"), folder.open("us")
    delays = []
    for number in range(15):
        time.sleep(0.02)
        began = time.monotonic()
        seq = put(eu, "k", str(number)).seq
        until(lambda seq=seq: known(us).have().get(1) == seq)
        delays.append(time.monotonic() - began)
    assert sorted(delays)[len(delays) // 2] < 0.5, delays


def test_closing_leaves_no_thread(folder: Folder) -> None:
    eu, us = folder.open("eu"), folder.open("us")
    put(us, "k", "v")
    began = time.monotonic()
    eu.close()
    us.close()
    assert time.monotonic() - began < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "onefold-exchange"]
    for region in ("eu", "us"):
        place = folder.path / "regions" / region
        assert list((place / "wake").iterdir()) == [] and list((place / "members").iterdir()) == []
