"""Servers over regions, as they run: where copies are, whom programs are connected to, who leads, and what the loss of a region
costs."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import onefold as of
from onefold import config
from onefold.available.regions import read_self
from onefold.cluster import daemons, server_plan, shapes
from onefold.cluster.local import LocalCluster
from onefold.cluster.server_config import ClusterPlan, ServerPlan
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.doctor import cluster as doctor
from onefold.doctor.embedded import Check
from onefold.doctor.facts import look
from onefold.errors import InvalidArgument, SpaceError, Timeout, Unavailable
from onefold.fold.nodes.regions import Admit, read_decisions
from onefold.folds import region_folds
from onefold.log.jetstream import admin, names, stream_making
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.regions import region_of
from onefold.log.jetstream.streams import Refused, lead_from
from onefold.space.open_cluster import open_region

WAIT_S = 120.0


def await_state(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def onefold(*args: str | Path) -> subprocess.CompletedProcess[str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    line = [sys.executable, "-m", "onefold.cli", *map(str, args)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=180, env=kept)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two regions of three servers and a node each, and a witness."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(config, "HOME_LOOK_S", 0.5)  # of this process's links
        found = LocalCluster.up(tmp_path_factory.mktemp("regions") / "c", nodes=2, regions=2)
        yield found
        found.down(delete=True)


@pytest.fixture(scope="module")
def as_admin(cluster: LocalCluster) -> Iterator[Link]:
    link = Link(parse_address(cluster.url("admin")))
    yield link
    link.close()


def indices(cluster: LocalCluster, region: str) -> list[int]:
    return [index for index, server in enumerate(cluster.servers.servers) if server.region == region]


def server_of(db: Any) -> str:
    """The server that a program is connected to; empty while there is none."""
    return db._shards[0].log._link.server_name or ""


def leader(link: Link, stream: str) -> str:
    return next((one.leader or "" for one in look(link).streams if one.name == stream), "")


def examined(cluster: LocalCluster) -> dict[str, Check]:
    """What the doctor finds, by name."""
    return {check.name: check for check in doctor.examine(cluster.url("admin"))}


def led_from(link: Link, stream: str, region: str) -> bool:
    """Whether a log is led from a region; if not, it is asked to be."""
    if region_of(leader(link, stream)) == region:
        return True
    with contextlib.suppress(
        Unavailable, Timeout, Refused
    ):  # nobody leads it, or the server is not connected yet
        link.run(lambda: lead_from(link, stream, region), config.ENGINE_REQUEST_TIMEOUT_S)
    return region_of(leader(link, stream)) == region


# -- where copies are


def test_every_stream_survives_the_loss_of_any_place(cluster: LocalCluster, as_admin: Link) -> None:
    info = admin.read_space(as_admin)
    assert (info.regions, info.replicas, info.format) == (("dc1", "dc2"), 5, 2)
    facts = look(as_admin)
    of_all = [stream for stream in facts.streams if not stream.region]
    assert len(of_all) == 3, "the record, a log, the blobs"
    for stream in of_all:
        assert Counter(map(region_of, stream.servers)) == {"dc1": 2, "dc2": 2, "witness": 1}, stream.name
    assert [(one.name, one.replicas) for one in info.region_logs] == [("dc1", 3), ("dc2", 3)]
    for region in info.regions:
        own = [stream for stream in facts.streams if stream.region == region]
        assert len(own) == 3, "a copy of the record, a log, the blobs of its snapshots"
        for stream in own:
            assert Counter(map(region_of, stream.servers)) == {region: 3}, stream.name
    assert [server.region for server in facts.servers] == [*["dc1"] * 3, *["dc2"] * 3, "witness"]
    await_state(lambda: examined(cluster)["streams"].status == "ok")  # a node may just have moved a leader
    places = examined(cluster)["places"]
    assert places.status == "ok" and "loss of any of dc1, dc2" in places.found, places


def test_up_says_where_everything_is(cluster: LocalCluster) -> None:
    pids = [server.pid for server in cluster.servers.servers]
    again = onefold("up", "--nodes", "2", "--regions", "2", "--dir", cluster.directory, "--json")
    assert again.returncode == 0, again.stderr
    said = json.loads(again.stdout)
    regions = Counter(server["region"] for server in said["servers"])
    assert regions == {"dc1": 3, "dc2": 3, "witness": 1}
    assert [server["pid"] for server in said["servers"]] == pids
    assert {node["name"]: node["region"] for node in said["nodes"]} == {"n1": "dc1", "n2": "dc2"}


def test_a_space_of_others_is_made_over_regions_and_stays_so(cluster: LocalCluster) -> None:
    url = cluster.servers.url("second", "admin")
    made = onefold("init", "--url", url, "--regions", "dc1,dc2", "--shards", "2", "--json")
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert (said["regions"], said["replicas"], said["shards"]) == (["dc1", "dc2"], 5, 2)
    assert json.loads(onefold("init", "--url", url, "--json").stdout) == said
    other = onefold("init", "--url", url, "--regions", "dc1,dc3")
    assert (
        other.returncode == 1 and "over the regions dc1, dc2 and not dc1, dc3, which is fixed" in other.stderr
    )


def test_a_backup_becomes_a_space_over_regions(cluster: LocalCluster, tmp_path: Path) -> None:
    with of.connect(
        tmp_path / "space", region="eu"
    ) as db:  # which is decided there, and not in the new space
        db.map("m")["k"] = "kept"
    assert onefold("backup", tmp_path / "b", "--url", tmp_path / "space").returncode == 0
    in_a_folder = onefold("restore", tmp_path / "b", "--url", tmp_path / "other", "--regions", "dc1,dc2")
    assert in_a_folder.returncode == 2 and not (tmp_path / "other").exists()
    url = cluster.servers.url("restored", "admin")
    done = onefold("restore", tmp_path / "b", "--url", url, "--regions", "dc1,dc2")
    assert done.returncode == 0, done.stderr
    with of.connect(cluster.servers.url("restored"), region="dc1", timeout=WAIT_S) as db:
        assert dict(db.map("m")) == {"k": "kept"}
        with db._shards[0].view() as view:
            assert read_decisions(view) == [Admit(1, "dc1", True), Admit(2, "dc2", True)]
    (shard,) = open_region(cluster.servers.url("restored"), "dc2", region_folds)
    with closing(shard), shard.view() as view:
        assert read_self(view).number == 2 and view.tables("ap/c/") == [], "its own logs begin empty"
    link = Link(parse_address(url))
    try:
        facts = look(link)
        assert facts.space is not None and facts.space.regions == ("dc1", "dc2")
        for stream in facts.streams:
            witnesses = 0 if stream.region else 1
            assert Counter(map(region_of, stream.servers))["witness"] == witnesses, stream.name
    finally:
        link.close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--regions", "dc1,dc 2"), "cannot be the name of a region"),
        (("--regions", "dc1,dc1"), "the same name"),
        (("--regions", "dc1"), "2 to 16"),
        (("--regions", "dc1,dc3"), "dc2-1"),
        (("--regions", "dc1,dc2,dc3"), "No server is in dc3"),
        (("--regions", "dc1,dc2", "--replicas", "1"), "1 copies over servers by region"),
    ],
    ids=lambda case: case if isinstance(case, str) else None,
)
def test_regions_that_the_servers_have_not(
    cluster: LocalCluster, options: tuple[str, ...], told: str
) -> None:
    url = cluster.servers.url("third", "admin")
    done = onefold("init", "--url", url, *options)
    assert done.returncode == 2 and told in " ".join(done.stderr.replace("│", " ").split()), done.stderr
    link = Link(parse_address(url))
    try:
        assert admin.find_space(link, "third") is None and look(link).streams == []
    finally:
        link.close()


def test_a_program_and_a_node_are_in_a_region_of_the_space(cluster: LocalCluster, tmp_path: Path) -> None:
    for region in ("dc3", "witness", "dc/1", "x" * 33):
        with pytest.raises(InvalidArgument, match="region"):
            of.connect(cluster.url(), region=region)
    command = ("node", "--url", cluster.url("node"), "--name", "n9", "--dir", tmp_path / "n9")
    refused = onefold(*command)
    assert refused.returncode != 0 and "has the regions dc1, dc2" in refused.stderr


# -- leaders


def test_a_log_that_the_witness_leads_is_led_from_a_region_again(
    cluster: LocalCluster, as_admin: Link
) -> None:
    info = admin.read_space(as_admin)
    stream = names.LogNames(info.space, info.incarnation, 0).stream
    await_state(lambda: led_from(as_admin, stream, "witness"))
    await_state(lambda: region_of(leader(as_admin, stream)) in ("dc1", "dc2"))
    logs = [(node.dir / "node.log").read_text() for node in cluster.nodes]
    assert sum(log.count('"leader_moved"') for log in logs) >= 1


# -- a region is lost, and comes back


def test_a_program_is_connected_to_its_region_and_goes_back_to_it(cluster: LocalCluster) -> None:
    with of.connect(cluster.url(), region="dc2", timeout=WAIT_S) as db:
        await_state(lambda: region_of(server_of(db)) == "dc2")
        seen = db.map("moves")
        seen["before"] = 1
        for index in indices(cluster, "dc2"):
            cluster.servers.kill(index)
        seen["without"] = 2
        assert region_of(server_of(db)) in ("dc1", "witness")
        for index in indices(cluster, "dc2"):
            cluster.servers.restart(index, wait=False)
        await_state(lambda: region_of(server_of(db)) == "dc2")
        seen["after"] = 3
        with of.connect(cluster.url(), replicas="remote", region="dc1", timeout=WAIT_S) as other:
            other.map("moves")["others"] = 4
        await_state(lambda: seen.get("others", consistency="eventual") == 4)
        assert dict(seen) == {"before": 1, "without": 2, "after": 3, "others": 4}


def test_consistent_writes_go_on_when_all_of_a_region_is_killed(
    cluster: LocalCluster, as_admin: Link
) -> None:
    LocalCluster.up(cluster.directory)
    info = admin.read_space(as_admin)
    stream = names.LogNames(info.space, info.incarnation, 0).stream
    with of.connect(cluster.url(), region="dc2", timeout=WAIT_S) as db:
        counts = db.map("counts")
        counts["before"] = 1
        await_state(lambda: led_from(as_admin, stream, "dc1"))  # the worse case
        lost = [cluster.servers.servers[index].pid for index in indices(cluster, "dc1")]
        lost += [node.pid for node in cluster.nodes if node.region == "dc1"]
        for pid in lost:
            assert pid is not None
            assert daemons.send(daemons.identify(pid), signal.SIGKILL)
        counts["during"] = 2
        assert counts.get("before", consistency="strong") == 1
        assert region_of(server_of(db)) != "dc1"
        with of.connect(cluster.url(), region="dc2", replicas="remote", timeout=WAIT_S) as new:
            assert dict(new.map("counts")) == {"before": 1, "during": 2}
        assert [server.pid for server in cluster.servers.servers].count(None) == 3
        LocalCluster.up(cluster.directory)
        counts["after"] = 3
    with of.connect(cluster.url(), region="dc1", replicas="remote", timeout=WAIT_S) as back:
        assert dict(back.map("counts")) == {"before": 1, "during": 2, "after": 3}
    await_state(lambda: examined(cluster)["replicas"].status == "ok")


# -- servers that are not as they should be


def test_servers_whose_tags_put_too_many_copies_in_one_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "cp_counts", lambda *_: {"dc1": 2, "dc2": 1, "witness": 0})
    servers = LocalServers.start(tmp_path, 5, regions=2, spaces=["main"])
    monkeypatch.undo()
    url = servers.url("main", "admin")
    link = Link(parse_address(url))
    try:
        with pytest.raises(SpaceError, match="too few servers with the tag cp for 5 copies"):
            set_up_space(url, regions=["dc1", "dc2"])
        with pytest.raises(
            SpaceError, match=r"2 of 3 copies are in dc1.* Give the tag cp to exactly 3 servers"
        ):
            set_up_space(url, regions=["dc1", "dc2"], replicas=3)
        assert admin.find_space(link, "main") is None
        assert stream_making.stream_names(link, ">") == [], "the next try makes them again"
        servers.kill(0)
        with pytest.raises(of.Unavailable, match="needs all servers"):
            set_up_space(url, regions=["dc1", "dc2"])
    finally:
        link.close()
        servers.stop(delete=True)


def test_a_cluster_of_an_earlier_release_stays_as_it_is(tmp_path: Path) -> None:
    """Three servers in three places, one copy of each log in each; its space is one region."""
    ports = server_plan.free_ports(6)
    places = ("dc1", "dc2", "witness")
    plan = [ServerPlan(f"s{n + 1}", ports[n], ports[n + 3], places[n]) for n in range(3)]
    server_plan.write(tmp_path, ClusterPlan("onefold-old", plan, 1 << 30, True, ["main"]))
    cluster = LocalCluster.up(tmp_path, nodes=0)
    try:
        told = json.loads((cluster.servers.servers[2].dir / "nats.conf").read_text())
        assert told["server_tags"] == ["az:witness"] and told["jetstream"]["unique_tag"] == "az:"
        link = Link(parse_address(cluster.url("admin")))
        info = admin.read_space(link)
        link.close()
        assert (info.regions, info.format, info.replicas) == ((), 1, 3)
        assert LocalCluster.up(tmp_path, regions=2).servers.servers == cluster.servers.servers
        with of.connect(cluster.url(), region="dc1", timeout=WAIT_S) as db:
            db.map("m")["k"] = 1
    finally:
        cluster.down(delete=True)
