"""Who may append what: the table of docs/cluster.md, each row tried with each credential on real servers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

import onefold as of
from kit.cluster.log_ground import until
from onefold.available import ops as available_ops
from onefold.backup.backup import backup, restore
from onefold.cluster.servers import LocalServers
from onefold.cluster.setup import set_up_space
from onefold.codec import Op, Record, encode_record
from onefold.compute.jobs import ops as jobs_ops
from onefold.env import SYSTEM
from onefold.errors import SpaceError
from onefold.fold import authority, system
from onefold.fold.nodes import ops as nodes_ops
from onefold.fold.nodes.regions import read_decisions
from onefold.fold.nodes.state import read_nodes
from onefold.folds import folds
from onefold.ids import client_id
from onefold.log.jetstream import admin, stream_making
from onefold.log.jetstream.client.address import parse_address
from onefold.log.jetstream.client.link import Link
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.names import LogNames
from onefold.log.jetstream.spaces import SpaceInfo
from onefold.shard.embedded import EmbeddedShard
from onefold.shard.memory import MemoryShard
from onefold.space.open_space import open_shards
from onefold.state.fold import ops as state_ops

DOCUMENT = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text("utf-8")
USERS = ("app", "node", "admin")
JOIN = nodes_ops.Join("n", "i", "r", "", "0", "3", 2, 0)
EXAMPLES: dict[str, list[Op]] = {
    "Tick": [system.system_op(system.Tick())],
    "Register": [system.system_op(system.Register(("jobs",))), system.system_op(system.Register(("x",)))],
    "RaiseFoldVersion": [system.system_op(system.RaiseFoldVersion(2))],
    "ExpireClients": [system.system_op(system.ExpireClients(1))],
    "Trim": [system.system_op(system.Trim(2))],
    "Join": [nodes_ops.nodes_op(JOIN)],
    "Beat": [nodes_ops.nodes_op(nodes_ops.Beat("n", 1, ()))],
    "Drain": [nodes_ops.nodes_op(nodes_ops.Drain("n", 1))],
    "Leave": [nodes_ops.nodes_op(nodes_ops.Leave("n", 1))],
    "Expire": [nodes_ops.nodes_op(nodes_ops.Expire("n", 1))],
    "StateHash": [nodes_ops.nodes_op(nodes_ops.StateHash("n", 1, 0, 1, "h"))],
    "Archived": [nodes_ops.nodes_op(nodes_ops.Archived("n", 1, 0, 1, 1, "b", 1))],
    "Swept": [nodes_ops.nodes_op(nodes_ops.Swept("n", 1, ()))],
    "AddRegion": [nodes_ops.nodes_op(nodes_ops.AddRegion("eu"))],
    "EvictRegion": [nodes_ops.nodes_op(nodes_ops.EvictRegion("eu"))],
    "RejoinRegion": [nodes_ops.nodes_op(nodes_ops.RejoinRegion("eu"))],
}
"""Operations of the folds that are for nodes, in whole or in part."""


def names(union: Any) -> set[str]:
    return {one.__name__ for one in get_args(union)}


def table() -> list[tuple[str, set[str], set[str]]]:
    """Fold, operations and users of each row."""
    rest = DOCUMENT.split("\n## Who may append what\n", 1)[1].split("\n#", 1)[0]
    lines = [line for line in rest.splitlines() if line.startswith("| `")]
    found = []
    for line in lines:
        fold, operations, users = (cell.strip() for cell in line.strip("|").split("|")[:3])
        found.append(
            (fold.strip("`"), set(re.findall(r"`(\w+)`", operations)), set(re.findall(r"`(\w+)`", users)))
        )
    return found


class Ground:
    def __init__(self, servers: LocalServers) -> None:
        self.servers = servers
        self.links = {user: Link(parse_address(servers.url("main", user))) for user in USERS}
        self.info: SpaceInfo = set_up_space(servers.url("main", "admin"), replicas=1)
        self.shards = {user: self.space(user, self.info) for user in USERS}
        self.shards["node"].submit(EXAMPLES["Join"])  # its fold is registered with the first operation
        self.shards["node"].raise_fold_version(nodes_ops.REGIONS_VERSION)

    def space(self, user: str, info: SpaceInfo, **options: Any) -> MemoryShard:
        log = JetStreamLog(self.links[user], info, 0)
        return MemoryShard(log, folds(0, 1), SYSTEM, replica=True, **options)

    def append_raw(self, user: str, op: Op, *, client: str | None = None, number: int = 1) -> bytes:
        """The outcome of an operation that is written past Onefold's own writer, where everybody may publish."""
        record = Record(client or client_id(0, SYSTEM), number, SYSTEM.wall_ms(), (op,), 2)
        log = JetStreamLog(self.links[user], self.info, 0)
        offset = until(lambda: log.append(encode_record(record)))
        log.close()
        space = self.shards["node"]
        space.barrier(60)
        assert space.applied >= offset
        outcomes = space.outcomes(record.client, number)
        return b"" if outcomes is None else outcomes[0]

    def state(self) -> tuple[Any, ...]:
        space = self.shards["node"]
        space.barrier(60)
        with space.view() as view:
            head = view.head()
            return (
                read_nodes(view),
                head.fold_version,
                head.client_floor,
                head.log_first,
                set(view.tables("nodes/")) - {"nodes/untrusted"},
                read_decisions(view),
            )

    def refused(self) -> authority.RefusedOps:
        with self.shards["node"].view() as view:
            return authority.refused_ops(view)


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    servers = LocalServers.start(tmp_path_factory.mktemp("servers"), 1, spaces=["main"])
    found = Ground(servers)
    yield found
    for space in found.shards.values():
        space.close()
    for link in found.links.values():
        link.close()
    servers.stop(delete=True)


