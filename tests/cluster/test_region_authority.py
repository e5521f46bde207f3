"""Who may append what to a region's own logs: the rows ``ap`` of the table of docs/cluster.md, tried on real servers with each
credential."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest

from kit.cluster.log_ground import until
from onefold.available import ops
from onefold.available.regions import read_self
from onefold.cluster.local import LocalCluster
from onefold.codec import Op, Record, encode_record
from onefold.compute.blobs.jetstream import JetStreamBackend
from onefold.compute.blobs.store import BlobsUnavailable, file_blob_name
from onefold.env import SYSTEM
from onefold.errors import SpaceError
from onefold.fold import authority, system
from onefold.fold.nodes import ops as nodes_ops
from onefold.folds import region_folds
from onefold.ids import client_id
from onefold.log.jetstream import admin, names
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.stream_making import ask
from onefold.log.jetstream.streams import Refused
from onefold.shard.memory import MemoryShard
from onefold.shard.requirements import ReadRequirement
from onefold.space.open_cluster import open_region

USERS = ("app", "node", "admin")
REGION = "dc2"
FORGED: dict[str, ops.AvailableOp] = {
    "Import": ops.Import(1, (b"an effect",)),
    "Beat": ops.Beat(),
    "Admit": ops.Admit(9, "dc9"),
    "Evict": ops.Evict(1, 1),
    "Retire": ops.Retire(0),
    "Reclaim": ops.Reclaim(1, 2),
    "Accept": ops.Accept(1, 1 << 60),
    "Cap": ops.Cap(1, 2),
    "SyncBegin": ops.SyncBegin("s", 1, 0, b""),
    "SyncRows": ops.SyncRows("s", ()),
    "SyncEnd": ops.SyncEnd("s", 0),
    "Unseen": ops.Unseen(1, (b"an effect",)),
}
"""Of each operation that is for nodes, one that a program might forge."""


class Ground:
    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.links = {user: Link(parse_address(cluster.url(user))) for user in USERS}
        self.info = admin.read_space(self.links["app"]).of_region(REGION)
        self.shards = {
            user: MemoryShard(JetStreamLog(link, self.info, 0), region_folds(0, 1), SYSTEM, replica=True)
            for user, link in self.links.items()
        }

    def append_raw(self, user: str, op: Op) -> bytes:
        """The outcome of an operation that is written past Onefold's own writer, where everybody may publish."""
        record = Record(client_id(0, SYSTEM), 1, SYSTEM.wall_ms(), (op,), 2)
        log = JetStreamLog(self.links[user], self.info, 0)
        offset = until(lambda: log.append(encode_record(record)))
        log.close()
        shard = self.shards["node"]
        shard.barrier(60)
        assert shard.applied >= offset
        outcomes = shard.outcomes(record.client, 1)
        assert outcomes is not None
        return outcomes[0]

    def refused(self) -> authority.RefusedOps:
        self.shards["node"].barrier(60)
        with self.shards["node"].view() as view:
            return authority.refused_ops(view)

    def known(self) -> object:
        with self.shards["node"].view() as view:
            return read_self(view)

    def close(self) -> None:
        for shard in self.shards.values():
            shard.close()
        for link in self.links.values():
            link.close()


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Two regions of a server and a node each, and a witness."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONEFOLD_CACHE", str(tmp_path_factory.mktemp("cache")))
        cluster = LocalCluster.up(tmp_path_factory.mktemp("regions") / "c", nodes=2, regions=2, servers=3)
        found = Ground(cluster)
        yield found
        found.close()
        cluster.down(delete=True)


def test_every_operation_for_nodes_is_tried() -> None:
    assert set(FORGED) == {one.__name__ for one in get_args(ops.AvailableOp)} - {"Do"}


@pytest.mark.parametrize("name", FORGED)
def test_what_a_program_forges_is_refused_and_counted(ground: Ground, name: str) -> None:
    op = ops.available_op(FORGED[name])
    known, before = ground.known(), ground.refused()
    with pytest.raises(SpaceError, match="may not publish"):  # the servers, where only nodes may publish
        ground.shards["app"].submit([op])
    outcome = ops.decode_outcome(ground.append_raw("app", op))
    assert outcome == ops.Rejected("untrusted")
    after = ground.refused()
    assert after.kinds == before.kinds | {f"ap.{name}": before.kinds.get(f"ap.{name}", 0) + 1}
    assert after.offset > before.offset
    known_now = ground.known()
    assert known_now == known


@pytest.mark.parametrize("user", ["node", "admin"])
def test_others_may_append_them(ground: Ground, user: str) -> None:
    before = ground.refused()
    for name in ("Beat", "Accept", "SyncEnd"):
        outcome = ops.decode_outcome(ground.shards[user].submit([ops.available_op(FORGED[name])])[0])
        assert outcome != ops.Rejected("untrusted"), name
    assert ground.refused() == before


