"""`onefold init`: a space on servers that others run, or a clear error; and never half of one that looks whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from onefold.cluster.server_binary import server_program
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.doctor.facts import look
from onefold.errors import SpaceError, Unavailable
from onefold.log.jetstream import admin, names, stream_making
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.streams import Refused


def onefold(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    line = [sys.executable, "-m", "onefold.cli", *args]
    return subprocess.run(
        line, capture_output=True, text=True, check=False, timeout=120, env=kept | environment
    )


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("cluster"), 3, spaces=["a", "b", "c", "d"])
    yield found
    found.stop()


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("alone"), 1, spaces=["a", "b", "c"])
    yield found
    found.stop()


def test_a_space_is_made_and_found_again(servers: LocalServers) -> None:
    url = servers.url("a", "admin")
    made = onefold("init", "--url", url, "--shards", "3", "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["space"], said["shards"], said["replicas"]) == ("a", 3, 3)
    again = onefold("init", "--json", ONEFOLD_URL=url)
    assert json.loads(again.stdout) == said
    link = Link(parse_address(url))
    try:
        facts = look(link)
        wanted = [names.LogNames("a", said["incarnation"], shard).stream for shard in range(3)]
        assert [stream.name for stream in facts.streams if stream.log is not None] == wanted
        assert all(len(stream.servers) == 3 for stream in facts.streams)
        assert facts.streams[-1].name == "OBJ_of_a_blobs"
        assert admin.leftover_streams(link) == []
    finally:
        link.close()


@pytest.mark.parametrize("asked", [("--shards", "2"), ("--replicas", "1")], ids=lambda asked: asked[0])
def test_a_space_that_is_there_otherwise(servers: LocalServers, asked: tuple[str, str]) -> None:
    set_up_space(servers.url("a", "admin"))
    done = onefold("init", "--url", servers.url("a", "admin"), *asked)
    assert done.returncode == 1
    assert "there is a space already" in done.stderr and "which is fixed" in done.stderr


def test_of_several_makers_one_decides(servers: LocalServers) -> None:
    url = servers.url("b", "admin")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: set_up_space(url), range(4)))
    assert len(set(made)) == 1


@pytest.mark.parametrize("user", ["app", "node"])
def test_a_credential_that_may_not(servers: LocalServers, user: str) -> None:
    done = onefold("init", "--url", servers.url("c", user))
    assert done.returncode == 1
    assert "may not publish to $JS.API.STREAM.CREATE" in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_credential(servers: LocalServers, tmp_path: Path) -> None:
    import nkeys

    stranger = tmp_path / "stranger.nk"
    stranger.write_bytes(nkeys.encode_seed(os.urandom(32), prefix=nkeys.PREFIX_BYTE_USER))
    host = f"127.0.0.1:{servers.servers[0].port}"
    for url in (f"nats://{host}/a?nkey={stranger}", f"nats://{host}/a", f"nats://u:p@{host}/a"):
        with pytest.raises(SpaceError, match="wrong credential"):
            set_up_space(url)
    with pytest.raises(SpaceError, match="cannot be read"):
        set_up_space(f"nats://{host}/a?nkey={tmp_path / 'nothing'}")


def test_too_few_servers(alone: LocalServers) -> None:
    done = onefold("init", "--url", alone.url("a", "admin"))
    assert done.returncode == 1 and "too few for 3 copies" in done.stderr and "--replicas 1" in done.stderr
    done = onefold("init", "--url", alone.url("a", "admin"), "--replicas", "1", "--json")
    assert json.loads(done.stdout)["replicas"] == 1


def test_each_space_has_a_folder_of_its_own_in_a_place_for_blobs(alone: LocalServers, tmp_path: Path) -> None:
    place = f"dir:{tmp_path}/shared"
    found = set()
    for space in ("b", "c"):
        line = ("init", "--url", alone.url(space, "admin"), "--replicas", "1", "--json", "--blobs")
        said = json.loads(onefold(*line, place).stdout)
        assert said["blobs"] == place and said["blobs_at"] == f"{place}/{space}-{said['incarnation']}"
        for again in (place, said["blobs_at"]):
            assert json.loads(onefold(*line, again).stdout) == said
        other = onefold(*line, f"dir:{tmp_path}/other")
        assert other.returncode == 1 and f"blobs in {place} and not" in other.stderr
        found.add(said["blobs_at"])
    assert len(found) == 2


def test_five_copies_on_three_servers(servers: LocalServers) -> None:
    with pytest.raises(SpaceError, match="too few servers for 5 copies"):
        set_up_space(servers.url("c", "admin"), replicas=5)


def test_a_server_that_has_just_begun_is_waited_for(
    servers: LocalServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader takes it for gone until it has heard of it, and finds no place for the copies. Seen once right after a start."""
    real, refused = stream_making.ask, []

    def ask(link: Link, subject: str, body: Any, what: str) -> Any:
        if subject.startswith(names.STREAM_CREATE) and len(refused) < 3:
            refused.append(subject)
            said = "the engine says: no suitable peers for placement, peer offline (10005)"
            raise Refused(f"{what}: {said}", 10005)
        return real(link, subject, body, what)

    monkeypatch.setattr(stream_making, "ask", ask)
    assert set_up_space(servers.url("d", "admin")).space == "d"
    assert len(refused) == 3


def _plain_server(folder: Path, config: dict[str, Any]) -> tuple[subprocess.Popen[bytes], str]:
    """A server that is not configured for Onefold."""
    (folder / "conf").write_text(json.dumps({"listen": "127.0.0.1:0", **config}))
    program = subprocess.Popen(
        [server_program(), "-c", folder / "conf", "--ports_file_dir", folder], stderr=subprocess.DEVNULL
    )
    while not (found := list(folder.glob("*.ports"))) or not found[0].read_text():
        assert program.poll() is None
    return program, json.loads(found[0].read_text())["nats"][0].removeprefix("nats://")


def test_jetstream_is_off(tmp_path: Path) -> None:
    program, host = _plain_server(tmp_path, {})
    try:
        with pytest.raises(SpaceError, match="JetStream is off"):
            set_up_space(f"nats://{host}/a", replicas=1)
    finally:
        program.kill()
        program.wait()


def test_jetstream_is_off_for_the_account(tmp_path: Path) -> None:
    users = [{"user": "u", "password": "p"}]
    accounts = {
        "A": {"users": users},
        "B": {"jetstream": "enabled", "users": [{"user": "b", "password": "b"}]},
    }
    config = {"jetstream": {"store_dir": str(tmp_path / "data")}, "accounts": accounts}
    program, host = _plain_server(tmp_path, config)
    try:
        with pytest.raises(SpaceError, match="JetStream is not enabled"):
            set_up_space(f"nats://u:p@{host}/a", replicas=1)
    finally:
        program.kill()
        program.wait()


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        set_up_space("nats://127.0.0.1:9/a")


@pytest.mark.moving(3)
@pytest.mark.parametrize("url", ["", "folder", "nats://h", "nats://h/a b", "nats://h/a?what=1", "http://h/a"])
def test_urls_that_are_none(url: str) -> None:
    done = onefold("init", "--url", url)
    assert done.returncode == 2 and "Traceback" not in done.stderr
