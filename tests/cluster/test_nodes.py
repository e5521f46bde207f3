"""Nodes as processes on a real cluster: they come, take their part, hang, die, come back, leave, and find out who is wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import apsw
import pytest

import onefold as of
from onefold import config
from onefold.compute.blob_places import fetch_base
from onefold.db import Database
from onefold.env import SYSTEM
from onefold.errors import OnefoldError
from onefold.fold import remote_protocol as protocol
from onefold.fold import system
from onefold.fold.backup import backup
from onefold.fold.log_space import LogSpace
from onefold.fold.nodes import state
from onefold.fold.nodes.state import Node
from onefold.folds import folds as space_folds
from onefold.log import checksums
from onefold.log.jetstream.address import parse_address
from onefold.log.jetstream.engine import JetStreamLog
from onefold.log.jetstream.link import Link
from onefold.log.jetstream.names import LogNames
from onefold.node.hosting import placement_of
from onefold.node.restoring import restore_space
from onefold.node.servers import LocalServers
from onefold.node.setup import set_up_space

SMALL = {
    "NODE_BEAT_S": 0.3,
    "NODE_LEASE_S": 2.5,
    "NODE_LOOK_S": 0.05,
    "SNAPSHOT_EVERY_OFFSETS": 128,
    "DIGEST_EVERY_OFFSETS": 32,
    "UPKEEP_LOOK_S": 0.3,
}
EVERY = int(SMALL["SNAPSHOT_EVERY_OFFSETS"])
SHARDS = 4
PATIENCE_S = 60.0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    found = LocalServers.start(tmp_path_factory.mktemp("servers"), 3)
    yield found
    found.stop(delete=True)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SMALL.items():  # what this process folds is what the nodes fold
        monkeypatch.setattr(config, name, value)


class Process:
    """A node in a process of its own."""

    def __init__(self, stand: Stand, name: str, *options: str) -> None:
        self.name = name
        self.directory = stand.directory / name
        self.output = stand.directory / f"{name}.log"
        limits = [f"{key}={value!r}" for key, value in SMALL.items()]
        command = [sys.executable, str(Path(__file__).with_name("small_node.py")), *limits, "--", "node"]
        command += [
            "--url",
            stand.url("node"),
            "--name",
            name,
            "--dir",
            str(self.directory),
            "--workers",
            "0",
        ]
        command += ["--snapshots", str(stand.directory / "vault"), *options]
        environment = {key: text for key, text in os.environ.items() if not key.startswith("ONEFOLD_")}
        self._skip = self.output.stat().st_size if self.output.exists() else 0
        self.began_s = time.monotonic()
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(command, stderr=output, stdout=output, env=environment)

    def events(self, event: str | None = None) -> list[dict[str, Any]]:
        """What this process has said."""
        text = self.output.read_bytes()[self._skip :].decode()
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        return [line for line in lines if event is None or line["event"] == event]

    def get(self, path: str) -> tuple[int, str]:
        started = self.events("started")
        if not started:
            return 0, ""
        try:
            with urllib.request.urlopen(f"http://{started[0]['http']}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    @property
    def ready(self) -> bool:
        return self.get("/ready")[0] == 200

    def metrics(self) -> dict[str, float]:
        lines = [line for line in self.get("/metrics")[1].splitlines() if line and line[0] != "#"]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    def kill(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it; what it ended with."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(number)
        try:
            return self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


class Stand:
    """A space on the servers, its nodes, and this test's own view of it."""

    def __init__(
        self, servers: LocalServers, directory: Path, space: str, source: Path | None = None
    ) -> None:
        """``source``: a backup that the space is made from."""
        self.directory = directory
        self._servers = servers
        self._space = space
        self.nodes: dict[str, Process] = {}
        if source is None:
            self.info = set_up_space(self.url("admin"), shards=SHARDS)
        else:
            self.info, _ = restore_space(source, self.url("admin"))
        self.link = Link(parse_address(self.url("app")))
        self.spaces = [
            LogSpace(
                JetStreamLog(self.link, self.info, shard),
                space_folds(shard, SHARDS),
                SYSTEM,
                replica=True,
                snapshot=self._base(shard),
            )
            for shard in range(SHARDS)
        ]
        self.db = Database(self.spaces)

    def _base(self, shard: int) -> Path | None:
        path = self.directory / f"base-{shard}"
        return path if fetch_base(self.link, self.info, shard, path) else None

    def url(self, user: str) -> str:
        return self._servers.url(self._space, user)

    def start(self, *names: str, options: tuple[str, ...] = (), wait: bool = True) -> None:
        for name in names:
            self.nodes[name] = Process(self, name, *options)
        if wait:
            self.wait(lambda: all(self.nodes[name].ready for name in names), "it is not ready")

    def close(self) -> None:
        for node in self.nodes.values():
            with suppress(subprocess.TimeoutExpired):
                node.end(signal.SIGKILL)
        for space in self.spaces:
            space.close()
        self.link.close()

    # -- what there is

    def rows(self) -> dict[str, Node]:
        self.spaces[0].barrier(10)
        with self.spaces[0].view() as view:
            return {node.name: node for node in state.read_nodes(view)}

    def states(self) -> dict[str, str]:
        return {name: node.state.state for name, node in self.rows().items()}

    def hosts(self) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {shard: set() for shard in range(SHARDS)}
        for name, node in self.rows().items():
            for shard in node.shards:
                found[shard].add(name)
        return found

    def settled(self, *names: str) -> bool:
        """Whether just these are members, and each answers for exactly what is placed there."""
        rows = self.rows()
        if {name for name, node in rows.items() if node.member} != set(names):
            return False
        placement = placement_of(SHARDS, rows.values())
        return self.hosts() == {
            shard: set(hosts) if shard else set(names) for shard, hosts in placement.items()
        }

    def wait(self, what: Callable[[], Any], problem: str, seconds: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := what()):
            for node in self.nodes.values():
                code = node.process.poll()
                assert code in (None, 0, -signal.SIGKILL), (
                    f"{node.name} ended: {node.output.read_text()[-3000:]}"
                )
            assert time.monotonic() < deadline, f"{problem}:\n{self._said()}"
            time.sleep(0.05)
        return found

    def _said(self) -> str:
        return "\n".join(f"{n.name}: {n.get('/ready')} {n.events()[-5:]}" for n in self.nodes.values())

    # -- what is done

    def ask(
        self, shard: int, what: protocol.What, timeout: float = 0.5
    ) -> protocol.Answer | protocol.Refusal:
        """One question to whichever node takes it."""
        names = LogNames(self.info.space, self.info.incarnation, shard)
        ask = protocol.Ask(protocol.PROTOCOL, self.info.incarnation, what)
        msg = self.link.request(names.ask, protocol.encode(ask), timeout=timeout)
        return protocol.decode_reply(msg.data)

    def ticks(self, shard: int, upto: int) -> None:
        """Append until the shard's log has reached an offset."""
        space = self.spaces[shard]
        while space.applied < upto:
            space.submit([system.system_op(system.Tick())])

    @contextmanager
    def asking(self) -> Iterator[list[float]]:
        """Asks all shards all the time, as a client that hedges; yields the longest time without an answer, by shard."""
        longest = [0.0] * SHARDS
        done = threading.Event()

        def run(shard: int) -> None:
            since_s = time.monotonic()
            while not done.is_set():
                try:
                    answered = isinstance(self.ask(shard, protocol.Applied(), 0.3), protocol.Answer)
                except OnefoldError:
                    answered = False
                now_s = time.monotonic()
                if answered:
                    longest[shard] = max(longest[shard], now_s - since_s)
                    since_s = now_s
                done.wait(0.01)
            longest[shard] = max(longest[shard], time.monotonic() - since_s)

        threads = [threading.Thread(target=run, args=(shard,)) for shard in range(SHARDS)]
        for thread in threads:
            thread.start()
        try:
            yield longest
        finally:
            done.set()
            for thread in threads:
                thread.join()


