"""Servers whose files are damaged: readers get what another server has, or an error; never a hole, and never other bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kit.cluster.log_ground import (
    SOON_S,
    Ground,
    Shard,
    flip_in,
    place_of,
    read_all,
    record,
    until,
    wait_for,
)
from onefold.cluster.servers import LocalServers
from onefold.errors import LogCorrupt, Unavailable
from onefold.log.jetstream.fetch import fetch

pytestmark = pytest.mark.faults
COUNT, SIZE = 24, 500_000
"""More than the block that servers keep in memory."""
DAMAGED = 3


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    servers = LocalServers.start(tmp_path_factory.mktemp("servers"), 3, secure=False)
    yield Ground(servers)
    servers.stop(delete=True)


@pytest.fixture
def space(ground: Ground) -> Iterator[Shard]:
    with ground.space() as space:
        yield space


def fill(space: Shard) -> list[bytes]:
    datas = [record(number, SIZE) for number in range(1, COUNT + 1)]
    with space.log() as log:
        for data in datas:
            until(lambda data=data: log.append(data))
        assert log.last == COUNT, "an append was tried twice"
    space.wait_whole()
    return datas


def truncate(path: Path, data: bytes) -> None:
    at = place_of(path, data)
    with path.open("r+b") as file:
        file.truncate(at + len(data) // 2)


def zero(path: Path, data: bytes) -> None:
    at = place_of(path, data)
    with path.open("r+b") as file:
        file.seek(at - 30)  # what the server writes before it as well
        file.write(bytes(len(data) + 30))


def remove(path: Path, data: bytes) -> None:
    path.unlink()


def holes(space: Shard, offset: int) -> list[bool]:
    """Whether an offset was missing, by each of many answers of unknown servers."""

    async def ask() -> list[bool]:
        batches = [
            await fetch(space.link, space.names, offset, max_records=1, max_bytes=1) for _ in range(40)
        ]
        await asyncio.sleep(0)
        return [not batch.entries or batch.entries[0].offset != offset for batch in batches]

    return space.link.run(ask, None)


def await_rot(space: Shard, enough: Callable[[list[bool]], bool] = any) -> list[bool]:
    """``holes`` of the damaged record, once ``enough`` of the answers have it. A server that has the file in memory, as the
    leader mostly has, forgets it when nobody asks for 10 s; so it is not asked more often."""
    deadline = time.monotonic() + 2 * SOON_S
    while not enough(found := holes(space, DAMAGED)):
        assert time.monotonic() < deadline, "no server noticed what its file was done to"
        time.sleep(11)
    return found


@pytest.mark.parametrize("damage", [flip_in, truncate, zero, remove])
@pytest.mark.moving(4)
def test_one_server_with_a_damaged_file(space: Shard, damage: Callable[[Path, bytes], None]) -> None:
    datas = fill(space)
    victim = (space.leader() + 1) % 3
    damage(space.block(victim), datas[DAMAGED - 1])
    assert not all(await_rot(space)), "the damage is on one server only"
    for start in (1, DAMAGED, DAMAGED + 1):
        for _ in range(4):
            with space.log() as log:
                entries = read_all(log, start)
            assert [entry.offset for entry in entries] == list(range(start, COUNT + 1))
            assert [entry.data for entry in entries] == datas[start - 1 :]


def test_the_leader_with_a_damaged_file(space: Shard) -> None:
    datas = fill(space)
    flip_in(space.block(space.leader()), datas[DAMAGED - 1])
    await_rot(space)
    with space.log() as log:
        assert [entry.data for entry in read_all(log)] == datas


def test_two_servers_with_the_same_damage(space: Shard) -> None:
    datas = fill(space)
    for index in range(2):
        flip_in(space.block(index), datas[DAMAGED - 1])
    await_rot(space, lambda found: sum(found) > len(found) / 2)
    with space.log() as log:
        assert [entry.data for entry in read_all(log)] == datas


def test_all_servers_with_the_same_damage_is_corrupt(space: Shard) -> None:
    datas = fill(space)
    for index in range(3):
        flip_in(space.block(index), datas[DAMAGED - 1])
    await_rot(space, all)
    with space.log() as log:
        assert [entry.data for entry in read_all(log, 1, DAMAGED - 1)] == datas[: DAMAGED - 1], (
            "what is whole is read"
        )
        with pytest.raises(LogCorrupt, match=f"offset {DAMAGED} "):
            read_all(log, DAMAGED)
        assert [entry.data for entry in read_all(log, DAMAGED + 1)] == datas[DAMAGED:]


def test_the_only_whole_server_is_away(space: Shard) -> None:
    """Two damaged servers and one that does not run: nothing is decided until it is back."""
    datas = fill(space)
    whole = (space.leader() + 1) % 3
    for index in {0, 1, 2} - {whole}:
        flip_in(space.block(index), datas[DAMAGED - 1])
    await_rot(space, lambda found: sum(found) > len(found) / 2)
    space.servers.kill(whole)
    with space.log() as log:
        until(lambda: log.last)

        def refused() -> bool:
            with pytest.raises((Unavailable, TimeoutError)) as error:
                log.read(DAMAGED)
            return "cannot be settled" in str(error.value)

        wait_for(refused)
        space.servers.restart(whole)
        assert [entry.data for entry in until(lambda: read_all(log, DAMAGED))] == datas[DAMAGED - 1 :]
