"""Nodes of a cluster over regions: they host their region's own logs, and bring over what other regions did. All of that needs no
majority of the space's logs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from onefold import config
from onefold.available import ops
from onefold.available.kinds import places
from onefold.available.regions import read_self
from onefold.available.rows import shown_tables
from onefold.cluster import daemons
from onefold.cluster.local import LocalCluster, LocalNode
from onefold.env import SYSTEM
from onefold.folds import region_folds
from onefold.log.jetstream import admin
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.regions.cluster import ClusterNeighbours, ClusterPeers
from onefold.shard.api import Shard
from onefold.space.open_cluster import open_region
from support.whole_lines import json_lines

WAIT_S = 120.0
SHARDS = 2


def await_state(what: Callable[[], Any], problem: str = "it did not come about") -> Any:
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, problem
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two regions of three servers and two nodes each, and a witness."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = LocalCluster.up(tmp_path_factory.mktemp("regions") / "c", nodes=4, regions=2, shards=SHARDS)
        yield found
        found.down(delete=True)


@pytest.fixture(autouse=True)
def whole(cluster: LocalCluster) -> Iterator[None]:
    """What a test has ended runs again."""
    yield
    if None in {one.pid for one in (*cluster.nodes, *cluster.servers.servers)}:
        LocalCluster.up(cluster.directory)


def opened(cluster: LocalCluster, region: str) -> list[Shard]:
    """What a program without replicas has of a region's logs."""
    return open_region(cluster.url(), region, region_folds, replicas="remote")


@pytest.fixture
def both(cluster: LocalCluster) -> Iterator[dict[str, list[Shard]]]:
    with ExitStack() as stack:
        found = {}
        for region in ("dc1", "dc2"):
            found[region] = opened(cluster, region)
            for shard in found[region]:
                stack.callback(shard.close)
        yield found


def put(shard: Shard, key: str, value: bytes) -> int:
    """The number of the effect."""
    done = ops.Do((ops.Put("r", "carts", ((key.encode(), value),)),))
    outcome = ops.decode_outcome(shard.submit([ops.available_op(done)])[0])
    assert isinstance(outcome, ops.Committed), outcome
    return outcome.seq


def held(shard: Shard) -> dict[str, bytes]:
    """The keys of carts that a region has."""
    with shard.view() as view:
        rows = view.scan(shown_tables(view).rows + places.place_of("r", "carts"))
        return {key.decode(): data for key, data in rows}


def knows(shard: Shard, number: int, seq: int) -> bool:
    with shard.view() as view:
        return read_self(view).have().get(number, 0) >= seq


def nodes_of(cluster: LocalCluster, region: str) -> list[LocalNode]:
    return [node for node in cluster.nodes if node.region == region]


def pids(cluster: LocalCluster, *places: str, nodes: bool = True) -> list[int]:
    """The processes of these places."""
    servers = [server.pid for server in cluster.servers.servers if server.region in places]
    of_nodes = [node.pid for node in cluster.nodes if nodes and node.region in places]
    return [pid for pid in servers + of_nodes if pid is not None]


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        daemons.send(daemons.identify(pid), number)


