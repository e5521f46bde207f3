"""Servers of this machine: they start, come back with what they held, and end; whatever a test does to them."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from onefold.cluster import daemons
from onefold.cluster.server_plan import ServerPlan
from onefold.cluster.servers import LocalServers
from onefold.errors import InvalidArgument, SpaceError, Timeout

ADMIN = "admin"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("cluster"), 3, spaces=["main"])
    yield found
    found.stop()


def test_three_servers_know_each_other(servers: LocalServers) -> None:
    for index in range(3):
        with servers.states(index) as states:
            meta = states.meta()
        assert meta is not None and meta.leader in {"s1", "s2", "s3"} and meta.servers == 3
    pids = {server.pid for server in servers.servers}
    assert len(pids) == 3 and None not in pids
    assert len({port for server in servers.servers for port in (server.port, server.cluster_port)}) == 6


def test_the_configuration_is_that_of_production(servers: LocalServers) -> None:
    for server in servers.servers:
        config = json.loads((server.dir / "nats.conf").read_text())
        assert config["jetstream"]["sync_interval"] == "always"
        assert config["jetstream"]["max_file"] > 0
        assert config["ping_interval"] == "5s" and config["ping_max"] == 2
        assert config["max_payload"] == 8 * 1024 * 1024
        assert "write_deadline" in config and "lame_duck_duration" in config
        assert config["listen"].startswith("127.0.0.1:") and config["cluster"]["listen"].startswith(
            "127.0.0.1:"
        )
        assert "no_auth_user" not in config


def test_nothing_listens_beyond_loopback(servers: LocalServers) -> None:
    inodes = {
        str(link.readlink())
        for server in servers.servers
        for link in Path(f"/proc/{server.pid}/fd").iterdir()
        if link.is_symlink()
    }
    listening = [
        fields[1].split(":")[0]
        for table in ("tcp", "tcp6")
        for fields in (line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes
    ]
    assert len(listening) == 6
    assert set(listening) == {"0100007F"}


def test_secrets_are_in_files_of_their_owner_only(servers: LocalServers) -> None:
    for path in [*(servers.directory / "keys").iterdir(), *servers.directory.glob("*/nats.conf")]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((servers.directory / "keys").stat().st_mode) == 0o700
    url = servers.url("main")
    assert url.endswith(f"/main?nkey={servers.seed_file('main', 'app')}&inbox=_INBOX_app")
    assert servers.seed_file("main", "app").read_text() not in url


def test_a_new_space_gets_its_account_while_the_servers_run(servers: LocalServers) -> None:
    pids = [server.pid for server in servers.servers]
    url = servers.url("late-1", ADMIN)
    assert "/late-1?" in url
    for index in range(3):
        with servers.states(index) as states:
            assert {"main", "late-1"} <= set(states.accounts())
    assert [server.pid for server in servers.servers] == pids
    assert "late-1" in json.loads((servers.directory / "cluster.json").read_text())["spaces"]


@pytest.mark.parametrize("space", ["", "a/b", "a.b", "x" * 33, "ü", "a b", "*", "a\n"])
def test_a_space_needs_a_plain_name(servers: LocalServers, space: str) -> None:
    with pytest.raises(InvalidArgument, match="name of a space"):
        servers.url(space)


def test_an_unknown_user_is_refused(servers: LocalServers) -> None:
    with pytest.raises(InvalidArgument, match="app, node, admin"):
        servers.url("main", "root")


def test_a_second_start_is_an_error_and_harms_nothing(servers: LocalServers) -> None:
    pids = [server.pid for server in servers.servers]
    with pytest.raises(SpaceError, match="running already"):
        LocalServers.start(servers.directory, 3)
    assert [server.pid for server in servers.servers] == pids


def test_a_killed_server_comes_back_at_its_port(servers: LocalServers) -> None:
    before = servers.servers[2]
    servers.kill(2)
    assert servers.servers[2].pid is None and servers.servers[0].pid is not None
    servers.restart(2)
    after = servers.servers[2]
    assert after.pid not in (None, before.pid) and after.port == before.port


def test_a_halted_server_goes_on(servers: LocalServers) -> None:
    servers.stop_server(1)
    pid = servers.servers[1].pid
    assert pid is not None
    end = time.monotonic() + 120
    while (stat_line := Path(f"/proc/{pid}/stat").read_text())[stat_line.rindex(")") + 2] != "T":
        # A thread that runs on the other processor stops a little later.
        assert time.monotonic() < end, stat_line
    servers.cont(1)
    with servers.states(1) as states:
        assert states.meta() is not None


def test_one_server_alone_ends_and_starts_again(tmp_path: Path) -> None:
    servers = LocalServers.start(tmp_path / "one", 1, spaces=["main"])
    try:
        first = servers.servers[0]
        servers.stop()
        assert not servers.running
        again = LocalServers.start(tmp_path / "one", 1)
        assert again.servers[0].port == first.port and again.servers[0].pid != first.pid
        assert "/main?" in again.url("main")  # known from before
    finally:
        servers.stop(delete=True)
    assert not list((tmp_path / "one").iterdir())


def test_a_cluster_is_opened_by_another_process(servers: LocalServers) -> None:
    other = LocalServers.open(servers.directory)
    assert other.servers == servers.servers and other.url("main") == servers.url("main")


def test_no_cluster_there(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match="holds no cluster"):
        LocalServers.open(tmp_path)


def test_another_shape_than_that_of_the_directory(tmp_path: Path) -> None:
    servers = LocalServers.start(tmp_path, 1)
    servers.stop()
    with pytest.raises(SpaceError, match="made otherwise"):
        LocalServers.start(tmp_path, 3)
    assert not servers.running


@pytest.mark.parametrize(
    ("count", "regions"), [(0, 1), (2, 1), (4, 1), (1, 2), (3, 0), (3, 9), (2, 2), (6, 2), (27, 2)]
)
def test_counts_that_are_no_cluster(tmp_path: Path, count: int, regions: int) -> None:
    with pytest.raises(InvalidArgument):
        LocalServers.start(tmp_path, count, regions=regions)
    assert not list(tmp_path.iterdir())


def test_a_start_that_fails_leaves_nothing_running(tmp_path: Path) -> None:
    servers = LocalServers.start(tmp_path, 3)
    ports = [server.port for server in servers.servers]
    servers.stop()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", ports[1]))
        taken.listen()
        with pytest.raises(SpaceError, match=r"s2.*address already in use"):
            LocalServers.start(tmp_path, 3)
        assert not servers.running
        assert (tmp_path / "cluster.json").exists()  # what is there is kept


def test_a_server_that_never_meets_the_others_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spawn, spawned = LocalServers._spawn, []

    def spawn_a_deaf_one_first(self: LocalServers, server: ServerPlan) -> None:
        spawned.append(server.name)
        if server.name == "s3" and spawned.count("s3") == 1:
            folder = self.directory / server.name
            daemons.start(["sleep", "1000"], log=folder / "output.log", pid_file=folder / "pid.json")
        else:
            spawn(self, server)

    await_leader = LocalServers._await_leader

    def await_those_who_can(self: LocalServers, indices: Sequence[int], **options: Any) -> None:
        if len(spawned) == 3:
            await_leader(self, [0, 1], known=1)
            raise Timeout("as after all the time for meeting")
        await_leader(self, indices, **options)

    monkeypatch.setattr(LocalServers, "_spawn", spawn_a_deaf_one_first)
    monkeypatch.setattr(LocalServers, "_await_leader", await_those_who_can)
    servers = LocalServers.start(tmp_path, 3, secure=False)
    try:
        assert spawned == ["s1", "s2", "s3", "s3"], "the two that have met continue"
        assert servers.running
    finally:
        servers.stop(delete=True)


def test_a_pid_that_belongs_to_another_process_by_now_gets_no_signal(tmp_path: Path) -> None:
    mine = daemons.Daemon(os.getpid(), "another-boot-1")
    assert not daemons.alive(mine)
    assert not daemons.send(mine, signal.SIGKILL)
    assert daemons.end([mine], 0.1) == []


def test_servers_over_regions_say_where_they_are_by_names_and_tags(tmp_path: Path) -> None:
    servers = LocalServers.start(tmp_path, 3, regions=2, spaces=["main"])
    try:
        assert [server.region for server in servers.servers] == ["dc1", "dc2", "witness"]
        assert servers.regions == servers.space_regions == ["dc1", "dc2"] and servers.copies == 3
        config = json.loads((servers.servers[2].dir / "nats.conf").read_text())
        assert config["server_name"] == "witness-1" and config["server_tags"] == ["region:witness", "cp"]
        assert "unique_tag" not in config["jetstream"], "a region may have several copies"
    finally:
        servers.stop()