@pytest.mark.parametrize("fold", ["jobs", "state", "x"])
def test_a_program_registers_no_fold(ground: Ground, fold: str) -> None:
    """An operation for a fold that a replica does not have would stop it."""
    count = ground.refused().kinds.get("onefold.Register", 0)
    register = system.system_op(system.Register((fold,)))
    assert ground.append_raw("app", register) == system.REFUSED
    assert ground.refused().kinds["onefold.Register"] == count + 1
    assert ground.append_raw("app", Op(fold, b"anything")) == system.REFUSED
    assert ground.shards["node"].halted is None


def test_a_program_is_no_node_there_either(ground: Ground) -> None:
    join = nodes_ops.nodes_op(nodes_ops.Join("n", "i", "r", "", "0", "3", 2, 0))
    count = ground.refused().kinds.get("nodes.Join", 0)
    ground.append_raw("app", join)
    assert ground.refused().kinds["nodes.Join"] == count + 1


def test_a_program_writes_what_is_for_programs(ground: Ground) -> None:
    done = ops.Do((ops.Put("r", "carts", ((b"k", b"v"),)),))
    before = ground.refused()
    for user in USERS:
        outcome = ops.decode_outcome(ground.shards[user].submit([ops.available_op(done)])[0])
        assert isinstance(outcome, ops.Committed)
    assert ground.refused() == before


def test_status_and_doctor_say_what_was_refused(ground: Ground) -> None:
    ground.append_raw("app", ops.available_op(FORGED["Import"]))
    kept = {name: text for name, text in os.environ.items() if not name.startswith("ONEFOLD_")}
    kept["ONEFOLD_CACHE"] = os.environ["ONEFOLD_CACHE"]

    def run(*args: str) -> str:
        line = [sys.executable, "-m", "onefold.cli", *args, "--url", ground.cluster.url()]
        return subprocess.run(line, capture_output=True, text=True, check=False, timeout=180, env=kept).stdout

    total = ground.refused()
    said = json.loads(run("status", "--json"))["nodes_only"]
    assert said["regions"]["dc1"] == {"refused": 0, "kinds": {}}
    assert said["regions"][REGION] == {"refused": total.total, "kinds": total.kinds} and said["refused"] == 0
    assert f"{total.total} operations of programs were refused in {REGION}'s own logs" in run("status")
    checks = {check["name"]: check for check in json.loads(run("doctor", "--json"))["checks"]}
    assert (
        f"in {REGION}'s own logs" in checks["nodes only"]["found"]
        and "ap.Import" in checks["nodes only"]["found"]
    )


def test_a_program_without_a_replica_writes_and_reads(ground: Ground) -> None:
    done = ops.Do((ops.Put("r", "carts", ((b"remote", b"v"),)),))
    (shard,) = open_region(ground.cluster.url(), REGION, region_folds, replicas="remote")
    with closing(shard):
        outcome = ops.decode_outcome(shard.submit([ops.available_op(done)])[0])
        assert isinstance(outcome, ops.Committed) and outcome.region == 2
        with shard.view(need=ReadRequirement(barrier=True, timeout=60)) as view:
            (table,) = view.tables("ap/c/")
            assert b"remote" in dict(view.scan(table))


# -- their streams


def test_only_nodes_store_snapshots_of_a_region(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onefold.config.BLOB_RETRY_S", 1.0)
    (tmp_path / "file").write_bytes(b"a snapshot" * 10_000)
    name = file_blob_name(tmp_path / "file")

    def store(user: str) -> JetStreamBackend:
        return JetStreamBackend(ground.links[user], "main", ground.info.incarnation)

    with pytest.raises(BlobsUnavailable):
        store("app").put(name, tmp_path / "file")
    store("node").put(name, tmp_path / "file")
    assert store("app").get(name, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "file").read_bytes()
    assert not JetStreamBackend(ground.links["app"], "main").exists(name), (
        "the space's own blobs are elsewhere"
    )
    store("node").delete(name)
    assert not store("app").exists(name)


def test_nobody_trims_or_replaces_a_copy_of_the_record(ground: Ground) -> None:
    stream, subject = names.region_record_stream("main", REGION), names.region_record("main", REGION)
    for user in ("app", "node"):
        with pytest.raises(SpaceError, match="may not publish"):
            ground.links[user].append(subject, b"{}", None).wait(5)
    with pytest.raises((SpaceError, Refused)):
        ask(ground.links["node"], names.STREAM_PURGE + stream, {"seq": 2}, "trimming")
    assert admin.find_space(ground.links["app"], "main") is not None