def asked(node: LocalNode, path: str) -> Any:
    """What a node's HTTP side says."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{node.port}{path}", timeout=5) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
    except OSError:
        return {}
    return text if path == "/metrics" else json.loads(text)


def log_lines(node: LocalNode, event: str) -> list[dict[str, Any]]:
    return [line for line in json_lines(node.dir / "node.log") if line["event"] == event]


def same_everywhere(both: dict[str, list[Shard]]) -> bool:
    """Whether both regions know the same and hold the same."""

    def of(shard: Shard) -> object:
        with shard.view() as view:
            me = read_self(view)
            return me.have(), me.content

    return all(of(a) == of(b) for a, b in zip(both["dc1"], both["dc2"], strict=True))


# -- hosting


def test_nodes_host_the_logs_of_their_region(cluster: LocalCluster, both: dict[str, list[Shard]]) -> None:
    for node in cluster.nodes:
        ready = asked(node, "/ready")
        assert ready["ok"] and ready["region"]["ok"] and ready["region"]["shards"] == [0, 1], ready
        for line in ('onefold_region_nodes{state="live"} 2.0', 'onefold_nodes{state="live"} 4.0'):
            await_state(lambda: line in asked(node, "/metrics"), line)  # noqa: B023
        assert {line["region"] for line in log_lines(node, "joined") if line.get("logs")} == {node.region}
    for region, number in (("dc1", 1), ("dc2", 2)):
        with both[region][0].view() as view:
            found = read_self(view)
        assert (found.number, sorted(found.regions)) == (number, [1, 2])


def test_what_one_region_writes_comes_to_the_other(both: dict[str, list[Shard]]) -> None:
    for at in range(SHARDS):
        seqs = {
            1: put(both["dc1"][at], f"from-1-{at}", b"a"),
            2: put(both["dc2"][at], f"from-2-{at}", b"b"),
        }
        for region, number in (("dc1", 2), ("dc2", 1)):
            await_state(lambda: knows(both[region][at], number, seqs[number]))  # noqa: B023
    await_state(lambda: same_everywhere(both))
    for at in range(SHARDS):
        assert held(both["dc1"][at]) == held(both["dc2"][at])
        assert {f"from-1-{at}", f"from-2-{at}"} <= held(both["dc1"][at]).keys()


def test_programs_learn_how_far_other_regions_are(
    cluster: LocalCluster, both: dict[str, list[Shard]]
) -> None:
    link = Link(parse_address(cluster.url()))
    info = admin.read_space(link)
    neighbours = ClusterNeighbours(link, info, lambda: both["dc1"][0], region_folds, SYSTEM)
    try:
        peers = ClusterPeers(neighbours, both["dc1"])
        seq = put(both["dc2"][1], "latest", b"v")
        found = peers.latest(10.0)
        assert set(found) == {2} and set(found[2]) == {0, 1} and found[2][1] >= seq
        (other,) = peers.links()
        assert (other.number, other.name, other.silent_s, other.state) == (2, "dc2", 0.0, "linked")
        stopped = pids(cluster, "dc2", nodes=True)
        send(stopped, signal.SIGSTOP)
        try:
            assert peers.latest(1.0) == {}
            (other,) = peers.links()
            assert other.state == "cut" and other.silent_s > 0
        finally:
            send(stopped, signal.SIGCONT)
        await_state(lambda: peers.latest(5.0))
    finally:
        neighbours.close()
        link.close()


# -- faults


def test_another_node_pulls_when_the_one_that_did_is_killed(
    cluster: LocalCluster, both: dict[str, list[Shard]]
) -> None:
    for node in nodes_of(cluster, "dc2"):
        assert node.pid is not None
        send([node.pid], signal.SIGKILL)
        for at in range(SHARDS):
            seq = put(both["dc1"][at], f"without-{node.name}", b"v")
            await_state(lambda: knows(both["dc2"][at], 1, seq))  # noqa: B023
        LocalCluster.up(cluster.directory)
    await_state(lambda: same_everywhere(both))


def test_a_cut_between_regions_heals(cluster: LocalCluster, both: dict[str, list[Shard]]) -> None:
    stopped = pids(cluster, "dc2")
    before = {at: put(both["dc1"][at], "before", b"v") for at in range(SHARDS)}
    for at, seq in before.items():
        await_state(lambda: knows(both["dc2"][at], 1, seq))  # noqa: B023
    send(stopped, signal.SIGSTOP)
    try:
        during = [put(both["dc1"][0], f"during-{number}", b"v" * 100) for number in range(50)]
    finally:
        send(stopped, signal.SIGCONT)
    await_state(lambda: knows(both["dc2"][0], 1, during[-1]))
    own = put(both["dc2"][0], "after", b"v")
    await_state(lambda: knows(both["dc1"][0], 2, own))
    await_state(lambda: same_everywhere(both))


def test_a_region_goes_on_alone_and_its_nodes_restart_meanwhile(
    cluster: LocalCluster, both: dict[str, list[Shard]]
) -> None:
    """dc1 and the witness are gone: the space's logs have no majority. The region's are hosted, kept short and written."""
    kept = put(both["dc2"][0], "kept", b"v")
    await_state(lambda: knows(both["dc1"][0], 2, kept))
    send(pids(cluster, "dc1", "witness"), signal.SIGKILL)
    first, second = nodes_of(cluster, "dc2")
    send([pid for pid in (first.pid, second.pid) if pid is not None], signal.SIGKILL)
    with ExitStack() as stack:
        begun = {node.name: stack.enter_context(running(cluster, node)) for node in (first, second)}
        for node in (first, second):
            ready = await_state(lambda: (found := asked(node, "/ready")) and found["region"]["ok"] and found)  # noqa: B023
            assert not ready["ok"] and ready["waiting"], "the space's logs cannot be written"
            assert asked(node, "/live")["ok"]
        during = 0

        def kept_short() -> bool:
            """Write until the log of each shard can be trimmed, and nodes have tried to."""
            nonlocal during
            for at in range(SHARDS):
                for number in range(80):
                    during = put(both["dc2"][at], f"alone-{number}", b"v")
            stored = [line for node in (first, second) for line in log_lines(node, "snapshot_stored")]
            by_shard = Counter(line["shard"] for line in stored if line.get("logs") == "dc2")
            enough = all(by_shard[at] >= config.SNAPSHOTS_KEPT for at in range(SHARDS))
            return enough and any(log_lines(node, "trimming_stalled") for node in (first, second))

        await_state(kept_short, "snapshots of each shard, and a node that would trim")
        begun[second.name].kill()
        more = put(both["dc2"][1], "alone", b"w")
        assert "alone-79" in held(both["dc2"][0]) and knows(both["dc2"][1], 2, more)
        beats = heartbeats(first)
        await_state(lambda: heartbeats(first) > beats + 1)
    LocalCluster.up(cluster.directory)
    for at in range(SHARDS):  # which servers do for nobody while most of them are away
        await_state(lambda: any(first_offset(node, at) > 1 for node in nodes_of(cluster, "dc2")), "trimmed")  # noqa: B023
    await_state(lambda: knows(both["dc1"][SHARDS - 1], 2, during))
    await_state(lambda: same_everywhere(both))


def test_a_node_of_the_previous_release_is_refused(cluster: LocalCluster, tmp_path: Path) -> None:
    (node, *_) = nodes_of(cluster, "dc1")
    program = (
        "from onefold.log.jetstream import space_record, spaces; spaces.FORMAT = space_record.FORMAT = 1;"
        "from onefold.cli import main; import sys; main(sys.argv[1:])"
    )
    options = ["node", "--url", cluster.url("node"), "--name", "old", "--region", "dc1", "--dir", tmp_path]
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, options)],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT_S,
    )
    assert done.returncode != 0 and "has format 2; this program knows 1. Upgrade" in done.stderr, done.stderr
    assert asked(node, "/ready")["ok"]


def heartbeats(node: LocalNode) -> float:
    return metric(node, "onefold_region_node_heartbeats_total")


def first_offset(node: LocalNode, shard: int) -> float:
    """The first record of a log of the region that is kept, as the node sees it; 0 where it does not host it."""
    return metric(node, f'onefold_region_shard_log_first_offset{{shard="{shard}"}}')


def metric(node: LocalNode, name: str) -> float:
    lines = asked(node, "/metrics").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), 0.0)


@contextmanager
def running(cluster: LocalCluster, node: LocalNode) -> Iterator[subprocess.Popen[bytes]]:
    """A node's process that makes snapshots often, until the end of the block."""
    assert node.region is not None
    small = [
        str(Path(__file__).with_name("small_node.py")),
        "SNAPSHOT_EVERY_OFFSETS=64",
        "UPKEEP_LOOK_S=0.2",
        "--",
    ]
    options = [
        "node",
        "--url",
        cluster.url("node"),
        "--name",
        node.name,
        "--region",
        node.region,
        "--workers",
        "1",
    ]
    options += ["--dir", str(node.dir), "--http", f"127.0.0.1:{node.port}"]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    with (node.dir / "node.log").open("ab") as log:
        process = subprocess.Popen([sys.executable, *small, *options], stderr=log, env=kept)
    try:
        yield process
        process.terminate()
        process.wait(WAIT_S)
    finally:
        process.kill()
        process.wait()
