"""`onefold up` and `down`: all of it runs or nothing, and it is the same cluster the next time."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold.cluster import daemons
from onefold.cluster.local import LocalCluster
from onefold.errors import InvalidArgument, SpaceError
from onefold.log.jetstream import admin, names
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link

WAIT_S = 120.0


def command(*args: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "onefold.cli", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=180, **options)


def running(directory: Path) -> list[int]:
    """Pids of what runs of the cluster, by its pid files."""
    files = [*directory.glob("*/pid.json"), *directory.glob("nodes/*/pid.json")]
    found = [daemons.read(path) for path in files]
    return [daemon.pid for daemon in found if daemon is not None and daemons.alive(daemon)]


def mentioning(directory: Path) -> list[int]:
    """Pids of all processes of this machine whose command line names the directory, whatever the pid files say."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(str(directory).encode() in part for part in line):
                found.append(int(entry.name))
    return found


def await_state(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def append(cluster: LocalCluster, payload: bytes) -> int:
    """Append bytes to the log of shard 0; the offset."""
    link = Link(parse_address(cluster.url()))
    try:
        info = admin.read_space(link)
        answer = link.append(names.LogNames(info.space, info.incarnation, 0).subject, payload, None).wait(
            WAIT_S
        )
        assert answer is not None
        return int(json.loads(answer.data)["seq"])
    finally:
        link.close()


def record(cluster: LocalCluster, offset: int) -> bytes:
    link = Link(parse_address(cluster.url()))
    try:
        info = admin.read_space(link)
        stream = names.LogNames(info.space, info.incarnation, 0).stream
        return link.request(names.DIRECT_GET + stream, b'{"seq":%d}' % offset, timeout=WAIT_S).data
    finally:
        link.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    directory = tmp_path_factory.mktemp("up") / "cluster"
    found = LocalCluster.up(directory, nodes=0, shards=2)
    yield found
    found.down(delete=True)
    assert not directory.exists() and not mentioning(directory)


def test_a_second_up_changes_nothing(cluster: LocalCluster) -> None:
    before = cluster.servers.servers
    again = LocalCluster.up(cluster.directory)
    assert again.servers.servers == before and again.url() == cluster.url()


def test_up_starts_what_was_killed_and_nothing_else(cluster: LocalCluster) -> None:
    before = [server.pid for server in cluster.servers.servers]
    cluster.servers.kill(1)
    LocalCluster.up(cluster.directory)
    after = [server.pid for server in cluster.servers.servers]
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] not in (None, before[1])


@pytest.mark.parametrize(
    "asked",
    [{"regions": 2}, {"servers": 5}, {"shards": 3}, {"space": "another"}],
    ids=lambda asked: next(iter(asked)),
)
def test_what_contradicts_the_cluster_is_an_error_and_harms_nothing(
    cluster: LocalCluster, asked: dict[str, Any]
) -> None:
    before = cluster.servers.servers
    with pytest.raises(SpaceError, match=r"is fixed|cannot be changed|holds space"):
        LocalCluster.up(cluster.directory, **asked)
    assert cluster.servers.servers == before