def is_untrusted(op: Op, outcome: bytes) -> bool:
    if op.fold == "nodes":
        return bool(msgspec.msgpack.decode(outcome)[:2] == ["no", "untrusted"])
    return outcome == system.REFUSED


def test_the_table_has_every_operation_of_every_fold() -> None:
    listed: dict[str, set[str]] = {}
    for fold, operations, users in table():
        assert users <= set(USERS)
        listed.setdefault(fold, set()).update(operations)
    assert listed == {
        "onefold": names(system.SystemOp),
        "nodes": names(nodes_ops.Operation),
        "jobs": names(jobs_ops.Operation),
        "state": names(state_ops.StateOp),
        "ap": names(available_ops.AvailableOp),
    }
    assert set(EXAMPLES) == listed["onefold"] | listed["nodes"], "an operation is not tried"


@pytest.mark.parametrize("user", USERS)
def test_each_row_with_each_credential(ground: Ground, user: str) -> None:
    tried = 0
    for fold, operations, users in table():
        if fold not in ("onefold", "nodes"):
            continue  # everything a fold does for programs: tried by the next test
        for name in sorted(operations):
            for_nodes = users == {"node", "admin"}
            for op in EXAMPLES[name]:
                if name == "Register" and (op.body == EXAMPLES["Register"][1].body) != for_nodes:
                    continue
                tried += 1
                allowed = user in users
                if not allowed:
                    before, count = ground.state(), ground.refused().total
                    with pytest.raises(SpaceError, match="may not publish"):
                        ground.shards[user].submit([op])
                    assert is_untrusted(op, ground.append_raw(user, op)), (user, name)
                    assert ground.state() == before, (user, name)
                    assert ground.refused().total == count + 1, (user, name)
                elif fold == "nodes":
                    assert not is_untrusted(op, ground.shards[user].submit([op])[0]), (user, name)
                else:
                    ground.shards[user].submit([op])
    assert tried == 17


@pytest.mark.parametrize("user", USERS)
def test_what_programs_append_counts_from_everybody(ground: Ground, user: str) -> None:
    with of.connect(ground.servers.url("main", user), replicas="local") as db:
        db.map("m")[user] = 1
        with db.transaction() as tx:
            tx.map("m")["sum"] = 2
        db.queue("q").put(user)
        message = db.queue("q").take(timeout=60)
        assert message is not None
        message.ack()
        db.stream(f"s-{user}").append(1)
        with db.lock("l"):
            pass
    before = ground.refused()
    for fold in ("jobs", "state"):
        assert not authority.needs_trust([Op(fold, b"")], 2)
    assert ground.refused() == before


def test_a_program_cannot_take_a_nodes_number(ground: Ground) -> None:
    client = client_id(0, SYSTEM, of_node=True)
    with ground.shards["node"].view() as view:
        refused = view.head().refused
    assert ground.append_raw("app", EXAMPLES["Tick"][0], client=client) == b""
    with ground.shards["node"].view() as view:
        assert view.head().refused == refused + 1
    assert ground.shards["node"].known(client) is None