@pytest.fixture
def stand(servers: LocalServers, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Stand]:
    made = Stand(servers, tmp_path, f"t{os.getpid()}_{abs(hash(request.node.name)) % 10**8}")
    yield made
    made.close()


# -- coming and taking part


def test_nodes_join_take_their_part_and_say_what_they_do(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    before = stand.hosts()
    assert [len(names) for names in before.values()] == [3, 2, 2, 2]
    stand.db.map("m")["k"] = 1
    metrics = stand.nodes["n1"].metrics()
    mine = {shard for shard, names in before.items() if "n1" in names}
    assert {shard for shard in range(SHARDS) if f'onefold_shard_ready{{shard="{shard}"}}' in metrics} == mine
    assert metrics['onefold_nodes{state="live"}'] == 3
    assert metrics["onefold_node_ready"] == 1
    assert metrics["process_resident_memory_bytes"] > 0
    assert stand.nodes["n1"].get("/live")[0] == 200

    stand.start("n4")
    stand.wait(lambda: stand.settled("n1", "n2", "n3", "n4"), "the fourth has not settled")
    after = stand.hosts()
    for shard in range(1, SHARDS):
        assert after[shard] - before[shard] <= {"n4"}, "something else moved"
        assert len(after[shard]) == 2


def test_a_node_is_ready_only_when_it_has_what_was_acknowledged(stand: Stand) -> None:
    stand.start("n1")
    stand.db.map("m").put_many({f"k{number}": number for number in range(2000)}, atomic=False)
    with stand.asking():
        pass
    stand.nodes["n1"].end()
    ends = [space.barrier(10) for space in stand.spaces]
    stand.start("n2", wait=False)
    stand.wait(lambda: stand.nodes["n2"].get("/ready")[0], "it does not listen")
    stand.wait(lambda: stand.nodes["n2"].ready, "it is not ready")
    for shard, end in enumerate(ends):
        answer = stand.ask(shard, protocol.Applied())
        assert isinstance(answer, protocol.Answer)
        assert answer.offset >= end
    assert stand.nodes["n2"].get("/else")[0] == 404


# -- going


def test_a_killed_node_is_expired_and_its_shards_find_others(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    with stand.asking() as longest:
        stand.nodes["n2"].end(signal.SIGKILL)
        stand.wait(lambda: stand.states()["n2"] == "expired", "it was not expired")
        stand.wait(lambda: stand.settled("n1", "n3"), "its shards found nobody")
    assert max(longest) < 2.0, "reads stopped"
    said = [line for name in ("n1", "n3") for line in stand.nodes[name].events("node_expired")]
    assert {line["expired"] for line in said} == {"n2"}
    stand.start("n2")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "it did not come back")


def test_a_halted_process_comes_back_as_a_zombie_and_harms_nobody(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    epochs = {name: node.state.epoch for name, node in stand.rows().items()}
    with stand.asking() as longest:
        stand.nodes["n2"].kill(signal.SIGSTOP)
        stand.wait(lambda: stand.states()["n2"] == "expired", "it was not expired")
        stand.wait(lambda: stand.settled("n1", "n3"), "its shards found nobody")
    assert max(longest) < 10.0, "reads stopped"  # one in two questions goes to it until the servers miss it
    time.sleep(SMALL["NODE_LEASE_S"])  # long enough that by its own clock all others have been silent
    stand.nodes["n2"].kill(signal.SIGCONT)
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "it did not come back")
    rows = stand.rows()
    assert rows["n2"].state.epoch > epochs["n2"]
    assert {name: rows[name].state.epoch for name in ("n1", "n3")} == {
        name: epochs[name] for name in ("n1", "n3")
    }
    assert stand.nodes["n2"].events("was_expired")
    assert not stand.nodes["n2"].events("node_expired"), "it accused those who were never away"
    stand.wait(lambda: stand.nodes["n2"].ready, "it is not ready")


def test_a_leaving_node_hands_over_without_a_stop(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    with stand.asking() as longest:
        assert stand.nodes["n3"].end(signal.SIGTERM) == 0
    assert stand.states()["n3"] == "left"
    assert stand.hosts() == {shard: {"n1", "n2"} for shard in range(SHARDS)}, (
        "it left before others were ready"
    )
    assert max(longest) < 1.0, longest
    assert [line["event"] for line in stand.nodes["n3"].events()][-2:] == ["left", "ended"]


def test_a_second_signal_ends_it_at_once(stand: Stand) -> None:
    stand.start("n1")
    node = stand.nodes["n1"]
    node.kill(signal.SIGSTOP)
    node.kill(signal.SIGTERM)
    node.kill(signal.SIGINT)
    node.kill(signal.SIGCONT)
    assert node.process.wait(20) in (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_of_two_processes_of_one_name_the_later_stays(stand: Stand) -> None:
    stand.start("n1")
    first = stand.nodes["n1"]
    stand.nodes["n1"] = Process(stand, "n1", "--dir", str(stand.directory / "elsewhere"))
    assert first.process.wait(30) == 1
    assert "another process is the node 'n1'" in first.output.read_text()
    stand.wait(lambda: stand.settled("n1"), "the later one is not there")


# -- coming back


def test_nodes_live_through_the_death_of_all_servers(stand: Stand, servers: LocalServers) -> None:
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    stand.db.map("m")["k"] = 1
    for index in range(3):
        servers.kill(index)
    stand.wait(lambda: not any(node.ready for node in stand.nodes.values()), "they say that they are ready")
    assert all(node.get("/live")[0] == 200 for node in stand.nodes.values())
    for index in range(3):
        servers.restart(index, wait=index == 2)
    stand.wait(lambda: all(node.ready for node in stand.nodes.values()), "they did not come back", 120.0)
    assert all(node.process.poll() is None for node in stand.nodes.values())
    assert stand.wait(lambda: _value(stand), "reads did not come back") == 1
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")


def _value(stand: Stand) -> Any:
    try:
        return stand.db.map("m").get("k", consistency="strong")
    except OnefoldError:
        return None


def test_a_restarted_node_goes_on_with_its_store(stand: Stand) -> None:
    stand.start("n1", "n2")
    stand.db.map("m").put_many({f"k{number}": "v" * 100 for number in range(5000)}, atomic=False)
    ends = [space.barrier(10) for space in stand.spaces]
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")

    def has_all() -> bool:
        applied = dict(stand.rows()["n2"].state.hosted)
        return all(applied.get(shard, 0) >= end for shard, end in enumerate(ends))

    stand.wait(has_all, "it does not say that it has applied all")
    stand.nodes["n2"].end(signal.SIGTERM)
    stand.start("n2")
    opened = {line["shard"]: line["applied"] for line in stand.nodes["n2"].events("replica_opened")}
    assert all(opened[shard] >= end for shard, end in enumerate(ends)), "it began again from nothing"


def test_a_newcomer_starts_from_a_snapshot_once_the_log_was_trimmed(stand: Stand) -> None:
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    stand.db.map("m").put_many({f"k{number}": number for number in range(100)}, atomic=False)
    for shard in (0, 1):
        stand.ticks(shard, 3 * EVERY + 5)

    def trimmed() -> bool:
        return all(stand.spaces[shard].log.read and _first(stand, shard) > EVERY for shard in (0, 1))

    stand.wait(trimmed, "the logs were not trimmed")
    with stand.spaces[0].view() as view:
        for shard in (0, 1):
            assert state.archived_to(view, shard) is not None
            kept = state.snapshots(view, shard)
            assert len(kept) == config.SNAPSHOTS_KEPT
            assert _first(stand, shard) <= kept[0].offset + 1, "trimmed beyond the snapshots"
            assert _first(stand, shard) <= (state.archived_to(view, shard) or 0) + 1, (
                "trimmed beyond the archive"
            )
    stand.start("n3")
    fetched = {line["shard"] for line in stand.nodes["n3"].events("snapshot_fetched")}
    assert 0 in fetched
    opened = {line["shard"]: line["applied"] for line in stand.nodes["n3"].events("replica_opened")}
    assert opened[0] >= EVERY
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    # What it folds from there is what the others have: at the next boundary all three say the same.
    at = (stand.spaces[0].applied // EVERY + 1) * EVERY
    stand.ticks(0, at + 1)
    stand.wait(lambda: set(_hashes(stand, 0, at)) == {"n1", "n2", "n3"}, "they have not said their hashes")
    assert len(set(_hashes(stand, 0, at).values())) == 1
    assert stand.wait(lambda: _no_garbage(stand), "snapshots that nothing names were not deleted")


def test_a_program_gets_a_snapshot_from_a_node_once_the_log_was_trimmed(
    stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand.start("n1", "n2", options=("--snapshots", "jetstream"))
    stand.db.map("m").put_many({f"k{number}": number for number in range(100)}, atomic=False)
    stand.ticks(0, 2 * EVERY + 5)
    stand.wait(lambda: _first(stand, 0) > EVERY, "the log was not trimmed")
    with stand.spaces[0].view() as view:
        assert state.archived_to(view, 0) is None  # where the log is, an archive would be no second copy
    swept = "onefold_blobs_swept_total"
    stand.ticks(0, 3 * EVERY + 5)
    stand.wait(
        lambda: sum(node.metrics().get(swept, 0) for node in stand.nodes.values()) > 0, "nothing was swept"
    )
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    with of.connect(stand.url("app")) as db:
        assert dict(db.map("m").items()) == {f"k{number}": number for number in range(100)}
        db.map("m")["more"] = 1
    assert not list((tmp_path / "cache").rglob("fetched-snapshot*"))
    with of.connect(stand.url("app"), replicas="remote") as db:
        assert db.map("m")["more"] == 1


def test_a_restored_space_is_kept_trimmed_and_joined_as_any_other(
    stand: Stand, servers: LocalServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ONEFOLD_CACHE", str(tmp_path / "cache"))
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    content = {f"k{number}": number for number in range(100)}
    stand.db.map("m").put_many(content, atomic=False)
    stand.ticks(0, 2 * EVERY + 5)
    stand.wait(lambda: _first(stand, 0) > EVERY, "the log was not trimmed")
    with of.connect(stand.url("app")) as db:
        backup(db._spaces, tmp_path / "b", fetch=lambda name, to: False)
    for node in stand.nodes.values():
        node.end(signal.SIGKILL)

    (tmp_path / "other").mkdir()
    other = Stand(servers, tmp_path / "other", f"{stand.info.space}r", tmp_path / "b")
    try:
        base = other.info.base_of(0)
        assert base is not None and base.offset > 2 * EVERY
        assert other.rows() == {}, "nodes of the old cluster are remembered"
        other.start("m1", "m2")
        other.wait(lambda: other.settled("m1", "m2"), "not settled")
        assert {line["shard"] for line in other.nodes["m1"].events("base_fetched")} >= {0}
        with of.connect(other.url("app"), replicas="remote") as db:
            assert dict(db.map("m").items()) == content
        with of.connect(other.url("app")) as db:
            db.map("m")["more"] = 1
        other.ticks(0, base.offset + 4 * EVERY)
        other.wait(lambda: _first(other, 0) > base.offset + EVERY, "the log was not trimmed")
        with other.spaces[0].view() as view:
            assert next(state.archives(view, 0)).start == base.offset + 1
            assert state.snapshots(view, 0)[0].offset > base.offset
        assert not [
            line for node in other.nodes.values() for line in node.events() if "missing" in line["event"]
        ]
        other.start("m3")
        other.wait(lambda: other.settled("m1", "m2", "m3"), "not settled")
        at = (other.spaces[0].applied // EVERY + 1) * EVERY
        other.ticks(0, at + 1)
        other.wait(
            lambda: set(_hashes(other, 0, at)) == {"m1", "m2", "m3"}, "they have not said their hashes"
        )
        assert len(set(_hashes(other, 0, at).values())) == 1
        shutil.rmtree(tmp_path / "cache")
        with of.connect(other.url("app")) as db:
            assert dict(db.map("m").items()) == content | {"more": 1}
    finally:
        other.close()


def _first(stand: Stand, shard: int) -> int:
    log = JetStreamLog(stand.link, stand.info, shard)
    try:
        return log.first
    finally:
        log.close()


def _hashes(stand: Stand, shard: int, offset: int) -> dict[str, str]:
    stand.spaces[0].barrier(10)
    with stand.spaces[0].view() as view:
        return state.hashes(view).get((shard, offset), {})


def _no_garbage(stand: Stand) -> bool:
    stand.spaces[0].barrier(10)
    with stand.spaces[0].view() as view:
        named = {one.blob for shard in range(SHARDS) for one in state.snapshots(view, shard)}
        named |= {one.blob for shard in range(SHARDS) for one in state.archives(view, shard)}
        left = state.garbage(view, 10)
    there = {path.name for path in (stand.directory / "vault").glob("??/*")}
    return not left and named <= there and len(there) <= len(named) + 2


# -- being wrong


def _store(node: Process, shard: int) -> Path:
    (folder,) = (node.directory / "replicas").glob(f"*/{shard}")
    return folder / (folder / "current").read_text().strip() / "replica.db"


_WRONG = """
UPDATE kv SET v = CAST(v || x'00' AS BLOB) WHERE t = (SELECT id FROM tables WHERE name LIKE 'state/m/%')
AND k = (SELECT min(k) FROM kv WHERE t = (SELECT id FROM tables WHERE name LIKE 'state/m/%'))
"""


def _spoil(path: Path, *statements: str) -> None:
    """Change a replica's file as a broken machine does, with good page checksums."""
    con = apsw.Connection(str(path), vfs=checksums.VFS if checksums.available() else None)
    try:
        with con:
            for statement in statements:
                con.execute(statement)
                assert con.changes() > 0, statement
    finally:
        con.close()


def test_a_state_that_went_wrong_is_found_named_and_halted(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    stand.db.map("m").put_many({f"k{number}": "right" for number in range(200)}, atomic=False)
    stand.nodes["n2"].end(signal.SIGTERM)
    _spoil(_store(stand.nodes["n2"], 0), _WRONG)
    stand.start("n2")
    at = (stand.spaces[0].applied // EVERY + 1) * EVERY
    stand.ticks(0, at + 1)
    stand.wait(lambda: stand.nodes["n2"].events("replica_halted"), "it was not found")
    (halted,) = stand.nodes["n2"].events("replica_halted")
    assert halted["shard"] == 0
    assert "this copy is wrong" in halted["reason"].lower()
    assert "n2" in halted["reason"]
    for name in ("n1", "n3"):
        assert not stand.nodes[name].events("replica_halted")
        stand.wait(
            lambda name=name: any(
                "n2" in line["reason"] for line in stand.nodes[name].events("nodes_differ")
            ),
            "the others do not alarm",
        )
    assert not stand.nodes["n2"].ready
    assert stand.nodes["n2"].metrics()['onefold_shard_halted{shard="0"}'] == 1
    # Without shard 0 it is no node any more; started again, it makes its copy anew, and is sound.
    stand.nodes["n2"].end(signal.SIGTERM)
    stand.start("n2")
    at = (stand.spaces[0].applied // EVERY + 1) * EVERY
    stand.ticks(0, at + 1)
    stand.wait(lambda: set(_hashes(stand, 0, at)) == {"n1", "n2", "n3"}, "they have not said their hashes")
    assert len(set(_hashes(stand, 0, at).values())) == 1


def test_of_two_who_differ_the_one_who_cannot_reproduce_its_word_halts(stand: Stand) -> None:
    stand.start("n1", "n2")
    stand.wait(lambda: stand.settled("n1", "n2"), "not settled")
    stand.db.map("m").put_many({f"k{number}": "right" for number in range(200)}, atomic=False)
    stand.nodes["n2"].end(signal.SIGTERM)
    _spoil(_store(stand.nodes["n2"], 1), _WRONG)
    stand.start("n2")
    stand.ticks(1, (stand.spaces[1].applied // EVERY + 1) * EVERY + 1)
    stand.wait(lambda: stand.nodes["n2"].events("replica_halted"), "it was not found")
    looked = {
        name: [line["verdict"] for line in stand.nodes[name].events("looked_again")] for name in ("n1", "n2")
    }
    stand.wait(lambda: stand.nodes["n1"].events("looked_again"), "the other did not look again")
    assert looked["n2"] == ["wrong"]
    assert stand.nodes["n1"].events("looked_again")[0]["verdict"] == "sound"
    assert not stand.nodes["n1"].events("replica_halted")
    stand.wait(lambda: [shard for shard, _ in stand.rows()["n2"].state.halted] == [1], "it did not say so")
    assert stand.hosts()[1] == {"n1"}
    stand.wait(lambda: stand.nodes["n1"].metrics()["onefold_nodes_differ"] == 0, "the alarm did not end")


def test_who_cannot_reproduce_its_digest_of_the_log_halts(stand: Stand) -> None:
    stand.start("n1", "n2", "n3")
    stand.wait(lambda: stand.settled("n1", "n2", "n3"), "not settled")
    stand.ticks(0, 32 * 5 + 3)
    stand.nodes["n2"].end(signal.SIGTERM)
    applied = stand.spaces[0].applied // 32 * 32
    wrong = f"UPDATE digests SET digest = zeroblob(16) WHERE offset = {applied - 32}"
    _spoil(_store(stand.nodes["n2"], 0), wrong)
    stand.start("n2", wait=False)
    stand.wait(lambda: stand.nodes["n2"].events("replica_halted"), "it was not found")
    (halted,) = stand.nodes["n2"].events("replica_halted")
    assert "the log of shard 0" in halted["reason"]
    for name in ("n1", "n3"):
        stand.wait(
            lambda name=name: stand.nodes[name].events("looked_again"), "the others did not look again"
        )
        assert {line["verdict"] for line in stand.nodes[name].events("looked_again")} == {"sound"}
        assert not stand.nodes[name].events("replica_halted")


def test_states_that_there_was_no_time_to_compare_are_counted_and_told(stand: Stand) -> None:
    """A node that catches up comes to the next boundaries while it still reads the state at the first."""
    missed, hashed = "onefold_state_hashes_missed_total", "onefold_state_hashes_total"
    stand.start("n1")
    assert stand.nodes["n1"].metrics()[missed] == 0
    stand.db.map("m").put_many(dict.fromkeys(range(20_000), "v" * 1000), atomic=False)
    stand.nodes["n1"].end()
    begin = (stand.spaces[1].barrier(10) // EVERY + 1) * EVERY
    stand.ticks(1, begin + 5 * EVERY)
    stand.start("n1")
    node = stand.nodes["n1"]

    def offsets(event: str) -> list[int]:
        return [line["offset"] for line in node.events(event) if line["shard"] == 1]

    boundaries = [begin + number * EVERY for number in range(6)]
    stand.wait(
        lambda: sorted(offsets("boundary_missed") + offsets("state_hashed"))[: len(boundaries)] == boundaries,
        "a boundary came to nothing without a word",
    )
    told = node.events("boundary_missed")
    assert told and {line["level"] for line in told} == {"warning"}
    for metric, event in ((missed, "boundary_missed"), (hashed, "state_hashed")):
        stand.wait(
            lambda metric=metric, event=event: node.metrics()[metric] == len(node.events(event)),
            f"{metric} is not the number of {event}",
        )