@pytest.mark.parametrize(
    "asked", [{"nodes": -1}, {"nodes": 1000}, {"servers": 2}, {"regions": 9}, {"space": "a b"}]
)
def test_arguments_that_make_no_cluster(tmp_path: Path, asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        LocalCluster.up(tmp_path, **({"nodes": 0} | asked))
    assert not running(tmp_path)


def test_only_one_at_a_time(cluster: LocalCluster) -> None:
    fd = os.open(cluster.directory / ".lock", os.O_RDWR)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        for act in (lambda: LocalCluster.up(cluster.directory), cluster.down):
            with pytest.raises(SpaceError, match="is at work"):
                act()
    finally:
        os.close(fd)
    assert len(running(cluster.directory)) == 3


def test_down_keeps_the_data_and_up_is_the_same_cluster(cluster: LocalCluster) -> None:
    offset = append(cluster, b"kept")
    url, ports = cluster.url(), [server.port for server in cluster.servers.servers]
    assert cluster.down() == ["s1", "s2", "s3"]
    assert not mentioning(cluster.directory)
    assert cluster.down() == []
    again = LocalCluster.up(cluster.directory)
    assert (again.url(), [server.port for server in again.servers.servers]) == (url, ports)
    assert record(again, offset) == b"kept"


def test_down_ends_a_halted_server_too(tmp_path: Path) -> None:
    cluster = LocalCluster.up(tmp_path, nodes=0, servers=1)
    cluster.servers.stop_server(0)
    cluster.down()
    assert not mentioning(tmp_path)


def test_down_leaves_a_process_alone_that_has_the_pid_by_now(tmp_path: Path) -> None:
    cluster = LocalCluster.up(tmp_path, nodes=0, servers=1)
    cluster.down()
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        stale = json.dumps({"pid": stranger.pid, "started": "0-1"})
        (tmp_path / "s1" / "pid.json").write_text(stale)
        assert cluster.down() == []
        assert stranger.poll() is None
        again = LocalCluster.up(tmp_path)  # nor is it taken for the server
        assert again.servers.servers[0].pid not in (None, stranger.pid)
        again.down()
        assert stranger.poll() is None
    finally:
        stranger.communicate(b"\n")


def test_an_up_that_fails_half_way_leaves_nothing_running(tmp_path: Path) -> None:
    cluster = LocalCluster.up(tmp_path, nodes=0)
    port = cluster.servers.servers[2].port
    cluster.down()
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(SpaceError, match="address already in use"):
            LocalCluster.up(tmp_path)
    assert not mentioning(tmp_path)


def test_a_node_that_does_not_start_takes_the_servers_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = Path(sys.executable).parent / "nats-server"
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho it cannot start >&2\nexit 3\n")
    failing.chmod(0o755)
    monkeypatch.setattr("onefold.cluster.local.sys.executable", str(failing))
    monkeypatch.setenv("ONEFOLD_NATS_SERVER", str(servers))
    with pytest.raises(SpaceError, match="node n1 ended: it cannot start"):
        LocalCluster.up(tmp_path / "c", nodes=1)
    assert not mentioning(tmp_path / "c")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.moving(3)
def test_an_up_that_is_interrupted_leaves_nothing_running(tmp_path: Path, number: int) -> None:
    line = [sys.executable, "-m", "onefold.cli", "up", "--nodes", "0", "--dir", str(tmp_path)]
    up = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    await_state(lambda: running(tmp_path))
    up.send_signal(number)
    _, said = up.communicate(timeout=WAIT_S)
    assert up.returncode in (128 + number, 130), said
    assert not mentioning(tmp_path)


def test_without_the_server_program(tmp_path: Path) -> None:
    done = command(
        "up", "--nodes", "0", "--dir", tmp_path, env=os.environ | {"ONEFOLD_NATS_SERVER": "/nowhere"}
    )
    assert done.returncode == 1 and "ONEFOLD_NATS_SERVER" in done.stderr and "Traceback" not in done.stderr


def test_the_command_line(tmp_path: Path) -> None:
    directory = tmp_path / "a dir"
    try:
        up = command("up", "--nodes", "0", "--servers", "1", "--dir", directory, "--json")
        assert up.returncode == 0, up.stderr
        found = json.loads(up.stdout)
        assert found["url"].startswith("nats://127.0.0.1:") and found["nodes"] == []
        (server,) = found["servers"]
        assert server.keys() >= {"name", "pid", "port", "dir"}
        assert server["pid"] in running(directory)
        assert os.getsid(server["pid"]) == server["pid"] != os.getsid(0)
        shown = command("up", "--dir", directory)
        assert f"export ONEFOLD_URL='{found['url']}'" in shown.stdout
    finally:
        down = command("down", "--dir", directory, "--json")
    assert json.loads(down.stdout) == {"dir": str(directory), "ended": ["s1"], "deleted": False}
    assert directory.exists() and not mentioning(directory)
    deleted = command("down", "--dir", directory, "--delete")
    assert deleted.returncode == 0 and not directory.exists()
    nothing = command("down", "--dir", directory)
    assert nothing.returncode == 1 and "holds no cluster" in nothing.stderr
    assert command("up", "--servers", "2", "--dir", directory).returncode == 2
    uneven = command("up", "--servers", "6", "--regions", "2", "--dir", directory)
    assert uneven.returncode == 2 and "must survive the loss" in uneven.stderr.replace("\n", " ")
    assert not running(directory)


def test_a_cluster_from_a_backup(tmp_path: Path) -> None:
    with of.connect(tmp_path / "space", shards=2) as db:
        db.map("m").put_many({number: number for number in range(50)}, atomic=False)
    done = command("backup", tmp_path / "b", "--url", tmp_path / "space")
    assert done.returncode == 0, done.stderr
    place = ("--dir", tmp_path / "c")
    for wrong, code, said in (
        (("--restore", tmp_path / "nothing"), 1, "there is no backup"),
        (("--restore", tmp_path / "b", "--shards", "3"), 2, "2 shards"),
    ):
        refused = command("up", *place, *wrong)
        assert refused.returncode == code and said in refused.stderr, refused.stderr
        assert not (tmp_path / "c" / "cluster.json").exists()
    try:
        made = command("up", *place, "--servers", "1", "--nodes", "1", "--restore", tmp_path / "b", "--json")
        assert made.returncode == 0, made.stderr
        with of.connect(json.loads(made.stdout)["url"], replicas="remote") as db:
            assert dict(db.map("m")) == {number: number for number in range(50)}
        again = command("up", *place, "--restore", tmp_path / "b")
        assert again.returncode == 1 and "nothing is restored over it" in again.stderr
        assert running(tmp_path / "c"), "what ran goes on"
    finally:
        command("down", *place, "--delete")
    assert mentioning(tmp_path / "c") == []


def test_two_regions(tmp_path: Path) -> None:
    cluster = LocalCluster.up(tmp_path, nodes=0, regions=2, servers=3)
    try:
        assert [server.region for server in cluster.servers.servers] == ["dc1", "dc2", "witness"]
        link = Link(parse_address(cluster.url("admin")))
        info = admin.read_space(link)
        link.close()
        assert info.replicas == 3 and info.regions == ("dc1", "dc2")  # one copy in each place
    finally:
        cluster.down()


def test_nodes_are_ready_and_come_back_and_more_can_be_added(tmp_path: Path) -> None:
    try:
        cluster = LocalCluster.up(tmp_path, nodes=2, regions=2, servers=3)
        assert [(node.name, node.region) for node in cluster.nodes] == [("n1", "dc1"), ("n2", "dc2")]
        first, second = (node.pid for node in cluster.nodes)
        assert first is not None and second is not None
        os.kill(first, signal.SIGKILL)
        await_state(lambda: cluster.nodes[0].pid is None)
        again = LocalCluster.up(tmp_path, nodes=3)
        assert [node.region for node in again.nodes] == ["dc1", "dc2", "dc1"]
        assert again.nodes[0].pid not in (None, first) and again.nodes[1].pid == second
        assert all(ready(node.port) for node in again.nodes)
        with pytest.raises(SpaceError, match="has 3 nodes, not 1"):
            LocalCluster.up(tmp_path, nodes=1)
    finally:
        ended = LocalCluster.open(tmp_path).down()
    assert ended == ["n1", "n2", "n3", "dc1-1", "dc2-1", "witness-1"]
    assert not mentioning(tmp_path)
    last = (tmp_path / "nodes" / "n3" / "node.log").read_text().splitlines()[-1]
    assert json.loads(last)["event"] == "ended"  # it left, it was not killed


def ready(port: int) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=WAIT_S) as answer:
        return bool(answer.status == 200)