def test_a_replica_that_begins_from_the_log_or_a_snapshot_judges_alike(
    ground: Ground, tmp_path: Path
) -> None:
    ground.append_raw("app", EXAMPLES["Join"][0])
    first = ground.shards["node"]
    first.barrier(60)
    first.snapshot(tmp_path / "snapshot")
    ground.append_raw("app", EXAMPLES["Trim"][0])
    again = ground.space("node", ground.info)
    later = ground.space("node", ground.info, snapshot=tmp_path / "snapshot")
    try:
        first.barrier(60)
        for space in (again, later):
            assert space.reach(first.applied, 60)
        assert first.state_digest() == again.state_digest() == later.state_digest()
    finally:
        again.close()
        later.close()


def test_a_backup_of_the_cluster_keeps_what_is_trusted(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    ground.append_raw("app", EXAMPLES["Join"][0])
    with of.connect(ground.servers.url("main", "app"), replicas="local") as db:
        db._shards[0].barrier(60)
        made = backup(db._shards, tmp_path / "backup", fetch=lambda name, to: False)
        entries: dict[int, bool] = {}
        while len(entries) < made.shards[0].offset:
            found = db._shards[0].log.read(len(entries) + 1)  # type: ignore[attr-defined]
            entries |= {entry.offset: entry.trusted for entry in found}
    digests: dict[int, set[str]] = {}
    for name, to_ms in (("whole", None), ("folded", made.created_ms)):
        restore(tmp_path / "backup", tmp_path / name, folds, to_ms=to_ms)
        (again,) = open_shards(tmp_path / name, folds, create=False)
        with closing(again):
            assert isinstance(again, EmbeddedShard)
            kept = again.log.read(again.log.first, 1 << 30)  # a node has trimmed it in an earlier test
            restored = {entry.offset: entry.trusted for entry in kept}
            assert restored == {at: entries[at] for at in restored} and len(restored) > again.applied // 2
            assert {True, False} == set(restored.values())
            digests[again.applied] = digests.get(again.applied, set()) | {again.state_digest()}
    assert made.shards[0].offset in digests and all(len(found) == 1 for found in digests.values())


def test_a_space_of_an_earlier_release_is_protected_after_another_init(tmp_path: Path) -> None:
    servers = LocalServers.start(tmp_path / "servers", 1, spaces=["main"])
    links = {user: Link(parse_address(servers.url("main", user))) for user in USERS}
    spaces: list[MemoryShard] = []
    try:
        info = until(lambda: admin.make_space(links["admin"], "main", replicas=1))
        log = LogNames("main", info.incarnation, 0)
        config = {"name": log.stream, "subjects": [log.subject], "storage": "file", "deny_delete": True}
        config |= {
            "republish": {"src": log.subject, "dest": log.tail},
            "allow_direct": True,
            "discard": "new",
        }
        stream_making.ask(links["admin"], f"$JS.API.STREAM.UPDATE.{log.stream}", config, "as it was")
        spaces = [
            MemoryShard(JetStreamLog(links[user], info, 0), folds(0, 1), SYSTEM, replica=True)
            for user in ("app", "node")
        ]
        app, node = spaces
        assert not node.log.takes_trusted()  # type: ignore[attr-defined]
        outcome = nodes_ops.decode_outcome(app.submit(EXAMPLES["Join"])[0])
        assert isinstance(outcome, nodes_ops.Accepted), "until then everything is as before"
        assert set_up_space(servers.url("main", "admin")) == info
        assert node.log.takes_trusted()  # type: ignore[attr-defined]
        with pytest.raises(SpaceError, match="may not publish"):
            app.raise_fold_version(2)
        node.raise_fold_version(2)
        node.barrier(60)
        assert app.reach(node.applied, 60)
        with pytest.raises(SpaceError, match="may not publish"):
            app.submit(EXAMPLES["Join"])
        outcome = nodes_ops.decode_outcome(node.submit(EXAMPLES["Join"])[0])
        assert isinstance(outcome, nodes_ops.Accepted)
        entries = node.log.read(1)
        assert [entry.trusted for entry in entries if b"fold_version" in entry.data] == [True]
        assert node.log.first_trusted() in entries  # type: ignore[attr-defined]
    finally:
        for space in spaces:
            space.close()
        for link in links.values():
            link.close()
        servers.stop(delete=True)
