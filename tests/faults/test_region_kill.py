"""Regions of a folder in several processes: makers and pullers that are killed, and two that make regions at once."""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.region_worker import PLACES
from kit.environment import with_tests
from onefold.fold.nodes.regions import read_decisions
from onefold.testing import links
from support.region_folder import Folder, converged, get, known, put, until

pytestmark = pytest.mark.faults
WORKER = Path(__file__).with_name("region_worker.py")


class Worker:
    """A process in one region."""

    def __init__(self, folder: Path, region: str, *die: str) -> None:
        self.region = region
        command = [sys.executable, WORKER, folder, region, *die]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=with_tests(), text=True
        )

    def answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended by itself"
        return json.loads(line)

    def ask(self, *command: Any) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def end(self) -> None:
        """Have it close everything."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0


Start = Callable[..., Worker]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    workers: list[Worker] = []

    def started(region: str, *die: str) -> Worker:
        workers.append(Worker(tmp_path / "space", region, *die))
        return workers[-1]

    yield started
    for worker in workers:
        worker.kill()
        for pipe in (worker.process.stdin, worker.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]


@pytest.fixture
def space(tmp_path: Path) -> Path:
    Folder(tmp_path / "space", 2).close()
    return tmp_path / "space"


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("place", PLACES)
def test_a_maker_that_is_killed_is_continued(space: Path, start: Start, place: str, when: str) -> None:
    folder = Folder(space)
    try:
        put(folder.open("eu"), "k", "v")
        killed = start("us", f"{place}:{when}")
        assert killed.process.wait(60) == -9, "it does not come to that place"
        us = folder.open("us")
        assert us.number == 2
        until(lambda: get(us, "k") == "v")
        put(us, "l", "w", 1)
        until(lambda: get(folder.regions[0], "l", 1) == "w")
        until(lambda: converged(folder.regions[0], us))
        with folder.shards[0].view() as view:
            assert len(read_decisions(view)) == 2
        assert not list((space / "regions").glob(".*.half"))
    finally:
        folder.close()


@pytest.mark.parametrize("place", ["making.decide:after", "making._build:before", "making._build:after"])
def test_a_region_that_is_half_made_holds_up_no_other(space: Path, start: Start, place: str) -> None:
    folder = Folder(space)
    try:
        put(folder.open("eu"), "k", "v")
        assert start("us", place).process.wait(60) == -9
        asia = folder.open("asia")
        until(lambda: get(asia, "k") == "v")
        put(asia, "l", "w")
        us = folder.open("us", create=False)
        until(lambda: converged(*folder.regions) and get(us, "l") == "w")
        assert [region.number for region in folder.regions] == [1, 3, 2]
    finally:
        folder.close()


def test_many_make_regions_at_once(space: Path, start: Start) -> None:
    names = ["eu", "us", "eu", "asia", "us", "eu"]
    workers = [start(name) for name in names]
    numbers: dict[str, set[int]] = {}
    for worker in workers:
        numbers.setdefault(worker.region, set()).add(worker.answer())
    assert all(len(found) == 1 for found in numbers.values()), numbers
    assert {number for found in numbers.values() for number in found} == {1, 2, 3}
    for index, worker in enumerate(workers):
        until(lambda worker=worker, index=index: worker.ask("put", f"k{index}", "v", index % 2))
    until(lambda: len({json.dumps(worker.ask("known"), sort_keys=True) for worker in workers}) == 1)
    for worker in workers:
        assert [worker.ask("get", f"k{index}", index % 2) for index in range(len(names))] == ["v"] * len(
            names
        )
        worker.end()


def test_another_process_pulls_when_the_puller_is_killed(space: Path, start: Start) -> None:
    workers = [start("eu"), start("us"), start("us")]
    for worker in workers:
        worker.answer()
    pulls = until(
        lambda: (found := [worker.ask("pulls") for worker in workers]) and sum(map(len, found)) == 2 and found
    )
    puller = workers[next(index for index, found in enumerate(pulls) if found)]
    left = [worker for worker in workers if worker is not puller]
    puller.kill()
    until(lambda: sorted(number for worker in left for number in worker.ask("pulls")) == [1, 2])
    for number, worker in enumerate(left):
        worker.ask("put", f"k{number}", "v")
    for worker in left:
        until(lambda worker=worker: worker.ask("get", "k0") == worker.ask("get", "k1") == "v")


def test_one_running_program_lets_all_regions_converge(space: Path, start: Start) -> None:
    for name in ("eu", "us", "asia"):
        worker = start(name)
        worker.answer()
        worker.ask("put", name, "v")
        worker.kill()
    folder = Folder(space)
    try:
        folder.open("eu")
        readers = [folder.open(name, read_only=True) for name in ("eu", "us", "asia")]
        until(lambda: converged(*readers) and get(readers[0], "asia") == get(readers[2], "us") == "v")
    finally:
        folder.close()


def test_links_are_cut_in_all_processes(space: Path, start: Start) -> None:
    eu, us = start("eu"), start("us")
    assert {eu.answer(), us.answer()} == {1, 2}
    eu.ask("put", "before", "v")
    until(lambda: us.ask("get", "before") == "v")
    links.cut(space, "eu", "us")
    until(lambda: eu.ask("links") == us.ask("links") == ["cut"])
    eu.ask("put", "a", "eu")
    us.ask("put", "b", "us")
    eu.kill()
    eu = start("eu")
    eu.answer()
    assert eu.ask("get", "a") == "eu" and eu.ask("get", "b") is None and us.ask("get", "a") is None
    links.heal(space)
    until(lambda: us.ask("get", "a") == "eu" and eu.ask("get", "b") == "us")
    until(lambda: eu.ask("known") == us.ask("known"))


@pytest.mark.parametrize("seed", range(3))
def test_what_was_acknowledged_survives_kills_and_cuts(space: Path, start: Start, seed: int) -> None:
    draw = random.Random(seed)
    names = ["eu", "us", "asia"][: draw.choice((2, 3))]
    workers = [start(name) for name in (*names, *names)]
    for worker in workers:
        worker.answer()
    acknowledged: dict[str, int] = {}
    for number in range(60):
        at = draw.randrange(len(workers))
        worker, shard = workers[at], draw.randrange(2)
        worker.ask("put", f"k{number}", "v", shard)
        acknowledged[f"k{number}"] = shard
        if draw.random() < 0.1:
            worker.kill()
            workers[at] = start(worker.region)
            workers[at].answer()
        if draw.random() < 0.1:
            links.cut(space, *draw.sample(names, 2), one_way=draw.random() < 0.5)
        if draw.random() < 0.1:
            links.heal(space)
    links.heal(space)
    for worker in workers:
        for key, shard in acknowledged.items():
            until(lambda worker=worker, key=key, shard=shard: worker.ask("get", key, shard) == "v", key)
    until(lambda: len({json.dumps(worker.ask("known"), sort_keys=True) for worker in workers}) == 1)
    for worker in workers:
        worker.end()
    folder = Folder(space)
    try:
        for name in names:
            region = folder.open(name)
            assert known(region).writing
            for shard in region.shards:
                shard.verify()  # type: ignore[attr-defined]
    finally:
        folder.close()
